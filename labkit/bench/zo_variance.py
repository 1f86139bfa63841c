"""Table `zo-variance`: bias, variance and cosine of gradient estimates, measured and by formula.

Rows with `part` "quadratic" and "logistic" draw samples in the dtype that the row names; `sweep` says which of d, n and
τ changes among them. Curvatures of the quadratic go evenly from 0.5 to 1.5, its value at the point is not 0. The
logistic regression is on the task's film sentences; its formulas are the quadratic's with its Hessian at the point, and
so hold for small τ. Rows with `part` "model" estimate the gradient of the scale's language model on one batch: its
formulas are those of τ → 0. `slope_error` is the median over some directions of a slope's error; the exact gradient
is fp32's, from a backward pass, without the embedding's `padding_idx`, which would leave a row of it out.
`bias`, `slope_error` are in units of ‖∇f‖, variances of its square; `bias_chance` is what a bias of 0 would show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from labkit.scale import Scale
    from labkit.zeroth.gradient import Objective
    from labkit.zeroth.objectives import Logistic

TITLE = "Gradients estimated from values: bias, variance and cosine by dimension, directions, step and format."
UNITS = {
    "bias": "‖∇f‖",
    "bias_chance": "‖∇f‖",
    "slope_error": "‖∇f‖",
    "variance": "‖∇f‖²",
    "variance_error": "‖∇f‖²",
    "predicted_variance": "‖∇f‖²",
}
PUBLISHED: list[dict] = [
    {"result": "E ‖g‖² = (d + n - 1)/n ‖∇L‖²", "source": "Malladi et al. 2023, arXiv:2305.17333, lemma 2"},
]
SEEDS = (0,)
SAMPLES = {"tiny": 400, "small": 2000}
SIZES = (4, 16, 64, 256, 1024)
COUNTS = (1, 4, 16, 64)
TAUS = (1.0, 0.1, 0.01, 0.001)
FORMATS = ("float64", "float32", "bfloat16")
MODEL_SAMPLES = {"tiny": (6, 2), "small": (200, 40)}  # with n = 1, and with n = 8
MODEL_TAUS = (1e-2, 1e-3, 1e-4, 1e-5)
LOGISTIC_DIM = 64


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """Quadratic, logistic regression, model; not those `done`."""
    keys = ("part", "sweep", "estimator", "directions", "d", "n", "tau", "dtype")
    before = {tuple(row[key] for key in keys) for row in done}
    for row in (*_quadratic(scale), *_logistic(scale)):
        if tuple(row["row"][key] for key in keys) not in before:
            yield row["row"] | row["measure"]()
    yield from _model(scale, before)


def _count(scale: Scale) -> int:
    return SAMPLES["tiny" if scale.name == "tiny" else "small"]


def _row(part: str, sweep: str, estimator: str, directions: str, d: int, n: int, tau: float, dtype: str) -> dict:
    from labkit.zeroth.gradient import queries

    return {
        "part": part,
        "sweep": sweep,
        "estimator": estimator,
        "directions": directions,
        "d": d,
        "n": n,
        "tau": tau,
        "dtype": dtype,
        "queries": queries(estimator, n),
    }


def _quadratic(scale: Scale) -> Iterator[dict]:
    """Settings by sweep, each with what measures it."""
    from labkit.zeroth.gradient import DIRECTIONS, KINDS

    for directions, d in product(DIRECTIONS, SIZES):
        yield _sampled(scale, _row("quadratic", "d", "central", directions, d, 1, 0.1, "float64"))
    for kind, n in product(KINDS, COUNTS):
        yield _sampled(scale, _row("quadratic", "n", kind, "gaussian", 64, n, 0.1, "float64"))
    for kind, directions, tau in product(KINDS, DIRECTIONS, TAUS):
        yield _sampled(scale, _row("quadratic", "tau", kind, directions, 16, 1, tau, "float64"))


def _logistic(scale: Scale) -> Iterator[dict]:
    """Central estimates of the regression by τ, in each format."""
    from labkit.tasks import Sentiment
    from labkit.zeroth.objectives import sentiment_regression

    regression, _ = sentiment_regression(Sentiment.load(scale), LOGISTIC_DIM)
    for dtype, tau in product(FORMATS, TAUS):
        row = _row("logistic", "tau", "central", "gaussian", LOGISTIC_DIM, 1, tau, dtype)
        yield _sampled(scale, row, regression)


def _sampled(scale: Scale, row: dict, regression: Logistic | None = None) -> dict:
    """A row without its numbers, and the function that finds them."""
    return {"row": row, "measure": lambda: _measured(row, _count(scale), scale.device, regression)}


def _measured(row: dict, samples: int, device: str, regression: Logistic | None) -> dict:
    """Samples of one setting beside the quadratic's formulas."""
    import torch

    from labkit.zeroth import gradient_theory as theory
    from labkit.zeroth.measure import sample, slope_errors
    from labkit.zeroth.objectives import Logistic, Quadratic

    dtype, d, setting = getattr(torch, row["dtype"]), row["d"], (row["tau"], row["estimator"], row["directions"])
    f: Any
    exact: Any
    if regression is None:
        f = exact = Quadratic(torch.linspace(0.5, 1.5, d, dtype=dtype, device=device), offset=1.0)
        x, curved = torch.full((d,), 0.5, dtype=dtype, device=device), exact
        predicted = theory.variance(exact, x, *setting, row["n"]) / float(exact.gradient(x).square().sum())
    else:
        features, labels = regression.features.to(device), regression.labels.to(device)
        exact = Logistic(features, labels, regression.penalty)
        f = Logistic(features.to(dtype), labels, regression.penalty)
        x = torch.randn(d, generator=torch.Generator().manual_seed(8), dtype=torch.float64).to(device)
        curved = Quadratic(exact.hessian(x))
        predicted = theory.variance_factor(row["directions"], d, row["n"])
    gradient = exact.gradient(x)
    found = sample(f, x.to(dtype), gradient, *setting, n=row["n"], samples=max(8, samples // row["n"]))
    error = slope_errors(f, x.to(dtype), gradient, [row["tau"]], row["estimator"], directions=32)[0]
    rank = round(theory.effective_rank(curved), 3)
    return _numbers(found, predicted, theory.expected_cosine(d, row["n"])) | {
        "slope_error": _short(error),
        "effective_rank": rank,
        "model": None,
    }


def _numbers(found: Any, predicted: float, cosine: float) -> dict:
    return {
        "samples": found.samples,
        "bias": _short(found.bias),
        "bias_chance": _short(found.chance),
        "variance": _short(found.variance),
        "variance_error": _short(found.variance_error),
        "predicted_variance": _short(predicted),
        "cosine": _short(found.cosine),
        "predicted_cosine": _short(cosine),
    }


def _short(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")


def _loss(scale: Scale, dtype: str) -> tuple[Objective, Tensor]:
    """The model's loss on one batch as a function of its weights in `dtype`, and these."""
    from labkit import models
    from labkit.tasks import Sentiment
    from labkit.zeroth.gradient import LossOfWeights

    task = Sentiment.load(scale)
    batch = task.batch(task.train[:4]).to(scale.device)
    model = models.load(scale.model, dtype=dtype, device=scale.device)
    model.get_input_embeddings().padding_idx = None  # type: ignore[assignment]
    f = LossOfWeights(model, lambda m: task.loss(m, batch))
    return f, f.vector()


def _model(scale: Scale, before: set[tuple]) -> Iterator[dict]:
    """Samples in fp32, then the error of slopes by τ in each of the formats that models have."""
    import torch

    from labkit.zeroth import gradient_theory as theory
    from labkit.zeroth.gradient import DIRECTIONS
    from labkit.zeroth.measure import sample, slope_errors

    wide, x = _loss(scale, "float32")
    exact = torch.func.grad(wide)
    f, gradient = wide, exact(x)
    d, (once, few) = x.numel(), MODEL_SAMPLES["tiny" if scale.name == "tiny" else "small"]
    for directions, (n, samples) in product(DIRECTIONS, ((1, once), (8, few))):
        # On the unit sphere τ is the whole length of the step.
        tau = 1e-3 * (d**0.5 if directions == "sphere" else 1)
        row = _row("model", "d" if n == 1 else "n", "central", directions, d, n, _short(tau), "float32")
        if tuple(row.values())[:8] not in before:
            found = sample(f, x, gradient, tau, "central", directions, n, samples)
            numbers = _numbers(found, theory.variance_factor(directions, d, n), theory.expected_cosine(d, n))
            yield row | numbers | {"slope_error": None, "effective_rank": None, "model": scale.model}
    for dtype in ("float32", "bfloat16"):
        if dtype != "float32":
            f, x = _loss(scale, dtype)
            gradient = exact(x.float())  # where the rounded weights are
        for tau in MODEL_TAUS:
            row = _row("model", "tau", "central", "gaussian", d, 1, tau, dtype)
            if tuple(row.values())[:8] not in before:
                [error] = slope_errors(f, x, gradient, [tau])
                yield row | _nothing() | {"slope_error": _short(error), "effective_rank": None, "model": scale.model}


def _nothing() -> dict:
    names = ("bias", "bias_chance", "variance", "variance_error", "predicted_variance", "cosine", "predicted_cosine")
    return {"samples": 8, **dict.fromkeys(names)}
