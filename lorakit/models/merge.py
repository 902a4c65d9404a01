"""An adapter merged into the unquantized weights of its base.

W + s B A is computed in fp32 layer by layer and cast afterwards: in bf16 the sum itself would lose the update.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.common import hub
from lorakit.common.errors import LorakitError, first_line
from lorakit.machine.packages import tolerate_old_packages
from lorakit.models import base_model, locate, served

TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # torch's names of precisions
WRAPPED = "base_model.model."  # what PEFT puts before the names of a model's modules


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars and deprecation warnings of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def dtype_of(precision: str) -> Any:
    """torch's type of one of `TYPES`."""
    import torch

    return getattr(torch, TYPES[precision])


@quietly()
def unquantized_model(
    path: str,
    *,
    task: str,
    precision: str = "stored",
    weights: str | None = None,
    classes: Sequence[str] = (),
    pad_id: int | None = None,
) -> Any:
    """transformers' model on the CPU without quantization.

    Args:
        path: folder, hub id or known name of the base, which also gives the configuration.
        precision: `stored` keeps the numbers that the files hold, `fp32` widens them.
        weights: folder of a whole tuned model of this configuration, in place of the base's weights.
        classes: names of the classes of a classifier, whose head is new.
        pad_id: the padding token of a classifier of text.

    Raises:
        LorakitError: the files cannot be loaded, or hold quantized weights alone.
    """
    config, options = copy.deepcopy(base_model.config(path)), dequantized(path)
    if classes:
        options |= {
            "config": base_model.labelled(config, classes),
            "ignore_mismatched_sizes": True,
        }
        config.pad_token_id = pad_id
    where = weights or base_model.path(path)
    try:
        return served.maker(task, config, path).from_pretrained(
            where,
            dtype=dtype_of(precision) if precision == "fp32" else "auto",
            trust_remote_code=False,
            local_files_only=hub.kept_only(where),
            **options,
        )
    except Exception as error:  # damaged files raise almost anything
        raise locate.unusable(where, error) from None


def dequantized(path: str) -> dict[str, Any]:
    """Options that make transformers load weights stored in a few bits as plain numbers.

    Raises `LorakitError` for a base whose unquantized weights do not exist.
    """
    stored = getattr(base_model.config(path), "quantization_config", None)
    if not stored:
        return {}
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    if str(getattr(method, "value", method)) != "mxfp4":
        raise LorakitError(
            f"its weights are stored in {method}, and there are none without",
            where=path,
            cure="name the unquantized model that it was made from, and train on that",
        )
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)}


def untie(model: Any, adapter: Path) -> bool:
    """Gives the head a copy of the embeddings' weights where an adapter changes one of them and not the other.

    Returns whether it did. A base with tied embeddings has one tensor for both; merged into it, an update of the head
    would change the embeddings as well.
    """
    import torch

    config = model.config.get_text_config()
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(config, "tie_word_embeddings", False) or head is None:
        return False
    names = {id(module): name for name, module in model.named_modules()}
    shared = [names[id(module)] for module in (head, embeddings)]
    if not any(key.startswith(f"{WRAPPED}{name}.") for key in _keys(adapter) for name in shared):
        return False
    head.weight = torch.nn.Parameter(embeddings.weight.detach().clone(), requires_grad=False)
    for each in (model.config, config):
        each.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    return True


def _keys(adapter: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise LorakitError(f"the adapter cannot be read ({error})", where=adapter) from None


@quietly()
def with_adapter(model: Any, adapter: Path, base: str) -> Any:
    """PEFT's model of a base and a saved adapter, tied embeddings untied where the adapter needs it.

    Raises `LorakitError` when they do not belong together.
    """
    from peft import PeftModel

    tolerate_old_packages()
    try:
        untie(model, adapter)
        return PeftModel.from_pretrained(model, str(adapter))
    except LorakitError:
        raise
    except Exception as error:  # PEFT checks little
        raise LorakitError(
            f"the adapter cannot be loaded onto {base}: {first_line(error)}",
            where=adapter,
            cure="was it made for another base? Put the run's own adapter back",
        ) from None


@quietly()
def merge(model: Any, adapter: Path, precision: str, base: str) -> Any:
    """The base with W + s B A in the place of W, in one of `TYPES`; one layer at a time is in fp32.

    Raises `LorakitError` when adapter and base do not belong together, when a tensor without an adapter is not the
    base's bit for bit afterwards, and when a number leaves the range of the precision.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    dtype = dtype_of(precision)
    untie(model, adapter)
    before = checksums(model, dtype)
    tuned = with_adapter(model, adapter, base)
    adapted = [
        name.removeprefix(WRAPPED)
        for name, module in tuned.named_modules()
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper))
    ]
    layers = [m for m in tuned.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer.get_base_layer().float()
        layer.float().merge()
        if not any(
            x is not layer and x.get_base_layer() is layer.get_base_layer() and not x.merged
            for x in layers
        ):
            layer.get_base_layer().to(dtype)
    merged = tuned.unload().to(dtype)
    refuse_changed(before, checksums(merged, dtype), adapted, base)
    return merged


def checksums(model: Any, dtype: Any) -> dict[str, int]:
    """name -> CRC-32 of each parameter's bytes in this precision."""
    import torch

    return {
        name: zlib.crc32(value.detach().to(dtype).contiguous().view(-1).view(torch.uint8).numpy())
        for name, value in model.named_parameters(remove_duplicate=False)
    }


def refuse_changed(
    before: Mapping[str, int], after: Mapping[str, int], adapted: Sequence[str], base: str
) -> None:
    """Raises `LorakitError` when a tensor outside the `adapted` modules is another one than before."""
    prefixes = tuple(f"{name}." for name in adapted)
    for name in sorted(before.keys() | after.keys()):
        if not name.startswith(prefixes) and before.get(name) != after.get(name):
            raise LorakitError(
                f"merging changed '{name}', which has no adapter; the export would be another model",
                where=base,
                cure="report this with the settings of the run",
            )


def refuse_nonfinite(model: Any, precision: str, base: str) -> None:
    """Raises `LorakitError` when a weight left the range of the precision."""
    lost = next((n for n, p in model.named_parameters() if not p.isfinite().all()), None)
    if lost:
        raise LorakitError(
            f"'{lost}' leaves the range of {precision}", where=base, cure="take --type bf16 or fp32"
        )
