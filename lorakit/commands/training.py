"""Training: one run, a notebook, a rehearsal, a bundle for a machine without internet."""

from __future__ import annotations

import sys
from argparse import Namespace

from lorakit.commands import PARAMETER, SET, argument, command
from lorakit.commands import settings as asked
from lorakit.commands.terminal import coloured
from lorakit.machine.hardware import HELD

GROUP = "Training"
KINDS = {"better": "green", "worse": "red", "open": "yellow"}


@command(
    GROUP,
    "Fine-tunes a model, scores it before and after on rows it never saw, and writes a report.",
    asked.RUN,
    asked.MODEL,
    asked.NAME,
    argument("--processes", type=int, metavar="N", help="training processes; default: one per GPU"),
    argument("--queue", action="store_true", help="wait in a queue for a free GPU"),
    argument(
        "--continue",
        action="store_true",
        dest="continues",
        help="start a new run from a finished one: give its RUN_DIR in place of a file",
    ),
    SET,
    examples=(
        "lorakit train rows.jsonl --model qwen3-0.6b",
        "lorakit train run.yaml --set epochs=2",
        "lorakit train run.yaml      # again, to resume after an interruption",
        "lorakit train outputs/run --continue --set data=more.jsonl",
    ),
)
def train(options: Namespace) -> int:
    """Resumes a run that was interrupted."""
    run = asked.read(options)
    from lorakit.machine import distributed

    if not distributed.started():
        if not asked.is_settings(options.run):
            run, path = asked.kept(run)
            print(f"Settings: {path}", file=sys.stderr)
        _warned(run)
    if options.queue and not distributed.started():
        from lorakit.training import gpu_queue

        count = None if run.processes == "auto" else run.processes
        with gpu_queue.on_cards(str(run.folder.resolve()), count):
            return _trained(run)
    return _trained(run)


def _warned(run) -> None:
    from lorakit.planning.unusual import unusual

    for warning in unusual(run):
        print(coloured(f"warning: {warning}", "yellow", sys.stderr), file=sys.stderr)


def _trained(run) -> int:
    from lorakit.commands.progress import Progress
    from lorakit.machine import distributed, hardware
    from lorakit.planning import choose
    from lorakit.planning.setup import preflight
    from lorakit.results.verdict import verdict
    from lorakit.runs.folder import Folder
    from lorakit.training import resume
    from lorakit.training.finetune import finetune
    from lorakit.training.launch import together

    if distributed.started():
        folder = finetune(run)
    else:
        preflight(run)
        resume.preflight(run)
        facts = hardware.facts(run.output_dir)
        count = choose.processes(run, facts)[0]
        with Progress(Folder(run.folder)):
            alone = together(run, count) if count > 1 else ""
            if count > 1 and not alone:
                return 0
            folder = finetune(run, alone, facts)
    if not distributed.join().first:
        return 0
    record = folder.record
    error = f": {record['error']}" if record.get("error") else ""
    print(f"{folder.path}: status: {record['status']}{error}")
    if record["status"] == "done":
        kind, headline = verdict(folder.scores, record.get("data", {}).get("task"))
        print(coloured(headline, KINDS[kind], sys.stdout))
        print(f"Talk to it: lorakit chat {folder.path}\nSee {folder / 'report.html'}")
    return 0


@command(
    GROUP,
    "Tries a notebook or a run in about a minute: a small random model, your data, no internet.",
    argument("what", metavar="NOTEBOOK|RUN.yaml", help="the notebook or run to try"),
    PARAMETER,
    SET,
    examples=("lorakit rehearse run.yaml",),
)
def rehearse(options: Namespace) -> int:
    """Answers of a rehearsal mean nothing: its weights are random."""
    from lorakit.notebook.rehearse import rehearse as whole

    whole(options.what, {**asked.changes_of(options), **dict(options.parameters)})
    return 0


@command(
    GROUP,
    "Executes a notebook and keeps the executed copy in outputs/.",
    argument("notebook", metavar="NOTEBOOK", help="the notebook to execute"),
    argument(
        "--over",
        metavar="GRID.yaml|ROWS.csv",
        help="execute it for every combination of the lists in a YAML file, or for every row of a CSV",
    ),
    PARAMETER,
    argument("--output-dir", default="outputs", metavar="FOLDER", help="default outputs"),
    examples=("lorakit run notebooks/quickstart.ipynb -p epochs 1",),
)
def _run(options: Namespace) -> int:
    """Exit code 1 when one of the rows failed."""
    from lorakit.notebook.execute import execute

    if options.over:
        from lorakit.notebook.grid import over

        found = over(options.notebook, options.over, dict(options.parameters), options.output_dir)
        print(found)
        return 1 if found.failed else 0
    print(execute(options.notebook, dict(options.parameters), options.output_dir))
    return 0


@command(
    GROUP,
    "Packs packages, model, data and notebook into one folder that runs without internet.",
    argument(
        "what", metavar="NOTEBOOK|RUN.yaml|FOLDER", help="what to pack, or a bundle to verify"
    ),
    argument("--verify", action="store_true", help="compare a bundle's files with its manifest"),
    argument("--out", metavar="FOLDER", help="the folder to write; else outputs/bundle/NAME"),
    PARAMETER,
    SET,
    argument(
        "--without",
        nargs="*",
        metavar="PACKAGE",
        help=f"packages that the target has already; default: {', '.join(HELD)}; without a name: none",
    ),
    argument(
        "--extra",
        action="append",
        default=[],
        metavar="NAME",
        dest="extras",
        help="one of lorakit's extras that the notebook needs, such as images",
    ),
    argument(
        "--python",
        default="",
        metavar="3.12",
        help="the target's Python version; default: this one",
    ),
    argument(
        "--platform",
        default="",
        metavar="manylinux_2_35_x86_64",
        help="the target's platform, as pip names it",
    ),
    argument("--name", default="", metavar="OWNER/NAME", help="name of the Kaggle data set"),
    argument(
        "--for",
        default="",
        metavar="colab|kaggle",
        dest="host",
        help="leave out what that image holds; sets --python and --platform",
    ),
)
def bundle(options: Namespace) -> int:
    """For Kaggle's offline notebooks, too."""
    from lorakit.notebook.bundle.pack import bundle as pack
    from lorakit.notebook.bundle.pack import verify

    if options.verify:
        print(verify(options.what))
        return 0
    options.name, name = None, options.name  # it is not the run's
    folder = pack(
        options.what,
        options.out,
        {**asked.changes_of(options), **dict(options.parameters)},
        without=HELD if options.without is None else options.without,
        extras=options.extras,
        python=options.python,
        platform=options.platform,
        name=name,
        host=options.host,
    )
    print(f"{verify(folder)}\nSee {folder / 'README.md'}")
    return 0
