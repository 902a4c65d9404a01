"""`lorakit`: a thin door to the library. Exit codes: 0 done, 1 the input or the run is at fault, 2 wrong usage."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lorakit.common import strict_yaml
from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import HELD


def main(arguments: list[str] | None = None) -> int:
    """Parses, calls one function, turns errors of the user's into one message."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        return options.call(options) or 0
    except LorakitError as error:
        print(f"lorakit: {error}", file=sys.stderr)
        if getattr(options, "json", False):
            names = ("message", "setting", "value", "where", "cure")
            _print_json({"error": {name: getattr(error, name) for name in names}})
        return 1
    except KeyboardInterrupt:
        print("lorakit: interrupted; what was saved is kept", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a file that may not be read
        print(f"lorakit: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    from lorakit.machine.packages import version_of_lorakit

    out = argparse.ArgumentParser(
        prog="lorakit", description="Fine-tune an open model and know that it got better."
    )
    out.add_argument("--version", action="version", version=version_of_lorakit())
    commands = out.add_subparsers(required=True, metavar="COMMAND")

    def command(call: Callable, words: str) -> argparse.ArgumentParser:
        it = commands.add_parser(call.__name__.strip("_"), help=words, description=words)
        it.set_defaults(call=call)
        return it

    it = command(doctor, "what this machine is, what would be chosen, and what is wrong")
    it.add_argument("--json", action="store_true", help="facts, choices, problems, notes as JSON")
    it = command(check, "whether data are usable: 0, or 1 with every bad row located")
    it.add_argument(
        "data", metavar="DATA|RUN.yaml", help="a file, a folder, a hub id, or the settings of a run"
    )
    it.add_argument("--task", default="auto")
    it.add_argument("--json", action="store_true", help="report, findings and figures as JSON")
    it.add_argument("--picture", type=Path, help="draw what was found into this PNG")
    it.add_argument(
        "--fix",
        action="store_true",
        help="write a clean copy and the rejected rows beside the file",
    )
    settings(it)
    it.add_argument("--columns", default="", metavar="prompt=question,answer=solution")
    it = command(plan, "memory and time of a run, before training")
    it.add_argument("run", metavar="RUN.yaml")
    it.add_argument("--json", action="store_true", help="choices, memory and time as JSON")
    settings(it)
    it = command(train, "one whole run: train, score before and after, prove, report")
    it.add_argument("run", metavar="RUN.yaml")
    it.add_argument("--processes", type=int)
    it.add_argument(
        "--queue", action="store_true", help="wait for a free card, behind those that wait already"
    )
    settings(it)
    it = command(
        run, "execute a notebook through papermill into outputs/, also once per row of a table"
    )
    it.add_argument("notebook")
    it.add_argument(
        "--over",
        metavar="GRID.yaml|ROWS.csv",
        help="lists of values, each with each; or a row per line",
    )
    it.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters"
    )
    it.add_argument("--output-dir", default="outputs")
    it = command(
        rehearse, "the same notebook or run on a shrunken model, offline, in about a minute"
    )
    it.add_argument("what", metavar="NOTEBOOK|RUN.yaml")
    it.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters"
    )
    settings(it)
    it = command(
        bundle,
        "wheels, base, data and notebook in one folder that runs without internet, for Kaggle too",
    )
    it.add_argument("what", metavar="NOTEBOOK|RUN.yaml|FOLDER")
    it.add_argument(
        "--verify",
        action="store_true",
        help="compare the files of a bundle's FOLDER with its manifest",
    )
    it.add_argument("--out", metavar="FOLDER", help="else outputs/bundle/NAME")
    it.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters"
    )
    settings(it)
    it.add_argument(
        "--without",
        nargs="*",
        metavar="PACKAGE",
        help=f"what the target has already; {', '.join(HELD)} unless named, nothing when none is",
    )
    it.add_argument(
        "--extra",
        action="append",
        default=[],
        metavar="NAME",
        dest="extras",
        help="one of lorakit's extras that the notebook needs, such as images",
    )
    it.add_argument(
        "--python", default="", metavar="3.12", help="the target's, where it is another"
    )
    it.add_argument(
        "--platform", default="", metavar="manylinux_2_35_x86_64", help="likewise, as pip names it"
    )
    it.add_argument("--name", default="", metavar="OWNER/NAME", help="the Kaggle data set")
    it.add_argument(
        "--for",
        default="",
        metavar="colab|kaggle",
        dest="host",
        help="leave out what that image holds; sets --python and --platform",
    )
    it = command(
        evaluate, "score the base and the tuned model again, also on other rows or by other metrics"
    )
    it.add_argument("run", metavar="RUN_DIR")
    it.add_argument("--data", help="rows to score on instead of the run's test rows")
    it.add_argument("--metrics", help="names, separated by commas")
    it.add_argument("--json", action="store_true", help="the scores as JSON")
    base_at(it)
    it = command(report, "write report.html, report.md and loss.png of a run")
    it.add_argument("run", metavar="RUN_DIR")
    it = command(
        convert,
        "an adapter or a base between PEFT, transformers and mlx-lm, whichever way its files say",
    )
    it.add_argument("source", help="a folder, or a hub id")
    it.add_argument("target", help="the folder to write")
    it.add_argument("--four-bit", action="store_true", help="quantize a base for mlx-lm")
    it = command(
        export, "a finished run in another format, proven by a round trip in a fresh process"
    )
    it.add_argument("run", metavar="RUN_DIR")
    it.add_argument(
        "--to",
        required=True,
        metavar="TARGET",
        help="a file of lorakit/exporting/targets/: adapter, merged, gguf, …",
    )
    it.add_argument(
        "--type", help="precision, e.g. bf16, q8_0, int8, 4bit; each target names its own"
    )
    it.add_argument(
        "--out", metavar="PATH", help="the folder to write; else RUN_DIR/export/TARGET-TYPE"
    )
    it.add_argument(
        "--also", nargs="+", metavar="RUN_DIR", help="runs on the same base whose adapters go along"
    )
    it.add_argument(
        "--proof-seconds",
        type=float,
        metavar="SECONDS",
        help="how long the tuned model, and then the export, is asked at most; 30 unless given",
    )
    base_at(it)
    it = command(
        serve, "an OpenAI-compatible endpoint over a tuned model on this machine, for a first try"
    )
    it.add_argument("run", metavar="RUN_DIR")
    it.add_argument("--port", type=int, default=8000)
    base_at(it)
    it = command(push, "upload an exported folder with its model card to the hub")
    it.add_argument("folder", metavar="EXPORT_DIR")
    it.add_argument("repository", metavar="OWNER/NAME")
    it.add_argument("--public", action="store_true", help="for everybody to see; else private")
    it = command(
        compare,
        "runs and logs side by side: curves, settings that differ, scores with intervals, fairness",
    )
    it.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_DIR|LOG",
        help="or trainer_state.json, TensorBoard files, a CSV",
    )
    it.add_argument("--plot", type=Path, help="write the curves into this PNG")
    it.add_argument(
        "--curves", action="store_true", help="runs without scores too, by their curves alone"
    )
    it.add_argument("--json", action="store_true", help="settings, differences, reasons as JSON")
    it = command(ask, "ask a tuned model a question")
    it.add_argument("run", metavar="RUN_DIR")
    it.add_argument("question")
    it.add_argument("--base", action="store_true", help="ask the untuned base as well")
    it.add_argument("--max-new-tokens", type=int)
    base_at(it)
    return out


def base_at(it: argparse.ArgumentParser) -> None:
    it.add_argument(
        "--model", metavar="PATH", help="where the run's base lies now; its content is compared"
    )


def settings(it: argparse.ArgumentParser) -> None:
    it.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="changes",
        help="a setting that replaces the file's, e.g. --set learning_rate=1e-4",
    )


def _changes(options: argparse.Namespace) -> dict:
    """What --set says."""

    changes = {}
    for change in options.changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise LorakitError(f"--set {change}: expected NAME=VALUE")
        try:
            changes[name.strip()] = strict_yaml.load(value)
        except Exception:  # beside YAML's own errors its values raise almost anything
            raise LorakitError(f"--set {change}: the value cannot be read as YAML") from None
    return changes


def _run(options: argparse.Namespace):
    from lorakit.run import Run

    changes = _changes(options)
    if getattr(options, "processes", None):
        changes["processes"] = options.processes
    return Run.read(options.run, **changes)


def _print_json(content: dict) -> None:
    print(json.dumps(content, indent=1, ensure_ascii=False, default=str))


def doctor(options: argparse.Namespace) -> int:
    from lorakit.planning.doctor import examine

    found = examine()
    print(json.dumps(found, indent=1) if options.json else "\n".join(found["lines"]))
    return 1 if found["problems"] else 0


def check(options: argparse.Namespace) -> int:
    from lorakit.planning.check import check as look
    from lorakit.planning.check import fix

    run = _checked_run(options)
    if options.fix:
        print(*fix(run), sep="\n")
        return 0
    found = look(run)
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
    return 0 if found.usable else 1


def _checked_run(options: argparse.Namespace):
    """The settings that bear on data: those of a RUN.yaml, or of a file named directly."""
    from lorakit.run import Run

    pairs = [pair.partition("=") for pair in options.columns.split(",") if pair.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise LorakitError(
            f"--columns {options.columns}: expected NAME=COLUMN, several separated by commas"
        )
    columns = {name.strip(): column.strip() for name, _, column in pairs}
    changes = {
        **_changes(options),
        **({"columns": columns} if columns else {}),
        **({"task": options.task} if options.task != "auto" else {}),
    }
    if options.data.endswith((".yaml", ".yml")):
        return Run.read(options.data, **changes)
    return Run(**{"data": options.data, **changes})


def plan(options: argparse.Namespace) -> int:
    from lorakit.planning import memory
    from lorakit.planning.setup import setup

    found = setup(_run(options))
    parts = found.peak_memory
    if not options.json:  # at once: the time takes seconds
        for name, (value, reason) in found.choices.items():
            print(f"{name}: {value} ({reason})")
        print(
            f"memory: {parts['total'] / 1e9:.2f} GB at the peak ("
            + ", ".join(f"{k} {v / 1e9:.2f}" for k, v in parts.items() if k != "total")
            + f"), of {found.facts.device_memory / 1e9:.1f} GB"
        )
        answers = memory.generation(found.settings)
        print(f"answers: up to {answers / 1e9:.2f} GB beside the weights")
    seconds, tokens = found.seconds()
    if options.json:
        choices = {k: {"value": v, "reason": why} for k, (v, why) in found.choices.items()}
        _print_json(
            {
                "choices": choices,
                "memory_bytes": parts,
                "device_memory_bytes": found.facts.device_memory,
                "training_seconds": round(seconds, 1),
                "tokens": tokens,
                "updates": found.updates,
            }
        )
    else:
        print(
            f"time: about {seconds:.0f} s of training for {tokens:,} tokens in {found.updates} updates, estimated from "
            "the speed of matrix products on this machine; evaluation is not included"
        )
    found.refuse()
    return 0


def train(options: argparse.Namespace) -> int:
    from lorakit.machine import distributed, hardware
    from lorakit.planning import choose as plan
    from lorakit.planning.setup import preflight
    from lorakit.results.report import verdict
    from lorakit.training import resume
    from lorakit.training.finetune import finetune
    from lorakit.training.launch import together

    if options.queue and not distributed.started():
        from lorakit.training import gpu_queue

        asked = _run(options)
        options.queue = False
        with gpu_queue.on_cards(
            str(asked.folder.resolve()), None if asked.processes == "auto" else asked.processes
        ):
            return train(options)
    wanted, alone, facts = _run(options), "", None
    if not distributed.started():
        preflight(wanted)
        resume.preflight(wanted)
        facts = hardware.facts(wanted.output_dir)
        count, _ = plan.processes(wanted, facts)
        alone = together(wanted, count) if count > 1 else ""
        if count > 1 and not alone:
            return 0
    folder = finetune(wanted, alone, facts)
    if not distributed.join().first:
        return 0
    found = folder.record
    print(
        f"{folder.path}: status: {found['status']}"
        + (f": {found['error']}" if found.get("error") else "")
    )
    if found["status"] == "done":
        print(f"{verdict(folder.scores)[1]}\nSee {folder / 'report.html'}")
    return 0


def run(options: argparse.Namespace) -> int:
    from lorakit.notebook.execute import execute

    if options.over:
        from lorakit.notebook.grid import over

        found = over(options.notebook, options.over, dict(options.parameters), options.output_dir)
        print(found)
        return 1 if found.failed else 0
    print(execute(options.notebook, dict(options.parameters), options.output_dir))
    return 0


def rehearse(options: argparse.Namespace) -> int:
    from lorakit.notebook.rehearse import rehearse as whole

    whole(options.what, {**_changes(options), **dict(options.parameters)})
    return 0


def bundle(options: argparse.Namespace) -> int:
    from lorakit.notebook.bundle.pack import bundle as pack
    from lorakit.notebook.bundle.pack import verify

    if options.verify:
        print(verify(options.what))
        return 0
    without = HELD if options.without is None else options.without
    folder = pack(
        options.what,
        options.out,
        {**_changes(options), **dict(options.parameters)},
        without=without,
        extras=options.extras,
        python=options.python,
        platform=options.platform,
        name=options.name,
        host=options.host,
    )
    print(f"{verify(folder)}\nSee {folder / 'README.md'}")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from lorakit.results.evaluate_again import rescore

    metrics = options.metrics.split(",") if options.metrics else None
    path, lines = rescore(options.run, data=options.data, metrics=metrics, model=options.model)
    if options.json:
        _print_json({"file": str(path), "scores": json.loads(path.read_text(encoding="utf-8"))})
    else:
        print("\n".join(lines) + f"\nSee {path}")
    return 0


def report(options: argparse.Namespace) -> int:
    from lorakit.results.report import write

    print(write(options.run))
    return 0


def convert(options: argparse.Namespace) -> int:
    from lorakit.engines.mlx.convert import convert as other_format

    print(other_format(options.source, options.target, four_bit=options.four_bit))
    return 0


def export(options: argparse.Namespace) -> int:
    from lorakit.exporting.messages import words
    from lorakit.exporting.round_trip import export as to

    folder = to(
        options.run,
        options.to,
        options.out,
        type=options.type,
        also=options.also,
        model=options.model,
        proof_seconds=options.proof_seconds,
    )
    print(folder, *words(folder), sep="\n")
    return 0


def serve(options: argparse.Namespace) -> int:
    from lorakit.exporting.serve import serve as until_stopped

    return until_stopped(options.run, options.port, model=options.model)


def push(options: argparse.Namespace) -> int:
    from lorakit.exporting.model_card import push as upload

    print(upload(options.folder, options.repository, private=not options.public))
    return 0


def compare(options: argparse.Namespace) -> int:
    from lorakit.results.compare import compare as side_by_side
    from lorakit.results.compare import plot

    found = side_by_side(*options.runs, unscored=options.curves)
    if options.json:
        _print_json(
            {
                "runs": found.names,
                "reference": found.names[found.reference],
                "settings": found.settings,
                "differences": found.differences,
                "unfair": found.unfair,
            }
        )
    else:
        print(found)
    if options.plot:
        drawn = plot(options.runs, options.plot)
        print(drawn, file=sys.stderr if options.json else sys.stdout)
    return 0


def ask(options: argparse.Namespace) -> int:
    from lorakit.results.ask import ask as answer

    for name, adapted in (("base: ", False), ("tuned: ", True)) if options.base else (("", True),):
        print(
            name
            + answer(
                options.run,
                options.question,
                adapted=adapted,
                max_new_tokens=options.max_new_tokens,
                model=options.model,
            )[0]
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
