"""What MeZO is compared with, and that it learns: the tiny model on rated sentences."""

from __future__ import annotations

import pytest
import torch
from micro import Letters, micro_llama

from labkit import models
from labkit.errors import LabError
from labkit.tasks import Sentiment
from labkit.training import evaluate, train
from labkit.zeroth.in_context import InContext
from labkit.zeroth.mezo import Mezo
from labkit.zeroth.probing import features, fit, probe


@pytest.fixture(scope="module")
def task():
    found = Sentiment.load()
    found.test = found.validation[:150]
    return found


def test_mezo_learns_what_the_model_could_not_do_without_it(task):
    """15 steps of 16 sentences on all weights: the loss falls by more than 15 %, accuracy rises by more than 0.05."""
    model = models.load("tiny")
    before = evaluate(model, task)
    run = train(model, task, Mezo(5e-5, 1e-3, restore="walk"), steps=15, batch_size=16, progress=False)
    after = run.evaluations[-1]
    assert after["loss"] < 0.85 * before["loss"]
    assert after["accuracy"] > before["accuracy"] + 0.05


def test_features_are_what_the_head_is_given_at_the_last_token():
    model, letters = micro_llama().eval(), Letters()
    x, labels = features(model, letters, letters.test, batch_size=7)
    assert labels.tolist() == [e.label for e in letters.test]
    batch = letters.batch(letters.test)
    with torch.no_grad():
        hidden = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    torch.testing.assert_close(x, hidden[:, -1].double(), rtol=1e-4, atol=1e-5)
    assert not model.lm_head._forward_pre_hooks and all(p.grad is None for p in model.parameters())


def test_a_probe_is_the_minimum_of_its_convex_problem():
    """At the minimum the gradient is zero; the same from autograd written down here, on features with unlike scales."""
    torch.manual_seed(0)
    x, labels = torch.randn(200, 5, dtype=torch.float64) * torch.tensor([1, 10, 100, 1, 1.0]) + 3, torch.arange(200) % 3
    x[:, 0] += labels
    found = fit(x, labels, 3, penalty=0.05)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    share = (z @ found.head.weight.T + found.head.bias).softmax(-1) - torch.nn.functional.one_hot(labels, 3)
    assert (share.T @ z / 200 + 0.05 * found.head.weight).abs().max() < 1e-5
    assert share.mean(0).abs().max() < 1e-5
    assert found.score(x, labels)["accuracy"] > 0.5


def test_probing_beats_guessing_on_letters_and_needs_classes():
    result = probe(micro_llama(), Letters(train=200), penalty=0.01)
    assert set(result) == {"accuracy", "loss"} and result["accuracy"] > 0.6
    no_classes = type("T", (), {"name": "text"})()
    with pytest.raises(LabError, match="nothing to probe"):
        features(micro_llama(), no_classes, Letters().test)


def test_demonstrations_stand_in_front_of_the_same_question(task):
    shown = InContext(task, shots=4, seed=1)
    prompt = shown.prompt("a fine film")
    assert prompt.endswith("\na fine film It was") and prompt.count(" It was") == 5
    solved = prompt.split("\n")[:-1]
    assert sum(line.endswith(" great") for line in solved) == sum(line.endswith(" terrible") for line in solved) == 2
    train_prompts = {task.prompt(e.text) + task.label_words[e.label] for e in task.train}
    assert set(solved) <= train_prompts
    assert InContext(task, shots=4, seed=1).demonstrations == shown.demonstrations
    assert InContext(task, shots=4, seed=2).demonstrations != shown.demonstrations
    assert torch.equal(InContext(task, shots=0).batch(task.test[:3]).input_ids, task.batch(task.test[:3]).input_ids)
    assert shown.batch(task.test[:2]).input_ids.shape[1] > task.batch(task.test[:2]).input_ids.shape[1]
    with pytest.raises(LabError, match="demonstrations of 'negative' cannot be drawn"):
        InContext(task, shots=10_000)


def test_in_context_is_evaluated_as_any_task(task):
    few = InContext(task, shots=2)
    few.test = task.test[:16]
    result = evaluate(models.load("tiny"), few, batch_size=8)
    assert 0 <= result["accuracy"] <= 1 and result["loss"] > 0
