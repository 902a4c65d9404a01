"""Settings of mixtures and of variants of LoRA: their types, and what cannot go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

if TYPE_CHECKING:
    from lorakit.run import Run

# Settings that only engines serve which name them in `VARIANTS`.
VARIANTS = (
    "adapter_init",
    "loraplus_ratio",
    "layers_to_transform",
    "train_embeddings",
    "neftune_alpha",
    "added_tokens",
)
Weight = Annotated[float, Field(gt=0)]
Data = Annotated[
    Annotated[str, Field(min_length=1)] | dict[str, Weight] | list[str],
    Field(
        description="Training data: a file, a folder or a hub id; several as a list, or as {file: weight} with the "
        "share of target tokens that each gets."
    ),
]
Replay = Annotated[
    dict[str, Annotated[float, Field(gt=0, lt=1)]],
    Field(
        description="{file: share}: rows of general text or chats that take this share of the target tokens, so that "
        "less is forgotten."
    ),
]


def _without_loftq(value: object) -> object:
    if value == "loftq":
        raise ValueError(
            "adapter_init='loftq' makes up for the rounding of a quantized base, and every merge and export here is "
            "into the unquantized weights, where that correction would be an error; leave it out, or take eva"
        )
    return value


Init = Annotated[
    Literal["default", "gaussian", "pissa", "olora", "eva"],
    BeforeValidator(_without_loftq),
    Field(
        description="How the adapter starts. default, gaussian: without effect. pissa (arXiv 2404.02948): with the "
        "largest singular parts of each weight. olora (arXiv 2406.01775): with the first of its QR factors. Both are "
        "taken out of the frozen base. eva (arXiv 2410.07170): A has the directions in which the activations of the "
        "run's rows vary most."
    ),
]
Optimizer = Annotated[
    Literal[
        "adamw",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "muon",
        "adamw_schedule_free",
    ],
    Field(
        description="8-bit optimizers keep their state in a quarter of the memory; paged ones move it to host memory "
        "when the GPU is full. muon (arXiv 2502.16982) orthogonalizes the updates of matrices. adamw_schedule_free "
        "(arXiv 2405.15682) averages the weights in place of a falling rate; it needs the package schedulefree."
    ),
]
Ratio = Annotated[
    float,
    Field(
        ge=1,
        description="LoRA+ (arXiv 2402.12354): B learns at so many times learning_rate; the paper takes 16.",
    ),
]
Layers = Annotated[
    list[Annotated[int, Field(ge=0)]] | None,
    Field(description="Numbers of the layers that get an adapter, from 0; null: all."),
]
Embeddings = Annotated[
    bool,
    Field(
        description="Trains the embeddings and the head whole beside the adapter, as continued pretraining on a new "
        "language needs. Tied weights become two matrices."
    ),
]
Tokens = Annotated[
    list[Annotated[str, Field(pattern=r"\S")]],
    Field(
        description="Texts that become tokens of their own. Each starts as the mean of its former pieces; embeddings "
        "and head are trained whole, as train_embeddings does."
    ),
]
Factor = Annotated[float, Field(gt=1)]
Rope = Annotated[
    Factor | dict[Literal["linear", "yarn"], Factor] | None,
    Field(
        description="Times as many positions as the base has, by scaling RoPE: {yarn: 4} (arXiv 2309.00071), "
        "{linear: 2} or 2 (arXiv 2306.15595). max_length may use them; exports carry them."
    ),
]
Joined = Annotated[
    bool,
    Field(
        description="Plain text: puts training documents end to end into rows of max_length, each after the token that "
        "ends the one before; attention crosses their boundaries."
    ),
]
Noise = Annotated[
    float | None,
    Field(
        gt=0,
        description="NEFTune (arXiv 2310.05914): noise of this size on the embeddings in training; the paper takes 5.",
    ),
]
Questions = Annotated[
    Annotated[int, Field(ge=0)] | Literal["auto"],
    Field(
        description="General questions asked before and after a chat run, to show what it forgot; auto: as many as "
        "fit into a tenth of the predicted training time; 0: none."
    ),
]


def refuse(run: Run, clash: Callable[[Run, str, str, str], None]) -> None:
    """Raises `ValueError` for settings of these that cannot go together; `clash` words it."""
    if not run.data or (isinstance(run.data, list) and len({*run.data}) < len(run.data)):
        raise ValueError(f"data={run.data!r} names no file, or one twice")
    if sum(run.replay.values()) >= 1:
        clash(run, "replay", "data", "replay leaves data no share of the target tokens")
    if run.layers_to_transform == []:
        raise ValueError("layers_to_transform=[] leaves no layer to train; null: all")
    if run.trains_embeddings and run.fake_quantization != "none":
        name = "train_embeddings" if run.train_embeddings else "added_tokens"
        clash(run, name, "fake_quantization", "trained embeddings are not rounded")
    if len({*run.added_tokens}) < len(run.added_tokens):
        raise ValueError(f"added_tokens={run.added_tokens!r} names one twice")
    if isinstance(run.rope_scaling, dict) and len(run.rope_scaling) != 1:
        raise ValueError(f"rope_scaling={run.rope_scaling!r}: name one way of scaling")
    for name in ("added_tokens", "rope_scaling"):
        if getattr(run, name) and run.quantization == "gguf":
            clash(
                run, name, "quantization", "the blocks of the file are those of the base as it is"
            )
    if run.adapter_init in ("pissa", "olora"):
        why = "the adapter begins with a part of the unquantized weights, which it is taken out of"
        if run.quantization not in ("auto", "none"):
            clash(run, "adapter_init", "quantization", why)
        if run.fake_quantization != "none":
            clash(run, "adapter_init", "fake_quantization", why)
        if run.use_dora:
            why = "DoRA's magnitudes are those of the whole weights"
            clash(run, "adapter_init", "use_dora", why)
        if run.shard:
            clash(run, "adapter_init", "shard", "no process holds a whole weight")
    if run.adapter_init == "eva" and run.shard:
        clash(run, "adapter_init", "shard", "no process sees all rows")
    if run.optimizer == "adamw_schedule_free":
        if run.schedule != "constant":
            why = "an average of the weights takes the place of a falling rate; set schedule: constant"
            clash(run, "optimizer", "schedule", why)
        if run.shard:
            clash(run, "optimizer", "shard", "its averages are of whole tensors")
    if run.optimizer == "muon":
        for name in ("use_dora", "shard"):
            if getattr(run, name):
                clash(run, "optimizer", name, "Muon updates whole matrices alone")
        if run.method == "full":
            clash(run, "optimizer", "method", "Muon updates matrices alone, not norms and biases")
