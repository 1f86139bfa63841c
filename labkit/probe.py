"""How the facts of `labkit.machine` are found on Linux, macOS and Windows. No function here raises.

A driver or a system file can fail in more ways than can be listed, and a course must start all the same: a
fact that cannot be read takes a plain default, and what matters to the learner becomes a (what, remedy) pair.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import warnings
from pathlib import Path

from labkit.paths import cache_path, existing_parent

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "numpy",
    "jupyterlab",
    "ipywidgets",
)
GpuFacts = tuple[str, int, tuple[int, int], int]
ProblemFacts = tuple[str, str]
_MINIMUM_MEMORY = 4 * 10**9
_MINIMUM_DISK = 2 * 10**9


def system() -> str:
    """The operating system and its machine type, such as 'Linux x86_64'."""
    name = {"Darwin": "macOS"}.get(platform.system(), platform.system())
    return f"{name} {platform.machine()}".strip()


def python() -> str:
    return platform.python_version()


def processor() -> str:
    """The processor's own name where the system tells it, else its type."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin" and (name := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return name
    return platform.processor() or platform.machine() or "unknown processor"


def cores() -> int:
    """Cores that this process may run on, which in a container or under taskset are fewer than exist."""
    with contextlib.suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's limit if that is lower."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # absent without a container; "max" means no limit
            total = min(total, int(Path(name).read_text()))
    return total


def disk_free_bytes() -> int:
    """Free bytes on the disk of the cache folder."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(existing_parent(cache_path())).free
    return 0


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on, read without importing them."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def cpu_flags() -> frozenset[str]:
    """The processor's instruction-set flags, in lower case, as far as this system tells them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.lower().split())
    if platform.system() == "Darwin":
        lines = (_output("sysctl", "hw.optional.arm") or "").splitlines()
        return frozenset(line.split(":")[0].rsplit(".")[-1].lower() for line in lines if line.endswith(": 1"))
    with contextlib.suppress(Exception):  # Windows: torch asks the processor itself, in recent versions
        import torch

        return frozenset(name for name, present in torch.cpu.get_capabilities().items() if present is True)
    return frozenset()


def gpus() -> tuple[list[GpuFacts], list[ProblemFacts]]:
    """Usable CUDA GPUs as (name, bytes, capability, index), and why others cannot be used."""
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError or ImportError from deep inside
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [], [(f"torch cannot be imported ({reason}).", "Install the course again: python -m pip install -e .")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old drivers; the problem below says it better
            if torch.cuda.is_available():
                return _usable_gpus(torch)
            return [], _why_no_cuda(torch)
    except Exception as error:
        return [], [(f"The GPU cannot be asked ({error}).", "Update its driver, then run labkit doctor again.")]


def _usable_gpus(torch) -> tuple[list[GpuFacts], list[ProblemFacts]]:
    built_for = [int(arch[3:]) for arch in torch.cuda.get_arch_list() if arch[:3] == "sm_" and arch[3:].isdigit()]
    usable: list[GpuFacts] = []
    problems: list[ProblemFacts] = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        if built_for and facts.major * 10 + facts.minor < min(built_for):
            capability = f"compute capability {facts.major}.{facts.minor}"
            what = f"{facts.name} ({capability}) is older than this build of torch supports."
            problems.append((what, "Install a build of torch for an older CUDA version, or work on the CPU."))
        else:
            usable.append((facts.name, int(facts.total_memory), (facts.major, facts.minor), index))
    return usable, problems


def _why_no_cuda(torch) -> list[ProblemFacts]:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1"):
        return []  # the GPU was hidden on purpose
    driver = nvidia_driver()
    if driver is None:
        return []
    what = f"This machine has an NVIDIA GPU ({driver}), but torch {torch.__version__}"
    if torch.version.cuda is None:
        remedy = (
            "Install the CUDA build with the command that pytorch.org/get-started/locally shows for your "
            "system, adding --force-reinstall."
        )
        return [(f"{what} was built without CUDA.", remedy)]
    remedy = f"Update the NVIDIA driver to one that supports CUDA {torch.version.cuda}, then restart."
    return [(f"{what} cannot use it.", remedy)]


def nvidia_driver() -> str | None:
    """The first NVIDIA GPU's name as its driver gives it, or None without a driver that sees a GPU."""
    listing = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if listing:
        return listing.splitlines()[0].strip()
    with contextlib.suppress(OSError):
        if any(Path("/proc/driver/nvidia/gpus").iterdir()):
            return "seen by its driver"
    return None


def shortages(memory: int, disk: int, installed: dict[str, str]) -> list[ProblemFacts]:
    """What runs short: memory, disk, or a package that every lesson imports."""
    found = []
    for name in ("torch", "transformers", "jupyterlab"):
        if name not in installed:
            what = f"The package {name} is not installed."
            found.append((what, "Install the course: python -m pip install -e ."))
    if memory < _MINIMUM_MEMORY:
        what = f"This machine has {memory / 1e9:.1f} GB of memory; lessons need {_MINIMUM_MEMORY / 1e9:.0f} GB."
        found.append((what, "Close other programs while you run them."))
    if disk < _MINIMUM_DISK:
        what = f"The disk of the cache folder {cache_path()} has {disk / 1e9:.1f} GB free."
        remedy = f"Free {_MINIMUM_DISK / 1e9:.0f} GB, or set LABKIT_CACHE to a folder on another disk."
        found.append((what, remedy))
    return found


def _output(*command: str) -> str | None:
    """What a short system command prints, or None where it is missing, fails or hangs."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return result.stdout.strip() or None
    return None
