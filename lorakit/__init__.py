"""lorakit: fine-tune an open model on a free GPU or on a Mac, and know that it got better.

run = lorakit.Run(model="tiny", data="data/triage.jsonl")
job = lorakit.launch(run).watch()      # in a child process; lorakit.finetune(run) stays in this one
job.result()                           # scores before and after, with intervals
"""

import sys
from importlib import import_module
from types import ModuleType

_WHERE = {
    "Run": "run",
    "LorakitError": "errors",
    "finetune": "finetune",
    "prepare": "prepare",
    "ask": "ask",
    "tuned": "ask",
    "launch": "launch",
    "attach": "launch",
    "Job": "launch",
    "Folder": "record",
    "compare": "compare",
    "check": "check",
    "examine": "doctor",
    "example_data": "data",
    "curve": "report",
    "rescore": "rescore",
    "rehearse": "rehearse",
    "export": "export",
    "bundle": "bundle",
}
__all__ = sorted(_WHERE)


class _Package(ModuleType):
    """`lorakit.finetune` is the function, also after something imported the module `lorakit.finetune`."""

    def __setattr__(self, name, value):
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name):
        if name not in _WHERE:
            raise AttributeError(f"lorakit has no '{name}'; it has {', '.join(__all__)}")
        return getattr(import_module(f"lorakit.{_WHERE[name]}"), name)

    def __dir__(self):
        return [*super().__dir__(), *__all__]


sys.modules[__name__].__class__ = _Package
