"""ZO-Offload is MeZO: the same losses and the same weights to the bit, however blocks travel."""

from __future__ import annotations

import threading

import pytest
import torch
from offloads import BATCHES, COMMON, MODELS, TASK, LateBus, offloaded, pair, same, steps

from labkit.errors import LabError, UnknownNameError
from labkit.training import train
from labkit.zeroth.mezo import Mezo, replay
from labkit.zeroth.mezo_adapters import MezoLora
from labkit.zeroth.offload.method import ZoOffloadLora
from labkit.zeroth.offload.relay import Relay
from labkit.zeroth.trajectory import Trajectory


@pytest.mark.parametrize(
    ("name", "dtype", "settings"),
    [
        ("llama", torch.float16, {"write_back": 8, "slots": 2}),
        ("opt", torch.float16, {"write_back": 2, "parts": 3}),
        ("opt-untied", torch.float32, {"write_back": 1}),
    ],
    ids=["llama", "opt", "opt-untied"],
)
def test_fifty_steps_with_an_evaluation_in_the_middle(name, dtype, settings):
    runs, models = [], []
    for method in (Mezo(**COMMON), offloaded(**COMMON, **settings)):
        models.append(MODELS[name]().to(dtype))
        runs.append(train(models[-1], TASK, method, steps=50, batch_size=4, progress=False, evaluate_every=25))
    mine, other = runs
    assert mine.losses == other.losses and mine.evaluations == other.evaluations and len(mine.evaluations) == 2
    assert mine.traces == other.traces
    assert same(*models) and not same(models[0], MODELS[name]().to(dtype))


@pytest.mark.parametrize(
    ("name", "restore", "directions"), [("llama", "walk", 1), ("llama", "exact", 2), ("opt-late", "walk", 2)], ids=str
)
def test_no_setting_changes_a_bit(restore, name, directions):
    """How often blocks are written back, how they are cut, through how many slots, on a bus that is as late as can."""
    options = {"restore": restore, "directions": directions, "weight_decay": 0.1, "schedule": "linear"}
    dtype, count = (torch.bfloat16, 4) if name == "llama" else (torch.float32, 2)
    model, losses, common = pair(name, count, dtype, **options)
    for settings in (
        {"write_back": 1, "slots": 1},
        {"write_back": 2, "slots": 2, "parts": 3, "bus": LateBus()},
        {"write_back": 8, "slots": 4, "bus": LateBus()},
        {"write_back": 0, "overlap": False},
    ):
        method, other = offloaded(**common, **settings), MODELS[name]().to(dtype)
        assert steps(method, other, count) == losses, settings
        method.close()
        assert same(model, other), settings


def test_a_copy_that_nobody_waits_for_would_be_seen():
    """That the late bus finds what it is for: without the wait for uploads, losses are others."""
    from labkit.zeroth.offload.slots import Slots

    _, losses, common = pair("llama", 2)
    method = offloaded(**common, bus=LateBus())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slots, "take", lambda self, index: (self._begin_at(index), self._loaded[index])[1])
        assert steps(method, MODELS["llama"](), 2) != losses


@pytest.mark.parametrize("restore", ["exact", "walk"])
def test_what_is_computed_and_saved_between_steps_is_what_was_trained(restore, tmp_path):
    """Evaluation in the middle finds w, with the blocks' moves made; so does who saves, and who reads the model."""
    from transformers import AutoModelForCausalLM

    model, losses, common = pair("opt", 3, restore=restore)
    method, other = offloaded(**common, write_back=8), MODELS["opt"]()
    assert steps(method, other, 3) == losses
    assert not same(model, other), "moves are due"
    with method.computing(), torch.no_grad():
        logits = other(input_ids=BATCHES[0].input_ids, use_cache=False).logits
    assert torch.equal(logits, model(input_ids=BATCHES[0].input_ids, use_cache=False).logits)
    assert same(model, other)
    method.step(BATCHES[3])
    method.save(tmp_path / "saved")
    mezo, alone = Mezo(**common), MODELS["opt"]()
    steps(mezo, alone, 3)
    with mezo.computing():
        mezo.step(BATCHES[3])
    mezo.close()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert same(saved, alone) and not same(saved, model)
    method.close()


def test_other_objectives_and_a_loss_that_is_not_finite():
    _, losses, common = pair("llama", 3, objective="accuracy", perturbation_scale=0.1)
    assert steps(offloaded(**common), MODELS["llama"](), 3) == losses
    method = offloaded(**COMMON, objective=lambda *_: float("nan"))
    [loss] = steps(method, MODELS["llama"](), 1)
    assert loss != loss and method.observed()["skipped"] == 1


def test_an_objective_may_call_the_model_twice():
    def twice(model, task, batch):
        return task.loss(model, batch).item() + task.loss(model, batch).item() / 2

    _, losses, common = pair("llama", 3, objective=twice)
    assert steps(offloaded(**common), MODELS["llama"](), 3) == losses


def test_an_error_in_one_pass_ends_both_and_the_model_stays_usable():
    calls = []

    def broken(model, task, batch):
        loss = task.loss(model, batch)
        calls.append(0)
        if len(calls) == 2:
            raise ZeroDivisionError
        return loss.item()

    method, model = offloaded(**COMMON, objective=broken), MODELS["llama"]()
    method.prepare(model, TASK, 4)
    with pytest.raises(ZeroDivisionError):
        method.step(BATCHES[0])
    method._objective = lambda model, task, batch: task.loss(model, batch).item()
    before, losses, _ = pair("llama", 3)
    assert [method.step(batch).item() for batch in BATCHES[:3]] == losses
    method.close()
    assert same(model, before)


def test_a_pass_keeps_its_thread_from_step_to_step_and_none_is_left():
    """What torch keeps by thread, cuDNN's plans of attention say, is made once."""
    seen = []

    def objective(model, task, batch):
        seen.append(threading.current_thread())
        return task.loss(model, batch).item()

    steps(method := offloaded(**COMMON, objective=objective), MODELS["llama"](), 3)
    assert len({*seen[::2]}) == len({*seen[1::2]}) == 1 and len({*seen}) == 2
    method.close()
    assert [thread for thread in {*seen} if thread.is_alive()] == [threading.current_thread()]


def test_a_relay_that_cannot_begin_ends():
    def turn(number):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Relay(2, lambda place: None, turn, ordered=False).run([int, int], torch.device("cpu"))


def test_trajectories_are_mezos(tmp_path):
    """A run that one begins goes on with the other, and its trajectory is replayed on one device."""
    model, losses, common = pair("llama", 6)
    path = str(tmp_path / "t")
    half = Mezo(**common, trajectory=path)
    half.prepare(MODELS["llama"](), TASK, 6)
    for batch in BATCHES[:3]:
        half.step(batch)
    method, other = offloaded(**common, trajectory=path), MODELS["llama"]()
    assert steps(method, other, 6) == pytest.approx(losses, abs=1e-6)  # rows keep fp32
    method.close()
    assert same(model, other)
    fresh = MODELS["llama"]()
    replay(fresh, Trajectory.read(path))
    assert same(model, fresh)


@pytest.mark.parametrize("parts", [1, 3])
def test_beside_adapters_blocks_only_come_up(parts):
    torch.manual_seed(0)
    model, losses, common = pair("llama", 4, mezo=MezoLora, rank=2)
    torch.manual_seed(0)
    method, other = ZoOffloadLora(device="cpu", parts=parts, **common), MODELS["llama"]()
    assert steps(method, other, 4) == losses
    assert method.engine.slots.downloads == 0 < method.engine.slots.uploads
    method.close()
    assert same(model, other)


def test_a_model_can_be_trained_again():
    model, _, common = pair("llama", 4)
    again = Mezo(**{**common, "seed": 5})
    losses = steps(again, model, 2)
    other = MODELS["llama"]()
    steps(offloaded(**common), other, 4)  # and is not closed
    method = offloaded(**common, seed=5)
    assert steps(method, other, 2) == losses
    method.close()
    again.close()
    assert same(model, other)


@pytest.mark.parametrize(
    "settings",
    [{"slots": 0}, {"slots": 1.5}, {"write_back": -1}, {"write_back": True}, {"parts": 2}],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(LabError):
        offloaded(**settings).prepare(MODELS["llama"](), TASK, 1)


@pytest.mark.parametrize("settings", [{"restore": "no"}, {"transfer": "int7"}], ids=str)
def test_unknown_names_are_refused(settings):
    with pytest.raises(UnknownNameError):
        offloaded(**settings).prepare(MODELS["llama"](), TASK, 1)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(LabError, match="no list of decoder layers"):
        offloaded().prepare(torch.nn.Linear(3, 3), TASK, 1)
