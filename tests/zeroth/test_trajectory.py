"""A run is its rows: replayed bitwise, resumed after any end, a few bytes a step."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from micro import Letters, micro_llama

from labkit.errors import LabError
from labkit.training import train
from labkit.zeroth.mezo import Mezo, replay
from labkit.zeroth.mezo_adapters import MezoLora
from labkit.zeroth.trajectory import ROW, Row, Trajectory, whole

TASK = Letters()
STEPS = 6
SETTINGS = {
    "learning_rate": 3e-3,
    "perturbation_scale": 1e-2,
    "weight_decay": 0.1,
    "directions": 2,
    "schedule": "cosine",
}


def method(restore="exact", path=""):
    return Mezo(**SETTINGS, restore=restore, trajectory=str(path))


def run(restore, path="", dtype=torch.float32, steps=STEPS, **more):
    """A trained model, and the record."""
    model = micro_llama().to(dtype)
    record = train(model, TASK, method(restore, path), steps=steps, batch_size=8, progress=False, **more)
    return model, record


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize(
    ("restore", "dtype"),
    [("exact", torch.float32), ("exact", torch.bfloat16), ("walk", torch.float32), ("walk", torch.float16)],
    ids=str,
)
def test_a_stored_run_replays_to_the_same_weights_bitwise(tmp_path, restore, dtype):
    model, _ = run(restore, tmp_path / "t", dtype, evaluate_every=3)
    stored = Trajectory.read(tmp_path / "t")
    fresh = micro_llama().to(dtype)
    replay(fresh, stored)
    assert same(fresh, model) and not same(fresh, micro_llama().to(dtype))
    assert len(stored) == STEPS
    bytes_a_step = (len(stored.packed()) - len(Trajectory(stored.header).packed())) / STEPS
    assert bytes_a_step == 2 * ROW.size == 64


def test_a_row_is_bytes_that_say_when_they_are_damaged():
    rows = [Row(step, 2**64 - 1 - step, 0.5, 1e-3, 0.0, 0.7, 0) for step in (0, 0, 1, 1)]
    data = b"".join(row.packed() for row in rows)
    read = whole(data, 2)
    assert [r.seed for r in read] == [r.seed for r in rows] and read[0].learning_rate == pytest.approx(1e-3)
    for cut in range(len(data)):
        assert len(whole(data[:cut], 2)) == cut // (2 * ROW.size) * 2
    for at in range(0, len(data), 7):
        broken = bytearray(data)
        broken[at] ^= 4
        assert len(whole(bytes(broken), 2)) == at // (2 * ROW.size) * 2


@pytest.mark.parametrize(
    ("restore", "cut"), [("exact", 1), ("exact", 3 * 64 + 32), ("walk", 3 * 64), ("walk", 5 * 64 + 61)]
)
def test_a_file_cut_off_anywhere_is_gone_on_with(tmp_path, restore, cut):
    """Its first steps come from their rows, without a forward pass; weights and losses are those of a run in one go."""
    model, record = run(restore, tmp_path / "whole", torch.bfloat16)
    data = (tmp_path / "whole").read_bytes()
    begin = len(Trajectory(Trajectory.read(tmp_path / "whole").header).packed())
    (tmp_path / "part").write_bytes(data[: begin + cut])
    calls, real = [], Letters.loss
    again = micro_llama().to(torch.bfloat16)
    task = Letters()
    task.loss = lambda *args: (calls.append(0), real(task, *args))[1]
    other = train(again, task, method(restore, tmp_path / "part"), steps=STEPS, batch_size=8, progress=False)
    assert same(again, model) and other.losses == pytest.approx(record.losses, rel=1e-6)
    assert len(calls) == 4 * (STEPS - cut // 64)
    assert (tmp_path / "part").read_bytes() == data


def test_a_state_is_the_trajectory_and_training_goes_on_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.training.SAVE_EVERY_SECONDS", 0.0)
    model, record = run("exact")

    class Ended(Exception):
        pass

    class Ending(Mezo):
        def step(self, batch):
            if self._done == 4:
                raise Ended
            return super().step(batch)

    state = tmp_path / "state.pt"
    with pytest.raises(Ended):
        train(micro_llama(), TASK, Ending(**SETTINGS), steps=STEPS, batch_size=8, progress=False, resume=state)
    assert state.stat().st_size < 12_000, "rows and generators, no weights"
    again = micro_llama()
    other = train(again, TASK, method(), steps=STEPS, batch_size=8, progress=False, resume=state)
    assert same(again, model) and other.losses == pytest.approx(record.losses, rel=1e-6)


def test_other_runs_and_other_weights_are_refused(tmp_path):
    run("exact", tmp_path / "t", steps=2)
    with pytest.raises(LabError, match=r"another run: .*seed"):
        Mezo(**SETTINGS, seed=1, trajectory=str(tmp_path / "t")).prepare(micro_llama(), TASK, 2)
    with pytest.raises(LabError, match=r"another run: .*fingerprint"):
        method(path=tmp_path / "t").prepare(micro_llama(seed=1), TASK, 2)
    with pytest.raises(LabError, match="not the weights"):
        replay(micro_llama(seed=1), Trajectory.read(tmp_path / "t"))
    (tmp_path / "text").write_text("hello")
    for wrong in ("text", "missing"):
        with pytest.raises(LabError, match=r"no trajectory|cannot be read"):
            Trajectory.read(tmp_path / wrong)


def test_an_adapters_run_replays_onto_the_adapters_it_began_with(tmp_path):
    model = micro_llama()
    lora = MezoLora(rank=2, learning_rate=3e-3, trajectory=str(tmp_path / "t"))
    train(model, TASK, lora, steps=3, batch_size=8, progress=False)
    fresh = micro_llama()
    torch.manual_seed(0)
    MezoLora(rank=2).choose(fresh, TASK)
    replay(fresh, Trajectory.read(tmp_path / "t"))
    assert same(fresh, model)


VICTIM = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
sys.path.insert(0, sys.argv[3])
from test_trajectory import run, weights
model, _ = run(sys.argv[4], sys.argv[1], torch.bfloat16, steps=int(sys.argv[5]))
torch.save(weights(model), sys.argv[1] + ".weights")
"""


@pytest.mark.parametrize("restore", ["exact", "walk"])
def test_a_killed_process_goes_on_to_the_same_weights(tmp_path, restore):
    """Killed at a random moment of its training; what goes on from its file ends where an undisturbed run does."""
    steps, path, here = 16, tmp_path / "t", Path(__file__).parent
    command = [sys.executable, "-c", VICTIM, str(path), str(here.parent), str(here), restore, str(steps)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    enough, limit = random.randrange(800, 1000), time.monotonic() + 100
    while process.poll() is None and time.monotonic() < limit:
        if path.exists() and path.stat().st_size > enough:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed before its end"
    assert 0 < len(Trajectory.read(path)) < steps
    model, _ = run(restore, path, torch.bfloat16, steps=steps)
    undisturbed, _ = run(restore, "", torch.bfloat16, steps=steps)
    assert same(model, undisturbed)
