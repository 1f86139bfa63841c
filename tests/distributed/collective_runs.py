"""What ranks run to compare our collectives with torch's; each returns what it found wrong, as text."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from unittest import mock

import torch
import torch.distributed as dist

from labkit.errors import LabError
from labkit.parallel import collectives
from labkit.parallel.collectives import Traffic, all_gather, all_reduce, broadcast, chunk_sizes, reduce_scatter

SIZES = {
    torch.float32: (0, 1, 7, 840, 1001),
    torch.float64: (5,),
    torch.float16: (97,),
    torch.bfloat16: (97,),
    torch.int64: (3, 840),
}
LARGE = 1_000_003  # values: far more than a socket's buffers take while nobody receives


def here() -> torch.device:
    """Where the backend's tensors lie."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def values(rank: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """A rank's tensor: every rank can make every other's."""
    generator = torch.Generator().manual_seed(1000 * rank + numel)
    if not dtype.is_floating_point:
        return torch.randint(-(2**40), 2**40, (numel,), generator=generator).to(here())
    return torch.randn(numel, generator=generator, dtype=torch.float64).to(here(), dtype)


def in_ring_order(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum, chunk c from rank c + 1 on around to c, as the module says that it is added."""
    n = len(parts)
    cut = [part.tensor_split(n) for part in parts]
    order = [[cut[(c + 1 + k) % n][c] for k in range(n)] for c in range(n)]
    return torch.cat([functools.reduce(torch.add, chunk) for chunk in order])


@contextmanager
def watched(group: dist.ProcessGroup):
    """Record what is really sent, to whom, and whether a ring's messages are received while it sends."""
    seen = Traffic()
    seen.peers, seen.single = set(), 0
    start = dist.batch_isend_irecv

    def spy(operations):
        ways = [o.op for o in operations]
        seen.single += ways == [dist.isend]
        for operation in operations:
            if operation.op is dist.isend:
                seen.bytes += operation.tensor.numel() * operation.tensor.element_size()
                seen.messages += 1
                seen.peers.add(dist.get_group_rank(group, operation.peer))
        return start(operations)

    with mock.patch.object(dist, "batch_isend_irecv", spy):
        yield seen


class Sweep:
    """All checks on one group of ranks."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.rank, self.n = group, dist.get_rank(group), dist.get_world_size(group)
        self.wrong: list[str] = []

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(f"{self.n} ranks, rank {self.rank}: {what}")

    def run(self) -> list[str]:
        for dtype, sizes in SIZES.items():
            for numel in sizes:
                self.reductions(numel, dtype)
                self.gathering(numel, dtype)
        self.broadcasts()
        if self.n in (2, 8):
            self.reductions(LARGE, torch.float32)
        self.shapes()
        return self.wrong

    def reductions(self, numel: int, dtype: torch.dtype) -> None:
        parts = [values(rank, numel, dtype) for rank in range(self.n)]
        mine, what = parts[self.rank], f"{numel} of {dtype}"
        ours, theirs, counted = mine.clone(), mine.clone(), Traffic()
        with watched(self.group) as seen:
            all_reduce(ours, group=self.group, traffic=counted)
        dist.all_reduce(theirs, group=self.group)
        expected = in_ring_order(parts)
        self.expect(torch.equal(ours, expected), f"all_reduce of {what} is not the sum in the ring's order")
        self.near(ours, theirs, parts, f"all_reduce of {what}")
        formula = collectives.ring_traffic(numel, dtype.itemsize, self.rank, self.n)
        self.expect(counted == formula, f"{what}: counted {counted}, by formula {formula}")
        real = Traffic(seen.bytes, seen.messages)
        self.expect(real == counted, f"{what}: counted {counted}, sent {real}")
        self.expect(seen.peers <= {(self.rank + 1) % self.n}, f"{what}: sent to {seen.peers}")
        self.expect(numel < self.n or not seen.single, f"{what}: sent without receiving")

        part = reduce_scatter(mine, group=self.group)
        self.expect(torch.equal(part, expected.tensor_split(self.n)[self.rank]), f"reduce_scatter of {what}")
        self.expect(torch.equal(mine, values(self.rank, numel, dtype)), f"reduce_scatter of {what} changed its input")
        if numel and numel % self.n == 0:
            theirs = torch.empty_like(part)
            library = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
            library(theirs, mine, group=self.group)
            self.near(part, theirs, [p.tensor_split(self.n)[self.rank] for p in parts], f"reduce_scatter of {what}")
        if dtype.is_floating_point:
            mean = mine.clone()
            all_reduce(mean, "mean", group=self.group)
            self.expect(torch.equal(mean, expected / self.n), f"mean of {what}")

    def near(self, ours, theirs, parts, what: str) -> None:
        """Equal to the bit where order cannot matter, else to the rounding of n additions."""
        if self.n <= 2 or not ours.is_floating_point():
            self.expect(torch.equal(ours, theirs), f"{what} is not torch's to the bit")
            return
        bound = self.n * torch.finfo(ours.dtype).eps * sum(p.double().abs() for p in parts)
        self.expect(bool(((ours.double() - theirs.double()).abs() <= bound).all()), f"{what} is not torch's")

    def gathering(self, numel: int, dtype: torch.dtype) -> None:
        whole, counted = values(99, numel, dtype), Traffic()
        chunk = whole.tensor_split(self.n)[self.rank].clone()
        self.expect(chunk.numel() == chunk_sizes(numel, self.n)[self.rank], f"chunk of {numel}")
        found = all_gather(chunk, numel, group=self.group, traffic=counted)
        self.expect(torch.equal(found, whole), f"all_gather of {numel} of {dtype}")
        left_out = chunk_sizes(numel, self.n)[(self.rank + 1) % self.n]
        self.expect(counted.bytes == dtype.itemsize * (numel - left_out), f"all_gather of {numel}: {counted}")
        if numel and numel % self.n == 0:
            theirs = torch.empty_like(whole)
            library = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
            library(theirs, chunk, group=self.group)
            self.expect(torch.equal(found, theirs), f"all_gather of {numel} is not torch's")

    def broadcasts(self) -> None:
        sources = sorted({0, self.n // 2, self.n - 1})
        for src, (dtype, numel) in zip(
            sources, ((torch.float32, 11), (torch.int64, 0), (torch.float16, 3)), strict=False
        ):
            mine, counted = values(self.rank, numel, dtype), Traffic()
            with watched(self.group) as seen:
                broadcast(mine, src, group=self.group, traffic=counted)
            self.expect(torch.equal(mine, values(src, numel, dtype)), f"broadcast of {numel} from {src}")
            self.expect(
                (seen.bytes, seen.messages) == (counted.bytes, counted.messages), f"broadcast counted {counted}"
            )
            messages = torch.tensor(counted.messages, device=here())
            dist.all_reduce(messages, group=self.group)
            self.expect(messages.item() == (self.n - 1) * (numel > 0), f"broadcast of {numel}: {messages} messages")
            rounds = (self.n - 1).bit_length()  # the root sends in every round, and nobody more often
            self.expect(counted.messages <= rounds, f"broadcast: {counted.messages} messages, {rounds} rounds")

    def shapes(self) -> None:
        """A number, and a tensor whose values do not lie one behind the other."""
        number = torch.tensor(self.rank + 1.0, device=here())
        all_reduce(number, group=self.group)
        self.expect(number.item() == self.n * (self.n + 1) / 2, f"a number became {number}")
        base = values(self.rank, 60, torch.float64).view(5, 12)
        turned = base.clone().t()
        all_reduce(turned, group=self.group)
        whole = in_ring_order([values(r, 60, torch.float64).view(5, 12).t().reshape(-1) for r in range(self.n)])
        self.expect(torch.equal(turned, whole.view(12, 5)), "all_reduce of a transposed matrix")
        weight = torch.nn.Parameter(base[:, ::2])
        broadcast(weight, self.n - 1, group=self.group)
        last = values(self.n - 1, 60, torch.float64).view(5, 12)[:, ::2]
        self.expect(torch.equal(weight, last) and weight.requires_grad, "broadcast of a strided parameter")


def sweep(groups: list[list[int]]) -> list[str]:
    """All checks, on each group of ranks in turn."""
    wrong = []
    for ranks in groups:
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            wrong += Sweep(group).run()
        dist.barrier()
    return wrong + refusals()


def refusals() -> list[str]:
    """Every rank is told, and none of them waits for another."""
    x, wrong = torch.ones(4, dtype=torch.int64, device=here()), []
    calls = {
        "mean of integers": lambda: all_reduce(x, "mean"),
        "unknown operation": lambda: reduce_scatter(x, "product"),
        "chunk of another length": lambda: all_gather(x, 4),
        "no such rank": lambda: broadcast(x, dist.get_world_size()),
    }
    for name, call in calls.items():
        try:
            call()
            wrong.append(f"{name} was accepted")
        except LabError as error:
            if not (error.cause and error.remedy):
                wrong.append(f"{name}: {error}")
    return wrong
