"""Why a launch failed, in a sentence that names the rank, from what the ranks left behind."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field
from typing import Any

from labkit.parallel.folder import Folder
from labkit.parallel.stacks import Position, position, tells
from labkit.parallel.traces import difference, named, pending

# What a rank says whose peer is gone; never the cause.
_PEER_GONE = re.compile(r"[Cc]onnection (closed|reset|refused)|Broken pipe|remote process exited|Connection was likely")
_DETAIL = re.compile(
    r"Rank (\d+) is running collective: CollectiveFingerPrint\(SequenceNumber=\d+, OpType=(\w+)"
    r"(?:, TensorShape=(\[[\d, ]*\]))?"
)
_GLOO_SIZES = re.compile(r"op\.preamble\.length <= op\.nbytes\. (\d+) vs (\d+)")
_PHASES = {
    "load": "could not load the function and its arguments",
    "join": "could not join the process group",
    "run": "raised",
    "return": "computed a result that cannot be sent back",
    "end": "failed at its end with",
}


@dataclass
class Report:
    """What the launch tells.

    `rank` is None where no single rank is to blame; `met` is False where no group began; `missing` are the ranks that
    are in no collective.
    """

    ok: bool = True
    rank: int | None = None
    cause: str = ""
    remedy: str = ""
    traceback: str = ""
    others: dict[int, str] = field(default_factory=dict)
    met: bool = True
    missing: list[int] = field(default_factory=list)


def failed(folder: Folder, ranks: int, deaths: dict[int, tuple[float, int]]) -> Report:
    """Why the group failed.

    Args:
        ranks: number of them.
        deaths: of each rank that ended without a result, when (in seconds since 1970) and with which exit status.
    """
    errors = {rank: error for rank in range(ranks) if (error := folder.read_json(folder.of(rank, "error")))}
    differs = difference({rank: folder.read_json(folder.of(rank, "trace")) for rank in range(ranks)})
    first = min(errors, key=lambda rank: errors[rank]["time"]) if errors else None
    silent = {rank: death for rank, death in deaths.items() if rank not in errors and death[1] != 0}
    # A rank that was killed says nothing, and its peers notice sooner than its parent.
    killed = [rank for rank, (_, status) in silent.items() if status != -signal.SIGTERM]
    returned = [rank for rank in range(ranks) if folder.of(rank, "result").exists()]
    # SIGTERM is how torch elastic ends the others, so it is the cause only where there is no better one.
    killed = killed or ([] if returned else list(silent))
    if killed and (first is None or _PEER_GONE.search(errors[first]["message"])):
        rank = min(killed, key=lambda r: silent[r][0])
        report = _death(folder, rank, silent[rank][1], differs)
        report.others = {rank: error["traceback"] for rank, error in errors.items()}
        return report
    if first is None:
        return Report(False, None, "The ranks ended without a result, and without an error.", "Run it again.")
    return _raised(first, errors, differs, returned)


def _raised(first: int, errors: dict[int, dict[str, Any]], differs: str, returned: list[int]) -> Report:
    error = errors[first]
    report = Report(False, first, traceback=error["traceback"])
    detail = _DETAIL.findall(error["message"])
    if len(detail) == 2:
        said = sorted(
            {(int(rank), f"{operation.lower()} on {shape or 'nothing'}") for rank, operation, shape in detail}
        )
        calls = ", ".join(f"rank {rank} called {what}" for rank, what in said)
        report.cause = f"The ranks differ in a collective: {calls}."
        report.remedy = _ALIKE_REMEDY
    elif differs:
        report.cause, report.remedy = differs, _ALIKE_REMEDY
    elif error["lab"]:
        report.cause = f"Rank {first}: {error['message']}"
    elif _PEER_GONE.search(error["message"]):
        left = f" that {named(returned)}, which had returned, did not call" if returned else " that another broke off"
        report.cause = f"Rank {first} waited in a collective{left}."
        report.remedy = "Let every rank call the same collectives, the same number of times."
    else:
        message = " ".join(error["message"].split())[:300].rstrip(".")
        report.cause = f"Rank {first} {_PHASES[error['phase']]}: {error['type']}: {message}."
        report.cause = report.cause.replace("raised: ", "raised ").replace(": .", ".")
        report.remedy = _REMEDIES.get(error["phase"], "Its traceback says where.")
    return report


_ALIKE_REMEDY = "Give every rank the same collectives in the same order, on tensors of the same shape and dtype."
_REMEDIES = {
    "load": "Put what it needs in a module that the ranks can import, or in the notebook's cells.",
    "return": "Return plain data and tensors.",
}


def _death(folder: Folder, rank: int, status: int, differs: str) -> Report:
    log = folder.read_text(folder.of(rank, "log"), 20_000)
    fatal = log[log.rfind("Fatal Python error") :] if "Fatal Python error" in log else ""
    report = Report(False, rank, traceback=fatal.partition("\n\nExtension modules")[0])
    if sizes := _GLOO_SIZES.search(log):
        report.cause = (
            f"Rank {rank} aborted in a collective because it got {sizes[1]} bytes where it expected {sizes[2]}: "
            "the ranks gave tensors of different sizes."
        )
        report.remedy = f"{_ALIKE_REMEDY} With check=True the shapes are compared before."
    elif status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        report.cause = f"Rank {rank} was killed by {name}."
        report.remedy = "It came from outside this launch: run it again."
        if -status == signal.SIGKILL:
            report.remedy = "The system kills a process when memory runs out: take fewer ranks or smaller sizes."
        elif -status != signal.SIGTERM:
            report.cause = f"Rank {rank} crashed with {name}."
            report.remedy = "The end of its output says where."
    else:
        report.cause = f"Rank {rank} ended with exit status {status} before it returned a result."
        report.remedy = "Look at the end of its output."
    return report


def hanging(folder: Folder, ranks: int, why: str) -> Report:
    """Which rank the others wait for, when `why` ended a launch ('after 20 s', say)."""
    done = [rank for rank in range(ranks) if folder.of(rank, "result").exists()]
    places = {rank: where(folder, rank) for rank in range(ranks) if rank not in done}
    traces = {rank: folder.read_json(folder.of(rank, "trace")) for rank in places}
    waits = {rank: places[rank].collective or pending(traces[rank]) for rank in places}
    differs = difference(traces)
    waiting = [rank for rank in places if waits[rank]]
    missing = [rank for rank in places if not waits[rank]]
    rank = next(iter([*missing, *places]), None)
    report = Report(False, rank, remedy="Let every rank reach the same collectives.")
    report.met = bool(done) or not waits or any(what != "init_process_group" for what in waits.values())
    report.missing = missing
    report.others = {rank: spot.stack for rank, spot in places.items()}
    if report.rank is not None:
        report.traceback = report.others.pop(report.rank)
    if differs:
        report.cause, report.remedy = f"Ended {why}: {differs[0].lower()}{differs[1:]}", _ALIKE_REMEDY
    elif waiting and (missing or done):
        absent = _absent(missing, done, places)
        report.cause = f"Ended {why}: {_waiting(waiting, waits, places)} and {absent}."
    elif waiting:
        report.cause = f"Ended {why}: {_waiting(waiting, waits, places)}."
    else:
        spots = "; ".join(f"rank {rank} {_at(places[rank])}" for rank in missing) or "no rank had begun"
        report.cause = f"Ended {why}: {spots}."
        report.remedy = "Allow more by timeout_s, or do less."
    return report


def where(folder: Folder, rank: int) -> Position:
    """Where `rank` said that it is."""
    return position(*_dump(folder, rank))


def told_where(folder: Folder, rank: int) -> bool:
    """Whether `rank` has said where it is."""
    return tells(*_dump(folder, rank))


def _dump(folder: Folder, rank: int) -> tuple[str, int]:
    """The stacks that `rank` wrote, and which thread runs the user's code."""
    state = folder.read_json(folder.of(rank, "state")) or {}
    return folder.read_text(folder.of(rank, "stack")), state.get("thread", 0)


def _waiting(ranks: list[int], waits: dict[int, str], places: dict[int, Position]) -> str:
    groups: dict[str, list[int]] = {}
    for rank in ranks:
        frame = places[rank].frame
        spot = f" ({frame.place})" if frame else ""
        groups.setdefault(f"{waits[rank]}{spot}", []).append(rank)
    said = [f"{named(same)} {'waits' if len(same) == 1 else 'wait'} in {what}" for what, same in groups.items()]
    return ", ".join(said)


def _absent(missing: list[int], done: list[int], places: dict[int, Position]) -> str:
    parts = [f"rank {rank}, which never got there, {_at(places[rank])}" for rank in missing]
    if done:
        parts.append(f"{named(done)} had already returned")
    return ", ".join(parts)


def _at(spot: Position) -> str:
    return f"is at {spot.frame.place}" if spot.frame else "does not answer"
