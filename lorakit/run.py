"""`Run`: every setting of one run, typed, with its unit. What contradicts itself is refused here.

Written as YAML by `Run.write`, read by `Run.read`; `auto` stands wherever the machine can choose (`plan.py`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorakit.common.errors import LorakitError, did_you_mean

Auto = Literal["auto"]
KEPT = (
    "/content/drive/MyDrive",
    "/kaggle/working",
)  # what outlives a session of Colab (its Drive) and of Kaggle
Natural, Positive = (
    Annotated[int, Field(ge=0)],
    Annotated[int, Field(ge=1)],
)  # 0, 1, 2, …; 1, 2, 3, …
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

    # what is tuned, on what
    name: str = "run"  # the run's folder is output_dir/name
    model: str = Field(
        "tiny", min_length=1
    )  # hub id, local folder, or a name from lorakit/models/families/
    data: str = Field(min_length=1)  # file, folder or hub id
    validation_data: str | None = None  # file of its own; else taken from `data`
    validation_fraction: float = Field(0.1, ge=0, lt=1)  # share of the rows of `data`
    test_data: str | None = None
    test_fraction: float = Field(0.1, ge=0, lt=1)
    max_rows: int | None = Field(
        None, ge=1
    )  # of each file at most so many rows, drawn by seed; None: all
    format: str | dict[str, dict[str, Any]] = (
        "auto"  # a name from lorakit/data/formats/, or {name: options}
    )
    columns: dict[
        str, str
    ] = {}  # the schema's name -> the file's column, or text with columns in braces
    # column -> a value, a list of values, or a comparison such as ">= 4": other rows are left out
    keep_rows: dict[str, Any] = {}
    ignore_columns: list[str] = []  # columns that carry meaning and are left out on purpose
    # share of a row's own word 3-grams from which two rows are near duplicates; off: only equal rows are found
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | Literal["off"] = 0.8
    # auto: as the chat template writes it; keep: in <think> marks where the template leaves it out; drop: removed
    reasoning: Literal["auto", "keep", "drop"] = "auto"
    chat_template: str | None = None  # a Jinja file that replaces the model's own template
    group_by: str | None = None  # column whose equal values stay in one set (one leaf, one speaker)
    folds: int | None = Field(
        None, ge=2
    )  # k of k-fold cross-validation: every row is a test row once
    fold: int | None = Field(
        None, ge=1
    )  # one of them alone; None: each in turn, then a model of all rows
    task: str = "auto"  # a name from lorakit/tasks/
    question: str = (
        "What does this picture show?"  # asked about a picture whose row has no question of its own
    )
    language: str = "en"  # code of the one that is spoken, for models that know several
    augment: bool = (
        True  # pictures to classify are cropped, mirrored and recoloured at random in training
    )
    shuffle_answers: bool = (
        False  # a control: the training answers are permuted, so nothing can be learnt
    )

    # how
    engine: str = "auto"  # a name from lorakit/engines/
    method: Literal["lora", "full"] = "lora"
    # of the frozen base; nf4 + lora = QLoRA; fp8: two copies of 8 bits, not smaller than bf16 but faster
    quantization: Literal["auto", "nf4", "int8", "fp8", "affine4", "none"] = "auto"
    # what an export will round its weights to: GGUF's q4_0 and q8_0, MLX's 4bit; every pass computes with such weights
    fake_quantization: Literal["q4_0", "q8_0", "affine4", "none"] = "none"
    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)  # the update is scaled by alpha / rank
    dropout: float = Field(0.0, ge=0, lt=1)  # on the input of every adapter
    use_rslora: bool = False  # alpha / sqrt(rank) instead (arXiv 2312.03732)
    use_dora: bool = False  # magnitude and direction apart (arXiv 2402.09353)
    target_modules: list[str] | str = (
        "auto"  # names of linear layers, of experts' stacks, or a regular expression
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = "adamw"
    learning_rate: float = Field(2e-4, gt=0)  # at the peak, per update
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)  # share of all updates
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)  # None: no clipping
    epochs: int = Field(3, ge=1, le=10**9)  # passes over the training rows
    max_updates: int | None = Field(
        None, ge=1, le=10**9
    )  # when set, ends the run instead of `epochs`
    validate_every: Natural | Auto = "auto"  # updates; 0: never
    early_stopping: int | None = Field(
        None, ge=1
    )  # validations without a better loss before the end

    # in what pieces
    global_batch_size: int = Field(8, ge=1)  # rows per update, over all micro-batches and processes
    micro_batch_size: Positive | Auto = "auto"  # rows at a time at most
    micro_batch_tokens: Positive | Auto = "auto"  # tokens at a time at most
    max_length: int = Field(1024, ge=8)  # tokens per row; longer rows are cut
    packing: bool | Auto = "auto"  # rows end to end in one sequence, none sees another
    gradient_checkpointing: bool | Positive | Auto = (
        "auto"  # recompute activations; a number: of so many layers
    )
    offload: bool | Auto = "auto"  # keep what the backward pass needs in the host's memory
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False  # torch engine: passes between the products by torch.compile; pays on runs of many minutes

    # where, how long
    seed: int = Field(0, ge=0, lt=2**63)
    processes: Positive | Auto = "auto"
    shard: bool = False  # FSDP2
    checkpoint_every: Positive | Auto = "auto"  # updates
    max_minutes: float | None = Field(None, gt=0)  # stop with a checkpoint before this
    output_dir: str = Field(
        default_factory=home
    )  # holds the runs; auto: where this machine keeps files

    samples: int = Field(
        0, ge=0
    )  # so many validation questions are answered at every validation, to watch
    log_to: list[str] = []  # names from lorakit/training/trackers/: the curve goes there too
    # evidence
    metrics: list[str | dict[str, dict[str, Any]]] | Auto = (
        "auto"  # names from lorakit/results/metrics/
    )
    max_new_tokens: int = Field(128, ge=1)  # per generated answer

    def __init__(self, **settings: Any):
        for name in settings:
            if name not in type(self).model_fields:
                raise LorakitError(
                    f"unknown setting '{name}'{did_you_mean(name, type(self).model_fields)}"
                )
        if settings.get("output_dir") == "auto":
            del settings["output_dir"]
        settings = {
            k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in settings.items()
        }
        for part in ("validation", "test"):
            if settings.get(f"{part}_data"):  # a file of its own leaves nothing to take from `data`
                settings.setdefault(f"{part}_fraction", 0.0)
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise LorakitError(
                "; ".join(dict.fromkeys(_explain(e) for e in error.errors()))
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
        for name in ("use_rslora", "use_dora"):
            if self.method == "full" and getattr(self, name):
                clash("method", name, "it is a variant of lora")
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
        if self.use_dora and self.quantization in ("int8", "fp8"):
            clash("use_dora", "quantization", "DoRA needs nf4 or none")
        if self.shard and self.quantization == "fp8":
            clash(
                "shard",
                "quantization",
                "weights in fp8 stay whole in every process; spread nf4 or none",
            )
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

    @property
    def folder(self) -> Path:
        """`output_dir/name`, where everything of this run is kept."""
        return Path(self.output_dir) / self.name

    def with_(self, **changes: Any) -> Run:
        """A copy with some settings changed, checked like a new one."""
        return Run(**{**self.given(), **changes})

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
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
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
            raise LorakitError(f"{path}: {error}") from None

    def write(self, path: str | os.PathLike) -> None:
        """All settings as YAML."""
        text = yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")


def _explain(error: dict) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    name, value = error["loc"][0] if error["loc"] else "settings", error.get("input")
    if error["type"] == "missing":
        return f"the setting '{name}' is missing"
    return f"{name}={value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
