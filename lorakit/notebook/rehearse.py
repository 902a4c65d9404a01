"""A notebook or a run whole, on the user's own data, on a shrunken model: before a minute of GPU quota is spent.

Overridden are `model`, `max_updates`, `max_rows` and `output_dir`, nothing else; `early_stopping` is left out, since it
cannot act in so few updates.
"""

from __future__ import annotations

import ast
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write, remove
from lorakit.common.locations import ASSETS
from lorakit.models import base_model, locate, reading, served
from lorakit.models import spec as models
from lorakit.models.spec import Spec
from lorakit.notebook.execute import execute
from lorakit.planning import choose
from lorakit.run import Run
from lorakit.runs.folder import Folder
from lorakit.training.finetune import finetune
from lorakit.training.launch import launch

UPDATES, ROWS = 4, 64
SMALL = 20e6  # weights up to which a model of the user's own is taken as it is
SPECIAL = re.compile(
    r"<\|\w+\|>|</?think>|<(?:start|end)_of_turn>"
)  # what chat templates write around turns


def rehearse(
    what: str | os.PathLike,
    changes: Mapping[str, Any] | None = None,
    say: Callable[[str], Any] = print,
) -> Path:
    """The executed notebook, or the run's folder. `changes` are settings, or parameters of a notebook.

    Raises `LorakitError` as the notebook or the run would.
    """
    path, changes, began = Path(what), dict(changes or {}), time.perf_counter()
    run = None if path.suffix == ".ipynb" else Run.read(path, **changes)
    settings = run.model_dump() if run else {**parameters(path), **changes}
    root = (
        Path(Run(data="-", output_dir=settings.get("output_dir", "auto")).output_dir) / "rehearsal"
    )
    clear(root)
    over, notes = overridden(path, settings, root)
    say("\n".join(notes))
    try:
        made = trained(run.with_(**over)) if run else execute(path, changes | over, root)
    except LorakitError as error:
        raise LorakitError("\n".join([str(error), "In this rehearsal:", *notes])) from None
    say(
        f"rehearsed {path} in {time.perf_counter() - began:.0f} s: {made}\n"
        f"with {', '.join(f'{k}={v}' for k, v in over.items()) or 'nothing overridden'}; all else as it will be\n"
        + "\n".join(
            [*notes, f"the real thing: the same with 'lorakit {'train' if run else 'run'}'"]
        )
    )
    return made


def trained(run: Run) -> Path:
    """In this process; in several where the run asks for them."""
    return (finetune(run) if run.processes in ("auto", 1) else launch(run).watch().folder).path


def parameters(notebook: Path) -> dict[str, Any]:
    """The values in a notebook's parameters cell, as text where they are no literals."""
    try:
        import papermill

        found = papermill.inspect_notebook(str(notebook))
    except Exception:  # nbformat and papermill raise what they please on a damaged file
        execute(notebook, {})  # refuses what it cannot read, and says why
        raise
    return {name: _literal(parameter["default"]) for name, parameter in found.items()}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def overridden(
    what: Path, settings: Mapping[str, Any], root: Path
) -> tuple[dict[str, Any], list[str]]:
    """(the settings of a rehearsal, what is a stand-in there). Raises `LorakitError` for a notebook that lacks them."""
    over = {"model": "", "max_updates": UPDATES, "max_rows": ROWS, "output_dir": str(root)}
    lost = [name for name in over if name not in settings]
    if lost and "model" not in lost and trains(what):
        raise LorakitError(
            f"{what}: has no parameter '{lost[0]}'; a notebook that can be rehearsed hands "
            f"{', '.join(over)} from its parameters to Run"
        )
    over = {name: value for name, value in over.items() if name not in lost}
    if "model" in lost:
        return over, [f"{what} has no parameter 'model': what it trains, it makes itself"]
    model = str(settings["model"])
    choose.refuse_again(
        settings.get("quantization", "auto"), model, base_model.spec(model)
    )  # a stand-in is in 32 bits
    over["model"], notes = stand_in(model, root / "models")
    if settings.get("early_stopping"):
        over["early_stopping"] = None
    return over, notes


def trains(notebook: Path) -> bool:
    """Whether a notebook starts a run."""
    return re.search(r"\b(launch|finetune)\(", notebook.read_text(encoding="utf-8")) is not None


def clear(root: Path) -> None:
    """Forgets earlier rehearsals: a run that is done would not start again."""
    for record in root.glob("*/record.json"):
        if not Folder(record.parent).busy:
            remove(record.parent)


def stand_in(model: str, home: Path) -> tuple[str, list[str]]:
    """(the model to train instead, made under `home`; what is a stand-in in it).

    A folder of less than 20 M weights is taken as it is. Raises `LorakitError` for an architecture that no file in
    models/ knows how to shrink.
    """
    import torch
    from transformers import AutoConfig

    spec = base_model.spec(model)
    if Path(spec.path).is_dir() and weights(model) < SMALL:
        return model, [f"model={model}: small enough to be taken as it is"]
    config = spec.config or base_model.config(model).to_dict()
    small = spec.small or models.family(config, model).small
    if not small:
        raise LorakitError(
            f"{model}: no file in lorakit/models/families/ says how to shrink a {config['model_type']}; add one, "
            "or rehearse with another model"
        )
    tokenizer, words = tokenizer_of(model, spec)
    reader = spec.reader or models.family(config, model).reader
    config = fitted(models.shrunk(config, small), tokenizer)
    reader = reader(tokenizer, config) if reader else tokenizer
    tokenizer = getattr(reader, "tokenizer", tokenizer)
    config = AutoConfig.for_model(**config)
    if not served.reads_words(config):
        words = []
    torch.manual_seed(0)
    made = served.maker("auto", config, model).from_config(config)
    notes = [
        f"REHEARSAL: {made.num_parameters():,} random weights of its architecture stand in for {model}",
        *words,
    ]
    tokenizer.init_kwargs[reading.NOTES] = notes
    folder = home / Path(model).name
    with atomic_write(folder) as part:
        made.save_pretrained(part)
        reader.save_pretrained(part)
    return str(folder), notes


def weights(model: str) -> int:
    """How many weights a saved model has, by its configuration."""
    import torch

    config = base_model.config(model)
    try:
        with torch.device("meta"):
            return served.maker("auto", config, model).from_config(config).num_parameters()
    except ValueError as error:
        raise locate.unusable(model, error) from None


def fitted(config: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The configuration with this tokenizer's vocabulary and special tokens, and no quantization of its own."""
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    for part in (config, config.get("text_config") or {}):
        part |= {
            k: len(tokenizer) for k in ("vocab_size", "vocab_size_per_layer_input") if k in part
        }
        part |= ids if "vocab_size" in part else {}
    return {k: v for k, v in config.items() if k != "quantization_config"}


def tokenizer_of(model: str, spec: Spec) -> tuple[Any, list[str]]:
    """The model's own tokenizer where it is on this machine, else lorakit's with the model's chat template."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            base_model.path(model), local_files_only=True, trust_remote_code=False
        ), []
    except (OSError, ValueError) as error:
        if Path(spec.path).is_dir():
            raise locate.unusable(model, error) from None
    tokenizer, _ = reading.tokenizer("tiny")
    template = template_of(spec)
    if template:
        tokenizer.chat_template = template
        tokenizer.add_special_tokens(
            {"additional_special_tokens": sorted({*SPECIAL.findall(template)})}
        )
    return tokenizer, [
        f"STAND-IN TOKENIZER: that of {spec.path} is not on this machine; lorakit's own takes its place, with "
        f"{'the chat template of the model' if template else 'a chat template of its own'}. How long rows are, and "
        f"what max_length cuts, will differ. To have it here: hf download {spec.path} --include '*token*' '*.jinja'"
    ]


def template_of(spec: Spec) -> str:
    """The chat template of the model's family; "" where lorakit carries none."""
    file = ASSETS / "chat_templates" / f"{spec.template}.jinja"
    return file.read_text(encoding="utf-8") if spec.template and file.is_file() else ""
