"""The same steps by torch's own means: FSDP2's CPU offload, and `save_on_cpu`."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labkit.bench.offload_steps import LEARNING_RATE, Plain
from labkit.ledger import storage_bytes
from labkit.memory.checkpointed import decoder_layers
from labkit.parallel.zero_torch import local_parts

if TYPE_CHECKING:
    from labkit.ledger.case import Case


class SavedOnHost(Plain):
    """torch's own way to move activations, `torch.autograd.graph.save_on_cpu`, around a plain step."""

    turns = True

    def resize(self, batch: int, seq_len: int, segments: int = 0) -> None:
        """Also counts what will move: every saved tensor, weights among them, each as often as it is saved."""
        super().resize(batch, seq_len, segments)
        moved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal moved
            moved += tensor.nbytes
            return tensor.detach()  # the tensor itself would hold the graph that holds it, for ever

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.step.forward()
        self.down = self.up = moved

    def forward(self) -> Tensor:
        """The loss, and all that autograd saves in pinned memory."""
        with torch.autograd.graph.save_on_cpu(pin_memory=self.on_gpu):
            return super().forward()

    def predicted(self) -> None:
        """There is no formula."""

    def host_bytes(self) -> int | None:
        """Most pinned bytes that were in use, as torch's allocator of pinned memory counts them."""
        peak = torch.cuda.host_memory_stats().get("active_bytes.peak") if self.on_gpu else None
        return None if peak is None else int(peak)


class Fsdp(Plain):
    """torch's own way to offload an optimizer: FSDP2 with one rank, parameters, gradients and AdamW on the host.

    fp32 parameters live on the host and cross the bus as they are; 16-bit weights are made of them on the device. One
    rank has nothing to gather, and its copies up run on the compute stream.

    Args:
        reshard: let a block's weights go after its forward pass, and copy them up again in the backward pass.
    """

    def __init__(self, case: Case, config: Any, reshard: bool):
        import torch.distributed as dist

        super().__init__(case, config, weights="float32")
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            store = dist.FileStore(str(Path(folder) / "store"), 1)
            dist.init_process_group("nccl" if self.on_gpu else "gloo", store=store, rank=0, world_size=1)
            stack.callback(dist.destroy_process_group)
            self._shard(reshard)
            self._end = stack.pop_all()
        # The plain step's optimizer and lists would keep the whole weights on the device.
        self.step.optimizer, self.step.trained, self.step.updated = None, [], []
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self._host_ms = 0.0

    def _shard(self, reshard: bool) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

        layers = decoder_layers(self.model)[2]
        inside, count = (sum(p.nbytes for p in module.parameters()) for module in (layers, self.model))
        self.down, self.up = count, count + inside * reshard
        options: dict[str, Any] = {
            "mesh": init_device_mesh(self.case.device, (1,)),
            "offload_policy": CPUOffloadPolicy(pin_memory=self.on_gpu),
            "mp_policy": MixedPrecisionPolicy(param_dtype=getattr(torch, self.case.weights)),
        }
        for layer in layers:
            fully_shard(layer, reshard_after_forward=reshard, **options)
        fully_shard(self.model, reshard_after_forward=False, **options)

    def update(self) -> None:
        """AdamW in the host's memory."""
        begun = time.perf_counter()
        self.optimizer.step()
        self._host_ms = 1e3 * (time.perf_counter() - begun)
        self.optimizer.zero_grad()

    def predicted(self) -> None:
        """There is no formula."""

    def host_bytes(self) -> int:
        """Parameters, as much again for gradients, and the optimizer's states."""
        states = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return 2 * storage_bytes(local_parts(self.model.parameters())) + storage_bytes(local_parts(states))

    def host_ms(self) -> float:
        """The optimizer's last step, in which the device has nothing to do."""
        return self._host_ms

    def close(self) -> None:
        """The group of one rank ends."""
        super().close()
        self._end.close()
