"""Energy of a GPU over a stretch of time, from the counter that NVIDIA's driver keeps (NVML, millijoules)."""

from __future__ import annotations


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
                import torch

                pynvml.nvmlInit()
                uuid = str(torch.cuda.get_device_properties(torch.device(device)).uuid)
                # CUDA_VISIBLE_DEVICES renumbers torch's GPUs but not NVML's, so the GPU is found by its id.
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
                self._start = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            except Exception:  # no driver, no counter: energy is unknown, nothing else is wrong
                self._handle = None

    def joules(self) -> float | None:
        """Joules used so far."""
        if self._handle is None:
            return None
        import pynvml

        return (pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._start) / 1000
