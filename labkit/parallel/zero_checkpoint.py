"""A sharded training on disk, each rank writing what it owns, to go on at any world size.

torch.distributed.checkpoint stores tensors in boxes: a rank writes boxes of a parameter, and whoever loads reads the
parts of boxes that it needs. A rank's part of a unit cuts parameters anywhere, and such a stretch of a matrix's values
is no box, but at most three: the end of a row, whole rows, the beginning of a row. So a checkpoint knows nothing of
units, parts and padding. It holds every parameter under its name and with its shape: `weights.NAME` (fp32 masters),
`exp_avg.NAME`, `exp_avg_sq.NAME`, and `progress`. Another world size loads it, and so does any other program, into
plain tensors or DTensors of torch's FSDP2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from labkit.errors import LabError
from labkit.parallel.zero import Zero

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


def boxes(begin: int, end: int, shape: Sequence[int]) -> Iterator[Box]:
    """The values `begin` to `end` of a tensor of `shape`, in row-major order, as few boxes in that order."""
    if begin >= end:
        return
    if len(shape) < 2:
        yield ((begin,), (end - begin,)) if shape else ((), ())
        return
    inner = prod(shape[1:])
    first, last = -(-begin // inner), end // inner  # whole rows
    if first > last:  # within one row
        yield from _row(last, begin - last * inner, end - last * inner, shape)
        return
    yield from _row(first - 1, begin - (first - 1) * inner, inner, shape)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    yield from _row(last, 0, end - last * inner, shape)


def _row(row: int, begin: int, end: int, shape: Sequence[int]) -> Iterator[Box]:
    """Values `begin` to `end` of one row."""
    for offsets, sizes in boxes(begin, end, shape[1:]):
        yield (row, *offsets), (1, *sizes)


class Pieces:
    """The boxes of one parameter that this rank owns, for torch.distributed.checkpoint to write or fill.

    Args:
        shape: of the whole parameter.
        values: this rank's stretch of its values, flat; a view of what is saved or filled.
        begin: where the stretch begins.
    """

    def __init__(self, shape: torch.Size, values: Tensor, begin: int):
        self.shape, self.values, self.found = shape, values, {}
        at = 0
        for offsets, sizes in boxes(begin, begin + len(values), shape):
            count = prod(sizes)
            self.found[torch.Size(offsets)] = values[at : at + count].view(sizes)
            at += count

    def size(self) -> torch.Size:
        """Of the whole parameter."""
        return self.shape

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.values)
        return [
            WriteItem(
                MetadataIndex(fqn, chunk.offsets),
                WriteItemType.SHARD,
                None,
                TensorWriteData(chunk, properties, self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets, box.shape) for offsets, box in self.found.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.found[index.offset]


class _Saver(DefaultSavePlanner):
    """Also finds boxes of `Pieces`."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        found = self.state_dict[index.fqn]
        return found.__get_tensor_shard__(index) if isinstance(found, Pieces) else super().lookup_object(index)


class _Loader(DefaultLoadPlanner):
    """Also finds boxes of `Pieces`; the names are flat already."""

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        found = self.state_dict[index.fqn]
        return found.__get_tensor_shard__(index) if isinstance(found, Pieces) else super().lookup_tensor(index)


def _state(method: Zero, progress: Tensor) -> dict[str, Any]:
    """Every parameter's stretch on this rank by name, for the fp32 weights and both moments."""
    found: dict[str, Any] = {"progress": progress}
    for unit in method.engine.units:
        state = method.optimizer.state[unit.master]
        flats = {"weights": unit.master.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        first = unit.own.start
        for slot in unit.slots:
            begin, end = (min(max(place, first), unit.own.stop) for place in (slot.begin, slot.end))
            for kind, flat in flats.items():
                values = flat[begin - first : end - first]
                found[f"{kind}.{slot.name}"] = Pieces(slot.parameter.shape, values, begin - slot.begin)
    return found


def save(method: Zero, folder: Path | str) -> None:
    """Write a training to `folder`, which all ranks see; all ranks call this between two steps, after `prepare`.

    DCP writes its index, without which nothing is loaded, last: a folder that was cut off is refused.
    """
    step = next(iter(method.optimizer.state.values()))["step"]
    schedule = method._schedule.last_epoch
    progress = torch.tensor([float(step), schedule, method.optimizer.param_groups[0]["lr"]], dtype=torch.float64)
    planner = _Saver(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.save(_state(method, progress), checkpoint_id=folder, planner=planner)


@torch.no_grad()
def load(method: Zero, folder: Path | str) -> None:
    """Go on from `folder`, at any stage and world size, after `prepare` with the same model; all ranks call this.

    Raises:
        LabError: where there is no whole checkpoint, or one of another model.
    """
    progress = torch.zeros(3, dtype=torch.float64)
    planner = _Loader(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        dcp.load(_state(method, progress), checkpoint_id=folder, planner=planner)
    except (dcp.api.CheckpointException, OSError, RuntimeError, ValueError) as error:
        cause = f"No checkpoint of this model could be read ({str(error).splitlines()[0][:160]})."
        raise LabError(cause, "Give the folder that `save` was given, and the same model.") from error
    step, epoch, rate = progress.tolist()
    for unit in method.engine.units:
        method.optimizer.state[unit.master]["step"].fill_(step)
        method.engine.publish(unit)
    method.engine.settle()
    method._schedule.load_state_dict({**method._schedule.state_dict(), "last_epoch": int(epoch), "_last_lr": [rate]})
    method.optimizer.param_groups[0]["lr"] = rate
    dist.barrier()
