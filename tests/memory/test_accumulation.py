"""Accumulation: the large batch's gradient from uneven micro-batches, where the mean of means gives another one."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import pytest
import torch
from micro import Letters, micro_llama

from labkit.errors import LabError
from labkit.ledger import Ledger, saved_for_backward
from labkit.memory.accumulation import (
    IGNORED,
    Accumulated,
    accumulate,
    counted,
    mean_of_means,
    micro_batches,
    shares,
)
from labkit.memory.checkpointed import Checkpointed
from labkit.methods import FullFineTuning
from labkit.tasks import Batch
from labkit.training import train

TASK = Letters()
SETTINGS = {"steps": 8, "batch_size": 10, "progress": False}


def text(rows: int = 7, length: int = 10) -> dict[str, torch.Tensor]:
    """Rows of very different lengths, padded on the left, as a language model is trained on them."""
    ids = torch.randint(1, 16, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : (row * 5) % (length - 1)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask == 1, ids, IGNORED)}


def gradients(model, backward) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    loss = backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def assert_rounding(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def language_loss(model):
    return lambda micro: model(**micro, use_cache=False).loss


def whole(loss, batch):
    value = loss(batch)
    value.backward()
    return value


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_uneven_tokens_give_the_large_batchs_gradient(size):
    model, batch = micro_llama().train(), text()
    loss = language_loss(model)
    expected = gradients(model, lambda: whole(loss, batch))
    parts = list(micro_batches(batch, size))
    counts = [counted(part["labels"]) for part in parts]
    assert sum(counts) == counted(batch["labels"]) and len(parts) == -(-7 // size)
    found = gradients(model, lambda: accumulate(loss, parts, counts))
    assert_rounding(found, expected)
    total = sum(counts)

    def theirs():  # what transformers does with the number of tokens of all micro-batches
        losses = [model(**part, num_items_in_batch=total, use_cache=False).loss for part in parts]
        for one in losses:
            one.backward()
        return sum(one.detach() for one in losses)

    assert_rounding(found, gradients(model, theirs))


@pytest.mark.parametrize("size", [1, 3])
def test_the_mean_of_means_fails_the_same_check(size):
    """A test of the test, and of the number that says how wrong it is."""
    model, batch = micro_llama().train(), text()
    loss, parts = language_loss(model), list(micro_batches(batch, size))
    counts = [counted(part["labels"]) for part in parts]
    expected = gradients(model, lambda: whole(loss, batch))
    naive = gradients(model, lambda: accumulate(loss, parts, [1] * len(parts)))
    with pytest.raises(AssertionError):
        assert_rounding(naive, expected)
    before = [p.grad for p in model.parameters()]
    mistake = mean_of_means(model, loss, parts, counts)
    assert all(a is p.grad for a, p in zip(before, model.parameters(), strict=True))
    flat = [torch.cat([g.flatten() for g in found[1]]) for found in (naive, expected)]
    error = ((flat[0] - flat[1]).norm() / flat[1].norm()).item()
    assert mistake.gradient_error == pytest.approx(error, rel=1e-3) and error > 0.02
    assert (mistake.naive_loss, mistake.loss) == pytest.approx((naive[0].item(), expected[0].item()), rel=1e-5)
    means = torch.tensor([loss(part).item() for part in parts], dtype=torch.float64)
    n = torch.tensor(counts, dtype=torch.float64)
    covariance = ((n - n.mean()) * (means - means.mean())).mean()
    assert mistake.naive_loss - mistake.loss == pytest.approx((-covariance / n.mean()).item(), rel=1e-3)


def test_equal_counts_make_no_mistake():
    model, batch = micro_llama().train(), TASK.batch(TASK.train[:8])
    parts = list(micro_batches(batch, 4))
    assert mean_of_means(model, lambda part: TASK.loss(model, part), parts, [4, 4]).gradient_error < 1e-5


def test_a_micro_batch_in_which_nothing_counts_adds_nothing():
    model, batch = micro_llama().train(), text(6)
    batch["labels"][2:4] = IGNORED
    loss, parts = language_loss(model), list(micro_batches(batch, 2))
    expected = gradients(model, lambda: whole(loss, batch))
    counts = [counted(part["labels"]) for part in parts]
    assert counts[1] == 0
    assert_rounding(gradients(model, lambda: accumulate(loss, parts, counts)), expected)
    assert mean_of_means(model, loss, parts, counts).gradient_error > 0


def test_gradients_are_added_to_those_that_are_there():
    model, batch = micro_llama().train(), TASK.batch(TASK.train[:5])
    parts = list(micro_batches(batch, 2))
    counts = [counted(part.labels) for part in parts]
    assert counts == [2, 2, 1]
    once = gradients(model, lambda: accumulate(lambda part: TASK.loss(model, part), parts, counts))
    accumulate(lambda part: TASK.loss(model, part), parts, counts)
    for parameter, gradient in zip(model.parameters(), once[1], strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)
    assert_rounding(once, gradients(model, lambda: whole(lambda part: TASK.loss(model, part), batch)))


class LiveSaved:
    """Bytes of the tensors that autograd keeps, now and at most."""

    def __init__(self, model):
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.now = self.peak = 0

    def pack(self, tensor):
        class Kept:
            pass

        kept = Kept()
        kept.tensor = tensor
        if tensor.untyped_storage().data_ptr() not in self.known:
            self.now += tensor.nbytes
            weakref.finalize(kept, self.free, tensor.nbytes)
        self.peak = max(self.peak, self.now)
        return kept

    def free(self, size):
        self.now -= size

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def test_one_micro_batch_is_alive_at_a_time_and_reported():
    model, batch = micro_llama().train(), TASK.batch(TASK.train[:10])
    peaks = {}
    for size in (2, 4, 10):
        method = Accumulated(micro_batch_size=size)
        method.prepare(model, TASK, 10)
        with LiveSaved(model) as live:
            method.step(batch)
        assert live.now == 0
        peaks[size] = live.peak
    assert peaks[2] < 0.22 * peaks[10] and peaks[4] < 0.42 * peaks[10]
    for size in (2, 4):
        method, ledger = Accumulated(micro_batch_size=size), Ledger()
        method.prepare(model, TASK, 10)
        method.measured_step(batch, ledger)
        with saved_for_backward(model) as saved:  # the loss is scaled, which keeps one number more
            TASK.loss(model, Batch(batch.input_ids[:size], batch.attention_mask[:size], batch.labels[:size]))
        assert 0 <= ledger.measured["activations"] - saved["activations"] <= 16


@pytest.mark.parametrize("size", [1, 3, 4, 10, 99])
def test_training_is_that_of_the_large_batch(size):
    reference = train(micro_llama(), TASK, FullFineTuning(learning_rate=3e-3), **SETTINGS)
    run = train(micro_llama(), TASK, Accumulated(learning_rate=3e-3, micro_batch_size=size), **SETTINGS)
    assert run.losses == pytest.approx(reference.losses, rel=1e-3) and run.config["micro_batch_size"] == size
    assert run.evaluations[-1]["loss"] == pytest.approx(reference.evaluations[-1]["loss"], rel=1e-3)
    assert all(run.ledger.residual(c) == 0 for c in ("weights", "gradients", "optimizer_states"))


def test_accumulated_and_checkpointed_together():
    @dataclass
    class Both(Accumulated, Checkpointed):
        name: str = "both"

    found = {}
    for method in (FullFineTuning(), Accumulated(micro_batch_size=2), Both(micro_batch_size=2, segments=2)):
        found[method.name] = train(micro_llama(), TASK, method, **SETTINGS)
    full, accumulated, both = found.values()
    assert both.losses == accumulated.losses == pytest.approx(full.losses, rel=1e-3)
    kept = [run.ledger.measured["activations"] for run in (both, accumulated, full)]
    assert kept[0] < 0.5 * kept[1] < 0.15 * kept[2]


def test_what_does_not_go_is_refused():
    for size in (0, -3):
        with pytest.raises(LabError, match=f"{size} rows"):
            micro_batches(text(), size)
        with pytest.raises(LabError, match=f"{size} rows"):
            Accumulated(micro_batch_size=size)
    for counts in ([], [0, 0], [2, -1]):
        with pytest.raises(LabError, match="Nothing counts"):
            shares(counts)
    with pytest.raises(LabError, match="1 micro-batches have 2 counts"):
        accumulate(lambda x: x, [torch.ones(())], [1, 1])
