"""What the first cell installs: what is missing, beside all that the image holds; and when it asks for a restart."""

import pytest

from lorakit.common.errors import LorakitError
from lorakit.machine.packages import Unmet
from lorakit.notebook import requirements

IMAGE = {"torch": "2.10.0+cu128", "triton": "3.6.0", "datasets": "3.1", "gradio": "5.0"}


@pytest.fixture
def image(monkeypatch, tmp_path):
    """An image whose pip can be told what to do; returns the calls as (arguments, packages that are kept)."""
    calls, here, answers = [], dict(IMAGE), []
    lacking = [Unmet("datasets>=4.0", "3.1"), Unmet("sacrebleu>=2.5", None)]

    def pip(arguments, kept):
        calls.append((list(arguments), set(kept)))
        message = answers.pop(0) if answers else ""
        if not message:
            here.update({"datasets": "4.0", "sacrebleu": "2.6", "lxml": "6.0"})
            lacking.clear()
        return message

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requirements, "_pip", pip)
    monkeypatch.setattr(requirements, "_versions", lambda: dict(here))
    monkeypatch.setattr(requirements, "unmet", lambda wanted: list(lacking))
    monkeypatch.setattr(requirements, "replaced", list)
    calls.append(answers)
    return calls


def test_only_what_is_missing_is_installed_and_what_changed_is_said(image, capsys):
    requirements.install_missing()
    assert image[1:] == [
        (["datasets>=4.0", "sacrebleu>=2.5"], {"torch", "triton", "gradio"}),
    ]
    said = capsys.readouterr().out
    assert said.startswith("installing datasets, sacrebleu (up to a minute) …\ninstalled in ")
    assert said.endswith("s: lxml, sacrebleu; replaced: datasets 3.1 → 4.0\n")
    requirements.install_missing()
    assert len(image) == 2 and capsys.readouterr().out == ""


def test_when_nothing_fits_beside_the_image_torch_alone_is_kept(image):
    image[0].append("ERROR: conflict")
    requirements.install_missing()
    assert [kept for _, kept in image[1:]] == [{"torch", "triton", "gradio"}, {"torch", "triton"}]


def test_pip_that_fails_is_told_with_the_cure(image):
    image[0].extend(["ERROR: conflict", "ERROR: no network"])
    with pytest.raises(LorakitError) as error:
        requirements.install_missing()
    assert "ERROR: no network" in error.value.message
    assert error.value.value == ["datasets>=4.0", "sacrebleu>=2.5"]
    assert "turn the internet on" in error.value.cure
    assert error.value._render_traceback_() == [f"LorakitError: {error.value}"]


def test_a_bundle_near_the_notebook_is_the_only_source(image, tmp_path):
    (tmp_path / "mine/wheels").mkdir(parents=True)
    (tmp_path / "mine/bundle.json").write_text("{}")
    requirements.install_missing()
    assert image[1][0][:2] == ["--no-index", f"--find-links={tmp_path / 'mine/wheels'}"]


def test_a_package_replaced_under_the_session_asks_for_a_restart(image, monkeypatch):
    monkeypatch.setattr(requirements, "replaced", lambda: [("pyarrow", "18.1.0", "25.0.0")])
    with pytest.raises(LorakitError) as error:
        requirements.install_missing()
    assert "has imported pyarrow 18.1.0, and 25.0.0 is installed" in error.value.message
    assert error.value.value == ["pyarrow"] and "restart the session" in error.value.cure
