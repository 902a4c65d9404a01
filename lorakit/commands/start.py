"""What comes first: what this machine is, a file with settings, what a file holds, what a run would need."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from lorakit.commands import SET, argument, command, print_json
from lorakit.commands import settings as asked
from lorakit.commands.terminal import coloured
from lorakit.common.errors import LorakitError
from lorakit.runs.phases import spoken

GROUP = "Before training"


@command(
    GROUP,
    "Shows what this machine can train, and what is wrong with it.",
    argument("--json", action="store_true", help="facts, choices, problems, notes as JSON"),
)
def doctor(options: Namespace) -> int:
    """Exit code 1 when something has to be cured first."""
    from lorakit.planning.doctor import examine

    found = examine()
    print(json.dumps(found, indent=1) if options.json else "\n".join(found["lines"]))
    return 1 if found["problems"] else 0


@command(
    GROUP,
    "Asks five questions and writes a RUN.yaml.",
    argument(
        "file",
        nargs="?",
        default="run.yaml",
        metavar="RUN.yaml",
        help="the file to write; default run.yaml",
    ),
    examples=("lorakit init", "lorakit init support.yaml"),
)
def init(options: Namespace) -> int:
    """Refuses to write over a file that is there."""
    from lorakit.commands.questions import answered

    path = Path(options.file)
    if path.exists():
        raise LorakitError("is there already", where=path, cure="name another file to write")
    run = answered()
    path.parent.mkdir(parents=True, exist_ok=True)
    asked.write(run, path)
    print(f"Wrote {path}. Next:\n  lorakit check {path}\n  lorakit train {path}")
    return 0


@command(
    GROUP,
    "Explains every setting of a RUN.yaml.",
    argument("name", nargs="*", metavar="SETTING", help="only these settings"),
    examples=("lorakit settings", "lorakit settings learning_rate epochs"),
)
def _settings(options: Namespace) -> int:
    from lorakit.common.errors import did_you_mean
    from lorakit.run import Run

    for name in options.name:
        if name not in Run.model_fields:
            raise LorakitError(f"unknown setting '{name}'{did_you_mean(name, Run.model_fields)}")
    for name, field in Run.model_fields.items():
        if not options.name or name in options.name:
            default = (
                "must be given"
                if field.is_required()
                else field.get_default(call_default_factory=True)
            )
            print(f"{coloured(name, 'bold', sys.stdout)} ({default}): {field.description or ''}")
    return 0


@command(
    GROUP,
    "Checks your data: lists every row that cannot be used, with its line and the reason.",
    argument("data", metavar="DATA|RUN.yaml", help="a file, a folder, a hub id, or a RUN.yaml"),
    argument(
        "--task", default="auto", help="kind of task, e.g. chat; default: recognized from the rows"
    ),
    argument("--json", action="store_true", help="report, findings and figures as JSON"),
    argument("--picture", type=Path, metavar="FILE.png", help="draw what was found into this file"),
    argument(
        "--ranked", action="store_true", help="ask the model which pairs it ranks right already"
    ),
    argument("--fix", action="store_true", help="write a clean copy, and the bad rows, beside it"),
    argument(
        "--columns",
        default="",
        metavar="prompt=question,answer=solution",
        help="which of your columns is the question, and which the answer",
    ),
    SET,
    examples=(
        "lorakit check rows.csv",
        "lorakit check rows.csv --columns prompt=Frage,answer=Antwort",
        "lorakit check run.yaml --ranked",
    ),
)
def check(options: Namespace) -> int:
    """Exit code 0 when the data can be used, 1 when a row cannot or a set is wrong."""
    run = _checked_run(options)
    from lorakit.data.sources import shares

    for name in shares(run.data, run.replay):
        asked.present(name)
    from lorakit.planning.check import check as look
    from lorakit.planning.clean_copy import fix

    if options.fix:
        print(*fix(run), sep="\n")
        return 0
    found = look(run)
    if options.ranked and found.usable:
        from lorakit.training.ranked import already

        found.found["ranked"] = [already(run)]
    if options.picture:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        found.picture().savefig(options.picture, dpi=110)
    if options.json:
        print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False, default=str))
        return 0 if found.usable else 1
    print(found)
    for bad in found.report.rejected:
        print(f"{bad.where}: {bad.reason}")
    if found.report.rejected:
        print(
            "A run leaves these rows out. Correct them, or write a copy without them: "
            f"lorakit check {options.data} --fix"
        )
    print(coloured(found.summary(), "green" if found.usable else "yellow", sys.stdout))
    return 0 if found.usable else 1


def _checked_run(options: Namespace):
    """The settings that bear on data: those of a RUN.yaml, or of a file named directly."""
    from lorakit.run import Run

    pairs = [pair.partition("=") for pair in options.columns.split(",") if pair.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise LorakitError(
            f"--columns {options.columns}: expected NAME=COLUMN, several separated by commas"
        )
    columns = {name.strip(): column.strip() for name, _, column in pairs}
    changes = {
        **asked.changes_of(options),
        **({"columns": columns} if columns else {}),
        **({"task": options.task} if options.task != "auto" else {}),
    }
    if asked.is_settings(options.data):
        return Run.read(options.data, **changes)
    return Run(**{"data": options.data, **changes})


@command(
    GROUP,
    "Says how much memory and time a run needs, before it starts.",
    asked.RUN,
    asked.MODEL,
    argument("--json", action="store_true", help="choices, memory and time as JSON"),
    SET,
    examples=("lorakit plan run.yaml", "lorakit plan rows.jsonl --model qwen3-0.6b"),
)
def plan(options: Namespace) -> int:
    """Refuses what cannot fit, naming settings that would."""
    run = asked.read(options)
    from lorakit.planning import memory
    from lorakit.planning.setup import setup
    from lorakit.planning.unusual import unusual

    found = setup(run)
    parts, room = found.peak_memory, found.facts.device_memory
    if not options.json:  # at once: the time takes seconds
        for name, (value, reason) in found.choices.items():
            print(f"{name}: {value} ({reason})")
        print(
            f"memory: {parts['total'] / 1e9:.2f} GB at the peak ("
            + ", ".join(f"{k} {v / 1e9:.2f}" for k, v in parts.items() if k != "total")
            + f"), of {room / 1e9:.1f} GB"
        )
        answers = memory.generation(found.settings)
        print(f"answers: up to {answers / 1e9:.2f} GB beside the weights")
        print(
            f"host memory: {found.host_memory['total'] / 1e9:.2f} GB of {found.facts.memory / 1e9:.1f} GB, all "
            "processes together"
        )
    seconds, tokens = found.seconds()
    if options.json:
        content = {
            "choices": {k: {"value": v, "reason": why} for k, (v, why) in found.choices.items()},
            "memory_bytes": parts,
            "device_memory_bytes": room,
            "host_memory_bytes": found.host_memory,
            "training_seconds": round(seconds, 1),
            "tokens": tokens,
            "updates": found.updates,
        }
        print_json(content)
        found.refuse()
        return 0
    print(
        f"time: about {spoken(seconds)} of training for {tokens:,} tokens in {found.updates} updates, estimated "
        "from the speed of matrix products on this machine; answering the test rows is not included"
    )
    for warning in unusual(run, len(found.prepared.rows["train"])):
        print(coloured(f"warning: {warning}", "yellow", sys.stdout))
    found.refuse()
    print(
        f"Fits this computer: needs {parts['total'] / 1e9:.1f} of {room / 1e9:.0f} GB memory, {found.updates:,} "
        f"training steps, about {spoken(seconds)}. Next: lorakit train {options.run}"
    )
    return 0
