"""After training: talk to the model, score it, compare runs."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from pathlib import Path

from lorakit.commands import BASE_AT, RUN_DIR, argument, command, print_json
from lorakit.commands.terminal import coloured
from lorakit.common.errors import LorakitError

GROUP = "After training"
TOKENS = argument(
    "--max-new-tokens", type=int, metavar="N", help="length of an answer at most, in tokens"
)
BASE = argument("--base", action="store_true", help="show the untuned model's answer beside it")


@command(
    GROUP,
    "Talks with a tuned model; an empty line ends it.",
    RUN_DIR,
    BASE,
    argument(
        "--system", default="", metavar="TEXT", help="a system prompt, e.g. 'You are a nurse.'"
    ),
    TOKENS,
    BASE_AT,
    examples=("lorakit chat outputs/run", "lorakit chat outputs/run --base"),
)
def chat(options: Namespace) -> int:
    """The model stays loaded and remembers the conversation."""
    from lorakit.results.chat import Chat

    print("Loading the model …", file=sys.stderr, flush=True)
    about = {"system": options.system, "model": options.model}
    with Chat(options.run, max_new_tokens=options.max_new_tokens, **about) as talk:
        print("Ask a question. An empty line ends the chat, /new forgets what was said.")
        while True:
            try:
                question = input(coloured("you: ", "bold", sys.stdout)).strip()
            except EOFError:
                print()
                return 0
            if not question:
                return 0
            if question == "/new":
                talk.forget()
                continue
            if options.base:
                _spoken("base: ", talk.ask(question, adapted=False))
            _spoken("tuned: " if options.base else "model: ", talk.ask(question))


def _spoken(who: str, pieces) -> None:
    print(coloured(who, "quiet", sys.stdout), end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


@command(
    GROUP,
    "Asks a tuned model one question.",
    RUN_DIR,
    argument("question", metavar="QUESTION", help="in quotes"),
    BASE,
    argument(
        "--form", action="store_true", help="enforce the answer format that `lorakit form` found"
    ),
    TOKENS,
    BASE_AT,
    examples=('lorakit ask outputs/run "Is the road open?"',),
)
def ask(options: Namespace) -> int:
    """Greedy: the same question gets the same answer. After `lorakit trust` it also says when to ask a person."""
    from lorakit.results.ask import ask as answer
    from lorakit.results.ask import ask_surely

    about = {"max_new_tokens": options.max_new_tokens, "model": options.model}
    if options.base:
        print("base: " + answer(options.run, options.question, adapted=False, **about)[0])
    (said,) = ask_surely(options.run, [options.question], held=options.form, **about)
    print(("tuned: " if options.base else "") + said.text)
    if said.sure is not None:
        words = "sure enough to answer by itself" if said.sure else "not sure enough: ask a person"
        chance = f"probability of this answer {math.exp(said.log_probability):.3g}"
        print(f"{words} ({chance})", file=sys.stderr)
    return 0


@command(
    GROUP,
    "Writes report.html, report.md and loss.png of a run again.",
    RUN_DIR,
    examples=("lorakit report outputs/run",),
)
def report(options: Namespace) -> int:
    """From the files of the run alone."""
    from lorakit.results.report import write

    print(write(options.run))
    return 0


@command(
    GROUP,
    "Scores the base and the tuned model again: on other rows, by other metrics, by a suite or a judge.",
    RUN_DIR,
    argument("--data", metavar="FILE", help="rows to score on instead of the run's test rows"),
    argument("--metrics", metavar="NAMES", help="names, separated by commas, e.g. bleu,rouge"),
    argument(
        "--suite",
        metavar="NAME|FILE.yaml",
        help="a task of lm-evaluation-harness instead, by its name or its YAML file",
    ),
    argument(
        "--limit",
        type=int,
        metavar="N",
        help="how many questions of the suite, or rows for the judge",
    ),
    argument(
        "--judge",
        metavar="URL",
        help="let a model at an OpenAI-compatible address (…/v1) choose the better of two answers instead; sends "
        "questions and answers there, with the key in LORAKIT_JUDGE_KEY",
    ),
    argument("--judge-model", default="", metavar="NAME", help="its model; default: the first one"),
    argument(
        "--judge-prices",
        type=float,
        nargs=2,
        metavar=("READ", "WRITTEN"),
        help="prices of a million tokens, to estimate the cost",
    ),
    argument("--json", action="store_true", help="the scores as JSON"),
    BASE_AT,
    examples=(
        "lorakit evaluate outputs/run --data new.jsonl",
        "lorakit evaluate outputs/run --suite hellaswag --limit 200",
        "lorakit evaluate outputs/run --judge http://127.0.0.1:8001/v1",
    ),
)
def evaluate(options: Namespace) -> int:
    """Rows that the run trained on are left out and counted."""
    path, lines = _evaluated(options)
    if options.json:
        print_json({"file": str(path), "scores": json.loads(path.read_text(encoding="utf-8"))})
    else:
        print("\n".join(lines) + f"\nSee {path}")
    return 0


def _refuse_without_effect(options: Namespace) -> None:
    """Raises `LorakitError` for an option that another way of scoring would use."""
    others = options.suite or options.judge
    unused = {
        "--metrics": options.metrics and others,
        "--limit": options.limit is not None and not others,
        "--judge-model": options.judge_model and not options.judge,
        "--judge-prices": options.judge_prices and not options.judge,
    }
    for name, given in unused.items():
        if given:
            way = "--suite or --judge" if name == "--limit" else "--judge"
            raise LorakitError(
                f"{name} has no effect here",
                cure=f"leave it out{'' if name == '--metrics' else f', or add {way}'}",
            )
    if options.limit is not None and options.limit < 1:
        raise LorakitError("--limit is a number of rows or questions from 1", value=options.limit)


def _evaluated(options: Namespace) -> tuple[Path, list[str]]:
    """(file written, what it says) of what the options ask for."""
    asked = [n for n in ("data", "suite", "judge") if getattr(options, n)]
    if len(asked) > 1:
        raise LorakitError(
            f"--{asked[0]} and --{asked[1]} do not go together", cure="give one of them at a time"
        )
    _refuse_without_effect(options)
    if options.suite:
        from lorakit.exporting.suite import suite

        return suite(options.run, options.suite, limit=options.limit, model=options.model)
    if options.judge:
        from lorakit.results.outside_judge import ROWS, judged

        def progress(done: int, of: int) -> None:
            print(f"\rjudged {done} of {of} rows", end="", file=sys.stderr, flush=True)

        about = {"judge": options.judge_model, "rows": options.limit or ROWS}
        prices = tuple(options.judge_prices) if options.judge_prices else None
        found = judged(options.run, options.judge, prices=prices, progress=progress, **about)
        print(file=sys.stderr)
        return found
    from lorakit.results.evaluate_again import rescore

    metrics = options.metrics.split(",") if options.metrics else None
    return rescore(options.run, data=options.data, metrics=metrics, model=options.model)


@command(
    GROUP,
    "Compares runs: their curves, settings and scores, and whether the comparison is fair.",
    argument(
        "runs",
        nargs="+",
        metavar="RUN_DIR|LOG",
        help="two runs or more; also trainer_state.json, TensorBoard files, a CSV",
    ),
    argument("--plot", type=Path, metavar="FILE.png", help="draw the curves into this file"),
    argument(
        "--curves", action="store_true", help="compare runs without scores too, by their curves"
    ),
    argument("--json", action="store_true", help="settings, differences, reasons as JSON"),
    examples=("lorakit compare outputs/run outputs/run-2",),
)
def compare(options: Namespace) -> int:
    """Scores are paired row by row where the test rows are the same."""
    from lorakit.results.compare import compare as side_by_side
    from lorakit.results.compare import plot

    found = side_by_side(*options.runs, unscored=options.curves)
    if options.json:
        names = ("settings", "differences", "unfair")
        content = {"runs": found.names, "reference": found.names[found.reference]}
        print_json(content | {name: getattr(found, name) for name in names})
    else:
        print(found)
    if options.plot:
        drawn = plot(options.runs, options.plot)
        print(drawn, file=sys.stderr if options.json else sys.stdout)
    return 0
