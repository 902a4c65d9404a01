"""Which of transformers' classes serves a base, and which tasks it can do."""

from __future__ import annotations

from typing import Any

from lorakit.common import registry
from lorakit.common.errors import LorakitError

# transformers' class that loads a base, by what is learnt and what comes with the words.
CLASSES = {
    ("tokens", ""): "AutoModelForCausalLM",
    ("tokens", "image"): "AutoModelForImageTextToText",
    ("tokens", "sound"): "AutoModelForSpeechSeq2Seq",
    ("labels", ""): "AutoModelForSequenceClassification",
    ("labels", "image"): "AutoModelForImageClassification",
}


def serves(config: Any, head: str, medium: str) -> bool:
    """Whether transformers has this architecture in that form."""
    import transformers

    if (head, medium) == ("tokens", "") and encodes_only(config):
        return False
    return type(config) in getattr(transformers, CLASSES[head, medium])._model_mapping


def head_of(task: Any) -> str:
    """The head that a task's objective trains: `tokens` or `labels`."""
    return registry.load("objectives", task.OBJECTIVE).HEAD


def encodes_only(config: Any) -> bool:
    """Whether it is an encoder (BERT, RoBERTa, …), whose every token sees those after it: it cannot write answers.

    transformers also registers a causal class for these, which counts only where config.json says `is_decoder`.
    """
    from transformers import AutoModelForMaskedLM

    masked = type(config) in AutoModelForMaskedLM._model_mapping
    return masked and not getattr(config, "is_decoder", False) and not config.is_encoder_decoder


def reads_words(config: Any) -> bool:
    """False for a classifier of pictures."""
    return any(serves(config, *kind) for kind in CLASSES if kind != ("labels", "image"))


def maker(task: str, config: Any, model: str) -> Any:
    """transformers' class that makes a base for a task; for `auto` the whole of it, the parts that see and hear too."""
    import transformers

    kind = None if task == "auto" else registry.load("tasks", task)
    kinds = [(head_of(kind), kind.MEDIUM)] if kind else sorted(CLASSES, key=lambda k: not k[1])
    found = next((k for k in kinds if serves(config, *k)), None)
    if found is None:
        raise LorakitError(
            f"model={model!r} and task={task!r} do not go together: transformers' {config.model_type} "
            f"serves {', '.join(served_tasks(config)) or 'no task of lorakit'}"
        )
    return getattr(transformers, CLASSES[found])


def task_for(schema: Any, config: Any, processor: Any, model: str) -> str:
    """The first task for rows of this schema that a model can do; classes are learnt where the rows name them."""
    able = {
        name: task
        for name, task in registry.modules("tasks").items()
        if task.GIVES == schema.GIVES
        and (head_of(task) != "labels" or getattr(schema, "LABELS", False))
    }
    found = next(
        (
            name
            for name, task in able.items()
            if serves(config, head_of(task), task.MEDIUM) and task.suits(processor)
        ),
        None,
    )
    if found is None:
        others = [
            n for n in served_tasks(config) if registry.load("tasks", n).GIVES == schema.GIVES
        ]
        cure = f"; set task={others[0]} where the answers are classes" if others else ""
        raise LorakitError(
            f"these rows and model={model!r} do not go together: they are for "
            f"{' or '.join(able)}, which a {config.model_type} cannot do{cure}"
        )
    return found


def served_tasks(config: Any) -> list[str]:
    """The tasks that transformers' classes of this architecture can do."""
    tasks = registry.modules("tasks").items()
    return [name for name, task in tasks if serves(config, head_of(task), task.MEDIUM)]
