"""Widget of lesson 15: choose a GPU and a batch, see which method tunes which model there."""

from __future__ import annotations

from typing import Any

from labkit.ledger import gpus
from labkit.show import mezo as figures
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer

BATCHES = (1, 4, 16)


class GpuExplorer(Explorer):
    """Predicted peaks of MeZO, LoRA and full fine-tuning on OPT models against a GPU's memory.

    Args:
        gpu: to begin with, a name of `labkit.ledger.gpus.GPUS`.

    Raises:
        UnknownNameError: for another name.
    """

    def __init__(self, gpu: str = "rtx-4090") -> None:
        gpus.memory(gpu)
        super().__init__({"batch": ("sequences of 400 tokens", BATCHES, 1)}, {"gpu": ("GPU", list(gpus.GPUS), gpu)})

    def picture_of(self, **given: Any) -> tuple[str, str]:
        """Bars of all sizes and methods, with the GPU's memory as a line."""
        chosen = self._values(given)
        size = gpus.memory(chosen["gpu"])
        words = figures.fit_words(chosen["gpu"], size, chosen["batch"])
        return figure_html(figures.fit_figure(chosen["gpu"], size, chosen["batch"]), words), words
