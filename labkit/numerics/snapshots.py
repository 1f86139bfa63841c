"""What a stack looks like inside while it trains, layer by layer: what is left of the input, and who still moves.

A loss that stays where it is does not say why. Four numbers of each layer do:

    common, apart   the residual stream in two, its mean over all places and the rest; without the rest no place can
                    know what stood before it
    gradient        a typical entry of the layer's gradient; Adam's epsilon is its yardstick
    step            how far Adam moves a typical weight, in learning rates: m / (sqrt(v) + epsilon), bias-corrected.
                    It is 1 at the first step. Where gradients fall quickly it falls too, since sqrt(v) remembers the
                    large ones for longer than m (Kingma & Ba 2015, arXiv:1412.6980)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from labkit.numerics.stack import LAYER_PARAMETERS, DecoderStack


@dataclass(frozen=True)
class Snapshot:
    """One run after some step; root mean squares.

    Attributes:
        common, apart: of the stream's mean over places and of what differs from it, at the input and after each layer.
        gradient: of the entries of each layer's gradient, at the step just made.
        step: of Adam's step over the learning rate, by layer.
    """

    common: list[float]
    apart: list[float]
    gradient: list[float]
    step: list[float]


def snapshots(
    stack: DecoderStack,
    tokens: Int[Tensor, "runs batch seq"],
    gradients: Float[Tensor, "layers runs"],
    steps: Iterable[Tensor],
) -> list[Snapshot]:
    """A snapshot of each run.

    Args:
        tokens: the batch that the streams are measured on.
        gradients: Euclidean norm of each layer's gradient.
        steps: Adam's step over the learning rate, for every parameter of the stack in its order.
    """
    names = [name for name, _ in stack.named_parameters()]
    taken = {name: step for name, step in zip(names, steps, strict=True) if name in LAYER_PARAMETERS}
    count = sum(step[0, 0].numel() for step in taken.values())
    squares = torch.stack([step.flatten(2).square().sum(-1) for step in taken.values()]).sum(0)
    common, apart = stack.stream_parts(tokens)
    columns = (common, apart, gradients / count**0.5, (squares / count).sqrt())
    return [Snapshot(*(values[:, run].tolist() for values in columns)) for run in range(stack.runs)]
