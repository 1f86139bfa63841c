"""The scale and machine card: what each scale runs, whether this machine can, and what its steps will weigh."""

from __future__ import annotations

import html
from dataclasses import replace

from labkit.errors import LabError
from labkit.machine import GB, Machine
from labkit.scale import SCALES, Scale

# Full fine-tuning with AdamW in 32 bits: weight, gradient and two moments (lesson 04 derives it).
BYTES_PER_PARAMETER = 16


def _row(name: str, machine: Machine) -> dict[str, str]:
    """What one scale means on this machine."""
    try:
        scale, verdict = Scale.here(machine, name), "yes"
        if name == "small" and scale.device == "cpu":
            verdict = "yes, slowly"
    except LabError as error:
        scale, verdict = replace(SCALES[name], dtype="bfloat16", device="cuda"), f"no: {error.cause}"
    return {
        "scale": name,
        "model": scale.model,
        "computes in": f"{scale.dtype} on {scale.device}",
        "training": f"{scale.train_size:,} sentences, {scale.steps} steps of {scale.batch_size}",
        "weights, gradients, AdamW (32 bits)": f"{_parameters(scale.model) * BYTES_PER_PARAMETER / GB:.2f} GB",
        "this machine": verdict,
    }


def _parameters(name: str) -> int:
    """Parameters of a scale's model; those that are not in the repository are as published."""
    return {"tiny": 7_999_744, "smollm2-135m": 134_515_008, "facebook/opt-1.3b": 1_315_758_080}[name]


def _table(rows: list[dict[str, str]], chosen: str) -> str:
    cells = "".join(
        "<tr>"
        + f'<th scope="row" style="text-align:left">{html.escape(key)}</th>'
        + "".join(
            f'<td style="text-align:left;{"font-weight:bold" if row["scale"] == chosen else ""}">'
            f"{html.escape(row[key])}</td>"
            for row in rows
        )
        + "</tr>"
        for key in rows[0]
    )
    return f"<table><caption>What each scale runs (bold: {chosen})</caption><tbody>{cells}</tbody></table>"


def scale_card(machine: Machine | None = None) -> None:
    """Show the machine, and for each scale what it runs and whether this machine can; buttons pick one to read about.

    Without a front end the table of all scales stands in its place.
    """
    import ipywidgets as widgets
    from IPython.display import display

    machine = machine or Machine.here()
    rows = [_row(name, machine) for name in SCALES]
    here = Scale.here(machine).name
    machine_html = machine._repr_html_()
    buttons = widgets.ToggleButtons(options=list(SCALES), value=here, description="Scale")
    buttons.tooltips = [f"read what scale {name} runs" for name in SCALES]
    shown = widgets.HTML(_one(rows, here, here))

    def pick(change: dict) -> None:
        shown.value = _one(rows, change["new"], here)

    buttons.observe(pick, names="value")
    group = widgets.VBox([widgets.HTML(machine_html), buttons, shown])
    plain = "\n".join(f"{row['scale']}: {row['model']}, {row['computes in']}; {row['this machine']}" for row in rows)
    twin = {"text/html": machine_html + _table(rows, here), "text/plain": f"{machine}\n{plain}"}
    display({**group._repr_mimebundle_(), **twin}, raw=True)


def _one(rows: list[dict[str, str]], name: str, here: str) -> str:
    row = next(row for row in rows if row["scale"] == name)
    how = (
        "is what this notebook runs at"
        if name == here
        else f"is chosen with LABKIT_SCALE={name}, then a kernel restart"
    )
    lines = "".join(f"<li>{html.escape(k)}: {html.escape(v)}</li>" for k, v in row.items() if k != "scale")
    return f"<p>Scale <b>{name}</b> {how}.</p><ul>{lines}</ul>"
