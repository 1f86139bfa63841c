"""Bias, variance and cosine of gradient estimates, measured on samples; a slope's error against τ; a rough rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError
from labkit.zeroth.gradient import Counted, Objective, draw, estimate, slope

LOOK = 0.01  # length of the step over which gradients are compared

Gradient = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Curvature:
    """The size of a Hessian, from gradients alone.

    Attributes:
        largest: the curvature of largest magnitude, after some steps of power iteration: at most the true one.
        trace: the mean of Hutchinson's estimates zᵀHz, entries of z ±1.
        trace_error: standard error of that mean.
    """

    largest: float
    trace: float
    trace_error: float

    @property
    def effective_rank(self) -> float:
        """tr H / ‖H‖."""
        return self.trace / abs(self.largest)


def times_hessian(gradient: Gradient, x: Float[Tensor, " d"], v: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """H v by a central difference of two gradients over a step of length `LOOK` to each side."""
    step = LOOK / float(torch.linalg.vector_norm(v))
    return (gradient(x + step * v) - gradient(x - step * v)) / (2 * step)


def curvature(gradient: Gradient, x: Float[Tensor, " d"], powers: int = 4, probes: int = 8, seed: int = 0) -> Curvature:
    """Power iteration from the gradient, and Hutchinson's trace; 2 (powers + probes) gradients and one more.

    Raises:
        LabError: for no step of power iteration, or fewer than two probes.
    """
    if powers < 1 or probes < 2:
        raise LabError(f"{powers} steps and {probes} probes tell no curvature.", "Take at least 1 and 2.")
    generator, v, largest = torch.Generator(x.device).manual_seed(seed), gradient(x), 0.0
    for _ in range(powers):
        v = v / torch.linalg.vector_norm(v)
        bent = times_hessian(gradient, x, v)
        largest, v = float(v.double() @ bent.double()), bent
    found = []
    for _ in range(probes):
        z = draw("rademacher", x, generator)
        found.append(float(z.double() @ times_hessian(gradient, x, z).double()))
    traces = torch.tensor(found, dtype=torch.float64)
    return Curvature(largest, float(traces.mean()), float(traces.std()) / math.sqrt(probes))


@dataclass(frozen=True)
class Measured:
    """What samples of an estimate have shown; everything in units of ‖∇f‖ or its square.

    Attributes:
        bias: length of the samples' mean minus ∇f.
        chance: root mean square that `bias` would have without any true bias, since samples are few.
        variance: mean of ‖g - ∇f‖².
        variance_error: standard error of that mean.
        cosine: root mean square of the cosine to ∇f.
        queries: values of f that one estimate asked for.
    """

    samples: int
    bias: float
    chance: float
    variance: float
    variance_error: float
    cosine: float
    queries: int


def sample(
    f: Objective,
    x: Float[Tensor, " d"],
    gradient: Float[Tensor, " d"],
    tau: float,
    kind: str = "central",
    directions: str = "gaussian",
    n: int = 1,
    samples: int = 400,
    seed: int = 0,
) -> Measured:
    """Draw `samples` estimates and compare them with the gradient.

    Raises:
        LabError: for fewer than two samples, or a gradient of length 0.
    """
    length = float(torch.linalg.vector_norm(gradient.double()))
    if samples < 2 or not length > 0:
        raise LabError(f"{samples} samples against a gradient of length {length} tell nothing.", "Take more than one.")
    counted, generator = Counted(f), torch.Generator(x.device).manual_seed(seed)
    total, apart, cosines = torch.zeros_like(gradient), [], []
    for _ in range(samples):
        g = estimate(counted, x, tau, kind, directions, n, generator)
        total += g
        apart.append(float((g - gradient).double().square().sum()) / length**2)
        size = float(torch.linalg.vector_norm(g.double()))
        cosines.append(float(g.double() @ gradient.double()) / (size * length) if size else 0.0)
    mean = sum(apart) / samples
    spread = sum((a - mean) ** 2 for a in apart) / (samples - 1)
    return Measured(
        samples,
        float((total / samples - gradient).double().norm()) / length,
        math.sqrt(mean / samples),
        mean,
        math.sqrt(spread / samples),
        math.sqrt(sum(c * c for c in cosines) / samples),
        counted.queries // samples,
    )


def slope_errors(
    f: Objective,
    x: Float[Tensor, " d"],
    gradient: Float[Tensor, " d"],
    taus: Sequence[float],
    kind: str = "central",
    directions: int = 8,
    seed: int = 0,
) -> list[float]:
    """For each τ the median of |slope - zᵀ∇f| over some normal directions, in units of ‖∇f‖.

    Args:
        gradient: exact, in fp64 where that can be had.
    """
    length, medians = float(gradient.double().norm()), []
    for tau in taus:
        generator = torch.Generator(x.device).manual_seed(seed)
        errors = []
        for _ in range(directions):
            z = draw("gaussian", x, generator)
            errors.append(abs(slope(f, x, z, tau, kind) - float(z.double() @ gradient.double())) / length)
        medians.append(sorted(errors)[len(errors) // 2])
    return medians


def derivative_along(f: Objective, x: Float[Tensor, " d"], z: Float[Tensor, " d"], order: int) -> float:
    """The derivative of f(x + t z) in t, at t = 0, of any order, by autograd."""

    def along(t: Tensor) -> Tensor:
        return torch.as_tensor(f(x + t * z))

    for _ in range(order):
        along = torch.func.grad(along)
    return float(along(torch.zeros((), dtype=x.dtype, device=x.device)))
