"""Gradients averaged over ranks: one by one after the backward pass, or in buckets while it goes on.

Data parallelism (Li et al. 2020, "PyTorch Distributed", arXiv:2006.15704): every rank has the whole model and a part of
the batch; the mean of the ranks' gradients is the gradient of the whole batch, and equal updates keep equal replicas
equal.

One all-reduce a parameter, when all gradients are there, takes the backward pass's time plus for each of P parameters
the 2 (N - 1) α of a ring, and the network idles during the backward pass, the processor after it. Buckets cure both:

    backward   | layer 4 | layer 3 | layer 2 | layer 1 |
    network              | bucket 1 | bucket 2 | bucket 3 |      the last bucket alone comes after the backward pass

A bucket is a flat tensor; gradients are views into it. Backward goes through the layers from last to first, so buckets
are filled in the reverse order of the parameters, which models list in the order of use. A hook counts each gradient
that autograd has finished; when it was a bucket's last, the bucket is sent. Buckets go out in one order on all ranks,
whatever order they fill in, or rank 0's first bucket would be added to rank 1's second. Large buckets save messages,
small ones start earlier: 25 MiB, as in torch, with a first one of 1 MiB, for the network to have something to do soon.

A fresh gradient is moved into its view once, all of a bucket's in one kernel, and nothing is copied back: `p.grad` is
the view. As long as it stays there (accumulation, or `zero_grad(set_to_none=False)`), autograd adds in place and there
is no copy at all. torch's DDP does the same with `gradient_as_bucket_view=True`; without it, it holds buckets beside
the gradients, 4 bytes a parameter more. It also regroups its buckets after the first step by the order that it saw.

A rank whose loss does not depend on a parameter sends zeros for it, so that no other rank waits for ever, and then
raises an error that names it (torch's DDP does not send its bucket, and raises at the next forward). With
`find_unused`, ranks tell each other what they used: the mean over all ranks counts, and what nobody used gets no
gradient, so that AdamW leaves it alone. It costs a small all-reduce, and on CUDA a wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from labkit.errors import LabError
from labkit.ledger import storage_bytes
from labkit.parallel.averaging import Averager
from labkit.parallel.collectives import Group, Traffic, ring_traffic

MIB = 2**20
NAMED = 6  # parameters that an error lists


class Reducer:
    """What averages a model's gradients; here one all-reduce a parameter, when all are there.

    Use: `loss.backward()`, then `finish()`, then the optimizer.

    Args:
        model: its parameters that require gradients now are averaged. Sending rank 0's weights to all is not this
            class's job; see `broadcast_state`.
        collective: "torch" or "ring" (`labkit.parallel.averaging`).
        group: of whose ranks; None for all.
        find_unused: allow parameters that the loss does not depend on.

    Attributes:
        sync: False while gradients are only accumulated.

    Raises:
        LabError: where there is no process group, or nothing trains.
        UnknownNameError: for a collective that is not there.
    """

    def __init__(
        self, model: torch.nn.Module, collective: str = "torch", group: Group = None, find_unused: bool = False
    ):
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not trained:
            raise LabError("No parameter requires a gradient.", "Choose what trains before the reducer is made.")
        self.names, self.parameters = [name for name, _ in trained], [p for _, p in trained]
        self.averager = Averager(collective, group, self.parameters[0].device)
        self.find_unused, self.sync = find_unused, True

    @property
    def traffic(self) -> Traffic:
        """What this rank has sent so far, with "ring"."""
        return self.averager.traffic

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """In which backward passes only add up, on this rank; the first one outside sends the sum."""
        before, self.sync = self.sync, False
        try:
            yield
        finally:
            self.sync = before

    def finish(self) -> None:
        """Return when every `p.grad` is the ranks' mean (on CUDA: for what the current stream does from now on).

        Raises:
            LabError: for parameters without a gradient, after the others are averaged; see `find_unused`.
        """
        missing = {index for index, p in enumerate(self.parameters) if p.grad is None}
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.averager.start(parameter.grad)()
        self._settle(missing)

    def _settle(self, missing: set[int]) -> None:
        """Those that have no gradient here: none at all if nobody has, or an error."""
        if self.find_unused:
            used = torch.tensor([i not in missing for i in range(len(self.parameters))], dtype=torch.int32)
            used = used.to(self.parameters[0].device)
            dist.all_reduce(used, group=self.averager.group)
            for index in (used == 0).nonzero().flatten().tolist():
                self.parameters[index].grad = None
        elif missing:
            names = [self.names[index] for index in sorted(missing)]
            listing = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
            cause = f"On rank {self.averager.rank} the loss does not depend on {listing}."
            raise LabError(cause, "Freeze what is not used, or set find_unused=True.")

    def sizes(self) -> list[tuple[int, int]]:
        """Values of each all-reduce of a step, and bytes of one value."""
        return [(p.numel(), p.element_size()) for p in self.parameters]

    def predicted_traffic(self) -> Traffic:
        """What this rank sends in one step by a ring, by formula."""
        rings = [ring_traffic(n, size, self.averager.rank, self.averager.world_size) for n, size in self.sizes()]
        return Traffic(sum(t.bytes for t in rings), sum(t.messages for t in rings))

    def gradient_bytes(self) -> int:
        """Bytes of the storages that hold gradients now."""
        return storage_bytes(p.grad for p in self.parameters if p.grad is not None)

    def close(self) -> None:
        """Take hooks and threads away."""
        self.averager.close()


@dataclass
class Bucket:
    """Gradients that are sent together.

    Attributes:
        indices: of the parameters, in the order in which their gradients lie.
        flat: all their values.
        views: of each one's place in `flat`, in its shape.
        pending: gradients that backward has not finished yet.
    """

    indices: list[int]
    flat: Tensor
    views: list[Tensor]
    pending: int


def assign(parameters: list[Tensor], bucket_bytes: float, first_bytes: float) -> list[list[int]]:
    """Indices of the parameters in each bucket, in reverse order; buckets in the order in which they are begun.

    A bucket is closed when it holds `bucket_bytes`, the first one `first_bytes`, or more, and holds one dtype.
    """
    buckets: list[list[int]] = []
    opened: dict[torch.dtype, list[int]] = {}
    for index in reversed(range(len(parameters))):
        parameter = parameters[index]
        if parameter.dtype not in opened:
            buckets.append(opened.setdefault(parameter.dtype, []))
        bucket = opened[parameter.dtype]
        bucket.append(index)
        held = sum(parameters[i].numel() for i in bucket) * parameter.element_size()
        if held >= (first_bytes if bucket is buckets[0] else bucket_bytes):
            del opened[parameter.dtype]
    return buckets


class BucketedReducer(Reducer):
    """Averages buckets of gradients while the backward pass goes on.

    Args:
        model, collective, group, find_unused: see `Reducer`.
        bucket_mib, first_bucket_mib: MiB after which a bucket is full, and the first one.

    Attributes:
        buckets: in the order in which they are sent.

    Raises:
        LabError: as `Reducer`, and for buckets without room. Within a backward pass: for a gradient that is sparse, or
            that comes again after it was sent.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        collective: str = "torch",
        group: Group = None,
        find_unused: bool = False,
        bucket_mib: float = 25.0,
        first_bucket_mib: float = 1.0,
    ):
        if min(bucket_mib, first_bucket_mib) <= 0:
            raise LabError(f"No gradient fits into {min(bucket_mib, first_bucket_mib)} MiB.", "Give positive numbers.")
        super().__init__(model, collective, group, find_unused)
        indices = assign([*self.parameters], bucket_mib * MIB, first_bucket_mib * MIB)
        self.buckets = [self._bucket(chosen) for chosen in indices]
        self._fresh()
        places = ((bucket, place) for bucket in self.buckets for place in range(len(bucket.indices)))
        self._hooks = [
            self.parameters[bucket.indices[place]].register_post_accumulate_grad_hook(self._hook(bucket, place))
            for bucket, place in places
        ]

    def _bucket(self, indices: list[int]) -> Bucket:
        parameters = [self.parameters[index] for index in indices]
        sizes = [p.numel() for p in parameters]
        flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        views = [part.view(p.shape) for part, p in zip(flat.split(sizes), parameters, strict=True)]
        return Bucket(indices, flat, views, len(indices))

    def _fresh(self) -> None:
        """Nothing of a step is there yet."""
        self._seen: set[int] = set()
        self._ready: set[int] = set()
        self._waits: list[Callable[[], object]] = []
        for bucket in self.buckets:
            bucket.pending = len(bucket.indices)

    def _hook(self, bucket: Bucket, place: int) -> Callable[[Tensor], None]:
        index, view = bucket.indices[place], bucket.views[place]

        def hook(parameter: Tensor) -> None:
            if index in self._ready:
                cause = f"The gradient of {self.names[index]} came again after it was sent."
                raise LabError(cause, "Call finish() after each backward pass, or run all but the last in no_sync().")
            if parameter.grad is None or parameter.grad.layout != torch.strided:
                raise LabError(f"The gradient of {self.names[index]} is not dense.", "Turn `sparse` off.")
            self._seen.add(index)
            if not self.sync:
                # At once: with all gradients waiting outside, memory would hold them twice.
                self._move([parameter], [view])
                return
            self._ready.add(index)
            bucket.pending -= 1
            if not bucket.pending:
                self._send()

        return hook

    def _send(self) -> None:
        """Start the buckets that are complete, as far as all before them are."""
        while len(self._waits) < len(self.buckets) and not self.buckets[len(self._waits)].pending:
            bucket = self.buckets[len(self._waits)]
            self._move([self.parameters[index] for index in bucket.indices], bucket.views)
            self._waits.append(self.averager.start(bucket.flat))

    @torch.no_grad()
    def _move(self, parameters: list[torch.nn.Parameter] | list[Tensor], views: list[Tensor]) -> None:
        """Make each gradient its view; one that is not there is zero, not what the view held in the last step."""
        outside = [(p, view) for p, view in zip(parameters, views, strict=True) if p.grad is not view]
        fresh = [(view, p.grad) for p, view in outside if p.grad is not None]
        if fresh:
            torch._foreach_copy_([view for view, _ in fresh], [gradient for _, gradient in fresh])
        for parameter, view in outside:
            if parameter.grad is None:
                view.zero_()
            parameter.grad = view

    def finish(self) -> None:
        """As `Reducer.finish`; sends what no hook has completed, and waits for all."""
        missing = set(range(len(self.parameters))) - self._seen
        for bucket in self.buckets[len(self._waits) :]:
            bucket.pending = 0
        self._send()
        for wait in self._waits:
            wait()
        self._fresh()
        self._settle(missing)

    def sizes(self) -> list[tuple[int, int]]:
        """Values of each bucket, and bytes of one value."""
        return [(bucket.flat.numel(), bucket.flat.element_size()) for bucket in self.buckets]

    def gradient_bytes(self) -> int:
        """Bytes of the buckets, and of gradients that are in none."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return storage_bytes([*(bucket.flat for bucket in self.buckets), *gradients])

    def close(self) -> None:
        """Take hooks and threads away; gradients stay where they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        super().close()


def broadcast_state(model: torch.nn.Module, averager: Averager) -> None:
    """Put rank 0's parameters and buffers into every rank's model: replicas that start apart stay apart."""
    averager.broadcast([*model.parameters(), *model.buffers()])
