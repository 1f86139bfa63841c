"""Tensor parallelism: one matrix product on many ranks, which together hold its weight once.

(Shoeybi et al. 2019, arXiv:1909.08053.) A linear layer Y = X A can be cut in two ways over t ranks:

    by columns    A = [A_1 … A_t]           Y_r = X A_r              every rank has some columns of Y
    by rows       A = [A_1; …; A_t]         Y   = Σ_r X_r A_r        every rank has a summand of Y

A row-cut layer takes as its X_r just what a column-cut one gives as its Y_r, and whatever works on each column by
itself (an activation function, a head of attention) fits in between. So a pair of layers needs one sum, at its end:

    X ─ f ─ columns ─ activation ─ rows ─ g ─ Z

`f` and `g` are conjugate, and they are all the communication there is:

    f    forward: nothing         backward: all-reduce     ∂L/∂X = Σ_r ∂L/∂Y_r A_rᵀ: each rank knows one summand
    g    forward: all-reduce      backward: nothing        Z = Σ_r Z_r, so that ∂L/∂Z_r = ∂L/∂Z on every rank

A bias after columns is cut like them; a bias after rows is added once, after the sum. Left out, f leaves every gradient
below it wrong while forward and loss stay right, which is why a test of the loss alone does not find it.

torch stores the transpose, `weight` [out, in], so that columns of A are rows of `weight`.

Lecture 004 lists Megatron-LM as "pipeline model parallelism" and cites this paper. The paper cuts inside the layers,
which is tensor parallelism; pipelines between the layers (`labkit.parallel.pipeline`) are orthogonal to it and came to
Megatron two years later (Narayanan et al. 2021, arXiv:2104.04473).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labkit.errors import LabError

Group = dist.ProcessGroup | None


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _summed(gradients[0], ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, summand: Tensor, group: Group) -> Tensor:
        return _summed(summand, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return gathered(part, -1, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].chunk(dist.get_world_size(ctx.group), -1)[dist.get_rank(ctx.group)], None


def _summed(summand: Tensor, group: Group) -> Tensor:
    # A copy: autograd may have handed the same gradient to another branch.
    total = summand.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def enter(x: Float[Tensor, ...], group: Group = None) -> Float[Tensor, ...]:
    """f: x, the same on every rank, enters computation that differs by rank. All-reduces its gradient."""
    return _Enter.apply(x, group)


def leave(summand: Float[Tensor, ...], group: Group = None) -> Float[Tensor, ...]:
    """g: the sum of what the ranks computed, on every rank. Passes its gradient on as it is."""
    return _Leave.apply(summand, group)


def gather_columns(part: Float[Tensor, "... part"], group: Group = None) -> Float[Tensor, "... whole"]:
    """All columns, from the part that each rank has. Its gradient is the rank's part of the whole's."""
    return _Gather.apply(part, group)


def gathered(part: Tensor, dim: int, group: Group = None) -> Tensor:
    """The ranks' parts, of one shape each, joined along `dim`; no gradient."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part.detach().contiguous(), group=group)
    return torch.cat(parts, dim)


def shard(whole: Tensor, dim: int, group: Group = None, what: str = "dimension") -> nn.Parameter:
    """This rank's part of a parameter along `dim`, in memory of its own.

    Args:
        what: the name of that dimension, for the error.

    Raises:
        LabError: where the ranks cannot have equal parts.
    """
    ranks = dist.get_world_size(group)
    if whole.shape[dim] % ranks:
        raise LabError(
            f"The {what} of {whole.shape[dim]} cannot be cut into {ranks} equal parts.",
            f"Choose a number of ranks that divides {whole.shape[dim]}.",
        )
    part = whole.detach().chunk(ranks, dim)[dist.get_rank(group)]
    return nn.Parameter(part.clone(memory_format=torch.contiguous_format), requires_grad=whole.requires_grad)


class ColumnParallelLinear(nn.Module):
    """A linear layer of which this rank computes `out_features / t` outputs.

    Args:
        whole: the same on every rank; it may be dropped afterwards.
        group: of the ranks that share it; all, unless given.
        enters: False where several layers share an input to which `enter` was applied once. Each on its own would
            all-reduce its gradient of it; the sum is all-reduced once.
        gather_output: give all outputs to every rank.

    Raises:
        LabError: where `whole` is no plain linear layer, or its outputs cannot be divided.
    """

    cut_along = {"weight": 0, "bias": 0}

    def __init__(self, whole: nn.Module, group: Group = None, *, enters: bool = True, gather_output: bool = False):
        super().__init__()
        linear = _plain(whole)
        self.group, self.enters, self.gather_output = group, enters, gather_output
        self.weight = shard(linear.weight, 0, group, "number of outputs")
        self.bias = None if linear.bias is None else shard(linear.bias, 0, group)

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """This rank's columns, or with `gather_output` all of them."""
        y = F.linear(enter(x, self.group) if self.enters else x, self.weight, self.bias)
        return gather_columns(y, self.group) if self.gather_output else y


class RowParallelLinear(nn.Module):
    """A linear layer to which this rank brings `in_features / t` inputs. Its bias is whole on every rank.

    Args:
        whole: the same on every rank.
        group: of the ranks that share it; all, unless given.

    Raises:
        LabError: where `whole` is no plain linear layer, or its inputs cannot be divided.
    """

    cut_along = {"weight": 1}

    def __init__(self, whole: nn.Module, group: Group = None):
        super().__init__()
        linear = _plain(whole)
        self.group = group
        self.weight = shard(linear.weight, 1, group, "number of inputs")
        self.bias = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)

    def forward(self, part: Float[Tensor, "... part"]) -> Float[Tensor, "... out"]:
        """All outputs, from this rank's part of the inputs."""
        total = leave(F.linear(part, self.weight), self.group)
        return total if self.bias is None else total + self.bias


def _plain(layer: nn.Module) -> nn.Linear:
    # A subclass (4-bit weights, say) computes something else from something else.
    if type(layer) is not nn.Linear:
        raise LabError(
            f"A {type(layer).__name__} cannot be cut.", "Cut the model before its linear layers are changed."
        )
    return layer
