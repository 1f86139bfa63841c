"""Torch's own tensor parallelism beside ours, and everything that a launch of the tests runs."""

from __future__ import annotations

import copy

import tensor_runs
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tensor_runs import BATCH, SEQ, SHAPES, batch, error, here, llama
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from labkit.bench.pipeline_steps import torchs_plan
from labkit.ledger import storage_bytes
from labkit.parallel.tensor import ColumnParallelLinear, RowParallelLinear
from labkit.parallel.tensor_llama import full_gradients, tensor_parallel
from labkit.parallel.tensor_traffic import Messages


class Pair(nn.Module):
    """Columns, an activation, rows."""

    def __init__(self, up, down):
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x):
        return self.down(F.silu(self.up(x)))


def torchs_pair(bias=False):
    """A pair of linear layers, ours and torch's on one input: output, gradients and parts of the weights; and sizes."""
    device, mesh = here(), init_device_mesh(here().type, (dist.get_world_size(),))
    torch.manual_seed(3)
    up, down = nn.Linear(16, 24, device=device), nn.Linear(24, 16, bias=bias, device=device)
    x = torch.randn(5, 3, 16, device=device)
    ours = Pair(ColumnParallelLinear(up), RowParallelLinear(down))
    theirs = Pair(copy.deepcopy(up), copy.deepcopy(down))
    parallelize_module(theirs, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    results = []
    for model in (ours, theirs):
        at = x.clone().requires_grad_()
        with Messages() as messages:
            y = model(at)
            (y * torch.arange(16, device=device)).sum().backward()
        local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
        grads = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]
        results.append(([y, at.grad, *local, *grads], (storage_bytes(local), messages.counts("all_reduce"))))
    (mine, sizes), (library, others) = results
    errors = [error(a, b) for a, b in zip(mine, library, strict=True)]
    return {"errors": errors, "sizes": sizes, "torch's": others}


def torchs_pair_with_bias():
    """Torch adds the bias to one rank's summand, we to the sum."""
    return torchs_pair(bias=True)


def torchs_model():
    """The model that torch's parallelize_module cuts, with torch's own loss on cut logits, beside ours."""
    mesh = init_device_mesh(here().type, (dist.get_world_size(),))
    whole, data = llama(**SHAPES["untied"]), batch()
    cut = tensor_parallel(copy.deepcopy(whole))
    loss = cut(**data).loss
    loss.backward()
    found, ours = {}, full_gradients(cut)
    for block in (False, True):
        peer = parallelize_module(copy.deepcopy(whole), mesh, torchs_plan(2, block))
        with loss_parallel():
            targets = F.pad(data["labels"], (0, 1), value=-100)[..., 1:]
            logits = peer(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
            with Messages() as messages:
                theirs = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
                theirs.backward()
        theirs = theirs.full_tensor() if isinstance(theirs, DTensor) else theirs
        grads = {n: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for n, p in peer.named_parameters()}
        local = [p.to_local() if isinstance(p, DTensor) else p for p in peer.parameters()]
        found[block] = {
            "loss": error(loss, theirs),
            "gradients": max(error(ours[n], grads[n]) for n in grads),
            "bytes": (storage_bytes(cut.parameters()), storage_bytes(local)),
            "backward": [c for c in messages.counts("all_reduce") if c == 4 * BATCH * SEQ * 32],
        }
    return found


def everything():
    """All of it, in one launch."""
    parts = [torchs_pair, torchs_pair_with_bias, torchs_model]
    names = ("whole_model", "pairs", "bytes_and_messages", "generation", "loss_alone", "refusals")
    return {part.__name__: part() for part in parts + [getattr(tensor_runs, name) for name in names]}
