"""The machine that a lesson runs on: processor, memory, GPUs, versions, and what is wrong with it.

Bytes are bytes; where they are printed, 1 GB is 10^9 bytes. The facts themselves are gathered in
`labkit.probe`; this file only says what they mean.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, ClassVar

GB = 10**9
DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp4")

# The compute capability from which a GPU has instructions for a format (CUDA C++ Programming Guide, table of
# feature support per compute capability). Half-precision arithmetic came with 5.3, bf16 and tf32 with Ampere,
# fp8 with Ada (8.9), fp4 with Blackwell.
_GPU_SINCE = {"fp32": (0, 0), "tf32": (8, 0), "fp16": (5, 3), "bf16": (8, 0), "fp8": (8, 9), "fp4": (10, 0)}

# Any of these flags means arithmetic in the format. F16C is not among them: it only converts fp16 to fp32.
_CPU_FLAGS = {
    "fp16": {"avx512_fp16", "amx_fp16", "fphp", "asimdhp", "feat_fp16"},
    "bf16": {"avx512_bf16", "amx_bf16", "bf16", "feat_bf16"},
}


@dataclass(frozen=True)
class Gpu:
    """One CUDA GPU as torch sees it; `capability` is (major, minor)."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    index: int = 0

    def dtype_support(self, dtype: str) -> str:
        """'hardware', 'emulated' or 'no' for one of DTYPES."""
        if self.capability >= _GPU_SINCE[dtype]:
            return "hardware"
        # tf32 is a mode of tensor cores, not a storage format: without them there is nothing to emulate.
        return "no" if dtype == "tf32" else "emulated"

    def __str__(self) -> str:
        return f"{self.name} ({self.memory_bytes / GB:.1f} GB)"


@dataclass(frozen=True)
class Problem:
    """Something about this machine that a lesson will trip over, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


@dataclass(frozen=True)
class Machine:
    """What is here, found once by `Machine.here()`.

    `cores` are those that this process may use (CPU affinity), `memory_bytes` what it may use (in a
    container less than exists), `disk_free_bytes` what is free in the cache folder.
    """

    system: str
    processor: str
    cores: int
    memory_bytes: int
    disk_free_bytes: int
    python: str
    gpus: tuple[Gpu, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    cpu_flags: frozenset[str] = frozenset()

    _overrides: ClassVar[list[Machine]] = []

    @staticmethod
    def here() -> Machine:
        """This machine; found on the first call (a second or two where torch must be imported), then kept."""
        return Machine._overrides[-1] if Machine._overrides else _found()

    @staticmethod
    @contextlib.contextmanager
    def override(machine: Machine) -> Iterator[Machine]:
        """Within the `with` block `Machine.here()` returns `machine`. For tests; nests; not for threads."""
        Machine._overrides.append(machine)
        try:
            yield machine
        finally:
            Machine._overrides.pop()

    @property
    def device(self) -> str:
        """'cuda' where there is a usable GPU, else 'cpu'."""
        return "cuda" if self.gpus else "cpu"

    @property
    def dtypes(self) -> dict[str, str]:
        """For each of DTYPES, on the device: 'hardware', 'emulated' (by wider arithmetic) or 'no'."""
        if self.gpus:
            return {dtype: self.gpus[0].dtype_support(dtype) for dtype in DTYPES}
        support = {"fp32": "hardware", "tf32": "no"}
        return {
            dtype: support.get(dtype) or ("hardware" if _CPU_FLAGS.get(dtype, set()) & self.cpu_flags else "emulated")
            for dtype in DTYPES
        }

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain JSON types, as records and `labkit doctor --json` store them."""
        facts = asdict(self)
        facts["gpus"] = [{**asdict(gpu), "capability": list(gpu.capability)} for gpu in self.gpus]
        facts["problems"] = [asdict(problem) for problem in self.problems]
        facts["cpu_flags"] = sorted(self.cpu_flags)
        return {**facts, "device": self.device, "dtypes": self.dtypes}

    def __str__(self) -> str:
        gpus = ", ".join(str(gpu) for gpu in self.gpus) or "no GPU"
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        torch = self.versions.get("torch", "not installed")
        return (
            f"{self.system}, {self.processor}, {cores}, {self.memory_bytes / GB:.1f} GB of memory, {gpus}; "
            f"Python {self.python}, torch {torch}"
        )

    def _repr_html_(self) -> str:
        hardware = [name for name, support in self.dtypes.items() if support == "hardware"]
        rows = {
            "system": self.system,
            "processor": f"{self.processor}, {self.cores} usable core(s)",
            "memory": f"{self.memory_bytes / GB:.1f} GB",
            "GPU": ", ".join(str(gpu) for gpu in self.gpus) or "none",
            "formats in hardware": ", ".join(hardware),
            "free disk": f"{self.disk_free_bytes / GB:.1f} GB",
            "software": ", ".join(f"{k} {v}" for k, v in {"Python": self.python, **self.versions}.items()),
            **{f"problem {i}": str(problem) for i, problem in enumerate(self.problems, 1)},
        }
        body = "".join(
            f'<tr><th scope="row" style="text-align:left">{html.escape(key)}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for key, value in rows.items()
        )
        return f"<table><caption>This machine</caption><tbody>{body}</tbody></table>"


@cache
def _found() -> Machine:
    from labkit import probe

    gpus, gpu_problems = probe.gpus()
    memory, disk, versions = probe.memory_bytes(), probe.disk_free_bytes(), probe.versions()
    return Machine(
        system=probe.system(),
        processor=probe.processor(),
        cores=probe.cores(),
        memory_bytes=memory,
        disk_free_bytes=disk,
        python=probe.python(),
        gpus=tuple(Gpu(*facts) for facts in gpus),
        versions=versions,
        problems=tuple(Problem(*p) for p in (*gpu_problems, *probe.shortages(memory, disk, versions))),
        cpu_flags=probe.cpu_flags(),
    )
