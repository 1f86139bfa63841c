"""Table `checkpointing`: bytes and seconds of a training step by the number of checkpointed segments.

A step is forward, loss, backward, and the gradients dropped; there is no optimizer and no update, so that every method
meets the same weights and tokens. `checkpointed` is `labkit.memory.checkpointed`; `torch.checkpoint` puts the library's
function (torch.utils.checkpoint, use_reentrant=False) around the very same runs of layers; `transformers` is what
`model.gradient_checkpointing_enable()` does, one segment a layer; `none` keeps every activation.

`peak_allocated_mib` is the highest moment of the whole step. In a model with many words that is the loss, in which
segments change nothing: `peak_blocks_mib` is the highest moment outside head and loss, where no tensor with a value a
word is alive. `kept_mib` is what lives between forward and backward beyond what stands, also that of head and loss.
On a GPU bytes are the allocator's; on a CPU they are counted storage by storage (`labkit.memory.step.follow`), where
two gradients of one weight are added in a third tensor, which autograd does in place as soon as nobody watches.

`layer_input_mib` and `layer_interior_mib` are I and A of s I + (n / s) A, by the ledger's formulas. `time_factor` is
`step_ms` over that of `none`; one more forward pass makes 4/3 of it. The forward pass computes the same with and
without checkpointing (`loss_equal`); `gradient_norm` tells whether the backward pass does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

from labkit.bench.steps import attempt, case_of, configuration, draw_tokens, median_ms, rounded, rounding

if TYPE_CHECKING:
    import torch

    from labkit.ledger.case import Case
    from labkit.ledger.trace import Moment
    from labkit.memory.step import Step
    from labkit.scale import Scale

TITLE = "Gradient checkpointing: bytes and seconds of a training step by the number of segments."
SEEDS = (0,)
UNITS = {
    "predicted_mib": "MiB",
    "peak_allocated_mib": "MiB",
    "predicted_blocks_mib": "MiB, outside head and loss",
    "peak_blocks_mib": "MiB, outside head and loss",
    "kept_mib": "MiB between forward and backward",
    "layer_input_mib": "MiB a layer",
    "layer_interior_mib": "MiB a layer",
    "step_ms": "ms, median",
    "time_factor": "times the step without checkpointing",
    "loss": "nats a token",
    "gradient_norm": "norm of all gradients",
}
PUBLISHED = [
    {
        "model": "residual network of 1,000 layers, ImageNet",
        "result": "48 GB become 7 GB, with 30 percent additional running time; memory grows with the root of the depth",
        "source": "Chen et al. 2016, arXiv:1604.06174, abstract",
    },
    {
        "model": "transformers of up to 10^12 parameters",
        "result": "selective recomputation and sequence parallelism need a fifth of the activations' memory, and avoid "
        "over 90 percent of the time that full recomputation adds",
        "source": "Korthikanti et al. 2022, arXiv:2205.05198, abstract",
    },
]
TIMED_STEPS = 3
_GPU = (("smollm2-135m", 32, 512), ("llama-64x256", 32, 512), ("opt-1.3b", 8, 512), ("opt-1.3b", 16, 1024))
# By scale: models, sequences and tokens a sequence. Without a GPU it is always the first.
PLANS: dict[str, Sequence[tuple[str, int, int]]] = {
    "tiny": (("tiny", 8, 64), ("llama-64x64", 4, 256)),
    "small": _GPU,
    "full": _GPU,
}
FIXED = (("none", 0), ("transformers", -1))  # -1: as many segments as layers


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """A row for each model, method and number of segments; not those `done`."""
    for model, batch, seq_len in PLANS["tiny" if scale.device == "cpu" else scale.name]:
        size = {"model": model, "batch": batch, "seq_len": seq_len}
        yield from _of_size(scale, size, [row for row in done if size.items() <= row.items()])


def _of_size(scale: Scale, size: dict[str, Any], done: list[dict]) -> Iterator[dict]:
    from labkit.bench.workers import clear
    from labkit.ledger.case import Case
    from labkit.ledger.shapes import Architecture

    device, config = scale.device, configuration(size["model"])
    case = Case(Architecture.of(config), size["batch"], size["seq_len"], scale.dtype, optimizer="sgd", device=device)
    finished = {(row["method"], row["segments"]) for row in done}
    todo = [(method, count) for method, count in settings(case) if (method, count) not in finished]
    if not todo:
        return
    plain = next((row for row in done if row["method"] == "none"), None)
    model, note = attempt(partial(_model, case, config), device)
    for method, count in todo:
        here, found = case.with_(segments=count), None
        if model is not None:
            found, note = attempt(partial(_measured, here, config, method, model), device)
        row = size | _row(here, method, found, plain, note)
        plain = row if method == "none" else plain
        yield row
    del model
    clear(device)


def predictions(rows: Sequence[dict]) -> list[dict]:
    """The bytes of each row by formula."""
    from labkit.ledger import MIB

    cases = [case_of(row, [model for model, *_ in PLANS["tiny"]]) for row in rows]
    return [{name: round(count / MIB, 4) for name, count in _formulas(case).items()} for case in cases]


def settings(case: Case) -> Iterator[tuple[str, int]]:
    """Methods and numbers of segments: without, one a layer by transformers, then a spread for ours and torch's."""
    from labkit.memory.checkpointing import best_segments

    layers = case.arch.layers
    for method, count in FIXED:
        yield method, count if count >= 0 else layers
    spread = {1, 2, 3, round(layers**0.5), layers // 4, layers // 2, layers, best_segments(layers, *_layer(case))}
    for count in sorted(spread & set(range(1, layers + 1))):
        yield "checkpointed", count
        yield "torch.checkpoint", count


def _layer(case: Case) -> tuple[int, int]:
    """I and A: bytes of a layer's input, and what it adds until its backward pass (`predicted_bytes`)."""
    from labkit.ledger import activations

    return case.stored * case.tokens * case.arch.hidden, activations.total(activations.block(case))


def _model(case: Case, config: Any) -> torch.nn.Module:
    """Random weights, the same ones each time."""
    import torch

    from labkit.memory.step import build

    with torch.random.fork_rng():
        torch.manual_seed(SEEDS[0])
        return build(case, config, case.device)


def _measured(case: Case, config: Any, method: str, model: torch.nn.Module) -> dict[str, float]:
    """Loss and gradients, bytes, and then the time of a step: the first is the warm-up of the others."""
    import torch

    from labkit.memory.step import Step

    step = Step(case, config, case.device, model)
    draw_tokens(step)
    around = partial(METHODS[method], model, case.segments)
    with mock.patch.object(step, "checkpointing", around), mock.patch.object(step, "update", lambda: None):
        with around():
            loss = step.forward()
            step.backward(loss)
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in step.trained if p.grad is not None]
        found = {"loss": loss.item(), "gradient_norm": torch.linalg.vector_norm(torch.stack(norms)).item()}
        del loss, norms
        step.clear()
        found |= _allocated(step) if case.device == "cuda" else _counted(step)
        return found | {"step_ms": median_ms(step.run, TIMED_STEPS, case.device)}


def _counted(step: Step) -> dict[str, float]:
    """Bytes by counting storages."""
    from labkit.memory.step import follow

    moments = follow(step, round_to=1).moments
    start = [m for m in moments if m.place == "start"][-1]
    between = next(m for m in moments if m.place == "backward")
    peak = max(m.total for m in moments)
    return {"peak": peak, "blocks": _without_words(moments), "kept": between.total - start.total}


def _without_words(moments: Sequence[Moment]) -> int:
    return max(m.total for m in moments if not m.bytes.get("logits"))


def _allocated(step: Step) -> dict[str, float]:
    """Bytes by the allocator; its peak starts anew when the gradient has come back through the head."""
    import torch

    peaks: list[int] = []

    def leave(_: Any = None) -> None:
        peaks.append(torch.cuda.max_memory_allocated())

    def meet(_module: Any, inputs: Any) -> None:
        leave()
        if inputs[0].requires_grad:
            inputs[0].register_hook(back)

    def back(_: Any) -> None:
        leave()
        torch.cuda.reset_peak_memory_stats()

    handle = _last_norm(step.model).register_forward_pre_hook(meet)
    try:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with step.checkpointing():
            loss = step.forward()
            kept = torch.cuda.memory_allocated() - before
            step.backward(loss)
        leave()
    finally:
        handle.remove()
        step.clear()
    forward, _, backward = peaks
    return {"peak": max(peaks), "blocks": max(forward, backward), "kept": kept}


def _last_norm(model: torch.nn.Module) -> torch.nn.Module:
    """Where the blocks end and the head begins."""
    from labkit.memory.checkpointed import decoder_layers

    holder = decoder_layers(model)[0]
    return holder.get_submodule("final_layer_norm" if hasattr(holder, "final_layer_norm") else "norm")


def _none(model: Any, segments: int) -> AbstractContextManager:
    return nullcontext()


def _ours(model: Any, segments: int) -> AbstractContextManager:
    from labkit.memory.checkpointed import checkpointed

    return checkpointed(model, segments)


@contextmanager
def _torch(model: Any, segments: int) -> Iterator[None]:
    """The same runs of layers, and the library's function in place of ours."""
    from torch.utils.checkpoint import checkpoint

    library = partial(checkpoint, use_reentrant=False)
    with mock.patch("labkit.memory.checkpointed.checkpoint", library), _ours(model, segments):
        yield


@contextmanager
def _transformers(model: Any, segments: int) -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 5.18 renames it
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()


METHODS: dict[str, Callable[[Any, int], AbstractContextManager]] = {
    "none": _none,
    "transformers": _transformers,
    "checkpointed": _ours,
    "torch.checkpoint": _torch,
}


def _formulas(case: Case) -> dict[str, int]:
    """What a step needs at its peak and without words' numbers, and what a layer takes in and keeps."""
    from labkit.ledger.predict import predict

    expected = predict(case, rounding(case))
    peaks = {"predicted_mib": expected.peak.total, "predicted_blocks_mib": _without_words(expected.moments)}
    return peaks | dict(zip(("layer_input_mib", "layer_interior_mib"), _layer(case), strict=True))


def _row(case: Case, method: str, found: dict[str, float] | None, plain: dict | None, note: str) -> dict[str, Any]:
    """Formulas beside what was found, and compared with the row of `none`."""
    from labkit.ledger import MIB

    seen: dict[str, Any] = found or {}
    measured = {"peak_allocated_mib": seen.get("peak"), "peak_blocks_mib": seen.get("blocks")}
    whole = {**_formulas(case), **measured, "kept_mib": seen.get("kept")}
    step_ms, loss = rounded(seen.get("step_ms")), seen.get("loss")
    base = plain or ({"step_ms": step_ms, "loss": loss} if method == "none" else {})
    both = step_ms is not None and base.get("step_ms")
    return {
        "method": method,
        "segments": case.segments,
        "layers": case.arch.layers,
        "dtype": case.weights,
        **{name: None if count is None else round(count / MIB, 4) for name, count in whole.items()},
        "step_ms": step_ms,
        "time_factor": round(step_ms / base["step_ms"], 3) if both and step_ms is not None else None,
        "loss": loss,
        "loss_equal": None if loss is None or base.get("loss") is None else loss == base["loss"],
        "gradient_norm": seen.get("gradient_norm"),
        "note": note,
    }
