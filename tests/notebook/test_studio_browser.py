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
    book = pytest.importorskip("openpyxl").Workbook()
    book.active.title = "Anfragen"
    for row in [
        ("Nr", "Frage", "Antwort"),
        *((i, f"Ist {i} gerade?", "ja" if i % 2 else "nein") for i in range(160)),
    ]:
        book.active.append(row)
    book.save(tmp_path / "Anfragen.xlsx")
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
    page.wait_for_selector(".lk-studio", timeout=120_000)
    page.locator(".lk-studio").scroll_into_view_if_needed()


def shown_again(page):
    """Whether the studio is there without running a cell, as in a notebook that was saved before it was closed."""
    from playwright.sync_api import TimeoutError

    with suppress(TimeoutError):
        return page.wait_for_selector(".lk-studio", timeout=10_000)


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
    page.wait_for_selector(".lk-studio", timeout=120_000)


def shot(page, name):
    """A picture to look at, and no scrollbar that nobody wants."""
    page.wait_for_timeout(300)
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], name


def turn(page, title):
    page.get_by_role("tab", name=title).click()


def press(page, words):
    page.locator(".lk-studio").get_by_role("button", name=words, exact=True).first.click()


def upload(page, path):
    page.set_input_files(".lk-drop input", path)


def drop(page, *paths):
    """Files from outside let fall on the zone, as the browser itself sees it."""
    box = page.locator(".lk-drop").bounding_box()
    files = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    for step in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": step, **place, "data": files})


def says(page, words, seconds=300):
    page.locator(".lk-studio").get_by_text(words).first.wait_for(
        timeout=1000 * seconds, state="visible"
    )


def until(true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)


def history(place, name):
    path = place / f"outputs/{name}/history.jsonl"
    return sum('"loss"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def new_page(chromium, width=1280, height=900, **more):
    page = chromium.new_page(viewport={"width": width, "height": height}, **more)
    page.set_default_timeout(120_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    return page


def a_setting(page, name, value):
    """One of the settings that are folded away."""
    if not page.get_by_label(name, exact=True).first.is_visible():
        page.get_by_text("Every setting").click()
    page.get_by_label(name, exact=True).first.fill(value)
    page.get_by_label(name, exact=True).first.press("Tab")


def from_excel_to_a_chat_and_a_file(page, place, kind):
    upload(page, place / "broken.csv")
    says(page, re.compile("is opened here and never closed"))
    shot(page, f"{kind}-0-broken")
    upload(page, place / "Anfragen.xlsx")
    says(page, "All 160 rows can be used.")
    shot(page, f"{kind}-1-data")
    press(page, "Next: Columns")
    says(page, "Ist 1 gerade?")
    shot(page, f"{kind}-2-columns")
    press(page, "Next: Model")
    says(page, "recommended here")
    page.get_by_role("button", name="tiny 1.3 M").click()
    shot(page, f"{kind}-3-model")
    press(page, "Next: Settings")
    page.get_by_text("Quick look").click()
    says(page, re.compile("Fits this computer: needs .* 16 training steps"))
    shot(page, f"{kind}-4-settings")
    press(page, "Next: Train")
    press(page, "Start")
    page.wait_for_selector(".lk-studio svg.lk-curve")
    shot(page, f"{kind}-5-train")
    says(page, "Did it get better?")
    page.wait_for_selector(".v-alert:has-text('test rows')")
    shot(page, f"{kind}-6-result")
    press(page, "Chat with it")
    question = page.get_by_label("Your question", exact=True)
    for turns in (1, 2):
        question.fill(f"Ist {turns} gerade?")
        question.press("Enter")
        page.wait_for_function(
            "n => [...document.querySelectorAll('.lk-studio button')]"
            ".filter(b => b.textContent.includes('Correct it')).length === n",
            arg=turns,
        )
    shot(page, f"{kind}-7-chat")
    press(page, "Export")
    link = page.locator(".v-alert a.lk-download")
    link.wait_for(timeout=400_000)
    with page.expect_download() as file:
        link.click()
    assert file.value.suggested_filename.endswith((".gguf", ".zip"))
    assert Path(file.value.path()).stat().st_size > 1_000_000
    shot(page, f"{kind}-8-export")
    assert page.errors == []


def test_the_whole_way_as_a_page(chromium, place):
    with voila(place) as opened:
        page = new_page(chromium)
        opened(page, first=True)
        from_excel_to_a_chat_and_a_file(page, place, "page-light-1280")


def test_the_whole_way_on_a_narrow_dark_page(chromium, place):
    with voila(place) as opened:
        page = new_page(chromium, 390, 844, color_scheme="dark")
        opened(page, first=True)
        from_excel_to_a_chat_and_a_file(page, place, "page-dark-390")


def test_the_whole_way_in_jupyterlab(chromium, place):
    with lab(place) as opened:
        page = new_page(chromium)
        opened(page, first=True)
        from_excel_to_a_chat_and_a_file(page, place, "lab-light-1280")


def test_a_reload_and_a_second_tab_find_the_run(chromium, place):
    with voila(place) as opened:
        page = new_page(chromium)
        opened(page, first=True)
        drop(page, place / "large.txt")
        says(page, "large.txt")
        uploads = place / "outputs/+studio/uploads"
        until(lambda: (uploads / "large.txt").exists())
        assert (uploads / "large.txt").stat().st_size == 12_000_000  # of a message 10 MB may be
        drop(page, place / "rows.jsonl")
        says(page, "Is 0 even?")
        turn(page, "Settings")
        says(page, "Fits this computer")
        a_setting(page, "max_updates", "100000")
        says(page, re.compile("100,000 training steps"))
        turn(page, "Train")
        press(page, "Start")
        says(page, re.compile(r"3/5 train · update \d+ of 100,000"))
        page.reload()  # the kernel of this page is gone, and the run goes on
        page.wait_for_selector(".lk-studio")
        done = history(place, "rows")
        until(lambda: history(place, "rows") > done + 3)
        other = new_page(chromium)
        opened(other)
        for one in (page, other):
            says(one, re.compile(r"3/5 train · update \d+ of 100,000"))
        press(other, "Stop")
        for one in (page, other):
            says(one, re.compile("rows: stopped"))
        press(page, "Resume")
        says(other, re.compile(r"3/5 train · update \d+ of 100,000"))
        press(other, "Stop")
        says(page, re.compile("rows: stopped"))
        assert page.errors == other.errors == []


def test_what_a_user_wrote_runs_nowhere_and_keys_reach_every_control(chromium, place):
    rows = [{"prompt": HOSTILE + str(i), "completion": HOSTILE} for i in range(40)]
    (place / "hostile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with voila(place) as opened:
        page = new_page(chromium)
        opened(page, first=True)
        upload(page, place / "hostile.jsonl")
        says(page, "hostile.jsonl")
        page.wait_for_timeout(3000)
        assert page.evaluate("window.hacked") is None
        seen = []
        for _ in range(40):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate(
                    "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
                )
            )
        assert {"Choose a file", "Dark colours"} <= set(seen)
        assert any("Next: Columns" in words for words in seen)
