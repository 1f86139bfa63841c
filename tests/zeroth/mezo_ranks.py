"""What ranks run in the tests of distributed MeZO."""

from __future__ import annotations

import torch
import torch.distributed as dist
from micro import Letters, micro_llama
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.errors import LabError
from labkit.zeroth.mezo import Mezo

STEPS = 3
SETTINGS = {"learning_rate": 3e-3, "perturbation_scale": 1e-2, "weight_decay": 0.1, "directions": 2}


def steps(method: Mezo, dtype: torch.dtype = torch.bfloat16, rows: int = 10) -> tuple[list[torch.Tensor], list[float]]:
    """Weights and losses after a few steps on the same batches."""
    task, model = Letters(), micro_llama().to(dtype)
    method.prepare(model, task, STEPS)
    losses = [method.step(task.batch(task.train[rows * i : rows * (i + 1)])).item() for i in range(STEPS)]
    method.close()
    return [p.detach().clone() for p in model.parameters()], losses


class Sent(TorchDispatchMode):
    """Bytes that collectives are given, and which collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.names = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.names.add(func._schema.name)
            given = args[1] if isinstance(args[1], list | tuple) else [args[1]]
            self.bytes += sum(t.numel() * t.element_size() for t in given if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


def all_ways(folder: str) -> dict:
    """Both ways to share work; a step with a NaN on one rank; what is refused."""
    found: dict = {}
    for mode in ("directions", "batch"):
        method = Mezo(**SETTINGS, ranks=mode, trajectory=f"{folder}/{mode}" if mode == "directions" else "")
        with Sent() as sent:
            found[mode] = steps(method, torch.float32 if mode == "batch" else torch.bfloat16)
        found[f"{mode} sent"] = sent.bytes, sorted(sent.names), method.meeting.traffic
        found[f"{mode} rows"] = method.record.rows
    found["walk"] = steps(Mezo(**SETTINGS, ranks="batch", restore="walk"))

    def broken(model, task, batch):
        return float("nan") if dist.get_rank() == 1 else task.loss(model, batch).item()

    method = Mezo(**{**SETTINGS, "directions": 1}, objective=broken)
    found["nan"] = (*steps(method), method.observed()["skipped"])
    for name, settings in {"walk": {"restore": "walk"}, "few": {"ranks": "batch"}}.items():
        try:
            steps(Mezo(**SETTINGS, **settings), rows=1)
        except LabError as error:
            found[f"refused {name}"] = str(error)
    return found
