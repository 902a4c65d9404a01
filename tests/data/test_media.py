"""Pictures and sounds as people have them: turned, grey, transparent, cut, empty, at any rate; handled or named."""

import base64
import io
import wave

import numpy as np
import pytest
import soundfile
from PIL import Image

from lorakit.common.errors import BadRow, LorakitError
from lorakit.data import loading, media, sources, splitting
from lorakit.data.example import Example, Rejected
from lorakit.data.matching import match
from lorakit.data.meanings import Choices
from lorakit.data.quality import classes
from lorakit.data.schemas import image_messages
from lorakit.tasks.classify_image import augmented


def blurred(rng, cells=6, size=96):
    """A picture of smooth patches."""
    rough = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
    return rough.resize((size, size), Image.Resampling.BICUBIC)


def saved(image, path, **options):
    image.save(path, **options)
    return {"path": str(path), "name": path.name}


def halves(size=(16, 8), mode="RGB"):
    """Left red, right blue."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2, 0] = pixels[:, size[0] // 2 :, 2] = 255
    return Image.fromarray(pixels).convert(mode)


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    turned = media.picture(saved(halves((32, 16)), tmp_path / "t.jpg", exif=exif, quality=95))
    assert turned.size == (16, 32)
    red, blue = turned.getpixel((8, 4)), turned.getpixel((8, 28))
    assert red[0] > 200 and red[2] < 50 and blue[2] > 200 and blue[0] < 50


def test_grey_transparent_indexed_and_cmyk_become_rgb(tmp_path):
    glass = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    glass.putpixel((0, 0), (255, 0, 0, 255))
    seen = media.picture(saved(glass, tmp_path / "a.png"))
    assert (
        seen.mode == "RGB"
        and seen.getpixel((0, 0)) == (255, 0, 0)
        and seen.getpixel((3, 3)) == (255, 255, 255)
    )
    assert media.picture(saved(Image.new("L", (4, 4), 77), tmp_path / "g.png")).getpixel(
        (1, 1)
    ) == (77, 77, 77)
    deep = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert media.picture(saved(deep, tmp_path / "d.png")).getpixel((1, 1)) == (127, 127, 127)
    assert media.picture(saved(halves(mode="P"), tmp_path / "p.gif")).getpixel((1, 1)) == (
        255,
        0,
        0,
    )
    cyan = media.picture(
        saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path / "c.jpg", quality=100)
    )
    assert cyan.getpixel((4, 4))[0] < 30 and cyan.getpixel((4, 4))[1] > 200


def test_what_is_wrong_with_a_picture_is_named(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "words.png").write_text("no picture")
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    rough.save(out := io.BytesIO(), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(out.getvalue()[: len(out.getvalue()) // 2])
    for name, words in {
        "empty.jpg": "0 bytes",
        "words.png": "no picture",
        "cut.jpg": "cut or damaged",
        "gone.jpg": "no such file",
    }.items():
        with pytest.raises(BadRow, match=words) as said:
            media.examined(name, "image", [tmp_path])
        assert name in str(said.value)
    with pytest.raises(BadRow, match="expected a path, found None"):
        media.examined(None, "image", [])


def test_a_picture_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    medium = saved(halves((64, 64)), tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadRow, match="larger than a picture may be"):
        media.picture(medium)


def test_a_small_picture_is_kept_pixel_by_pixel_and_a_large_one_made_smaller():
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(media.unpacked(media.packed(rough, 30))), np.asarray(rough))
    assert media.unpacked(media.packed(rough, 15)).size == (15, 10) and rough.size == (30, 20)


def test_another_size_or_compression_of_a_picture_is_alike_and_another_picture_is_not():
    rng = np.random.default_rng(0)
    smooth = [blurred(rng) for _ in range(3)]
    smooth[0].save(out := io.BytesIO(), "JPEG", quality=40)
    again = [smooth[0], smooth[1], Image.open(out), smooth[2], smooth[1].resize((64, 64))]
    looks = [media._look(image) for image in again]
    assert media.alike([*looks, None]) == [(0, 2), (1, 4)]


def tone(rate, seconds=0.5, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(
        np.float32
    )


@pytest.mark.parametrize(
    "ending, rate", [("wav", 8000), ("flac", 44100), ("wav", 16000), ("mp3", 22050), ("ogg", 48000)]
)
def test_any_rate_becomes_sixteen_thousand_samples_a_second(tmp_path, ending, rate):
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, np.stack([tone(rate), tone(rate)], axis=1), rate)  # two channels
    heard = media.sound(media.examined(str(path), "sound", []))
    assert heard.dtype == np.float32 and abs(len(heard) - 8000) < 1500  # mp3 pads
    spectrum = np.abs(np.fft.rfft(heard[1000:5000]))
    assert abs(np.argmax(spectrum) * 16000 / 4000 - 440) < 8
    assert np.abs(media.unpacked_sound(media.packed_sound(heard)) - heard).max() < 1e-4


def test_what_is_wrong_with_a_sound_is_named(tmp_path):
    (tmp_path / "words.wav").write_text("no sound")
    with wave.open(str(tmp_path / "none.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
    soundfile.write(tmp_path / "silence.wav", np.zeros(100, np.float32), 8000)
    wrong = {
        "words.wav": "no sound that can be read",
        "none.wav": "0 samples",
        "silence.wav": "silence",
    }
    for name, words in wrong.items():
        with pytest.raises(BadRow, match=words) as said:
            media.examined(name, "sound", [tmp_path])
        assert name in str(said.value)


def test_augmentation_follows_its_seed_and_keeps_the_size():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    one, same, other = (
        np.asarray(augmented(image, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert one.shape == (40, 60, 3) and np.array_equal(one, same) and not np.array_equal(one, other)
    assert not np.array_equal(one, np.asarray(image))


# Folders and tables of them


def leaves(folder, classes=("rust", "spot"), each=4):
    rng = np.random.default_rng(0)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
                folder / label / f"{label}_{i}_a.png"
            )
    return folder


def test_a_folder_per_class(tmp_path):
    folder = leaves(tmp_path / "leaves")
    (folder / "README.md").write_text("about")
    (folder / "SOURCE.txt").write_text("from where")
    (folder / "spot" / "spot_1_a.png").write_bytes(b"")
    examples, report = loading.load(str(folder))
    assert report.schema == "image_label" and report.rows == 8 and len(examples) == 7
    assert [e.fields["label"] for e in examples] == ["rust"] * 4 + ["spot"] * 3
    assert examples[0].fields["media"][0]["path"] == str(folder / "rust" / "rust_0_a.png")
    assert [(r.where, r.reason) for r in report.rejected] == [
        ("leaves/spot/spot_1_a.png:1", "spot_1_a.png: is empty (0 bytes)")
    ]


def test_columns_from_the_names_of_files(tmp_path):
    folder = leaves(tmp_path / "leaves")
    (folder / "rust" / "strange.png").write_bytes((folder / "rust" / "rust_0_a.png").read_bytes())
    it = sources.source(
        str(folder), {"folder": {"options": {"images": {"names": "{kind}_{leaf}_{shot}"}}}}
    )
    examples, report = loading.load(it)
    assert [e.fields["columns"]["leaf"] for e in examples][:3] == ["0", "1", "2"]
    assert report.rejected[0].reason == "the name is none of the form '{kind}_{leaf}_{shot}'"
    with pytest.raises(LorakitError, match="finds no column"):
        loading.load(
            sources.source(str(folder), {"folder": {"options": {"images": {"names": "leaf"}}}})
        )


def test_a_table_beside_its_pictures_speaks_for_them(tmp_path):
    folder = leaves(tmp_path / "leaves")
    (folder / "all.csv").write_text(
        "image,caption\nrust/rust_0_a.png,Brown pustules.\nspot/gone.png,Grey spots.\n"
    )
    examples, report = loading.load(str(folder))
    assert report.schema == "image_text" and [e.fields["text"] for e in examples] == [
        "Brown pustules."
    ]
    assert (
        report.rejected[0].where == "leaves/all.csv:3"
        and "gone.png: no such file" in report.rejected[0].reason
    )
    alone, _ = loading.load(str(folder / "all.csv"))
    assert alone[0].fields["media"][0]["name"] == "rust_0_a.png"


def test_pictures_inside_a_parquet_file(tmp_path):
    import datasets

    folder = leaves(tmp_path / "leaves")
    paths = sorted(map(str, folder.rglob("*.png")))
    rows = {"image": paths, "label": [p.split("/")[-2] for p in paths]}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["rust", "spot"])}
    )
    table = datasets.Dataset.from_dict(rows, features)
    table.to_parquet(tmp_path / "rows.parquet")
    examples, report = loading.load(str(tmp_path / "rows.parquet"))
    assert (
        report.schema == "image_label"
        and [e.fields["label"] for e in examples] == ["rust"] * 4 + ["spot"] * 4
    )
    assert np.array_equal(
        np.asarray(media.picture(examples[2].fields["media"][0])), np.asarray(Image.open(paths[2]))
    )


def test_recordings_with_their_words_in_the_name_or_beside(tmp_path):
    folder = tmp_path / "spoken"
    folder.mkdir()
    for name in ("7_ann_0", "3_ben_1"):
        soundfile.write(folder / f"{name}.wav", tone(8000), 8000)
    settings = {"folder": {"options": {"sounds": {"names": "{digit}_{speaker}_{take}"}}}}
    examples, report = loading.load(
        sources.source(str(folder), settings), columns={"text": "{digit}"}
    )
    assert report.schema == "sound_text" and [e.fields["text"] for e in examples] == ["3", "7"]
    for name, words in {"7_ann_0": "seven", "3_ben_1": "three"}.items():
        (folder / f"{name}.txt").write_text(words + "\n")
    examples, _ = loading.load(str(folder))
    assert [e.fields["text"] for e in examples] == ["three", "seven"]


def test_equal_pictures_are_dropped_and_like_ones_stay_together(tmp_path):
    folder, rng = leaves(tmp_path / "leaves", each=0), np.random.default_rng(1)
    for i in range(24):
        leaf = blurred(rng, 5, 64)
        leaf.save(folder / ("rust", "spot")[i % 2] / f"{i}.png")
        leaf.resize((48, 48)).save(folder / ("rust", "spot")[i % 2] / f"{i}_small.jpg", quality=70)
    (folder / "rust" / "0_again.png").write_bytes((folder / "rust" / "0.png").read_bytes())
    examples, report = loading.load(str(folder))
    sets = splitting.split(examples, report=report, validation_fraction=0.2, test_fraction=0.2)
    assert [r.reason for r in report.rejected] == [
        "repeats leaves/rust/0.png:1"
    ] and report.near_duplicates == 24
    homes = {}
    for name, rows in sets.items():
        for row in rows:
            homes.setdefault(row.file.split("/")[-1].split("_")[0].split(".")[0], set()).add(name)
    assert (
        all(len(found) == 1 for found in homes.values())
        and len(homes) == 24
        and len(sets["test"]) >= 6
    )
    assert any(line.startswith("no group_by") for line in report.notes)


def test_conversations_about_pictures():
    row = {
        "images": ["a.png", "b.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "Rust."},
            {"role": "user", "content": "<image>And this?"},
            {"role": "assistant", "content": "Spot."},
        ],
    }
    found = image_messages.convert(row)
    assert found["media"] == ["a.png", "b.png"] and [
        t.get("images", 0) for t in found["turns"]
    ] == [1, 0, 1, 0]
    assert [t["content"] for t in found["turns"]] == ["What?", "Rust.", "And this?", "Spot."]
    with pytest.raises(BadRow, match="1 pictures, and 2 parts of type image"):
        image_messages.convert(row | {"images": ["a.png"]})


def test_parts_that_hold_their_own_pictures():
    """As OpenAI's fine-tuning files and those of Qwen-VL and Unsloth do."""
    data = "data:image/png;base64," + base64.b64encode(b"png").decode()
    asked = [
        {"type": "text", "text": "Which?"},
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "image", "image": "file://b.png"},
    ]
    row = {
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": "The second."}]},
        ]
    }
    assert image_messages.fits([Example(row, "f", 1)])
    found = image_messages.convert(row)
    assert found["media"] == [{"bytes": b"png", "path": None}, "b.png"]
    assert [(t["content"], t.get("images", 0)) for t in found["turns"]] == [
        ("Which?", 2),
        ("The second.", 0),
    ]
    asked[1]["image_url"]["url"] = "https://example.org/a.png"
    with pytest.raises(BadRow, match="lies on another machine; download it"):
        image_messages.convert(row)
    asked[1]["image_url"]["url"] = "data:image/png;base64,%%%"
    with pytest.raises(BadRow, match="base64 is cut or damaged"):
        image_messages.convert(row)
    asked[1]["image_url"]["url"] = "data:image/png;base64,ÄÖ"
    with pytest.raises(BadRow, match="base64 is cut or damaged"):
        image_messages.convert(row)


def test_names_of_files_tell_sounds_from_pictures():
    def schema(**row):
        return match([Example(row, "f", i) for i in range(3)], None, Choices()).schema

    assert schema(file_name="a.wav", text="seven") == "sound_text"
    assert schema(path="clips/a.mp3", sentence="seven") == "sound_text"
    assert schema(file_name="a.png", text="a leaf") == "image_text"
    assert schema(path="src/a.py", text="def f(): ...") == "text"


def test_pictures_of_different_classes_contradict_only_where_they_are_equal():
    check = classes.Check(None, 0)
    for i, (sha, label) in enumerate([("a", "rust"), ("b", "spot"), ("c", "rust"), ("a", "spot")]):
        fields = {"media": [{"sha256": sha}], "question": "", "text": label, "label": label}
        check.see(Example(fields, f"{i}.png", 1), "train")
    assert check.contrary == ["3.png:1: 'spot', 0.png:1: 'rust'"]


def test_folds_hold_every_row_once_and_whole_groups():
    rows = [
        Example(
            {"text": f"w{i} x{i} y{i}", "label": "ab"[i % 2], "columns": {"leaf": i // 3}},
            "f",
            i + 1,
        )
        for i in range(60)
    ]
    tests = []
    for fold in (1, 2, 3, 4, None):
        sets = splitting.split(rows, group_by="leaf", folds=4, fold=fold, validation_fraction=0.1)
        tests.append({row.row for row in sets["test"]})
        leaf = {
            name: {row.fields["columns"]["leaf"] for row in some} for name, some in sets.items()
        }
        assert not leaf["test"] & leaf["train"] and not leaf["validation"] & leaf["train"]
        assert sum(map(len, sets.values())) == 60
    assert (
        tests[-1] == set() and set.union(*tests) == set(range(1, 61)) and sum(map(len, tests)) == 60
    )
    assert max(map(len, tests[:4])) - min(map(len, tests[:4])) <= 3
    with pytest.raises(LorakitError, match="cannot be parted into folds=30"):
        splitting.split(rows, group_by="leaf", folds=30, fold=1)


def test_a_file_that_is_no_picture_is_a_row_left_out(tmp_path):
    folder = leaves(tmp_path / "leaves")
    (folder / "rust" / "rust_9_a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    found = list(loading.read(sources.source(str(folder))).rows)
    assert [type(row) for row in found].count(Rejected) == 1
