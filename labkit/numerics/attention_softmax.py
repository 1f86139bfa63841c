r"""Softmax of attention scores in fp16: where it overflows, and the alpha-scaled softmax of GLM-130B.

For queries and keys with d numbers a head, attention weights are softmax(q·k / sqrt(d)) along each row. In fp16 three
things can pass 65504, and each repair below helps against one of them:

    exp(score)      beyond 65504 from a score of 11.09 on: subtract the row's maximum first (`shifted_softmax`)
    q·k             beyond 65504 before any softmax sees it: divide the query by alpha·sqrt(d) before the product
    the sum of exp  never after the shift, but it and each exp are rounded to 11 bits: compute them in fp32

The lecture ("Efficient Tuning of Large Language Models", 2023, equation 4) quotes two lines, equal in exact arithmetic:

    softmax(q·k / sqrt(d)) = softmax((s - max s) · alpha)                  with s = q·k / (alpha·sqrt(d))     (line 1)
                           = FP16(softmax(FP32(s) · alpha))                                                   (line 2)

Line 1 is CogView's "precision bottleneck relaxation" (Ding et al. 2021, arXiv:2105.13290), line 2 what GLM-130B used
(Zeng et al. 2023, arXiv:2210.02414). Two things are easy to misread. The lecture's caption credits the float32 softmax
with avoiding overflow; a score that is infinite stays so in float32, and it is alpha that keeps it finite. And read
from left to right the formula divides the finished product, which is too late: the division belongs to the query.
The maximum is one for each row. One for a whole matrix gives the same numbers in exact arithmetic, but lets every exp
of a low row underflow, and 0/0 follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from labkit.errors import LabError, UnknownNameError

FP16_MAX = torch.finfo(torch.float16).max


def attention_scores(
    q: Float[Tensor, "*heads seq d"], k: Float[Tensor, "*heads seq d"], alpha: float = 1.0, divide: str = "query"
) -> Float[Tensor, "*heads seq seq"]:
    """Scores q·k / (alpha·sqrt(d)) in the dtype of `q`.

    Args:
        alpha: extra divisor, 1 or more; it has to come back in the softmax.
        divide: "query" divides the query before the product, "scores" the product, as the formula is written.
    """
    if not alpha > 0:
        raise LabError(f"alpha = {alpha} is not positive.", "Choose 1 or more.")
    divisor = alpha * math.sqrt(q.shape[-1])
    if divide == "query":
        return (q / divisor) @ k.mT
    if divide == "scores":
        return (q @ k.mT) / divisor
    raise UnknownNameError.among("place to divide", divide, ("query", "scores"))


def naive_softmax(scores: Tensor) -> Tensor:
    """exp(s) / sum exp(s) along the last dimension, every result in the dtype of `scores`."""
    powers = scores.exp()
    return powers / powers.sum(-1, keepdim=True)


def shifted_softmax(scores: Tensor) -> Tensor:
    """The same with the row's maximum subtracted first, so that no exponent is above 0."""
    return naive_softmax(scores - scores.amax(-1, keepdim=True))


def relaxed_softmax(scores: Tensor, alpha: float) -> Tensor:
    """Line 1: scores that were divided by alpha, shifted, and only then multiplied by it; all in their own dtype.

    After the shift nothing is positive, so the product can only pass the range downwards, where exp gives the right 0.
    """
    return naive_softmax((scores - scores.amax(-1, keepdim=True)) * alpha)


def fp32_softmax(scores: Tensor, alpha: float = 1.0) -> Tensor:
    """Line 2: scores that were divided by alpha, widened, multiplied by it, softmax in fp32, rounded back."""
    return torch.softmax(scores.float() * alpha, dim=-1).to(scores.dtype)


def _weights(name: str, q: Tensor, k: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Scores as stored, and attention weights, by one of VARIANTS."""
    scaled, divide = VARIANTS[name]
    scores = attention_scores(q, k, alpha if scaled else 1.0, divide)
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
    softmax: dict[str, Callable[[Tensor], Tensor]] = {
        "naive": naive_softmax,
        "shifted": shifted_softmax,
        "fp32": fp32_softmax,
        "line 1": lambda s: relaxed_softmax(s, alpha),
        "line 2": lambda s: fp32_softmax(s, alpha),
        "line 2, divided late": lambda s: fp32_softmax(s, alpha),
    }
    return scores, softmax[name](scores.masked_fill(hidden, -math.inf))


# name: (uses alpha, where the division is done)
VARIANTS = {
    "naive": (False, "query"),
    "shifted": (False, "query"),
    "fp32": (False, "query"),
    "line 1": (True, "query"),
    "line 2": (True, "query"),
    "line 2, divided late": (True, "scores"),
}
LIBRARY = "torch.sdpa"


@dataclass(frozen=True)
class Damage:
    """What fp16 did to one attention.

    Attributes:
        overflow: share of the scores that causal attention reads and that are not finite; None where they are not seen.
        lost: share of the output rows with a value that is not a number.
        error: relative error of the finite output rows, against float64 (root mean square over root mean square).
    """

    overflow: float | None
    lost: float
    error: float


def damage(name: str, q: Tensor, k: Tensor, v: Tensor, alpha: float = 1.0) -> Damage:
    """Attend causally in fp16 by the variant `name` (or by torch's own kernel), and compare with float64.

    Args:
        name: one of VARIANTS, or LIBRARY.
        q, k, v: [*heads, seq, d]; rounded to fp16 first, so that only the attention itself is judged.
        alpha: for the variants that use it.
    """
    if name not in VARIANTS and name != LIBRARY:
        raise UnknownNameError.among("softmax", name, (*VARIANTS, LIBRARY))
    q, k, v = (t.to(torch.float16) for t in (q, k, v))
    overflow = None
    if name == LIBRARY:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        scores, weights = _weights(name, q, k, alpha)
        read = torch.ones_like(scores, dtype=torch.bool).tril()
        overflow = 1 - scores.isfinite()[read].double().mean().item()
        out = weights @ v
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    good = out.isfinite().all(-1)
    wrong = (out.double() - wanted)[good].square().mean().sqrt() / wanted[good].square().mean().sqrt()
    return Damage(overflow, 1 - good.double().mean().item(), wrong.item())


def attention_inputs(model, **inputs: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys (rotated by position) and values of every layer, [batch, heads, seq, d], as attention gets them.

    Works for every transformers model with an exchangeable attention (`AttentionInterface`); keys and values that
    several heads share are repeated.

    Args:
        inputs: `input_ids` and what else the model is called with.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    caught: list[tuple[Tensor, Tensor, Tensor]] = []

    def catch(module, query, key, value, *args, **kwargs):
        share = query.shape[1] // key.shape[1]
        caught.append((query.detach(), repeat_kv(key, share).detach(), repeat_kv(value, share).detach()))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    AttentionInterface.register("labkit_catch", catch)
    AttentionMaskInterface.register("labkit_catch", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("labkit_catch")
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    finally:
        model.set_attn_implementation(before)
    return caught
