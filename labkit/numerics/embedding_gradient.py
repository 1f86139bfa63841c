"""Embedding-gradient shrink: a smaller gradient for the embedding, the same forward pass.

GLM-130B (Zeng et al. 2023, arXiv:2210.02414, section 3; first in CogView, Ding et al. 2021, arXiv:2105.13290) saw the
embedding's gradient norm orders of magnitude above the other layers' early in training, and spikes in it a few steps
before collapses. Its remedy, quoted in the lecture ("Efficient Tuning of Large Language Models", 2023), with alpha 0.1:

    word_emb = word_emb * alpha + word_emb.detach() * (1 - alpha)

The detached half carries no gradient, so the gradient is multiplied by alpha. The forward pass is unchanged in exact
arithmetic; in floating point two products and a sum are rounded, and `shrink_by_sum` may move a value by a unit in the
last place. `shrink_by_hook` multiplies the gradient itself, and leaves every bit of the forward pass alone.

Two limits. Where the output layer shares the embedding's matrix (tied weights), the matrix also gets a gradient from
the output, which neither way touches. And Adam divides each gradient by its own recent size, so that a constant factor
cancels, but for clipping by the global norm, for the range of fp16, and for its epsilon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from labkit.errors import LabError, UnknownNameError


def shrink_by_sum(x: Tensor, alpha: float) -> Tensor:
    """`x` up to rounding, with its gradient multiplied by `alpha`: the lecture's line."""
    return x * alpha + x.detach() * (1 - alpha)


def shrink_by_hook(x: Tensor, alpha: float) -> Tensor:
    """`x` bit for bit, with its gradient multiplied by `alpha`."""
    if not x.requires_grad:
        return x
    same = x.view_as(x)  # the hook belongs to this use of x, not to x itself
    same.register_hook(lambda gradient: gradient * alpha)
    return same


WAYS: dict[str, Callable[[Tensor, float], Tensor]] = {"sum": shrink_by_sum, "hook": shrink_by_hook}


def shrink_embedding(model: nn.Module, alpha: float = 0.1, way: str = "hook") -> RemovableHandle:
    """Shrink the gradient of a transformers model's input embedding from now on; `.remove()` the handle to stop.

    Args:
        alpha: factor for the gradient, 0.1 in GLM-130B; 1 changes nothing.
        way: one of WAYS.

    Raises:
        LabError: for an alpha outside 0...1.
    """
    if way not in WAYS:
        raise UnknownNameError.among("way to shrink", way, WAYS)
    if not 0 <= alpha <= 1:
        raise LabError(f"alpha = {alpha} is not a share.", "Choose a number from 0 to 1, such as 0.1.")
    embedding = _embedding(model)
    return embedding.register_forward_hook(lambda _module, _inputs, output: WAYS[way](output, alpha))


def _embedding(model: Any) -> nn.Embedding:
    return model.get_input_embeddings()


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Euclidean norm of the gradient of the embedding, of each layer and of what comes after, in the model's order.

    For a transformers decoder (`model.model.layers`). A tied output matrix is the embedding and counts there.
    """
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        part = _part(name)
        squares[part] = squares.get(part, 0.0) + parameter.grad.double().square().sum().item()
    if not squares:
        raise LabError("There are no gradients yet.", "Call backward() on a loss first.")
    return {part: square**0.5 for part, square in squares.items()}


def _part(name: str) -> str:
    pieces = name.split(".")
    if "layers" in pieces:
        return f"layer {int(pieces[pieces.index('layers') + 1]) + 1}"
    if "embed" in name:
        return "embedding"
    return "output" if "head" in name else "last norm"


def embedding_gradient_parts(
    model: nn.Module, loss: Callable[[], Float[Tensor, ""]]
) -> dict[str, Float[Tensor, "vocabulary width"]]:
    """The gradient of the embedding matrix in its two parts: through the input, and through a tied output layer.

    Args:
        loss: computes the loss of one batch with `model`; called once.

    Returns `input` and `output`, whose sum is the matrix' gradient; `output` is zero where the weights are not tied.
    """
    embedding = _embedding(model)
    seen: list[Tensor] = []
    handle = embedding.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        value = loss()
    finally:
        handle.remove()
    total, *gradients = torch.autograd.grad(value, [embedding.weight, *seen], retain_graph=True)
    # The embedding's own backward, since it knows which token is padding and gets no gradient.
    (through_input,) = torch.autograd.grad(seen, embedding.weight, gradients)
    return {"input": through_input, "output": total - through_input}
