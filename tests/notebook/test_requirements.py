"""What the first cell installs: what is missing, beside all that the image holds; and when it asks for a restart."""

import hashlib
import json
import warnings

import pytest

from lorakit.common.errors import LorakitError
from lorakit.machine.packages import Unmet, version_of_lorakit
from lorakit.notebook import requirements

IMAGE = {"torch": "2.10.0+cu128", "triton": "3.6.0", "datasets": "3.1", "gradio": "5.0"}


@pytest.fixture
def image(monkeypatch, tmp_path):
    """An image whose pip can be told what to do; returns the calls as (arguments, packages that are kept)."""
    calls, here, answers = [], dict(IMAGE), []
    lacking = [Unmet("datasets>=4.0", "3.1"), Unmet("sacrebleu>=2.5", None)]

    def pip(bundle, arguments, kept):
        calls.append(([*filter(None, [bundle]), *arguments], set(kept)))
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


def bundle(folder, version, **wheels):
    """A bundle of wheels by name and content."""
    (folder / "wheels").mkdir(parents=True)
    files = {}
    for name, content in wheels.items():
        (folder / "wheels" / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files[f"wheels/{name}"] = {"bytes": len(content), "sha256": digest}
    about = {name: [] for name in ("python", "platform", "extras", "needs", "lends")}
    (folder / "bundle.json").write_text(json.dumps({"lorakit": version, **about, "files": files}))
    return folder


def test_a_bundle_near_the_notebook_is_the_only_source(image, tmp_path, capsys):
    bundle(tmp_path / "an older one", "0.0.0", a=b"1")
    mine = bundle(tmp_path / "mine", version_of_lorakit(), a=b"1")
    requirements.install_missing()
    assert image[1][0][0] == mine
    assert f"from the bundle {mine}" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["added", "changed", "missing"])
def test_a_bundle_with_other_wheels_than_its_manifest_lists_is_refused(image, tmp_path, how):
    mine = bundle(tmp_path / "mine", version_of_lorakit(), a=b"1")
    if how == "added":
        (mine / "wheels/b").write_bytes(b"2")
    elif how == "changed":
        (mine / "wheels/a").write_bytes(b"2")
    else:
        (mine / "wheels/a").unlink()
    with pytest.raises(LorakitError, match="wheels of this bundle are not as packed") as found:
        requirements.install_missing()
    assert found.value.where == str(mine) and len(image) == 1


def test_the_bundle_that_lorakit_came_from_goes_before_those_that_are_near(
    image, tmp_path, monkeypatch
):
    bundle(tmp_path / "near", version_of_lorakit(), a=b"1")
    mine = bundle(tmp_path.parent / "attached", version_of_lorakit(), a=b"1")
    monkeypatch.setenv("LORAKIT_BUNDLE", str(mine))
    requirements.install_missing()
    assert image[1][0][0] == mine


def test_a_package_replaced_under_the_session_asks_for_a_restart(image, monkeypatch):
    monkeypatch.setattr(requirements, "replaced", lambda: [("pyarrow", "18.1.0", "25.0.0")])
    with pytest.raises(LorakitError) as error:
        requirements.install_missing()
    assert "has imported pyarrow 18.1.0, and 25.0.0 is installed" in error.value.message
    assert error.value.value == ["pyarrow"] and "restart the session" in error.value.cure


def test_the_first_cell_silences_known_messages_in_the_kernel(image, capsys):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        requirements.install_missing()
        warnings.warn(
            "`gradient_checkpointing_enable` is deprecated and", FutureWarning, stacklevel=1
        )
        warnings.warn("another", FutureWarning, stacklevel=1)
    assert [str(w.message) for w in shown] == ["another"]
