"""The planner as a widget: choose a model and what there is, and see which ways to train fit.

Every control is an ordinary ipywidget with a description, so that Tab reaches it and the arrow keys change it. What is
painted is `labkit.show.plan_picture.plan_html`, which `show_plan` displays without a widget.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from labkit import published
from labkit.errors import LabError, UnknownNameError
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
        import ipywidgets as w

        self.plan: Plan | None = None
        sizes = [(f"{name} ({size} GB)", name) for name, size in GPUS.items()]
        self.choices: dict[str, Any] = {
            "model": _dropdown("model", published.NAMES, model),
            "gpu": _dropdown("GPU", (*SMALL, *sizes), gpu),
            "host": _dropdown("host memory", (("not limited", ""), *HOSTS), host),
        }
        for choice in self.choices.values():
            choice.observe(lambda _change: self._paint(), "value")
        sliders = {
            "gpus": ("GPUs", self.COUNTS, gpus),
            "batch": ("batch on each (sequences)", self.BATCHES, batch),
            "seq_len": ("tokens a sequence", self.LENGTHS, seq_len),
        }
        super().__init__({key: (label, sorted({*some, now}), now) for key, (label, some, now) in sliders.items()})
        for slider in self.sliders.values():
            slider.style.description_width = "180px"
        shelf = w.HBox(list(self.choices.values()), layout=w.Layout(flex_flow="row wrap"))
        self.box.children = (shelf, *self.box.children)

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """The page of the plan, or the sentence that says why there is none."""
        values = {key: choice.value for key, choice in self.choices.items()} | values
        try:
            _check(values["model"])
            self.plan = plan(**values)
        except LabError as error:
            self.plan = None
            return f'<p role="alert">{html.escape(str(error))}</p>', str(error)
        return plan_html(self.plan), plan_words(self.plan)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include, exclude)
        return bundle if self.plan else {**bundle, "text/plain": self.words}


def _check(model: str) -> None:
    """Refuse a misspelt name at once: looked up on a hub, it would keep the widget waiting.

    Raises:
        UnknownNameError: for what is neither a known name nor looks like a hub id (`owner/name`) or a file.
    """
    known = (*published.NAMES, "tiny")
    if model not in known and "/" not in model and not Path(model).exists():
        raise UnknownNameError.among("model", model, known)


def _dropdown(label: str, options: Iterable[Any], value: str) -> Any:
    """A dropdown of the options, and of the value where it is not among them."""
    import ipywidgets as w

    pairs = [option if isinstance(option, tuple) else (option, option) for option in options]
    if value not in dict(pairs).values():
        pairs.append((value, value))
    style, layout = {"description_width": "110px"}, w.Layout(width="350px")
    box = w.Dropdown(options=pairs, value=value, description=label, style=style, layout=layout)
    box.tooltip = label
    return box
