"""The widget of lesson 02: gradients against the range of a format, with a slider for the loss scale.

It paints `labkit.show.precision.range_figure` anew when a slider moves. The same figure, with alternative text, is the
static twin for GitHub, paper and pages.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from labkit.numerics.gradients import magnitudes, window
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.precision import range_figure, range_words

if TYPE_CHECKING:
    from torch import Tensor


class GradientExplorer(Explorer):
    """Two sliders, the format and the loss scale: which gradients vanish, lose digits, or become infinite.

    Args:
        sizes: magnitudes of gradients.
        fmt: the format to begin with.
        exponent: the loss scale to begin with is 2 to this power.
    """

    FORMATS = ("fp16", "bf16", "fp8_e5m2", "fp8_e4m3")
    EXPONENTS = tuple(range(-24, 25))

    def __init__(self, sizes: Tensor, fmt: str = "fp16", exponent: int = 0) -> None:
        self.sizes = magnitudes([sizes])
        super().__init__(
            {
                "fmt": ("format", [(name, name) for name in self.FORMATS], fmt),
                "exponent": ("loss scale", [(f"2^{k}", k) for k in self.EXPONENTS], exponent),
            }
        )

    def picture_of(self, **values: Any) -> tuple[str, str]:
        """The histogram, and which scales would do."""
        fmt, exponent = values["fmt"], values["exponent"]
        text = window_words(self.sizes, fmt)
        fig = range_figure({f"Gradients · $2^{{{exponent}}}$": self.sizes}, fmt, 2.0**exponent)
        words = f"Gradients times 2^{exponent} in {fmt}: {range_words(self.sizes, fmt, 2.0**exponent)}. {text}"
        return f"{figure_html(fig, words)}<p>{html.escape(text)}</p>", words


def window_words(sizes: Tensor, fmt: str) -> str:
    """The loss scales with which next to nothing is lost in a format, in a sentence."""
    low, high = window(sizes, fmt)
    if low > high:
        return f"In {fmt} no loss scale keeps 999 of 1000 values from zero and all from overflow."
    return f"In {fmt} every loss scale from 2^{low} to 2^{high} keeps 999 of 1000 values from zero and overflows none."
