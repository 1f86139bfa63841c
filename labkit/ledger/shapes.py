"""A transformers configuration as the numbers that a memory formula needs, for Llama- and OPT-type decoders.

A block of a Llama-type model (Touvron et al. 2023, arXiv:2302.13971) has four matrices of attention, three of a gated
feed-forward part and two RMSNorms; one of an OPT-type model (Zhang et al. 2022, arXiv:2205.01068) has four and two
matrices with biases and two LayerNorms. A tensor is one allocation, so that they are listed one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from labkit.errors import LabError

LLAMA_TYPES = ("llama", "mistral")
OPT_OFFSET = 2  # OPT's table of positions has two rows that no token uses


@dataclass(frozen=True)
class Weight:
    """One parameter tensor: its name within its part, its shape, and whether it is a matrix of a linear layer."""

    name: str
    shape: tuple[int, ...]
    linear: bool = False

    @property
    def numel(self) -> int:
        """Number of values."""
        return prod(self.shape)


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder-only language model.

    Attributes:
        kind: "llama" or "opt".
        layers: number of blocks.
        hidden: width of the residual stream.
        heads, kv_heads, head_dim: queries' and keys' heads, and the width of one.
        ffn: width of the feed-forward part.
        vocab: rows of the embedding.
        positions: rows of the table of positions (OPT), 0 where positions are rotated in (Llama).
        tied: whether the head is the embedding.
        biases: whether the linear layers of attention and feed-forward have biases.
        dropout: probability after each sub-layer, 0 for none.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int = 0
    tied: bool = True
    biases: bool = False
    dropout: float = 0.0

    @classmethod
    def of(cls, config: Any) -> Architecture:
        """Read a transformers configuration.

        Raises:
            LabError: for another architecture, a field that is missing, or a size below 1.
        """
        kind = getattr(config, "model_type", None)
        if kind not in (*LLAMA_TYPES, "opt"):
            cause = f"There are no memory formulas for models of type {kind!r}."
            raise LabError(cause, f"Use a model of type {', '.join(LLAMA_TYPES)} or opt, or trace it.")
        try:
            found = _opt(config) if kind == "opt" else _llama(config)
        except AttributeError as error:
            raise LabError(
                f"The configuration has no {error.name!r}.", "Take the model's whole config.json."
            ) from error
        return found.checked()

    def checked(self) -> Architecture:
        """Itself, if every size makes sense; LabError otherwise."""
        sizes = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab")
        for name in sizes:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise LabError(
                    f"The configuration says {getattr(self, name)!r} for {name}.", "Give a whole number from 1."
                )
        if self.heads % self.kv_heads:
            cause = f"{self.heads} query heads cannot share {self.kv_heads} heads of keys."
            raise LabError(cause, "Give a number of key heads that divides the number of heads.")
        return self

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @cached_property
    def block(self) -> tuple[Weight, ...]:
        """Parameters of one block, in the order in which they run."""
        return tuple(self._attention()) + tuple(self._feed_forward())

    @cached_property
    def matrices(self) -> dict[str, Weight]:
        """The matrices of a block's linear layers by the names that LoRA's targets have: q, k, v, o, up …"""
        return {w.name.split(".")[0]: w for w in self.block if w.linear}

    @property
    def max_tokens(self) -> int:
        """The longest sequence that a table of positions allows; 0 where there is no such table."""
        return self.positions - OPT_OFFSET if self.positions else 0

    def _attention(self) -> Iterator[Weight]:
        yield from self._norm("norm1")
        for name, rows, columns in (
            ("q", self.queries, self.hidden),
            ("k", self.keys, self.hidden),
            ("v", self.keys, self.hidden),
            ("o", self.hidden, self.queries),
        ):
            yield from self._linear(name, rows, columns)

    def _feed_forward(self) -> Iterator[Weight]:
        yield from self._norm("norm2")
        inner = ("gate", "up") if self.kind == "llama" else ("up",)
        for name in inner:
            yield from self._linear(name, self.ffn, self.hidden)
        yield from self._linear("down", self.hidden, self.ffn)

    def _norm(self, name: str) -> Iterator[Weight]:
        yield Weight(f"{name}.weight", (self.hidden,))
        if self.kind == "opt":
            yield Weight(f"{name}.bias", (self.hidden,))

    def _linear(self, name: str, rows: int, columns: int) -> Iterator[Weight]:
        yield Weight(f"{name}.weight", (rows, columns), linear=True)
        if self.biases:
            yield Weight(f"{name}.bias", (rows,))

    @cached_property
    def outside(self) -> tuple[Weight, ...]:
        """Parameters that belong to no block: embedding, positions, last norm, and the head if it has its own."""
        found = [Weight("embedding", (self.vocab, self.hidden))]
        if self.positions:
            found.append(Weight("positions", (self.positions, self.hidden)))
        found += self._norm("norm")
        if not self.tied:
            found.append(Weight("head", (self.vocab, self.hidden), linear=True))
        return tuple(found)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every parameter tensor of the model."""
        return self.outside + self.block * self.layers

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return sum(w.numel for w in self.weights)


def _llama(config: Any) -> Architecture:
    heads = config.num_attention_heads
    return Architecture(
        kind="llama",
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )


def _opt(config: Any) -> Architecture:
    if config.word_embed_proj_dim != config.hidden_size or not config.do_layer_norm_before:
        raise LabError("This OPT (350M) projects its embeddings and normalizes late.", "Use another size of OPT.")
    return Architecture(
        kind="opt",
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        ffn=config.ffn_dim,
        vocab=config.vocab_size,
        positions=config.max_position_embeddings + OPT_OFFSET,
        tied=bool(config.tie_word_embeddings),
        biases=True,
        dropout=config.dropout,
    )
