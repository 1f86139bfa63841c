"""What a sharded LoRA training leaves on disk: its state for any number of ranks, and an adapter that peft reads.

FOLDER/state      torch.distributed.checkpoint: each rank writes the rows that it owns. DTensors know which ones these
                  are, so that another number of ranks reads the rows that it will own. Frozen weights, which are
                  in the base model's own checkpoint already, are left out: what is written is 12 bytes for each
                  value of the adapters.
FOLDER/adapter    peft's format: adapter_config.json and adapter_model.safetensors, whole, in fp32.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from labkit.errors import LabError
from labkit.parallel.fsdp_lora import FsdpLora

STATE, ADAPTER, INDEX = "state-", "adapter", ".metadata"


def states(folder: Path | str) -> list[Path]:
    """The whole states in a folder, the one with the most steps last."""
    found = [p for p in Path(folder).glob(f"{STATE}*") if (p / INDEX).is_file() and p.name[len(STATE) :].isdigit()]
    return sorted(found, key=lambda p: int(p.name[len(STATE) :]))


def _state(method: FsdpLora, progress: Tensor) -> dict[str, Any]:
    """The adapters and their moments by name: what DCP writes, or fills in place. Moments begin at zero."""
    found: dict[str, Any] = {"progress": progress}
    for name, parameter in _trained(method):
        state = method._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        tensors = {"weights": parameter.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        found |= {f"{kind}.{name}": tensor for kind, tensor in tensors.items()}
    return found


def _trained(method: FsdpLora) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in method._model.named_parameters() if p.requires_grad)


def save(method: FsdpLora, folder: Path | str) -> None:
    """Write state and adapter; all ranks call this between two steps, after `prepare`, with a folder that all see."""
    schedule, before = method._schedule, states(folder)
    place = Path(folder) / f"{STATE}{schedule.last_epoch}"
    progress = torch.tensor([schedule.last_epoch, schedule.get_last_lr()[0]], dtype=torch.float64)
    dcp.save(_state(method, progress), checkpoint_id=place)
    save_adapter(method, Path(folder) / ADAPTER)
    if dist.get_rank() == 0:
        for old in set(before) - {place}:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def save_adapter(method: FsdpLora, folder: Path | str) -> None:
    """Gather the adapters, which are small, and let rank 0 write them as peft does; all ranks call this."""
    whole = {f"base_model.model.{name}": p.full_tensor().cpu() for name, p in _trained(method)}
    if dist.get_rank() == 0:
        method.peft.save_pretrained(str(folder), state_dict=whole, save_embedding_layers=False)
    dist.barrier()


@torch.no_grad()
def load(method: FsdpLora, folder: Path | str) -> int:
    """Go on from `folder`, at any number of ranks, after `prepare` with the same model; all ranks call this.

    Returns:
        how many steps were made before.

    Raises:
        LabError: where there is no whole checkpoint, or one of other adapters.
    """
    progress, found = torch.zeros(2, dtype=torch.float64), states(folder)
    if not found:
        raise LabError(f"There is no whole state in {Path(folder).name}.", "Give the folder that --out named.")
    try:
        dcp.load(_state(method, progress), checkpoint_id=found[-1])
    except (CheckpointException, OSError, RuntimeError, ValueError) as error:
        why = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise LabError(
            f"No state of such a training could be read from {Path(folder).name} ({why.strip()[:160]}).",
            "Take the model, rank and targets that it was trained with.",
        ) from error
    done, rate = int(progress[0]), float(progress[1])
    for _, parameter in _trained(method):
        method._optimizer.state[parameter]["step"].fill_(done)
    method._schedule.load_state_dict({**method._schedule.state_dict(), "last_epoch": done, "_last_lr": [rate]})
    method._optimizer.param_groups[0]["lr"] = rate
    return done
