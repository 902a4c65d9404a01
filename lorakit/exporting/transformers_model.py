"""transformers alone, asked one row at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class TransformersModel:
    """A loaded model, with an adapter of PEFT or without, where it lies. `precision` is for the record."""

    def __init__(self, model: Any, precision: str = "fp32"):
        self.model, self.precision = model.eval(), precision

    def _tensor(self, ids: Sequence[int]) -> Any:
        import torch

        return torch.tensor([[int(i) for i in ids]], device=self.model.device)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """(T, V) fp32 after each of the tokens."""
        import torch

        with torch.no_grad():
            found = self.model(input_ids=self._tensor(ids), use_cache=False).logits[0]
            return found.float().cpu().numpy()

    def generate(
        self, prompt: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]
    ) -> list[int]:
        """The greedy tokens after a prompt, without the one that stops it."""
        import torch

        ids = self._tensor(prompt)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=0,
        )[0].tolist()
        answer = out[len(prompt) :]
        return answer[:-1] if answer and answer[-1] in stop_ids else answer

    def probabilities(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """(C,) of a classifier for one row's inputs."""
        import torch

        tensors = {n: torch.from_numpy(v).to(self.model.device) for n, v in inputs.items()}
        tensors = {
            n: t.to(self.model.dtype) if t.is_floating_point() else t for n, t in tensors.items()
        }
        with torch.no_grad():
            found = self.model(**tensors).logits[0]
            return found.double().softmax(-1).cpu().numpy()
