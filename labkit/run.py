"""The record of one training run: what was run, on what, and what came out; printable, comparable, kept as JSON."""

from __future__ import annotations

import datetime
import html
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labkit.errors import LabError
from labkit.files import write_text
from labkit.ledger import MIB, Ledger

UNITS = {
    "accuracy": "share",
    "accuracy_std": "share",
    "loss": "nats",
    "step_ms": "ms",
    "tokens_per_s": "tokens/s",
    "peak_allocated_mib": "MiB",
    "measured_mib": "MiB",
    "joules_per_step": "J",
}


@dataclass
class Run:
    """One training run.

    Attributes:
        method, model, task: their names; `start` says which weights it started from.
        config: everything that decides the result: seed, steps, batch size, learning rate …
        losses: training loss of every step, in nats.
        evaluations: rows of step, accuracy (a share), loss (nats).
        traces: what else the method observed at every step, by name: a loss scale, skipped steps …
        stopped: why the run ended before its last step; empty when it did not.
        step_seconds: wall time of every step.
        tokens: real tokens trained on.
        ledger: bytes by category.
        joules: energy of the GPU over all steps, where it has a counter.
        machine, versions, date: where and when.
    """

    method: str
    model: str
    task: str
    start: str = "pretrained"
    config: dict = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    traces: dict[str, list[float]] = field(default_factory=dict)
    stopped: str = ""
    step_seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    trainable_params: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    joules: float | None = None
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    @property
    def accuracy(self) -> float | None:
        """Share of test examples right at the last evaluation."""
        return self.evaluations[-1]["accuracy"] if self.evaluations else None

    @property
    def step_ms(self) -> float | None:
        """Median milliseconds a step; the first, which warms up, is left out where there are others."""
        timed = self.step_seconds[1:] or self.step_seconds
        return round(1000 * statistics.median(timed), 2) if timed else None

    @property
    def tokens_per_s(self) -> float | None:
        """Real tokens a second, over all steps."""
        return round(self.tokens / sum(self.step_seconds), 1) if self.step_seconds else None

    def row(self) -> dict:
        """The run as one row of a table, under the course's column names."""
        last = self.evaluations[-1] if self.evaluations else {}
        peak = self.ledger.peak_allocated
        return {
            "model": self.model,
            "method": self.method,
            "start": self.start,
            "accuracy": _rounded(last.get("accuracy"), 4),
            "loss": _rounded(last.get("loss"), 4),
            "step_ms": self.step_ms,
            "tokens_per_s": self.tokens_per_s,
            "trainable_params": self.trainable_params,
            "measured_mib": _rounded(self.ledger.total_measured / MIB, 1),
            "peak_allocated_mib": None if peak is None else _rounded(peak / MIB, 1),
            "joules_per_step": _rounded(self.joules / max(1, len(self.losses)), 3) if self.joules else None,
        }

    def save(self, path: Path | str) -> Path:
        """Write the run as JSON, whole or not at all."""
        return write_text(Path(path), json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Run:
        """Read a run that `save` wrote.

        Raises:
            LabError: when the file is not a run.
        """
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{**facts, "ledger": Ledger(**facts["ledger"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise LabError(f"{path} is not a saved run ({error}).", "Run the training cell again.") from error

    def plot(self) -> None:
        """Draw the loss and the evaluations (see `labkit.show.loss_curves`)."""
        # The record is at the bottom of the layers and must not know how it is drawn until it is asked to.
        from labkit.show.plots import loss_curves

        loss_curves([self])

    def __str__(self) -> str:
        shown = {k: v for k, v in self.row().items() if v is not None}
        return "\n".join(f"{k:<18} {v}" for k, v in shown.items())

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<tr><th scope="row" style="text-align:left">{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>'
            for k, v in self.row().items()
            if v is not None
        )
        return f"<table><tbody>{cells}</tbody></table>"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
