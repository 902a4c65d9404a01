"""Out of the notebook: a tuned model in another format, proven by a round trip through its own runtime.

A target is one file here. It offers `TYPES` (precisions, the first one by default), `BOUNDS` (for each of them the
least share of equal greedy tokens and the most nats per token that it may add; `bounds(source, type)` where a model
widens them), `ROUNDED` where a run can have trained with a type's own weights (type -> `fake_quantization`),
`LABELS = True` where it takes classifiers, `room(weights, type)` -> bytes of (disk, memory), `export(source, folder,
type)` -> notes, `size(folder)` -> bytes of weights, `load(folder, source)` -> a `Runtime`, and for the model card
`USE`, a line that loads it, and `LIBRARY`, the hub's name of what reads it, where that is not the target's.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from lorakit import tasks
from lorakit.common import registry
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.common.files import sound, sweep, whole
from lorakit.data.loading import sha256
from lorakit.exporting import model_card
from lorakit.machine import hardware
from lorakit.machine.packages import require
from lorakit.models import base_model
from lorakit.results import evaluate
from lorakit.results.evaluate import Outcome, prompts
from lorakit.run import Run
from lorakit.runs import folder as record
from lorakit.runs.folder import Folder
from lorakit.tasks import rows
from lorakit.tasks.rows import Rows

ROWS, ENOUGH = (
    32,
    20,
)  # rows that a round trip repeats at most; test rows from which training rows are left alone
DISTINCT = 10  # different answers from which agreement says something
RECORD = "export.json"
DEFAULT_BOUNDS = {"fp32": (1.0, 1e-3), "16": (0.95, 0.02), "8": (0.85, 0.1), "4": (0.5, 1.0)}


class Runtime(Protocol):
    """What runs an exported model."""

    def generate(self, prompt: list[int], max_new_tokens: int, stop_ids: list[int]) -> list[int]:
        """The greedy tokens after a prompt, without the one that stops it."""

    def nats(self, ids: list[int], targets: list[bool]) -> float:
        """The summed loss of the targets of one row."""

    def probabilities(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """(C,) of a classifier, for what `given` makes of a row."""


@dataclass(frozen=True)
class Source:
    """A finished run, as every target needs it."""

    folder: Folder
    run: Run
    saved: Path  # the adapter, or the whole model
    tokenizer: Any
    meta: dict[str, Any]
    processor: Any = None  # of pictures
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def chats(self) -> bool:
        return self.tokenizer.chat_template is not None and _task(self.meta).GIVES == "messages"

    @property
    def rows(self) -> Rows:
        """Test rows, or the first training rows where those are few."""
        test = self.sets.get("test")
        return (test if test is not None and len(test) >= ENOUGH else self.sets["train"]).first(
            ROWS
        )

    @cached_property
    def sets(self) -> dict[str, Rows]:
        return rows.read(self.folder / "rows", self.processor)[0]

    @property
    def classes(self) -> list[str]:
        """Of a classifier."""
        return self.meta["classes"]

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max(int(some.lengths.max()) for some in self.sets.values())


def source(path: str | os.PathLike, **options: Any) -> Source:
    """Raises `LorakitError` for a run that is not done, or whose base or template is not what it was tuned on."""
    folder = Folder.of(path)
    known, run = folder.record, Run.read(folder / "run.yaml")
    saved = folder / ("adapter" if run.method == "lora" else "model")
    if known["status"] != "done" or not saved.is_dir():
        raise LorakitError(
            f"{folder.path}: status {known['status']}: only a finished run can be exported; end it with "
            "lorakit train"
        )
    if known.get("base_sha256", run.model) not in (base_model.hash_of(run.model), run.model):
        raise LorakitError(
            f"{folder.path}: {run.model} now has other weights than this run was tuned on; bring back "
            "those, or train again"
        )
    meta = folder.meta()
    if tasks.objective_of(meta["task"]).HEAD == "tokens" and _task(meta).MEDIUM:
        raise LorakitError(
            f"{folder.path}: task={meta['task']}: only models that write and read text alone, and "
            f"classifiers, can be exported so far; plain PEFT and transformers load {saved}"
        )
    if run.method == "lora":
        _of_this_base(saved, run)
    if _task(meta).MEDIUM:
        return Source(folder, run, saved, None, meta, base_model.reader(run.model)[1], options)
    return Source(folder, run, saved, _tokenizer(saved, run, meta), meta, None, options)


def _task(meta: dict[str, Any]) -> ModuleType:
    return registry.load("tasks", meta["task"])


def _of_this_base(adapter: Path, run: Run) -> None:
    try:
        named = sound(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise LorakitError(
            f"{adapter}: no adapter can be read there ({error}); train again under another name"
        ) from None
    made_for = named.get("base_model_name_or_path")
    if made_for and made_for not in (run.model, base_model.path(run.model)):
        raise LorakitError(
            f"{adapter}: this adapter was made for {made_for}, and the run tuned {run.model}; put the "
            "run's own adapter back"
        )


def _tokenizer(saved: Path, run: Run, meta: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(saved, trust_remote_code=False)
    except Exception as error:  # damaged files raise almost anything
        raise base_model.unusable(str(saved), error) from None
    if (
        _task(meta).GIVES == "messages"
        and tasks.objective_of(meta["task"]).HEAD == "tokens"
        and not tokenizer.chat_template
    ):
        raise LorakitError(
            f"{saved}: its tokenizer has no chat template, so what it is exported to could not be asked "
            f"as it was trained; copy chat_template.jinja of {run.model}, or train again"
        )
    return tokenizer


def export(
    path: str | os.PathLike, target: str, out: str | os.PathLike | None = None, **options: Any
) -> Path:
    """Writes a finished run in another format, proves it in a fresh process, and returns the folder.

    `type` is a precision of the target's. Raises `LorakitError`, and leaves nothing under `out`, when it fails.
    """
    module = registry.load("export", target)
    require(*getattr(module, "PACKAGES", ()), purpose=f"export to {target}")
    found = source(path, **options)
    head = tasks.objective_of(found.meta["task"]).HEAD
    if head == "labels" and not getattr(module, "LABELS", False):
        takes = ", ".join(
            n for n, m in registry.modules("export").items() if getattr(m, "LABELS", False)
        )
        raise LorakitError(
            f"{found.folder.path}: task={found.meta['task']}: only models that read and write text alone"
            f" can become {target}; a classifier can be exported --to {takes}"
        )
    kind = chosen(module, target, options.get("type"))
    folder = Path(out) if out else found.folder / "export" / f"{target}-{kind}"
    refuse(folder, module, found, kind)
    tuned, notes = reference(found)
    with whole(folder, "name another place with --out") as part:
        part.mkdir()
        notes = notes + module.export(found, part, kind)
        measured = again(part, found, target, kind)
        bounds = module.bounds(found, kind) if hasattr(module, "bounds") else module.BOUNDS[kind]
        bounds = compared_in(tuned["in"], bounds)
        if getattr(module, "ROUNDED", {}).get(kind) == found.run.fake_quantization:
            tuned["exact"] = tuned["rounded"]
        content = judged(tuned, measured, bounds, f"{target} {kind}")
        content = {
            "target": target,
            "type": kind,
            "run": str(found.folder.path),
            "base": found.run.model,
            "base_sha256": found.folder.record.get("base_sha256"),
            "bytes": module.size(part),
            "files": {
                str(f.relative_to(part)): {"bytes": f.stat().st_size, "sha256": sha256(f)}
                for f in sorted(part.rglob("*"))
                if f.is_file()
            },
            **content,
            "notes": notes,
            "versions": record.versions(),
        }
        model_card.write(found.folder.path, part / "README.md", content)
        record.write_json(part / RECORD, content)
    return folder


def chosen(module: ModuleType, target: str, kind: str | None) -> str:
    if kind in (None, *module.TYPES):
        return kind or module.TYPES[0]
    raise LorakitError(
        f"--type {kind}: {target} has {', '.join(module.TYPES)}{did_you_mean(kind, module.TYPES)}"
    )


def refuse(folder: Path, module: ModuleType, found: Source, kind: str) -> None:
    """Raises `LorakitError` where there is no room, or where something stands that is no export."""
    import psutil

    if (
        folder.exists()
        and not (folder / RECORD).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise LorakitError(
            f"{folder}: is there already and holds no export; name another place with --out"
        )
    if folder.parent.is_dir():
        sweep(folder.parent)
    weights = found.folder.record["parameters"]
    disk, memory = module.room(weights, kind)
    free = hardware.facts(folder.parent).disk_free, psutil.virtual_memory().available
    for need, there, what, cure in (
        (disk, free[0], "on the disk", "free some, name another place with --out"),
        (memory, free[1], "of memory", "close other programs"),
    ):
        if need > there:
            others = ", ".join(t for t in module.TYPES if module.room(weights, t) < (disk, memory))
            raise LorakitError(
                f"{folder}: {kind} of {weights / 1e9:.2f} billion weights needs {need / 1e9:.1f} GB "
                f"{what} while it is made, {there / 1e9:.1f} GB are free; {cure}"
                + (f", or take --type {others}" if others else "")
            )


# The round trip


def reference(found: Source) -> tuple[dict[str, Any], list[str]]:
    """What the tuned model says: in fp32 on unquantized weights, which an export is judged by, and as it was trained.

    `rounded`, where it was trained for one format: in fp32 with weights as that format holds them; judges this one.
    Kept beside the run's rows for the next export of the same weights.
    """
    path, some = found.folder.outcome("tuned"), found.rows
    key = "".join(sha256(f) for f in sorted(found.saved.glob("*.safetensors")))
    try:
        kept = sound(
            json.loads(path.read_text(encoding="utf-8")),
            "key",
            "exact",
            "trained",
            "rounded",
            "notes",
            "in",
        )
        if kept["key"] == key:
            return kept, kept["notes"]
    except (OSError, ValueError):
        pass
    run, notes, plain = found.run, [], unquantized(found)
    trained, held = _said(found, run, some), None
    exact = trained if plain in (run, None) else _said(found, plain, some)
    if plain is None:
        notes.append(
            f"there is no room for the base's unquantized weights: compared with the model in "
            f"{run.quantization}, and what merging changes is not measured"
        )
    elif run.fake_quantization != "none":
        held = (
            trained
            if plain.precision == run.precision
            else _said(found, plain.with_(fake_quantization=run.fake_quantization), some)
        )
        notes.append(
            f"tuned with its weights as {run.fake_quantization} holds them; with unrounded ones "
            f"{_compared(trained, exact)}"
        )
    elif run.quantization != "none":
        notes.append(
            f"tuned on a base in {run.quantization}, merged into its unquantized weights: "
            f"{_compared(trained, exact)}"
        )
    elif plain != run:
        notes.append(f"tuned in {run.precision}, compared in fp32: {_compared(trained, exact)}")
    content = {
        "key": key,
        "exact": exact,
        "trained": trained,
        "rounded": held,
        "notes": notes,
        "in": "nothing plain" if plain is None else plain.precision,
    }
    record.write_json(path, content)
    return content, notes


def unquantized(found: Source) -> Run | None:
    """The run with its base in fp32, where that has no room in its own precision; None where that has none either."""
    room = hardware.facts(found.folder.path).device_memory
    for precision, bytes_each in (("fp32", 4), (found.run.precision, 2)):
        if 1.2 * bytes_each * found.folder.record["parameters"] < room:
            return found.run.with_(
                quantization="none", fake_quantization="none", precision=precision
            )
    return None if found.run.quantization != "none" else found.run


def _compared(one: dict[str, Any], two: dict[str, Any]) -> str:
    same = sum(a == b for a, b in zip(one["answers"], two["answers"], strict=True))
    return (
        f"{same} of {len(one['answers'])} answers stay the same, perplexity {perplexity(one):.4f} becomes "
        f"{perplexity(two):.4f}"
    )


def _said(found: Source, run: Run, some: Rows) -> dict[str, Any]:
    engine = registry.load("engines", run.engine).load(
        run, adapter=found.saved, classes=found.classes
    )
    began = time.perf_counter()
    sums = evaluate.token_sums(engine, some, max_tokens=run.micro_batch_tokens)
    if some.classes:
        engine.close()
        return _classes(some, sums[:, 3:], time.perf_counter() - began) | {
            "targets": [1.0] * len(some)
        }
    asked, began = prompts(some), time.perf_counter()
    answers = [engine.generate([p], run.max_new_tokens, found.meta["stop_ids"])[0] for p in asked]
    seconds = time.perf_counter() - began
    engine.close()
    return {
        "nats": sums[:, 0].tolist(),
        "targets": sums[:, 1].tolist(),
        "answers": answers,
        "tokens_per_second": _speed(answers, seconds),
    }


def _classes(some: Rows, found: np.ndarray, seconds: float) -> dict[str, Any]:
    """What is said of a classifier, (n, C) probabilities: its answer is the class, the loss that of the row's own."""
    own = found[np.arange(len(some)), [row["label"] for row in some]]
    return {
        "answers": [[int(c)] for c in found.argmax(1)],
        "nats": (-np.log(own.clip(1e-30))).tolist(),
        "probabilities": found.tolist(),
        "tokens_per_second": len(some) / max(seconds, 1e-9),
    }


def given(row: dict[str, Any], some: Rows) -> dict[str, np.ndarray]:
    """What a classifier reads of a row: token ids (1, T), or the picture."""
    if some.inputs:
        return some.inputs(row, None)
    ids = np.asarray(row["ids"], dtype=np.int64)[None]
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _speed(answers: Sequence[list[int]], seconds: float) -> float:
    return sum(len(a) + 1 for a in answers) / max(seconds, 1e-9)


def again(part: Path, found: Source, target: str, kind: str) -> dict[str, Any]:
    """What the files in `part` say, in a fresh process."""
    command = [
        sys.executable,
        "-c",
        "from lorakit.export import _child; _child()",
        str(part),
        str(found.folder.path),
        target,
        json.dumps(found.options, default=str),
    ]
    child = subprocess.run(
        command, capture_output=True, text=True, env=hardware.child_environment()
    )
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"it ended with {child.returncode}"]
        raise LorakitError(
            f"{target} {kind}: what was written could not be run in a fresh process: {last[0]}"
        )
    return json.loads(child.stdout.strip().splitlines()[-1])


def _child() -> None:
    part, run, target, options = sys.argv[1:]
    try:
        print("\n" + json.dumps(measure(Path(part), source(run, **json.loads(options)), target)))
    except LorakitError as failed:
        sys.exit(str(failed))


def measure(part: Path, found: Source, target: str) -> dict[str, Any]:
    """Greedy tokens, losses and speed of exported files in their own runtime."""
    some, stops = found.rows, found.meta["stop_ids"]
    runtime = registry.load("export", target).load(part, found)
    if some.classes:
        began = time.perf_counter()
        return _classes(
            some,
            np.stack([runtime.probabilities(given(row, some)) for row in some]),
            time.perf_counter() - began,
        )
    asked = prompts(some)
    runtime.generate(asked[0], 2, stops)  # the first one pays for what is set up once
    began = time.perf_counter()
    answers = [runtime.generate(prompt, found.run.max_new_tokens, stops) for prompt in asked]
    seconds = time.perf_counter() - began
    nats = [runtime.nats(row["ids"].tolist(), [bool(t) for t in row["targets"]]) for row in some]
    more = getattr(runtime, "facts", dict)()
    return {"answers": answers, "nats": nats, "tokens_per_second": _speed(answers, seconds), **more}


def tested(folder: str | os.PathLike) -> Outcome:
    """What an exported model makes of every test row of its run, in its own runtime: losses without answers.

    Raises `LorakitError` where there are no test rows.
    """
    content = read(folder)
    found = source(content["run"])
    if "test" not in found.sets or found.classes:
        raise LorakitError(
            f"{content['run']}: has no test rows with words that {folder} could be scored on"
        )
    runtime, test = (
        registry.load("export", content["target"]).load(Path(folder), found),
        found.sets["test"],
    )
    sums = [
        [
            runtime.nats(row["ids"].tolist(), [bool(t) for t in row["targets"]]),
            row["targets"].sum(),
            np.nan,
        ]
        for row in test
    ]
    return Outcome(np.array(sums, dtype=np.float64), [None] * len(test), test.sources)


def perplexity(said: dict[str, Any], targets: Sequence[float] | None = None) -> float:
    return math.exp(min(700.0, sum(said["nats"]) / max(1.0, sum(targets or said["targets"]))))


def equal_tokens(one: Sequence[list[int]], two: Sequence[list[int]]) -> float:
    """The share of the first one's tokens, ends included, that stand before the first difference."""
    before = [
        next((i for i, (a, b) in enumerate(zip([*x, -1], [*y, -1])) if a != b), len(x) + 1)
        for x, y in zip(one, two, strict=True)
    ]
    return sum(before) / sum(len(x) + 1 for x in one)


def judged(
    tuned: dict[str, Any], measured: dict[str, Any], bounds: tuple[float, float], what: str
) -> dict[str, Any]:
    """What the round trip shows. Raises `LorakitError` when it shows another model than the tuned one."""
    exact, trained = tuned["exact"], tuned["trained"]
    share, added = (
        equal_tokens(exact["answers"], measured["answers"]),
        float(np.sum(measured["nats"]) - np.sum(exact["nats"])) / max(1.0, sum(exact["targets"])),
    )
    same = sum(a == b for a, b in zip(exact["answers"], measured["answers"], strict=True))
    distinct = len({tuple(a) for a in exact["answers"]})
    if share < bounds[0] or not added <= bounds[1]:
        raise LorakitError(
            f"{what}: done is refused: {share:.1%} of the greedy tokens are the tuned model's (at least "
            f"{bounds[0]:.0%}), the loss grows by {added:.4f} nats a token (at most {bounds[1]}); the "
            "files are removed; take a type with more bits"
        )
    after, more = perplexity(measured, exact["targets"]), {}
    if "probabilities" in measured:
        off, most = (
            float(np.abs(np.subtract(measured.pop("probabilities"), exact["probabilities"])).max()),
            1e-4 if bounds[1] <= 1e-3 else bounds[1],
        )
        if not off <= most:
            raise LorakitError(
                f"{what}: done is refused: the probability of a class differs by {off:.1e} (at most "
                f"{most:g}); the files are removed; take a type with more bits"
            )
        more["probabilities"] = {"largest_difference": off, "bound": most}
    return {
        "agreement": {
            "prompts": len(exact["answers"]),
            "identical": same,
            "tokens": share,
            "distinct": distinct,
            "bound": bounds[0],
            "proves_little": distinct < (2 if more else DISTINCT),
        },
        **more,
        "perplexity": {
            "trained": perplexity(trained),
            "before": perplexity(exact),
            "after": after,
            "added_nats": added,
            "bound": bounds[1],
        },
        "tokens_per_second": {
            "before": exact["tokens_per_second"],
            "after": measured["tokens_per_second"],
        },
        **{k: v for k, v in measured.items() if k not in ("answers", "nats", "tokens_per_second")},
    }


def compared_in(precision: str, bounds: tuple[float, float]) -> tuple[float, float]:
    """Wider where the tuned model itself could not be asked in fp32."""
    own = {"fp32": bounds, "nothing plain": DEFAULT_BOUNDS["4"]}.get(
        precision, DEFAULT_BOUNDS["16"]
    )
    return min(bounds[0], own[0]), max(bounds[1], own[1])


def rounded(found: Source, bounds: tuple[float, float]) -> tuple[float, float]:
    """Wider for gpt-oss: llama.cpp and mlx-lm round the ends of YaRN's ramp (arXiv 2309.00071), which it does not."""
    rope = (
        getattr(base_model.config(found.run.model).get_text_config(), "rope_parameters", None) or {}
    )
    return (min(bounds[0], 0.8), max(bounds[1], 0.02)) if rope.get("truncate") is False else bounds


def words(folder: str | os.PathLike) -> list[str]:
    """What the round trip of an export showed, for people."""
    found = read(folder)
    agreement, before, speed = found["agreement"], found["perplexity"], found["tokens_per_second"]
    few = (
        f"; only {agreement['distinct']} answers differ, which proves little"
        if agreement["proves_little"]
        else ""
    )
    size = f"{found['target']} {found['type']}: {found['bytes'] / 1e6:.1f} MB, loaded by a fresh process"
    if "probabilities" in found:
        off = found["probabilities"]
        return [
            size,
            f"{agreement['identical']} of {agreement['prompts']} rows have the tuned model's class{few}; the "
            f"probability of a class differs by at most {off['largest_difference']:.1e} ({off['bound']:g} is the "
            "bound)",
            *found["notes"],
        ]
    return [
        size,
        f"{agreement['identical']} of {agreement['prompts']} greedy answers are the tuned model's, token by token "
        f"({agreement['tokens']:.1%} of the tokens, at least {agreement['bound']:.0%} were asked for{few})",
        f"perplexity {before['before']:.4f} before, {before['after']:.4f} after; {speed['after']:.0f} tokens/s",
        *found["notes"],
    ]


def read(folder: str | os.PathLike) -> dict[str, Any]:
    """`export.json` of an exported folder. Raises `LorakitError` where there is none."""
    try:
        content = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
        return sound(
            content,
            "target",
            "type",
            "run",
            "bytes",
            "agreement",
            "perplexity",
            "tokens_per_second",
            "notes",
        )
    except (OSError, ValueError) as error:
        raise LorakitError(
            f"{folder}: holds no export ({error}); make one: lorakit export RUN_DIR --to …"
        ) from None


def table(*folders: str | os.PathLike) -> list[dict[str, Any]]:
    """A row per export: megabytes, tokens a second, perplexity, agreement."""
    out = []
    for found in map(read, folders):
        agreement = found["agreement"]
        out.append(
            {
                "export": f"{found['target']} {found['type']}",
                "megabytes": found["bytes"] / 1e6,
                "tokens_per_second": found["tokens_per_second"]["after"],
                "perplexity": found["perplexity"]["after"],
                "equal_tokens": agreement["tokens"],
                "identical_answers": f"{agreement['identical']} of {agreement['prompts']}",
            }
        )
    return out
