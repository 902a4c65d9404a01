"""`lorakit init`: five questions, each with an answer to accept by Enter, make a RUN.yaml."""

from __future__ import annotations

import sys

from lorakit.commands import settings as asked
from lorakit.commands.terminal import coloured
from lorakit.common.errors import LorakitError
from lorakit.models.catalogue import catalogue
from lorakit.run import Run

# What people mean -> epochs.
EFFORT = {"quick": 1, "good": 3, "thorough": 6}
SHOWN = (
    "tiny",
    "smollm2-135m",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "qwen3-4b",
)  # of the models, with what they are for


def answered() -> Run:
    """The run that the answers describe. Raises `LorakitError` when the answers end before the questions do."""
    data = _data()
    name = _ask("2/5 What should the run be called?", asked.named(data))
    model = _model()
    effort = _choose("4/5 How thorough? quick, good or thorough", "good", tuple(EFFORT))
    share = _number("5/5 Percent of the rows to keep for the final test?", 10)
    return Run(name=name, model=model, data=data, epochs=EFFORT[effort], test_fraction=share / 100)


def _ask(question: str, default: str = "") -> str:
    hint = f" [{default}]" if default else ""
    try:
        return input(coloured(question, "bold", sys.stdout) + hint + " ").strip() or default
    except EOFError:
        raise LorakitError(
            "the answers ended before the questions", cure="answer all five, or write a RUN.yaml"
        ) from None


def _data() -> str:
    while True:
        data = _ask("1/5 Where are your rows? (CSV, Excel, JSON Lines, a folder, a hub id)")
        try:
            asked.present(data)
            if data:
                return data
        except LorakitError as error:
            print(f"  {error}")


def _model() -> str:
    others = []
    for model in catalogue():
        if model.name in SHOWN:
            print(f"  {model.name:<13} {model.size:>6}  {model.purpose} ({model.languages})")
        else:
            others.append(model.name)
    print(f"  … or {', '.join(others[:3])} and {len(others) - 3} more, any hub id, or a folder")
    return _ask("3/5 Which model shall learn?", "qwen3-0.6b")


def _choose(question: str, default: str, known: tuple[str, ...]) -> str:
    while (answer := _ask(question, default).lower()) not in known:
        print(f"  one of {', '.join(known)}")
    return answer


def _number(question: str, default: int) -> float:
    while True:
        answer = _ask(question, str(default)).rstrip("% ")
        try:
            if 0 <= float(answer) < 90:
                return float(answer)
        except ValueError:
            pass
        print("  a number from 0 to 89")
