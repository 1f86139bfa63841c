"""w ← round(c w + Σ aᵢ zᵢ): what all of MeZO does to weights (Malladi et al. 2023, arXiv:2305.17333, algorithm 1).

    perturbation    w + ε z            one term
    −2ε, back       w − 2ε z, w + ε z  the same seed again
    update          (1 − η λ) w − η/n Σ gᵢ zᵢ          decay and n directions at once

However many terms there are, each weight is read once, the sum is formed in fp32 (fp64 for fp64 weights) and rounded
once to the weight's dtype. On a CPU this goes by chunks, on a GPU in one kernel (`labkit.zeroth.fused`); no temporary
grows with the tensor. A slice of a tensor, or some of its rows, get the z that they have in the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.zeroth import fused, noise

CHUNK = noise.LANES * noise.PIECE  # values, and at most this many are in a temporary

Terms = Sequence[tuple[int, float]]
"""(seed, scale) of each direction."""


@dataclass(frozen=True)
class Weight:
    """A trained tensor.

    Attributes:
        name: under which its noise is drawn; of a tied one the first of its names in alphabetical order.
        decayed: whether weight decay shrinks it: matrices, not biases and norms, as in MeZO's published code.
        aliases: `id` of every parameter that is this tensor.
    """

    name: str
    tensor: Tensor
    decayed: bool
    aliases: frozenset[int]


def trained(model: nn.Module, without: Collection[int] = ()) -> list[Weight]:
    """The model's trained tensors, each once, sorted by name: the order of registration plays no part.

    Parameters that require no gradient, and those that hold integers, are left out.

    Args:
        without: `id` of parameters that are left out too.

    Raises:
        LabError: where nothing trains, or a tensor is not contiguous.
    """
    found: dict[tuple, list[tuple[str, nn.Parameter]]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.is_floating_point() and p.numel() and id(p) not in without:
            # A tensor without memory (on the device "meta") has no address to be known by.
            found.setdefault((p.data_ptr() or id(p), p.dtype, p.shape, p.stride()), []).append((name, p))
    weights = []
    for group in found.values():
        if any(p.requires_grad for _, p in group):
            name, tensor = min(group, key=lambda pair: pair[0])
            aliases = frozenset(id(p) for _, p in group)
            weights.append(Weight(name, tensor.detach(), tensor.dim() >= 2, aliases))
    if not weights and not without:
        raise LabError("Nothing of this model trains.", "Set requires_grad on the parameters that should.")
    if strange := [w.name for w in weights if not w.tensor.is_contiguous()]:
        raise LabError(f"{strange[0]} is not contiguous in memory.", "Assign `p.data = p.data.contiguous()`.")
    return sorted(weights, key=lambda w: w.name)


def write(source: Tensor, out: Tensor, name: str, terms: Terms, keep: float = 1.0, start: int = 0) -> None:
    """out ← round(keep · source + Σ scale · z), without a temporary of the tensor's size.

    Args:
        source, out: contiguous, of one shape and dtype; may be the same tensor.
        name, start: the tensor that these values belong to, and the index in it of the first of them.
        terms: seed and scale of each direction.
    """
    if fused.usable(out):
        fused.write(source, out, name, terms, keep, start)
        return
    values, target = source.view(-1), out.view(-1)
    keys = [noise.key(seed, name) for seed, _ in terms]
    for begin in range(0, len(values), CHUNK):
        total = _widened(values[begin : begin + CHUNK], keep)
        for halves, (_, scale) in zip(keys, terms, strict=True):
            z = noise.normal(halves, start + begin, len(total), out.device)
            total.add_(z.to(total.dtype).mul_(scale))
        target[begin : begin + CHUNK].copy_(total)


def add_(tensor: Tensor, name: str, terms: Terms, keep: float = 1.0) -> None:
    """The same in place. Nothing is written where nothing changes: no term has a scale but 0, and `keep` is 1."""
    terms = [(seed, scale) for seed, scale in terms if scale]
    if terms or keep != 1.0:
        write(tensor, tensor, name, terms, keep)


def rows(
    matrix: Float[Tensor, "rows width"], ids: Int[Tensor, " n"], name: str, terms: Terms
) -> Float[Tensor, "n width"]:
    """Some rows of round(matrix + Σ scale · z), in the order of `ids`; the others' noise is never drawn."""
    width = matrix.shape[1]
    out = torch.empty(len(ids), width, dtype=matrix.dtype, device=matrix.device)
    if fused.usable(out):
        fused.write(matrix, out, name, terms, 1.0, 0, ids)
        return out
    keys = [noise.key(seed, name) for seed, _ in terms]
    for some, target in _pairs(ids, out, max(1, CHUNK // width)):
        total = _widened(matrix[some], 1.0)
        for halves, (_, scale) in zip(keys, terms, strict=True):
            total.add_(noise.of_rows(halves, some, width).to(total.dtype).mul_(scale))
        target.copy_(total)
    return out


def _pairs(ids: Tensor, out: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(ids.split(size), out.split(size), strict=True)


def _widened(values: Tensor, keep: float) -> Tensor:
    """A copy in the format that sums are formed in, times `keep`."""
    return values.to(torch.promote_types(values.dtype, torch.float32), copy=True).mul_(keep)
