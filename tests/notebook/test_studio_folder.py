"""What the studio keeps for itself is no run's: deleting a run, also one called `studio`, deletes no upload."""

import pytest

from lorakit.common.errors import LorakitError
from lorakit.notebook.studio.controller import OWN, Desk
from lorakit.run import Run

ROWS = b"prompt,completion\n" + b"a,b\n" * 3


def desk(folder):
    return Desk(Run(name="studio", data="data/triage.jsonl", output_dir=str(folder)))


def upload(at, name="mine.csv"):
    incoming = at.incoming(name, len(ROWS))
    incoming.add(ROWS)
    at.keep(incoming)


@pytest.mark.parametrize("name", ["studio", "mine", "uploads"])
def test_deleting_a_run_deletes_no_upload(tmp_path, name):
    at = desk(tmp_path)
    upload(at)
    (tmp_path / name).mkdir()
    (tmp_path / name / "asked.json").write_text("{}")
    assert at.names() == [name]
    at.delete(name)
    assert not (tmp_path / name).exists()
    assert at.run.data == str(tmp_path / OWN / "uploads/mine.csv")
    assert (tmp_path / OWN / "uploads/mine.csv").read_bytes() == ROWS
    assert (tmp_path / OWN / "settings.yaml").is_file()


def test_no_run_can_have_its_name():
    with pytest.raises(LorakitError, match="names a folder"):
        Run(name=OWN, data="-")


def test_uploads_of_before_move_with_the_settings_that_name_them(tmp_path):
    former = tmp_path / "studio"
    (former / "uploads").mkdir(parents=True)
    (former / "uploads/mine.csv").write_bytes(ROWS)
    (former / "asked.json").write_text("{}")
    run = Run(name="mine", data=str(former / "uploads/mine.csv"), output_dir=str(tmp_path))
    run.write(former / "settings.yaml")
    at = desk(tmp_path)
    at.delete("studio")
    assert at.run.data == str(tmp_path / OWN / "uploads/mine.csv")
    assert (tmp_path / OWN / "uploads/mine.csv").read_bytes() == ROWS


def test_example_data_are_known_as_such(tmp_path):
    at = desk(tmp_path)
    assert at.example
    upload(at)
    assert not at.example
    at.use("data/triage.jsonl")
    assert at.example
