"""Settings that are measured in ranks, for tables: many in one launch, and none lost where one of them fails.

A launch takes seconds, so it measures one setting after the other. Each rank writes what it found as soon as it has it.
Where a setting ends the launch, by memory that does not suffice say, those before it are there, it gets a note, and
another launch goes on with the next.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from labkit.bench.steps import rounded

Setting = TypeVar("Setting", bound=Any)
_SECONDS = 500.0  # that one launch may take


def measured(
    measure: Callable[[Setting], dict], settings: Sequence[Setting], world_size: int, device: str
) -> Iterator[tuple[Setting, list[dict], str]]:
    """Each setting with what `measure` found in every rank, or with nothing and a note.

    Args:
        measure: a function at the top of a module, called in all ranks alike; what it returns goes through JSON.
        settings: dataclasses.
        world_size, device: of the launch.
    """
    from labkit.parallel.launch import RankError, launch

    todo = list(settings)
    while todo:
        note = ""
        with tempfile.TemporaryDirectory() as folder:
            place = str(Path(folder) / "found")
            try:
                launch(_in_rank, world_size, measure, todo, place, timeout_s=_SECONDS, device=device, show=False)
            except RankError as error:
                note = f"failed: {error.cause[:300]}"
            found = _read(place, world_size)
        for setting, ranks in zip(todo, found, strict=False):
            yield setting, ranks, ""
        todo = todo[len(found) :]
        if todo:
            yield todo[0], [], note or "failed"
            todo = todo[1:]


def _in_rank(measure: Callable[[Setting], dict], settings: list[Setting], place: str) -> None:
    """Each setting in its turn, a line of JSON for each in this rank's file as soon as it is done."""
    import torch.distributed as dist

    from labkit.bench.workers import clear
    from labkit.parallel.group import device
    from labkit.parallel.progress import report

    for number, setting in enumerate(settings):
        report(number, len(settings))
        line = json.dumps(measure(setting))
        clear(device().type)
        with Path(f"{place}.{dist.get_rank()}").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        dist.barrier()  # or a rank that fails in the next setting would end others that have yet to write this one


def settle(device: Any) -> None:
    """Ranks begin what is timed together, with nothing left to do from before."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize()


def _read(place: str, ranks: int) -> list[list[dict]]:
    """For each setting that all ranks finished, what each of them wrote."""
    files = [Path(f"{place}.{rank}") for rank in range(ranks)]
    if not all(file.is_file() for file in files):
        return []
    each = [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files]
    return [list(lines) for lines in zip(*each, strict=False)]


def together(ranks: list[dict], sums: Sequence[str] = ()) -> dict[str, Any]:
    """One row of what ranks found: numbers as the sum of `sums` and the largest of the rest, where all have one."""
    row: dict[str, Any] = {}
    for name in ranks[0]:
        values = [rank[name] for rank in ranks]
        if None in values:
            row[name] = None
        elif isinstance(values[0], int | float):
            row[name] = rounded((sum if name in sums else max)(values), 4)
        else:
            row[name] = values[0]
    return row


def ranks_here(device: str, sizes: Sequence[int], on_cpu: int) -> list[int]:
    """Of these numbers of ranks, those for which there are GPUs, or on a CPU those up to `on_cpu`."""
    import torch

    most = torch.cuda.device_count() if device == "cuda" else on_cpu
    return [ranks for ranks in sizes if ranks <= most]


def row(columns: Sequence[str], setting: Any, **found: Any) -> dict[str, Any]:
    """All columns, None where nothing was found."""
    return dict.fromkeys(columns) | {"note": ""} | (asdict(setting) if setting is not None else {}) | found
