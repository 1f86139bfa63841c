"""Gradient checkpointing: keep the input of a segment, forget its interior, compute that again in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174. Backpropagation reads what the
forward pass computed. Of n layers cut into s segments only the s inputs are kept (I bytes each); the interior of a
segment (A bytes a layer) lives while that segment is computed for the second time. So the memory is

    s I + (n / s) A,    smallest at s = sqrt(n A / I), which is √n where A = I,

and the price is at most one more forward pass, whatever s is. A layer of a language model keeps ten times its input and
more (A >> I); then s comes out near n, which is why libraries checkpoint every single layer.

The second computation has to repeat the first one bit for bit, so it sees the same random numbers (dropout) and the
same autocast. It runs inside the backward pass of one autograd node.

The first computation runs with gradients on, and a hook takes every tensor that its graph would keep and leaves an
empty slot. So the graph, without its tensors, is there before it is needed: it says which outputs depend on something
that trains, and backward goes through it as soon as the second computation has filled the slots, again by a hook. That
computation ends when the last slot is full, and what comes after is not computed twice: the last matrix product of a
segment, which is a third of a feed-forward block's work. (torch.utils.checkpoint calls it early stopping.) A graph that
the second computation makes, as in torch's older reentrant variant, cannot do without it. That variant also gives no
gradient at all to the weights of a segment none of whose inputs needs one, such as the first after a frozen embedding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from labkit.errors import LabError
from labkit.ledger.segments import runs
from labkit.memory.replay import Call, Frame, Surroundings


class _Slot:
    """Where a tensor that backward needs will be, once it is computed again."""

    __slots__ = ("__weakref__", "kind", "tensor")

    def __init__(self, tensor: Tensor):
        self.kind = (tensor.shape, tensor.dtype)
        self.tensor: Tensor | None = None

    def take(self) -> Tensor:
        """The tensor, which is then kept here no longer."""
        tensor, self.tensor = self.tensor, None
        if tensor is None:
            raise LabError(
                "This tensor comes from inside a checkpointed segment, and what its gradient needs was dropped.",
                "Let the segment return it, or do not checkpoint this part.",
            )
        return tensor


class _Enough(BaseException):
    """The last slot is full. No error, so no `except Exception` in a model may catch it."""


class _Slots:
    """The slots of a call's graph in the order in which they are filled; none waits for a node that is gone."""

    def __init__(self) -> None:
        self._slots: list[weakref.ref[_Slot]] = []

    def leave(self, tensor: Tensor) -> _Slot:
        """An empty slot in place of the tensor."""
        slot = _Slot(tensor)
        self._slots.append(weakref.ref(slot))
        return slot

    def fill(self, compute: Callable[[], Any]) -> None:
        """Run `compute` until every slot has its tensor."""
        rest = [ref() for ref in self._slots]
        while rest and rest[-1] is None:
            rest.pop()
        rest.reverse()

        def put(tensor: Tensor) -> None:
            slot = rest.pop()
            if slot is not None:
                if slot.kind != (tensor.shape, tensor.dtype):
                    raise _changed()
                slot.tensor = tensor.detach()  # the tensor itself may hold the graph that holds the slot
            if not rest:
                raise _Enough

        if rest:
            with suppress(_Enough), saved_tensors_hooks(put, _nothing):
                compute()
                raise _changed()

    def clear(self) -> None:
        """Empty the slots of nodes that backward did not come to."""
        for ref in self._slots:
            if (slot := ref()) is not None:
                slot.tensor = None


def _nothing(_: None) -> Tensor:
    raise _changed()  # nobody goes through the second graph


def _changed() -> LabError:
    return LabError(
        "A checkpointed segment computed something else the second time.",
        "Let it depend on nothing but its arguments, its weights and torch's random numbers.",
    )


class _Door(torch.autograd.Function):
    """Lets tensors into a segment without the graph that made them, and remembers the gradients that come out again.

    It takes the place of leaves, which would hold the tensors as long as the graph.
    """

    @staticmethod
    def forward(ctx: Any, found: list[Tensor | None], anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.found = found
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.found[:] = gradients
        return (None,) * (2 + len(gradients))


class _Checkpoint(torch.autograd.Function):
    """A call as one node of the graph, which keeps the call's tensors and nothing from inside it."""

    @staticmethod
    def forward(ctx: Any, call: Call, anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        slots, ctx.wanted = _Slots(), [t.requires_grad for t in tensors]
        found: list[Tensor | None] = []
        with torch.enable_grad(), saved_tensors_hooks(slots.leave, _Slot.take):
            through = iter(_Door.apply(found, anchor, *(t.detach() for t in tensors if t.requires_grad)))
            outputs = call.on([next(through) if t.requires_grad else t.detach() for t in tensors])
        if any(output.requires_grad for output in outputs):
            ctx.call, ctx.slots, ctx.found = call, slots, found
            ctx.ends = [get_gradient_edge(o) if o.requires_grad else None for o in outputs]
            ctx.save_for_backward(*tensors)  # not as attributes: hooks and in-place checks see these
        ctx.set_materialize_grads(False)
        results = tuple(output.detach() for output in outputs)
        ctx.mark_non_differentiable(*(r for r, o in zip(results, outputs, strict=True) if not o.requires_grad))
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_other_ways_to_differentiate()
        call = ctx.call
        inputs = [t.detach().requires_grad_(w) for t, w in zip(_saved(ctx), ctx.wanted, strict=True)]
        with call.surroundings.restored(), torch.enable_grad():
            ctx.slots.fill(partial(call.on, inputs))
        del inputs
        ctx.found[:] = [None] * sum(ctx.wanted)  # what they stay where no gradient comes to the door
        pairs = [(end, g) for end, g in zip(ctx.ends, gradients, strict=True) if end is not None and g is not None]
        # It adds to the weights' .grad itself. The graph stays for another backward pass; its slots are empty by then.
        torch.autograd.backward([end for end, _ in pairs], [g for _, g in pairs], retain_graph=True)
        ctx.slots.clear()
        found = iter([*ctx.found])
        ctx.found.clear()
        return None, None, *(next(found) if wanted else None for wanted in ctx.wanted)


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
    arguments, tensors = Frame.of((args, kwargs))
    call = Call(function, arguments, Surroundings(tensors, preserve_rng_state))
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
