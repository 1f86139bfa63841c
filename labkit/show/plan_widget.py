"""The planner as a widget: choose a model and what there is, and see which ways to train fit.

Every control is an ordinary ipywidget with a description, so that Tab reaches it and the arrow keys change it. What is
painted is `labkit.show.plan_picture.plan_html`, which `show_plan` displays without a widget.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from labkit import published
from labkit.errors import LabError
from labkit.ledger.gpus import GPUS
from labkit.planner import Plan, plan
from labkit.show.explorer import Explorer
from labkit.show.plan_picture import plan_html, plan_words

SMALL = ("6GB", "8GB")  # cards of laptops, which come under many names
HOSTS = ("16GB", "32GB", "64GB", "128GB", "256GB", "512GB", "1024GB", "2048GB")


class PlanExplorer(Explorer):
    """Which ways to train fit: the peaks against the GPU, the table, and the lines that run the first that fits.

    What the planner cannot answer (an unknown model, a size below 1) stands as one sentence in the picture's place.

    Attributes:
        plan: what is shown now; None while that is an error.

    Args:
        model, gpu, gpus, batch, seq_len, host: what to begin with, as `labkit.planner.plan` takes them; those that the
            controls do not offer yet are added, such as a `config.json` or "10GB".
    """

    COUNTS = tuple(2**i for i in range(8))
    BATCHES = tuple(2**i for i in range(9))
    LENGTHS = tuple(2**i for i in range(5, 14))

    def __init__(
        self,
        model: str = "opt-1.3b",
        gpu: str = "rtx-4090",
        gpus: int = 1,
        batch: int = 16,
        seq_len: int = 64,
        host: str = "",
    ) -> None:
        self.plan: Plan | None = None
        sizes = [(f"{name} ({size} GB)", name) for name, size in GPUS.items()]
        choices: dict[str, tuple[str, Sequence[Any], Any]] = {
            "model": ("model", published.NAMES, model),
            "gpu": ("GPU", (*SMALL, *sizes), gpu),
            "host": ("host memory", (("not limited", ""), *HOSTS), host),
        }
        sliders = {
            "gpus": ("GPUs", self.COUNTS, gpus),
            "batch": ("batch on each (sequences)", self.BATCHES, batch),
            "seq_len": ("tokens a sequence", self.LENGTHS, seq_len),
        }
        ordered = {key: (label, sorted({*some, now}), now) for key, (label, some, now) in sliders.items()}
        super().__init__(ordered, choices)
        for slider in self.sliders.values():
            slider.style.description_width = "180px"

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """The page of the plan, or the sentence that says why there is none."""
        try:
            self.plan = plan(**self._values(values))
        except LabError as error:
            self.plan = None
            return f'<p role="alert">{html.escape(str(error))}</p>', str(error)
        return plan_html(self.plan), plan_words(self.plan)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include, exclude)
        return bundle if self.plan else {**bundle, "text/plain": self.words}
