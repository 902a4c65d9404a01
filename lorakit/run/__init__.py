"""`Run`: every setting of one run, typed, with its unit. What contradicts itself is refused here.

Written as YAML by `Run.write`, read by `Run.read`; `auto` stands wherever the machine can choose (`plan.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorakit.common import strict_yaml
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.run import contradictions, values, variants
from lorakit.run.contradictions import OF_ADAPTER

Auto = Literal["auto"]
Number = TypeVar("Number", int, float)
Natural = Annotated[int, Field(ge=0)]  # 0, 1, 2, …
Positive = Annotated[int, Field(ge=1)]  # 1, 2, 3, …
# What may differ between a cut run and its continuation; everything else must match.
FREE_TO_CHANGE = {
    "max_updates",
    "processes",
    "max_minutes",
    "checkpoint_every",
    "output_dir",
    "media_folder",
    "name",
    "log_to",
    "samples",
    "general_questions",
}


class Run(BaseModel):
    """The settings of one run. Raises `LorakitError` naming the setting, its value and the cure."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    # model, data and task
    name: str = Field("run", description="Name of the run; its folder is `output_dir/name`.")
    model: str = Field(
        "tiny",
        min_length=1,
        description="Base model: a hub id, a local folder, or a name from `lorakit/models/families/`. "
        "`tiny` (1.3 M parameters) is for trying things out.",
    )
    pickled_weights: bool = Field(
        False,
        description="Takes a base whose weights are pickle files (.bin), which can hold code; "
        "otherwise only safetensors are loaded.",
    )
    data: variants.Data
    replay: variants.Replay = {}
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
    media_folder: str | None = Field(
        None,
        description="A second folder of pictures and sounds that a table may name; without it, only those in its "
        "own folder are read.",
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
    chat_template: str | None = Field(
        None,
        description="A file with the chat template to train, ask and export with (Jinja), in place of the model's own.",
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
    join_documents: variants.Joined = False
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

    # method and optimizer
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
    adapter_init: variants.Init = "default"
    loraplus_ratio: variants.Ratio = 1.0
    layers_to_transform: variants.Layers = None
    train_embeddings: variants.Embeddings = False
    added_tokens: variants.Tokens = []
    rope_scaling: variants.Rope = None
    neftune_alpha: variants.Noise = None
    optimizer: variants.Optimizer = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] | Auto = Field(
        2e-4,
        description="Peak learning rate, per update; auto: found by a range test of 40 updates on the training rows.",
    )
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

    # batches and memory
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

    # place and time
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
        default_factory=values.home,
        description="Folder that holds the runs; auto: Google Drive on Colab, /kaggle/working on "
        "Kaggle, else `outputs`.",
    )
    samples: int = Field(
        0,
        ge=0,
        description="Validation questions answered at every validation, to watch the model learn.",
    )
    general_questions: variants.Questions = "auto"
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
        for name in values.numeric(type(self)) & settings.keys():
            values.refuse_odd_number(name, settings[name])
        settings = {
            k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in settings.items()
        }
        for part in ("validation", "test"):
            if settings.get(f"{part}_data"):  # a file of its own leaves nothing to take from `data`
                settings.setdefault(f"{part}_fraction", 0.0)
        try:
            super().__init__(**settings)
        except ValidationError as error:
            faults = values.without_alternatives(error.errors())
            place = faults[0]["loc"][:1] if len(faults) == 1 else ()
            raise LorakitError(
                "; ".join(dict.fromkeys(map(values.explain, faults))),
                setting=str(place[0]) if place else None,
                value=faults[0].get("input") if place else None,
            ) from None

    @model_validator(mode="after")
    def _no_contradictions(self) -> Run:
        contradictions.refuse(self)
        return self

    @property
    def folder(self) -> Path:
        """`output_dir/name`, where everything of this run is kept."""
        return Path(self.output_dir) / self.name

    @property
    def trains_embeddings(self) -> bool:
        """Whether embeddings and head are trained beside an adapter: as asked for, or for the tokens added."""
        return self.method == "lora" and (self.train_embeddings or bool(self.added_tokens))

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
        settings = values.load(Path(path))
        try:
            return cls(**{**settings, **changes})
        except LorakitError as error:
            raise LorakitError(
                error.message,
                setting=error.setting,
                value=error.value,
                where=Path(path),
                cure=error.cure,
            ) from None

    def write(self, path: str | os.PathLike) -> None:
        """All settings as YAML."""
        text = strict_yaml.dump(self.model_dump())
        Path(path).write_text(text, encoding="utf-8")


def resolved(value: Number | Auto) -> Number:
    """A number of a run whose `auto` has been replaced. Raises `LorakitError` where it has not."""
    if isinstance(value, str):
        raise LorakitError(
            "this setting is still open", value=value, cure="resolve the run with setup"
        )
    return value
