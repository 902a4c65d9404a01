"""The studio in a real browser: servers of its page, and what a person does there."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

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


@contextmanager
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
            with suppress(OSError):  # a request for Voila's page would start a kernel
                socket.create_connection(("127.0.0.1", port), timeout=60).close()
                break
            words = (place / "server.log").read_text()[-2000:]
            assert server.poll() is None and time.monotonic() < end, words
            time.sleep(0.3)
        yield address
    finally:
        family = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
        for process in family:
            with suppress(psutil.Error):
                process.kill()


DARK_LAB = {
    "@jupyterlab/apputils-extension:themes": {"theme": "JupyterLab Dark"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
}
# On a narrow screen a person folds away the file browser and shows one document.
NARROW = "() => { const s = jupyterapp.shell; s.mode = 'single-document'; s.collapseLeft(); s.collapseRight() }"


@contextmanager
def lab(place, dark=False):
    settings = place / "lab-settings"
    settings.mkdir(exist_ok=True)
    (settings / "overrides.json").write_text(json.dumps(DARK_LAB if dark else {}))
    with served(
        place,
        "jupyterlab",
        "--allow-root",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={place}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None",
        f"--LabApp.app_settings_dir={settings}",
    ) as address:
        yield lambda page, first=False: open_lab(page, address, first)


def open_lab(page, address, first):
    page.goto(f"{address}/lab/tree/studio.ipynb")
    page.wait_for_function(CONNECTED, timeout=120_000)
    if first or not shown_again(page):
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    if page.viewport_size["width"] < 700:
        page.evaluate(NARROW)
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
    """A picture to look at, as high as the page is, and no scrollbar that nobody wants."""
    page.wait_for_timeout(300)
    if SHOTS:
        size = page.viewport_size
        high = page.evaluate("document.querySelector('.lk-page').scrollHeight")
        page.set_viewport_size({**size, "height": max(700, min(1500, high + 60))})
        page.evaluate("document.querySelector('.lk-page').scrollIntoView()")
        page.wait_for_timeout(300)
        page.screenshot(path=f"{SHOTS}/{name}.png")
        page.set_viewport_size(size)
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
    try:
        page.locator(".lk-studio").get_by_text(words).first.wait_for(
            timeout=1000 * seconds, state="visible"
        )
    except BaseException:
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/failed.png", full_page=True)
        raise


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
