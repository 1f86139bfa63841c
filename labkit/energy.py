"""Energy of a GPU over a stretch of time, from the counter that NVIDIA's driver keeps (NVML, millijoules)."""

from __future__ import annotations

from typing import Any


def nvml_handle(device: Any) -> Any:
    """NVML's handle of torch's CUDA device.

    Raises:
        Exception: of several kinds, where there is no driver or no NVML.
    """
    import pynvml
    import torch

    pynvml.nvmlInit()
    # CUDA_VISIBLE_DEVICES renumbers torch's GPUs but not NVML's, so the GPU is found by its id.
    uuid = torch.cuda.get_device_properties(torch.device(device)).uuid
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())


class EnergyMeter:
    """Joules that a GPU used since the meter was made; None where there is no counter to read.

    Args:
        device: "cuda" for the current GPU, "cuda:1" for another one; other devices have no counter.

    NVML's total energy counter exists on Volta and later. It counts the whole board, whoever uses it.
    """

    def __init__(self, device: str):
        self._handle = None
        if device.startswith("cuda"):
            try:
                import pynvml

                self._handle = nvml_handle(device)
                self._start = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            except Exception:  # no driver, no counter: energy is unknown, nothing else is wrong
                self._handle = None

    def joules(self) -> float | None:
        """Joules used so far."""
        if self._handle is None:
            return None
        import pynvml

        return (pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._start) / 1000
