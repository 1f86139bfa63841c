"""Estimates of gradients from values: queries, points that are asked, dtypes, and a real model's loss."""

from __future__ import annotations

import math

import pytest
import torch
from micro import Letters, micro_llama
from torch.nn.attention import SDPBackend, sdpa_kernel

from labkit.errors import LabError, UnknownNameError
from labkit.zeroth.gradient import (
    DIRECTIONS,
    KINDS,
    Counted,
    LossOfWeights,
    coordinates,
    draw,
    estimate,
    moved,
    queries,
    slope,
)
from labkit.zeroth.objectives import Cubic, Quadratic, sentiment_regression


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bowl(dim=7, seed=0):
    """A quadratic with a full Hessian, and a point."""
    made = torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64)
    x = torch.randn(dim, generator=generator(seed + 1), dtype=torch.float64)
    return Quadratic(made @ made.T / dim, offset=0.5), x


class Asked(Counted):
    """Remembers the points."""

    def __init__(self, f):
        super().__init__(f)
        self.points = []

    def __call__(self, x):
        self.points.append(x.clone())
        return super().__call__(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_each_direction_is_used_at_its_own_points_and_nowhere_else(kind, directions):
    (f, x), tau, n = bowl(), 0.25, 3
    asked, before = Asked(f), x.clone()
    found = estimate(asked, x, tau, kind, directions, n, generator(3))
    assert torch.equal(x, before) and asked.queries == queries(kind, n) == len(asked.points)
    again = generator(3)
    drawn = [draw(directions, x, again) for _ in range(n)]
    assert len({tuple(z.tolist()) for z in drawn}) == n
    ahead, behind = ([x + sign * tau * z for z in drawn] for sign in (1, -1))
    wanted = {
        "one-point": ahead,
        "forward": [x, *ahead],
        "central": [point for pair in zip(ahead, behind, strict=True) for point in pair],
    }
    assert all(torch.equal(a, b) for a, b in zip(asked.points, wanted[kind], strict=True))
    factor = len(x) if directions == "sphere" else 1
    by_hand = torch.zeros_like(x)
    for z in drawn:
        up, down, here = (float(f(x + step * z)) for step in (tau, -tau, 0))
        change = {"one-point": up / tau, "forward": (up - here) / tau, "central": (up - down) / (2 * tau)}[kind]
        by_hand += factor * change * z / n
    assert torch.allclose(found, by_hand, rtol=1e-10)


def test_directions_are_what_their_names_say():
    x = torch.zeros(400, dtype=torch.float64)
    rows = {name: torch.stack([draw(name, x, generator(s)) for s in range(300)]) for name in DIRECTIONS}
    assert set(rows["rademacher"].flatten().tolist()) == {-1.0, 1.0}
    assert torch.allclose(rows["sphere"].norm(dim=1), torch.ones(300, dtype=torch.float64))
    assert rows["gaussian"].norm(dim=1).std() > 0.5  # the length of a normal vector varies by 1/√2
    for name, z in rows.items():
        values = z.flatten() * (math.sqrt(400) if name == "sphere" else 1)
        # 120,000 values: five standard errors of the mean and of the mean square (whose variance is at most 2).
        assert abs(values.mean()) < 5 / math.sqrt(len(values)), name
        assert abs(values.square().mean() - 1) < 5 * math.sqrt(2 / len(values)), name
        # Uniform directions would have a fourth moment of 1.8, and entries uniform in a cube no tail.
        fourth = {"rademacher": 1.0}.get(name, 3.0)
        assert values.pow(4).mean() == pytest.approx(fourth, abs=0.15), name


def test_coordinate_differences_take_d_plus_1_queries_and_err_as_the_formula_says():
    f, x = bowl()
    asked = Asked(f)
    assert torch.allclose(coordinates(asked, x, 0.5), f.gradient(x) + 0.25 * f.diagonal, rtol=1e-9)
    assert asked.queries == len(x) + 1 == queries("forward", len(x))
    asked = Asked(f)
    assert torch.allclose(coordinates(asked, x, 0.5, "central"), f.gradient(x), rtol=1e-9)
    assert asked.queries == 2 * len(x) == queries("central", len(x))
    assert all((point != x).sum() == 1 for point in asked.points), "other coordinates moved as well"
    cubic = Cubic(x)
    assert torch.allclose(coordinates(cubic, x, 0.1, "central") - cubic.gradient(x), 0.01 / 6 * x, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_points_are_asked_in_the_dtype_of_x_and_estimates_are_wide(dtype):
    seen = []

    def f(x):
        seen.append(x.dtype)
        return (x.float() * x.float()).sum()

    x = torch.linspace(-2, 2, 9).to(dtype)
    found = estimate(f, x, 0.1, n=2, directions="rademacher", generator=generator())
    assert set(seen) == {dtype}
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_perturbation_below_half_the_spacing_is_no_perturbation():
    x, z = torch.tensor([1.0, 1.0, 256.0, 0.0], dtype=torch.bfloat16), torch.ones(4)
    small = moved(x, z, 2.0**-10)
    assert torch.equal(small[:3], x[:3]) and small[3] == 2.0**-10
    large = moved(x, z, 2.0**-7)
    assert torch.equal(large[:3].float(), torch.tensor([1 + 2.0**-7, 1 + 2.0**-7, 256.0]))


def loss_of_letters():
    """The loss of a micro Llama on one batch, as a function of one vector."""
    task, model = Letters(), micro_llama()
    batch = task.batch(task.train[:8])
    return model, task, batch, LossOfWeights(model, lambda m: task.loss(m, batch))


def test_a_models_loss_is_a_function_of_one_vector_and_leaves_the_model_alone():
    model, task, batch, f = loss_of_letters()
    x, before = f.vector(), [p.detach().clone() for p in model.parameters()]
    assert f.dim == len(x) == sum(p.numel() for p in model.parameters())  # the tied head counts once
    assert torch.equal(f(x), task.loss(model, batch))
    assert f(x + 0.01) != f(x)
    estimate(f, x, 1e-2, n=2, generator=generator())
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(LabError, match="A vector of shape"):
        f(x[:-1])
    model.requires_grad_(False)
    with pytest.raises(LabError, match="No weight"):
        LossOfWeights(model, lambda m: task.loss(m, batch))


def test_a_models_slopes_are_those_of_autograd_and_forward_mode():
    model, task, batch, f = loss_of_letters()
    model.double()
    x = f.vector()
    task.loss(model, batch).backward()
    backward = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    assert torch.allclose(torch.func.grad(f)(x), backward, rtol=1e-6, atol=1e-9)  # logits become fp32 on the way
    z = draw("gaussian", x, generator())
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
        exact = torch.func.jvp(f, (x,), (z,))[1]
    assert float(exact) == pytest.approx(float(z @ backward), rel=1e-5)
    assert slope(f, x, z, 1e-3) == pytest.approx(float(exact), rel=3e-3)
    assert slope(f, x, z, 1e-3, "forward") == pytest.approx(float(exact), abs=0.05 * float(backward.norm()))
    # The head is tied to the embedding: a piece that moved one of the two only would have another slope.
    rows = torch.zeros_like(x)
    rows[: model.get_input_embeddings().weight.numel()] = 1
    assert slope(f, x, rows * z, 1e-3) == pytest.approx(float((rows * z) @ backward), rel=3e-3)


def test_gradcheck_takes_the_same_differences():
    """torch.autograd.gradcheck compares central differences, at its eps, with the backward pass."""
    f, x = bowl()
    assert torch.autograd.gradcheck(f, (x.clone().requires_grad_(),), eps=1e-6)
    train, _ = sentiment_regression(Words(), 6)
    here = torch.randn(6, dtype=torch.float64, generator=generator(), requires_grad=True)
    assert torch.autograd.gradcheck(train, (here,), eps=1e-6)
    assert torch.allclose(coordinates(train, here.detach(), 1e-5, "central"), train.gradient(here.detach()), atol=1e-9)
    hessian = torch.autograd.functional.hessian(train, here.detach())
    assert torch.allclose(train.hessian(here.detach()), hessian)


class Words(Letters):
    """Sentences of several words, for bags of words."""

    def __init__(self):
        super().__init__()
        self.train = [type(e)(" ".join(e.text), e.label) for e in self.train]
        self.test = [type(e)(" ".join(e.text), e.label) for e in self.test]


def test_features_are_bags_of_the_words_that_most_sentences_hold():
    train, test = sentiment_regression(Words(), 4)
    assert train.features.shape == (64, 4) and test.features.shape == (24, 4)
    assert torch.equal(train.features[:, 3], torch.ones(64, dtype=torch.float64))
    lengths = train.features[:, :3].norm(dim=1)
    assert ((lengths - 1).abs() < 1e-12).sum() + (lengths == 0).sum() == 64
    assert train.accuracy(torch.zeros(4, dtype=torch.float64)) == float((train.labels == 0).double().mean())
    with pytest.raises(LabError, match="do not give 7"):
        sentiment_regression(Words(), 7)


def test_wrong_arguments_get_a_sentence():
    f, x = bowl()
    with pytest.raises(LabError, match="step of 0"):
        estimate(f, x, 0.0)
    with pytest.raises(LabError, match="step of nan"):
        coordinates(f, x, math.nan)
    with pytest.raises(LabError, match="mean over 0"):
        estimate(f, x, 0.1, n=0)
    with pytest.raises(UnknownNameError, match="centrl"):
        estimate(f, x, 0.1, "centrl")
    with pytest.raises(UnknownNameError, match="uniform"):
        estimate(f, x, 0.1, directions="uniform")
    with pytest.raises(UnknownNameError, match="one-point"):
        coordinates(f, x, 0.1, "one-point")
