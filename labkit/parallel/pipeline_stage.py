"""A Llama model of transformers cut between its layers: stage 0 has the embedding, the last the norm and the head.

A stage keeps the modules of the model that it is cut from, and what it does not need is dropped, so that the process
holds its own layers only. Layers are dealt out as evenly as they can be; the first stages get those that are left over.
The embedding and the head are not counted as layers, though with a large vocabulary they are worth several: then give
the ranges yourself.

Tied embeddings are on two ranks at once, a copy on the first stage and one on the last. Each gets its own part of the
gradient, and `labkit.parallel.pipeline` adds the two before the update, as Megatron does; else the copies would part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labkit.errors import LabError


def layer_ranges(layers: int, stages: int) -> list[range]:
    """Which layers each stage has: as many everywhere, or one more on the first ones.

    Raises:
        LabError: where a stage would have none.
    """
    if not 1 <= stages <= layers:
        raise LabError(
            f"{layers} layers cannot be cut into {stages} stages.", f"Choose from 1 to {layers} stages (ranks)."
        )
    each, more = divmod(layers, stages)
    starts = [stage * each + min(stage, more) for stage in range(stages + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


class Stage(nn.Module):
    """One stage of a LlamaForCausalLM, which it takes apart: the model cannot be used afterwards.

    Args:
        model: the same weights on every rank.
        index: of the stage, from 0.
        stages: how many there are.
        ranges: each stage's layers; `layer_ranges`, unless given.

    Attributes:
        first, last: whether it has the embedding, and whether it has the norm and the head.
        tied: whether embedding and head are one weight, here or with a copy on another stage.

    Raises:
        LabError: for another kind of model, more stages than layers, or ranges that are not all layers in order.
    """

    def __init__(self, model: Any, index: int, stages: int, ranges: Sequence[range] | None = None):
        super().__init__()
        if getattr(getattr(model, "config", None), "model_type", None) != "llama" or not hasattr(model, "lm_head"):
            raise LabError(f"A {type(model).__name__} is not cut here.", "Give a LlamaForCausalLM.")
        body = model.model
        ranges = layer_ranges(len(body.layers), stages) if ranges is None else ranges
        if len(ranges) != stages or [i for r in ranges for i in r] != list(range(len(body.layers))):
            cause = f"{list(ranges)} do not deal {len(body.layers)} layers out to {stages} stages."
            raise LabError(cause, "Give every layer once, in order.")
        if not 0 <= index < stages:
            raise LabError(f"There is no stage {index} of {stages}.", f"Count from 0 to {stages - 1}.")
        self.index, self.stages, self.config = index, stages, model.config
        self.first, self.last = index == 0, index == stages - 1
        self.tied = model.lm_head.weight is body.embed_tokens.weight
        self._offset = ranges[index].start
        body.layers = nn.ModuleList(body.layers[i] for i in ranges[index])
        if not self.first:
            del body.embed_tokens
        if not self.last:
            body.norm = nn.Identity()
        self.model = body
        self.lm_head = model.lm_head if self.last else None

    def forward(
        self,
        x: Int[Tensor, "rows seq"] | Float[Tensor, "rows seq hidden"],
        attention_mask: Int[Tensor, "rows seq"] | None = None,
    ) -> Float[Tensor, "rows seq out"]:
        """From token ids on the first stage, else from the stage before; to logits on the last, else to the next.

        Args:
            attention_mask: 0 for padding; the same rows on every stage.
        """
        given = {"input_ids": x} if self.first else {"inputs_embeds": x}
        # The body takes as many layers as the whole model's configuration says, or as many as there are.
        hidden = self.model(**given, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return hidden if self.lm_head is None else self.lm_head(hidden)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of what goes from stage to stage."""
        return next(self.parameters()).dtype

    @property
    def tied_weight(self) -> nn.Parameter | None:
        """This stage's copy of a weight that the first and the last stage share; None where they are one stage."""
        if not self.tied or self.stages == 1 or not (self.first or self.last):
            return None
        if self.lm_head is not None:
            return self.lm_head.weight
        return self.model.embed_tokens.weight

    def whole_names(self) -> dict[str, nn.Parameter]:
        """The stage's parameters under the names that they have in the whole model."""
        found = {}
        for name, parameter in self.named_parameters():
            parts = name.split(".")
            if parts[:2] == ["model", "layers"]:
                parts[2] = str(int(parts[2]) + self._offset)
            found[".".join(parts)] = parameter
        return found
