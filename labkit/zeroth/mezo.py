"""MeZO: training in the memory of inference (Malladi et al. 2023, arXiv:2305.17333; ZO-SGD of Spall 1992, in place).

    seed s:    ℓ₊ = L(w + ε z)     ℓ₋ = L(w − ε z)     z = z(s) ~ N(0, 1), made again wherever it is needed
    g = (ℓ₊ − ℓ₋) / 2ε                                 the projected gradient: g z has the gradient's mean, up to O(ε²)
    w ← w − η g z

Two forward passes and no backward pass: no gradients, no optimizer states, no activation outlives its layer. With n
directions the update is the mean of n estimates. The ZO-Offload poster of the seed lectures writes g = (ℓ₊ − ℓ₋)/2; its
ε is missing. MeZO's algorithm walks w → w + εz → w − εz → w in the weights' dtype; that is `restore="walk"`, and
`labkit.zeroth.restore` says what it loses in 16 bits and what "exact" does instead.

Prompts are part of the method: the paper fine-tunes models that already answer above chance when asked in words
(`labkit.tasks.Sentiment` asks so), and finds that without a prompt it does not work. Dropout is off in both passes.
Everything random comes from `seed`, the step and the direction's number: a step can be made again from its row
(`labkit.zeroth.trajectory`), and ranks need tell each other numbers only (`labkit.zeroth.exchange`).
"""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError, UnknownNameError
from labkit.ledger import Ledger, measure, storage_bytes
from labkit.tasks import Batch, Task
from labkit.zeroth import exchange, metrics
from labkit.zeroth.perturb import Weight, trained
from labkit.zeroth.restore import Exact, Restore, Walk
from labkit.zeroth.scale_check import check_scale
from labkit.zeroth.trajectory import MERGED, SKIPPED, Row, Trajectory, fingerprint, rounded

RESTORES = ("exact", "walk")
SCHEDULES = {
    "constant": lambda part: 1.0,
    "linear": lambda part: 1.0 - part,
    "cosine": lambda part: 0.5 * (1.0 + math.cos(math.pi * part)),
}


def direction_seed(seed: int, step: int, number: int) -> int:
    """Of a step's direction, 64 bits."""
    packed = b"".join((value % 2**64).to_bytes(8, "little") for value in (seed, step, number))
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def restore_of(
    kind: str, weights: list[Weight], slot_mib: float | None = None, model: torch.nn.Module | None = None
) -> Restore:
    """The way to compute beside the weights, by its name; `model` is theirs, where it is to compute.

    Raises:
        UnknownNameError: for another name.
    """
    if kind not in RESTORES:
        raise UnknownNameError.among("restore", kind, RESTORES)
    slot_bytes = None if slot_mib is None else round(slot_mib * 2**20)
    return Walk(weights) if kind == "walk" else Exact(weights, slot_bytes, model)


def apply_rows(restore: Restore, rows: list[Row]) -> None:
    """A step's update from its rows: the mean over the directions whose loss was finite."""
    good = [row for row in rows if not row.flags & SKIPPED]
    terms = [(row.seed, -row.learning_rate * row.projected_gradient / len(good)) for row in good]
    restore.update(terms, good[0].learning_rate * good[0].weight_decay if good else 0.0)


def replay_rows(restore: Restore, rows: list[Row], eps: float) -> None:
    """A step as it was, without its forward passes: a walk goes where it went, since each of its moves rounds."""
    if not rows[0].flags & MERGED:
        restore.settle()
    for row in rows:
        for side in (eps, -eps):
            with restore.at([(row.seed, side)]):
                pass
    apply_rows(restore, rows)


@torch.no_grad()
def replay(model: torch.nn.Module, trajectory: Trajectory, steps: int | None = None) -> None:
    """Bring a model from where the run began to where it was after `steps` steps (default: all), bitwise.

    Args:
        model: with the weights that the run began with, and trained what it trained.

    Raises:
        LabError: for a model with other weights.
    """
    header, weights = trajectory.header, trained(model)
    if fingerprint(weights) != header["fingerprint"]:
        raise LabError(
            "These are not the weights that the trajectory begins with.", "Load the model that it was made of."
        )
    restore = restore_of(header["restore"], weights)
    for rows in list(trajectory.steps())[:steps]:
        replay_rows(restore, rows, header["perturbation_scale"])
    restore.settle()


@dataclass
class Mezo:
    """Zeroth-order training of every weight.

    Attributes:
        learning_rate: η; the paper's for all weights of large models is 10⁻⁷ to 10⁻⁶.
        perturbation_scale: ε.
        directions: n, two forward passes each.
        weight_decay: λ, of matrices only.
        schedule: "constant" as in the paper, "linear" or "cosine", to 0 at the last step.
        objective: "loss", "accuracy", "f1", or a function of model, task and batch that is to become small.
        restore: "exact" or "walk".
        seed: of all directions.
        trajectory: file that each step is appended to; a run whose file exists goes on from it: `step` makes its
            first steps from their rows, without a forward pass.
        ranks: in a process group, whether each rank has its own "directions" or its share of the "batch".
        slot_mib: for `restore="exact"`, see `labkit.zeroth.restore.Exact`.

    Raises:
        LabError: from `prepare`, for settings that cannot be; from `step`, never for a loss that is not finite: that
            direction is left out, and the step's loss is NaN, and its update none, where all are.
    """

    learning_rate: float = 1e-6
    perturbation_scale: float = 1e-3
    directions: int = 1
    weight_decay: float = 0.0
    schedule: str = "constant"
    objective: Any = "loss"
    restore: str = "exact"
    seed: int = 0
    trajectory: str = ""
    ranks: str = "directions"
    slot_mib: float | None = None
    name: str = "mezo"

    def choose(self, model: torch.nn.Module, task: Task) -> None:
        """Set `requires_grad` on what trains; may add to the model."""
        for p in model.parameters():
            p.requires_grad_(p.is_floating_point())

    def prepare(self, model: torch.nn.Module, task: Task, steps: int) -> None:
        """Choose what trains, and find or begin the trajectory."""
        self._check()
        self.choose(model, task)
        self._model, self._task, self._steps = model.eval(), task, steps
        self._weights, self._restore = self._begin(model)
        self.meeting = exchange.meeting(self.ranks, self._weights[0].tensor.device)
        if self.restore == "walk" and self.meeting.world_size > 1 and self.ranks == "directions":
            cause = "Ranks that walk in directions of their own round their weights differently."
            raise LabError(cause, 'Use restore="exact", or ranks="batch".')
        self.record = Trajectory(self._header(), self.trajectory or None, writes=self.meeting.rank == 0)
        self._recorded, self._done, self._last = list(self.record.steps()), 0, dict[str, float]()

    def _begin(self, model: torch.nn.Module) -> tuple[list[Weight], Restore]:
        """What trains, and the way to compute beside it."""
        weights = trained(model)
        check_scale(weights, self.perturbation_scale, self.seed)
        return weights, restore_of(self.restore, weights, self.slot_mib, model)

    def _fingerprint(self) -> str:
        return fingerprint(self._weights)

    def _check(self) -> None:
        """Raise LabError for settings out of range."""
        for name, low in (("learning_rate", 0.0), ("perturbation_scale", 1e-300), ("weight_decay", 0.0)):
            if not low <= (value := getattr(self, name)) < math.inf:
                raise LabError(f"{value!r} is no {name}.", "Give a positive number.")
        if not isinstance(self.directions, int) or isinstance(self.directions, bool) or self.directions < 1:
            raise LabError(f"{self.directions!r} directions cannot be taken.", "Give a whole number of at least 1.")
        if self.schedule not in SCHEDULES:
            raise UnknownNameError.among("schedule", self.schedule, SCHEDULES)
        if self.ranks not in exchange.MODES:
            raise UnknownNameError.among("way to share among ranks", self.ranks, exchange.MODES)
        self._objective = metrics.objective(self.objective)

    def _header(self) -> dict:
        apart = self.meeting.world_size if self.ranks == "directions" else 1
        named = ("learning_rate", "perturbation_scale", "weight_decay", "schedule", "restore", "seed", "ranks")
        return {
            **{name: getattr(self, name) for name in named},
            "objective": self.objective if isinstance(self.objective, str) else self.objective.__name__,
            "directions": self.directions * apart,
            "steps": self._steps,
            "fingerprint": self._fingerprint(),
        }

    def _settings(self) -> tuple[float, float]:
        """η and λ of this step, as a row keeps them."""
        factor = SCHEDULES[self.schedule](self._done / self._steps)
        return rounded(self.learning_rate * factor), rounded(self.weight_decay)

    def _evaluate(self, seeds: list[int], batch: Batch) -> list[tuple[float, float]]:
        """The objective on both sides of w, in each direction."""
        found = []
        for seed in seeds:
            sides = []
            for side in (self.perturbation_scale, -self.perturbation_scale):
                with self._restore.at([(seed, side)]):
                    sides.append(float(self._objective(self._model, self._task, batch)))
            found.append((sides[0], sides[1]))
        return found

    def _row(self, told: exchange.Told, merged: int) -> Row:
        g = rounded((told.plus - told.minus) / (2 * self.perturbation_scale))
        if not math.isfinite(g):
            return Row(self._done, told.seed, 0.0, *self._settings(), math.nan, merged | SKIPPED)
        return Row(self._done, told.seed, g, *self._settings(), rounded((told.plus + told.minus) / 2), merged)

    def _measure(self, batch: Batch) -> list[Row]:
        """All directions of a step, of all ranks."""
        merged = MERGED if self._restore.moved else 0
        first = self.meeting.rank * self.directions if self.ranks == "directions" else 0
        own = self.meeting.share(batch)
        numbers = range(first, first + self.directions)
        seeds = [direction_seed(self.seed, self._done, number) for number in numbers]
        sides = zip(seeds, self._evaluate(seeds, own), strict=True)
        told = [exchange.Told(seed, plus, minus, len(own.labels)) for seed, (plus, minus) in sides]
        return [self._row(each, merged) for each in self.meeting.tell(told)]

    @torch.no_grad()
    def step(self, batch: Batch) -> Float[Tensor, ""]:
        """Both sides of each direction, and the update; its loss is the mean of the finite ones."""
        if self._done < len(self._recorded):
            rows = self._recorded[self._done]
            replay_rows(self._restore, rows, self.perturbation_scale)
        else:
            rows = self._measure(batch)
            self.record.append(rows)
            apply_rows(self._restore, rows)
        self._done += 1
        good = [row for row in rows if not row.flags & SKIPPED]
        mean = sum(abs(row.projected_gradient) for row in good) / len(good) if good else math.nan
        self._last = {
            "projected_gradient": mean,
            "learning_rate": rows[0].learning_rate,
            "skipped": float(len(rows) - len(good)),
        }
        loss = sum(row.loss for row in good) / len(good) if good else math.nan
        return torch.tensor(loss, device=batch.labels.device)

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same; nothing is saved for a backward pass."""
        loss = self.step(batch)
        ledger.measured = measure(self._model, None, 0)
        return loss

    def computing(self) -> AbstractContextManager:
        """With the parameters at w, and not where a walk left them."""
        with torch.no_grad():
            self._restore.settle()
        return nullcontext()

    def observed(self) -> dict[str, float]:
        """Mean |g|, η, and how many directions were left out."""
        return dict(self._last)

    def predicted_bytes(self) -> dict[str, int]:
        """The weights, and nothing else."""
        return {"weights": storage_bytes(self._model.parameters()), "gradients": 0, "optimizer_states": 0}

    def state_dict(self) -> dict[str, Any]:
        """The trajectory: a few kilobytes, whatever the model."""
        return {"trajectory": torch.frombuffer(bytearray(self.record.packed()), dtype=torch.uint8), "done": self._done}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the steps of a trajectory again, without forward passes; after `prepare` on the model as it began."""
        self.record.continue_from(Trajectory.unpack(state["trajectory"].numpy().tobytes()))
        self._recorded = list(self.record.steps())
        for rows in self._recorded[self._done : state["done"]]:
            replay_rows(self._restore, rows, self.perturbation_scale)
        self._done = state["done"]

    @torch.no_grad()
    def close(self) -> None:
        """Leave the parameters at w."""
        if restore := getattr(self, "_restore", None):
            restore.settle()
