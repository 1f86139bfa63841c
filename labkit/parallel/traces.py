"""Which collectives a rank has called, by torch's flight recorder, and where ranks differ.

The recorder keeps the last calls of every process group in a ring in memory, for gloo in one and for NCCL in another
(torch/csrc/distributed/c10d/FlightRecorder.hpp); it costs a collective too little to be measured here. gloo compares
nothing: ranks that broadcast tensors of different shapes get wrong values without a word, and in an all-reduce the
one that gets more than it expects aborts. So the records are compared when a launch ends, well or badly. To have each
collective compared before it runs, set TORCH_DISTRIBUTED_DEBUG=DETAIL (`launch(..., check=True)`), which makes a small
one about seven times as slow. Neither sees send and recv.
"""

from __future__ import annotations

import json
from typing import Any

VARIABLE, LENGTH = "TORCH_FR_BUFFER_SIZE", "2000"
# Collectives in which every rank gives a tensor of one shape. The others may differ among ranks by right.
_ALIKE = {"all_reduce", "broadcast", "reduce", "all_gather", "_all_gather_base", "allgather"}
_NOT_COMPARED = ("send", "recv", "coalesced")


def record() -> list[dict[str, Any]]:
    """This process's collectives, oldest first: group, ranks, number, operation, shapes, whether it has ended."""
    import torch

    found = []
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        dump = getattr(torch._C._distributed_c10d, name, None)
        if dump is not None:
            text = json.loads(dump())
            found += [_entry(entry, text.get("pg_config", {})) for entry in text.get("entries", [])]
    return sorted(found, key=lambda entry: entry["time"])


def _entry(entry: dict[str, Any], groups: dict[str, Any]) -> dict[str, Any]:
    name = entry["process_group"][0]
    return {
        "group": f"{name} {groups.get(name, {}).get('ranks', '')}",
        "number": entry["collective_seq_id"],
        "operation": entry["profiling_name"].partition(":")[2].partition(" ")[0],
        "shapes": entry["input_sizes"],
        "dtypes": entry["input_dtypes"],
        "ended": bool(entry["retired"]),
        "time": entry["time_created_ns"],
        "p2p": bool(entry["is_p2p"]),
    }


def pending(trace: list[dict[str, Any]] | None) -> str:
    """The operation that a rank is in, or an empty string."""
    return trace[-1]["operation"] if trace and not trace[-1]["ended"] else ""


def difference(traces: dict[int, list[dict[str, Any]] | None]) -> str:
    """A sentence on the first collective that ranks called differently, or an empty string."""
    calls: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for rank, trace in traces.items():
        for entry in trace or []:
            if not entry["p2p"] and not any(word in entry["operation"] for word in _NOT_COMPARED):
                calls.setdefault((entry["group"], entry["number"]), {})[rank] = entry
    for (_, number), ranks in sorted(calls.items(), key=lambda item: min(e["time"] for e in item[1].values())):
        said = {rank: _said(entry) for rank, entry in ranks.items()}
        if len(set(said.values())) > 1:
            return f"The ranks differ in their collective number {number}: {_by_rank(said)}."
    return ""


def _said(entry: dict[str, Any]) -> str:
    operation = entry["operation"]
    if operation not in _ALIKE:
        return operation
    shapes = ", ".join(f"{shape} {dtype}" for shape, dtype in zip(entry["shapes"], entry["dtypes"], strict=False))
    return f"{operation} of {shapes}"


def _by_rank(said: dict[int, str]) -> str:
    groups: dict[str, list[int]] = {}
    for rank, what in sorted(said.items()):
        groups.setdefault(what, []).append(rank)
    return ", ".join(f"{named(ranks)} called {what}" for what, ranks in groups.items())


def named(ranks: list[int]) -> str:
    """'rank 1', 'ranks 0 and 2', 'ranks 0, 1 and 3'."""
    words = [str(rank) for rank in ranks]
    if len(words) == 1:
        return f"rank {words[0]}"
    return f"ranks {', '.join(words[:-1])} and {words[-1]}"
