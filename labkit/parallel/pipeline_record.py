"""What a stage of a pipeline did when, and how many bytes it kept for its backward passes meanwhile."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labkit.memory.timeline import COMPUTE, Timeline
from labkit.parallel.pipeline_schedule import Action, Ran


class SavedBytes:
    """Bytes of the storages that autograd saved in `counting` and that are alive: `now`, and at most, `peak`.

    A storage counts until it is freed, whoever holds it. What is there anyway does not: the model's weights and
    buffers, and its `inputs`.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Tensor] = ()):
        self.now = self.peak = 0
        known = (*model.parameters(), *model.buffers(), *inputs)
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is saved in the block."""
        with torch.autograd.graph.saved_tensors_hooks(self._saved, lambda tensor: tensor):
            yield

    def _saved(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage.nbytes())
        return tensor

    def _freed(self, count: int) -> None:
        self.now -= count


class Recorder:
    """Times the actions of one step of this rank on a clock that all ranks of the host share.

    Each rank's timeline begins at a moment of its own. The host's clock is the same for all processes, so that knowing
    these moments is enough; ranks on other hosts would need clocks that agree.

    Args:
        index: of this rank's stage.
        device: that it computes on.
        saved: counts what the actions save; nothing is counted without it.
        group: all its ranks make a recorder at the same time.
    """

    def __init__(
        self,
        index: int,
        device: torch.device,
        saved: SavedBytes | None = None,
        group: dist.ProcessGroup | None = None,
    ):
        self.saved, self._index, self._actions = saved, index, dict[str, Action]()
        self._timeline = Timeline(device)
        began = torch.tensor([time.perf_counter()], dtype=torch.float64, device=device)
        all_began = [torch.empty_like(began) for _ in range(dist.get_world_size(group))]
        dist.all_gather(all_began, began, group=group)
        self._later_ms = 1e3 * (began - torch.cat(all_began).min()).item()

    @contextmanager
    def running(self, action: Action) -> Iterator[None]:
        """Record the block as this action."""
        self._actions[str(action)] = action
        counting = nullcontext() if self.saved is None else self.saved.counting()
        with self._timeline.span(COMPUTE, str(action)), counting:
            yield

    def ran(self) -> list[Ran]:
        """All actions so far, in milliseconds since the first rank began. On CUDA this waits for the device."""
        return [
            Ran(self._index, self._actions[s.name], s.start_ms + self._later_ms, s.end_ms + self._later_ms)
            for s in self._timeline.spans()
        ]
