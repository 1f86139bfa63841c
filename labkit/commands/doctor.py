"""`labkit doctor`: what is here, what each lesson will run at, and every problem with its remedy."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import labkit
from labkit import assets
from labkit.commands.terminal import FAILED, console, gigabytes
from labkit.errors import LabError
from labkit.lessons import all_lessons
from labkit.machine import Machine
from labkit.paths import DATA, cache_path
from labkit.scale import Scale

# What a scale's model needs beside the package. The tiny one is in the checkout, the full one on the hub.
_MODEL_ASSET = {"smollm2-135m": "smollm2-135m-gguf"}


def doctor(as_json: bool) -> int:
    """Print the report; returns 1 if some lesson cannot run on this machine, else 0."""
    facts = report(Machine.here())
    if as_json:
        json.dump(facts, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        _show(facts, console())
    return 0 if facts["ok"] else FAILED


def report(machine: Machine) -> dict[str, Any]:
    """Everything that `labkit doctor` says, as plain JSON types; `ok` tells whether every lesson can run.

    Every asset is hashed afresh. Keys: labkit, machine, cache, scale (null where none fits), assets, lessons,
    problems (each with `what` and `remedy`), ok.
    """
    problems = [asdict(problem) for problem in machine.problems]
    scale, blocked = _scale(machine, problems)
    held = [assets.status(name, verify=True) for name in assets.ASSETS]
    for status in held:
        if status.state == "corrupt":
            problems.append({"what": f"{status.path} is damaged.", "remedy": status.detail})
    blocked = blocked or _model_problem(machine, scale, problems)
    lessons = _lessons(scale, blocked, problems)
    return {
        "labkit": labkit.__version__,
        "machine": machine.as_dict(),
        "cache": str(cache_path()),
        "scale": asdict(scale) if scale else None,
        "assets": [_asset_row(status) for status in held],
        "lessons": lessons,
        "problems": problems,
        "ok": bool(lessons) and all(lesson["ready"] for lesson in lessons),
    }


def _scale(machine: Machine, problems: list[dict[str, str]]) -> tuple[Scale | None, str]:
    try:
        return Scale.here(machine), ""
    except LabError as error:
        problems.append({"what": error.cause, "remedy": error.remedy})
        return None, error.cause


def _model_problem(machine: Machine, scale: Scale | None, problems: list[dict[str, str]]) -> str:
    """Why no lesson can load its model, '' where it can; a model that can be fetched is no problem."""
    if "torch" not in machine.versions:
        return "torch is not installed."
    if scale and scale.model == "tiny" and not (DATA / "models" / "tiny" / "config.json").is_file():
        what = f"The tiny model is not in {DATA / 'models' / 'tiny'}."
        problems.append({"what": what, "remedy": "Get the whole repository: git checkout -- data"})
        return what
    return ""


def _lessons(scale: Scale | None, blocked: str, problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    try:
        lessons = all_lessons()
    except LabError as error:
        problems.append({"what": error.cause, "remedy": error.remedy})
        return []
    if not lessons:
        what = "The folder lessons holds no lesson."
        problems.append({"what": what, "remedy": "Get the whole repository: git checkout -- lessons"})
    asset = _MODEL_ASSET.get(scale.model) if scale else None
    fetch = bool(asset) and assets.status(str(asset)).state != "ready"
    return [
        {
            "name": lesson.slug,
            "title": lesson.title,
            "lab": lesson.lab.is_file(),
            "scale": scale.name if scale else None,
            "model": scale.model if scale else None,
            "device": scale.device if scale else None,
            "dtype": scale.dtype if scale else None,
            "fetches": asset if fetch else None,
            "ready": not blocked,
            "reason": blocked,
        }
        for lesson in lessons
    ]


def _asset_row(status: assets.Status) -> dict[str, Any]:
    asset = status.asset
    return {
        "name": asset.name,
        "title": asset.title,
        "version": asset.version,
        "size": asset.size,
        "licence": asset.licence,
        "state": status.state,
        "path": str(status.path),
        "detail": status.detail,
    }


def _show(facts: dict[str, Any], terminal: Console) -> None:
    machine = facts["machine"]
    grid = Table.grid(padding=(0, 2))
    grid.add_row("[bold]labkit[/]", facts["labkit"])
    grid.add_row("[bold]system[/]", escape(f"{machine['system']}, Python {machine['python']}"))
    grid.add_row("[bold]processor[/]", escape(f"{machine['processor']}, {machine['cores']} usable cores"))
    grid.add_row("[bold]memory[/]", gigabytes(machine["memory_bytes"]))
    gpus = [f"{gpu['name']}, {gigabytes(gpu['memory_bytes'])}" for gpu in machine["gpus"]]
    grid.add_row("[bold]GPU[/]", escape("; ".join(gpus) or "none"))
    grid.add_row("[bold]formats[/]", ", ".join(f"{name} {how}" for name, how in machine["dtypes"].items()))
    grid.add_row("[bold]packages[/]", ", ".join(f"{name} {v}" for name, v in machine["versions"].items()))
    grid.add_row("[bold]cache[/]", escape(f"{facts['cache']}, {gigabytes(machine['disk_free_bytes'])} free"))
    scale = facts["scale"]
    grid.add_row("[bold]scale[/]", escape(f"{scale['name']}: {scale['why']}" if scale else "none fits"))
    terminal.print(grid)
    terminal.print(_asset_table(facts["assets"]), _lesson_table(facts["lessons"]))
    for problem in facts["problems"]:
        what, remedy = escape(problem["what"]), escape(problem["remedy"])
        terminal.print(f"[bold red]Problem:[/] {what} [bold]Remedy:[/] {remedy}", soft_wrap=True)
    if not facts["problems"]:
        terminal.print("[green]No problems found.[/]")


def _asset_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("asset", "what", "size", "licence", "state", title="Files to fetch", title_justify="left")
    colours = {"ready": "green", "missing": "yellow", "corrupt": "red"}
    for row in rows:
        state = f"[{colours[row['state']]}]{row['state']}[/]"
        table.add_row(row["name"], row["title"], gigabytes(row["size"]), row["licence"], state)
    return table


def _lesson_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("lesson", "scale", "model", "runs on", "state", title="Lessons", title_justify="left")
    for row in rows:
        state = "[green]ready[/]" if row["ready"] else f"[red]{escape(row['reason'])}[/]"
        if row["ready"] and row["fetches"]:
            state = f"[yellow]will fetch {row['fetches']}[/]"
        where = f"{row['device']}, {row['dtype']}" if row["device"] else "–"
        table.add_row(row["name"], row["scale"] or "–", row["model"] or "–", where, state)
    return table
