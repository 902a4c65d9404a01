"""What settings of one run forbid each other, and which values make no sense."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lorakit.common import registry
from lorakit.run import variants

if TYPE_CHECKING:
    from lorakit.run import Run

# What shapes an adapter, and means nothing without one.
OF_ADAPTER = (
    "rank", "alpha", "dropout", "use_rslora", "use_dora", "target_modules",
    "adapter_init", "loraplus_ratio", "layers_to_transform", "train_embeddings",
)  # fmt: skip


def refuse(run: Run) -> None:
    """Raises `ValueError` that names the settings, their values and the reason."""
    for look in (_texts, _method, _fake_quantization, _sets, _stopping, _folds, _sizes):
        look(run)
    variants.refuse(run, _clash)


def _clash(run: Run, a: str, b: str, why: str) -> None:
    raise ValueError(f"{a}={getattr(run, a)!r} and {b}={getattr(run, b)!r} contradict: {why}")


def _texts(run: Run) -> None:
    if not re.fullmatch(r"[\w][\w.\- ]{0,99}", run.name):
        raise ValueError(
            f"name={run.name!r} names a folder: letters, digits, '-', '_' and '.' only, 100 at most"
        )
    for name, value in run:
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ValueError(
                f"{name}={value!r} holds NUL or a byte that is not UTF-8; use another name"
            )
    if isinstance(run.target_modules, str):
        try:
            re.compile(run.target_modules)
        except re.error as error:
            raise ValueError(
                f"target_modules={run.target_modules!r} is no regular expression: {error}"
            ) from None


def _method(run: Run) -> None:
    if run.method == "full" and run.quantization not in ("auto", "none"):
        why = "quantized weights cannot be trained; use lora or quantization=none"
        _clash(run, "method", "quantization", why)
    for name in OF_ADAPTER:
        default = type(run).model_fields[name].default
        if run.method == "full" and getattr(run, name) != default:
            _clash(run, "method", name, "there is no adapter that it could shape")
    if run.quantization != "auto":
        form = registry.load("quantization", run.quantization)
        for name, (values, reason) in form.CONFLICTS.items():
            if getattr(run, name) in values:
                _clash(run, name, "quantization", reason)


def _fake_quantization(run: Run) -> None:
    if run.fake_quantization == "none":
        return
    if run.method == "full":
        why = "what is rounded is a frozen weight with its adapter; use lora"
        _clash(run, "fake_quantization", "method", why)
    if run.quantization not in ("auto", "none"):
        why = "what an export rounds is the unquantized weight"
        _clash(run, "fake_quantization", "quantization", why)
    for name in ("use_dora", "dropout"):
        if getattr(run, name):
            why = "the weight and its update have no plain sum to round"
            _clash(run, "fake_quantization", name, why)


def _sets(run: Run) -> None:
    for part in ("validation", "test"):
        if getattr(run, f"{part}_data") and getattr(run, f"{part}_fraction"):
            _clash(run, f"{part}_data", f"{part}_fraction", "name a file or a share, not both")
    if run.validation_fraction + run.test_fraction >= 1:
        _clash(run, "validation_fraction", "test_fraction", "nothing is left to train on")


def _stopping(run: Run) -> None:
    if not run.early_stopping:
        return
    if run.validate_every == 0:
        _clash(run, "early_stopping", "validate_every", "stopping early needs validation")
    if not run.validation_data and run.validation_fraction == 0:
        why = "stopping early needs validation rows"
        _clash(run, "early_stopping", "validation_fraction", why)


def _folds(run: Run) -> None:
    if run.fold and run.fold > (run.folds or 0):
        _clash(run, "fold", "folds", "it is one of them, counted from 1")
    if run.folds and run.test_data:
        _clash(run, "folds", "test_data", "the folds are the test rows")
    if run.folds and run.processes not in ("auto", 1):
        why = "the folds are trained in one process, one after the other"
        _clash(run, "folds", "processes", why)
    if run.folds and run.learning_rate == "auto":
        why = "each fold would find another one; find it in a run without folds"
        _clash(run, "learning_rate", "folds", why)


def _sizes(run: Run) -> None:
    if isinstance(run.micro_batch_size, int) and run.micro_batch_size > run.global_batch_size:
        why = "a micro-batch is a part of the global batch"
        _clash(run, "micro_batch_size", "global_batch_size", why)
    if isinstance(run.micro_batch_tokens, int) and run.micro_batch_tokens < run.max_length:
        why = "one row of full length must fit a micro-batch"
        _clash(run, "micro_batch_tokens", "max_length", why)
