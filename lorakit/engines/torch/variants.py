"""Variants of LoRA beside rsLoRA and DoRA: other beginnings (PiSSA, OLoRA), noise on embeddings (NEFTune)."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorakit.common.errors import LorakitError
from lorakit.engines.torch.transfer import moved
from lorakit.run import Run
from lorakit.tasks.batches import Batch

MOVES_BASE = ("pissa", "olora")  # take what the adapter begins with out of the base's weights


def options(run: Run) -> dict[str, Any]:
    """PEFT's arguments for the variants that a run asks for."""
    found: dict[str, Any] = {}
    if run.adapter_init not in ("default", "eva"):  # eva needs rows: see `directions`
        found["init_lora_weights"] = run.adapter_init
    if run.layers_to_transform is not None:
        found["layers_to_transform"] = run.layers_to_transform
    return found


def directions(
    model: Any, hidden: Callable[[Batch], Any], rank: int, batches: Sequence[Batch]
) -> dict[str, torch.Tensor]:
    """EVA by PEFT: name of each A -> (rank, in), the first right singular vectors of its layer's inputs."""
    import peft
    from peft.tuners.lora.eva import get_eva_state_dict

    some = [
        batch for batch in batches if len(batch.ids) >= rank
    ]  # fewer tokens span fewer directions
    if not some:
        raise LorakitError(
            f"no micro-batch has the {rank} tokens from which EVA could take {rank} directions",
            setting="adapter_init",
            value="eva",
            cure="raise micro_batch_tokens, or lower rank",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "input of type .* could not be moved"
        )  # arrays, moved later
        found = get_eva_state_dict(
            model,
            some,
            peft.LoraConfig(r=rank, init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0)),
            forward_fn=lambda _, batch: hidden(batch),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=lambda inputs, *_: _rows_of(inputs),
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    return {f"{name}.lora_A.default.weight": a for name, a in found.items()}


def _rows_of(inputs: Any) -> torch.Tensor:
    """(N, in) fp32 of a layer's inputs (…, in)."""
    tensor = inputs[0] if isinstance(inputs, tuple) else inputs
    return tensor.reshape(-1, tensor.shape[-1]).float()


def embeddings_of(model: Any) -> list[str]:
    """The embeddings and the head by name. Tied ones are trained, and saved, as two."""
    wanted = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, part in model.named_modules() if any(part is one for one in wanted)]


def as_plain_lora(folder: Path, initial: Mapping[str, np.ndarray], run: Run) -> None:
    """Rewrites a saved adapter of a base whose weights were moved into one for the weights as they are.

    s (B A - B0 A0) is LoRA of twice the rank: A over A0, B beside -B0 (as PEFT converts PiSSA).
    """
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, start in initial.items():
        key, first = name.replace(".default", ""), torch.from_numpy(start)
        if ".lora_A." in key:
            tensors[key] = torch.cat([tensors[key], first], dim=0)
        elif ".lora_B." in key:
            tensors[key] = torch.cat([tensors[key], -first], dim=1)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    times = math.sqrt(2) if run.use_rslora else 2  # the scale stays what it was
    config |= {"r": 2 * run.rank, "lora_alpha": times * run.alpha, "init_lora_weights": True}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


class Noise:
    """NEFTune: uniform noise on the embeddings in training, up to alpha / sqrt(T H) of T tokens (arXiv 2310.05914)."""

    def __init__(self, model: Any, alpha: float):
        self.alpha = alpha
        self.batch: Batch | None = None  # the micro-batch in training; None: no noise
        self.packed = False
        model.get_input_embeddings().register_forward_hook(self._added)

    @contextlib.contextmanager
    def on(self, batch: Batch, packed: bool) -> Iterator[None]:
        """Inside, noise is added to the embeddings of these documents."""
        self.batch, self.packed = batch, packed
        try:
            yield
        finally:
            self.batch = None

    def _added(self, module: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        """`out`: (1, N, H) of documents end to end, or (D, T, H)."""
        if self.batch is None:
            return out
        if self.packed:
            lengths = np.ones((1, out.shape[1]))  # what pads is one long
            lengths[0, : self.batch.lengths.sum()] = np.repeat(
                self.batch.lengths, self.batch.lengths
            )
        else:
            lengths = self.batch.lengths[:, None]
        most = (self.alpha / np.sqrt(lengths * float(out.shape[-1]))).astype(np.float32)
        return out + (torch.rand_like(out) * 2 - 1) * moved(most, out.device)[..., None].to(
            out.dtype
        )
