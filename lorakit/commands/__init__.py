"""The commands of `lorakit`: a function each, in the order of use, with its arguments beside it.

`@command` registers a function; `lorakit/cli.py` builds the parser from what is registered. What is heavy is imported
inside the functions, so that `lorakit --help` loads neither torch nor transformers.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Call = Callable[[Namespace], int]


@dataclass(frozen=True)
class Argument:
    """What `ArgumentParser.add_argument` takes."""

    names: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command: what it is called, does and takes."""

    name: str
    group: str
    words: str
    arguments: tuple[Argument, ...]
    examples: tuple[str, ...]
    call: Call


COMMANDS: list[Command] = []


def argument(*names: str, **options: Any) -> Argument:
    """One argument, as for `ArgumentParser.add_argument`."""
    return Argument(names, options)


def command(
    group: str, words: str, *arguments: Argument, examples: tuple[str, ...] = ()
) -> Callable[[Call], Call]:
    """Registers a function under its own name."""

    def register(call: Call) -> Call:
        name = call.__name__.strip("_")
        COMMANDS.append(Command(name, group, words, arguments, examples, call))
        return call

    return register


def print_json(content: dict[str, Any]) -> None:
    """For programs: one object, readable."""
    print(json.dumps(content, indent=1, ensure_ascii=False, default=str))


RUN_DIR = argument("run", metavar="RUN_DIR", help="folder of a run, such as outputs/run")
BASE_AT = argument(
    "--model",
    metavar="PATH",
    help="where the base model lies now, if it moved; its files must be the same",
)
SET = argument(
    "--set",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    dest="changes",
    help="a setting of the run, e.g. --set learning_rate=1e-4; may be repeated",
)
PARAMETER = argument(
    "-p",
    nargs=2,
    action="append",
    default=[],
    metavar=("NAME", "VALUE"),
    dest="parameters",
    help="a parameter of the notebook and its value; may be repeated",
)
