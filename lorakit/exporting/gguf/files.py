"""A whole model as one GGUF file, and an adapter as one that goes onto it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.engines.mlx import adapters
from lorakit.exporting.gguf.families import family_of
from lorakit.exporting.gguf.metadata import frequencies, settings
from lorakit.exporting.gguf.quantization import packed, stored_as
from lorakit.exporting.gguf.tensors import interleave, rotated, tensors
from lorakit.exporting.gguf.vocabulary import vocabulary
from lorakit.exporting.source import Source
from lorakit.models import base_model
from lorakit.models.gguf import source as tuned_file
from lorakit.models.merge import untie

MODEL, ADAPTER = "model.gguf", "adapter.gguf"


def write(model: Any, source: Source, path: Path, type_: str) -> list[str]:
    """A whole model with its tokenizer; returns notes. Raises `LorakitError` for what llama.cpp has not."""
    import gguf

    config = model.config.get_text_config()
    family = family_of(config)
    architecture = gguf.MODEL_ARCH[family.architecture]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(source.folder.path.resolve().name)
    file_type = "ALL_F32" if type_ == "f32" else f"MOSTLY_{type_.upper()}"
    writer.add_file_type(gguf.LlamaFileType[file_type])
    settings(writer, config)
    vocabulary(writer, source, config.vocab_size)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    layers, tied = config.num_hidden_layers, config.tie_word_embeddings
    narrow = []
    for name, tensor in tensors(model, config, family):
        stem, _, suffix = name.rpartition(".")
        known = names.get_name(stem)
        if known is None:
            raise LorakitError(
                f"'{name}' has no name in llama.cpp's {family.architecture}, so this model cannot be "
                "written as GGUF",
                cure="export it --to merged",
            )
        stored = stored_as(f"{known}.{suffix}", tensor, type_, layers, tied)
        if type_.startswith("q") and tensor.ndim > 1 and tensor.shape[-1] % 32:
            narrow.append(name)
        writer.add_tensor(f"{known}.{suffix}", packed(tensor, stored), raw_dtype=stored)
    for name, tensor in frequencies(config):
        writer.add_tensor(f"{name}.weight", tensor)
    _finish(writer)
    if not narrow:
        return []
    return [
        f"{len(narrow)} matrices stay in f16, since 32 does not divide their rows: {narrow[0]}, …"
    ]


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _base(model: Any, source: Source, path: Path) -> list[str]:
    """The file that an adapter goes onto."""
    file = base_file(source)
    if file is None:
        return write(model, source, path, "f32")
    try:
        os.link(file, path)
    except OSError:  # on another disk
        shutil.copyfile(file, path)
    return [f"{path.name} is {file.name}, the very file that was tuned"]


def base_file(source: Source) -> Path | None:
    """The GGUF file that was tuned; None for other bases."""
    return tuned_file(base_model.path(source.run.model))


def write_adapter(source: Source, folder: Path) -> list[str]:
    """`adapter.gguf` for `llama-server --lora`, and the base it belongs to beside it: the GGUF file that was tuned, or
    what was tuned in f32.

    Raises `LorakitError` for a run without an adapter, and for one whose variant llama.cpp has not.
    """
    import gguf

    source.require_adapter("take another --type")
    peft_settings, layers = adapters.read_peft(source.saved)
    model = source.model("fp32")
    untie(model, source.saved)  # llama.cpp adapts the head alone where the file has one
    config = model.config.get_text_config()
    family = family_of(config)
    architecture = gguf.MODEL_ARCH[family.architecture]
    notes = _base(model, source, folder / MODEL)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(folder / ADAPTER, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(
        gguf.Keys.Adapter.LORA_ALPHA, adapters.scale(peft_settings) * peft_settings["r"]
    )
    for layer, pair in layers.items():
        down, up = pair["A"].astype(np.float32), pair["B"].astype(np.float32)
        if family.interleaved and (heads := rotated(f"{layer}.weight", config)):
            up = interleave(up, heads)
        for letter, tensor in (("a", down), ("b", up)):
            name = f"{names.get_name(layer)}.weight.lora_{letter}"
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    _finish(writer)
    return [*notes, f"{MODEL} is the base, {ADAPTER} goes onto it"]
