"""Bias, variance and the best τ of gradient estimates, by formula.

With z normal in R^d, a = zᵀ∇f, q = zᵀHz, t = tr H, s = tr H² (Isserlis 1918 gives the moments):

    E a² ‖z‖² = (d + 2) ‖∇f‖²       E q ‖z‖² = (d + 2) t       E q² ‖z‖² = (d + 4) (t² + 2 s)

On a quadratic f(x + τz) = f + τ a + τ²/2 q exactly. What is odd in z has mean 0, so every kind of estimate has the mean
∇f, whatever τ is (forward ones too), and E ‖g‖² is

    central      (d + 2) ‖∇f‖²
    forward      (d + 2) ‖∇f‖² + τ²/4 (d + 4) (t² + 2 s)
    one-point    (d + 2) ‖∇f‖² + τ²/4 (d + 4) (t² + 2 s) + d f²/τ² + (d + 2) t f

The variance is E ‖g - ∇f‖² = E ‖g‖² - ‖∇f‖², and 1/n of it for the mean over n directions. On the unit sphere with
the factor d, and with entries ±1, d + 2 becomes d: E ‖g‖² = d ‖∇f‖². Averaged over n directions that is
(d + n - 1)/n ‖∇f‖², the form in which Malladi et al. 2023 (arXiv:2305.17333, lemma 2) give it; normal directions
have (d + n + 1)/n.

What τ > 0 does to the mean begins with the third derivatives: E g = ∇f + τ²/2 ∇Δf + … for normal z.
For functions whose gradient (constant L₁) or Hessian (L₂) is Lipschitz, Nesterov & Spokoiny 2017 (lemma 3, theorem 4):

    ‖E g - ∇f‖ ≤ τ/2 L₁ (d + 3)^{3/2},      ≤ τ²/6 L₂ (d + 4)²
    E ‖g‖² ≤ 2 (d + 4) ‖∇f‖² + τ²/2 L₁² (d + 6)³  (forward)

A step of x - η g lowers a function with Hessian H by η ‖∇f‖² - η²/2 E gᵀHg, where for normal z, as τ → 0,
E gᵀHg = t ‖∇f‖² + 2 ∇fᵀH∇f. So the best η is smaller than gradient descent's by about t/‖H‖, the effective rank of H,
and not by d: Malladi et al.'s argument for why a model with 10^9 weights can be tuned so.

Values of f carry a rounding error of u |f|, u half the spacing at 1. Over a difference of 2τ it is u |f|/τ, against a
truncation of τ²/6 |f‴|: the sum is least at τ* = (3 u |f| / |f‴|)^{1/3}; for forward differences, 2 u |f|/τ
against τ/2 |f″|, at τ* = 2 (u |f| / |f″|)^{1/2}.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError, UnknownNameError
from labkit.zeroth.gradient import DIRECTIONS, KINDS, moved
from labkit.zeroth.objectives import Cubic, Quadratic


def second_moment_factor(directions: str, dim: int) -> int:
    """E ‖g‖² / ‖∇f‖² of one direction as τ → 0: d + 2 for normal ones, else d."""
    _check(directions)
    return dim + 2 if directions == "gaussian" else dim


def variance_factor(directions: str, dim: int, n: int = 1) -> float:
    """E ‖g - ∇f‖² / ‖∇f‖² of the mean over n directions, as τ → 0."""
    return (second_moment_factor(directions, dim) - 1) / n


def expected_cosine(dim: int, n: int = 1) -> float:
    """Root of the mean square of the cosine between ∇f and the mean over n directions, as τ → 0: √(n / (n + d - 1)).

    Exact for n = 1 (entries ±1: in the mean over all gradients), else with ‖g‖² near its mean.
    """
    return math.sqrt(n / (n + dim - 1))


def _curvature(f: Quadratic, directions: str) -> float:
    """E q² ‖z‖², where on the sphere z is d^{1/2} times the unit vector, whose step is shorter by as much."""
    moment, d = f.trace**2 + 2 * f.square_trace, f.dim
    if directions == "gaussian":
        return (d + 4) * moment
    if directions == "sphere":
        return d * moment / (d + 2)
    return d * (moment - 2 * float(f.diagonal.square().sum()))


def variance(
    f: Quadratic, x: Float[Tensor, " d"], tau: float, kind: str = "central", directions: str = "gaussian", n: int = 1
) -> float:
    """E ‖g - ∇f‖² on a quadratic, exactly, of the mean over n directions.

    Raises:
        UnknownNameError: for another kind, or other directions.
    """
    _check(directions, kind)
    d, square, value = f.dim, float(f.gradient(x).square().sum()), float(f(x))
    second = second_moment_factor(directions, d) * square
    if kind != "central":
        second += tau**2 / 4 * _curvature(f, directions)
    if kind == "one-point":
        # The unit sphere's estimate has the factor d in the place of z's length √d.
        second += (d * d if directions == "sphere" else d) * value**2 / tau**2
        second += second_moment_factor(directions, d) * f.trace * value
    return (second - square) / n


def coordinate_bias(f: Quadratic, tau: float, kind: str = "forward") -> Float[Tensor, " d"]:
    """What coordinate differences add to the gradient of a quadratic, exactly."""
    return tau / 2 * f.diagonal if kind == "forward" else torch.zeros_like(f.diagonal)


def cubic_bias(f: Cubic, x: Float[Tensor, " d"], tau: float, way: str) -> Float[Tensor, " d"]:
    """E g - ∇f on a cubic, exactly.

    Args:
        way: directions, for which forward and central differences have the same mean; or "coordinates forward" or
            "coordinates central".
    """
    c, square = f.third, tau**2 / 6
    ways = {
        "gaussian": 3 * square * c,
        "sphere": 3 * square * c / (len(c) + 2),
        "rademacher": square * c,
        "coordinates central": square * c,
        "coordinates forward": square * c + tau / 2 * c * x,
    }
    if way not in ways:
        raise UnknownNameError.among("way to take differences", way, ways)
    return ways[way]


def bias_bound(
    dim: int, tau: float, gradient_lipschitz: float = math.inf, hessian_lipschitz: float = math.inf
) -> float:
    """‖E g - ∇f‖ for normal directions is at most this (Nesterov & Spokoiny 2017, lemma 3)."""
    smooth = tau / 2 * gradient_lipschitz * (dim + 3) ** 1.5
    return min(smooth, tau**2 / 6 * hessian_lipschitz * (dim + 4) ** 2)


def second_moment_bound(dim: int, tau: float, gradient_norm: float, gradient_lipschitz: float) -> float:
    """E ‖g‖² of a forward estimate along one normal direction is at most this (theorem 4 there)."""
    return 2 * (dim + 4) * gradient_norm**2 + tau**2 / 2 * gradient_lipschitz**2 * (dim + 6) ** 3


def effective_rank(f: Quadratic) -> float:
    """tr H / ‖H‖: d where all curvatures are equal, 1 where one outweighs the others."""
    largest = f.hessian.abs().max() if f.hessian.ndim == 1 else torch.linalg.matrix_norm(f.hessian, 2)
    return f.trace / float(largest)


def best_learning_rate(f: Quadratic, x: Float[Tensor, " d"], n: int = 1) -> float:
    """The η that lowers a quadratic most in one step of n-SPSA along normal directions, in the mean, exactly."""
    gradient = f.gradient(x)
    square, along = float(gradient.square().sum()), float(torch.dot(gradient, f.gradient(gradient)))
    once = f.trace * square + 2 * along
    return square / (along + (once - along) / n)


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def best_tau(kind: str, dtype: torch.dtype, value: float, derivative: float) -> float:
    """τ* at which rounding and truncation together are least.

    Args:
        kind: "central" or "forward".
        dtype: that f is computed in.
        value: |f|.
        derivative: of f along the direction: the third for "central", the second for "forward".

    Raises:
        LabError: for values that are not positive.
    """
    if not (value > 0 and derivative > 0):
        raise LabError(f"|f| = {value} and a derivative of {derivative} give no best τ.", "Give both above 0.")
    _check(kind=kind)
    noise = unit_roundoff(dtype) * value
    return (3 * noise / derivative) ** (1 / 3) if kind == "central" else 2 * math.sqrt(noise / derivative)


def vanished(x: Tensor, z: Tensor, tau: float) -> float:
    """Share of the entries of x that x + τ z leaves as they are, in the dtype of x."""
    return float((moved(x, z, tau) == x).double().mean())


def _check(directions: str = "gaussian", kind: str = "central") -> None:
    if directions not in DIRECTIONS:
        raise UnknownNameError.among("kind of direction", directions, DIRECTIONS)
    if kind not in KINDS:
        raise UnknownNameError.among("estimate", kind, KINDS)
