"""One loop for every method: batches in a seeded order, one step each, timed; evaluation; a `Run` as the record.

A run can be kept as it goes: with `resume`, its state is saved every few seconds, and a run that was cut off (a kernel
restart, say) goes on where it was and ends with the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch

from labkit.energy import EnergyMeter
from labkit.errors import LabError, UnknownNameError
from labkit.files import write_bytes
from labkit.ledger import fit
from labkit.machine import Machine
from labkit.methods import Method
from labkit.models import parameters
from labkit.run import Run
from labkit.tasks import Batch, Example, Task

SAVE_EVERY_SECONDS = 5.0
GROUP = 8
KEPT = ("losses", "step_seconds", "tokens", "traces", "evaluations")  # of a run, when it is cut off


@torch.inference_mode()
def evaluate(model: torch.nn.Module, task: Task, examples: list[Example] | None = None, batch_size: int = 32) -> dict:
    """Accuracy (a share) and loss (nats, mean over examples) on `examples` (default: the test part).

    Examples are grouped by length, so that little is spent on padding; the result does not depend on their order.
    """
    examples = task.test if examples is None else examples
    if not examples:
        raise LabError("There is nothing to evaluate on.", "Give at least one example.")
    device, training = next(model.parameters()).device, model.training
    model.eval()
    right, total = 0, 0.0
    for batch in task.batches(sorted(examples, key=lambda e: len(e.text)), batch_size):
        here = batch.to(device)
        hits, loss = task.score(model, here)
        right, total = right + hits, total + loss
    model.train(training)
    return {"accuracy": right / len(examples), "loss": total / len(examples)}


def order(task: Task, batch_size: int, seed: int, steps: int) -> Iterator[list[Example]]:
    """The examples of each step, in an order that depends on the seed only.

    Every epoch is shuffled; then stretches of `GROUP` batches are sorted by length and cut, and the batches of a
    stretch shuffled again. So the sentences of a batch have about the same length, and little is spent on padding.
    """
    done, epoch = 0, 0
    while done < steps:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(task.train), generator=generator).tolist()
        for start in range(0, len(shuffled), GROUP * batch_size):
            group = sorted(shuffled[start : start + GROUP * batch_size], key=lambda i: len(task.train[i].text))
            batches = [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
            for chosen in torch.randperm(len(batches), generator=generator).tolist():
                if done == steps:
                    return
                yield [task.train[i] for i in batches[chosen]]
                done += 1
        epoch += 1


class _Saved:
    """A run's state on disk, valid only for the same configuration."""

    def __init__(self, path: Path | None, config: dict):
        self.path = path
        self.key = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
        self.last = time.monotonic()

    def load(self) -> dict | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # cut off while it was written by something else than us: start clean
            return None
        return state if state.get("key") == self.key else None

    def save(self, run: Run, method: Method, step: int) -> None:
        if self.path is None or time.monotonic() - self.last < SAVE_EVERY_SECONDS:
            return
        state = {
            "key": self.key,
            "step": step,
            "method": method.state_dict(),
            "rng": torch.get_rng_state(),
            **{name: getattr(run, name) for name in KEPT},
        }
        buffer = io.BytesIO()
        torch.save({**state, "measured": run.ledger.measured}, buffer)
        write_bytes(self.path, buffer.getvalue())
        self.last = time.monotonic()

    def clear(self) -> None:
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


def _config(method: Method, seed: int, steps: int, batch_size: int, task: Task) -> dict:
    # Before `prepare` a method's fields are settings only; afterwards they would hold the model.
    settings: dict = {f.name: getattr(method, f.name) for f in fields(method)} if is_dataclass(method) else {}
    settings = json.loads(json.dumps(settings, default=str))  # as a record keeps them
    return {**settings, "seed": seed, "steps": steps, "batch_size": batch_size, "train_size": len(task.train)}


def train(
    model: torch.nn.Module,
    task: Task,
    method: Method,
    *,
    steps: int,
    batch_size: int = 16,
    seed: int = 0,
    model_name: str = "",
    start: str = "pretrained",
    resume: Path | str | None = None,
    progress: bool = True,
    on_nan: str = "raise",
    evaluate_every: int = 0,
) -> Run:
    """Train `model` in place, where it is, by `method`, and evaluate it on the task's test part.

    Args:
        steps, batch_size: optimizer steps, the training part gone through as often as that takes; examples a step.
        seed: of the order of examples, and of torch's generator.
        model_name, start: for the record.
        resume: a file for the run's state; a run with the same configuration goes on from it.
        progress: show a bar.
        evaluate_every: steps between evaluations on the way; 0: only at the end.
        on_nan: "raise" where the loss is no longer a number, or "stop" there and keep the run, which then says so.

    Raises:
        LabError: when there is nothing to train on, or the loss is no longer a number.
    """
    _check(steps, batch_size, task, on_nan)
    config = {**_config(method, seed, steps, batch_size, task), "model": model_name, "start": start}
    torch.manual_seed(seed)
    run = Run(method.name, model_name or type(model).__name__, task.name, start, config)
    saved = _Saved(Path(resume) if resume else None, config)
    with closing(method):
        _whole(model, task, method, run, saved, progress, evaluate_every)
        if run.stopped and on_nan == "raise":
            raise LabError(run.stopped, "Lower the learning rate, or compute in a wider dtype.")
        return _ended(model, task, method, run)


def _whole(model, task: Task, method: Method, run: Run, saved: _Saved, progress: bool, evaluate_every: int) -> None:
    """Prepare, and make all steps."""
    method.prepare(model.train(), task, run.config["steps"])
    run.trainable_params = parameters(model, trainable=True)
    _steps(model, task, method, run, saved, progress, evaluate_every)


def _evaluate(model, task: Task, method: Method, run: Run) -> None:
    """Evaluate in the format that the method computes in."""
    with method.computing():
        run.evaluations.append({"step": len(run.losses), **evaluate(model, task)})


def _ended(model, task: Task, method: Method, run: Run) -> Run:
    """The run with its last evaluation, if that was not made on the way, and where it was made."""
    if not run.evaluations or run.evaluations[-1]["step"] != len(run.losses):
        _evaluate(model, task, method, run)
    model.eval()
    machine = Machine.here()
    run.machine, run.versions = str(machine), dict(machine.versions)
    return run


def _check(steps: int, batch_size: int, task: Task, on_nan: str) -> None:
    """Raise LabError where there is nothing to do, or no such way to stop."""
    if on_nan not in ("raise", "stop"):
        raise UnknownNameError.among("on_nan", on_nan, ("raise", "stop"))
    if steps < 1 or batch_size < 1 or not task.train:
        cause = f"There is nothing to do: {steps} steps of {batch_size} of {len(task.train)} examples."
        raise LabError(cause, "Give positive numbers and training data.")


def _steps(model, task: Task, method: Method, run: Run, saved: _Saved, progress: bool, evaluate_every: int) -> None:
    """Make the steps that are still to be made, with evaluations in between."""
    from tqdm.auto import tqdm

    device, steps = next(model.parameters()).device, run.config["steps"]
    run.ledger.predicted, first = method.predicted_bytes(), 0
    here = ("weights", "master_weights")  # since `prepare`
    fit.check(run.ledger, fit.available(device), sum(run.ledger.predicted.get(name, 0) for name in here))
    if state := saved.load():
        method.load_state_dict(state["method"])
        torch.set_rng_state(state["rng"])
        for name in KEPT:
            setattr(run, name, state[name])
        run.ledger.measured, first = state["measured"], state["step"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    meter = EnergyMeter(device.type)
    bar = tqdm(total=steps, initial=first, desc=run.method, unit="step", disable=not progress, leave=False)
    with closing(bar), fit.explained(run.ledger, device):
        for step, examples in enumerate(order(task, run.config["batch_size"], run.config["seed"], steps)):
            if step >= first:
                _one(method, run, task.batch(examples).to(device), step)
                bar.update()
                if run.stopped:
                    break
                if evaluate_every and (step + 1) % evaluate_every == 0:
                    _evaluate(model, task, method, run)
                saved.save(run, method, step + 1)
    run.joules = meter.joules()
    if device.type == "cuda":
        run.ledger.peak_allocated = torch.cuda.max_memory_allocated(device)
    saved.clear()


def _one(method: Method, run: Run, batch: Batch, step: int) -> None:
    started = time.perf_counter()
    # The second step is the first whose optimizer states exist from its beginning; where no update was made until
    # then (a loss scaler skips steps), the last one has to do.
    last, name = run.config["steps"] - 1, "optimizer_states"
    missing = run.ledger.predicted.get(name) and not run.ledger.measured.get(name)
    measured = step == min(1, last) or (step == last and bool(missing))
    loss = (method.measured_step(batch, run.ledger) if measured else method.step(batch)).item()
    run.step_seconds.append(time.perf_counter() - started)
    run.losses.append(loss)
    run.tokens += batch.tokens
    for name, value in method.observed().items():
        run.traces.setdefault(name, []).append(value)
    if loss != loss:
        run.stopped = f"The loss is not a number at step {step}."
