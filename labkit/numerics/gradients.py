"""Where gradients lie in a format's range, and how many updates rounding takes away.

A value underflows in a format when it rounds to zero: at or below half of the smallest subnormal (2^-25 in fp16). It
overflows when it rounds to infinity: at or above the largest value plus half a gap (65520 in fp16; fp8 E4M3 has NaN for
it, and fp4 nothing: there values end at the largest). Exact zeros, such as the embedding rows of words that a batch
does not hold, cannot underflow; shares are of what is not zero.

Adam's second moment holds (1-β2) g², so its logarithm spans twice as many powers of two as the gradient's.

An update is lost when w + Δ, added in fp32, rounds to w: when |Δ| is at most half a gap of w (Goldberg 1991; lesson
01). Stochastic rounding (Gupta et al. 2015, arXiv:1502.02551) loses each single one as well, but by chance, and so
keeps their sum.

The lecture (Stanford CS224N, lecture 12, 2024) names both losses and gives no figures. Micikevicius et al. 2018
(arXiv:1710.03740, figure 3) drew the histogram for a detection network. Here both are counted on any model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError
from labkit.numerics.rounding import round_nearest, round_stochastic
from labkit.numerics.spec import Format

MOST = 127  # fp32 has no larger power of two, and keeps the loss scale


@dataclass(frozen=True)
class RangeShares:
    """How values lie in a format: `values` of them are not zero, and of those the shares that

    underflow to zero, lie below the smallest normal number (and lose digits), or overflow to infinity; `zeros` is how
    many are zero anyway.
    """

    values: int
    zeros: int
    underflow: float
    subnormal: float
    overflow: float


def borders(fmt: Format | str) -> tuple[float, float, float]:
    """The largest magnitude that becomes zero, the smallest normal one, and the smallest that leaves the range."""
    found = Format.parse(fmt)
    end = found.max + 2.0 ** (found.max_exponent - found.mantissa_bits - 1)
    if found.max_code % 2 == 0:  # the tie goes to the largest value, whose code is even
        end = math.nextafter(end, math.inf)
    return found.smallest_subnormal / 2, found.smallest_normal, math.inf if found.specials == "finite" else end


def _sizes(tensor: Tensor) -> Float[Tensor, " values"]:
    """Magnitudes of the values that are not zero, as they are; LabError for an infinity or a NaN among them."""
    size = tensor.detach().abs()
    if not bool(size.isfinite().all()):
        raise LabError("A tensor to be counted holds an infinity or a NaN.", "Count gradients of a finite loss.")
    return size[size > 0]


def _none() -> LabError:
    return LabError("There are no values to count.", "Call backward first, and pass the gradients.")


def shares(tensors: Iterable[Tensor], fmt: Format | str, scale: float = 1.0) -> RangeShares:
    """Count the values of `tensors`, times `scale`, against the range of `fmt`.

    Raises:
        LabError: when there is nothing to count, a value is already infinite or NaN, or the scale is not positive.
    """
    if not 0 < scale < math.inf:
        raise LabError(f"Gradients cannot be scaled by {scale}.", "Choose a positive, finite scale.")
    low, normal, end = borders(fmt)
    total = zeros = 0
    counts = torch.zeros(3, dtype=torch.int64)
    for tensor in tensors:
        here = _sizes(tensor).double() * scale  # in fp64 a power of two moves no value across a border
        total, zeros = total + here.numel(), zeros + tensor.numel() - here.numel()
        under = here <= low
        counts += torch.stack([under.sum(), ((here < normal) & ~under).sum(), (here >= end).sum()]).cpu()
    if total + zeros == 0:
        raise _none()
    part = (counts.double() / max(1, total)).tolist()
    return RangeShares(total, zeros, *part)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients that a model holds now, by parameter name."""
    return {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}


def layer_of(name: str) -> str:
    """The part of the model that a parameter belongs to: "embedding", "layer 3", or "final norm" and the like."""
    parts = name.split(".")
    numbers = [part for part in parts if part.isdigit()]
    if numbers:
        return f"layer {numbers[0]}"
    return "embedding" if "embed" in name else "head" if "head" in name else "final norm"


def by_layer(model: torch.nn.Module, fmt: Format | str, scale: float = 1.0) -> list[dict]:
    """One row a layer: how its gradients, times `scale`, lie in `fmt` (shares as in RangeShares), and the median.

    Raises LabError where the model holds no gradients.
    """
    grouped: dict[str, list[Tensor]] = {}
    for name, gradient in gradients(model).items():
        grouped.setdefault(layer_of(name), []).append(gradient)
    if not grouped:
        raise _none()
    rows = []
    for layer, tensors in grouped.items():
        found = shares(tensors, fmt, scale)
        row = {"layer": layer, "values": found.values, "zeros": found.zeros, "median": _median(tensors) * scale}
        rows.append(row | {k: getattr(found, k) for k in ("underflow", "subnormal", "overflow")})
    return rows


def _median(tensors: list[Tensor]) -> float:
    sizes = torch.cat([t[t != 0].float().abs().flatten() for t in tensors])
    return float(sizes.median()) if sizes.numel() else 0.0


def magnitudes(tensors: Iterable[Tensor], limit: int = 400_000, seed: int = 0) -> Float[Tensor, " values"]:
    """Magnitudes of the values that are not zero: all, or a sample of `limit`; the largest is always among them.

    Raises LabError for an infinity or a NaN, and where every value is zero.
    """
    found = [_sizes(t).to(torch.promote_types(t.dtype, torch.float32)).cpu() for t in tensors]
    sizes = torch.cat(found) if found else torch.empty(0)
    if not sizes.numel():
        raise _none()
    if sizes.numel() <= limit:
        return sizes
    picked = torch.randint(sizes.numel(), (limit - 1,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([sizes[picked], sizes.max()[None]])


def histogram(sizes: Float[Tensor, " values"]) -> dict[int, float]:
    """Share of the values that are not zero in each power of two: key k counts 2^k up to, and without, 2^(k+1)."""
    sizes = magnitudes([sizes], limit=sizes.numel())
    exponents = torch.frexp(sizes).exponent - 1
    found, counts = exponents.unique(return_counts=True)
    return {int(k): int(n) / sizes.numel() for k, n in zip(found, counts, strict=True)}


def window(sizes: Float[Tensor, " values"], fmt: Format | str, lose: float = 1e-3) -> tuple[int, int]:
    """The loss scales 2^low … 2^high with which at most a share `lose` underflows and nothing overflows.

    low is greater than high where there is no such scale. Raises LabError as `magnitudes` does.
    """
    under, _, end = borders(fmt)
    sizes = magnitudes([sizes], limit=sizes.numel())
    count = sizes.numel()
    allowed = round(lose * count)  # 0.29 · 100 is 28.999… in floating point
    allowed -= allowed / count > lose
    smallest = sizes.sort().values[min(count - 1, allowed)]
    # Exactly, from mantissas and exponents: a logarithm would be rounded, at a border to the wrong side.
    (mantissa, exponent), (border, place) = math.frexp(float(smallest)), math.frexp(under)
    low = place - exponent + (0 if mantissa > border else 1)
    (mantissa, exponent), (border, place) = math.frexp(float(sizes.max())), math.frexp(end)
    return low, MOST if math.isinf(end) else place - exponent - (0 if mantissa < border else 1)


def second_moments(tensors: Iterable[Tensor], beta2: float = 0.999) -> list[Tensor]:
    """What a first step writes into Adam's second moment: (1-β2) g²."""
    return [(1 - beta2) * t.detach().float().square() for t in tensors]


@torch.no_grad()
def adamw_updates(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """For every parameter that AdamW has moved: the parameter in fp32, and the update that its state asks for.

    The update is -η m̂ / (√v̂ + ε) - η λ w, from the moments as they are, with the group's learning rate.
    """
    found = []
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if state:
                count = float(state["step"])
                m = state["exp_avg"].float() / (1 - beta1**count)
                v = state["exp_avg_sq"].float() / (1 - beta2**count)
                weight = parameter.detach().float()
                update = -group["lr"] * (m / (v.sqrt() + group["eps"]) + group["weight_decay"] * weight)
                found.append((weight, update))
    return found


def lost_updates(
    pairs: Iterable[tuple[Tensor, Tensor]],
    fmt: Format | str,
    shrink: float = 1.0,
    generator: torch.Generator | None = None,
) -> float:
    """Share of updates that are not zero and leave a weight in `fmt` where it was.

    Args:
        pairs: weights and updates, in fp32; the weights are rounded to `fmt` first.
        fmt: fp32, tf32, bf16 or fp16.
        shrink: multiplies the updates, as a falling learning rate does.
        generator: round with dice from it instead of to nearest.

    Raises:
        LabError: when no update is different from zero, or a weight or an update is not finite in `fmt`.
    """
    lost = total = 0
    for weight, update in pairs:
        stored, moving = round_nearest(weight, fmt), update * shrink
        if not bool((stored.isfinite() & moving.isfinite()).all()):
            cause = f"A weight or an update is infinite or NaN in {fmt}."
            raise LabError(cause, "Count on a model whose loss is finite, or in a wider format.")
        target = stored + moving
        new = round_nearest(target, fmt) if generator is None else round_stochastic(target, fmt, generator)
        asked = moving != 0
        lost += int(((new == stored) & asked).sum())
        total += int(asked.sum())
    if total == 0:
        raise LabError("No update is different from zero.", "Make a step first.")
    return lost / total
