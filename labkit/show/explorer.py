"""Sliders above a picture: what the widgets of several lessons have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Explorer:
    """Sliders above a picture that is painted anew when one moves; the picture is also the static twin.

    Args:
        sliders: for each argument of `picture_of`: label, options and where it begins. An option is a number, or a
            pair of what the slider shows and the value that it stands for.
    """

    def __init__(self, sliders: Mapping[str, tuple[str, Sequence[Any], Any]]) -> None:
        import ipywidgets as w

        self.sliders = {}
        for key, (label, options, value) in sliders.items():
            slider = w.SelectionSlider(
                options=[o if isinstance(o, tuple) else (f"{o:g}", o) for o in options],
                value=value,
                description=label,
                continuous_update=False,
                style={"description_width": "150px"},
                layout=w.Layout(width="480px"),
            )
            slider.tooltip = label
            slider.observe(lambda _change: self._paint(), "value")
            self.sliders[key] = slider
        self.picture = w.HTML()
        self.box = w.VBox([*self.sliders.values(), self.picture])
        self.words = ""
        self._paint()

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """HTML and plain words for the values of the sliders."""
        raise NotImplementedError

    def _paint(self) -> None:
        self.picture.value, self.words = self.picture_of(**{k: s.value for k, s in self.sliders.items()})

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        twin = {"text/html": self.picture.value, "text/plain": f"[figure] {self.words}"}
        return {**self.box._repr_mimebundle_(), **twin}
