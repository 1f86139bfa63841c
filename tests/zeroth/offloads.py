"""Models to offload, MeZO beside ZO-Offload, and a bus that copies as late as it may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from decoders import opt
from micro import Letters, micro_llama
from transformers import AutoModelForCausalLM

from labkit.memory.lanes import Ticket
from labkit.zeroth.mezo import Mezo
from labkit.zeroth.offload.method import ZoOffload

TASK = Letters()
COMMON = {"learning_rate": 3e-3, "perturbation_scale": 1e-2}
BATCHES = [TASK.batch(TASK.train[i : i + 4]) for i in range(0, 32, 4)]


def micro_opt(tied: bool = True, layers: int = 2, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = opt(layers, tied)
    config.init_std = 0.15
    config.update(changes)
    return AutoModelForCausalLM.from_config(config).eval()


def late_opt() -> torch.nn.Module:
    """As OPT-350M: norms after the blocks' halves, and embeddings narrower than the blocks."""
    return micro_opt(do_layer_norm_before=False, word_embed_proj_dim=16)


MODELS = {
    "llama": lambda: micro_llama().eval(),
    "opt": micro_opt,
    "opt-untied": lambda: micro_opt(tied=False, layers=1),
    "opt-late": late_opt,
}


def steps(method: Mezo, model: torch.nn.Module, count: int) -> list[float]:
    """Losses of `count` steps; the method stays open."""
    method.prepare(model, TASK, count)
    return [method.step(BATCHES[n % len(BATCHES)]).item() for n in range(count)]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two models' parameters are equal to the bit."""
    mine, others = dict(a.named_parameters()), dict(b.named_parameters())
    assert mine.keys() == others.keys()
    return all(torch.equal(p, others[name]) for name, p in mine.items())


def pair(name: str, count: int, dtype: torch.dtype = torch.float32, mezo: type[Mezo] = Mezo, **settings: Any):
    """A model after `count` steps of MeZO, their losses, and the settings that ZO-Offload shares with it."""
    model, common = MODELS[name]().to(dtype), {**COMMON, **settings}
    method = mezo(**common)
    losses = steps(method, model, count)
    method.close()
    return model, losses, common


class _Late(Ticket):
    def __init__(self, work: Any):
        self._work = work

    def gate(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work()

    wait = gate


class LateBus:
    """Every copy is made when somebody waits for it, and not before: what nobody waits for is not there."""

    overlap, on_gpu, timeline = True, False, None
    device = torch.device("cpu")

    def here(self) -> Ticket:
        return Ticket()

    def span(self, lane: str, name: str) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def upload(self, copies: Sequence, name: str, after: Sequence[Ticket] = ()) -> Ticket:
        def work() -> None:
            for ticket in after:
                ticket.gate()
            for target, source in copies:
                target.copy_(source)

        return _Late(work)

    download = upload

    def close(self) -> None:
        pass


def offloaded(**settings: Any) -> ZoOffload:
    return ZoOffload(device="cpu", **settings)
