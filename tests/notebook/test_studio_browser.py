"""The studio in a real browser, in JupyterLab and as a page of Voila: from an upload to a download.

`make film` keeps a picture of every step.
"""

import json
import random
import re
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from helpers import browser
from helpers.browser import (
    a_setting,
    drop,
    history,
    lab,
    new_page,
    press,
    says,
    shot,
    turn,
    until,
    upload,
    voila,
)
from helpers.paths import ROOT

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as one:
        yield one


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
    for row in [("Nr", "Frage", "Antwort"), *((i, *pair) for i, pair in enumerate(questions(), 1))]:
        book.active.append(row)
    book.save(tmp_path / "Anfragen.xlsx")
    yield tmp_path
    for process in psutil.process_iter(
        ["cmdline"]
    ):  # runs outlive their page, and a test that failed
        if str(tmp_path) in " ".join(process.info["cmdline"] or []):
            with suppress(psutil.Error):
                process.kill()


def questions():
    """336 questions about opening hours; the day decides the answer."""
    days = {
        **dict.fromkeys(("Montag", "Dienstag", "Mittwoch", "Donnerstag"), "von 8 bis 18 Uhr"),
        "Freitag": "von 8 bis 13 Uhr",
        "Samstag": "von 10 bis 14 Uhr",
        "Sonntag": "geschlossen",
    }
    places = (
        "die Bibliothek",
        "das Bürgeramt",
        "das Museum",
        "das Hallenbad",
        "die Bäckerei",
        "der Zoo",
    )
    forms = (
        "Wann ist {} am {} offen?",
        "Ich möchte am {1} kommen. Wann öffnet {0}?",
        "Hat {} am {} geöffnet?",
        "Öffnungszeiten am {1}: {0}?",
        "Ist {} am {} offen, und wie lange?",
        "Am {1} habe ich Zeit. Ist dann {0} offen?",
        "Guten Tag, wann kann ich {} am {} besuchen?",
        "Bis wann hat {} am {} auf?",
    )
    pairs = [(f.format(p, d), a) for f in forms for p in places for d, a in days.items()]
    random.Random(1).shuffle(pairs)
    return pairs


def from_excel_to_a_chat_and_a_file(page, place, kind):
    upload(page, place / "broken.csv")
    says(page, re.compile("is opened here and never closed"))
    shot(page, f"{kind}-0-broken")
    upload(page, place / "Anfragen.xlsx")
    says(page, "All 336 rows can be used.")
    shot(page, f"{kind}-1-data")
    press(page, "Next: Columns")
    says(page, "The model will read")
    shot(page, f"{kind}-2-columns")
    press(page, "Next: Model")
    says(page, "recommended here")
    page.get_by_role("button", name="tiny 1.3 M").click()
    shot(page, f"{kind}-3-model")
    press(page, "Next: Settings")
    page.get_by_text("Quick look").click()
    says(page, re.compile("Fits this computer: needs .* 34 training steps"))
    shot(page, f"{kind}-4-settings")
    press(page, "Next: Train")
    press(page, "Start")
    page.wait_for_selector(".lk-studio svg.lk-curve", timeout=400_000)
    shot(page, f"{kind}-5-train")
    says(page, "Did it get better?", 600)
    page.wait_for_selector(".v-alert:has-text('test rows')", timeout=400_000)
    shot(page, f"{kind}-6-result")
    press(page, "Chat with it")
    page.get_by_label("Show the untrained model beside it").check()
    question = page.get_by_label("Your question", exact=True)
    for turns in (1, 2):
        question.fill(["Wann ist der Zoo am Sonntag offen?", "Und am Samstag?"][turns - 1])
        question.press("Enter")
        page.wait_for_function(
            "n => [...document.querySelectorAll('.lk-studio button')]"
            ".filter(b => b.textContent.includes('Correct it')).length === n",
            arg=turns,
            timeout=400_000,
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


def test_the_whole_way_in_a_narrow_dark_jupyterlab(chromium, place):
    with lab(place, dark=True) as opened:
        page = new_page(chromium, 390, 844)
        opened(page, first=True)
        from_excel_to_a_chat_and_a_file(page, place, "lab-dark-390")


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
        turn(page, "Model")
        page.get_by_role("button", name="tiny 1.3 M").click()
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
