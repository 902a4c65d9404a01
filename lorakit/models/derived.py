"""The base with what a run adds to it before training: tokens of its own, and longer rotary positions.

It is made once, in the cache, of the base's files; engines, exports and a run that is opened again load it as any base.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lorakit.common import files, hub
from lorakit.common.errors import LorakitError
from lorakit.models import base_model, gguf, identity, served
from lorakit.models.base_model import BaseModel
from lorakit.run import Run

REWRITTEN = ("config.json", "tokenizer_config.json", base_model.MADE_OF, gguf.SOURCE)


def base_of(run: Run) -> BaseModel:
    """The base of a run with its added tokens and its RoPE scaling."""
    return base_model.of(derived(run).model, run.chat_template)


def derived(run: Run) -> Run:
    """The run with `model` naming the derived base; the same run where it changes nothing, or names it already.

    Raises `LorakitError` for a token that the base has, and for a base that cannot be changed so.
    """
    changes = {"added_tokens": run.added_tokens, "rope_scaling": run.rope_scaling}
    base = base_model.of(run.model)
    if not any(changes.values()) or changes.items() <= base_model.made_of(base.path).items():
        return run
    folder = identity.local_folder(run.model) or _downloaded(base)
    found = identity.base(run.model)
    origin = {"base": [found.weights, found.config], **changes}
    key = hashlib.sha256(json.dumps([origin, base.reader_hash]).encode()).hexdigest()[:32]

    def write(part: Path) -> None:
        if run.added_tokens:
            _extend(run, base, part)
        else:
            files.link_files(folder, part, REWRITTEN)
        _configure(run, base, folder, part)
        base_model.note_origin(part, origin)

    return run.with_(model=str(files.cached(key, write)))


def _downloaded(base: BaseModel) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base.path, local_files_only=hub.kept_only(base.path)))
    except Exception as error:  # of the network or the hub
        raise hub.refused(base.name, "model", error) from None


def _refused(run: Run, name: str, why: str, cure: str) -> LorakitError:
    value = getattr(run, name)
    return LorakitError(f"{name}={value!r}: {why}", setting=name, value=value, cure=cure)


def _extend(run: Run, base: BaseModel, part: Path) -> None:
    """The model with a row for each new token: the mean of those of the pieces that wrote it before."""
    import torch
    from transformers import AddedToken, AutoTokenizer

    from lorakit.models.merge import quietly, unquantized_model

    if not served.serves(base.config, "tokens", ""):
        why = f"{run.model} is not a model that reads and writes text alone"
        raise _refused(run, "added_tokens", why, "leave it out, or take a language model")
    tokenizer = AutoTokenizer.from_pretrained(
        base.path, trust_remote_code=False, local_files_only=hub.kept_only(base.path)
    )
    known = tokenizer.get_vocab()
    pieces = [tokenizer.encode(t, add_special_tokens=False) for t in run.added_tokens]
    for token, ids in zip(run.added_tokens, pieces, strict=True):
        if token in known or (len(ids) == 1 and ids[0] != tokenizer.unk_token_id):
            why = f"{run.model} has the token {token!r} already"
            raise _refused(run, "added_tokens", why, "leave it out of the list")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in run.added_tokens])
    model = unquantized_model(run.model, task="auto")
    with quietly(), torch.no_grad():
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            for token, ids in zip(run.added_tokens, pieces, strict=True):
                row = tokenizer.convert_tokens_to_ids(token)
                table.weight[row] = table.weight[ids].float().mean(0)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def _configure(run: Run, base: BaseModel, folder: Path, part: Path) -> None:
    """The configuration with scaled rotary frequencies, and as many more positions."""
    for name in ("config.json", "tokenizer_config.json"):
        if not (part / name).exists() and (folder / name).exists():
            (part / name).write_bytes((folder / name).read_bytes())
    if run.rope_scaling is None:
        return
    text = base.config.get_text_config(decoder=True)
    rope, cure = getattr(text, "rope_parameters", None) or {}, "leave rope_scaling out"
    if not rope or any(isinstance(value, dict) for value in rope.values()):
        why = "without RoPE" if not rope else "whose layers have RoPEs of several kinds"
        raise _refused(run, "rope_scaling", f"{run.model} is a {text.model_type}, {why}", cure)
    if (kind := rope.get("rope_type", "default")) != "default":
        raise _refused(run, "rope_scaling", f"{run.model} has {kind} scaling already", cure)
    first = text.max_position_embeddings
    given = run.rope_scaling if isinstance(run.rope_scaling, dict) else {"linear": run.rope_scaling}
    ((kind, factor),) = given.items()
    scaling: dict[str, Any] = {**rope, "rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = first
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    place = config.get("text_config", config)
    place.pop("rope_scaling", None)
    place |= {"rope_parameters": scaling, "max_position_embeddings": int(first * factor)}
    (part / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    reader = part / "tokenizer_config.json"
    if reader.exists():
        content = json.loads(reader.read_text(encoding="utf-8"))
        if "model_max_length" in content:
            longest = max(content["model_max_length"], int(first * factor))
            reader.write_text(
                json.dumps(content | {"model_max_length": longest}, indent=2), encoding="utf-8"
            )
