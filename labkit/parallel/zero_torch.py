"""torch's own sharded data parallelism as methods, to stand beside ZeRO's stages.

`torch.zero1`: ZeroRedundancyOptimizer shards states by whole parameters, over DDP, which all-reduces gradients; updated
parameters are broadcast. `torch.fsdp2`: `fully_shard` (Zhao et al. 2023, arXiv:2304.11277, in its second design) shards
every parameter by rows, layer by layer; it is stage 3, or with `reshard=False` stage 2 with weights that are gathered
once a step and stay until the backward pass has used them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import UnknownNameError
from labkit.ledger import Ledger, optimizer_tensors, saved_for_backward, storage_bytes
from labkit.memory.checkpointed import decoder_layers
from labkit.methods import FullFineTuning
from labkit.numerics.products import products_in
from labkit.parallel.data import shard_batch
from labkit.parallel.group import device, ranks_mesh
from labkit.parallel.zero import FORMATS
from labkit.tasks import Batch, Task


@dataclass
class TorchSharded(FullFineTuning):
    """What the two have in common: the global batch is shared out as in `labkit.parallel.zero.Zero`.

    Attributes:
        max_grad_norm: None for no clipping.
    """

    max_grad_norm: float | None = 1.0  # type: ignore[assignment]
    name: str = "torch"

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model as torch's library has it. Each method's own part."""
        raise NotImplementedError

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """Hand the model to torch's library, and build the optimizer and the schedule."""
        self._device = device()
        model.requires_grad_(True)
        super().prepare(self.wrap(model.to(self._device)), task, steps)

    def _gradients(self, batch: Batch) -> Tensor:
        """Gradients on this rank; the global loss."""
        self._optimizer.zero_grad(set_to_none=True)
        mine = shard_batch(batch, torch.distributed.get_rank(), torch.distributed.get_world_size())
        loss = self._loss(mine.batch.to(self._device)) * mine.weight
        loss.backward()
        mean = loss.detach().float().clone()
        torch.distributed.all_reduce(mean)
        return mean / torch.distributed.get_world_size()

    def _update_after_backward(self) -> None:
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._trained, self.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()

    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """Forward, backward, clip, update; the global loss."""
        mean = self._gradients(batch)
        self._update_after_backward()
        return mean

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step with this rank's true storages counted."""
        with self._saved() as saved:
            mean = self._gradients(batch)
        gradients = storage_bytes(local_parts(p.grad for p in self._trained if p.grad is not None))
        self._update_after_backward()
        weights = list(local_parts(self._model.parameters()))
        ledger.measured = {
            "weights": storage_bytes(weights),
            "gradients": gradients,
            "optimizer_states": storage_bytes(local_parts(self._states())),
            "buffers": storage_bytes(self._model.buffers(), but=weights),
            **saved,
        }
        return mean

    def _saved(self) -> AbstractContextManager[dict[str, int]]:
        """In which activations are counted, where weights can be told from them."""
        return saved_for_backward(self._model)

    def _states(self) -> Any:
        return optimizer_tensors(self._optimizer)


def local_parts(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """This rank's part of DTensors; plain tensors as they are."""
    return (t.to_local() if hasattr(t, "to_local") else t for t in tensors)


@dataclass
class TorchZero1(TorchSharded):
    """ZeroRedundancyOptimizer over DDP; fp32 weights, `compute_dtype` by autocast."""

    name: str = "torch.zero1"

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """In DDP, its gradients as views of its buckets."""
        return torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)

    def build_optimizer(self, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW for this rank's parameters."""
        from torch.distributed.optim import ZeroRedundancyOptimizer

        settings: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        return ZeroRedundancyOptimizer(trained, torch.optim.AdamW, **settings)

    @property
    def _local_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer.optim  # type: ignore[attr-defined]

    def _states(self) -> Any:
        return optimizer_tensors(self._local_optimizer)

    def predicted_bytes(self) -> dict[str, int]:
        """4 bytes a weight and 4 a gradient, and AdamW's moments and steps of the parameters that fell to this rank."""
        count = sum(p.numel() for p in self._trained)
        own = [p for group in self._local_optimizer.param_groups for p in group["params"]]
        states = 8 * sum(p.numel() for p in own) + 4 * len(own)
        return {"weights": 4 * count, "gradients": 4 * count, "optimizer_states": states}

    def state_dict(self) -> dict[str, Any]:
        """Weights, and of moments this rank's."""
        schedule, states = self._schedule.state_dict(), self._local_optimizer.state_dict()
        return {"weights": [p.detach() for p in self._trained], "optimizer": states, "schedule": schedule}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back, at the same world size."""
        with torch.no_grad():
            for parameter, saved in zip(self._trained, state["weights"], strict=True):
                parameter.copy_(saved)
        self._local_optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])


@dataclass
class TorchFsdp2(TorchSharded):
    """`fully_shard` on every decoder layer and on the root.

    The model stays sharded after `close`: its parameters are DTensors, and it gathers them where it is called.

    Attributes:
        weights: dtype in which weights are gathered and gradients reduced; the shards are fp32.
        reshard: release a layer after its forward, and gather it again for its backward.

    Raises:
        UnknownNameError: for a dtype that is not there.
    """

    weights: str = "float32"
    reshard: bool = True
    name: str = "torch.fsdp2"

    def __post_init__(self) -> None:
        if self.weights not in FORMATS:
            raise UnknownNameError.among("dtype of weights", self.weights, FORMATS)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Sharded, layer by layer."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        dtype = None if self.weights == "float32" else getattr(torch, self.weights)
        how: dict[str, Any] = {"mesh": ranks_mesh(), "mp_policy": MixedPrecisionPolicy(param_dtype=dtype)}
        for layer in decoder_layers(model)[2]:
            fully_shard(layer, reshard_after_forward=self.reshard, **how)
        fully_shard(model, **how)
        return model

    def computing(self) -> Any:
        """Products in the gathered weights' format."""
        return products_in(FORMATS[self.weights], self._device.type)

    def _gradients(self, batch: Batch) -> Tensor:
        with self.computing():
            return super()._gradients(batch)

    def _saved(self) -> AbstractContextManager[dict[str, int]]:
        """Not counted: gathered weights have storages of their own, which look like activations."""
        return nullcontext({})

    def predicted_bytes(self) -> dict[str, int]:
        """4 bytes of weights, 4 of gradients and 8 of moments for each value of this rank's rows."""
        count = sum(t.numel() for t in local_parts(self._trained))
        return {"weights": 4 * count, "gradients": 4 * count, "optimizer_states": 8 * count + 4 * len(self._trained)}
