"""lorakit: fine-tune an open model on a free GPU or on a Mac, and know that it got better.

    run = lorakit.Run(model="tiny", data="data/triage.jsonl")
    job = lorakit.launch(run).watch()      # in a child process; lorakit.finetune(run) stays in this one
    job.result()                           # scores before and after, with intervals
"""

from importlib import import_module

_WHERE = {
    "Run": "run", "LorakitError": "errors", "finetune": "finetune", "prepare": "finetune", "ask": "finetune",
    "tuned": "finetune", "launch": "launch", "attach": "launch", "Job": "launch", "Folder": "record",
    "compare": "compare", "examine": "doctor", "example_data": "data", "curve": "report", "rescore": "rescore",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"lorakit has no '{name}'; it has {', '.join(__all__)}")
    # A function may bear the name of its module (finetune, launch, compare): the function is what is meant.
    value = getattr(import_module(f"lorakit.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return __all__
