"""A base model out of a GGUF file: where the file is, what stands in it, and the same model in transformers' form.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A `model` setting names a file
(`folder/model.gguf`) or a file of a repository at the hub (`owner/name:model.gguf`). Configuration, tokenizer and chat
template are the file's own; `folder` writes them, with dequantized weights, once into the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import mmap
import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common import files, hub
from lorakit.common.errors import LorakitError

SOURCE = "gguf.json"  # in the folder made of a file: which file it was
# Bytes of the metadata's values by the number of their type; 8 is a string, 9 an array.
NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"
}  # fmt: skip
# (weights in a block, bytes of a block) by the number of the type: ggml's `GGML_TYPE_*`.
TYPES = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 30: ("bf16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210),
}  # fmt: skip
PLAIN = ("f32", "f16", "bf16")
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in the file."""

    name: str
    shape: tuple[int, ...]  # as torch counts: (out, in)
    kind: str  # a name of `TYPES`
    offset: int  # bytes from the beginning of the file
    size: int  # bytes


@dataclass(frozen=True)
class Header:
    """A file's metadata and its tensors, without their content. Arrays stand as their lengths."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it, e.g. `llama`."""
        return str(self.metadata["general.architecture"])

    @property
    def bits_per_weight(self) -> float:
        """The mean over the matrices that are kept in blocks; 16 where there is none."""
        blocks = [t for t in self.tensors.values() if len(t.shape) == 2 and t.kind not in PLAIN]
        weights = sum(prod(t.shape) for t in blocks)
        return 8 * sum(t.size for t in blocks) / weights if weights else 16.0

    def blocks(self, tensor: Tensor) -> np.ndarray:
        """(rows, bytes of a row) uint8: the content as it lies in the file."""
        stored = np.memmap(self.path, np.uint8, "r", tensor.offset, (tensor.size,))
        return np.asarray(stored).reshape(tensor.shape[0], -1)


def names_file(model: str) -> bool:
    """Whether a `model` setting names a GGUF file, on this disk or at the hub."""
    return model.lower().endswith(".gguf")


def locate(model: str) -> Path:
    """The file on this disk; one of the hub is downloaded. Raises `LorakitError` for one that is not there."""
    repository, colon, name = model.rpartition(":")
    if Path(model).is_file():
        return Path(model).resolve()
    if not (colon and re.fullmatch(r"[\w.\-]+/[\w.\-]+", repository)):
        raise LorakitError(
            f"model={model!r}: no such file",
            setting="model",
            value=model,
            cure="name a file that is here, or owner/name:file.gguf for one at the hub",
        )
    from huggingface_hub import hf_hub_download

    hub.find_token()
    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # the hub's client raises almost anything
        raise hub.refused(model, "model", error) from None


def in_package(package: str) -> Path | None:
    """The GGUF file inside an installed Python package, which is not imported; None where there is none."""
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    return next((f for folder in folders for f in sorted(Path(folder).rglob("*.gguf"))), None)


def read(path: Path) -> Header:
    """The header of a file. Raises `LorakitError` for one that is not GGUF, is cut, or holds a type not listed here."""
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            header = _Reader(content).header(path)
            last = max((t.offset + t.size for t in header.tensors.values()), default=0)
            if last > len(content):
                raise ValueError(f"it has {len(content):,} bytes, its tensors need {last:,}")
            return header
    except (OSError, ValueError, KeyError, RecursionError, struct.error) as error:
        raise LorakitError(
            f"{path}: cannot be read as GGUF ({error})",
            setting="model",
            value=str(path),
            cure="download it again; formats that can be read: "
            + ", ".join(t[0] for t in TYPES.values()),
        ) from None


class _Reader:
    """Reads one value after another."""

    def __init__(self, content: mmap.mmap):
        self.content, self.at = content, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.number("<Q")
        self.at += length
        if self.at > len(self.content):
            raise ValueError("it ends in the middle of a text")
        return self.content[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.text()
        if kind != 9:
            return self.number(NUMBERS[kind])
        of, count = self.number("<I"), self.number("<Q")
        if of in NUMBERS:
            self.at += count * struct.calcsize(NUMBERS[of])
        else:
            for _ in range(count):
                self.value(of)
        return count

    def header(self, path: Path) -> Header:
        if self.content[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        if (version := self.number("<I")) not in (2, 3):
            raise ValueError(f"version {version} of the format; 2 and 3 are known")
        tensors, values = self.number("<Q"), self.number("<Q")
        metadata = {}
        for _ in range(values):
            key = self.text()
            metadata[key] = self.value(self.number("<I"))
        if "general.architecture" not in metadata:
            raise ValueError("it names no architecture")
        table = list(self.table(tensors))
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1:
            raise ValueError(f"general.alignment is {align!r}")
        start = -(-self.at // align) * align
        placed = {t.name: replace(t, offset=start + t.offset) for t in table}
        return Header(path, metadata, placed)

    def table(self, count: int) -> Iterator[Tensor]:
        """Offsets count from the beginning of the data."""
        for _ in range(count):
            name = self.text()
            shape = tuple(self.number("<Q") for _ in range(self.number("<I")))[::-1]
            number, offset = self.number("<I"), self.number("<Q")
            if number not in TYPES:
                raise ValueError(f"'{name}' is of ggml's type {number}")
            kind, weights, size = TYPES[number]
            yield Tensor(name, shape, kind, offset, prod(shape) // weights * size)


def folder(path: Path) -> Path:
    """The model of a file in transformers' form, made once: configuration, tokenizer, template and weights.

    Weights that lie in blocks are dequantized to fp16, which keeps 11 bits of each; others stay as they are.
    Raises `LorakitError` for an architecture that transformers cannot read from GGUF.
    """
    about = path.stat()
    key = json.dumps(["gguf", str(path), about.st_size, about.st_mtime_ns])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return files.cached(name, lambda part: _write(path, part))


def source(base: str | Path) -> Path | None:
    """The file that a folder was made of by `folder`; None for other folders."""
    note = Path(base) / SOURCE
    return Path(json.loads(note.read_text(encoding="utf-8"))["file"]) if note.is_file() else None


def _write(path: Path, part: Path) -> None:
    header = read(path)
    with (
        tempfile.TemporaryDirectory() as alone
    ):  # transformers would mix in files that lie beside it
        (Path(alone) / path.name).symlink_to(path)
        try:
            tokenizer, model = _converted(Path(alone), path.name)
        except Exception as error:  # transformers raises almost anything
            raise LorakitError(
                f"{path}: transformers cannot read a {header.architecture} from GGUF ({hub.reason(error)})",
                setting="model",
                value=str(path),
                cure="take the model's transformers folder instead",
            ) from None
    blocks = any(t.kind not in PLAIN for t in header.tensors.values())
    if blocks:
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.data = weight.data.half()
    model.config.dtype = "float16" if blocks else "float32"
    with quiet():
        model.save_pretrained(part)
    completed(tokenizer, header).save_pretrained(part)
    (part / SOURCE).write_text(json.dumps({"file": str(path)}), encoding="utf-8")


def _converted(folder: Path, name: str) -> tuple[Any, Any]:
    """(tokenizer, model in fp32) of the only file in a folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32, **_dequantized(name)
        )
    return tokenizer, model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides transformers' progress bars and warnings; a file is parsed once, not three times, its names mapped once.

    transformers maps them anew for every module of a model: 12 of the 35 seconds that SmolLM2 took.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as conversion
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    given = (
        (gguf, "GGUFReader", gguf.GGUFReader),
        (gguf, "get_tensor_name_map", gguf.get_tensor_name_map),
        (conversion, "tqdm", conversion.tqdm),
    )
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for module, name, value in given[:2]:
        setattr(module, name, cache(value))
    setattr(conversion, "tqdm", lambda items, **_: items)  # noqa: B010
    try:
        yield
    finally:
        for module, name, value in given:
            setattr(module, name, value)
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _dequantized(name: str) -> dict[str, Any]:
    """What asks transformers for plain weights; versions before `GgufConfig` know nothing else."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True, gguf_file=name)}


def completed(tokenizer: Any, header: Header) -> Any:
    """The tokenizer with what a conversion may lose: special tokens and the chat template."""
    for role, key in ROLES.items():
        number = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and getattr(tokenizer, f"{role}_token") is None:
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(number))
    template = header.metadata.get("tokenizer.chat_template")
    if template and not tokenizer.chat_template:
        tokenizer.chat_template = template
    return tokenizer
