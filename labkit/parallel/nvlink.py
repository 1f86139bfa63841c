"""What a GPU has sent over NVLink, as the GPU itself counts it: traffic of any library, whatever it says of itself.

NVML's field `NVLINK_THROUGHPUT_DATA_TX` (NVIDIA, NVML API reference, "Field Value Enums") is the payload that a link
has sent since the driver was loaded, in KiB; a GPU has several links, and a collective may use all of them. The counter
exists on GPUs with NVLink, and is not always readable on a rented machine.
"""

from __future__ import annotations

from typing import Any

import torch

from labkit.energy import nvml_handle

KIB = 1024
ALL_LINKS = 2**32 - 1  # as the scope of a field


class SentOverNvlink:
    """Bytes that a GPU has sent over NVLink since the counter was made; None where nobody counts them.

    Args:
        device: the GPU; for another device there is no counter.
    """

    def __init__(self, device: torch.device):
        self._handle: Any = None
        self._start = 0
        if device.type != "cuda":
            return
        try:
            self._handle = nvml_handle(device)
            self._start = self._read()
        except Exception:  # no driver, no link, no counter: traffic is unknown, nothing else is wrong
            self._handle = None

    def _read(self) -> int:
        import pynvml

        # The sum over links in one value: asking for 36 links at once has broken the heap with one driver.
        (value,) = pynvml.nvmlDeviceGetFieldValues(
            self._handle, [(pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS)]
        )
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            raise LookupError("no NVLink counter")
        return int(value.value.ullVal) * KIB

    def bytes(self) -> int | None:
        """Bytes sent so far."""
        return None if self._handle is None else self._read() - self._start
