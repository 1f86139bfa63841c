"""A decoder stack with a choice of normalization, for several runs at once.

A very deep and narrow stack keeps a GPU waiting for launches, not for arithmetic. So every parameter has a dimension
`runs` after its dimension `layers`: seeds and learning rates are trained beside each other, each with its own weights
and its own data, in the time of one. Nothing flows between runs; tests/numerics/test_stack.py shows that a run alone
gives the same values, and that a layer equals `torch.nn.TransformerEncoderLayer`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from labkit.errors import LabError
from labkit.numerics import deepnorm


@dataclass(frozen=True)
class StackConfig:
    """Sizes of a decoder stack. `norm` is one of `deepnorm.NORMS`; the feed-forward part is `4 * width` wide."""

    layers: int
    norm: str
    width: int = 64
    heads: int = 4
    vocabulary: int = 256
    seq_len: int = 64

    def __post_init__(self) -> None:
        deepnorm.constants(self.norm, self.layers)  # names and depth that make no sense are refused here
        if self.width % self.heads:
            raise LabError(f"Width {self.width} is no multiple of {self.heads} heads.", "Choose a multiple.")


class DecoderStack(nn.Module):
    """A causal transformer language model: Pre-LN, Post-LN or DeepNorm (also with GLM-130B's constants).

    All parameters are [layers, runs, ...] (embeddings and output [1, runs, ...]). Matrices are drawn by Xavier's normal
    rule, value, output and feed-forward ones with DeepNorm's gain beta; biases start at 0. Token embeddings have
    variance 1, as after the factor sqrt(width) of Vaswani et al. (2017).

    Args:
        config: sizes and norm.
        seeds: one run for each; a seed decides the weights, and equal seeds give equal weights.
    """

    qkv: nn.Parameter
    token_embedding: nn.Parameter
    place_embedding: nn.Parameter
    head: nn.Parameter

    def __init__(self, config: StackConfig, seeds: Sequence[int] = (0,)) -> None:
        super().__init__()
        if not seeds:
            raise LabError("A stack needs at least one run.", "Give at least one seed.")
        self.config, self.runs = config, len(seeds)
        self.alpha, self.beta = (lambda c: (c.alpha, c.beta))(deepnorm.constants(config.norm, config.layers))
        drawn = {seed: _draw(config, self.beta, seed) for seed in dict.fromkeys(seeds)}
        for name in drawn[seeds[0]]:
            self.register_parameter(name, nn.Parameter(torch.stack([drawn[s][name] for s in seeds], dim=1)))
        flat, one = (config.layers, self.runs), (1, self.runs)
        wide = {"qkv_bias": 3 * config.width, "out_bias": config.width, "up_bias": 4 * config.width}
        for name, size in {**wide, "down_bias": config.width}.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(*flat, size)))
        for name in ("norm1", "norm2"):
            self.register_parameter(f"{name}_gain", nn.Parameter(torch.ones(*flat, config.width)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(*flat, config.width)))
        if config.norm == "pre-ln":  # the stream grows unnormalized, so the output needs a norm of its own
            self.last_norm_gain = nn.Parameter(torch.ones(*one, config.width))
            self.last_norm_bias = nn.Parameter(torch.zeros(*one, config.width))

    def hidden(self, tokens: Int[Tensor, "runs batch seq"]) -> Float[Tensor, "runs places width"]:
        """The last hidden states; `places` is batch times seq."""
        *_, x = self._streams(tokens)
        if self.config.norm == "pre-ln":
            x = _layer_norm(x, self.last_norm_gain[0], self.last_norm_bias[0])
        return x

    @torch.no_grad()
    def stream_sizes(self, tokens: Int[Tensor, "runs batch seq"]) -> list[float]:
        """Root mean square of the residual stream at the input and after each layer, over all runs."""
        return [x.square().mean().sqrt().item() for x in self._streams(tokens)]

    @torch.no_grad()
    def stream_spreads(self, tokens: Int[Tensor, "runs batch seq"]) -> Float[Tensor, "layers_plus_1 runs"]:
        """Share (0...1) of the stream's mean square that differs between places, at the input and after each layer.

        At 0 all places hold one and the same vector, and what comes after cannot depend on the input.
        """
        common, apart = self.stream_parts(tokens)
        return apart.square() / (common.square() + apart.square())

    @torch.no_grad()
    def stream_parts(self, tokens: Int[Tensor, "runs batch seq"]) -> tuple[Tensor, Tensor]:
        """The residual stream in two: its mean over all places of the batch, and what is left at each place.

        Returns the root mean square of both, [layers + 1, runs] each, at the input and after each layer.
        """
        common, apart = [], []
        for x in self._streams(tokens):
            mean = x.mean(1, keepdim=True)
            common.append(mean.square().mean((1, 2)).sqrt())
            apart.append((x - mean).square().mean((1, 2)).sqrt())
        return torch.stack(common), torch.stack(apart)

    def _streams(self, tokens: Tensor) -> Iterator[Tensor]:
        """The residual stream [runs, places, width] at the input and after each layer."""
        runs, batch, seq = tokens.shape
        if runs != self.runs:
            raise LabError(f"The tokens are for {runs} runs, the stack has {self.runs}.", "Give each run a batch.")
        vocabulary, width = self.config.vocabulary, self.config.width
        first = torch.arange(runs, device=tokens.device).view(-1, 1, 1) * vocabulary
        x = F.embedding(tokens + first, self.token_embedding.view(runs * vocabulary, width))
        x = x + self.place_embedding[0, :, None, :seq]
        x = x.reshape(runs, batch * seq, width)
        yield x
        for layer in self._layers():
            x = self._sublayer(x, layer["norm1_gain"], layer["norm1_bias"], lambda y, w=layer: self._attend(y, w, seq))
            x = self._sublayer(x, layer["norm2_gain"], layer["norm2_bias"], lambda y, w=layer: _feed_forward(y, w))
            yield x

    def forward(self, tokens: Int[Tensor, "runs batch seq"]) -> Float[Tensor, "runs places vocabulary"]:
        """Logits of the next token at every place."""
        return torch.bmm(self.hidden(tokens), self.head[0])

    def torch_layer_state(self, layer: int, run: int = 0) -> dict[str, Tensor]:
        """One layer's weights as a state dict for `nn.TransformerEncoderLayer` (which keeps matrices transposed)."""
        pick = {name: getattr(self, name).detach()[layer, run] for name in LAYER_PARAMETERS}
        norms = {f"{n}.{t}": pick[f"{n}_{s}"] for n in ("norm1", "norm2") for t, s in _TORCH_NORM.items()}
        matrices = {f"{theirs}weight": pick[ours].T for ours, theirs in _TORCH_NAMES.items()}
        return {**norms, **matrices, **{f"{theirs}bias": pick[f"{ours}_bias"] for ours, theirs in _TORCH_NAMES.items()}}

    def _layers(self) -> Iterator[dict[str, Tensor]]:
        """The parameters of each layer in turn, [runs, ...] each; one `unbind` for all, so one `stack` backward."""
        names = [n for n, p in self.named_parameters() if n in LAYER_PARAMETERS]
        for values in zip(*(getattr(self, n).unbind(0) for n in names), strict=True):
            yield dict(zip(names, values, strict=True))

    def _sublayer(self, x: Tensor, gain: Tensor, bias: Tensor, branch) -> Tensor:
        """One sub-layer joined to the residual stream `x` [runs, places, width]."""
        if self.config.norm == "pre-ln":
            return x + branch(_layer_norm(x, gain, bias))
        stream = x if self.alpha == 1 else self.alpha * x
        return _layer_norm(stream + branch(x), gain, bias)

    def _attend(self, x: Tensor, w: dict[str, Tensor], seq: int) -> Tensor:
        runs, places, width = x.shape
        qkv = torch.baddbmm(w["qkv_bias"][:, None], x, w["qkv"])
        qkv = qkv.view(runs * places // seq, seq, 3, self.config.heads, width // self.config.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(runs, places, width)
        return torch.baddbmm(w["out_bias"][:, None], mixed, w["out"])


LAYER_PARAMETERS = (
    "qkv", "qkv_bias", "out", "out_bias", "up", "up_bias", "down", "down_bias",
    "norm1_gain", "norm1_bias", "norm2_gain", "norm2_bias",
)  # fmt: skip
_TORCH_NAMES = {"qkv": "self_attn.in_proj_", "out": "self_attn.out_proj.", "up": "linear1.", "down": "linear2."}
_TORCH_NORM = {"weight": "gain", "bias": "bias"}

# The place is told a tenth as loudly as the token: with equal variance a narrow stack first has to tell them apart.
PLACE_SCALE = 0.1


def _feed_forward(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    inner = F.gelu(torch.baddbmm(w["up_bias"][:, None], x, w["up"]))
    return torch.baddbmm(w["down_bias"][:, None], inner, w["down"])


def _layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm of x [runs, places, width] with a gain and a bias [runs, width] for each run."""
    return torch.addcmul(bias[:, None], F.layer_norm(x, x.shape[-1:]), gain[:, None])


def _draw(config: StackConfig, beta: float, seed: int) -> dict[str, Tensor]:
    """The random parameters of one run, [layers, ...]; every norm gets the same draws, up to the gain."""
    generator = torch.Generator().manual_seed(seed)
    layers, width = config.layers, config.width

    def xavier(rows: int, columns: int, gain: float = 1.0, count: int = layers) -> Tensor:
        scale = gain * math.sqrt(2 / (rows + columns))
        return torch.randn(count, rows, columns, generator=generator) * scale

    query, key = xavier(width, width), xavier(width, width)
    return {
        "qkv": torch.cat([query, key, xavier(width, width, beta)], dim=-1),
        "out": xavier(width, width, beta),
        "up": xavier(width, 4 * width, beta),
        "down": xavier(4 * width, width, beta),
        "token_embedding": torch.randn(1, config.vocabulary, width, generator=generator),
        "place_embedding": torch.randn(1, config.seq_len, width, generator=generator) * PLACE_SCALE,
        "head": xavier(width, config.vocabulary, count=1),
    }
