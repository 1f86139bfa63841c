r"""Softmax of attention scores in fp16: where it overflows, and the alpha-scaled softmax of GLM-130B.

For queries and keys with d numbers a head, attention weights are softmax(q·k / sqrt(d)) along each row. In fp16 four
things can pass 65504, and each repair below helps against some of them:

    q·k             before it is divided: divide the query by sqrt(d), not the product
    the score       q·k / sqrt(d), before any softmax sees it: divide the query by alpha as well
    exp(score)      from a score of 11.09 on: subtract the row's maximum first (`shifted_softmax`)
    the sum of exp  from two scores of 10.40 or four of 9.71 on, and then all weights of the row are 0, which looks like
                    a result; the shift helps here too, up to 65519 equal scores. fp32 helps for any number

A score that is rounded to infinity loses its row (inf - inf). One that is rounded to -inf gets the weight 0, which is
right as long as another score of its row is finite; the first token of causal attention has only one.
Where transformers writes attention out (`eager_attention_forward`), it takes the softmax in fp32, but stores the bare
product, multiplies it by 1/sqrt(d) afterwards, and adds the mask: EAGER below.

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

    After the shift nothing is positive and the maximum is 0, so the product can only pass the range downwards, where
    exp gives the right 0.
    """
    return naive_softmax((scores - scores.amax(-1, keepdim=True)) * alpha)


def fp32_softmax(scores: Tensor, alpha: float = 1.0) -> Tensor:
    """Line 2: scores that were divided by alpha, widened, multiplied by it, softmax in fp32, rounded back."""
    return torch.softmax(scores.float() * alpha, dim=-1).to(scores.dtype)


def _weights(name: str, q: Tensor, k: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Scores as stored, and attention weights, by one of VARIANTS or EAGER."""
    scaled, divide = VARIANTS.get(name, (False, "scores"))
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
    if name == EAGER:  # adds its mask, so that a score of infinity behind it costs the row as well
        return scores, fp32_softmax(scores + hidden.to(scores.dtype) * torch.finfo(scores.dtype).min)
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
EAGER = "transformers eager"
LIBRARY = "torch.sdpa"
SUM_TOLERANCE = 0.01  # rounding to fp16 alone leaves the sum of a row's weights within 0.001 of 1


@dataclass(frozen=True)
class Damage:
    """What fp16 did to one attention.

    Attributes:
        overflow: share of the scores that causal attention reads and that are not finite; None where they are not seen.
        lost: share of the output rows with a value that is not a number.
        error: relative error of the finite output rows, against float64 (root mean square over root mean square).
        unsummed: share of the rows that are finite, but whose weights do not sum to 1 (such as a row of zeros after the
            sum has overflowed); None where the weights are not seen.
    """

    overflow: float | None
    lost: float
    error: float
    unsummed: float | None = None

    @property
    def whole_error(self) -> float | None:
        """`error` where no row is lost; else None, since the rows that are left are not those of other variants."""
        return self.error if self.lost == 0 else None


def damage(name: str, q: Tensor, k: Tensor, v: Tensor, alpha: float = 1.0) -> Damage:
    """Attend causally in fp16 by the variant `name` (or by torch's own kernel), and compare with float64.

    Args:
        name: one of VARIANTS, EAGER or LIBRARY.
        q, k, v: [*heads, seq, d]; rounded to fp16 first, so that only the attention itself is judged.
        alpha: for the variants that use it.
    """
    if name not in (*VARIANTS, EAGER, LIBRARY):
        raise UnknownNameError.among("softmax", name, (*VARIANTS, EAGER, LIBRARY))
    q, k, v = (t.to(torch.float16) for t in (q, k, v))
    overflow = sums = None
    if name == LIBRARY:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        scores, weights = _weights(name, q, k, alpha)
        read = torch.ones_like(scores, dtype=torch.bool).tril()
        overflow = 1 - scores.isfinite()[read].double().mean().item()
        out, sums = weights @ v, weights.double().sum(-1)
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    good = out.isfinite().all(-1)
    wrong = (out.double() - wanted)[good].square().mean().sqrt() / wanted[good].square().mean().sqrt()
    unsummed = None if sums is None else (good & ((sums - 1).abs() > SUM_TOLERANCE)).double().mean().item()
    return Damage(overflow, 1 - good.double().mean().item(), wrong.item(), unsummed)


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
