"""A Llama model of transformers, cut over ranks inside its layers, and joined again.

(Shoeybi et al. 2019, arXiv:1909.08053, section 3.) A layer is two pairs of linear layers (`labkit.parallel.tensor`):

    attention    f → q, k, v by columns, so that a rank has whole heads → softmax over each → o by rows → g
    MLP          f → gate, up by columns → SiLU(gate) ⊙ up → down by rows → g

With grouped queries (Ainslie et al. 2023, arXiv:2305.13245) the heads of keys are cut too, and each rank's queries find
theirs on the same rank as long as the ranks divide both numbers. Embedding and head are cut by the vocabulary. Norms
are whole on every rank: they see the same input and, thanks to f, the same gradient, and so stay equal unsent.

Bytes of a rank for N parameters, of which n are in norms: (N - n) / t + n, and so for gradients and moments. Messages
of a step (`traffic`): of L layers, each 2 all-reduces of b·s·h values forward and 2 backward; one more forward for the
embedding and one backward for the head. Activations between f and g are cut; the residual stream is not.

A rank computes with the same inputs as all the others: give every rank the whole batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.ledger.shapes import Architecture
from labkit.parallel.tensor import ColumnParallelLinear, Group, RowParallelLinear, enter, gathered
from labkit.parallel.tensor_vocabulary import VocabularyParallelEmbedding, causal_loss


class ParallelAttention(nn.Module):
    """Attention of which this rank computes `heads / t` heads, with rotary positions and grouped queries.

    Args:
        whole: LlamaAttention, the same on every rank.
        group: of the ranks that share it; all, unless given.

    Raises:
        LabError: where the heads, of queries or of keys, cannot be divided.
    """

    def __init__(self, whole: Any, group: Group = None):
        super().__init__()
        ranks, config = dist.get_world_size(group), whole.config
        for heads, name in ((config.num_attention_heads, "query"), (config.num_key_value_heads, "key and value")):
            if heads % ranks:
                raise LabError(
                    f"{heads} {name} heads cannot be divided among {ranks} ranks.",
                    f"Choose a number of ranks that divides {heads}.",
                )
        self.group, self.head_dim, self.scaling, self.layer_idx = group, whole.head_dim, whole.scaling, whole.layer_idx
        self.q_proj, self.k_proj, self.v_proj = (
            ColumnParallelLinear(layer, group, enters=False) for layer in (whole.q_proj, whole.k_proj, whole.v_proj)
        )
        self.o_proj = RowParallelLinear(whole.o_proj, group)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch seq hidden"],
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Float[Tensor, "batch seq hidden"], None]:
        """As LlamaAttention's; a cache of keys and values, where there is one, holds this rank's heads."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        x = enter(hidden_states, self.group)
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in self._inputs())
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        # Renamed within the versions of transformers that are supported.
        cache = options.get("cache") or options.get("past_key_values")
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        causal = attention_mask is None and q.shape[2] > 1
        groups = q.shape[1] != k.shape[1]
        mixed = F.scaled_dot_product_attention(
            q, k, v, attention_mask, is_causal=causal, scale=self.scaling, enable_gqa=groups
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), None

    def _inputs(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.q_proj, self.k_proj, self.v_proj


class ParallelMLP(nn.Module):
    """A gated feed-forward part of which this rank computes `intermediate_size / t` inner columns.

    Args:
        whole: LlamaMLP, the same on every rank.
        group: of the ranks that share it; all, unless given.

    Raises:
        LabError: where the inner width cannot be divided.
    """

    def __init__(self, whole: Any, group: Group = None):
        super().__init__()
        self.group, self.act_fn = group, whole.act_fn
        self.gate_proj = ColumnParallelLinear(whole.gate_proj, group, enters=False)
        self.up_proj = ColumnParallelLinear(whole.up_proj, group, enters=False)
        self.down_proj = RowParallelLinear(whole.down_proj, group)

    def forward(self, x: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        """As LlamaMLP's."""
        x = enter(x, self.group)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def tensor_parallel(model: Any, group: Group = None, *, gather_logits: bool = False) -> Any:
    """Cut a LlamaForCausalLM over the ranks, in place, and return it.

    `model(input_ids, labels=labels).loss` is the whole model's on every rank. For it the logits stay cut, and
    `.logits` are this rank's tokens alone, [batch, seq, vocab / t].

    Args:
        model: the same weights on every rank, and on the rank's device. Each rank holds all of it until it is cut.
        group: of the ranks that share it; all, unless given.
        gather_logits: give every rank all logits, for tasks and generation that need them.

    Raises:
        LabError: for another kind of model, one with dropout, ranks whose weights differ, or sizes that the ranks do
            not divide.
    """
    _check(model, group)
    body = model.model
    embedding = VocabularyParallelEmbedding(body.embed_tokens, group)
    tied = model.lm_head.weight is body.embed_tokens.weight
    head = ColumnParallelLinear(model.lm_head, group, gather_output=gather_logits)
    if tied:
        head.weight = embedding.weight
    # All is cut before anything is replaced: an error leaves the model as it was.
    blocks = [(ParallelAttention(layer.self_attn, group), ParallelMLP(layer.mlp, group)) for layer in body.layers]
    body.embed_tokens, model.lm_head = embedding, head
    for layer, (attention, mlp) in zip(body.layers, blocks, strict=True):
        layer.self_attn, layer.mlp = attention, mlp
    if not gather_logits:
        model.loss_function = partial(causal_loss, group=group)
    return model


def _check(model: Any, group: Group) -> None:
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "llama" or not hasattr(model, "lm_head"):
        raise LabError(f"A {type(model).__name__} is not cut here.", "Give a LlamaForCausalLM.")
    if isinstance(model.lm_head, ColumnParallelLinear):
        raise LabError("This model is cut already.", "Join it first, with `joined`.")
    if config.attention_dropout:
        raise LabError("Every rank would drop the same heads' weights.", "Set attention_dropout to 0.")
    if config._attn_implementation not in ("sdpa", "eager"):
        cause = f"Masks for the attention {config._attn_implementation!r} have a form of their own."
        raise LabError(cause, "Load the model with attn_implementation='sdpa'.")
    sums = torch.stack([p.detach().double().sum() for p in model.parameters()])
    highest = sums.clone()
    dist.all_reduce(sums, dist.ReduceOp.MIN, group=group)
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    if not torch.equal(sums, highest):
        raise LabError("The ranks hold different weights.", "Load the same model, or use the same seed, on every rank.")


def cut_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Name, this rank's part and the dimension that was cut, of every parameter that the ranks share."""
    for prefix, module in model.named_modules():
        for name, dim in getattr(module, "cut_along", {}).items():
            parameter = getattr(module, name)
            if parameter is not None:
                yield f"{prefix}.{name}", parameter, dim


def full_state_dict(model: nn.Module, group: Group = None) -> dict[str, Tensor]:
    """The whole model's state dict, on every rank: the parts are gathered under the names of the uncut model."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    whole: dict[int, Tensor] = {}
    for name, parameter, dim in cut_parameters(model):
        if id(parameter) not in whole:
            whole[id(parameter)] = gathered(parameter, dim, group)
        state[name] = whole[id(parameter)]
    return state


def full_gradients(model: nn.Module, group: Group = None) -> dict[str, Tensor]:
    """The whole model's gradients by name, on every rank; a tied weight has one, under its first name."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter, dim in cut_parameters(model):
        if name in grads and parameter.grad is not None:
            grads[name] = gathered(parameter.grad, dim, group)
    return grads


def joined(model: Any, group: Group = None) -> Any:
    """The uncut model with the weights that the ranks hold now, on every rank; `model` stays cut."""
    state = full_state_dict(model, group)
    place = next(iter(state.values()))
    with torch.random.fork_rng():
        fresh = type(model)(copy.deepcopy(model.config)).to(device=place.device, dtype=place.dtype)
    fresh.load_state_dict(state)
    return fresh.train(model.training)


def bytes_per_rank(shape: Architecture, ranks: int, itemsize: int = 4) -> dict[str, int]:
    """Bytes of a rank's weights by formula: `cut`, its part of what the ranks share, and `whole`, the norms.

    Args:
        shape: of a Llama-type model without biases.
        itemsize: bytes of a value.
    """
    norms = sum(w.numel for w in shape.weights if "norm" in w.name)
    return {"cut": itemsize * (shape.parameters - norms) // ranks, "whole": itemsize * norms}


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that each all-reduce of a step has to sum, in order. A ring sends 2 (t - 1) / t of them from each rank."""

    forward: list[int]
    backward: list[int]


def traffic(shape: Architecture, batch: int, seq: int, itemsize: int = 4) -> StepTraffic:
    """All-reduces of one step by formula, with the cut cross-entropy; they do not depend on the number of ranks.

    Args:
        itemsize: bytes of a value of the residual stream; the loss is in fp32.
    """
    stream = batch * seq * shape.hidden * itemsize
    loss = [4 * batch * seq, 2 * 4 * batch * seq]
    return StepTraffic([stream] * (1 + 2 * shape.layers) + loss, [stream] * (1 + 2 * shape.layers))
