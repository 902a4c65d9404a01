"""From summed gradients to changed weights: all-reduce, unscaling, clipping, the optimizer's step, their state."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lorakit.engines import protocol
from lorakit.engines.torch.kernels.adapted import adapters_changed
from lorakit.engines.torch.layers import full
from lorakit.engines.torch.optimizers import make_optimizer
from lorakit.machine.distributed import World
from lorakit.run import Run

OF_GROUPS = ("k", "weight_sum", "lr_max")  # what a schedule-free optimizer knows beside its tensors


class Optimization:
    """The trained tensors (fp32, name -> parameter) with their optimizer and loss scaler.

    `unit` keeps summed losses in fp16's range; it is a power of two, so that in fp32 nothing is rounded.
    """

    def __init__(
        self,
        run: Run,
        trained: dict[str, torch.nn.Parameter],
        device: torch.device,
        world: World,
        autocast: torch.dtype | None,
    ):
        self.trained, self.device, self.world = trained, device, world
        self.clip = run.max_grad_norm
        self._optimizer = make_optimizer(run, trained) if trained else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)
        # Has its state from here on, also where the first update has no row for this process.
        self.scaler.scale(torch.zeros((), device=device))
        self.unit = 2.0 ** round(math.log2(int(run.micro_batch_tokens)))
        self.norm: float | None = None  # of the accumulated gradients, from `reduce` on

    @property
    def optimizer(self) -> Any:
        assert self._optimizer is not None, "nothing is trained"
        return self._optimizer

    def training(self, on: bool) -> None:
        """Between updates a schedule-free optimizer keeps its average as the weights; gradients are taken elsewhere."""
        if self._optimizer is not None and "train_mode" in self.optimizer.defaults:
            (self.optimizer.train if on else self.optimizer.eval)()
            adapters_changed()

    def add(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a summed loss."""
        self.scaler.scale(loss / self.unit).backward()

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def reduce(self, total: float | torch.Tensor, count: int) -> tuple[float, int]:
        """One wait for the device an update: the sum and the gradients' norm come back together."""
        if self.world.size > 1:
            self._reduce_gradients()
        both = [torch.as_tensor(total, device=self.device).float(), self._gradient_norm()]
        total, self.norm = torch.stack(both).tolist()
        if self.world.size == 1:
            return total, count
        sums = torch.tensor([total, count], dtype=torch.float64)
        torch.distributed.all_reduce(sums)
        return float(sums[0]), int(sums[1])

    def _gradients(self) -> list[torch.Tensor]:
        return [p.grad for p in self.trained.values() if p.grad is not None]

    def _gradient_norm(self) -> torch.Tensor:
        """Of the summed gradients, unscaled, on the device."""
        self.scaler.unscale_(self.optimizer)
        gradients = self._gradients()
        if any(hasattr(g, "full_tensor") for g in gradients):
            norms = [full(torch.linalg.vector_norm(g)) for g in gradients]
        else:
            norms = list(torch._foreach_norm(gradients))
        return torch.linalg.vector_norm(torch.stack(norms))

    def _reduce_gradients(self) -> None:
        whole = [p for p in self.trained.values() if not hasattr(p, "full_tensor")]
        for parameter in self.trained.values():
            if parameter.grad is not None and hasattr(parameter, "full_tensor"):
                parameter.grad.mul_(self.world.size)  # FSDP has made it a mean
        for parameter in whole:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if whole:
            flat = torch.cat([p.grad.flatten() for p in whole])
            torch.distributed.all_reduce(flat)
            for parameter, summed in zip(
                whole, flat.split([p.numel() for p in whole]), strict=True
            ):
                parameter.grad.copy_(summed.view_as(parameter))

    def update(self, learning_rate: float, count: int) -> tuple[float, bool]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("ratio", 1.0)
        share = self.unit / max(count, 1)
        norm = share * (float(self._gradient_norm()) if self.norm is None else self.norm)
        if self.clip is not None and math.isfinite(norm):
            share *= min(1.0, self.clip / (norm + 1e-6))
        torch._foreach_mul_(self._gradients(), share)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.drop_gradients()
        adapters_changed()
        self.training(False)
        self.norm = None
        return norm, self.scaler.is_enabled() and not math.isfinite(norm)

    def weights(self) -> dict[str, np.ndarray]:
        return {n: full(p.detach()).cpu().numpy().copy() for n, p in self.trained.items()}

    @torch.no_grad()
    def set_weights(self, tensors: dict[str, np.ndarray]) -> None:
        protocol.require_same_tensors(tensors, {n: p.shape for n, p in self.trained.items()})
        for name, parameter in self.trained.items():
            parameter.copy_(self._spread(torch.from_numpy(tensors[name]), parameter))
        adapters_changed()

    def _spread(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """On the device, and over the processes where `like` is."""
        if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
            return tensor.to(self.device)
        return torch.distributed.tensor.distribute_tensor(
            tensor.to(self.device), like.device_mesh, like.placements
        )

    def state(self) -> dict[str, np.ndarray]:
        out = {f"weight/{n}": w for n, w in self.weights().items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                value = (
                    full(value.detach()).cpu().numpy()
                    if torch.is_tensor(value)
                    else np.asarray(value)
                )
                out[f"optimizer/{name}/{key}"] = value
        for number, group in enumerate(self.optimizer.param_groups):
            known = {k: np.asarray(group[k]) for k in OF_GROUPS if k in group}
            out |= {f"group/{number}/{k}": v for k, v in known.items()}
        return out | {f"scaler/{k}": np.asarray(v) for k, v in self.scaler.state_dict().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.set_weights(protocol.tensors_in(state, "weight"))
        for name, parameter in self.trained.items():
            if kept := protocol.tensors_in(state, f"optimizer/{name}"):
                self.optimizer.state[parameter] = {
                    k: self._optimizer_value(k, v, parameter) for k, v in kept.items()
                }
            else:  # of before the first update
                self.optimizer.state.pop(parameter, None)
        for number, group in enumerate(self.optimizer.param_groups):
            kept = protocol.tensors_in(state, f"group/{number}")
            group.update({k: v.item() for k, v in kept.items()})
        if scaler := {k: v.item() for k, v in protocol.tensors_in(state, "scaler").items()}:
            self.scaler.load_state_dict(scaler)

    def _optimizer_value(self, key: str, value: np.ndarray, parameter: torch.Tensor) -> Any:
        if key == "step":  # a tensor for torch, a number for bitsandbytes
            if not isinstance(self.optimizer, torch.optim.AdamW):
                return int(value)
            return torch.tensor(value, device=self.optimizer.state[parameter]["step"].device)
        return self._spread(torch.from_numpy(value.copy()), parameter)
