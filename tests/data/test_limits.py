"""Limits of what is read from disk: decoders, pixels, bytes; temporary copies that a killed process leaves."""

import errno
import io
import os
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from lorakit.common.errors import BadRow, LorakitError
from lorakit.data import media
from lorakit.data.example import Example, Examples
from lorakit.machine.hardware import child_environment


def png(width, height, form="PNG"):
    Image.new("RGB", (width, height)).save(out := io.BytesIO(), form)
    return out.getvalue()


@pytest.mark.parametrize("form", ["EPS", "PCX", "TGA", "ICO", "SGI", "IM", "PPM"])
def test_a_decoder_that_is_not_listed_is_never_started(form):
    with pytest.raises(BadRow, match="is no picture that can be read"):
        media.decoded(png(8, 8, form), "a.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_listed_decoders_read(form):
    assert media.decoded(png(8, 8, form), "a").size == (8, 8)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(media, "MOST_PIXELS", 99)
    with pytest.raises(BadRow, match="10 x 10 pixels, more than"):
        media.decoded(png(10, 10), "a.png")


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(6 * 2**30)  # sparse
    with pytest.raises(BadRow, match=r"a\.png: 6,144 MB, more than the 256 MB"):
        media.examined("a.png", "image", [tmp_path])


def test_a_sound_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", np.zeros((16_000, 2)), 16_000)
    monkeypatch.setattr(media, "MOST_SAMPLES", 31_999)
    with pytest.raises(BadRow, match=r"a\.flac: .* of 2 channels unpacked, more than"):
        media.examined("a.flac", "sound", [tmp_path])


@pytest.mark.parametrize("rate", [1, 99_999_989])
def test_a_rate_that_no_sound_has_is_refused_before_it_is_resampled(tmp_path, rate):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.ones(100) / 2, rate)
    with pytest.raises(BadRow, match=f"a.wav: {rate:,} samples a second"):
        media.examined("a.wav", "sound", [tmp_path])


def test_rows_out_of_an_archive_go_with_a_killed_process_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("rows.csv", "prompt,answer\na,b\n")
    code = (
        "import os, signal, sys; from lorakit.data.formats import zip; "
        "rows = zip.read(sys.argv[1]); next(rows); os.kill(os.getpid(), signal.SIGKILL)"
    )
    (tmp_path / "tmp").mkdir()
    environment = {**child_environment(), "TMPDIR": str(tmp_path / "tmp")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "rows.zip")], env=environment)
    assert list((tmp_path / "tmp").rglob("rows.csv"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
        Examples([])
    assert not list((tmp_path / "tmp").rglob("rows.csv"))


def test_the_next_start_removes_what_a_killed_process_left(tmp_path):
    code = (
        "import os, signal; from lorakit.data.example import Example, Examples; "
        "rows = Examples([Example({'a': 1}, 'f', 1)]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={**child_environment(), "TMPDIR": str(tmp_path)}
    )
    assert len(list(tmp_path.glob("lorakit-*"))) == 1
    again = "from lorakit.data.example import Examples; Examples([])"
    subprocess.run(
        [sys.executable, "-c", again],
        env={**child_environment(), "TMPDIR": str(tmp_path)},
        check=True,
    )
    assert not list(tmp_path.glob("lorakit-*"))


def test_a_full_temporary_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real = tempfile.NamedTemporaryFile

    class Full:
        def __init__(self, *a, **k):
            self.file = real(*a, **k)
            self.name, self.tell = self.file.name, self.file.tell

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", Full)
    with pytest.raises(LorakitError) as refused:
        Examples([Example({"a": 1}, "f", 1)])
    assert refused.value.where == str(tmp_path) and "TMPDIR" in refused.value.cure
