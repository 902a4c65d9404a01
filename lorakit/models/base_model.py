"""The base model of a run: what is known of it, where its files are, its configuration, tokenizer and hash.

`of(name)` gives one `BaseModel` object for as long as the model's files stay as they are, and each of its parts
is computed once. The functions below it are what the object computes, for callers that need one part.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from lorakit.common import hub
from lorakit.common.errors import LorakitError
from lorakit.common.files import cache, file_hash, state
from lorakit.models import gguf
from lorakit.models import spec as models
from lorakit.models.locate import find_path, find_spec, unusable
from lorakit.models.reading import read_reader, with_template
from lorakit.models.safety import refuse_sizes
from lorakit.models.served import maker
from lorakit.models.spec import Spec

UNLIMITED = 10**7  # positions; a tokenizer without a limit of its own names a larger number
WEIGHTS = ("*.safetensors", "*.bin")  # the first pattern that finds something
MADE_OF = "made_of.json"  # in a folder that `parent.py` or `derived.py` makes: what it was made of


class BaseModel:
    """A base model by the name that a user types. Each part is loaded when it is first asked for, once.

    Every part may raise `LorakitError`: for a name that is neither a folder nor a hub id, for files that are damaged or
    cannot be downloaded, for a tokenizer that cannot be trained with.
    """

    def __init__(self, name: str, template: str | None = None):
        self.name, self.template = name, template
        self._skeletons: dict[str, Any] = {}

    @cached_property
    def spec(self) -> Spec:
        """What is known of the model or of its family."""
        return find_spec(self.name)

    @cached_property
    def path(self) -> str:
        """Folder or hub id to load from."""
        return find_path(self.name, self.spec)

    @cached_property
    def config(self) -> Any:
        """transformers' configuration, from the model's own files."""
        if self.path != self.name and Path(self.path).is_dir():  # a name for a folder
            return of(self.path).config
        return _config(self.name, self.path)

    @cached_property
    def sizes(self) -> Any:
        """The configuration that decides sizes: of a model known by name without asking the hub."""
        from transformers import AutoConfig

        known = self.spec.config
        return AutoConfig.for_model(**known) if known else self.config

    @cached_property
    def sizes_key(self) -> str:
        """What `sizes` is made of: of a model known by name without importing transformers, which takes seconds."""
        known = self.spec.config
        return json.dumps(known, sort_keys=True) if known else self.config.to_json_string()

    @property
    def tokenizer(self) -> Any:
        """The fast tokenizer, ready for training; None for a classifier of pictures."""
        return self._reader[0]

    @property
    def processor(self) -> Any:
        """What makes model inputs of pictures or sound; None for a model of text."""
        return self._reader[1]

    @property
    def notes(self) -> list[str]:
        """What had to be added to the tokenizer."""
        return self._reader[2]

    @cached_property
    def _reader(self) -> tuple[Any, Any, list[str]]:
        return self.read(self.config)

    def read(self, config: Any) -> tuple[Any, Any, list[str]]:
        """What reads for a configuration, with the user's own chat template where there is one."""
        found = read_reader(self.name, self.path, config)
        if self.template:
            with_template(found, self.template, self.name)
        return found

    @cached_property
    def reader_hash(self) -> str:
        """SHA-256 of what makes token ids and model inputs: tokenizer, chat template, processor."""
        parts = [self.config.model_type, str(self.processor and self.processor.to_dict())]
        if tokenizer := self.tokenizer:
            parts += [
                tokenizer.backend_tokenizer.to_str(),
                tokenizer.chat_template,
                str(tokenizer.special_tokens_map),
            ]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    @property
    def positions(self) -> int | None:
        """Tokens that a row may have at most; None where nothing limits them."""
        text = self.config.get_text_config(decoder=True)
        limits = [
            getattr(text, "max_target_positions", None),
            getattr(text, "max_position_embeddings", None),
            getattr(self.tokenizer, "model_max_length", None),  # 1e30 where it is not known
        ]
        return min((n for n in limits if n and n < UNLIMITED), default=None)

    def fitting(self, run: Any) -> int:
        """`max_length` of a run; where the user has left it open, no more than the model has positions."""
        limit = None if "max_length" in run.model_fields_set else self.positions
        return min(run.max_length, limit) if limit else run.max_length

    @property
    def hash(self) -> str:
        """SHA-256 over the weights' own SHA-256, or the hub id where the files are not at hand."""
        return hash_of(self.name)

    def skeleton(self, task: str) -> Any:
        """The model that serves a task, on the meta device: shapes without weights. Do not change it."""
        if task not in self._skeletons:
            import torch

            try:
                with torch.device("meta"):
                    made = maker(task, self.sizes, self.name).from_config(self.sizes)
            except ValueError as error:
                raise LorakitError(f"{self.name}: {str(error).splitlines()[0]}") from None
            self._skeletons[task] = made
        return self._skeletons[task]


def of(name: str, template: str | None = None) -> BaseModel:
    """The `BaseModel` of this name; a new one when files of its folder have changed, or another hub is asked.

    `template`: a file with a chat template in place of the model's own.
    """
    there = template is not None and Path(template).is_file()
    return _opened(
        name, template, (*_files_of(name), str(state(Path(str(template)))) if there else "")
    )


@lru_cache(maxsize=16)
def _opened(name: str, template: str | None, files: tuple[str, ...]) -> BaseModel:
    return BaseModel(name, template)


def _files_of(name: str) -> tuple[str, ...]:
    """What the parts of a model were read from: the state of each file in its folder, or the hub's address."""
    found = models.known().get(name)
    folder = Path(found.path if found else name)
    if folder.is_dir():
        inside = [*folder.iterdir(), *folder.glob("adapter/*")]
        return tuple(str(state(file)) for file in sorted(inside) if file.is_file())
    if folder.is_file():
        return (str(state(folder)),)
    hub_of = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN")
    return tuple(os.environ.get(variable, "") for variable in hub_of)


def spec(model: str) -> Spec:
    """What is known of a name or a hub id in models/, or of a folder's family; else a general `Spec`."""
    return of(model).spec


def path(model: str) -> str:
    """Folder or hub id to load from. Raises `LorakitError` for what can be neither."""
    return of(model).path


def config(model: str) -> Any:
    """transformers' configuration of a base, a copy. Raises `LorakitError` when it cannot be had or makes no sense."""
    return copy.deepcopy(of(model).config)


def _config(model: str, where: str) -> Any:
    from transformers import AutoConfig

    refuse_sizes(model, Path(where))
    try:
        return AutoConfig.from_pretrained(
            where, trust_remote_code=False, local_files_only=hub.kept_only(where)
        )
    except Exception as error:  # transformers checks little: damaged files raise almost anything
        raise unusable(model, error) from None


def labelled(config: Any, classes: Sequence[str]) -> Any:
    """The configuration with these classes, where there are some."""
    if classes:
        config.id2label, config.label2id = (
            dict(enumerate(classes)),
            {name: i for i, name in enumerate(classes)},
        )
    return config


def sizes(model: str) -> Any:
    """The configuration that decides a model's sizes, a copy: of one known by name without asking the hub."""
    return copy.deepcopy(of(model).sizes)


def reader(
    model: str, given: Any = None, template: str | None = None
) -> tuple[Any, Any, list[str]]:
    """(tokenizer or None, processor or None, notes): what makes of words, pictures and sounds what a base reads.

    A classifier of pictures has no tokenizer, a model of words no processor. `given`: its configuration, where it is
    not the one in the model's files. `template`: see `of`.
    """
    own = of(model, template)
    if given is None or type(given) is type(own.config):
        return own.tokenizer, own.processor, list(own.notes)
    return own.read(given)


def hash_of(model: str) -> str:
    """SHA-256 of the weights, or the hub id where the files are not at hand."""
    folder = Path(path(model))
    if file := gguf.source(folder):
        return file_hash(file)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(
                snapshot_download(
                    str(folder), local_files_only=True, allow_patterns=["*.safetensors"]
                )
            )
        except OSError:
            return model
    return weights_of(folder) or model


def weights_of(folder: Path) -> str | None:
    """SHA-256 over the SHA-256 of each file of weights; None where there is none.

    Of a base made in the cache, whose last bits depend on the machine that made it, what it was made of counts;
    elsewhere anybody could have written such a note.
    """
    files = next((f for pattern in WEIGHTS if (f := sorted(folder.glob(pattern)))), [])
    if not files:
        return None
    found = hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
    if (folder / MADE_OF).is_file() and folder.resolve().is_relative_to(cache().resolve()):
        made = json.loads((folder / MADE_OF).read_text(encoding="utf-8"))
        if made["weights"] == found:
            return hashlib.sha256(json.dumps(made["origin"]).encode()).hexdigest()
    return found


def note_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Writes what a folder was made of beside the hash of its weights."""
    content = {"origin": origin, "weights": weights_of(folder)}
    (folder / MADE_OF).write_text(json.dumps(content), encoding="utf-8")


def made_of(folder: str | Path) -> dict[str, Any]:
    """What `note_origin` wrote; nothing for other folders."""
    note = Path(folder) / MADE_OF
    try:
        origin = json.loads(note.read_text(encoding="utf-8"))["origin"] if note.is_file() else {}
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
    ):  # of another tool, or damaged
        return {}
    return origin if isinstance(origin, dict) else {}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file. In the hub's own cache, and nowhere else, a large file is a link to a blob named by it."""
    from huggingface_hub import constants

    blob = path.resolve()
    trusted = blob.is_relative_to(Path(constants.HF_HUB_CACHE).resolve())
    if trusted and blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    return file_hash(path)
