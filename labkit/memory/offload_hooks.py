"""How an offloaded optimizer holds on to a model: its hooks, and what it refuses."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.memory.host_adamw import HostAdamW

if TYPE_CHECKING:
    from labkit.memory.offload_optimizer import OffloadedAdamW


def release(handles: list, host: HostAdamW) -> None:
    """Take the hooks away; finish, and end the threads."""
    for handle in handles:
        handle.remove()
    host.close()


def attach(model: torch.nn.Module, params: list[Tensor], optimizer: weakref.ref[OffloadedAdamW]) -> list:
    """On each parameter, to take its gradient; on each module that owns some, to wait for them. Handles to remove.

    They know the optimizer by a weak reference: a model that outlives its optimizer does not keep it alive.
    """

    def collecting(index: int):
        def hook(parameter: Tensor) -> None:
            if (here := optimizer()) is not None:
                here._collect(index, parameter)

        return hook

    def waiting(owned: list[int]):
        def hook(_module: torch.nn.Module, _args: Any) -> None:
            if (here := optimizer()) is not None:
                here._wait_for(owned)

        return hook

    number = {parameter: index for index, parameter in enumerate(params)}
    handles: list = [p.register_post_accumulate_grad_hook(collecting(index)) for p, index in number.items()]
    for module in model.modules():
        owned = [number[p] for p in module.parameters(recurse=False) if p in number]
        if owned:
            handles.append(module.register_forward_pre_hook(waiting(owned)))
    return handles


def check(model: torch.nn.Module, params: list[Tensor], groups: list[dict], bucket_mib: float, buckets: int) -> None:
    """Raise LabError for what cannot be offloaded."""
    for group in groups:
        rates = (group["lr"], group["eps"], group["weight_decay"])
        if min(rates) < 0 or not all(0 <= beta < 1 for beta in group["betas"]):
            cause = f"AdamW cannot run with lr, eps, weight_decay {rates} and betas {group['betas']}."
            raise LabError(cause, "Rates are 0 or more, betas lie in [0, 1).")
    if bucket_mib <= 0 or buckets < 1:
        raise LabError(f"There is no room in {buckets} buckets of {bucket_mib} MiB.", "Give positive numbers.")
    owned = set(model.parameters())
    if not all(p in owned and p.requires_grad for p in params):
        raise LabError("A parameter is frozen, or not of this model.", "Offload parameters of the model that train.")
    if {(p.dtype, p.device) for p in params} != {(torch.float32, params[0].device)}:
        raise LabError("Offloading needs fp32 parameters on one device.", "Give the 16-bit format as `dtype`.")
    if not all(p.is_contiguous() for p in params):
        raise LabError("Offloading needs contiguous parameters.", "Call .contiguous() on them first.")


def refusal(gradient: Tensor | None, seen: bool, late: bool) -> LabError | None:
    """Why a gradient cannot be taken.

    Args:
        seen: another of the same parameter came before it in this step.
        late: the parameter's new value was still on its way when the step began.
    """
    if gradient is None or gradient.layout != torch.strided:
        return LabError("A gradient is not dense.", "Turn `sparse` off in the embedding.")
    if seen:
        return LabError("A gradient came twice before step().", "Offloading takes one backward pass a step.")
    if late:
        cause = f"A weight of shape {list(gradient.shape)} was used before it was back on the device."
        return LabError(cause, "Use each weight in the forward of the module that owns it, or set layerwise=False.")
    return None
