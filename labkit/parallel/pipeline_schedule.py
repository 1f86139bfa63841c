"""In which order the stages of a pipeline do their forward and backward passes, as lists that can be read and checked.

A model's layers are cut into p stages, a batch into m micro-batches; stage s runs forward k once it has stage s - 1's
output of k, and backward k once it has stage s + 1's gradient of k. Any order that respects this gives the same
gradients. Two orders:

    gpipe   all m forwards, then all m backwards. (Huang et al. 2018, arXiv:1811.06965)
    1f1b    p - 1 - s forwards to warm up, then one forward, one backward in turn, then the backwards that are left.
            (PipeDream-Flush: Narayanan et al. 2021, arXiv:2104.04473; the idea 2019, "PipeDream", SOSP)

The bubble. With equal times F and B a micro-batch everywhere, both orders take (m + p - 1)(F + B): the last stage
cannot begin before p - 1 forwards, and the first has p - 1 backwards to wait for. Of each stage's time

    (p - 1) / (m + p - 1)        stands still; in terms of the m (F + B) of work it is (p - 1) / m on top.

Both fractions are called the bubble, the second by Narayanan et al.

Memory. A micro-batch's activations live on a stage from its forward to its backward. GPipe holds all m of them; 1F1B
on stage s only min(m, p - s), however large m is. That is its whole advantage: the time is the same.

The paper on GPipe draws the backwards in descending order; here, as in torch and Megatron, they ascend, so that both
schedules add the gradients of the micro-batches in the same order and give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from labkit.errors import LabError, UnknownNameError

FORWARD, BACKWARD = "forward", "backward"
Durations = float | Sequence[float]


@dataclass(frozen=True)
class Action:
    """The forward or the backward pass of one micro-batch."""

    kind: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind} {self.micro_batch}"


@dataclass(frozen=True)
class Ran:
    """An action of a stage, from `start` to `end` on a clock that all stages share."""

    stage: int
    action: Action
    start: float
    end: float


Orders = Sequence[Sequence[Action]]


def schedule(name: str, stages: int, micro_batches: int) -> list[list[Action]]:
    """Each stage's actions in order.

    Args:
        name: "gpipe" or "1f1b".

    Raises:
        LabError: for no stages or no micro-batches; UnknownNameError for another name.
    """
    if name not in SCHEDULES:
        raise UnknownNameError.among("schedule", name, SCHEDULES)
    if stages < 1 or micro_batches < 1:
        cause = f"{stages} stages and {micro_batches} micro-batches make no pipeline."
        raise LabError(cause, "Give at least one of each.")
    return [SCHEDULES[name](stage, stages, micro_batches) for stage in range(stages)]


def _gpipe(stage: int, stages: int, micro_batches: int) -> list[Action]:
    return [Action(kind, k) for kind in (FORWARD, BACKWARD) for k in range(micro_batches)]


def _one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Action]:
    warm = min(micro_batches, stages - 1 - stage)
    steady = micro_batches - warm
    order = [Action(FORWARD, k) for k in range(warm)]
    for k in range(steady):
        order += [Action(FORWARD, warm + k), Action(BACKWARD, k)]
    return order + [Action(BACKWARD, k) for k in range(steady, micro_batches)]


SCHEDULES = {"gpipe": _gpipe, "1f1b": _one_forward_one_backward}


def check(orders: Orders, micro_batches: int) -> None:
    """Make sure that stages which follow these orders finish, and have done every micro-batch once.

    Messages carry no name: what a stage sends first is what its neighbour takes for the first. And a stage goes on in
    one direction only when its last message that way is taken: a communicator of NCCL does one thing after the other.
    So some orders are refused that could finish where messages are put aside.

    Raises:
        LabError: says which action is missing, comes twice or too early, which messages would be mistaken for each
            other, or which stages would wait for each other for ever.
    """
    for stage, order in enumerate(orders):
        _check_stage(stage, order, micro_batches)
    for stage in range(len(orders) - 1):
        for kind in (FORWARD, BACKWARD):
            here, there = ([a for a in order if a.kind == kind] for order in orders[stage : stage + 2])
            if here != there:
                first = next(pair for pair in zip(here, there, strict=True) if pair[0] != pair[1])
                raise LabError(
                    f"Stage {stage} runs {first[0]} where stage {stage + 1} runs {first[1]}, which would mistake "
                    "one message for another.",
                    f"Let all stages run their {kind}s in the same order.",
                )
    blocked = list(_blocked(orders))
    if blocked:
        raise LabError(
            "This is a deadlock: " + "; ".join(blocked) + ".",
            "Warm every stage up with at least as many forwards as the next stage; 1f1b takes one more.",
        )


def _check_stage(stage: int, order: Sequence[Action], micro_batches: int) -> None:
    wanted = {Action(kind, k) for kind in (FORWARD, BACKWARD) for k in range(micro_batches)}
    for action in order:
        if action not in wanted:
            raise LabError(f"Stage {stage} runs {action} twice, or there is none.", "List every action once.")
        wanted.remove(action)
        if action.kind == BACKWARD and Action(FORWARD, action.micro_batch) in wanted:
            raise LabError(f"Stage {stage} runs {action} before its forward.", "Run each forward first.")
    if wanted:
        missing = min(wanted, key=lambda a: (a.kind, a.micro_batch))
        raise LabError(f"Stage {stage} never runs {missing}.", "List every action once.")


def _blocked(orders: Orders) -> Iterator[str]:
    """Run all that can run; for each stage that does not finish, what it waits for."""
    places = [0] * len(orders)
    done: set[tuple[int, Action]] = set()
    moved = True
    while moved:
        moved = False
        for stage, order in enumerate(orders):
            if places[stage] < len(order) and not _lacks(orders, places, done, stage):
                done.add((stage, order[places[stage]]))
                places[stage] += 1
                moved = True
    for stage, order in enumerate(orders):
        if places[stage] < len(order):
            yield f"stage {stage} waits with {order[places[stage]]} for {_lacks(orders, places, done, stage)}"


def _lacks(orders: Orders, places: list[int], done: set[tuple[int, Action]], stage: int) -> str:
    """What the stage's next action waits for; nothing if it can run."""
    action = orders[stage][places[stage]]
    before, after = (-1, 1) if action.kind == FORWARD else (1, -1)
    if 0 <= stage + before < len(orders) and (stage + before, action) not in done:
        return f"stage {stage + before}"
    # Its last message this way must be taken, which is when the receiver has come to the action that needs it.
    sent = [a for a in orders[stage][: places[stage]] if a.kind == action.kind]
    if sent and 0 <= stage + after < len(orders) and (stage + after, sent[-1]) not in done:
        receiver = orders[stage + after]
        if receiver[places[stage + after] : places[stage + after] + 1] != [sent[-1]]:
            return f"stage {stage + after} to take {sent[-1]}"
    return ""


def simulate(orders: Orders, forward: Durations = 1.0, backward: Durations = 2.0, send: float = 0.0) -> list[Ran]:
    """When each action runs if every stage does the next one as soon as it can.

    Args:
        orders: a schedule that `check` has passed.
        forward, backward: how long an action takes, on every stage or a list with one value a stage.
        send: how long a message travels; stages compute meanwhile.
    """
    takes = {FORWARD: _of_stages(forward, len(orders)), BACKWARD: _of_stages(backward, len(orders))}
    ends: dict[tuple[int, Action], float] = {}
    clock, places = [0.0] * len(orders), [0] * len(orders)
    ran: list[Ran] = []
    while any(places[s] < len(order) for s, order in enumerate(orders)):
        before = len(ran)
        for stage, order in enumerate(orders):
            while places[stage] < len(order):
                action = order[places[stage]]
                source = stage + (-1 if action.kind == FORWARD else 1)
                if 0 <= source < len(orders) and (source, action) not in ends:
                    break
                ready = ends[source, action] + send if 0 <= source < len(orders) else 0.0
                start = max(clock[stage], ready)
                clock[stage] = ends[stage, action] = start + takes[action.kind][stage]
                ran.append(Ran(stage, action, start, clock[stage]))
                places[stage] += 1
        if len(ran) == before:
            raise LabError("This schedule does not finish.", "Let `check` say why.")
    return sorted(ran, key=lambda r: (r.start, r.stage))


def _of_stages(durations: Durations, stages: int) -> list[float]:
    found = [float(durations)] * stages if isinstance(durations, int | float) else list(durations)
    if len(found) != stages or min(found) <= 0:
        raise LabError(f"{found} are no durations of {stages} stages.", "Give one positive duration for each stage.")
    return found


def bubble(ran: Sequence[Ran]) -> float:
    """The share (0 to 1) of all stages' time, from the first start to the last end, in which they stood still."""
    if not ran:
        raise LabError("Nothing ran.", "Give the spans of at least one step.")
    stages = len({r.stage for r in ran})
    lasted = max(r.end for r in ran) - min(r.start for r in ran)
    return 1.0 - sum(r.end - r.start for r in ran) / (stages * lasted)


def ideal_bubble(stages: int, micro_batches: int) -> float:
    """(p - 1) / (m + p - 1), the bubble of both schedules where all stages take the same time."""
    return (stages - 1) / (micro_batches + stages - 1)


def live_peaks(orders: Orders) -> list[int]:
    """For each stage, the most micro-batches whose activations it holds at once."""
    peaks = []
    for order in orders:
        live = peak = 0
        for action in order:
            live += 1 if action.kind == FORWARD else -1
            peak = max(peak, live)
        peaks.append(peak)
    return peaks
