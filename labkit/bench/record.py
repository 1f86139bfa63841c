"""Reference tables: measured rows with the machine, the versions, the commit and the command that made them.

A table NAME is the module `labkit/bench/NAME.py` with `TITLE`, `UNITS` (column → unit), `PUBLISHED` (rows with
a `source`) and `rows(scale)`, a list or a generator; where chance plays a part, `SEEDS` too. It is recorded in
`data/reference/NAME.json`. While it is measured, the rows so far are kept in `NAME.partial.json` beside it, so that
what a time limit cuts off is not lost. Where `rows` also takes the rows that are done (`rows(scale, done)`), a
measurement goes on from there; a row that another machine adds says so in `measured_on`. Where a module has
`predictions(rows)`, which gives the columns of each row that are formulas, these can be computed again when a formula
changes; what was measured stays, and `predicted` says when that was, and with which torch.
"""

from __future__ import annotations

import datetime
import importlib
import inspect
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import paths
from labkit.errors import LabError, UnknownNameError
from labkit.files import write_text

if TYPE_CHECKING:
    from labkit.scale import Scale


@dataclass(frozen=True)
class Table:
    """A recorded reference table; `rows` are what was measured, `published` what others report."""

    table: str
    title: str
    command: str
    date: str
    commit: str
    machine: str
    versions: dict[str, str]
    seeds: list[int]
    units: dict[str, str]
    rows: list[dict]
    published: list[dict] = field(default_factory=list)
    predicted: dict[str, str] = field(default_factory=dict)

    def where(self, **wanted) -> list[dict]:
        """The rows whose columns have these values."""
        return [row for row in self.rows if all(row.get(k) == v for k, v in wanted.items())]

    @property
    def origin(self) -> str:
        """Where and when it was measured, in one line, and when its formulas were computed, if later."""
        words = f"{self.machine}; {self.date[:10]}"
        if not self.predicted:
            return words
        return f"{words}; predictions of {self.predicted['date'][:10]}, torch {self.predicted['torch']}"

    def show(self, caption: str = "") -> None:
        """Display the rows in a notebook, with their origin."""
        from labkit.show.display import table

        table(self.rows, self.units, f"{caption or self.title} Measured on {self.origin}.")


def names() -> list[str]:
    """The tables that can be regenerated."""
    files = [p for p in Path(__file__).parent.glob("*.py") if "\nTITLE = " in p.read_text(encoding="utf-8")]
    return sorted(p.stem.replace("_", "-") for p in files)


def _known(name: str) -> str:
    if name not in names():
        raise UnknownNameError.among("table", name, names())
    return name


def _module(name: str) -> Any:
    return importlib.import_module(f"labkit.bench.{_known(name).replace('-', '_')}")


def _file(name: str, folder: Path | None = None) -> Path:
    return (folder or paths.DATA / "reference") / f"{name}.json"


def read(name: str) -> Table:
    """Read a recorded table.

    Raises:
        UnknownNameError: for a name that is no table.
        LabError: when it was not recorded yet, or the file is damaged.
    """
    try:
        return Table(**_recorded(_known(name)))
    except TypeError as error:
        raise _unreadable(name, error) from error


def _recorded(name: str, folder: Path | None = None) -> dict:
    try:
        return dict(json.loads(_file(name, folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> LabError:
    cause = f"The reference table {name} cannot be read ({error})."
    return LabError(cause, f"Record it with: labkit bench {name}.")


def _commit() -> str:
    """The commit that the rows were made with, marked where files were changed since.

    LABKIT_COMMIT names it where the code was copied to a machine without its history.
    """
    if named := os.environ.get("LABKIT_COMMIT", "").strip():
        return named
    git = ["git", "-C", str(paths.ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def regenerate(
    name: str, out: Path | None = None, report: Callable[[dict], None] | None = None, resume: bool = False
) -> Path:
    """Measure a table anew on this machine and record it; return the file.

    Args:
        name: of the table.
        out: folder to write to (default: `data/reference`).
        report: called with each row as soon as it is measured.
        resume: go on from the rows of a measurement that was cut off.

    Raises:
        UnknownNameError: for a name that is no table.
        LabError: where there is nothing to go on from, or the table cannot be measured in parts.
    """
    from labkit.scale import Scale

    module = _module(name)
    scale, partial = Scale.here(), _file(f"{name}.partial", out)
    facts = _head(name, module, scale)
    measure = module.rows(scale)
    if resume:
        before = _cut_off(name, partial, module)
        elsewhere = {} if before["machine"] == facts["machine"] else {"measured_on": facts["machine"]}
        facts, measure = before, ({**row, **elsewhere} for row in module.rows(scale, list(before["rows"])))
    for row in measure:
        facts["rows"].append(row)
        write_text(partial, _text(facts))
        if report is not None:
            report(row)
    recorded = write_text(_file(name, out), _text(facts))
    partial.unlink(missing_ok=True)
    return recorded


def repredict(name: str, out: Path | None = None) -> Path:
    """Compute the formulas of a recorded table again, and leave what was measured as it is; return the file.

    Args:
        name: of the table.
        out: folder where the table is (default: `data/reference`).

    Raises:
        UnknownNameError: for a name that is no table.
        LabError: for a table that is not there or has no such columns.
    """
    from importlib.metadata import version

    module = _module(name)
    if not hasattr(module, "predictions"):
        raise LabError(f"The table {name} has no formula that is computed apart.", f"Measure it: labkit bench {name}.")
    facts = _recorded(name, out)
    again = module.predictions(facts["rows"])
    facts["rows"] = [row | new for row, new in zip(facts["rows"], again, strict=True)]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts["predicted"] = {"date": now, "commit": _commit(), "torch": version("torch")}
    return write_text(_file(name, out), _text(facts))


def _head(name: str, module: Any, scale: Scale) -> dict:
    """A table without rows."""
    from labkit.machine import Machine

    machine = Machine.here()
    return {
        "table": name,
        "title": module.TITLE,
        "command": f"LABKIT_SCALE={scale.name} labkit bench {name}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": str(machine),
        "versions": dict(machine.versions),
        "seeds": list(getattr(module, "SEEDS", ())),
        "units": module.UNITS,
        "rows": [],
        "published": module.PUBLISHED,
    }


def _cut_off(name: str, partial: Path, module: Any) -> dict:
    """What a measurement that was cut off has left."""
    if len(inspect.signature(module.rows).parameters) < 2:
        raise LabError(f"The table {name} is measured in one go.", f"Start it again with: labkit bench {name}.")
    try:
        return dict(json.loads(partial.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        cause = f"There is no measurement of {name} to go on from ({error})."
        raise LabError(cause, f"Start one with: labkit bench {name}.") from error


def _text(facts: dict) -> str:
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
