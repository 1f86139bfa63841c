"""What runs when, how many bytes move, and how many are there: in computed times, so that no clock decides."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from offloads import BATCHES, COMMON, MODELS, TASK, micro_opt, offloaded, steps

from labkit.errors import LabError
from labkit.ledger import Ledger
from labkit.memory.timeline import COMPUTE, DOWNLOAD, UPLOAD, overlapped
from labkit.zeroth.offload.engine import Engine
from labkit.zeroth.offload.roofline import Machine
from labkit.zeroth.offload.simulate import SimulatedBus

MS = 1e6  # bytes of a copy of one millisecond, at 1 GB/s


def run(count: int, compute: float, copy: float = 1.0, overlap: bool = True, head: float = 0.0, **settings):
    """Steps of 4 blocks, each pass over one `compute` ms and each copy `copy` ms; the method and the bus."""
    model = micro_opt(layers=4)
    nbytes = offloaded(**COMMON)
    nbytes.prepare(model, TASK, 1)
    size = nbytes.engine.store.largest[0]
    nbytes.close()
    lasts = {"block": compute, "head": head}
    bus = SimulatedBus(size / MS / copy, lambda name: lasts.get(name.split()[0], 0.0), overlap)
    method = offloaded(**COMMON, bus=bus, **settings)
    steps(method, model, count)
    return method, bus


def blocks(bus, lane):
    """(number of the block, when it began, when it ended) of a lane's spans."""
    spans = [s for s in bus.timeline.spans() if s.lane == lane and s.name.startswith("block")]
    return [(int(s.name.split()[1].split(".")[0]), s.start_ms, s.end_ms) for s in spans]


def test_the_order_is_algorithm_1s():
    """U(i + 1), C(i) and O(i − 1) at the same time, each only after what it needs."""
    method, bus = run(1, compute=1.0, copy=1.0, head=0.5, write_back=1)
    method.step(BATCHES[1])  # the second step is the first with something to write back
    begin = method.engine.slots.uploads // method.engine.store.largest[0]
    ups, downs, passes = blocks(bus, UPLOAD), blocks(bus, DOWNLOAD), blocks(bus, COMPUTE)
    assert [n for n, *_ in ups] == [n % 4 for n in range(begin)] and begin == 2 * 4 + 3
    assert [n for n, *_ in passes] == [n for n in range(4) for _ in "+-"] * 2
    assert [n for n, *_ in downs] == [0, 1, 2, 3]
    second = passes[8:]
    for n in range(4):
        arrived = ups[4 + n][2]
        (_, first, _), (_, _, done) = second[2 * n], second[2 * n + 1]
        assert arrived <= first and done <= downs[n][1]
        assert ups[4 + n][1] >= 0 and (n == 0 or downs[n - 1][1] >= second[2 * n - 1][2])
    middle = second[2][1], second[3][2]  # C(1): meanwhile block 2 comes and block 0 goes
    inside = [
        lane for lane, found in ((UPLOAD, ups), (DOWNLOAD, downs)) for _, a, b in found if _overlap((a, b), middle)
    ]
    assert set(inside) == {UPLOAD, DOWNLOAD}
    head = [s for s in bus.timeline.spans() if s.name.startswith("head")][-2:]
    assert downs[3][1] == head[0].start_ms == second[-1][2], "the last block goes while the head computes"
    following = min(a for n, a, _ in ups[8:])
    assert following < second[-1][2], "the next step's blocks come while this one computes"


def _overlap(a, b):
    return max(a[0], b[0]) < min(a[1], b[1])


@pytest.mark.parametrize(
    ("compute", "write_back", "slots", "expected"),
    # Four blocks: the bus decides (2 ms each), or two passes of each do (3 ms).
    [(0.5, 0, 3, 4 * 2.0), (3.0, 0, 2, 4 * 6.0), (3.0, 1, 3, 4 * 6.0), (0.5, 1, 3, 4 * 2.0)],
)
def test_a_step_takes_the_longer_of_bus_and_arithmetic(compute, write_back, slots, expected):
    method, bus = run(2, compute, 2.0, write_back=write_back, slots=slots)
    before = bus.now_ms
    for _ in range(3):
        method.step(BATCHES[0])
    assert (bus.now_ms - before) / 3 == pytest.approx(expected, rel=0.05)
    busy = min(1.0, 4 * 2 * compute / expected)
    assert overlapped(bus.timeline.spans()) >= 0.8 * busy


def test_without_overlap_everything_is_added_up():
    method, bus = run(3, 0.5, 2.0, overlap=False, write_back=1)
    before = bus.now_ms
    method.step(BATCHES[0])
    assert bus.now_ms - before == pytest.approx(4 * (2.0 + 2 * 0.5 + 2.0))


def test_one_slot_waits_for_every_copy():
    method, bus = run(3, 1.0, 2.0, write_back=0, slots=1)
    before = bus.now_ms
    method.step(BATCHES[0])
    assert bus.now_ms - before == pytest.approx(4 * (2.0 + 2 * 1.0))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("write_back", [1, 2, 4])
def test_bytes_on_the_bus_and_on_the_device(write_back, parts):
    """P up and P / k down a step; on the device the slots, and what stays."""
    method = offloaded(**COMMON, write_back=write_back, parts=parts, slots=2)
    model = micro_opt(layers=2)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    steps(method, model, 4)
    slots, store = method.engine.slots, method.engine.store
    travel = sum(map(len, store.payloads))
    up, down = slots.uploads, slots.downloads
    went = [down]
    for n in range(4):
        method.step(BATCHES[n])
        went.append(slots.downloads)
    assert slots.uploads - up == 4 * travel and went[-1] - down == 4 // write_back * travel
    each = [b - a for a, b in pairwise(went)]
    assert max(each) - min(each) <= max(map(len, store.payloads)), "evenly spread over the steps"
    moves = [method._moves.made - version for version in store.versions]
    assert max(moves) <= write_back + 1
    stays = sum(p.numel() * p.element_size() for p in method._rest)
    assert len(slots.places) == 2 and method.device_bytes() == stays + 2 * max(map(len, store.payloads))
    assert method.predicted_bytes()["weights"] == method.device_bytes()
    alone = sum(e.nbytes for piece in store.pieces for e in piece.entries)
    assert stays + alone == whole
    assert len(store.pieces) == 2 * parts


def test_slots_of_a_third_hold_a_third():
    sizes = []
    for parts in (1, 3):
        method = offloaded(**COMMON, parts=parts)
        # Four equal matrices in the attention, and two that are four times as large: three equal parts.
        method.prepare(micro_opt(hidden_size=128, word_embed_proj_dim=128, ffn_dim=512), TASK, 1)
        sizes.append(method.engine.slots.nbytes)
        method.close()
    assert sizes[1] / sizes[0] == pytest.approx(1 / 3, rel=0.05)


def test_the_ledger_counts_the_device_and_the_host_apart():
    method, ledger = offloaded(**COMMON, slots=2), Ledger()
    method.prepare(MODELS["opt"](), TASK, 2)
    ledger.predicted = method.predicted_bytes()
    method.measured_step(BATCHES[0], ledger)
    assert ledger.residual("weights") == 0 and ledger.measured["gradients"] == 0
    assert ledger.host["weights"] >= sum(map(len, method.engine.store.payloads))


def test_passes_that_take_different_ways_are_refused():
    calls = []

    def uneven(model, task, batch):
        calls.append(0)
        return sum(task.loss(model, batch).item() for _ in range(len(calls)))

    method = offloaded(**COMMON, objective=uneven)
    method.prepare(MODELS["llama"](), TASK, 1)
    with pytest.raises(LabError, match="same order"):
        method.step(BATCHES[0])


def test_embedding_and_head_that_are_one_move_once(monkeypatch):
    """Tied, they are one of the trained tensors, and each of a walk's moves reaches it once."""
    moved = []
    made = Engine._catch_up_resident
    monkeypatch.setattr(
        Engine, "_catch_up_resident", lambda self, v: (moved.append((self._resident_version, v)), made(self, v))
    )
    method, model = offloaded(**COMMON, restore="walk"), MODELS["opt"]()
    steps(method, model, 3)
    names = [w.name for w in method._weights if "embed_tokens" in w.name or "lm_head" in w.name]
    assert names == ["lm_head.weight"]
    done = [(a, b) for a, b in moved if a != b]
    assert [a for a, _ in done[1:]] == [b for _, b in done[:-1]] and done[-1][1] == method._moves.made == 6


def test_the_roofline():
    machine = Machine(up=50.0, both=40.0, token_us=10.0, noise_ms=20.0)
    assert machine.bus_ms(10**9, 0) == pytest.approx(20.0)
    assert machine.bus_ms(10**9, 1) == pytest.approx(25.0)
    assert machine.bus_ms(10**9, 2) == pytest.approx(0.5e9 / 40e6 + 0.5e9 / 50e6)
    assert machine.compute_ms(1000, 3) == pytest.approx(20.0 + 4 * 20.0)
    uploaded = 20 * 10**9
    crossing = machine.crossing(uploaded, 1)
    assert machine.compute_ms(round(crossing), 1) == pytest.approx(machine.bus_ms(uploaded, 1), rel=1e-3)
    assert machine.step_ms(uploaded, round(crossing / 2)) == machine.bus_ms(uploaded, 1)
    assert machine.best_write_back(uploaded, 10) > machine.best_write_back(uploaded, round(2 * crossing)) == 1
    with pytest.raises(LabError):
        Machine(0.0, 1.0, 1.0, 1.0)


def test_a_simulated_run_trains_as_a_real_one():
    method, _ = run(2, 1.0)
    other = offloaded(**COMMON)
    model = micro_opt(layers=4)
    steps(other, model, 2)
    assert [row.loss for row in method.record.rows] == [row.loss for row in other.record.rows]
    with pytest.raises(LabError):
        SimulatedBus(0.0, lambda name: 1.0)
    assert torch.isfinite(torch.tensor([row.loss for row in other.record.rows])).all()
