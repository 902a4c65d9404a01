"""lorakit: fine-tune an open model on a free GPU or on a Mac, and know whether it got better.

run = lorakit.Run(model="tiny", data="data/triage.jsonl")
job = lorakit.launch(run).watch()      # in a child process; lorakit.finetune(run) stays in this one
job.result()                           # scores before and after, with intervals
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.common.errors import LorakitError
    from lorakit.data.sources import example_data
    from lorakit.exporting.round_trip import export
    from lorakit.notebook.bundle.pack import bundle
    from lorakit.notebook.rehearse import rehearse
    from lorakit.notebook.requirements import install_missing
    from lorakit.planning.check import check
    from lorakit.planning.doctor import examine
    from lorakit.results.ask import ask, tuned
    from lorakit.results.compare import compare
    from lorakit.results.evaluate_again import rescore
    from lorakit.results.report import curve
    from lorakit.run import Run
    from lorakit.runs.folder import Folder
    from lorakit.tasks.dataset import prepare
    from lorakit.training.finetune import finetune
    from lorakit.training.launch import Job, attach, launch

# Imported on first use, so that `import lorakit` and `lorakit --help` load neither torch nor transformers.
_MODULES = {
    "Run": "run",
    "LorakitError": "common.errors",
    "finetune": "training.finetune",
    "prepare": "tasks.dataset",
    "ask": "results.ask",
    "tuned": "results.ask",
    "launch": "training.launch",
    "attach": "training.launch",
    "Job": "training.launch",
    "Folder": "runs.folder",
    "compare": "results.compare",
    "check": "planning.check",
    "examine": "planning.doctor",
    "example_data": "data.sources",
    "curve": "results.report",
    "rescore": "results.evaluate_again",
    "rehearse": "notebook.rehearse",
    "export": "exporting.round_trip",
    "bundle": "notebook.bundle.pack",
    "install_missing": "notebook.requirements",
}
__all__ = [
    "Folder",
    "Job",
    "LorakitError",
    "Run",
    "ask",
    "attach",
    "bundle",
    "check",
    "compare",
    "curve",
    "examine",
    "example_data",
    "export",
    "finetune",
    "install_missing",
    "launch",
    "prepare",
    "rehearse",
    "rescore",
    "tuned",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"lorakit has no '{name}'; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(f"lorakit.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
