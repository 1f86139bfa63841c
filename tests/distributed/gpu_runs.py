"""What runs on two GPUs: the stages beside torch's DDP, with their bytes."""

from __future__ import annotations

import torch
import torch.distributed as dist
import zero_checks as checks
from zero_checks import Problems, verdict
from zero_runs import STAGES, make

from labkit.ledger import Ledger
from labkit.parallel.ddp import TorchDDP
from labkit.parallel.group import device
from labkit.parallel.zero import Zero3
from labkit.parallel.zero_torch import TorchFsdp2


def trained(method) -> tuple[list[float], list]:
    """Losses of six steps, and the weights after them on the host."""
    net = checks.model(checks.wide()).to(device())
    method.prepare(net.train(), checks.TASK, checks.STEPS)
    losses = [method.step(batch).item() for batch in checks.batches()]
    method.close()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]  # FSDP2 leaves DTensors
    return losses, [p.detach().float().cpu() for p in whole]


def check_values(make, expected, atol: float) -> None:
    """The losses and weights of torch's DDP on the same GPUs, to rounding."""
    losses, weights = trained(make())
    assert torch.allclose(torch.tensor(losses), torch.tensor(expected[0]), atol=atol), (losses, expected[0])
    assert all(torch.allclose(a, b, atol=atol) for a, b in zip(weights, expected[1], strict=True)), "other weights"
    moved = [(a - p).abs().max() for a, p in zip(weights, checks.model(checks.wide()).parameters(), strict=True)]
    assert all(distance > 0 for distance in moved), "some weights were not updated"


def check_bytes(make) -> None:
    """Bytes of a rank and bytes sent are what the method predicts, and the allocator holds no more than 3 % more."""
    said = Problems()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    net, method = checks.model(checks.wide()).to(device()), make()
    method.prepare(net.train(), checks.TASK, checks.STEPS)
    data, ledger = checks.batches(), Ledger(predicted=method.predicted_bytes())
    method.measured_step(data[0], ledger)
    method.step(data[1])
    torch.cuda.synchronize()
    standing = torch.cuda.memory_allocated() - before
    states = sum(count for name, count in ledger.predicted.items() if name != "gradients")
    said.need(standing <= 1.03 * states + 2**20, f"{standing} bytes stand, {states} by formula")
    for name, count in ledger.predicted.items():
        said.need(ledger.measured[name] == count, f"{name}: {ledger.measured[name]} bytes, predicted {count}")
    seen = method.observed()
    sent = seen["all_gather_bytes"] + seen["reduce_scatter_bytes"]
    said.need(sent == method.predicted_traffic(), f"{sent} bytes sent, {method.predicted_traffic()} predicted")
    method.close()
    said.tell()


def stages() -> dict[str, str]:
    """Verdicts on every stage in both formats, and on FSDP2 by the same measure."""
    assert dist.get_backend() == "nccl" and device().type == "cuda"
    expected = trained(TorchDDP(**checks.SETTINGS, max_grad_norm=1e9))
    found = {"fsdp2": verdict(check_values, make(TorchFsdp2), expected, 1e-3)}
    for stage in STAGES:
        for weights in ("float32", "bfloat16"):
            kind, atol = make(stage, weights=weights), 1e-3 if weights == "float32" else 3e-2
            found[f"{stage.name} {weights}"] = verdict(check_values, kind, expected, atol)
            found[f"{stage.name} {weights} bytes"] = verdict(check_bytes, kind)
    rounded = make(Zero3, weights="bfloat16", hold_weights=False)
    found["rounded anew"] = verdict(check_values, rounded, trained(make(Zero3, weights="bfloat16")()), 0.0)
    found["rounded anew bytes"] = verdict(check_bytes, rounded)
    return found
