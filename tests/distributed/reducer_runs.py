"""What ranks run to compare our reducers with torch's DDP; each returns what it found wrong, as text."""

from __future__ import annotations

from unittest import mock

import torch
import torch.distributed as dist
from collective_runs import here
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from labkit.errors import LabError
from labkit.parallel.averaging import Averager
from labkit.parallel.collectives import Traffic
from labkit.parallel.reducers import BucketedReducer, Reducer, broadcast_state

TINY = {"bucket_mib": 0.0001, "first_bucket_mib": 0.00005}  # six buckets; the last one holds one value
KINDS = {
    "naive torch": lambda net: Reducer(net, "torch"),
    "naive ring": lambda net: Reducer(net, "ring"),
    "one bucket torch": lambda net: BucketedReducer(net, "torch"),
    "one bucket ring": lambda net: BucketedReducer(net, "ring"),
    "many buckets torch": lambda net: BucketedReducer(net, "torch", **TINY),
    "many buckets ring": lambda net: BucketedReducer(net, "ring", **TINY),
}


class Net(nn.Module):
    """Odd sizes, a weight used twice, a buffer, and a branch that is used only if asked for."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.scale = nn.Parameter(torch.ones(1))
        self.head, self.norm = nn.Linear(7, 13), nn.LayerNorm(13)
        self.middle, self.tail, self.branch = nn.Linear(13, 13), nn.Linear(13, 3), nn.Linear(13, 3)
        self.register_buffer("offset", torch.randn(5))
        self.to(here())

    def forward(self, x, branch: bool = True):
        x = self.middle(self.middle(self.norm(self.head(self.scale * x))).tanh())
        return self.tail(x) + self.branch(x) if branch else self.tail(x)


def loss_of(net, step: int, **options):
    """Of this rank's own examples."""
    generator = torch.Generator().manual_seed(100 * dist.get_rank() + step)
    x, y = torch.randn(6, 7, generator=generator), torch.randn(6, 3, generator=generator)
    return nn.functional.mse_loss(net(x.to(here()), **options), y.to(here()))


def library(**options) -> tuple[nn.Module, nn.Module]:
    return (net := Net()), DistributedDataParallel(net, **options)


def differ(net, other) -> str:
    """The first gradient that differs: to the bit on two ranks, whose sums commute; else by more than rounding."""
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        if (p.grad is None) != (q.grad is None):
            return f"{name} has a gradient in one of them only"
        if p.grad is None:
            continue
        same = torch.equal(p.grad, q.grad) if dist.get_world_size() == 2 else torch.allclose(p.grad, q.grad, 1e-5, 1e-7)
        if not same:
            return f"gradient of {name} is {(p.grad - q.grad).abs().max():.2g} away"
    return ""


def on_all_ranks(tensors) -> bool:
    """Whether every rank holds the same bits."""
    flat = torch.cat([t.detach().reshape(-1).double() for t in tensors])
    first = flat.clone()
    dist.broadcast(first, 0)
    return torch.equal(flat, first)


FAULTS = ("no all-reduce", "no division", "last bucket", "stale")


class Mutant(BucketedReducer):
    """`fault` names what is done wrong."""

    def __init__(self, model, fault: str, **options):
        self.fault = fault
        super().__init__(model, **options)

    def _bucket(self, indices):
        bucket = super()._bucket(indices)
        if self.fault == "stale":
            bucket.flat.normal_()  # as after some earlier step
        return bucket

    def _send(self):
        start, last = self.averager.start, self.buckets[-1].flat

        def faulty(flat):
            if self.fault == "no all-reduce" or (self.fault == "last bucket" and flat is last):
                return lambda: None
            if self.fault == "no division":
                return dist.all_reduce(flat, async_op=True).wait
            return start(flat)

        self.averager.start = faulty
        try:
            super()._send()
        finally:
            self.averager.start = start

    def _move(self, parameters, views):
        if self.fault == "stale":
            for parameter, view in zip(parameters, views, strict=True):
                parameter.grad = view
        else:
            super()._move(parameters, views)


def gradients(kinds=KINDS) -> list[str]:
    """Three steps by each kind, as torch's DDP, with `.grad` dropped and with it kept."""
    wrong = []
    for (kind, make), keep in ((item, keep) for item in kinds.items() for keep in (False, True)):
        ours, (theirs, ddp) = Net(), library()
        reducer = make(ours)
        for step in range(3):
            for net in (ours, theirs):
                net.zero_grad(set_to_none=not keep)
            loss_of(ours, step).backward()
            reducer.finish()
            loss_of(ddp, step).backward()
            if difference := differ(ours, theirs):
                wrong.append(f"{kind}, step {step}, keep={keep}: {difference}")
            if not on_all_ranks(p.grad for p in ours.parameters()):
                wrong.append(f"{kind}, step {step}: ranks hold different gradients")
        reducer.close()
        if any(p._post_accumulate_grad_hooks for p in ours.parameters()):
            wrong.append(f"{kind}: hooks are left")
    return wrong


def accumulation() -> list[str]:
    """Two backward passes that only add up, and one that sends, as torch's `no_sync`."""
    wrong = []
    for kind, make in KINDS.items():
        ours, (theirs, ddp) = Net(), library()
        reducer = make(ours)
        for step in (0, 3):
            ours.zero_grad()
            theirs.zero_grad()
            before = Traffic(reducer.traffic.bytes)
            with reducer.no_sync(), ddp.no_sync():
                for micro in (step, step + 1):
                    loss_of(ours, micro).backward()
                    loss_of(ddp, micro).backward()
            if reducer.traffic.bytes != before.bytes:
                wrong.append(f"{kind} sent while it accumulated")
            loss_of(ours, step + 2).backward()
            reducer.finish()
            loss_of(ddp, step + 2).backward()
            if difference := differ(ours, theirs):
                wrong.append(f"{kind}, from {step}: {difference}")
        reducer.close()
    return wrong


def traffic_and_bytes() -> list[str]:
    """A step sends 2 (N - 1) / N of the gradients, over all ranks to the byte; buckets are all there is of them."""
    wrong, n = [], dist.get_world_size()
    for kind, make in KINDS.items():
        net = Net()
        reducer, count = make(net), sum(p.numel() for p in net.parameters())
        for step in range(2):
            before = Traffic(reducer.traffic.bytes, reducer.traffic.messages)
            net.zero_grad()
            loss_of(net, step).backward()
            reducer.finish()
        sent, formula = reducer.traffic - before, reducer.predicted_traffic()
        if sent != (formula if "ring" in kind else Traffic()):
            wrong.append(f"{kind}: sent {sent}, by formula {formula}")
        total = torch.tensor(sent.bytes, device=here())
        dist.all_reduce(total)
        if "ring" in kind and total.item() != 2 * (n - 1) * 4 * count:
            wrong.append(f"{kind}: all ranks sent {total.item()} of {2 * (n - 1) * 4 * count}")
        if reducer.gradient_bytes() != 4 * count:
            wrong.append(f"{kind}: {reducer.gradient_bytes()} bytes of gradients of {4 * count}")
        reducer.close()
    return wrong


def overlap() -> list[str]:
    """Buckets leave during the backward pass, in one order, and gradients that stay in them are never copied."""
    wrong, net, seen = [], Net(), []
    reducer = BucketedReducer(net, **TINY)
    if len(reducer.buckets) != 6 or reducer.buckets[-1].flat.numel() != 1:
        wrong.append(f"buckets of {reducer.sizes()}")
    start = reducer.averager.start
    reducer.averager.start = lambda flat: (seen.append(flat.data_ptr()), start(flat))[1]
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda _: seen.append("ready"))
    loss_of(net, 0).backward()
    early = [place for place, event in enumerate(seen) if event != "ready" and "ready" in seen[place:]]
    if len(early) < 2:
        wrong.append("no bucket left before the last gradient was there")
    reducer.finish()
    if [event for event in seen if event != "ready"] != [b.flat.data_ptr() for b in reducer.buckets]:
        wrong.append("buckets left in another order, or not once each")
    net.zero_grad(set_to_none=False)
    with mock.patch.object(torch, "_foreach_copy_", side_effect=AssertionError("copied")):
        loss_of(net, 1).backward()
        reducer.finish()
    inside = {b.flat.untyped_storage().data_ptr() for b in reducer.buckets}
    if not {p.grad.untyped_storage().data_ptr() for p in net.parameters()} <= inside:
        wrong.append("a gradient lies outside the buckets")
    reducer.close()
    return wrong


def unused() -> list[str]:
    """An error that names what nobody, or this rank only, left out; or the mean over those that used it."""
    wrong, rank = [], dist.get_rank()
    for kind in (Reducer, BucketedReducer):
        for mine, options in ((True, {}), (rank == 0, {"find_unused": True}), (True, {"find_unused": True})):
            ours, (theirs, ddp) = Net(), library(find_unused_parameters=True)
            reducer = kind(ours, **options)
            for step, branch in ((0, True), (1, not mine)):  # after step 0, buckets hold something of the branch
                for net in (ours, ddp):
                    net.zero_grad()
                loss_of(ours, step, branch=branch).backward()
                try:
                    reducer.finish()
                    if not branch and not options:
                        wrong.append(f"{kind.__name__}: nobody used the branch, and nobody said so")
                except LabError as error:
                    if branch or options or "branch.weight, branch.bias" not in str(error):
                        wrong.append(f"{kind.__name__}: {error}")
                loss_of(ddp, step, branch=branch).backward()
            if options and (difference := differ(ours, theirs)):
                wrong.append(f"{kind.__name__}, {options}: {difference}")
            reducer.close()
    return wrong


def refusals() -> list[str]:
    """Misuse ends in an error on every rank, without anybody waiting."""
    wrong, reducer = [], BucketedReducer(net := Net())
    loss_of(net, 0).backward()
    cases = {
        "again": lambda: loss_of(net, 0).backward(),
        "requires": lambda: Reducer(Net().requires_grad_(False)),
        "fits": lambda: BucketedReducer(net, bucket_mib=0),
        "collective": lambda: Reducer(net, "tree"),
    }
    for word, call in cases.items():
        try:
            call()
            wrong.append(f"accepted: {word}")
        except LabError as error:
            if word not in error.cause or not error.remedy:
                wrong.append(f"{word}: {error}")
    reducer.finish()
    try:
        BucketedReducer(sparse := nn.Embedding(4, 3, sparse=True).to(here()))
        sparse(torch.tensor([1], device=here())).sum().backward()
        wrong.append("accepted: a sparse gradient")
    except LabError as error:
        if "dense" not in str(error):
            wrong.append(str(error))
    return wrong


def replicas() -> list[str]:
    """Models that start apart become rank 0's, with buffers; formats may be mixed."""
    wrong, first = [], Net(seed=0)
    for collective in ("torch", "ring"):
        net = Net(seed=dist.get_rank())
        net.head.weight = nn.Parameter(net.head.weight.detach().t().contiguous().t())  # not contiguous
        net.tail.to(torch.bfloat16)
        averager = Averager(collective, device=here())
        broadcast_state(net, averager)
        averager.close()
        for (name, mine), theirs in zip(net.state_dict().items(), first.state_dict().values(), strict=True):
            if not torch.equal(mine, theirs.to(mine.dtype)):
                wrong.append(f"{name} is not rank 0's after a broadcast by {collective}")
        reducer = BucketedReducer(net, collective)
        for p in net.parameters():
            p.grad = torch.full_like(p, dist.get_rank() + 1.0)
            [hook(p) for hook in p._post_accumulate_grad_hooks.values()]  # as autograd does
        reducer.finish()
        if not all(bool((p.grad == (dist.get_world_size() + 1) / 2).all()) for p in net.parameters()):
            wrong.append(f"{collective}: the mean of two formats")
        reducer.close()
    return wrong


def faulty_reducers() -> dict[str, list[str]]:
    """What `gradients` finds wrong with each mutant; the last bucket holds one value. "" does nothing wrong."""
    return {fault: gradients({fault: lambda net, fault=fault: Mutant(net, fault, **TINY)}) for fault in ("", *FAULTS)}


CHECKS = (gradients, faulty_reducers, accumulation, traffic_and_bytes, overlap, unused, refusals, replicas)
