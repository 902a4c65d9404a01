"""Unsloth's models, kernels and gradient checkpointing on CUDA; what trains them is the torch engine.

It patches transformers and peft and so has to be imported before them: `import_first` does that where a run begins. It
caps transformers, datasets and trl, so it lives in an environment of its own: environment-unsloth.yml.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.common import files, registry
from lorakit.common.errors import LorakitError, first_line
from lorakit.engines import quantization
from lorakit.engines.protocol import adapter_refused, decided
from lorakit.machine import distributed, hardware
from lorakit.models import base_model, locate, served
from lorakit.models.spec import Spec
from lorakit.run import Run

if TYPE_CHECKING:
    from lorakit.engines.torch.engine import TorchEngine

SERVES = (("target_loss", ""), ("target_loss", "image"))
HALF_WEIGHTS = True
REFUSES = {
    "caption": "it serves pictures in conversations alone: name task=chat_images, and a model that talks"
}
PATCHED = ("transformers", "peft", "trl")
CPU = (2026, 10, 9)  # from this version on it trains text on a CPU too
OLDEST = (7, 0)  # compute capability: Triton's kernels
refused: list[str] = []  # why it could not be imported into this process


def fits(facts: Any, spec: Any) -> str:
    """Installed, on a card that Triton serves (or on a CPU, for text), and not imported too late."""
    version = facts.packages.get("unsloth")
    if not version:
        return "unsloth is not installed"
    if refused:
        return refused[0]
    if facts.mps:
        return "unsloth's kernels need a CUDA card"
    old = next((c for c in facts.cards if c.capability < OLDEST), None)
    if old:
        return f"unsloth's kernels need compute capability {OLDEST[0]}.{OLDEST[1]}, and {old.name} is {old.arch}"
    if not facts.cards and tuple(int(n) for n in version.split(".")[:3]) < CPU:
        return f"unsloth {version} needs a CUDA card; {'.'.join(map(str, CPU))} and later train text on a CPU too"
    if not facts.cards and "text_config" in spec.config:
        return f"on a CPU unsloth serves text alone, and {spec.name or spec.path} reads more"
    return ""


def suits(facts: Any) -> tuple[int, str]:
    if facts.device == "cuda" and facts.packages.get("unsloth"):
        return (
            2,
            f"unsloth {facts.packages['unsloth']} is installed, and its kernels serve {facts.cards[0].name}",
        )
    return 0, "its kernels are for CUDA; here it serves when asked for"


def quantizations(facts: Any) -> tuple[str, ...]:
    """Those that transformers loads; what is converted afterwards has kernels of the torch engine."""
    names = quantization.available(facts, torch=True)
    return tuple(name for name in names if not quantization.get(name).convert)


def import_first(facts: Any) -> None:
    """Imports it, unless it serves nothing here. What stands in the way is what `fits` says from then on."""
    if fits(facts, Spec()) or "unsloth" in sys.modules:
        return
    late = [name for name in PATCHED if name in sys.modules]
    if late:
        refused.append(
            f"{late[0]} was imported before unsloth in this process; train in a child, by "
            "lorakit.launch(run) or lorakit train RUN.yaml"
        )
        return
    os.environ.setdefault(
        "UNSLOTH_DISABLE_STATISTICS", "1"
    )  # else every load asks the hub for a counted file
    os.environ.setdefault(
        "UNSLOTH_COMPILE_LOCATION", str(files.cache() / "unsloth")
    )  # else a folder where one stands
    try:
        import unsloth  # noqa: F401
    except Exception as error:  # it checks its surroundings while it is imported
        refused.append(f"unsloth cannot be imported: {first_line(error)}")


def load(
    run: Run, *, adapter: str | Path | None = None, classes: Sequence[str] = ()
) -> TorchEngine:
    """Unsloth's model with a new adapter to train, or with a saved one (`adapter`) to ask, in the torch engine."""
    run, facts = decided(run), hardware.facts()
    import_first(facts)
    if words := fits(facts, base_model.spec(run.model)):
        raise LorakitError(f"engine={run.engine!r}: {words}; or leave engine out")
    from lorakit.engines.torch import loading
    from lorakit.engines.torch.adapter import targeted
    from lorakit.engines.torch.engine import TorchEngine

    if words := others_work(run):
        engine = loading.load(run, adapter=adapter)
        engine.notes["loading"] = ("transformers", words)
        return engine
    if run.task == "chat_images" and not facts.cards:
        raise LorakitError(
            f"engine={run.engine!r} and task='chat_images': on a CPU unsloth serves text alone; leave "
            "engine out"
        )
    world, idle = distributed.join(), hardware.resident()
    where, config = loading.device(world), base_model.config(run.model)
    tokenizer, processor, _ = base_model.reader(run.model, config, run.chat_template)
    model, kind, room = from_files(run, where)
    loading.check(run, model, tokenizer)
    model = with_adapter(model, kind, run, targeted(model, run, base_model.spec(run.model)))
    if adapter:
        put(model, Path(adapter), run)
    model.generate = restoring(model, kind, run)
    hardware.forget_peak()  # loading has held the files too
    engine = TorchEngine(
        model, tokenizer, run, where, packable(run, config), world, idle, processor=processor
    )
    engine.positions = (
        room - 1
    )  # it would cut a longer prompt without a word, and counts the last new token too
    engine.notes["loading"] = (
        kind.__name__,
        "unsloth's own kernels and gradient checkpointing"
        if facts.cards
        else "unsloth's CPU mode: transformers' own model",
    )
    if run.compile:
        engine.notes["compile"] = (
            False,
            "the passes that it compiles are the torch engine's; unsloth has its own",
        )
    return engine


def others_work(run: Run) -> str:
    """Why transformers' own model is the one to train; "" when it is not."""
    if run.method == "full":
        return "method=full: unsloth's kernels are for adapters"
    return (
        "shard=True: unsloth's kernels read whole weights"
        if run.shard and run.processes != 1
        else ""
    )


def from_files(run: Run, where: Any) -> tuple[Any, Any, int]:
    """(the base, Unsloth's class that made it, tokens that it has room for)."""
    import unsloth

    from lorakit.engines.torch.engine import DTYPES
    from lorakit.engines.torch.kernels import attention

    config = base_model.config(run.model)
    text = config.get_text_config()
    kind = (
        unsloth.FastLanguageModel if text is config else unsloth.FastVisionModel
    )  # it loads words alone, too
    room = min(
        run.max_length + run.max_new_tokens,
        getattr(text, "max_position_embeddings", None) or sys.maxsize,
    )
    spec, way = base_model.spec(run.model), attention.NAME if packable(run, config) else "eager"
    if run.task == "chat_images":
        made = served.maker(run.task, config, run.model)._model_mapping[type(config)]
        way = "sdpa" if getattr(made, "_supports_sdpa", False) else "eager"
    # The base is quantized by this run, or stored so.
    forms = [
        quantization.get(name)
        for name in {run.quantization, spec.stored} & {*registry.names("quantization")}
    ]
    options = [f.load_options(None, ()) for f in forms if f.load_options]
    configs = [o["quantization_config"] for o in options if o]
    # Where a card has no bf16 and fp16 overflows it keeps weights in fp16 and computes in fp32: when nothing is asked.
    dtype = (
        None
        if run.precision == "fp32" and not spec.fp16 and where.type == "cuda"
        else DTYPES[run.precision]
    )
    try:
        model, _ = kind.from_pretrained(
            base_model.path(run.model),
            max_seq_length=room,
            dtype=dtype,
            device_map={"": str(where)},
            load_in_4bit=any(c.load_in_4bit for c in configs),
            load_in_8bit=any(c.load_in_8bit for c in configs),
            use_exact_model_name=True,  # the base that was named, not its own quantized copy of it
            fix_tokenizer=False,
            random_state=run.seed,
            attn_implementation=way,
            use_gradient_checkpointing=recomputing(run),
        )
    except Exception as error:  # damaged files raise almost anything
        raise locate.unusable(run.model, error) from None
    return model, kind, room


def packable(run: Run, config: Any) -> bool:
    """Whether rows may run end to end: rows with pictures never do."""
    from lorakit.engines.torch import loading

    return run.task != "chat_images" and loading.packs(config)


def recomputing(run: Run) -> str | bool:
    """Its own way keeps the layers' inputs in the host's memory."""
    return "unsloth" if run.gradient_checkpointing not in (False, "auto") else False


def adapter_options(run: Run, targets: str | list[str]) -> dict[str, Any]:
    """The arguments of its `get_peft_model`. Beside pictures the language model alone is trained."""
    options = {
        "r": run.rank,
        "lora_alpha": run.alpha,
        "lora_dropout": run.dropout,
        "use_rslora": run.use_rslora,
        "use_dora": run.use_dora,
        "target_modules": targets,
        "random_state": run.seed,
        "use_gradient_checkpointing": recomputing(run),
    }
    if run.task != "chat_images":
        return options
    options |= {
        f"finetune_{part}": part != "vision_layers"
        for part in ("vision_layers", "language_layers", "attention_modules", "mlp_modules")
    }
    # For it `all-linear` means the towers too, whatever else is said; None means what the others say.
    return options | {"target_modules": None} if targets == "all-linear" else options


def with_adapter(model: Any, kind: Any, run: Run, targets: str | list[str]) -> Any:
    try:
        return kind.get_peft_model(model, **adapter_options(run, targets))
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        words = first_line(error)
        raise LorakitError(
            f"target_modules={targets!r}: unsloth cannot make the adapters: {words}; or use another "
            "engine"
        ) from None


def restoring(model: Any, kind: Any, run: Run) -> Any:
    """Its `generate` leaves a model in evaluation without gradient checkpointing; this one puts that back."""
    its = model.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        recomputed = model.is_gradient_checkpointing
        try:
            return its(*args, **kwargs)
        finally:
            kind.for_training(
                model, use_gradient_checkpointing=recomputed and (recomputing(run) or True)
            )
            model.eval()

    return generate


def put(model: Any, adapter: Path, run: Run) -> None:
    """Saved weights into a new adapter. Raises `LorakitError` when they are others'."""
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        found = set_peft_model_state_dict(
            model, load_peft_weights(str(adapter), local_files_only=True, device="cpu")
        )
        lost = [k for k in found.missing_keys if "lora_" in k] + list(found.unexpected_keys)
        if lost:
            raise ValueError(f"'{lost[0]}' is in one only")
    except Exception as error:  # PEFT checks little: damaged files raise almost anything
        raise adapter_refused(adapter, run.model, error) from None
