"""Processes that kill themselves at the n-th change of a file below a folder, and what they do meanwhile."""

import importlib
import json
import os
import random
import signal
import sys
import types
from pathlib import Path

from lorakit.common.files import atomic_write

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


def child(work, folder, count_file, moment):
    """Runs `work(folder)`; dies at its `moment`-th change of a file, or notes how many there were."""
    sys.stderr = open(f"{folder}.err", "a", buffering=1)  # noqa: SIM115
    seen = [0]
    root = os.path.realpath(folder)

    def watch(event, args):
        changes = event in CHANGES or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and any(
            isinstance(a, str) and os.path.abspath(a).startswith(root) for a in args
        ):
            seen[0] += 1
            if seen[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    os.environ["LORAKIT_CACHE"] = f"{folder}/cache"
    sys.addaudithook(watch)
    try:
        work(Path(folder))
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    Path(count_file).write_text(str(seen[0]))
    os._exit(0)


def run(context, work, folder, moment=0):
    """(exit code, changes) of a child."""
    count = Path(f"{folder}.count")
    count.unlink(missing_ok=True)
    process = context.Process(target=child, args=(work, str(folder), str(count), moment))
    process.start()
    process.join(1800)
    return process.exitcode, int(count.read_text()) if count.exists() else None


def moments(changes, count=5, seed=0):
    """So many different moments, the first and the last among them."""
    return sorted(
        {1, changes, *random.Random(seed).sample(range(1, changes + 1), min(changes, count))}
    )


def half_written(folder):
    """Files and folders under temporary names, of processes that are gone."""
    return [p for p in Path(folder).rglob("*.part*") if "/cache/hashes" not in str(p)]


# What is killed


def _here():
    """Proofs in this process."""
    from helpers.runs import without_fresh_process
    from lorakit.exporting import fresh_process

    without_fresh_process()
    fresh_process.ask_in_fresh_process = fresh_process.ask


def settings(folder, **changes):
    from helpers.runs import tiny_run

    asked = json.loads((folder / "asked.json").read_text())
    few = {"max_updates": 2, "validate_every": 1, "checkpoint_every": 1, **changes}
    return tiny_run(asked["base"], asked["rows"], folder / "outputs", **few)


def cache(folder):
    importlib.import_module("lorakit.tasks.dataset").prepare(settings(folder))


def export(folder):
    _here()
    importlib.import_module("lorakit.exporting.round_trip").export(
        folder / "run", "merged", type="fp32"
    )


def folds(folder):
    _here()
    importlib.import_module("lorakit.training.finetune").finetune(settings(folder, folds=2))


def search(folder):
    run = settings(folder, name="search", test_fraction=0.0)
    space = {"learning_rate": [1e-4, 1e-3]}
    importlib.import_module("lorakit.training.search").search(
        run, space, trials=2, say=lambda _: None
    )


def upload(folder):
    from lorakit.notebook.studio.controller import Desk
    from lorakit.run import Run

    content = (folder / "rows.jsonl").read_bytes()
    desk = Desk(Run(data=str(folder / "rows.jsonl"), output_dir=str(folder / "outputs")), [folder])
    incoming = desk.incoming("mine.jsonl", len(content))
    for start in range(0, len(content), 1000):
        incoming.add(content[start : start + 1000])
    desk.keep(incoming)


def bundle(folder):
    wheels = importlib.import_module("lorakit.notebook.bundle.wheels")
    wheels.pip = stand_in_pip
    run = settings(folder)
    run.write(folder / "run.yaml")
    pack = importlib.import_module("lorakit.notebook.bundle.pack")
    pack.bundle(folder / "run.yaml", folder / "bundle", say=lambda _: None)


def stand_in_pip(*arguments):
    """pip without a registry: a report of two packages, and a wheel of a few bytes for each pin."""
    if "--report" in arguments:
        packages = [
            {"name": "lorakit", "version": "0.1.0", "requires_dist": ["numpy"]},
            {"name": "numpy", "version": "2.0"},
        ]
        report = {
            "environment": {"extra": ""},
            "install": [{"metadata": each} for each in packages],
        }
        Path(arguments[arguments.index("--report") + 1]).write_text(json.dumps(report))
    elif "--no-deps" in arguments:
        target = Path(arguments[2])
        target.mkdir(exist_ok=True)
        for pin in [a for a in arguments if "==" in a] or ["lorakit==0.1.0"]:
            (target / f"{pin.replace('==', '-')}-py3-none-any.whl").write_bytes(pin.encode())


def grid_row(folder):
    """One row of a grid, whose notebook is executed by a stand-in of papermill."""
    grid = importlib.import_module("lorakit.notebook.grid")
    row = folder / "row"
    row.mkdir(exist_ok=True)
    asked = {"source": "n.ipynb", "parameters": {"rank": 4}, "notebook": "abc"}
    grid.write_json(row / "asked.json", asked)

    def execute(source, parameters, to):
        with atomic_write(to / "n.ipynb") as part:
            part.write_text(json.dumps({"cells": [parameters]}))

    grid.execute = execute
    grid.gpu_queue = types.SimpleNamespace(
        on_cards=lambda *_: __import__("contextlib").nullcontext()
    )
    grid.one(row)
