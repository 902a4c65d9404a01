"""`lorakit`: a thin door to the library. Exit codes: 0 done, 1 the input or the run is at fault, 2 wrong usage."""

from __future__ import annotations

import argparse
import os
import sys

from lorakit.commands import (
    COMMANDS,
    Command,
    evidence,
    print_json,
    results,
    sharing,
    start,
    training,
)
from lorakit.commands.terminal import coloured, shielded
from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.common.quiet import quiet

GROUPS = [module.GROUP for module in (start, training, results, evidence, sharing)]
FIRST = """First steps:
  lorakit check rows.jsonl                       is my file usable?
  lorakit train rows.jsonl --model qwen3-0.6b    train, then judge the answers
  lorakit chat outputs/rows                      talk to the result

`lorakit COMMAND --help` explains a command, `lorakit settings` every setting."""


def main(arguments: list[str] | None = None) -> int:
    """Parses, calls one function, turns errors of the user's into one message."""
    given = sys.argv[1:] if arguments is None else arguments
    known = [one.name for one in COMMANDS]
    if given and not given[0].startswith("-") and given[0] not in known:
        hint = did_you_mean(given[0], known) or "; `lorakit --help` lists them"
        parser().error(f"there is no command '{given[0]}'{hint}")
    options = parser().parse_args(given)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
        shielded(stream)
    quiet()
    try:
        return options.call(options) or 0
    except LorakitError as error:
        if getattr(options, "json", False):
            names = ("message", "setting", "value", "where", "cure")
            print_json({"error": {name: getattr(error, name) for name in names}})
        return _failed(str(error))
    except KeyboardInterrupt:
        return _failed("interrupted; what was saved is kept")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a file that may not be read
        return _failed(str(error))


def _failed(message: str) -> int:
    print(coloured("lorakit: ", "red", sys.stderr) + message, file=sys.stderr)
    return 1


def overview() -> str:
    """Every command in the order of use."""
    lines = ["Fine-tune an open model and know whether it got better.", "", FIRST]
    for group in GROUPS:
        lines += ["", f"{group}:"]
        lines += [f"  {one.name:<11} {one.words}" for one in COMMANDS if one.group == group]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from lorakit.machine.packages import version_of_lorakit

    raw = argparse.RawDescriptionHelpFormatter
    out = argparse.ArgumentParser(
        prog="lorakit", usage="lorakit COMMAND …", description=overview(), formatter_class=raw
    )
    out.add_argument("--version", action="version", version=version_of_lorakit())
    commands = out.add_subparsers(
        required=True, prog="lorakit", metavar="COMMAND", help=argparse.SUPPRESS
    )
    for one in COMMANDS:
        _add(commands, one)
    return out


def _add(commands: argparse._SubParsersAction, one: Command) -> None:
    examples = "\n".join(["Examples:", *(f"  {line}" for line in one.examples)])
    added = commands.add_parser(
        one.name,
        description=one.words,
        epilog=examples if one.examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(call=one.call)
    for argument in one.arguments:
        added.add_argument(*argument.names, **argument.options)


if __name__ == "__main__":
    sys.exit(main())
