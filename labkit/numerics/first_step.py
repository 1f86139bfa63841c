"""How far one optimizer step changes what a stack computes, and by which of its parameters.

DeepNorm (Wang et al. 2022, arXiv:2203.00555, section 4) bounds the change of the output by one step of SGD. The bound
is a sum over the matrices of 2N sub-layers. With both matrices of a branch drawn with gain beta, and the stream alpha
times as loud, each term is proportional to 2 beta²/alpha², and the constants make the sum 1 at every depth.

Two things lie outside of it. Gains and biases of the norms are drawn with no beta, and there are 4N of them. And Adam's
first step is the learning rate in every weight, whatever the gradient, so that one beta/alpha of the two is gone: the
same sum is then 2N · 2 beta/alpha = 2 sqrt(N) with DeepNorm's constants for a decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labkit.errors import UnknownNameError
from labkit.numerics.depth import EPS, batches, losses_of
from labkit.numerics.stack import DecoderStack, StackConfig

MATRICES = ("qkv", "out", "up", "down")  # of every layer: what the bound is about
NORMS = ("norm1_gain", "norm1_bias", "norm2_gain", "norm2_bias")
RULES = ("adam", "sgd")


def first_update(
    config: StackConfig,
    seeds: Sequence[int],
    learning_rate: float,
    rule: str = "adam",
    only: Sequence[str] | None = None,
    device: str = "cpu",
) -> list[float]:
    """Root mean square by which the first step changes the last hidden state, on the batch that it is made on.

    Args:
        seeds: of weights and data; one result for each.
        rule: "sgd" goes along the gradient; "adam" by the learning rate in every weight.
        only: names of the parameters that take the step (default: all).
    """
    if rule not in RULES:
        raise UnknownNameError.among("rule", rule, RULES)
    stack = DecoderStack(config, seeds).to(device)
    tokens = batches(seeds, 0, 8, config.seq_len).to(device)
    losses_of(stack, tokens).sum().backward()
    with torch.no_grad():
        before = stack.hidden(tokens[:, :, :-1])
        for name, p in stack.named_parameters():
            if p.grad is not None and (only is None or name in only):
                p.sub_(p.grad / (p.grad.abs() + EPS) if rule == "adam" else p.grad, alpha=learning_rate)
        return (stack.hidden(tokens[:, :, :-1]) - before).square().mean((1, 2)).sqrt().tolist()
