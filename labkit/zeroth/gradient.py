"""Gradients estimated from values of a function f: R^d → R, without a backward pass.

Along each coordinate e_i (the seed lecture's first form; d + 1 queries of f, or 2 d for central differences):

    g_i = (f(x + τ e_i) - f(x)) / τ                     forward, off by τ/2 ∂²f/∂x_i²
    g_i = (f(x + τ e_i) - f(x - τ e_i)) / 2τ            central, off by τ²/6 ∂³f/∂x_i³

Along a random direction z with E z zᵀ = I (n + 1 queries for the mean over n directions, or 2 n):

    g = f(x + τ z) / τ · z                              one-point (Flaxman, Kalai & McMahan 2005, arXiv:cs/0408007)
    g = (f(x + τ z) - f(x)) / τ · z                     forward (Nesterov & Spokoiny 2017, Found. Comput. Math. 17)
    g = (f(x + τ z) - f(x - τ z)) / 2τ · z              central: SPSA (Spall 1992, IEEE Trans. Autom. Control 37)

As τ → 0 the last two tend to z zᵀ ∇f, whose mean is ∇f. z is normal, or has entries ±1 (Spall's choice), or is uniform
on the unit sphere; there E u uᵀ = I/d, so that the estimate needs the factor d. The mean over n directions is n-SPSA
(Malladi et al. 2023, arXiv:2305.17333). Bias and variance are in `labkit.zeroth.gradient_theory`.

The seed lecture writes "2 queries to estimate one gradient": right for the count, silent about the price, which is a
variance of about d ‖∇f‖² (Duchi, Jordan, Wainwright & Wibisono 2015, arXiv:1312.2139).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError, UnknownNameError

Objective = Callable[[Tensor], "Tensor | float"]
KINDS = ("one-point", "forward", "central")
DIRECTIONS = ("gaussian", "sphere", "rademacher")


class Counted:
    """A function of a vector that counts how often it is asked; its values are Python floats.

    Attributes:
        queries: evaluations so far.
    """

    def __init__(self, f: Objective) -> None:
        self.f, self.queries = f, 0

    def __call__(self, x: Tensor) -> float:
        self.queries += 1
        return float(self.f(x))


def queries(kind: str, n: int = 1) -> int:
    """How often an estimate over n directions asks for a value; with n = d, how often coordinate differences do."""
    _known("estimate", kind, KINDS)
    return {"one-point": n, "forward": n + 1, "central": 2 * n}[kind]


def draw(directions: str, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A random direction of the shape of x, in fp64 for an fp64 x, else in fp32, so that it has not been rounded.

    Args:
        directions: "gaussian", "rademacher" (entries ±1) or "sphere" (uniform, of length 1).
        generator: on the device of x.

    Raises:
        UnknownNameError: for other directions.
    """
    _known("kind of direction", directions, DIRECTIONS)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if directions == "rademacher":
        signs = torch.randint(0, 2, x.shape, generator=generator, device=x.device, dtype=torch.int8)
        return signs.to(dtype).mul_(2).sub_(1)
    z = torch.randn(x.shape, generator=generator, device=x.device, dtype=dtype)
    return z.div_(torch.linalg.vector_norm(z)) if directions == "sphere" else z


def moved(x: Tensor, z: Tensor, tau: float) -> Tensor:
    """x + τ z, rounded to the dtype of x: where τ z is below half a unit in x's last place, it stays x."""
    return torch.add(x, z, alpha=tau).to(x.dtype)


@torch.no_grad()
def slope(f: Objective, x: Tensor, z: Tensor, tau: float, kind: str = "central", here: float | None = None) -> float:
    """How fast f changes along z: the projected gradient, zᵀ ∇f as τ → 0 (unless `kind` is "one-point").

    Args:
        here: f(x), where it is known already and `kind` is "forward".

    Raises:
        UnknownNameError: for another kind.
    """
    _known("estimate", kind, KINDS)
    ahead = float(f(moved(x, z, tau)))
    if kind == "one-point":
        return ahead / tau
    if kind == "forward":
        return (ahead - (float(f(x)) if here is None else here)) / tau
    return (ahead - float(f(moved(x, z, -tau)))) / (2 * tau)


@torch.no_grad()
def coordinates(f: Objective, x: Float[Tensor, " d"], tau: float, kind: str = "forward") -> Float[Tensor, " d"]:
    """Differences along every coordinate: d + 1 queries forward, 2 d central.

    Raises:
        LabError: where τ is not positive, or for one-point differences, which tell nothing here.
    """
    _step(tau)
    _known("difference", kind, KINDS[1:])
    here = float(f(x)) if kind == "forward" else None
    unit = torch.zeros_like(x)
    found = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for place in range(x.numel()):
        unit.view(-1)[place] = 1
        found.view(-1)[place] = slope(f, x, unit, tau, kind, here)
        unit.view(-1)[place] = 0
    return found


@torch.no_grad()
def estimate(
    f: Objective,
    x: Float[Tensor, " d"],
    tau: float,
    kind: str = "central",
    directions: str = "gaussian",
    n: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " d"]:
    """The mean of n estimates along random directions, in fp32 (fp64 for an fp64 x).

    Args:
        f: asked at x + τ z in the dtype of x; differences of its values are taken in 64 bits.
        tau: τ, in units of x; for "sphere" the length of the step, else its length is about τ √d.
        kind: "one-point", "forward" or "central".
        directions: see `draw`.
        n: directions; each draws its own z and uses it at all of its points.

    Raises:
        LabError: for a τ or an n that is not positive.
        UnknownNameError: for another kind, or other directions.
    """
    _step(tau)
    _known("estimate", kind, KINDS)
    if n < 1:
        raise LabError(f"An estimate cannot be the mean over {n} directions.", "Give n of at least 1.")
    here = float(f(x)) if kind == "forward" else None
    factor = x.numel() if directions == "sphere" else 1
    total: Tensor | None = None
    for _ in range(n):
        z = draw(directions, x, generator)
        weight = slope(f, x, z, tau, kind, here) * factor / n
        total = z.mul_(weight) if total is None else total.add_(z, alpha=weight)
    assert total is not None
    return total


class LossOfWeights:
    """A model's loss as a function of one vector that holds the weights that train, one after the other.

    Nothing is written into the model: its forward pass runs with pieces of the vector in the place of its weights. So
    finite differences, `torch.func.grad` and `torch.func.jvp` can ask one and the same function.

    Args:
        model: whose parameters with `requires_grad` are meant; tied ones count once.
        loss: of a callable that stands for the model, such as `lambda m: task.loss(m, batch)`.

    Raises:
        LabError: where nothing trains; from a call, for a vector of another size.
    """

    def __init__(self, model: torch.nn.Module, loss: Callable[[Any], Tensor]) -> None:
        self.model, self.loss = model, loss
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise LabError("No weight of this model trains.", "Set requires_grad on those that should.")

    @property
    def dim(self) -> int:
        """d, how many weights there are."""
        return sum(p.numel() for p in self.parameters.values())

    def vector(self) -> Float[Tensor, " d"]:
        """A copy of the model's weights."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])

    def pieces(self, vector: Float[Tensor, " d"]) -> dict[str, Tensor]:
        """Views of the vector, by name and in the shape of each parameter (copies, where a dtype differs)."""
        if vector.shape != (self.dim,):
            raise LabError(f"A vector of shape {tuple(vector.shape)} came for {self.dim} weights.", "Use `vector()`.")
        parts = vector.split([p.numel() for p in self.parameters.values()])
        pairs = zip(self.parameters.items(), parts, strict=True)
        return {name: part.view(p.shape).to(p.dtype) for (name, p), part in pairs}

    def __call__(self, vector: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        """The loss at these weights."""
        weights = self.pieces(vector)
        return self.loss(lambda *args, **kwargs: torch.func.functional_call(self.model, weights, args, kwargs))


def _known(kind: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UnknownNameError.among(kind, given, known)


def _step(tau: float) -> None:
    if not tau > 0:
        raise LabError(f"A difference over a step of {tau} has no slope.", "Give τ above 0.")
