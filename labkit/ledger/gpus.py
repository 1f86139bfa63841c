"""How many bytes a GPU has, by its name or as a number such as "24GB".

A vendor's GB of GPU memory is 2^30 bytes. A program does not get all of it: every process has a CUDA context (its
kernels and libraries), the libraries of matrix products take workspaces, and the caching allocator cannot use every gap
between blocks of other sizes. `usable` takes off what the median case of the table `anatomy` needs for these, on an
H100. It is a reserve and no promise: a step that allocates and frees much (checkpointing) has left a quarter in gaps,
and before the allocator gives up it returns what lies idle. A driver may also show a percent less than the box says.
"""

from __future__ import annotations

import re

from labkit.errors import LabError, UnknownNameError

MIB, GIB = 2**20, 2**30
# From NVIDIA's data sheets.
GPUS = {
    "t4": 16,
    "v100-16gb": 16,
    "v100-32gb": 32,
    "rtx-3060": 12,
    "rtx-3090": 24,
    "rtx-4090": 24,
    "rtx-5090": 32,
    "a10": 24,
    "l4": 24,
    "l40s": 48,
    "a100-40gb": 40,
    "a100-80gb": 80,
    "h100": 80,
    "h200": 141,
    "b200": 180,
}
CONTEXT = (773 + 65) * MIB  # the driver's count beyond what torch reserves, 751 to 779; and workspaces
FRAGMENTS = 0.08  # reserved beyond allocated at the peak, as a share of it: 2 to 25 %


def memory(gpu: str) -> int:
    """Bytes of a GPU: a name of GPUS, or a size such as "24GB", "24 GiB" or "512MB".

    Raises:
        UnknownNameError: for another name.
        LabError: for a size that is not above 0.
    """
    text = gpu.strip().lower().replace("_", "-").replace(" ", "")
    if text in GPUS:
        return GPUS[text] * GIB
    size = _bytes(text)
    if size is None:
        raise UnknownNameError.among("GPU", gpu, GPUS)
    if size <= 0:
        raise LabError(f"{gpu} is no size of a GPU.", "Give a size above 0, such as 24GB.")
    return size


def host_memory(size: str) -> int:
    """Bytes of a host's memory, from a size such as "64GB".

    Raises:
        LabError: for what is no size, or one that is not above 0.
    """
    found = _bytes(size.strip().lower().replace(" ", ""))
    if found is None or found <= 0:
        raise LabError(f"{size!r} is no size of host memory.", "Give a size above 0, such as 64GB.")
    return found


def _bytes(text: str) -> int | None:
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)(g|m)i?b?", text)
    return round(float(found[1]) * (GIB if found[2] == "g" else MIB)) if found else None


def usable(size: int) -> int:
    """Bytes that tensors may fill on a GPU of `size` bytes."""
    return max(0, round((size - CONTEXT) / (1 + FRAGMENTS)))
