"""Gradient checkpointing: keep the input of a segment, forget its interior, compute that again in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174. Backpropagation reads what the
forward pass computed. Of n layers cut into s segments only the s inputs are kept (I bytes each); the interior of a
segment (A bytes a layer) lives while that segment is computed for the second time. So the memory is

    s I + (n / s) A,    smallest at s = sqrt(n A / I), which is √n where A = I,

and the price is one more forward pass, whatever s is. A layer of a language model keeps ten times its input and more
(A >> I); then s comes out near n, which is why libraries checkpoint every single layer.

The second computation has to repeat the first one bit for bit, so it sees the same random numbers (dropout) and the
same autocast. It runs inside the backward pass of one autograd node, as in torch's reentrant variant. Unlike there, the
forward pass runs with gradients on, and a hook drops every tensor that the graph would keep. Its graph then says which
outputs depend on something that trains, before it is dropped as well. Under `no_grad` nobody could tell: torch's
variant gives no gradient at all to the weights of a segment none of whose inputs needs one (the first, after a frozen
embedding), or would compute a frozen segment again for nothing. And code that asks whether gradients are on (some
attention kernels do) takes the same branch both times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.utils import _pytree as pytree

from labkit.errors import LabError
from labkit.ledger.segments import runs

_HOLE = object()


@dataclass(frozen=True)
class _Frame:
    """Nested tuples, lists and dictionaries with a hole where each tensor was."""

    leaves: list[Any]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, tree: Any) -> tuple[_Frame, list[Tensor]]:
        leaves, spec = pytree.tree_flatten(tree)
        holes = [_HOLE if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return cls(holes, spec), [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def filled(self, tensors: Iterable[Tensor]) -> Any:
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if leaf is _HOLE else leaf for leaf in self.leaves], self.spec)


class _Surroundings:
    """What a result depends on beside the arguments: random number generators and autocast."""

    def __init__(self, tensors: Sequence[Tensor], preserve_rng_state: bool):
        cards = sorted({t.device.index for t in tensors if t.is_cuda}) if preserve_rng_state else []
        self.cpu = torch.get_rng_state() if preserve_rng_state else None
        self.cuda = {card: torch.cuda.get_rng_state(card) for card in cards}
        kinds = sorted({"cpu", *(t.device.type for t in tensors)})
        self.autocast = {kind: _autocast(kind) for kind in kinds if torch.amp.is_autocast_available(kind)}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """As it was in the forward pass; afterwards as it is now."""
        with ExitStack() as stack:
            if self.cpu is not None:
                stack.enter_context(torch.random.fork_rng(list(self.cuda)))
                torch.set_rng_state(self.cpu)
                for card, state in self.cuda.items():
                    torch.cuda.set_rng_state(state, card)
            for kind, options in self.autocast.items():
                stack.enter_context(torch.autocast(kind, **options))
            yield


def _autocast(kind: str) -> dict[str, Any]:
    return {
        "enabled": torch.is_autocast_enabled(kind),
        "dtype": torch.get_autocast_dtype(kind),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


class _Call:
    """A function call without its tensors, and how to make it again."""

    def __init__(self, function: Callable, arguments: _Frame, surroundings: _Surroundings):
        self.function, self.arguments, self.surroundings = function, arguments, surroundings
        self.result: _Frame | None = None

    def on(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """The tensors of the function's result; the rest of it goes to `result`."""
        args, kwargs = self.arguments.filled(tensors)
        self.result, outputs = _Frame.of(self.function(*args, **kwargs))
        return outputs


class _Checkpoint(torch.autograd.Function):
    """A call as one node of the graph, which keeps the call's tensors and nothing from inside it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad(), saved_tensors_hooks(lambda _: None, _dropped):
            outputs = call.on(_leaves(tensors))
        if any(output.requires_grad for output in outputs):
            ctx.call = call
            ctx.save_for_backward(*tensors)  # not as attributes: hooks and in-place checks see these
        ctx.set_materialize_grads(False)
        results = tuple(output.detach() for output in outputs)
        ctx.mark_non_differentiable(*(r for r, o in zip(results, outputs, strict=True) if not o.requires_grad))
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_other_ways_to_differentiate()
        inputs = _leaves(_saved(ctx))
        with ctx.call.surroundings.restored(), torch.enable_grad():
            outputs = ctx.call.on(inputs)
        pairs = [
            (get_gradient_edge(o), g)
            for o, g in zip(outputs, gradients, strict=True)
            if o.requires_grad and g is not None
        ]
        del outputs  # the graph is enough to start from; the values are already where the next segment was
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])  # adds to the weights' .grad itself
        return None, None, *(t.grad for t in inputs)


def _leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same values, cut off from the graph that made them."""
    return [t.detach().requires_grad_(t.requires_grad) for t in tensors]


def _dropped(_: None) -> Tensor:
    raise LabError(
        "This tensor comes from inside a checkpointed segment, and what its gradient needs was dropped.",
        "Let the segment return it, or do not checkpoint this part.",
    )


def _saved(ctx: Any) -> tuple[Tensor, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "second time" not in str(error):  # an input that was changed in place, say
            raise
        raise LabError(
            "This checkpointed segment was already differentiated, and its inputs were freed.",
            "Call the first backward() with retain_graph=True.",
        ) from error


def _refuse_other_ways_to_differentiate() -> None:
    if torch.is_grad_enabled():
        raise LabError(
            "A checkpointed segment has no second derivative: its recomputation leaves no graph behind.",
            "Leave out create_graph=True, or do not checkpoint this part.",
        )
    if not torch.autograd._is_checkpoint_valid():
        raise LabError(
            "A checkpointed segment adds to the .grad of its weights; it cannot return chosen gradients.",
            "Call backward() without inputs= in place of torch.autograd.grad.",
        )


def checkpoint(function: Callable, /, *args: Any, preserve_rng_state: bool = True, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, with nothing from inside it kept until the backward pass, which calls it again.

    Tensors that need a gradient are the function's weights or stand among its arguments, also inside tuples, lists and
    dictionaries. The result may be a tensor or nested likewise; what it holds that needs no gradient says so.

    Args:
        function: computes the same from the same arguments, weights and random numbers, and changes no state.
        preserve_rng_state: let the second call see the first one's random numbers, of the CPU and of the CUDA devices
            that hold an argument; False saves the time where nothing is random.

    Raises:
        LabError: in the backward pass, from torch.autograd.grad, for create_graph=True, or for a graph that was freed.
    """
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    arguments, tensors = _Frame.of((args, kwargs))
    call = _Call(function, arguments, _Surroundings(tensors, preserve_rng_state))
    # autograd makes a node only for an input that needs a gradient; the weights are none of the inputs, so this is one.
    anchor = torch.empty(0, requires_grad=True)
    outputs = _Checkpoint.apply(call, anchor, *tensors)
    assert call.result is not None
    return call.result.filled(outputs)


def _through(layers: Sequence[Callable], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def checkpoint_sequential(
    functions: Iterable[Callable],
    segments: int,
    input: Shaped[Tensor, "*input"],
    *,
    checkpoint_last: bool = True,
    preserve_rng_state: bool = True,
) -> Shaped[Tensor, "*output"]:
    """Call `functions` one after the other, in checkpointed runs.

    Args:
        functions: layers, or torch.nn.Sequential, each with one tensor in and one out.
        segments: number of runs, from 1 to the number of layers.
        checkpoint_last: also the last run. torch leaves it out, since its backward pass comes next, and saves one
            segment's computation. But in a language model the head and the loss come in between: their activations
            (the logits!) then meet the last run's interior, which makes a higher peak. So the default checkpoints it;
            False is as good where nothing follows.

    Raises:
        LabError: for fewer than one segment, or more than there are layers.
    """
    layers = list(functions)
    cuts = runs(len(layers), segments)
    for cut in cuts if checkpoint_last else cuts[:-1]:
        input = checkpoint(partial(_through, layers[cut]), input, preserve_rng_state=preserve_rng_state)
    return input if checkpoint_last else _through(layers[cuts[-1]], input)


def predicted_bytes(layers: int, segments: int, layer_input: int = 1, layer_interior: int = 1) -> int:
    """Bytes at the peak, s I + (n / s) A: every segment's input, and the interior of one segment.

    Where s does not divide n it is the largest k I + n_k A: segment k, of n_k layers, is computed again while the
    inputs of the first k are kept. Between forward and backward it is s I alone. What a backward pass needs beside
    (gradients of activations) is not in it; it is the same for every s.

    Args:
        layer_input: I, bytes of the tensors that a layer takes in.
        layer_interior: A, bytes that a layer adds: what it keeps for its backward pass beside its input, and its
            output.

    Raises:
        LabError: for fewer than one segment, or more than there are layers.
    """
    lengths = [run.stop - run.start for run in runs(layers, segments)]
    return max(k * layer_input + length * layer_interior for k, length in enumerate(lengths, start=1))


def best_segments(layers: int, layer_input: int = 1, layer_interior: int = 1) -> int:
    """The number of segments with the fewest `predicted_bytes`: about sqrt(n A / I), and √n where A = I.

    Of several that need the same bytes it is the nearest to that root.

    Raises:
        LabError: where there is no layer.
    """
    if layers < 1:
        raise LabError("There are no layers to cut into segments.", "Give at least one layer.")
    root = (layers * layer_interior / layer_input) ** 0.5
    return min(
        range(1, layers + 1), key=lambda s: (predicted_bytes(layers, s, layer_input, layer_interior), abs(s - root))
    )
