"""A suite of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) on base and tuned model.

The tuned model is the run's verified merged export, the base is asked with the same tokenizer and chat template, both
in the precision of the run. Each metric's interval is the paired bootstrap of 95 % over the questions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError, did_you_mean, first_line
from lorakit.exporting.serve import merged
from lorakit.machine.packages import require
from lorakit.models import base_model
from lorakit.results import intervals
from lorakit.results.evaluate_again import free_name
from lorakit.results.open_run import open_run
from lorakit.runs.folder import write_json

TOGETHER = 8  # questions in a forward pass


def suite(
    path: str | os.PathLike,
    name: str,
    *,
    limit: int | None = None,
    model: str | None = None,
) -> tuple[Path, list[str]]:
    """Runs a task or group of tasks on base and tuned model; writes `scores-NAME.json` beside the run's scores.

    Args:
        name: as the harness lists it, or a YAML file of a task of one's own.
        limit: questions of each task at most.
        model: where the base lies now.

    Returns:
        the file written, and a line per metric.

    Raises:
        LorakitError: the harness is missing, knows no such task or cannot read its data, or the run is a classifier
            or about pictures or sound.
    """
    require("lm-eval", purpose="a suite")
    opened = open_run(path, model=model)
    if opened.task.MEDIUM or opened.meta["classes"]:
        raise LorakitError(
            "is no language model of text", where=opened.folder.path, cure="name a run of chats"
        )
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = Path(name)
    manager = TaskManager(include_path=str(own.resolve().parent) if own.is_file() else None)
    task = _named(own) if own.is_file() else name
    if task not in manager.all_tasks:
        raise LorakitError(
            f"there is no suite '{task}'{did_you_mean(task, manager.all_tasks)}",
            setting="--suite",
            value=name,
            cure="name one that `lm-eval ls tasks` lists, or the YAML file of a task",
        )
    cards = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = next((name for name, there in cards.items() if there), "cpu")
    tuned, samples = str(merged(path, model)), {}
    for when, place in (("before", base_model.path(opened.run.model)), ("after", tuned)):
        language_model = HFLM(
            pretrained=place,
            tokenizer=tuned,
            dtype={"bf16": "bfloat16", "fp16": "float16"}.get(opened.run.precision, "float32"),
            batch_size=TOGETHER,
            device=device,
            use_safetensors=True,
        )
        options = {"apply_chat_template": opened.task.GIVES == "messages", "limit": limit}
        samples[when] = _answered(language_model, task, manager, options)
    entries = dict(_entries(samples["before"], samples["after"]))
    target = free_name(opened.folder, f"suite-{own.stem}", rewrite=False)
    write_json(target, entries)
    return target, [_line(metric, entry) for metric, entry in entries.items()]


def _answered(model: Any, task: str, manager: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The harness's samples of each task. Raises `LorakitError` where it cannot run."""
    from lm_eval import simple_evaluate

    fixed = {"bootstrap_iters": 0, "log_samples": True, "task_manager": manager}
    try:
        return dict(simple_evaluate(model=model, tasks=[task], **fixed, **options)["samples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LorakitError(
            f"the suite '{task}' cannot be run: {error}",
            setting="--suite",
            value=task,
            cure="its data come from a hub unless its YAML names files",
        ) from error


def _named(path: Path) -> str:
    """The name of the task that a YAML file describes."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads the harness's own tags, such as !function, as nothing."""

    Loader.add_multi_constructor("!", lambda *_: None)
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LorakitError(f"is no YAML: {first_line(error)}", where=path) from None
    if not isinstance(found, dict) or not isinstance(found.get("task"), str):
        raise LorakitError("names no task", where=path, cure="write `task: NAME` into it")
    return found["task"]


def _entries(before: dict, after: dict) -> Iterator[tuple[str, dict[str, Any]]]:
    """`task metric` -> before, after, difference, interval, rows; metrics that are a mean over questions."""
    for task, lines in before.items():
        pairs = {(line["doc_id"], line.get("filter")): line for line in after[task]}
        for metric in sorted({name for line in lines for name in line.get("metrics", ())}):
            values = [
                (line[metric], pairs[key][metric])
                for line in lines
                if (key := (line["doc_id"], line.get("filter"))) in pairs and metric in line
            ]
            if not values or not all(isinstance(v, (int, float)) for v in sum(values, ())):
                continue  # e.g. a perplexity, which is no mean over questions
            one, two = np.asarray(values, dtype=float).T[:, :, None]
            low, high, change, ends = intervals.paired_difference(
                lambda rows: float(rows.mean()), one, two
            )
            yield (
                f"{task} {metric}",
                {
                    "before": low,
                    "after": high,
                    "difference": change,
                    "interval": [ends.low, ends.high],
                    "rows": len(values),
                },
            )


def _line(metric: str, entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return (
        f"{metric}: {entry['before']:.3f} → {entry['after']:.3f}, {entry['difference']:+.3f} "
        f"(95 % interval {low:+.3f} to {high:+.3f}, {entry['rows']} questions)"
    )
