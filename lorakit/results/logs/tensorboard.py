"""TensorBoard's event files, `events.out.tfevents.*`, as Trainer, Lightning, Keras and `torch.utils.tensorboard` write
them: scalars `train/loss` and `eval/loss` (or `train_loss`, `val_loss`, …) by step, each with the time of day.

The file is TFRecord around protocol buffers; TensorBoard's own reader reads it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.results.logs import Log, name_of, translated

WHAT = "TensorBoard's event files (*tfevents*, or a folder with them)"
TRAINING = (
    "train/loss",
    "loss/train",
    "train_loss",
    "training_loss",
    "loss",
    "epoch_loss",
    "train/loss_step",
    "train_loss_step",
)
TOKENS = ("train/num_input_tokens_seen", "train/tokens", "tokens")
VALIDATION = re.compile(
    r"(?:eval|val|valid|validation|test)[/_](?:(.+)[/_])?loss(?:_epoch)?|loss/(?:val\w*|eval|test)"
)


def claims(path: Path) -> bool:
    return "tfevents" in path.name if path.is_file() else any(path.rglob("*tfevents*"))


def read(path: Path) -> Log:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise LorakitError(
            f"{path}: reading TensorBoard's files needs its library: pip install tensorboard"
        ) from None
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in path.rglob("*tfevents*") if file.is_file())
    )
    read = {}
    for file in files:
        try:
            read[file] = EventAccumulator(
                str(file), size_guidance={"scalars": 0, "tensors": 0}
            ).Reload()
        except Exception as error:  # of protobuf, of TFRecord's checksums, of the disk
            raise LorakitError(
                f"{file}: cannot be read as an event file of TensorBoard ({error})"
            ) from None
    scalars = joined(path, {file: scalars_of(events) for file, events in read.items()})
    settings = next((found for events in read.values() if (found := _settings(events))), {})
    return log_of(
        scalars, settings, name_of(path, ("events.out", "runs", "version_", "train")), path
    )


def scalars_of(events: Any) -> dict[str, list]:
    """Tag -> events with `step`, `wall_time`, `value`."""
    tags = events.Tags()
    found = {tag: events.Scalars(tag) for tag in tags["scalars"]}
    return found | {tag: _numbers(events, tag) for tag in tags["tensors"] if tag not in found}


def joined(path: Path, files: dict[Path, dict[str, list]]) -> dict[str, list]:
    """The files of one training that was cut: a later one replaces what it repeats. Raises `LorakitError` naming the
    files where they are of several trainings, which all begin at the same step."""
    first = {
        file: min(
            (e for t in TRAINING for e in scalars.get(t, ())[:1]),
            key=lambda e: e.step,
            default=None,
        )
        for file, scalars in files.items()
    }
    training = sorted(
        ((file, event) for file, event in first.items() if event), key=lambda it: it[1].wall_time
    )
    starts = [event.step for _, event in training]
    if starts != sorted(set(starts)):
        raise LorakitError(
            f"{path}: holds {len(training)} logs; name one of them: "
            + ", ".join(str(f) for f, _ in training[:6])
            + (" …" if len(training) > 6 else "")
        )
    out: dict[str, list] = {}
    for file in [*(f for f, _ in training), *(file for file in files if not first[file])]:
        for tag, events in files[file].items():
            begin = events[0].step if events else 0
            out[tag] = [e for e in out.get(tag, ()) if e.step < begin or not first[file]] + list(
                events
            )
    return out


def log_of(scalars: dict[str, list], settings: dict[str, Any], name: str, place: Path) -> Log:
    tag = next((t for t in TRAINING if scalars.get(t)), None)
    series = {
        (found[1] or "validation"): [(e.step, float(e.value)) for e in events]
        for t, events in scalars.items()
        if (found := VALIDATION.fullmatch(t)) and events
    }
    if not tag and not series:
        raise LorakitError(
            f"{place}: holds no loss; its scalars are {', '.join(sorted(scalars)) or 'none'}"
        )
    training = scalars[tag] if tag else []
    seen = next(({e.step: e.value for e in scalars[t]} for t in TOKENS if scalars.get(t)), {})
    updates = [
        {
            "update": e.step,
            "loss": float(e.value),
            "seconds": e.wall_time - training[0].wall_time,
            **({"tokens": seen[e.step]} if e.step in seen else {}),
        }
        for e in training
    ]
    notes = ["its seconds run from the first line of the log, and pauses count"] if updates else []
    return Log(name, "tensorboard", updates, series, translated(settings), notes)


def _numbers(events: Any, tag: str) -> list:
    """TensorFlow 2 writes scalars as tensors of one number; what is none is left out."""
    from types import SimpleNamespace

    from tensorboard.util import tensor_util

    found = []
    for event in events.Tensors(tag):
        value = tensor_util.make_ndarray(event.tensor_proto)
        if value.size == 1 and value.dtype.kind == "f":
            found.append(
                SimpleNamespace(step=event.step, wall_time=event.wall_time, value=value.item())
            )
    return found


def _settings(events: Any) -> dict[str, Any]:
    """The arguments that Hugging Face's Trainer writes as a text."""
    try:
        (event, *_) = events.Tensors("args/text_summary")
        found = json.loads(event.tensor_proto.string_val[0])
        return found if isinstance(found, dict) else {}
    except (KeyError, ValueError, IndexError):
        return {}
