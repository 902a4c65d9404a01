"""Pictures and sounds of a row: found, decoded and checked. What is wrong with one is a `BadRow` that names it."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import BadRow
from lorakit.machine.packages import require

RATE = 16_000  # samples a second, what speech models are trained on
# Decoders of picture files that are opened. Pillow knows more, among them ones that start other programs (EPS).
PICTURES = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MOST_PIXELS = 120_000_000  # of one picture: 360 MB as RGB
RATES = (1_000, 1_000_000)  # samples a second that are read
MOST_SAMPLES = 500_000_000  # of one sound over all channels: 2 GB, three hours at 48 kHz
MOST_BYTES = {"image": 256 * 2**20, "sound": 2**30}  # of one file
ALIKE = 6  # of the 64 bits of a perceptual hash: so few differ in another shot, size or compression of a picture

PACKAGES = {"image": ("pillow", "imagehash"), "sound": ("soundfile",)}  # of the extras


def examined(
    value: Any, kind: str, places: Sequence[Path], roots: Sequence[Path] | None = None
) -> dict[str, Any]:
    """{path or bytes, name, sha256, look} of a picture (`kind` image) or a sound that can be decoded.

    `value` is a path, absolute or from one of `places`, or what `datasets` stores: {"bytes": …, "path": …}. `look` is
    a picture's perceptual hash, 64 bits, None for a sound. Files outside of `roots` are left unread, and nothing is
    said of whether they exist; None: the user has named the file.
    """
    require(*PACKAGES[kind], purpose=f"reading {kind} files")
    medium = _found(value, kind, places, roots)
    raw = content(medium, MOST_BYTES[kind])
    look = None
    if kind == "image":
        look = _look(decoded(raw, medium["name"], small=True))
    else:
        sound(medium)
    return {**medium, "sha256": hashlib.sha256(raw).hexdigest(), "look": look}


def _found(
    value: Any, kind: str, places: Sequence[Path], roots: Sequence[Path] | None
) -> dict[str, Any]:
    if isinstance(value, dict) and value.get("bytes"):
        return {"bytes": value["bytes"], "name": Path(value.get("path") or f"the {kind}").name}
    value = value.get("path") if isinstance(value, dict) else value
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"no {kind}: expected a path, found {value!r}")
    outside = True
    for place in (Path(), *places):
        try:
            path = (place / value).absolute()
            if roots is not None and not any(path.resolve().is_relative_to(r) for r in roots):
                continue
            outside = False
            if path.is_file():
                return {"path": str(path), "name": Path(value).name}
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # too long a name, a NUL in it, links in a circle
            outside = False
            break
    if outside:
        raise BadRow(
            f"{value[:80]}: lies outside of the data's own folder ({', '.join(map(str, roots or ()))})",
            setting="media_folder",
            cure="put it there, or name the folder of such files in media_folder",
        )
    raise BadRow(f"{value[:80]}: no such file (looked in {', '.join(map(str, places)) or '.'})")


def content(medium: dict[str, Any], most: int) -> bytes:
    """The bytes of a picture or sound, at most `most` of them."""
    try:
        size = len(medium["bytes"]) if "bytes" in medium else Path(medium["path"]).stat().st_size
        if size > most:
            raise BadRow(
                f"{medium['name']}: {size / 2**20:,.0f} MB, more than the {most / 2**20:,.0f} MB that one file "
                "may have; make it smaller or cut it"
            )
        raw = medium["bytes"] if "bytes" in medium else Path(medium["path"]).read_bytes()
    except OSError as error:
        raise BadRow(f"{medium['name']}: cannot be read ({error.strerror or error})") from None
    if not raw:
        raise BadRow(f"{medium['name']}: is empty (0 bytes)")
    return raw


def picture(medium: dict[str, Any]) -> Any:
    """The picture in RGB, upright."""
    return decoded(content(medium, MOST_BYTES["image"]), medium["name"])


def decoded(raw: bytes, name: str, small: bool = False) -> Any:
    """A PIL image in RGB, turned as its EXIF says, on white where it is transparent; of an animation the first frame.

    With `small` a JPEG is decoded at an eighth, which finds what is cut or damaged as well.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(raw), formats=PICTURES) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise BadRow(
                    f"{name}: {width:,} x {height:,} pixels, more than the {MOST_PIXELS / 1e6:.0f} million that one "
                    "picture may have; make it smaller"
                )
            if small and image.format == "JPEG":
                image.draft("RGB", (64, 64))
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadRow(f"{name}: is no picture that can be read ({', '.join(PICTURES)})") from None
    except Image.DecompressionBombError as error:
        raise BadRow(f"{name}: is larger than a picture may be ({error})") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise BadRow(f"{name}: is cut or damaged ({error})") from None


def _rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits of grey
        grey = np.asarray(image, dtype=np.float64)
        top = 255 if grey.max() < 256 else 65535 if grey.max() < 65536 else grey.max()
        image = Image.fromarray((grey.clip(0) * (255 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _look(image: Any) -> int:
    import imagehash

    return int(str(imagehash.phash(image)), 16)


def alike(looks: Sequence[int | None]) -> list[tuple[int, int]]:
    """Pairs of pictures whose perceptual hashes differ in at most `ALIKE` bits."""
    bits = np.array([bin(i).count("1") for i in range(256)], dtype=np.uint8)
    known = [i for i, look in enumerate(looks) if look is not None]
    hashes = np.array([looks[i] for i in known], dtype=np.uint64).view(np.uint8).reshape(-1, 8)
    pairs = []
    for i in range(1, len(known)):
        differing = bits[hashes[:i] ^ hashes[i]].sum(axis=1)
        pairs += [(known[j], known[i]) for j in np.flatnonzero(differing <= ALIKE)]
    return pairs


def packed(image: Any, most: int) -> bytes:
    """PNG, its longer side at most `most` pixels: what a row keeps."""
    from PIL import Image

    if max(image.size) > most:
        image = image.copy()
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    image.save(out := io.BytesIO(), "PNG", compress_level=1)
    return out.getvalue()


def unpacked(raw: bytes) -> Any:
    """The inverse of `packed`."""
    from PIL import Image

    return Image.open(io.BytesIO(raw)).convert("RGB")


def sound(medium: dict[str, Any]) -> np.ndarray:
    """(samples,) float32 between -1 and 1, one channel at `RATE`."""
    import soundfile
    from scipy.signal import resample_poly

    name = medium["name"]
    try:
        with soundfile.SoundFile(io.BytesIO(content(medium, MOST_BYTES["sound"]))) as file:
            rate = file.samplerate
            if (
                not RATES[0] <= rate <= RATES[1]
            ):  # a filter between odd rates is as long as they are high
                raise BadRow(
                    f"{name}: {rate:,} samples a second; expected {RATES[0]:,} to {RATES[1]:,}"
                )
            if file.frames * max(file.channels, RATE / rate) > MOST_SAMPLES:
                raise BadRow(
                    f"{name}: {file.frames / rate / 60:,.0f} minutes of {file.channels} channels unpacked, more than "
                    "one sound may have; cut it"
                )
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise BadRow(
            f"{name}: is no sound that can be read, or cut ({str(error).rstrip('.')})"
        ) from None
    samples = samples.mean(axis=1)
    if not len(samples):
        raise BadRow(f"{name}: holds no sound (0 samples)")
    if not np.isfinite(samples).all():
        raise BadRow(f"{name}: holds samples that are not finite")
    if not samples.any():
        raise BadRow(f"{name}: holds nothing but silence")
    common = math.gcd(RATE, rate)
    return (
        resample_poly(samples, RATE // common, rate // common).astype(np.float32)
        if rate != RATE
        else samples
    )


def packed_sound(samples: np.ndarray) -> bytes:
    """16 bits a sample: what a row keeps."""
    return (samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes()


def unpacked_sound(raw: bytes) -> np.ndarray:
    """The inverse of `packed_sound`."""
    return np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32767
