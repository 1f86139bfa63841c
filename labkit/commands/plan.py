"""`labkit plan`: which ways to train a model fit a GPU, as a table or as JSON."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labkit.commands.terminal import FAILED, console
from labkit.planner import Option, Plan, plan

GIB = 2**30
HEADS = ("way", "", "GiB", "at", "largest batch", "on the host", "a step", "how")  # a column of dashes is left out
NUMBERS = (2, 4, 5, 6)


def show_plan(model: str, gpu: str, gpus: int, host: str, batch: int, seq_len: int, way: str, as_json: bool) -> int:
    """Print the plan; returns 1 if no way fits, else 0."""
    found = plan(model, gpu, batch, seq_len, host, gpus, way)
    if as_json:
        json.dump(found.as_dict(), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        _show(found, gpus, console())
    return 0 if found.best else FAILED


def _show(found: Plan, gpus: int, terminal: Console) -> None:
    arch = found.arch
    where = f"{gpus} × {found.gpu}" if gpus > 1 else found.gpu
    terminal.print(
        f"[bold]{escape(found.model)}[/]: {arch.parameters:,} parameters, {arch.layers} layers of width {arch.hidden}; "
        f"{escape(where)}, of which tensors may fill {found.usable / GIB:.1f} GiB",
        soft_wrap=True,
    )
    rows = [_row(option) for option in found.options]
    table = Table(box=None, padding=(0, 2, 0, 0))
    used = [column for column in range(len(HEADS)) if any(row[column] != "–" for row in rows)]
    for column in used:
        table.add_column(HEADS[column], justify="right" if column in NUMBERS else "left", no_wrap=column == 0)
    for row in rows:
        table.add_row(*(row[column] for column in used))
    each = " on each" if gpus > 1 else ""
    terminal.print(f"\nAt the peak with a batch of {found.batch} × {found.seq_len} tokens{each}:", soft_wrap=True)
    terminal.print(table)
    _advise(found, terminal)


def _row(option: Option) -> tuple[str, ...]:
    mark = "[green]fits[/]" if option.fits else "[red]no[/]"
    host = f"{option.host_bytes / GIB:.1f} GiB" if option.host_bytes else "–"
    peak = f"{option.peak.total / GIB:.2f}"
    time = f"{option.seconds:.2g} s" if option.seconds else "–"
    how = "the same, with layers computed again" if option.case.segments else option.way.what
    return option.name, mark, peak, option.peak.place, str(option.largest_batch or "–"), host, time, how


def _advise(found: Plan, terminal: Console) -> None:
    best = found.best
    if best is None:
        nearest = min(found.options, key=lambda option: option.peak.total)
        terminal.print(f"\nNothing fits. The nearest is {nearest.name}: {escape(nearest.problem)}", soft_wrap=True)
    else:
        terminal.print(f"\nThe first that fits, [bold]{best.name}[/], at its peak ({best.peak.place}):", soft_wrap=True)
        for name, count in sorted(best.peak.bytes.items(), key=lambda item: -item[1]):
            terminal.print(f"  {name.replace('_', ' '):<17}{count / GIB:>9.3f} GiB")
        terminal.print(f"\n{escape(found.lines(best))}", soft_wrap=True)
    terminal.print("\nNot known here:", soft_wrap=True)
    for line in found.unknown:
        terminal.print(f"  {escape(line)}", soft_wrap=True)
