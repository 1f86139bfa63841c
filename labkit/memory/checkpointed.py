"""Gradient checkpointing of a transformers model, for a while, and as a method of the training loop.

See `labkit.memory.checkpointing` for the mathematics. A decoder-only model loops over its list of layers. For the time
of a block that loop meets a few runs of layers where the layers were; everything else finds the layers in their place
and under their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from labkit.errors import LabError
from labkit.memory.checkpointing import best_segments, checkpoint, runs
from labkit.methods import FullFineTuning
from labkit.tasks import Batch, Task


class _Run:
    """Successive decoder layers that are called as one of them is."""

    def __init__(self, layers: list[nn.Module]):
        self.layers = layers

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            _refuse_cache((args, kwargs))
        return checkpoint(self._through, hidden, *args, **kwargs)

    def _through(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        output: Any = hidden
        for layer in self.layers:
            output = layer(hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return output


class _LayersInRuns(nn.ModuleList):
    """The same layers under the same names; who loops over them meets the runs."""

    def __init__(self, layers: nn.ModuleList, segments: int):
        super().__init__(layers)
        self._runs: list[Any] = [_Run(list(layers)[cut]) for cut in runs(len(layers), segments)]
        self.training = layers.training

    def __iter__(self) -> Iterator[Any]:
        return iter(self._runs)

    def __getitem__(self, index: Any) -> Any:
        # Llama loops over layers[:n]; a single index still means a layer.
        return self._runs[index] if isinstance(index, slice) else super().__getitem__(index)


def decoder_layers(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The list of decoder layers of a transformers model: the module that holds it, its name there, and the list.

    It is `layers` in Llama and OPT, `h` in GPT-2; what they share is that transformers marks their layers as such that
    can be checkpointed.

    Raises:
        LabError: where there is no such list, or more than one.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child)
        if all(isinstance(layer, GradientCheckpointingLayer) for layer in child.children())
    ]
    if len(found) != 1:
        raise LabError(
            f"{type(model).__name__} has {len(found) or 'no'} lists of decoder layers, where one is needed.",
            "Use a decoder-only model of transformers, or cut your layers with checkpoint_sequential.",
        )
    return found[0]


@contextmanager
def checkpointed(model: nn.Module, segments: int | None = None) -> Iterator[int]:
    """Run the decoder layers of a transformers model in checkpointed runs while the block lasts.

    Only the forward pass has to be inside. Parameters keep their names inside, too, and afterwards nothing of it is
    left on the model, also where the block raised. Without gradients the model computes as ever.

    Args:
        model: Llama, OPT and what is built as they are, also inside peft's wrapper; called with use_cache=False.
        segments: number of runs, from 1 to the number of layers; default `best_segments`, about the square root.

    Yields the number of segments.

    Raises:
        LabError: for a model or a number of segments with which this cannot be done.
    """
    parent, name, layers = decoder_layers(model)
    chosen = best_segments(len(layers)) if segments is None else segments
    _refuse(model, layers, chosen)
    in_runs = _LayersInRuns(layers, chosen)
    setattr(parent, name, in_runs)
    try:
        yield chosen
    finally:
        setattr(parent, name, layers)
        layers.training = in_runs.training  # train() or eval() in the block reached the layers, but not their list


def checkpoint_layers(model: nn.Module) -> None:
    """Checkpoint each decoder layer, for good, inside of the hooks of whoever wraps the layers afterwards.

    What shards a model gathers a layer's weights in a hook before its forward or backward pass. Checkpointed outside of
    the hooks, the second forward pass would gather a layer, let it go, and gather it again for the backward pass.
    """
    for layer in decoder_layers(model)[2]:
        layer.forward = _computed_again(layer.forward)


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    from torch.utils.checkpoint import checkpoint as torch_checkpoint

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        _refuse_cache((args, kwargs))
        return torch_checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def _refuse(model: Any, layers: nn.ModuleList, segments: int) -> None:
    """Raise LabError where the model's own loop would compute something else."""
    if isinstance(layers, _LayersInRuns) or any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
        raise LabError(
            "This model is checkpointed already.",
            "Leave the inner block out, or call gradient_checkpointing_disable().",
        )
    config: Any = getattr(model, "config", None)
    if getattr(config, "layerdrop", 0.0):
        raise LabError(
            f"The model skips single layers at random (layerdrop {config.layerdrop}), and here would skip whole runs.",
            "Build it with layerdrop=0.",
        )
    if segments < len(layers) and len(set(getattr(config, "layer_types", None) or ())) > 1:
        raise LabError(
            "The layers differ in their attention masks, and a run passes one mask to all of its layers.",
            f"Give each layer its own run: segments = {len(layers)}.",
        )


def _refuse_cache(arguments: Any) -> None:
    from transformers.cache_utils import Cache

    if any(isinstance(leaf, Cache) for leaf in pytree.tree_leaves(arguments, is_leaf=lambda x: isinstance(x, Cache))):
        raise LabError(
            "The model fills a cache of keys and values, and a layer that is computed twice would fill it twice.",
            "Call the model with use_cache=False.",
        )


@dataclass
class Checkpointed(FullFineTuning):
    """Full fine-tuning with the decoder layers checkpointed: the same gradients from fewer bytes of activations.

    Attributes:
        segments: number of checkpointed runs; None for about the square root of the number of layers.
    """

    segments: int | None = None
    name: str = "checkpointed"

    def prepare(self, model: nn.Module, task: Task, steps: int) -> None:
        """Every weight trains; a model or a number that does not go is refused before the first step."""
        with checkpointed(model, self.segments):
            pass
        super().prepare(model, task, steps)

    def _loss(self, batch: Batch) -> Tensor:
        with checkpointed(self._model, self.segments):
            return super()._loss(batch)
