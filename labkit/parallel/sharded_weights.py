"""A model that comes into being in shards: no GPU and no process ever holds all of it.

Built as usual, a model of Ψ parameters in bf16 takes 2Ψ bytes before anything can be sharded, on every rank of a host:
eight ranks need 8 · 2Ψ bytes of host memory, or each GPU has to hold what it was to be spared. Here the modules are
made first, their parameters on torch's `meta` device, which has shapes and no memory. Then `fully_shard` cuts the
parameters, still without memory; then each rank allocates its own rows, and fills them:

    from a checkpoint   rank 0 reads it into host memory, once, and broadcasts one tensor after the other
    at random           each rank draws one whole tensor after the other on its device, and keeps its rows

Either way a device holds its rows and one whole tensor at a time, and what it holds in the end does not depend on the
number of ranks. (Zhao et al. 2023, arXiv:2304.11277, section 4.1, call the first half of this deferred initialization.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labkit.errors import LabError

STD = 0.02  # of weights that are drawn at random, as transformers has it for Llama and OPT
ADAPTERS = ("lora_A", "lora_B")


def skeleton(config: Any, dtype: torch.dtype) -> nn.Module:
    """A causal language model whose parameters have shapes and no memory; its buffers, which are small, are real."""
    from transformers import AutoModelForCausalLM

    with _parameters_without_memory():
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Parameters go to the `meta` device as soon as a module has them; `torch.device("meta")` takes buffers as well.

    A buffer holds what its module has computed, the frequencies of Llama's positions say, and nothing would bring that
    back.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def own_rows(whole: Tensor, rank: int, world_size: int) -> Tensor:
    """The rows of `rank`, a view: as `Shard(0)` cuts them, ⌈rows / world_size⌉ each, the last ranks fewer or none."""
    parts = whole.chunk(world_size)
    return parts[rank] if rank < len(parts) else whole[:0]


def allocate(model: nn.Module, here: torch.device) -> None:
    """Give each parameter of a sharded model that is on `meta` memory for this rank's rows, tied ones once."""
    tied: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            tied.setdefault(id(parameter), []).append((module, name))
    model._apply(lambda t: torch.empty_like(t, device=here) if t.is_meta else t.to(here))
    for (first, name), *others in tied.values():
        for module, other in others:  # `_apply` has made each of them anew
            setattr(module, other, getattr(first, name))


@torch.no_grad()
def fill(model: nn.Module, state: Mapping[str, Tensor] | None, seed: int = 0) -> None:
    """Fill this rank's rows of a sharded model; adapters start as LoRA does, A at random and B at zero.

    Args:
        state: on rank 0 the whole weights by name, as the model without adapters has them; None for random ones, as it
            is everywhere on other ranks.
        seed: of what is drawn.

    Raises:
        LabError: on all ranks, when a weight is missing in `state`.
    """
    known = [sorted(state) if state is not None else None]
    dist.broadcast_object_list(known, src=0)
    names = {name: plain_name(name) for name, _ in model.named_parameters() if not is_adapter(name)}
    if known[0] is not None and (missing := sorted(set(names.values()) - set(known[0]))):
        raise LabError(
            f"The checkpoint has no weight {missing[0]!r}.", "Take the checkpoint of the model that was built."
        )
    host = torch.Generator().manual_seed(seed)
    here = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            whole = _adapter(name, parameter, host)
        elif known[0] is None:
            whole = _random(name, parameter, here)
        else:
            whole = _received(parameter, state[names[name]] if state is not None else None)
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        local.copy_(own_rows(whole, dist.get_rank(), dist.get_world_size()) if local is not parameter else whole)


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is one of LoRA's, as peft calls them."""
    return any(part in ADAPTERS for part in name.split("."))


def plain_name(name: str) -> str:
    """The name that a weight has without adapters beside it."""
    return name.replace(".base_layer.", ".")


def _adapter(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    """On the host, whose generator draws the same on any machine: uniform up to 1/√columns, as `nn.Linear` starts."""
    if "lora_B" in name.split("."):
        return torch.zeros(parameter.shape)
    bound = 1 / math.sqrt(parameter.shape[1])
    return torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)


def _random(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    device = generator.device
    if parameter.dim() > 1:
        return torch.empty(parameter.shape, dtype=parameter.dtype, device=device).normal_(0, STD, generator=generator)
    return torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0, dtype=parameter.dtype, device=device)


def _received(parameter: Tensor, value: Tensor | None) -> Tensor:
    """The whole tensor, which rank 0 has."""
    whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    if value is not None:
        whole.copy_(value)
    dist.broadcast(whole, src=0)
    return whole
