"""A table names pictures of its own folder; any other file stays unread unless `media_folder` says so."""

import json

import pytest
from PIL import Image

from lorakit.common.errors import LorakitError
from lorakit.data import loading
from lorakit.data.sources import of_run
from lorakit.notebook.studio.controller import Desk
from lorakit.run import Run

OUTSIDE = "lies outside of the data's own folder"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """data/table.csv with a picture beside it, a private picture elsewhere, links to it."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data/pictures", "private"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (16, 16), "red").save(tmp_path / folder / "a.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "private" / "a.png")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "private")
    return tmp_path


def load(place, *paths, **options):
    (place / "data" / "table.csv").write_text(
        "image,label\n" + "".join(f"{p},{'ab'[i % 2]}\n" for i, p in enumerate(paths))
    )
    return loading.load(of_run(str(place / "data" / "table.csv"), **options)["train"])


@pytest.mark.parametrize(
    "path", ["pictures/a.png", "./pictures/../pictures/a.png", "data/pictures/a.png"]
)
def test_its_own_pictures_are_read(place, path):
    (row,), report = load(place, path)
    assert row.fields["media"][0]["name"] == "a.png" and not report.rejected


def test_an_absolute_path_inside_is_read(place):
    assert len(load(place, place / "data/pictures/a.png")[0]) == 1


@pytest.mark.parametrize(
    "path",
    [
        "{place}/private/a.png", "../private/a.png", "link.png", "linked/a.png", "/etc/passwd",
        "/no/such/file.png", "../data2/a.png", "/proc/self/environ",
    ],
)  # fmt: skip
def test_other_files_are_not_and_nothing_tells_whether_they_exist(place, path):
    examples, report = load(place, path.format(place=place), "pictures/a.png")
    assert len(examples) == 1
    (row,) = report.rejected
    assert OUTSIDE in row.reason and "media_folder" in row.reason


def test_the_folder_that_the_user_names(place):
    examples, _ = load(
        place, place / "private/a.png", "a.png", "link.png", media_folder=str(place / "private")
    )
    assert len(examples) == 3
    examples, report = load(
        place, "pictures/a.png", "a.png", "/etc/passwd", media_folder=str(place / "private")
    )
    assert len(examples) == 2 and OUTSIDE in report.rejected[0].reason


def test_links_of_the_hub_s_cache_lead_to_its_blobs(place):
    cache = place / "hub" / "datasets--owner--name"
    (cache / "snapshots" / "1").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (place / "data/pictures/a.png").rename(cache / "blobs" / "abc")
    (cache / "snapshots/1/a.png").symlink_to("../../blobs/abc")
    (cache / "snapshots/1/table.csv").write_text(f"image,label\na.png,a\n{place}/private/a.png,b\n")
    examples, report = loading.load(of_run(str(cache / "snapshots/1/table.csv"))["train"])
    assert len(examples) == 1 and OUTSIDE in report.rejected[0].reason


def test_a_row_of_jsonl_with_a_list_of_pictures(place):
    turn = {
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}]
    }
    rows = [turn | {"images": [p]} for p in ("pictures/a.png", str(place / "private/a.png"))]
    (place / "data/rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    examples, report = loading.load(of_run(str(place / "data/rows.jsonl"))["train"])
    assert len(examples) == 1 and OUTSIDE in report.rejected[0].reason


def test_the_studio_takes_no_media_folder_out_of_its_own(place, tmp_path_factory):
    desk = Desk(Run(name="a", data=str(place / "data"), output_dir="outputs"))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(LorakitError, match="outside of the project's folders"):
        desk.change(media_folder=str(elsewhere))
    assert desk.change(media_folder=str(place / "private")).media_folder == str(place / "private")
