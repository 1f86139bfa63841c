"""`labkit bench`: lists the reference tables or measures one again."""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path

from rich.markup import escape

from labkit.commands.terminal import console
from labkit.errors import LabError, UnknownNameError
from labkit.paths import DATA, ROOT


def tables() -> dict[str, str]:
    """The reference tables that can be measured, name to title: the modules of labkit.bench with a TITLE.

    Titles are read from the source, because importing a table's module imports torch.
    """
    folder = ROOT / "labkit" / "bench"
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        title = _title((folder / f"{module.name}.py").read_text(encoding="utf-8")) if not module.ispkg else None
        if title:
            found[module.name.replace("_", "-")] = title
    return found


def _title(source: str) -> str | None:
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "TITLE" for target in targets):
            value = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            return value if isinstance(value, str) else None
    return None


def bench(name: str | None, out: Path | None, resume: bool = False, predict: bool = False) -> int:
    """Measure table `name` again, or compute its formulas, or list the tables without a name.

    Raises LabError as `regenerate` and `repredict` do.
    """
    known = tables()
    terminal = console()
    if name is None:
        for table, title in known.items():
            recorded = "recorded" if (DATA / "reference" / f"{table}.json").is_file() else "not yet recorded"
            terminal.print(f"[bold]{table}[/]  {escape(title)} [dim]({recorded})[/]", soft_wrap=True)
        return 0
    if name not in known:
        raise UnknownNameError.among("table", name, known)
    from labkit.bench.record import regenerate, repredict

    if predict and resume:
        raise LabError("--predict measures nothing that could be resumed.", "Give one of the two.")

    def report(row: dict) -> None:
        terminal.print(escape(", ".join(f"{k} {v}" for k, v in row.items() if v is not None)), soft_wrap=True)

    path = repredict(name, out) if predict else regenerate(name, out=out, report=report, resume=resume)
    terminal.print(f"[green]✓[/] {name}: {path}", soft_wrap=True)
    return 0
