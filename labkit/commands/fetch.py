"""`labkit fetch`: fetches pinned files ahead of time, with a progress bar, and checks them."""

from __future__ import annotations

from labkit import assets
from labkit.commands.terminal import console, gigabytes


def fetch(names: list[str], everything: bool, verify: bool) -> int:
    """Fetch the named assets (all without names); `everything` also converts SmolLM2 once for quick loading.

    `verify` reads every byte of files that are there and fetches damaged ones again.
    """
    chosen = [assets.find(name) for name in names] or list(assets.ASSETS.values())
    terminal = console()
    for asset in chosen:
        status = assets.status(asset.name, verify=verify)
        if status.state == "ready":
            terminal.print(f"[green]✓[/] {asset.name} is there: {status.path}", soft_wrap=True)
            continue
        if status.state == "corrupt":
            terminal.print(f"[yellow]{asset.name} is damaged and fetched again.[/]")
        path = _fetch_one(asset)
        terminal.print(f"[green]✓[/] {asset.name} ({asset.licence}, {asset.citation}): {path}", soft_wrap=True)
    if everything:
        from labkit import models

        terminal.print("Converting SmolLM2 for quick loading; this takes half a minute, once.")
        models.prepare("smollm2-135m")
        terminal.print("[green]✓[/] smollm2-135m is ready.")
    return 0


def _fetch_one(asset: assets.Asset):
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    terminal = console()
    terminal.print(f"Fetching {asset.name}: {asset.title} ({gigabytes(asset.archive_size)}) …")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(asset.name, total=asset.archive_size)
        return assets.get(asset.name, lambda done, total: bar.update(task, completed=done, total=total))
