"""How many bytes a GPU has, by its name or as a number such as "24GB".

A vendor's GB of GPU memory is 2^30 bytes. A program does not get all of it: the driver keeps a part, every process has
a CUDA context (its kernels and libraries, some hundred MiB), and the caching allocator cannot use every gap between
blocks of other sizes. `usable` takes off what we set aside for these; it is a reserve, not a measurement.
"""

from __future__ import annotations

import re

from labkit.errors import LabError, UnknownNameError

GIB = 2**30
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
CONTEXT = GIB // 2
FRAGMENTS = 0.03


def memory(gpu: str) -> int:
    """Bytes of a GPU: a name of GPUS, or a size such as "24GB", "24 GiB" or "512MB".

    Raises:
        UnknownNameError: for another name.
        LabError: for a size that is not above 0.
    """
    text = gpu.strip().lower().replace("_", "-").replace(" ", "")
    if text in GPUS:
        return GPUS[text] * GIB
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)(g|m)i?b?", text)
    if not found:
        raise UnknownNameError.among("GPU", gpu, GPUS)
    size = round(float(found[1]) * (GIB if found[2] == "g" else 2**20))
    if size <= 0:
        raise LabError(f"{gpu} is no size of a GPU.", "Give a size above 0, such as 24GB.")
    return size


def usable(size: int) -> int:
    """Bytes that tensors may fill on a GPU of `size` bytes."""
    return max(0, round((size - CONTEXT) * (1 - FRAGMENTS)))
