"""The studio in a real browser, in JupyterLab and as a page of Voila: from an upload to a download."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from helpers.paths import ROOT

SHOTS = os.environ.get("LORAKIT_SHOTS")  # a folder for screenshots to look at
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What JupyterLab's indicator calls idle may be a notebook without a kernel yet.
CONNECTED = """() => {
    const session = window.jupyterapp?.shell?.currentWidget?.context?.sessionContext;
    const kernel = session?.session?.kernel;
    return session?.isReady && kernel?.connectionStatus === "connected" && kernel?.status === "idle";
}"""
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not found:
        pytest.skip("no browser: chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def place(tmp_path):
    """A folder as a user has it: the notebook, a broken file, a good one, a large one."""
    content = json.loads((ROOT / "notebooks/studio.ipynb").read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = "".join(cell["source"]).replace(
                '"outputs"', repr(str(tmp_path / "outputs"))
            )
    (tmp_path / "studio.ipynb").write_text(json.dumps(content), encoding="utf-8")
    rows = [{"prompt": f"Is {i} even?", "completion": "no" if i % 2 else "yes"} for i in range(160)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    hostile = HOSTILE.replace('"', "")
    (tmp_path / "large.txt").write_text((("word " * 200)[:-1] + "\n") * 12_000, encoding="utf-8")
    (tmp_path / "broken.csv").write_text(
        f'prompt,completion\n{hostile},x\n"open,\n', encoding="utf-8"
    )
    yield tmp_path
    for process in psutil.process_iter(
        ["cmdline"]
    ):  # runs outlive their page, and a test that failed
        if str(tmp_path) in " ".join(process.info["cmdline"] or []):
            with suppress(psutil.Error):
                process.kill()


@contextmanager
def served(place, *command):
    """A server on a free port, until the block ends. Yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {
        **os.environ,
        "PYTHONPATH": path,
        "LORAKIT_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(place / "config"),
        "JUPYTER_RUNTIME_DIR": str(place / "runtime"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    with open(place / "server.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={port}", "--no-browser"],
            cwd=place,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(
                    f"{address}/api" if "jupyterlab" in command else address, timeout=60
                ).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, (
                    place / "server.log"
                ).read_text()[-2000:]
                time.sleep(0.3)
        yield address
    finally:
        family = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
        for process in family:
            with suppress(psutil.Error):
                process.kill()


@contextmanager
def lab(place):
    with served(
        place,
        "jupyterlab",
        "--allow-root",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={place}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None",
    ) as address:
        yield lambda page, first=False: open_lab(page, address, first)


def open_lab(page, address, first):
    page.goto(f"{address}/lab/tree/studio.ipynb")
    page.wait_for_function(CONNECTED, timeout=120_000)
    if first or not shown_again(page):
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".lorakit-studio", timeout=120_000)
    page.locator(".lorakit-studio").scroll_into_view_if_needed()


def shown_again(page):
    """Whether the studio is there without running a cell, as in a notebook that was saved before it was closed."""
    from playwright.sync_api import TimeoutError

    with suppress(TimeoutError):
        return page.wait_for_selector(".lorakit-studio", timeout=10_000)


@contextmanager
def voila(place):
    with served(
        place,
        "voila",
        "studio.ipynb",
        "--Voila.ip=127.0.0.1",
        "--VoilaConfiguration.file_allowlist=[]",
    ) as address:
        yield lambda page, first=False, more="": open_voila(page, address, first, more)


def open_voila(page, address, first, more=""):
    page.goto(address + more, timeout=120_000)
    page.wait_for_selector(".lorakit-studio", timeout=120_000)


def shot(page, name):
    if SHOTS:
        page.locator(".lorakit-studio").evaluate("e => e.scrollIntoView()")
        page.screenshot(path=f"{SHOTS}/{name}.png")


def turn(page, title):
    page.locator(".lorakit-studio").get_by_role("button", name=title, exact=True).first.click()


def upload(page, path):
    with page.expect_file_chooser() as chooser:
        page.locator(".lk-drop label").first.click()
    chooser.value.set_files(path)


def drop(page, *paths):
    """Files from outside let fall on the zone, as the browser itself sees it."""
    box = page.locator(".lk-drop label").first.bounding_box()
    files = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for step in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent",
            {
                "type": step,
                "x": box["x"] + box["width"] / 2,
                "y": box["y"] + box["height"] / 2,
                "data": files,
            },
        )


def says(page, words, seconds=300):
    page.locator(".lorakit-studio").get_by_text(words).first.wait_for(
        timeout=1000 * seconds, state="visible"
    )


def field(page, label):
    return page.locator(".lorakit-studio").get_by_label(label, exact=True).first


def fill(page, label, value):
    control = field(page, label)
    control.fill(value)
    control.press("Enter")
    control.press("Tab")


def history(place, name):
    path = place / f"outputs/{name}/history.jsonl"
    return sum('"loss"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def until(true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)


def new_page(chromium, width=1280, height=900, **more):
    page = chromium.new_page(viewport={"width": width, "height": height}, **more)
    page.set_default_timeout(60_000)
    return page


def from_a_file_to_a_download(chromium, place, opened, kind):
    page = new_page(chromium)
    opened(page, first=True)
    turn(page, "Upload")
    upload(page, place / "broken.csv")
    says(page, re.compile("is opened here and never closed"))
    shot(page, f"{kind}-1-broken")
    drop(page, place / "large.txt")
    says(page, "large.txt is the data of the next run")
    drop(page, place / "rows.jsonl")
    says(page, re.compile(r"160 rows, jsonl"))
    assert (
        place / "outputs/studio/uploads/large.txt"
    ).stat().st_size == 12_000_000  # of a message 10 MB may be
    says(page, "Is 0 even?")
    shot(page, f"{kind}-2-upload")

    turn(page, "Configure")
    says(page, re.compile("This fits: .* GB of the .* 48 updates, about .* of training"))
    fill(page, "Name", "first")
    fill(page, "Updates at most", "100000")
    says(page, re.compile("This fits: .*100,000 updates"))
    shot(page, f"{kind}-3-configure")
    turn(page, "Train")
    says(page, "max_updates")
    turn(page, "Start")
    says(page, re.compile(r"running · update \d+ of 100000"))
    page.wait_for_selector(".lorakit-studio svg polyline")
    before = page.locator(".lorakit-studio svg polyline").nth(1).get_attribute("points")
    until(
        lambda: (
            page.locator(".lorakit-studio svg polyline").nth(1).get_attribute("points") != before
        )
    )  # it grows
    shot(page, f"{kind}-4-progress")

    page.close()  # and the run goes on
    done = history(place, "first")
    until(lambda: history(place, "first") > done + 3)
    page = new_page(chromium)
    opened(page)
    turn(page, "Progress")
    says(page, re.compile(r"running · update \d+ of 100000"))
    turn(page, "Train")
    turn(page, "Stop")
    says(page, re.compile("first is stopped"))
    stopped = history(place, "first")
    turn(page, "Resume")
    says(page, re.compile(r"running · update \d+ of 100000"))
    until(lambda: history(place, "first") > stopped + 3)  # from where it stood
    turn(page, "Train")
    turn(page, "Stop")
    says(page, re.compile("first is stopped"))

    turn(page, "Configure")
    fill(page, "Name", "second")
    fill(page, "Updates at most", "12")
    says(page, re.compile("This fits: .*12 updates"))
    turn(page, "Train")
    turn(page, "Start")
    says(page, re.compile("done · update 12 of 12"))
    shot(page, f"{kind}-5-done")
    turn(page, "Try")
    field(page, "Question").fill("Is 7 even?")
    turn(page, "Ask both")
    says(page, "the tuned model")
    shot(page, f"{kind}-6-try")
    turn(page, "Export")
    field(page, "As").select_option("adapter")
    turn(page, "Export")
    page.locator(".lorakit-studio .widget-button, .lorakit-studio .jupyter-button").get_by_text(
        "Export", exact=True
    ).last.click()
    says(page, re.compile("Download .*MB"))
    with page.expect_download() as download:
        page.locator(".lk-download").click()
    assert Path(download.value.path()).read_bytes()[:2] == b"PK"
    shot(page, f"{kind}-7-export")
    turn(page, "Jobs")
    field(page, "Runs").select_option(["first", "second"])
    turn(page, "Compare")
    says(page, re.compile("max_updates: "))
    shot(page, f"{kind}-8-jobs")
    field(page, "Runs").select_option(["first"])
    turn(page, "Delete")
    says(page, "Delete first with all that is in it?")
    turn(page, "Yes, delete")
    says(page, "first is deleted")
    assert not (place / "outputs/first").exists() and (place / "outputs/second").exists()
    assert page.evaluate("window.hacked") is None
    page.close()


def test_in_jupyterlab(chromium, place):
    with lab(place) as opened:
        from_a_file_to_a_download(chromium, place, opened, "lab")


def test_in_voila(chromium, place):
    pytest.importorskip("voila")
    with voila(place) as opened:
        from_a_file_to_a_download(chromium, place, opened, "voila")


def test_a_wide_file_as_it_was_published(chromium, place, real_data):
    """45 columns, of which two are named by hand; then each move of a slider is answered while it is felt."""
    pytest.importorskip("voila")
    with voila(place) as opened:
        page = new_page(chromium)
        opened(page, first=True)
        turn(page, "Upload")
        drop(page, real_data / "disaster_response/disaster_response_validation.csv")
        says(page, re.compile("fit no schema"))
        says(page, "medical_products")  # the last columns are shown as well as the first
        field(page, "Columns").select_option("text and label")
        fill(page, "text", "message")
        fill(page, "label", "genre")
        turn(page, "Check")
        says(page, re.compile("2,33[67] usable"))
        shot(page, "wide-1-upload")
        turn(page, "Configure")
        says(page, re.compile("This fits: .* updates"))
        shot(page, "wide-2-configure")
        page.locator(".lorakit-studio .widget-hslider", has_text="Epochs").locator(
            ".noUi-handle"
        ).focus()
        plan, took = page.locator(".lorakit-studio .lk-good").last, []
        for _ in range(9):
            before, start = plan.inner_text(), time.monotonic()
            page.keyboard.press("ArrowRight")
            page.wait_for_function(
                "before => [...document.querySelectorAll('.lorakit-studio .lk-good')].pop()"
                "?.innerText != before",
                arg=before,
            )
            took.append(time.monotonic() - start)
        print(
            f"a move of the slider is answered after {1000 * sorted(took)[4]:.0f} ms at the median"
        )
        assert sorted(took)[4] < 0.15
        assert page.evaluate("window.hacked") is None
        page.close()


WIDER = """width => [...document.querySelectorAll(".lorakit-studio *")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > width + 1 && !e.closest(".lk-scroll, pre, svg") && e.tagName != "OPTION";
}).map(e => e.outerHTML.slice(0, 120))"""
UNNAMED = """[...document.querySelectorAll(
    ".lorakit-studio input, .lorakit-studio select, .lorakit-studio textarea, .lorakit-studio button, "
    + ".lorakit-studio [role=slider]")].filter(
    e => e.offsetParent && !(e.labels?.length || e.textContent.trim() || e.ariaLabel || e.closest("[aria-label]")
         || e.closest(".widget-inline-hbox")?.querySelector("label, .widget-label"))
).map(e => e.outerHTML.slice(0, 160))"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_narrow_and_wide_light_and_dark(chromium, place, width, theme):
    """Nothing stands out of the page, every control has a name, and the text is told from what is behind it."""
    pytest.importorskip("voila")
    with voila(place) as opened:
        page = new_page(chromium, width, 844, color_scheme=theme)
        opened(page, first=True, more=f"?theme={theme}")
        assert not page.get_by_text("Without a browser").is_visible()
        for title in ("Upload", "Configure", "Train", "Progress", "Jobs", "Try", "Export"):
            turn(page, title)
            page.wait_for_timeout(1500)
            assert not page.get_by_text(
                "travels in one message"
            ).is_visible()  # as the zone is there
            assert page.evaluate(WIDER, width) == [], title
            assert page.evaluate(UNNAMED) == [], title
            shot(page, f"{theme}-{width}-{title}")
        colour = page.evaluate(
            "getComputedStyle(document.querySelector('.lorakit-studio label, .lorakit-studio "
            ".widget-label')).color"
        )
        light = sum(map(int, re.findall(r"\d+", colour)[:3])) > 384
        assert light == (theme == "dark")
        page.close()


def test_by_keyboard(chromium, place):
    """Tab and arrows alone: to a tab, to a slider, and the plan follows."""
    pytest.importorskip("voila")
    with voila(place) as opened:
        page = new_page(chromium)
        opened(page, first=True)
        page.locator(".lorakit-studio").get_by_role("button", name="Upload", exact=True).focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        says(page, re.compile("This fits: .* updates"))
        for _ in range(12):
            page.keyboard.press("Tab")
            assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "2px"
            if page.evaluate(
                "document.activeElement.getAttribute('role') == 'slider' || "
                "document.activeElement.classList.contains('noUi-handle')"
            ):
                break
        before = page.locator(".lorakit-studio .lk-good").last.inner_text()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        until(lambda: "rank: 64" in yaml_of(place), 30)
        assert before
        page.close()


def yaml_of(place):
    path = place / "outputs/studio/settings.yaml"
    return path.read_text() if path.exists() else ""
