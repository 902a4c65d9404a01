"""`Run`: every setting of one run, typed, with its unit. What contradicts itself is refused here.

Written as YAML by `Run.write`, read by `Run.read`; `auto` stands wherever the machine can choose (`plan.py`).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorakit.common import registry, strict_yaml
from lorakit.common.errors import LorakitError, did_you_mean

Auto = Literal["auto"]
KEPT = (
    "/content/drive/MyDrive",
    "/kaggle/working",
)  # what outlives a session of Colab (its Drive) and of Kaggle
Natural = Annotated[int, Field(ge=0)]  # 0, 1, 2, …
Positive = Annotated[int, Field(ge=1)]  # 1, 2, 3, …
Weight = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
NUMBER = r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"  # 16, 0.5, 1e-4; not 010
# What shapes an adapter, and means nothing without one.
OF_ADAPTER = (
    "rank", "alpha", "dropout", "use_rslora", "use_dora", "target_modules", "adapter_init", "loraplus_ratio",
    "layers_to_transform", "train_embeddings",
)  # fmt: skip
# Settings that only engines serve which name them in `VARIANTS`.
VARIANTS = (
    "adapter_init",
    "loraplus_ratio",
    "layers_to_transform",
    "train_embeddings",
    "neftune_alpha",
)
# What may differ between a cut run and its continuation; everything else must match.
FREE_TO_CHANGE = {
    "max_updates",
    "processes",
    "max_minutes",
    "checkpoint_every",
    "output_dir",
    "name",
    "log_to",
    "samples",
}


def home() -> str:
    """Where runs are kept unless a folder is named."""
    return next((f"{folder}/outputs" for folder in KEPT if Path(folder).is_dir()), "outputs")


class Run(BaseModel):
    """The settings of one run. Raises `LorakitError` naming the setting, its value and the cure."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    # what is trained, on what
    name: str = Field("run", description="Name of the run; its folder is `output_dir/name`.")
    model: str = Field(
        "tiny",
        min_length=1,
        description="Base model: a hub id, a local folder, or a name from `lorakit/models/families/`. "
        "`tiny` (1.3 M parameters) is for trying things out.",
    )
    data: Annotated[str, Field(min_length=1)] | dict[str, Weight] | list[str] = Field(
        description="Training data: a file, a folder or a hub id; several as a list, or as {file: weight} with the "
        "share of target tokens that each gets.",
    )
    replay: dict[str, Share] = Field(
        {},
        description="{file: share}: rows of general text or talk that take this share of the target tokens, so that "
        "less is forgotten.",
    )
    validation_data: str | None = Field(
        None, description="File with validation rows; without it they are taken from `data`."
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of the rows of `data` kept for validation."
    )
    test_data: str | None = Field(
        None, description="File with test rows; without it they are taken from `data`."
    )
    test_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the rows of `data` kept for the scores before and after.",
    )
    max_rows: int | None = Field(
        None, ge=1, description="Rows read from each file at most, sampled by `seed`; null: all."
    )
    format: str | dict[str, dict[str, Any]] = Field(
        "auto",
        description="File format: a name from `lorakit/data/formats/`, or `{name: options}`.",
    )
    columns: dict[str, str] = Field(
        {},
        description="Maps the schema's names to columns of the file, or to text with column names in "
        "braces.",
    )
    group_by: str | None = Field(
        None, description="Column whose equal values stay in one set (one leaf, one speaker)."
    )
    keep_rows: dict[str, Any] = Field(
        {},
        description="Column of the file -> a value, a list of values, or a comparison such as '>= 4'; other rows are "
        "left out.",
    )
    ignore_columns: list[str] = Field(
        [], description="Columns that carry meaning and are left out on purpose."
    )
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | Literal["off"] = Field(
        0.8,
        description="Share of their own 3-grams from which two rows are near duplicates and stay in one set; off: "
        "they are not searched for.",
    )
    reasoning: Literal["auto", "keep", "drop"] = Field(
        "auto",
        description="Reasoning of answers; auto: as the chat template writes it; keep: in <think> marks where the "
        "template leaves it out; drop: removed.",
    )
    folds: int | None = Field(
        None,
        ge=2,
        description="Number k of folds in k-fold cross-validation: every row is a test row once.",
    )
    fold: int | None = Field(
        None,
        ge=1,
        description="Trains this fold alone, counted from 1; null: each in turn, then a model of all "
        "rows.",
    )
    task: str = Field(
        "auto", description="A name from `lorakit/tasks/`; auto: follows from rows and model."
    )
    question: str = Field(
        "What does this picture show?", description="Question for pictures whose rows have none."
    )
    language: str = Field(
        "en", description="Code of the spoken language, for multilingual speech models."
    )
    augment: bool = Field(
        True,
        description="Crops, mirrors and recolours pictures at random during training of a picture "
        "classifier.",
    )
    objective: str | dict[str, dict[str, float]] = Field(
        "auto",
        description="What the rows teach: a name from `lorakit/tasks/objectives/`, or {name: options}, e.g. "
        "{dpo: {beta: 0.1}}; auto: the task's own.",
    )
    shuffle_answers: bool = Field(
        False,
        description="Control experiment: permutes the training answers, so that nothing can be learned.",
    )

    # how
    engine: str = Field(
        "auto",
        description="A name from `lorakit/engines/`; auto: the fastest one that supports the model on "
        "this machine.",
    )
    method: Literal["lora", "full"] = Field(
        "lora", description="`lora` trains an adapter on a frozen base, `full` trains all weights."
    )
    quantization: str = Field(
        "auto",
        description="Storage of the frozen base: a name from `lorakit/engines/quantization/`. "
        "nf4 with lora is QLoRA; affine4 is MLX's 4-bit format; gguf keeps the blocks of a GGUF file; "
        "fp8 computes in 8 bits and needs as much memory as bf16.",
    )
    fake_quantization: Literal["q4_0", "q8_0", "affine4", "none"] = Field(
        "none",
        description="Quantization-aware training: every forward pass rounds the merged weights as an "
        "export to GGUF (q4_0, q8_0) or MLX (affine4) will.",
    )
    rank: int = Field(
        16, ge=1, description="Rank of the LoRA matrices. Higher: more capacity, more memory."
    )
    alpha: float = Field(
        32, gt=0, description="LoRA scaling: the update is multiplied by alpha / rank."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout probability on the input of every adapter."
    )
    use_rslora: bool = Field(
        False, description="Scales by alpha / sqrt(rank) instead (arXiv 2312.03732)."
    )
    use_dora: bool = Field(
        False, description="Trains magnitude and direction separately (arXiv 2402.09353)."
    )
    target_modules: list[str] | str = Field(
        "auto",
        description="Layers that get an adapter: names of linear layers or expert stacks, or a regular "
        "expression.",
    )
    adapter_init: Literal["default", "gaussian", "pissa", "olora"] = Field(
        "default",
        description="What the adapter begins with: nothing (default, gaussian), or the largest singular parts of each "
        "weight (pissa, arXiv 2404.02948) or the first of its QR factors (olora, arXiv 2406.01775), which are taken "
        "out of the frozen base.",
    )
    loraplus_ratio: float = Field(
        1.0,
        ge=1,
        description="LoRA+ (arXiv 2402.12354): B learns at so many times learning_rate; the paper takes 16.",
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="Numbers of the layers that get an adapter, from 0; null: all."
    )
    train_embeddings: bool = Field(
        False,
        description="Trains the embeddings and the head whole beside the adapter, as continued pretraining on a new "
        "language needs. Tied ones become two.",
    )
    neftune_alpha: float | None = Field(
        None,
        gt=0,
        description="NEFTune (arXiv 2310.05914): noise of this size on the embeddings in training; the paper takes 5.",
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "muon"] = (
        Field(
            "adamw",
            description="8-bit optimizers keep their state in a quarter of the memory; paged ones move it "
            "to host memory when the GPU is full. muon (arXiv 2502.16982) orthogonalizes the updates of matrices.",
        )
    )
    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate, per update.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="Learning rate after warmup."
    )
    warmup_ratio: float = Field(
        0.03,
        ge=0,
        lt=1,
        description="Share of all updates during which the learning rate rises to its peak.",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Clips the gradient to this norm; null: no clipping."
    )
    epochs: int = Field(3, ge=1, le=10**9, description="Passes over the training rows.")
    max_updates: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Number of optimizer updates; when set, replaces `epochs`.",
    )
    validate_every: Natural | Auto = Field(
        "auto", description="Updates between validations; 0: never."
    )
    early_stopping: int | None = Field(
        None,
        ge=1,
        description="Stops after this many validations without a lower loss; null: never.",
    )

    # in what pieces
    global_batch_size: int = Field(
        8, ge=1, description="Rows per update, over all micro-batches and processes."
    )
    micro_batch_size: Positive | Auto = Field(
        "auto", description="Rows in one forward pass at most."
    )
    micro_batch_tokens: Positive | Auto = Field(
        "auto", description="Tokens in one forward pass at most."
    )
    max_length: int = Field(1024, ge=8, description="Tokens per row; longer rows are cut.")
    packing: bool | Auto = Field(
        "auto",
        description="Puts rows end to end in one sequence without padding; no row attends to another.",
    )
    gradient_checkpointing: bool | Positive | Auto = Field(
        "auto",
        description="Recomputes activations in the backward pass to save memory; a number: in this many "
        "layers.",
    )
    offload: bool | Auto = Field(
        "auto", description="Keeps activations for the backward pass in host memory."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Floating-point format of computations."
    )
    compile: bool = Field(
        False,
        description="Compiles norms, gates and rotary embeddings with torch.compile (torch engine); "
        "pays on runs of many minutes.",
    )

    # where, how long
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of splits, order, dropout and initial adapter weights."
    )
    processes: Positive | Auto = Field(
        "auto", description="Training processes on this machine, one per GPU."
    )
    shard: bool = Field(False, description="Shards the base's weights over the processes (FSDP2).")
    checkpoint_every: Positive | Auto = Field("auto", description="Updates between checkpoints.")
    max_minutes: float | None = Field(
        None, gt=0, description="Stops with a checkpoint before this many minutes have passed."
    )
    output_dir: str = Field(
        default_factory=home,
        description="Folder that holds the runs; auto: Google Drive on Colab, /kaggle/working on "
        "Kaggle, else `outputs`.",
    )
    samples: int = Field(
        0,
        ge=0,
        description="Validation questions answered at every validation, to watch the model learn.",
    )
    log_to: list[str] = Field(
        [],
        description="Trackers that also receive the curve: names from `lorakit/training/trackers/`.",
    )

    # evidence
    metrics: list[str | dict[str, dict[str, Any]]] | Auto = Field(
        "auto", description="Metrics of the test rows: names from `lorakit/results/metrics/`."
    )
    max_new_tokens: int = Field(128, ge=1, description="Tokens per generated answer at most.")

    def __init__(self, **settings: Any):
        for name in settings:
            if name not in type(self).model_fields:
                raise LorakitError(
                    f"unknown setting '{name}'{did_you_mean(name, type(self).model_fields)}"
                )
        if settings.get("output_dir") == "auto":
            del settings["output_dir"]
        for name in ("log_to", "metrics"):
            if isinstance(settings.get(name), str) and settings[name] != "auto":
                settings[name] = [settings[name]]
        for name in _numeric_fields() & settings.keys():
            _refuse_odd_number(name, settings[name])
        settings = {
            k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in settings.items()
        }
        for part in ("validation", "test"):
            if settings.get(f"{part}_data"):  # a file of its own leaves nothing to take from `data`
                settings.setdefault(f"{part}_fraction", 0.0)
        try:
            super().__init__(**settings)
        except ValidationError as error:
            faults = error.errors()
            place = faults[0]["loc"][:1] if len(faults) == 1 else ()
            raise LorakitError(
                "; ".join(dict.fromkeys(map(_explain, faults))),
                setting=str(place[0]) if place else None,
                value=faults[0].get("input") if place else None,
            ) from None

    @model_validator(mode="after")
    def _no_contradictions(self) -> Run:
        def clash(a: str, b: str, why: str):
            raise ValueError(
                f"{a}={getattr(self, a)!r} and {b}={getattr(self, b)!r} contradict: {why}"
            )

        if not re.fullmatch(r"[\w][\w.\- ]*", self.name):
            raise ValueError(
                f"name={self.name!r} names a folder: letters, digits, '-', '_' and '.' only"
            )
        for name, value in self:
            if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
                raise ValueError(
                    f"{name}={value!r} holds NUL or a byte that is not UTF-8; use another name"
                )
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise ValueError(
                    f"target_modules={self.target_modules!r} is no regular expression: {error}"
                ) from None
        if self.method == "full" and self.quantization not in ("auto", "none"):
            clash(
                "method",
                "quantization",
                "quantized weights cannot be trained; use lora or quantization=none",
            )
        if self.fake_quantization != "none":
            if self.method == "full":
                clash(
                    "fake_quantization",
                    "method",
                    "what is rounded is a frozen weight with its adapter; use lora",
                )
            if self.quantization not in ("auto", "none"):
                clash(
                    "fake_quantization",
                    "quantization",
                    "what an export rounds is the unquantized weight",
                )
            for name in ("use_dora", "dropout"):
                if getattr(self, name):
                    clash(
                        "fake_quantization",
                        name,
                        "the weight and its update have no plain sum to round",
                    )
        self._variants(clash)
        for name in OF_ADAPTER:
            default = type(self).model_fields[name].default
            if self.method == "full" and getattr(self, name) != default:
                clash("method", name, "there is no adapter that it could shape")
        if not self.data or (isinstance(self.data, list) and len({*self.data}) < len(self.data)):
            raise ValueError(f"data={self.data!r} names no file, or one twice")
        if sum(self.replay.values()) >= 1:
            clash("replay", "data", "replay leaves data no share of the target tokens")
        for part in ("validation", "test"):
            if getattr(self, f"{part}_data") and getattr(self, f"{part}_fraction"):
                clash(f"{part}_data", f"{part}_fraction", "name a file or a share, not both")
        if self.validation_fraction + self.test_fraction >= 1:
            clash("validation_fraction", "test_fraction", "nothing is left to train on")
        if self.early_stopping and self.validate_every == 0:
            clash("early_stopping", "validate_every", "stopping early needs validation")
        if self.early_stopping and not self.validation_data and self.validation_fraction == 0:
            clash("early_stopping", "validation_fraction", "stopping early needs validation rows")
        if self.fold and self.fold > (self.folds or 0):
            clash("fold", "folds", "it is one of them, counted from 1")
        if self.folds and self.test_data:
            clash("folds", "test_data", "the folds are the test rows")
        if self.folds and self.processes not in ("auto", 1):
            clash("folds", "processes", "the folds are trained in one process, one after the other")
        if self.quantization != "auto":
            form = registry.load("quantization", self.quantization)
            for name, (values, reason) in form.CONFLICTS.items():
                if getattr(self, name) in values:
                    clash(name, "quantization", reason)
        if (
            isinstance(self.micro_batch_size, int)
            and self.micro_batch_size > self.global_batch_size
        ):
            clash(
                "micro_batch_size",
                "global_batch_size",
                "a micro-batch is a part of the global batch",
            )
        if isinstance(self.micro_batch_tokens, int) and self.micro_batch_tokens < self.max_length:
            clash(
                "micro_batch_tokens", "max_length", "one row of full length must fit a micro-batch"
            )
        return self

    def _variants(self, clash: Callable[[str, str, str], None]) -> None:
        """Refuses variants of LoRA that cannot go together."""
        if self.adapter_init in ("pissa", "olora"):
            why = "the adapter begins with a part of the unquantized weights, which it is taken out of"
            if self.quantization not in ("auto", "none"):
                clash("adapter_init", "quantization", why)
            if self.fake_quantization != "none":
                clash("adapter_init", "fake_quantization", why)
            if self.use_dora:
                clash(
                    "adapter_init", "use_dora", "DoRA's magnitudes are those of the whole weights"
                )
            if self.shard:
                clash("adapter_init", "shard", "no process holds a whole weight")
        if self.train_embeddings and self.fake_quantization != "none":
            clash("train_embeddings", "fake_quantization", "trained embeddings are not rounded")
        if self.optimizer == "muon":
            for name in ("use_dora", "shard"):
                if getattr(self, name):
                    clash("optimizer", name, "Muon updates whole matrices alone")
            if self.method == "full":
                clash("optimizer", "method", "Muon updates matrices alone, not norms and biases")
        if self.layers_to_transform == []:
            raise ValueError("layers_to_transform=[] leaves no layer to train; null: all")

    @property
    def folder(self) -> Path:
        """`output_dir/name`, where everything of this run is kept."""
        return Path(self.output_dir) / self.name

    def with_(self, **changes: Any) -> Run:
        """A copy with some settings changed, checked like a new one.

        A change to `method="full"` drops what shaped the adapter.
        """
        given = self.given()
        if changes.get("method") == "full":
            given = {name: value for name, value in given.items() if name not in OF_ADAPTER}
        return Run(**{**given, **changes})

    def given(self) -> dict[str, Any]:
        """The settings that were set, by name."""
        return self.model_dump(include=self.model_fields_set)

    def differences(self, other: Run) -> dict[str, tuple[Any, Any]]:
        """Settings that forbid continuing `other`: name -> (this value, the other's)."""
        mine, theirs = self.model_dump(), other.model_dump()
        return {
            k: (mine[k], theirs[k])
            for k in mine
            if k not in FREE_TO_CHANGE and mine[k] != theirs[k]
        }

    @classmethod
    def read(cls, path: str | os.PathLike, **changes: Any) -> Run:
        """Settings from a YAML file. Raises `LorakitError` naming file and setting."""
        path = Path(path)
        try:
            settings = strict_yaml.load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LorakitError(
                f"{path}: no such file; write the settings of a run there (see README)"
            ) from None
        except (
            Exception
        ) as error:  # of the disk, of UTF-8, and of YAML, whose values raise almost anything
            raise LorakitError(f"{path}: cannot be read as YAML: {error}") from None
        if not isinstance(settings, dict):
            raise LorakitError(
                f"{path}: expected 'setting: value' lines, found {type(settings).__name__}"
            )
        try:
            return cls(**{**{str(k): v for k, v in settings.items()}, **changes})
        except LorakitError as error:
            raise LorakitError(
                error.message,
                setting=error.setting,
                value=error.value,
                where=path,
                cure=error.cure,
            ) from None

    def write(self, path: str | os.PathLike) -> None:
        """All settings as YAML."""
        text = strict_yaml.dump(self.model_dump())
        Path(path).write_text(text, encoding="utf-8")


@cache
def _numeric_fields() -> frozenset[str]:
    """Settings that take a number and no truth value."""

    def types(annotation: Any) -> set[Any]:
        parts = get_args(annotation)
        return {annotation}.union(*map(types, parts)) if parts else {annotation}

    kinds = {name: types(field.annotation) for name, field in Run.model_fields.items()}
    return frozenset(n for n, k in kinds.items() if k & {int, float} and bool not in k)


def _refuse_odd_number(name: str, value: Any) -> None:
    """Refuses what pydantic would take for a number: `true` as 1, and "010", " 10" or "1_0" as 10."""
    odd = isinstance(value, bool)
    if isinstance(value, str) and not re.fullmatch(NUMBER, value):
        with contextlib.suppress(ValueError):
            odd = math.isfinite(float(value))
    if odd:
        raise LorakitError(
            f"{name}={value!r}: expected a number",
            setting=name,
            value=value,
            cure=f"write it in decimal digits, for example {name}: 10",
        )


def _explain(error: Mapping[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    name, value = error["loc"][0] if error["loc"] else "settings", error.get("input")
    if error["type"] == "missing":
        return f"the setting '{name}' is missing"
    return f"{name}={value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def resolved(value: int | Auto) -> int:
    """A number of a run whose `auto` has been replaced. Raises `LorakitError` where it has not."""
    if isinstance(value, str):
        raise LorakitError(
            "this setting is still open", value=value, cure="resolve the run with setup"
        )
    return value
