"""Chooses what the user left open, each choice with its reason."""

from __future__ import annotations

from lorakit import engines, tasks
from lorakit.common.choice import Choice, Choices
from lorakit.common.errors import LorakitError
from lorakit.engines import quantization as quantizations
from lorakit.engines.protocol import EngineModule
from lorakit.machine.hardware import DRIVE, Facts
from lorakit.machine.packages import require
from lorakit.models import base_model, gguf
from lorakit.models.spec import Spec
from lorakit.planning import bf16_trial, memory
from lorakit.planning.ladder import ladder, smaller_forms
from lorakit.run import Run
from lorakit.run.variants import VARIANTS

OWN_OPTIMIZERS = ("muon", "adamw_schedule_free")  # of engines that name `optimizer` in VARIANTS
WORTHWHILE = 1.2  # bf16 on a CPU is taken from this gain on


def resolve(run: Run, facts: Facts, started: Choice | None = None) -> tuple[Run, Choices]:
    """The run with every `auto` that the machine decides replaced, and why; `started`: see `here`.

    Raises `LorakitError` when the machine cannot do what was asked for.
    """
    spec = base_model.spec(run.model)
    chosen: Choices = {}
    chosen["processes"] = started or processes(run, facts)
    if chosen["processes"].value > run.global_batch_size:
        raise LorakitError(
            f"processes={chosen['processes'].value} and global_batch_size={run.global_batch_size}: some "
            "processes would have no row; raise global_batch_size or lower processes"
        )
    if run.optimizer == "adamw_schedule_free":
        require("schedulefree", purpose=f"optimizer={run.optimizer}")
    chosen["engine"] = engine(run, facts, spec)
    if facts.device == "mps" and run.optimizer not in ("adamw", *OWN_OPTIMIZERS):
        raise LorakitError(
            f"optimizer={run.optimizer!r}: bitsandbytes has none for Apple's GPU; use optimizer=adamw"
        )
    chosen["precision"] = precision(run.with_(engine=chosen["engine"].value), facts, spec)
    run = run.with_(**{name: value for name, (value, _) in chosen.items()})
    chosen["quantization"] = quantization(run, facts, spec)
    run = run.with_(quantization=chosen["quantization"].value)
    chosen["output_dir"] = home(run, facts)
    rate = tasks.objective_for(run)[0].LEARNING_RATE
    if rate and "learning_rate" not in run.model_fields_set:
        chosen["learning_rate"] = Choice(rate, "the published rate of this objective")
    if run.learning_rate == "auto":
        why = "found before the first update, by a range test on the training rows"
        chosen["learning_rate"] = Choice("auto", why)
    if run.shard and run.processes == 1:
        chosen["shard"] = Choice(False, "one process: there is nobody to share the weights with")
    if run.packing == "auto":
        chosen["packing"] = Choice(
            True,
            "short rows share a sequence, which saves time; at loading it is tested that they do not influence each "
            "other",
        )
    if run.micro_batch_size == "auto":
        chosen["micro_batch_size"] = Choice(run.global_batch_size, "limited by micro_batch_tokens")
    run = run.with_(**{n: v for n, (v, _) in chosen.items()})
    chosen |= ladder(run, facts)
    return run.with_(**{n: v for n, (v, _) in chosen.items()}), chosen


VALIDATION_SHARE = 0.1  # of the time of training, at most; one validation there always is


def cadence(
    run: Run, updates: int, training_tokens: int = 0, validation_tokens: int = 0
) -> tuple[Run, Choices]:
    """How often to validate and to write a checkpoint, where that is left open.

    Args:
        training_tokens: positions that the whole run goes through.
        validation_tokens: positions of all validation rows; going forward takes a third of training on them.
    """
    chosen: Choices = {}
    if run.validate_every == "auto":
        times, reason = 10, f"about ten times in {updates} updates"
        if validation_tokens and not run.early_stopping:
            worth = int(VALIDATION_SHARE * training_tokens / (validation_tokens / 3))
            if worth < times:
                times = max(1, worth)
                reason = (
                    f"{times} in {updates} updates: {validation_tokens:,} validation tokens against "
                    f"{training_tokens:,} to train on, {VALIDATION_SHARE:.0%} of the time at most"
                )
        chosen["validate_every"] = Choice(max(1, updates // times), reason)
    if run.checkpoint_every == "auto":
        chosen["checkpoint_every"] = Choice(
            max(1, min(50, updates // 10)), "an interrupted run repeats at most a tenth"
        )
    return run.with_(**{name: choice.value for name, choice in chosen.items()}), chosen


def home(run: Run, facts: Facts) -> Choice:
    """Where the runs are kept, and whether that outlives the session."""
    if facts.place == "colab" and not run.output_dir.startswith(DRIVE):
        return Choice(
            run.output_dir,
            (
                "Colab deletes this disk with the session; "
                + (
                    f"Drive is mounted, output_dir={DRIVE}/outputs would outlive it"
                    if facts.drive
                    else "to keep checkpoints, mount Google Drive before: from google.colab import drive; "
                    "drive.mount('/content/drive')"
                )
            ),
        )
    if facts.place == "kaggle":
        return Choice(
            run.output_dir,
            (
                "kept with the notebook's version (19.5 GB)"
                if str(run.folder.absolute()).startswith("/kaggle/working")
                else "Kaggle keeps only /kaggle/working; name it in output_dir"
            ),
        )
    return Choice(run.output_dir, f"{facts.disk_free / 1e9:.0f} GB free")


def here(run: Run, facts: Facts, size: int, alone: str = "") -> Choice:
    """How many processes there are already, and why: `alone` is the reason for one where several were to be.

    Raises `LorakitError` when the settings ask for several, and nobody has started them.
    """
    if size > 1:
        return Choice(size, "as they were started")
    count, why = processes(run, facts)
    if run.processes not in ("auto", 1):
        raise LorakitError(
            f"processes={run.processes}, and this is one process: start them by lorakit.launch(run), or "
            f"by lorakit train RUN.yaml --processes {run.processes}"
        )
    if count > 1 and not alone:
        alone = f"this is one process; lorakit.launch(run) takes all {count} cards"
    return Choice(1, alone or why)


def processes(run: Run, facts: Facts) -> Choice:
    """One per card."""
    if run.folds:
        return Choice(1, "folds are trained one after the other")
    if run.processes != "auto":
        if len(facts.cards) not in (0, 1) and run.processes > len(facts.cards):
            raise LorakitError(
                f"processes={run.processes}, and this machine has {len(facts.cards)} cards; lower it"
            )
        if facts.mps and run.processes > 1:
            raise LorakitError(
                f"processes={run.processes}: a Mac's GPU serves one process; leave processes out"
            )
        return Choice(run.processes, "asked for")
    count = max(1, min(len(facts.cards), run.global_batch_size))
    return Choice(
        count,
        f"one for each of {count} cards"
        if count > 1
        else "one card"
        if facts.cards
        else "one process",
    )


def first(run: Run, facts: Facts) -> None:
    """Where a run begins: an engine that may be chosen imports what has to be imported before all else."""
    for name, module in engines.every().items():
        if run.engine == name or (run.engine == "auto" and module.suits(facts)[0]):
            module.import_first(facts)


def engine(run: Run, facts: Facts, spec: Spec) -> Choice:
    """The one asked for; else of those that serve here the one that suits this machine best, by its own word."""
    asked = run.quantization
    if reason := "" if asked == "auto" else quantizations.get(asked).unavailable(facts):
        raise LorakitError(f"quantization={asked!r} {reason}", setting="quantization", value=asked)
    modules = engines.every() if run.engine == "auto" else {run.engine: engines.get(run.engine)}
    reasons = {
        name: module.fits(facts, spec)
        or unserved(module, run)
        or (
            ""
            if run.quantization in ("auto", *module.quantizations(facts))
            else f"it has no {run.quantization}, but {', '.join(module.quantizations(facts))}"
        )
        or lacks(module, run)
        or (
            ""
            if run.fake_quantization == "none" or module.FAKE_QUANTIZATION
            else "it has no fake_quantization"
        )
        for name, module in modules.items()
    }
    suited = {name: modules[name].suits(facts) for name, reason in reasons.items() if not reason}
    refused = "; ".join(f"{n}: {r}" for n, r in reasons.items() if r)
    if run.engine != "auto" and suited:
        return Choice(run.engine, "asked for")
    best = max((n for n in suited if suited[n][0]), key=lambda n: suited[n][0], default=None)
    if best is None:
        raise LorakitError(f"no engine can serve here: {refused}")
    return Choice(best, suited[best][1] + (f" ({refused})" if refused else ""))


def lacks(module: EngineModule, run: Run) -> str:
    """The first variant of LoRA that a run asks for and an engine does not have; "" when it has all."""
    defaults = {name: type(run).model_fields[name].default for name in VARIANTS}
    asked = [name for name in VARIANTS if getattr(run, name) != defaults[name]]
    if run.optimizer in OWN_OPTIMIZERS and "optimizer" not in module.VARIANTS:
        return f"it has no {run.optimizer}"
    return next((f"it has no {name}" for name in asked if name not in module.VARIANTS), "")


def unserved(module: EngineModule, run: Run) -> str:
    """Why an engine cannot do a run's task; "" when it can, or when the task is not known yet."""
    if run.task == "auto":
        return ""
    objective, _ = tasks.objective_for(run)
    if (objective.NEEDS, tasks.get(run.task).MEDIUM) in module.SERVES:
        return module.REFUSES.get(run.task, "")
    return f"it does not serve {run.task}"


def precision(run: Run, facts: Facts, spec: Spec) -> Choice:
    if run.precision == "fp16" and facts.device == "cpu":
        raise LorakitError("precision='fp16' needs a CUDA card; use fp32 or bf16 on a CPU")
    half = run.method == "lora" and run.engine != "auto" and engines.get(run.engine).HALF_PRODUCTS
    if run.precision == "fp16" and not (spec.fp16 or half):
        raise LorakitError(f"precision='fp16' overflows in {run.model}; use bf16 or fp32")
    if run.precision == "bf16" and (old := next((c for c in facts.cards if not c.bf16), None)):
        raise LorakitError(
            f"precision='bf16': {old.name} has no bf16 hardware",
            setting="precision",
            value="bf16",
            cure="use precision=auto, which takes fp16 products there",
        )
    if run.precision != "auto":
        return Choice(run.precision, "asked for")
    if run.engine != "auto" and (own := engines.get(run.engine).precision(facts)):
        return Choice(*own)
    if facts.device == "mps":
        return Choice("bf16", "half the memory of fp32 on Apple's GPU; what is trained stays fp32")
    if facts.device != "cuda":
        return on_cpu(run, facts)
    old = next((c for c in facts.cards if not c.bf16), None)
    if not old:
        return Choice("bf16", f"{facts.cards[0].name} computes bf16 in hardware")
    if spec.fp16:
        return Choice("fp16", f"{old.name} has no bf16 hardware")
    overflows = f"{old.name} has no bf16 hardware, and {run.model} overflows in fp16"
    if half and run.quantization not in ("int8", "fp8"):
        return Choice("fp16", f"{overflows}: its products alone are in fp16, all else is in fp32")
    return Choice("fp32", overflows)


def on_cpu(run: Run, facts: Facts) -> Choice:
    """bf16 where the CPU has units for it and the products of this model's shapes are faster with them: timed."""
    if not facts.bf16_units:
        return Choice("fp32", "this CPU has no units for bf16 (AMX, AVX-512 BF16)")
    gain = bf16_trial.gain(base_model.of(run.model).skeleton(run.task))
    words = f"with {facts.bf16_units}, products of this model's shapes take 1/{gain:.1f} of their fp32 time (timed)"
    if gain < WORTHWHILE:
        return Choice("fp32", words + ": too little to give up 16 bits")
    return Choice("bf16", words)


def refuse_again(wanted: str, model: str, spec: Spec) -> None:
    """Raises `LorakitError` where weights that are quantized already are to be quantized."""
    if spec.stored and wanted not in ("auto", "none"):
        raise LorakitError(
            f"quantization={wanted!r}: the weights of {model} are stored as {spec.stored} already and "
            "cannot be quantized again; leave quantization out"
        )


def quantization(run: Run, facts: Facts, spec: Spec) -> Choice:
    refuse_again(run.quantization, run.model, spec)
    file = gguf.source(spec.path)
    if run.quantization == "gguf" and file is None:
        raise LorakitError(
            f"quantization='gguf': {run.model} is not a GGUF file, so there are no blocks to keep",
            setting="quantization",
            value="gguf",
            cure="name a .gguf file as the model, or use nf4 or none",
        )
    if run.fake_quantization != "none":
        if spec.stored:
            raise LorakitError(
                f"fake_quantization={run.fake_quantization!r}: the weights of {run.model} are stored as "
                f"{spec.stored}, and there are none without to round; leave it out"
            )
        return Choice(
            "none",
            f"fake_quantization={run.fake_quantization}: the export rounds unquantized weights",
        )
    if spec.stored and run.quantization == "auto":
        return Choice("none", f"its weights are stored as {spec.stored}")
    if run.quantization != "auto":
        return Choice(run.quantization, "asked for")
    if run.method == "full":
        return Choice("none", "full fine-tuning trains the weights themselves")
    if file and "gguf" in engines.get(run.engine).quantizations(facts):
        return Choice("gguf", f"the blocks of {file.name} stay as llama.cpp will serve them")
    smallest = run.with_(
        quantization="none",
        micro_batch_size=1,
        micro_batch_tokens=run.max_length,
        gradient_checkpointing=True,
    )
    need, room = memory.memory(smallest, facts=facts)["total"], 0.8 * facts.device_memory
    words = f"unquantized it takes {need / 1e9:.1f} GB of the {room / 1e9:.1f} GB that may be used"
    if need < room:
        return Choice("none", words)
    small = smaller_forms(run, facts)[0]
    return Choice(
        small, words + (", and nothing smaller is served here" if small == "none" else "")
    )
