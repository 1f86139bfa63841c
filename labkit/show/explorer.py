"""Dropdowns and sliders above a picture: what the widgets of several lessons have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Explorer:
    """Controls above a picture that is painted anew when one changes; the picture is also the static twin.

    Args:
        sliders: for each argument of `picture_of`: label, options and where it begins. An option is a number, or a
            pair of what the slider shows and the value that it stands for.
        choices: the same for dropdowns, which stand in a row above the sliders.
    """

    def __init__(
        self,
        sliders: Mapping[str, tuple[str, Sequence[Any], Any]],
        choices: Mapping[str, tuple[str, Sequence[Any], Any]] | None = None,
    ) -> None:
        import ipywidgets as w

        self.choices = {key: _dropdown(*choice) for key, choice in (choices or {}).items()}
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
            self.sliders[key] = slider
        for control in self._controls().values():
            control.observe(lambda _change: self._paint(), "value")
        shelf = [w.HBox(list(self.choices.values()), layout=w.Layout(flex_flow="row wrap"))] if self.choices else []
        self.picture = w.HTML()
        self.box = w.VBox([*shelf, *self.sliders.values(), self.picture])
        self.words = ""
        self._paint()

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """HTML and plain words for the values of the controls; those that are not given are as they stand."""
        raise NotImplementedError

    def _controls(self) -> dict[str, Any]:
        return self.choices | self.sliders

    def _values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The value of every control, or the one that is given in its place."""
        return {key: control.value for key, control in self._controls().items()} | dict(given)

    def _paint(self) -> None:
        self.picture.value, self.words = self.picture_of(**self._values({}))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        twin = {"text/html": self.picture.value, "text/plain": f"[figure] {self.words}"}
        return {**self.box._repr_mimebundle_(), **twin}


def _dropdown(label: str, options: Sequence[Any], value: Any) -> Any:
    """A dropdown of the options, and of the value where it is not among them."""
    import ipywidgets as w

    pairs = [option if isinstance(option, tuple) else (str(option), option) for option in options]
    if value not in [known for _, known in pairs]:
        pairs.append((str(value), value))
    style = {"description_width": "110px"}
    box = w.Dropdown(options=pairs, value=value, description=label, style=style, layout=w.Layout(width="350px"))
    box.tooltip = label
    return box
