"""Every formula against samples of the estimators themselves: five standard errors, a right one fails once in 10^6."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from labkit.errors import LabError, UnknownNameError
from labkit.zeroth import gradient_theory as theory
from labkit.zeroth.gradient import DIRECTIONS, KINDS, coordinates, draw, estimate
from labkit.zeroth.objectives import Cubic, Logistic, Quadratic

SAMPLES, ERRORS = 4000, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bowl(dim=6, seed=0):
    """A quadratic with a full Hessian, away from its minimum, with a value of its own."""
    made = torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64)
    x = torch.randn(dim, generator=generator(seed + 1), dtype=torch.float64)
    return Quadratic(made @ made.T / dim, offset=0.7), x


def samples(f, x, tau, kind, directions, n=1, count=SAMPLES, seed=5):
    drawn = generator(seed)
    return torch.stack([estimate(f, x, tau, kind, directions, n, drawn) for _ in range(count)])


def assert_mean(values, wanted):
    """The mean of the rows is `wanted`, to five standard errors in every entry."""
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - wanted).abs() <= ERRORS * error).all(), (values.mean(0), wanted, error)


@pytest.mark.parametrize(("kind", "directions"), itertools.product(KINDS, DIRECTIONS))
def test_bias_and_variance_on_a_quadratic(kind, directions):
    (f, x), tau = bowl(), 0.6
    found = samples(f, x, tau, kind, directions)
    assert_mean(found, f.gradient(x))
    squares = (found - f.gradient(x)).square().sum(1, keepdim=True)
    assert_mean(squares, theory.variance(f, x, tau, kind, directions))
    # What sets the kinds apart is not lost in the noise.
    apart = {theory.variance(f, x, tau, k, directions) for k in KINDS}
    assert len(apart) == 3 and min(abs(a - b) for a, b in itertools.combinations(apart, 2)) > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_n_directions_divide_the_variance(kind):
    (f, x), n = bowl(4, seed=7), 5
    squares = (samples(f, x, 0.3, kind, "gaussian", n, 1500) - f.gradient(x)).square().sum(1, keepdim=True)
    wanted = theory.variance(f, x, 0.3, kind, n=n)
    assert wanted == pytest.approx(theory.variance(f, x, 0.3, kind) / n)
    assert_mean(squares, wanted)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_second_moments_as_tau_vanishes(directions):
    """Malladi et al.'s (d + n - 1)/n belongs to the sphere; normal directions have (d + n + 1)/n."""
    (f, x), n = bowl(5, seed=2), 2
    squares = samples(f, x, 1e-4, "central", directions, n).square().sum(1, keepdim=True)
    wanted = {"gaussian": 5 + n + 1}.get(directions, 5 + n - 1) / n
    square = float(f.gradient(x).square().sum())
    assert theory.variance_factor(directions, 5, n) + 1 == pytest.approx(wanted)
    assert_mean(squares, wanted * square)
    assert theory.variance(f, x, 1.0, "central", directions, n) == pytest.approx((wanted - 1) * square)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_the_cosine_of_one_direction_is_one_over_root_d(directions):
    (f, x), d = bowl(8, seed=4), 8
    found = samples(f, x, 1e-4, "central", directions)
    cosines = torch.nn.functional.cosine_similarity(found, f.gradient(x)[None]).square()
    if directions != "rademacher":  # for which it holds in the mean over all gradients
        assert_mean(cosines[:, None], theory.expected_cosine(d) ** 2)
    many = samples(f, x, 1e-4, "central", directions, n=64, count=200)
    mean = torch.nn.functional.cosine_similarity(many, f.gradient(x)[None]).square().mean().sqrt()
    assert mean == pytest.approx(theory.expected_cosine(d, 64), abs=0.012)


@pytest.mark.parametrize(("kind", "directions"), itertools.product(KINDS[1:], DIRECTIONS))
def test_bias_on_a_cubic(kind, directions):
    """Forward and central estimates along random directions have the same mean: what is even in z has none."""
    x = torch.tensor([0.5, -1.0, 0.2, 0.9], dtype=torch.float64)
    f, tau = Cubic(torch.tensor([3.0, -1.0, 2.0, 4.0], dtype=torch.float64)), 1.5
    found = samples(f, x, tau, kind, directions, count=2 * SAMPLES)
    wanted = theory.cubic_bias(f, x, tau, directions)
    assert_mean(found, f.gradient(x) + wanted)
    error = found.std(0) / math.sqrt(len(found))
    assert (wanted.abs() > ERRORS * error).any(), "a bias of 0 would pass"


def test_bias_of_coordinates():
    x, (bowl_, at) = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64), bowl(3)
    cubic = Cubic(torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64))
    for kind in KINDS[1:]:
        found = coordinates(cubic, x, 0.3, kind) - cubic.gradient(x)
        assert torch.allclose(found, theory.cubic_bias(cubic, x, 0.3, f"coordinates {kind}"), rtol=1e-9)
        found = coordinates(bowl_, at, 0.3, kind) - bowl_.gradient(at)
        assert torch.allclose(found, theory.coordinate_bias(bowl_, 0.3, kind), atol=1e-9)
    with pytest.raises(UnknownNameError, match="coordinate"):
        theory.cubic_bias(cubic, x, 0.3, "coordinate")


def test_isserlis_moments_symbolically():
    """The moments of the theory's head, from pairings of indices, with no sample at all."""
    d, h = 3, bowl(3)[0].hessian
    trace, square = float(h.trace()), float(h.square().sum())
    eye = torch.eye(d, dtype=torch.float64)

    def moment(*forms):
        """E of a product of quadratic forms of a normal z: the sum over all ways to pair the 2k indices."""
        letters = "abcdefgh"[: 2 * len(forms)]
        total = 0.0
        for pairing in pairings(list(letters)):
            deltas = ",".join(a + b for a, b in pairing)
            pairs = ",".join(letters[2 * i : 2 * i + 2] for i in range(len(forms)))
            total += float(torch.einsum(f"{pairs},{deltas}->", *forms, *[eye] * len(pairing)))
        return total

    a = torch.randn(d, dtype=torch.float64, generator=generator())
    assert moment(torch.outer(a, a), eye) == pytest.approx((d + 2) * float(a @ a))
    assert moment(h, eye) == pytest.approx((d + 2) * trace)
    assert moment(h, h, eye) == pytest.approx((d + 4) * (trace**2 + 2 * square))
    assert moment(torch.outer(a, a), h) == pytest.approx(trace * float(a @ a) + 2 * float(a @ h @ a))
    # And the variance that is made of them, at a τ at which every term matters.
    f, x, tau = Quadratic(h, offset=0.7), a, 1.3
    slope = f.gradient(x)
    forward = moment(torch.outer(slope, slope), eye) + tau**2 / 4 * moment(h, h, eye) - float(slope @ slope)
    assert theory.variance(f, x, tau, "forward") == pytest.approx(forward)
    value = float(f(x))
    assert theory.variance(f, x, tau, "one-point") == pytest.approx(
        forward + d * value**2 / tau**2 + value * moment(h, eye)
    )


def pairings(letters):
    if not letters:
        yield []
        return
    first, *rest = letters
    for place, second in enumerate(rest):
        for others in pairings(rest[:place] + rest[place + 1 :]):
            yield [(first, second), *others]


def test_general_bounds_hold_and_are_not_far_on_a_logistic_loss():
    rows = torch.randn(40, 5, generator=generator(), dtype=torch.float64)
    f = Logistic(rows, (rows[:, 0] > 0).double(), penalty=0.0)
    x, tau = torch.full((5,), 0.3, dtype=torch.float64), 0.5
    smooth = float(torch.linalg.matrix_norm(rows.T @ rows, 2)) / (4 * 40)  # σ (1 - σ) ≤ 1/4
    third = float(rows.norm(dim=1).pow(3).mean()) / (6 * math.sqrt(3))  # the largest slope of σ (1 - σ)
    found, exact = samples(f, x, tau, "forward", "gaussian"), f.gradient(x)
    bias = float((found.mean(0) - exact).norm())
    bound = theory.bias_bound(5, tau, smooth, third)
    assert bias < bound == min(theory.bias_bound(5, tau, smooth), tau**2 / 6 * third * 81)
    second = float(found.square().sum(1).mean())
    most = theory.second_moment_bound(5, tau, float(exact.norm()), smooth)
    assert second < most < 100 * second


def test_effective_rank_and_the_step_that_lowers_most():
    flat, steep = Quadratic(torch.ones(50).double()), Quadratic(torch.arange(1, 51).double() ** -2)
    assert theory.effective_rank(flat) == 50 and theory.effective_rank(steep) == pytest.approx(1.625, abs=1e-3)
    f, x = bowl(6, seed=3)
    assert theory.effective_rank(f) == pytest.approx(f.trace / float(torch.linalg.eigvalsh(f.hessian)[-1]))
    best = theory.best_learning_rate(f, x, n=2)
    drawn = samples(f, x, 1e-3, "central", "gaussian", n=2, count=2 * SAMPLES)

    def lowered(rate):
        return torch.stack([f(x) - f(x - rate * g) for g in drawn])

    gain = lowered(best)
    square = float(f.gradient(x).square().sum())
    assert_mean(gain[:, None], best / 2 * square)  # at the best step half of the slope's promise is kept
    assert lowered(best).mean() > max(lowered(0.6 * best).mean(), lowered(1.4 * best).mean())


@pytest.mark.parametrize("kind", ["forward", "central"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_best_tau_is_near_the_best_of_many(kind, dtype):
    """f(x) = e^x at x = 1, where every derivative is f: a grid of τ against the formula's."""

    def f(point):
        return point.exp().double()

    x, exact = torch.ones(200, dtype=dtype) + torch.linspace(0, 0.01, 200, dtype=dtype), None
    exact = x.double().exp()
    taus = [10 ** (-k / 4) for k in range(4, 40)]
    errors = []
    for tau in taus:
        ahead, behind = x + tau, x - tau if kind == "central" else x
        # τ as it was really taken: rounding of the point is not rounding of f.
        found = (f(ahead) - f(behind)) / (ahead.double() - behind.double())
        errors.append(float((found - exact).abs().median()))
    best = taus[errors.index(min(errors))]
    value = float(exact.mean())
    assert 1 / 5 < theory.best_tau(kind, dtype, value, value) / best < 5
    assert theory.best_tau("central", dtype, 1.0, 1.0) == pytest.approx((1.5 * torch.finfo(dtype).eps) ** (1 / 3))
    assert theory.best_tau("forward", dtype, 1.0, 1.0) == pytest.approx((2 * torch.finfo(dtype).eps) ** 0.5)
    with pytest.raises(LabError, match="no best"):
        theory.best_tau(kind, dtype, 0.0, 1.0)


def test_weights_that_a_perturbation_leaves_as_they_are():
    x, z = torch.full((1000,), 1.0, dtype=torch.bfloat16), draw("rademacher", torch.zeros(1000), generator())
    assert theory.vanished(x, z, 2.0**-10) == 1.0  # a quarter of the spacing below 1, an eighth of that above
    assert theory.vanished(x, z, 2.0**-7) == 0.0
    down = float((z < 0).double().mean())
    assert theory.vanished(x, z, 1.5 * 2.0**-9) == pytest.approx(1 - down)  # the spacing below 1 is half of that above
    assert theory.vanished(x.float(), z, 2.0**-10) == 0.0
