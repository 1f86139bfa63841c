"""The recorded table `pipeline` in the narrow forms that lesson 08 shows: times, peaks of memory, cuts side by side.

Peaks by formula. With W bytes of weights on a rank, gradients as large, and a bytes of activations a micro-batch, GPipe
is at its highest when the first backward pass ends: all gradients are there and m - 1 micro-batches are held still,

    2 W + (m - 1) a.

1F1B holds p micro-batches at most, on the first stage. With m <= p they are all there before the first backward pass,
as GPipe's are; with more, p are held beside whole gradients: 2 W + min(m - 1, p) a. What a micro-batch weighs is read
off GPipe's two largest batches; nothing else is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labkit.bench.record import Table
from labkit.errors import LabError
from labkit.ledger.shapes import Architecture
from labkit.parallel.model_traffic import sent_per_step

MIB, GIB = 2**20, 2**30
ORDERS = {"gpipe": "GPipe", "1f1b": "1F1B", "torch.gpipe": "torch's GPipe", "torch.1f1b": "torch's 1F1B"}
CUTS = {"one-process": "one GPU", "tensor": "tensor", "torch.tensor": "torch's tensor", **ORDERS}
Row = dict[str, Any]


def of_orders(table: Table) -> tuple[str, int, dict[tuple[str, int], Row]]:
    """Model, number of ranks and the pipelines' rows, by method and micro-batches, on the most ranks of the table.

    Raises:
        LabError: where there are none.
    """
    ranks = max((row["world_size"] for row in table.rows if row["method"] in ORDERS), default=0)
    rows = [r for r in table.where(world_size=ranks) if r["method"] in ORDERS and r["step_ms"] is not None]
    if not rows:
        raise LabError(f"Table {table.table!r} has no pipelines.", "Record it with `labkit bench pipeline`.")
    return rows[0]["model"], ranks, {(r["method"], r["micro_batches"]): r for r in rows}


def time_rows(table: Table) -> list[Row]:
    """For each number of micro-batches the bubbles (%) by formula and as measured, and every order's step (ms)."""
    _, _, rows = of_orders(table)
    found = []
    for m in _counts(rows):
        line: Row = {"m": m, "formula (%)": round(100 * _any(rows, m)["predicted_bubble"])}
        for method in ("gpipe", "1f1b"):
            bubble = rows[method, m]["bubble"]
            line[f"{ORDERS[method]} (%)"] = None if bubble is None else round(100 * bubble)
        line |= {f"{called} (ms)": _rounded(rows, method, m, "step_ms", 1) for method, called in ORDERS.items()}
        found.append(line)
    return found


def peak_rows(table: Table) -> list[Row]:
    """For each number of micro-batches the peak (GiB) of the rank with most, by formula and of every order."""
    _, ranks, rows = of_orders(table)
    weights, each = _weights(rows), _each(rows)
    found = []
    for m in _counts(rows):
        line: Row = {"m": m}
        for method, held in (("gpipe", m - 1), ("1f1b", min(m - 1, ranks))):
            line[f"{ORDERS[method]}, formula"] = round((2 * weights + held * each) / 1024, 1)
            for name in (method, f"torch.{method}"):
                line[ORDERS[name]] = _rounded(rows, name, m, "peak_allocated_mib", 1024, 1)
        found.append(line)
    return found


def _counts(rows: dict[tuple[str, int], Row]) -> list[int]:
    return sorted({m for _, m in rows})


def _any(rows: dict[tuple[str, int], Row], m: int) -> Row:
    return next(row for (_, count), row in rows.items() if count == m and row["predicted_bubble"] is not None)


def _rounded(rows: dict, method: str, m: int, column: str, unit: float, digits: int = 0) -> float | None:
    value = rows.get((method, m), {}).get(column)
    return None if value is None else round(value / unit, digits or None)


def _weights(rows: dict[tuple[str, int], Row]) -> float:
    return max(row["weights_mib"] for row in rows.values())


def _each(rows: dict[tuple[str, int], Row]) -> float:
    """MiB of a micro-batch's activations: how much more GPipe takes for one more."""
    (few, less), (many, more) = ((m, rows["gpipe", m]["peak_allocated_mib"]) for m in _counts(rows)[-2:])
    return (more - less) / (many - few)


def cut_rows(table: Table, shape: Architecture) -> list[Row]:
    """Ways to cut the model side by side, at the batches that tensor parallelism was measured with.

    Args:
        shape: of the table's model, for the bytes that a rank sends by formula.
    """
    model, ranks, _ = of_orders(table)
    rows = [r for r in table.where(model=model, world_size=ranks) if r["step_ms"] is not None]
    batches = {r["batch"] for r in rows if r["method"] == "tensor"}
    return [
        {
            "cut": CUTS[r["method"]],
            "sequences": _taken(r),
            "step (ms)": round(r["step_ms"]),
            "sent (MiB)": round(r["sent_mib"] + 2 * (ranks - 1) / ranks * r["all_reduced_mib"]),
            "by formula": round(_formula(r, shape, ranks) / MIB),
            "all-reduces": r["all_reduces"],
            "peak (GiB)": round(r["peak_allocated_mib"] / 1024, 1),
        }
        for batch in sorted(batches)
        for r in _in_order([r for r in rows if r["batch"] == batch])
    ]


def _in_order(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda r: list(CUTS).index(r["method"]))


def _taken(row: Row) -> str:
    """How the batch was taken: tensor parallelism all at once, the others one micro-batch after the other."""
    if row["micro_batches"] == 1 or "tensor" in row["method"]:
        return f"{row['batch']} at once"
    return f"{row['micro_batches']} × {row['rows']}"


def _formula(row: Row, shape: Architecture, ranks: int) -> float:
    if row["method"] == "one-process":
        return 0.0
    way = "tensor" if "tensor" in row["method"] else "pipeline"
    return sent_per_step(way, shape, ranks, row["batch"], row["seq_len"])
