"""Evidence beyond the scores: when to trust a run, what is wrong with its rows, what more rows would bring."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from lorakit.commands import BASE_AT, RUN_DIR, SET, argument, command, print_json
from lorakit.commands import settings as asked

GROUP = "Evidence"
JSON = argument("--json", action="store_true", help="all figures as JSON")


def _told(options: Namespace, found: Any) -> int:
    """Prints it, and writes the report again, which shows it."""
    from dataclasses import asdict

    from lorakit.results.report import write

    page = write(options.run)
    if options.json:
        print_json(asdict(found))
    else:
        print(f"{found}\nSee {page}")
    return 0


@command(
    GROUP,
    "When should it pass a question to a person? Finds how sure an answer has to be.",
    RUN_DIR,
    argument(
        "--error",
        type=float,
        default=0.05,
        metavar="RATE",
        help="highest share of wrong answers that you accept; default 0.05",
    ),
    argument(
        "--certainty",
        type=float,
        default=0.9,
        metavar="P",
        help="how certain it must be that this share is kept; default 0.9",
    ),
    JSON,
    BASE_AT,
    examples=("lorakit trust outputs/run", "lorakit trust outputs/run --error 0.1"),
)
def trust(options: Namespace) -> int:
    """From validation rows, checked on test rows; `ask`, `serve` and the model card then use it."""
    from lorakit.results.evidence.trust import measure

    about = {"error": options.error, "certainty": options.certainty, "model": options.model}
    return _told(options, measure(options.run, **about))


@command(
    GROUP,
    "Which of my training answers are wrong? Ranks the rows of a run with folds.",
    RUN_DIR,
    argument(
        "--apply",
        metavar="FILE.jsonl",
        help="write the rows as decided in evidence/suspicious.csv: keep, fix or drop",
    ),
    JSON,
    BASE_AT,
    examples=(
        "lorakit suspicious outputs/run",
        "lorakit suspicious outputs/run --apply clean.jsonl",
    ),
)
def suspicious(options: Namespace) -> int:
    """Needs a run with `folds`, whose models answer rows that they never saw."""
    from pathlib import Path

    from lorakit.results.evidence.suspicious import cleaned, measure

    if options.apply:
        counts = cleaned(options.run, Path(options.apply))
        print(", ".join(f"{word}: {n}" for word, n in counts.items()) + f"\nSee {options.apply}")
        return 0
    return _told(options, measure(options.run, model=options.model))


@command(
    GROUP,
    "How many more rows? Trains on 25, 50, 75 and 100 % of the rows and draws the learning curve.",
    asked.RUN,
    asked.MODEL,
    asked.NAME,
    argument("--json", action="store_true", help="all figures as JSON"),
    SET,
    examples=("lorakit forecast run.yaml",),
)
def forecast(options: Namespace) -> int:
    """The runs share validation and test rows; those that are done are read."""
    run = asked.read(options)
    from lorakit.training.forecast import forecast as forecasted

    found = forecasted(run)
    options.run = run.folder
    return _told(options, found)


@command(
    GROUP,
    "Do the answers keep the format of the training answers? Counts it, free and enforced.",
    RUN_DIR,
    JSON,
    BASE_AT,
    examples=("lorakit form outputs/run",),
)
def form(options: Namespace) -> int:
    """The form is found in the training answers; `ask --form` and a GGUF's grammar then use it."""
    from lorakit.results.evidence.form import measure

    return _told(options, measure(options.run, model=options.model))


@command(
    GROUP,
    "What did it forget? Asks the base and the tuned model 201 general questions.",
    RUN_DIR,
    JSON,
    BASE_AT,
    examples=("lorakit forgotten outputs/run",),
)
def forgotten(options: Namespace) -> int:
    """Facts, arithmetic, instructions, nonsense, formatting, German and Spanish, scored by exact rules."""
    from lorakit.results.evidence.forgotten import measure

    return _told(options, measure(options.run, model=options.model))
