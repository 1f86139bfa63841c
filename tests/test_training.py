"""The training loop and the first two methods: what trains, what it costs in bytes, and that a cut-off run goes on."""

import math

import pytest
import torch

from labkit import models
from labkit.errors import LabError
from labkit.ledger import Ledger
from labkit.methods import FullFineTuning, LinearProbing, Method
from labkit.run import Run
from labkit.scale import SCALES
from labkit.tasks import Sentiment
from labkit.training import evaluate, order, train


@pytest.fixture(scope="module")
def task() -> Sentiment:
    loaded = Sentiment.load(model="tiny")
    loaded.train, loaded.test = loaded.train[:64], loaded.test[:40]
    return loaded


def small(seed: int = 0):
    """The tiny model's architecture with two layers: fast enough for a test."""
    shape = models.config("tiny")
    shape.num_hidden_layers = 2
    torch.manual_seed(seed)
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(shape)


def settings(**more):
    return {"steps": 6, "batch_size": 8, "progress": False, **more}


@pytest.mark.parametrize("method", [FullFineTuning(), LinearProbing()], ids=lambda m: m.name)
def test_predicted_bytes_equal_the_counted_storages(task, method):
    run = train(small(), task, method, **settings())
    assert isinstance(method, Method)
    for category in ("weights", "gradients", "optimizer_states"):
        assert run.ledger.residual(category) == 0, category
    assert run.ledger.measured["activations"] > 0


def test_full_fine_tuning_moves_every_weight_and_probing_only_the_head(task):
    for method, moves in ((FullFineTuning(), True), (LinearProbing(), False)):
        model = small()
        before = {name: p.clone() for name, p in model.named_parameters()}
        train(model, task, method, **settings())
        after = dict(model.named_parameters())
        for name, old in before.items():
            assert (not torch.equal(old, after[name])) == moves, name


def test_probe_starts_from_the_zero_shot_answer_and_keeps_no_deep_activation(task):
    zero_shot = evaluate(small(), task)
    model, probe = small(), LinearProbing(learning_rate=0.0)
    run = train(model, task, probe, **settings())
    assert run.evaluations[-1]["accuracy"] == zero_shot["accuracy"]
    assert math.isclose(run.evaluations[-1]["loss"], zero_shot["loss"], rel_tol=1e-5)
    full = train(small(), task, FullFineTuning(), **settings())
    # What it keeps is the last hidden state, whole: the last column is a view of that storage.
    assert run.ledger.measured["activations"] < full.ledger.measured["activations"] / 40


def test_steps_equal_plain_pytorch(task):
    """The same AdamW steps written out with torch alone give the same weights, bit for bit."""
    ours, theirs = small(), small().train()
    run = train(ours, task, FullFineTuning(learning_rate=1e-3, warmup=0.0), **settings(steps=3))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    losses = []
    for step, examples in enumerate(order(task, 8, 0, 3)):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (3 - step) / 2)
        batch = task.batch(examples)
        logits = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits[:, task.label_ids], batch.labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert run.losses == pytest.approx(losses, rel=1e-5)
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


def test_every_epoch_sees_every_example_once_in_another_order(task):
    steps = [tuple(e.text for e in examples) for examples in order(task, 6, seed=3, steps=22)]
    texts = sorted(e.text for e in task.train)
    first, second = steps[:11], steps[11:]
    assert sorted(t for step in first for t in step) == texts == sorted(t for step in second for t in step)
    assert first != second and steps == [tuple(e.text for e in b) for b in order(task, 6, seed=3, steps=22)]


class CutOff(Exception):
    """Stands for a kernel that dies."""


def test_a_cut_off_run_goes_on_and_ends_as_if_it_had_not_been(task, tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.training.SAVE_EVERY_SECONDS", 0.0)
    whole_model = small()
    whole = train(whole_model, task, FullFineTuning(), **settings())
    kept, cut = tmp_path / "run.pt", FullFineTuning()
    real_step, steps = cut.step, []

    def step(batch):
        steps.append(1)
        if len(steps) == 3:
            raise CutOff
        return real_step(batch)

    cut.step = step
    with pytest.raises(CutOff):
        train(small(), task, cut, **settings(resume=kept))
    assert kept.exists()
    model = small(seed=5)  # the state brings its own weights
    again = train(model, task, FullFineTuning(), **settings(resume=kept))
    assert again.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole_model.parameters(), strict=True))
    assert not kept.exists()


@pytest.mark.parametrize("damage", [b"", b"half a file", None])
def test_a_damaged_or_foreign_state_starts_clean(task, tmp_path, damage):
    kept = tmp_path / "run.pt"
    if damage is None:
        torch.save({"key": "another configuration", "step": 5}, kept)
    else:
        kept.write_bytes(damage)
    assert len(train(small(), task, FullFineTuning(), **settings(resume=kept)).losses) == 6


def test_evaluation_does_not_depend_on_order_or_batch_size(task):
    model = small()
    first = evaluate(model, task)
    again = evaluate(model, task, task.test[::-1], batch_size=7)
    assert first["accuracy"] == again["accuracy"]
    assert math.isclose(first["loss"], again["loss"], rel_tol=1e-5)


def test_run_survives_the_disk_and_refuses_what_is_no_run(task, tmp_path):
    run = train(small(), task, LinearProbing(), **settings(model_name="tiny"))
    loaded = Run.load(run.save(tmp_path / "run.json"))
    assert loaded == run and isinstance(loaded.ledger, Ledger)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(LabError, match="not a saved run"):
        Run.load(tmp_path / "other.json")


def test_nothing_to_do_and_not_a_number_are_said_clearly(task):
    with pytest.raises(LabError, match="nothing to do"):
        train(small(), task, FullFineTuning(), **settings(steps=0))
    with pytest.raises(LabError, match="not a number"):
        train(small(), task, FullFineTuning(learning_rate=float("inf")), **settings())
    with pytest.raises(LabError, match="nothing to evaluate"):
        evaluate(small(), task, [])


@pytest.mark.slow
def test_the_tiny_model_is_worth_fine_tuning():
    """One pass over 1,000 labelled sentences: at least 74 %, and at least 8 points above random weights."""
    scale = SCALES["tiny"]
    whole = Sentiment.load(scale)
    assert (len(whole.train), len(whole.test)) == (1000, 1500)
    found = {}
    for start, model in (("pretrained", models.load("tiny")), ("random", models.from_random("tiny"))):
        method = FullFineTuning(learning_rate=scale.learning_rate)
        run = train(model, whole, method, steps=scale.steps, batch_size=scale.batch_size, progress=False)
        found[start] = run.accuracy
    assert found["pretrained"] >= 0.74 and found["pretrained"] >= found["random"] + 0.08, found


class Watched(FullFineTuning):
    """Full fine-tuning that reports its learning rate, and whose loss is no number at its third step."""

    def step(self, batch):
        loss = super().step(batch)
        return loss if len(self.seen) < 2 else loss * float("nan")

    def observed(self):
        self.seen = [*self.seen, self._schedule.get_last_lr()[0]]
        return {"learning_rate": self.seen[-1]}

    def prepare(self, model, task, steps):
        self.seen = []
        super().prepare(model, task, steps)


def test_what_a_method_observes_is_traced_and_a_burst_run_is_kept_where_asked(task):
    method = Watched(learning_rate=1e-3)
    run = train(small(), task, method, **settings(on_nan="stop"))
    assert len(run.losses) == 3 and "step 2" in run.stopped and run.evaluations[-1]["step"] == 3
    assert run.traces == {"learning_rate": method.seen} and len(method.seen) == 3
    with pytest.raises(LabError, match="on_nan"):
        train(small(), task, method, **settings(on_nan="ignore"))


def test_evaluations_on_the_way_change_nothing_and_are_kept_when_a_run_is_cut_off(task, tmp_path, monkeypatch):
    plain = train(small(), task, FullFineTuning(), **settings())
    often = train(small(), task, FullFineTuning(), **settings(evaluate_every=2))
    assert often.losses == plain.losses and [e["step"] for e in often.evaluations] == [2, 4, 6]
    assert often.evaluations[-1] == plain.evaluations[-1]
    uneven = train(small(), task, FullFineTuning(), **settings(evaluate_every=4))
    assert [e["step"] for e in uneven.evaluations] == [4, 6]
    monkeypatch.setattr("labkit.training.SAVE_EVERY_SECONDS", 0.0)

    class Cut(FullFineTuning):
        def step(self, batch):
            if getattr(self, "count", 0) == 3:  # the measured step is none of these
                raise KeyboardInterrupt
            self.count = getattr(self, "count", 0) + 1
            return super().step(batch)

    kept = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(small(), task, Cut(), **settings(evaluate_every=2, resume=kept))
    again = train(small(), task, FullFineTuning(), **settings(evaluate_every=2, resume=kept))
    assert [e["step"] for e in again.evaluations] == [2, 4, 6] and again.losses == plain.losses
