"""The walls around a submission: bubblewrap's namespaces, and limits on what it may use.

Inside there is Python with the course's packages, labkit and its data, read-only; an empty home that is gone with the
process; processes, users and a network of its own (nothing but the loopback that gloo needs). The lessons, with their
solutions and tests, the gradebook and other submissions are not there: what does not exist cannot be read.

Bubblewrap (`bwrap`) is the tool behind Flatpak; it needs Linux and unprivileged user namespaces, or root. Where it is
missing, grading refuses to start, unless the teacher trusts the class: then the limits remain, and the walls do not.
"""

from __future__ import annotations

import functools
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.paths import DATA, ROOT

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_SETTINGS = ("ld.so.cache", "ld.so.conf", "alternatives", "localtime", "fonts", "mime.types")  # in /etc
_PROBE_S = 20.0
HOME = "/tmp/home"  # a submission's, inside the walls


@dataclass(frozen=True)
class Limits:
    """What one submission may use.

    Attributes:
        cell_s: seconds for one cell.
        total_s: seconds for all of it, restarts after a dead process included.
        memory_gib: of all its processes together, in GiB; its files count, too.
        file_mib: of one file, and of all files in its home together, in MiB.
        open_files, threads: at the same time.
    """

    cell_s: float = 60.0
    total_s: float = 600.0
    memory_gib: float = 4.0
    file_mib: int = 256
    open_files: int = 256
    threads: int = 256

    def __post_init__(self) -> None:
        if min(self.cell_s, self.total_s) <= 0:
            raise LabError("A time limit must be above 0 seconds.", "Set --timeout to the seconds for one cell.")
        if self.memory_gib < 1:
            raise LabError(f"{self.memory_gib:g} GiB do not hold Python with torch.", "Set --memory to 1 or more.")


def ready(trust: bool = False) -> None:
    """Return where submissions can be run safely, or are trusted.

    Raises:
        LabError: no bubblewrap, or a system that does not let it make namespaces.
    """
    if trust:
        return
    if problem := _problem():
        raise LabError(
            f"Submissions cannot be walled in here: {problem}",
            "Install bubblewrap on Linux (apt install bubblewrap), or grade with --trust what you would run yourself.",
        )


@functools.cache
def _problem() -> str:
    if sys.platform != "linux":
        return f"bubblewrap needs Linux, and this is {sys.platform}."
    if shutil.which("bwrap") is None:
        return "there is no bwrap."
    try:
        tried = subprocess.run(
            command(["-c", ""], Limits(), trust=False), capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bwrap does not run ({error})."
    if tried.returncode:
        return f"bwrap says {tried.stderr.strip().splitlines()[-1:] or tried.returncode}."
    return ""


def command(arguments: list[str], limits: Limits, trust: bool) -> list[str]:
    """The command that runs Python with `arguments` behind the walls, or without any where it is trusted."""
    python = [sys.executable, "-s", *arguments]
    return python if trust else [shutil.which("bwrap") or "bwrap", *_walls(limits), *python]


def environment(home: str = HOME) -> dict[str, str]:
    """The variables of a submission's process: few, and none of the teacher's."""
    return {
        "HOME": home,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "LABKIT_SCALE": "tiny",
    }


def _walls(limits: Limits) -> Iterator[str]:
    yield from ("--unshare-user", "--unshare-all", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL")
    yield from ("--die-with-parent", "--new-session", "--hostname", "lab")
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    for name in _SETTINGS:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    for path in _python():
        yield from ("--ro-bind", str(path), str(path))
    yield from ("--ro-bind", str(ROOT / "labkit"), str(ROOT / "labkit"), "--ro-bind", str(DATA), str(DATA))
    size = str(limits.file_mib << 20)
    yield from ("--proc", "/proc", "--dev", "/dev")
    yield from ("--size", size, "--tmpfs", "/dev/shm", "--size", size, "--tmpfs", "/tmp", "--dir", HOME)
    yield from ("--remount-ro", "/", "--chdir", HOME)


def _python() -> list[Path]:
    """Folders of Python and the installed packages outside the system's own, outermost only."""
    paths = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *site.getsitepackages()]
    paths += [str(Path(os.path.realpath(sys.executable)).parent)]
    found = sorted({Path(path) for path in paths if Path(path).is_dir()})
    outside = [path for path in found if not any(path.is_relative_to(top) for top in _SYSTEM)]
    outermost = [path for path in outside if not any(path != o and path.is_relative_to(o) for o in outside)]
    # The checkout as a whole would show the lessons; a virtual environment in it does not.
    return [path for path in outermost if not ROOT.is_relative_to(path)]
