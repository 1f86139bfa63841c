"""Changes of length and direction: known cases, effective weights, and trainings that they leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from micro import Letters, micro_llama

from labkit.adapters.attach import attach, lora_layers, merge
from labkit.adapters.decompose import (
    MOMENTS,
    Change,
    between,
    changes,
    correlation,
    decomposed,
    effective_weights,
    interval,
    slope,
    without_farthest,
)
from labkit.adapters.dora import Dora, DoraLinear
from labkit.adapters.lora import LoraSpec
from labkit.adapters.tuning import Lora
from labkit.errors import LabError
from labkit.methods import FullFineTuning
from labkit.training import train


def test_rows_that_only_grow_or_only_turn():
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[6.0, 8.0], [0.0, 1.0], [0.0, -1.0]])
    found = between(before, after, "q", 7)
    assert found.lengths.tolist() == pytest.approx([5, 0, -1]) and found.turns.tolist() == pytest.approx([0, 1, 2])
    assert (found.magnitude, found.direction) == pytest.approx((2.0, 1.0)) and (found.layer, found.step) == ("q", 7)
    columns = between(before.t(), after.t())
    assert len(columns.lengths) == 2 and columns.magnitude != pytest.approx(found.magnitude)


def test_a_turn_that_fp32_would_lose_is_found():
    torch.manual_seed(0)
    before = torch.randn(50, 40, dtype=torch.float64)
    aside = torch.randn(50, 40, dtype=torch.float64)
    aside -= (aside * before).sum(1, keepdim=True) / before.square().sum(1, keepdim=True) * before
    angle = 1e-6
    lengths = before.norm(dim=1, keepdim=True)
    after = math.cos(angle) * before + math.sin(angle) * aside / aside.norm(dim=1, keepdim=True) * lengths
    found = between(before, after)
    assert found.turns.tolist() == pytest.approx([angle**2 / 2] * 50, rel=1e-6)
    assert found.magnitude < 1e-12


def test_a_row_of_zeros_counts_by_its_length_alone():
    before, after = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    found = between(before, after)
    assert found.magnitude == 1.0 and found.direction == 1.0 and found.turns[0].isnan()


def points_of(pairs: list[tuple[float, float]]) -> list[Change]:
    return [Change(f"{k}", 1, torch.tensor([float(m)]), torch.tensor([float(d)])) for k, (m, d) in enumerate(pairs)]


def test_the_interval_is_fishers():
    some = points_of([(1, 1), (1, 0), (0, 1), (0, 0)] * 7)
    assert interval(some) == pytest.approx((-math.tanh(1.96 / 5), math.tanh(1.96 / 5)), abs=1e-6)
    half = points_of(
        [(1, 1), (1, 1), (1, 1), (1, 0), (0, 0), (0, 0), (0, 0), (0, 1)] * 3 + [(1, 1), (0, 0), (1, 0), (0, 1)]
    )
    # 20 of 28 agree, so that r = 12 / 28 and z = 0.4581.
    assert interval(half) == pytest.approx((math.tanh(0.458145 - 0.392), math.tanh(0.458145 + 0.392)), abs=1e-5)
    assert interval(points_of([(1, 1), (2, 2), (3, 3), (4, 4)]))[1] == pytest.approx(1)
    with pytest.raises(LabError, match="3 points may have any value"):
        interval(half[:3])


def test_without_the_farthest_the_others_stay():
    some = points_of([(1, 0.1), (2, 0.4), (3, 0.2)])
    assert [change.layer for change in without_farthest(some)] == ["0", "2"]


def test_correlation_and_slope_are_those_of_a_line():
    points = [(0.1, 0.5), (0.3, 0.4), (0.2, 0.45)]
    made = [Change("", 0, torch.tensor([m, -m]).double(), torch.tensor([d]).double()) for m, d in points]
    assert correlation(made) == pytest.approx(-1) and slope(made) == pytest.approx(-2)
    noisy = [*made, Change("", 0, torch.tensor([0.9]), torch.tensor([0.5]))]
    xs, ys = ([getattr(c, name) for c in noisy] for name in ("direction", "magnitude"))
    wanted = torch.linalg.lstsq(torch.tensor([[x, 1] for x in xs]).double(), torch.tensor(ys).double()[:, None])
    assert slope(noisy) == pytest.approx(wanted.solution[0].item(), rel=1e-5)
    assert -1 < correlation(noisy) < 1
    for few in (made[:2], [made[0]] * 4):
        with pytest.raises(LabError, match="no correlation"):
            correlation(few)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: between(torch.ones(2, 3), torch.ones(3, 2)), r"\(2, 3\) and \(3, 2\)"),
        (lambda: between(torch.ones(2), torch.ones(2)), "no two states"),
        (lambda: changes({"a": torch.ones(1, 1)}, {"b": torch.ones(1, 1)}), "Only one .* a, b"),
        (lambda: effective_weights(micro_llama(), ("query",)), "No linear layer matches"),
    ],
)
def test_what_is_wrong_is_said(call, said):
    with pytest.raises(LabError, match=said):
        call()


@pytest.mark.parametrize("dora", [False, True])
def test_effective_weights_are_what_merging_leaves(dora):
    model = micro_llama()
    plain = effective_weights(model)
    attach(model, LoraSpec(4), kind=DoraLinear) if dora else attach(model, LoraSpec(4))
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B["default"].normal_()
            if dora:
                layer.lora_magnitude_vector["default"].mul_(1.5)
    adapted = effective_weights(model)
    assert list(adapted) == list(plain) == [f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qv"]
    merged = effective_weights(merge(model))
    for path, weight in adapted.items():
        assert torch.allclose(weight, merged[path], atol=1e-6) and not torch.allclose(weight, plain[path], atol=1e-2)
    found = changes(plain, adapted)
    for change in found if dora else ():  # B has turned the rows; their lengths are m, whatever B is
        assert torch.allclose(change.lengths, 0.5 * plain[change.layer].double().norm(dim=1), rtol=1e-4)
    assert all(change.direction > 0.01 for change in found)


@pytest.mark.parametrize("method", [FullFineTuning(), Lora(rank=4), Dora(rank=4)], ids=lambda m: m.name)
def test_noting_changes_leaves_the_training_as_it_was(method):
    settings, found = dict(method.__dict__), []
    for each in (decomposed(method), type(method)(**settings)):
        model = micro_llama()
        run = train(model, Letters(), each, steps=8, batch_size=8, progress=False)
        found.append((run.losses, effective_weights(model), run.method, run.config))
        if each is not method and hasattr(each, "seen"):
            seen = each.seen
    assert found[0][0] == found[1][0] and found[0][2:] == found[1][2:]
    assert all(torch.equal(found[0][1][path], found[1][1][path]) for path in found[0][1])
    assert [change.step for change in seen] == [s for s in (2, 4, 6, 8) for _ in range(4)] and MOMENTS == 4
    last = changes(effective_weights(micro_llama()), found[1][1], 8)
    for one, other in zip(seen[-4:], last, strict=True):
        assert torch.equal(one.turns, other.turns) and torch.equal(one.lengths, other.lengths)
