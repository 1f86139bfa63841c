"""Prefix tuning: every layer attends to trained keys and values in front of the text's (Li & Liang 2021,
arXiv:2101.00190).

    K ← [P_K; K]        V ← [P_V; V]        P of [length, kv heads · head size], two for each layer

2 · layers · length · kv heads · head size values; where heads share keys (grouped queries) as many fewer. No weight and
no product of the model changes. What it costs is attention: every query scores `length` keys more, in every layer.

The prefix is a cache that is not empty at the start, and that is how it is done here: a hook hands the decoder a cache
which holds it, and the model goes on from there as it does in generation. The keys stand in the cache as they are used,
so rotary positions are not applied to them; what the model reads begins at position `length`.

The paper finds P hard to train as it is and makes it from a smaller one by an MLP with one tanh layer, which is dropped
after training (`fold_prefix`): `projection` is that layer's width, 0 for none. It finds too that P should start as what
the model computes for real words: `start="words"` runs the model on some and takes their keys and values, so that at
step 0 the model answers as it does with those words in front. Both cannot be had at once, as no weights of an MLP are
known that give those values. MeZO (Malladi et al. 2023, arXiv:2305.17333) starts from real tokens too, drawn at random.
Keys drawn from N(0, 1), `start="random"`, are peft's start, and they disturb the model from step 0 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labkit.adapters.in_front import (
    InFront,
    cache_name,
    check_length,
    decoder_of,
    front_of,
    put_in_front,
    real_tokens,
)
from labkit.adapters.method import Adapted
from labkit.errors import LabError, UnknownNameError
from labkit.tasks import Task

STARTS = ("words", "random")


class Prefix(InFront):
    """Keys and values of `length` positions for each layer.

    Args:
        model: whose configuration says layers, heads and head size.
        projection: width of the MLP that makes them from `embedding`; 0 for none.

    Attributes:
        embedding: [length, layers · 2 · kv heads · head size], ordered so; with a projection [length, kv heads · head
            size]. fp32, as the MLP is.
    """

    kind = "prefix"

    def __init__(self, model: Any, length: int, projection: int = 0):
        super().__init__(length)
        config = model.config
        heads = config.num_attention_heads
        self.layers = config.num_hidden_layers
        self.heads = getattr(config, "num_key_value_heads", None) or heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        words = model.get_input_embeddings().weight
        self.dtype = words.dtype
        width, whole = self.heads * self.head_dim, self.layers * 2 * self.heads * self.head_dim
        self.embedding = nn.Parameter(torch.randn(length, width if projection else whole))
        self.transform = (
            nn.Sequential(nn.Linear(width, projection), nn.Tanh(), nn.Linear(projection, whole)) if projection else None
        )
        self.to(words.device, torch.float32)
        self._unasked = False

    def values(self) -> Float[Tensor, "layers 2 kv_heads length head_dim"]:
        """Keys and values of each layer, as the layers use them."""
        flat = self.embedding if self.transform is None else self.transform(self.embedding)
        shaped = flat.view(self.length, self.layers, 2, self.heads, self.head_dim)
        return shaped.permute(1, 2, 3, 0, 4).to(self.dtype)

    def enter(self, decoder: nn.Module, arguments: dict[str, Any]) -> None:
        """Fill an empty cache; count given positions on."""
        from transformers import DynamicCache

        if decoder.training and getattr(decoder, "gradient_checkpointing", False):
            cause = "transformers' gradient checkpointing takes the cache away, and the prefix is in it."
            raise LabError(cause, "Call `model.gradient_checkpointing_disable()`.")
        name = cache_name(decoder)
        cache, asked = arguments.get(name), arguments.get("use_cache")
        self._unasked = cache is None and not (decoder.config.use_cache if asked is None else asked)  # type: ignore[union-attr]
        cache = DynamicCache() if cache is None else cache
        if not isinstance(cache, DynamicCache):
            raise LabError(f"A prefix cannot grow in a {type(cache).__name__}.", "Use transformers' DynamicCache.")
        if not cache.get_seq_length():
            batch = len(
                arguments[next(key for key in ("input_ids", "inputs_embeds") if arguments.get(key) is not None)]
            )
            for layer, (keys, values) in enumerate(self.values()):
                cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), layer)
        arguments[name] = cache
        if arguments.get("position_ids") is not None:
            arguments["position_ids"] = arguments["position_ids"] + self.length

    def leave(self, decoder: nn.Module, output: Any) -> None:
        """Without the cache, where the caller has asked for none: `generate` would go on from it."""
        if self._unasked:
            setattr(output, cache_name(decoder), None)

    @torch.no_grad()
    def start_from(self, model: Any, tokens: Int[Tensor, " length"]) -> None:
        """Take the keys and values that the model, without this prefix, computes for `tokens`."""
        from transformers import DynamicCache

        decoder, training = decoder_of(model, self.kind), model.training
        cache: Any = DynamicCache()
        decoder.eval()
        decoder(input_ids=tokens[None].to(self.embedding.device), **{cache_name(decoder): cache}, use_cache=True)
        decoder.train(training)
        pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
        self.embedding.copy_(torch.stack(pairs).permute(3, 0, 1, 2, 4).reshape(self.embedding.shape))


def attach_prefix(
    model: Any, length: int = 8, projection: int = 0, tokens: Int[Tensor, " length"] | None = None
) -> Prefix:
    """Freeze a model, in place, and put a prefix in front of its input; `take_from_front` takes it off.

    Args:
        projection: width of the MLP that makes the prefix in training; 0 for none.
        tokens: whose keys and values it starts from; None for a random start.

    Raises:
        LabError: for a length or a projection that fits no model, a model that lacks what is needed, or both a
            projection and tokens. The model is then as it was.
    """
    decoder_of(model, Prefix.kind)
    check_length(model, length, Prefix.kind)
    lacking = [n for n in ("num_hidden_layers", "num_attention_heads", "hidden_size") if not hasattr(model.config, n)]
    if lacking:
        cause = f"The configuration of {type(model).__name__} has no {', '.join(lacking)}."
        raise LabError(cause, "Give a decoder-only language model of transformers.")
    if not isinstance(projection, int) or isinstance(projection, bool) or projection < 0:
        raise LabError(f"{projection!r} is no width of a projection.", "Give a whole number, 0 for none.")
    if projection and tokens is not None:
        raise LabError("A projected prefix cannot start from words.", 'Give projection=0, or start="random".')
    prefix = Prefix(model, length, projection)
    if tokens is not None:
        prefix.start_from(model, tokens)
    put_in_front(model, prefix)
    return prefix


@torch.no_grad()
def fold_prefix(model: nn.Module) -> Prefix:
    """Drop the MLP, as the paper does after training: its output trains, and computes, as it is from now on.

    Raises:
        LabError: where the model has no prefix.
    """
    prefix = front_of(model)
    if not isinstance(prefix, Prefix):
        raise LabError(f"This model has a {prefix.kind}, and no prefix.", "Fold where a prefix was attached.")
    if prefix.transform is not None:
        made = prefix.transform(prefix.embedding)
        prefix.embedding, prefix.transform = nn.Parameter(made), None
    return prefix


@dataclass
class PrefixTuning(Adapted):
    """Trained keys and values in front of every layer's.

    Attributes:
        learning_rate: the default is one for keys and values themselves; at it the MLP of a projection learns nothing.
        length: positions in front; MeZO takes 5, the paper 10 and more.
        projection: width of the MLP that makes them in training, 0 for none.
        start: "words" (what the model computes for real words) or "random".
        text: those words, again and again; empty: of the first training prompts.

    Raises:
        LabError: from `prepare`, for what does not fit the model, before any training.
    """

    learning_rate: float = 1e-1
    length: int = 8
    projection: int = 0
    start: str = "words"
    text: str = ""
    name: str = "prefix"

    def adapt(self, model: nn.Module, task: Task) -> None:
        """A prefix in front of the model's input."""
        if self.start not in STARTS:
            raise UnknownNameError.among("start of a prefix", self.start, STARTS)
        decoder_of(model, Prefix.kind)
        check_length(model, self.length, Prefix.kind)
        tokens = real_tokens(task, self.length, self.text) if self.start == "words" else None
        attach_prefix(model, self.length, self.projection, tokens)
