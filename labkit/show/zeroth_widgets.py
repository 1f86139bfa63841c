"""Widget of lesson 14: a landscape in the plane, estimates of its gradient, and what τ, n and the kind do to them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from labkit.show import zeroth_order as figures
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.zeroth.gradient import DIRECTIONS, KINDS

TAUS = (0.001, 0.01, 0.1, 0.3, 1.0, 2.0)
COUNTS = (1, 2, 4, 16, 64)
DRAWN = 200


class LandscapeExplorer(Explorer):
    """Choose τ, n, the kind of estimate and the directions; see estimates, their mean and the gradient at a point.

    Args:
        f: a function of the plane with a `gradient`, such as a `Quadratic` or a `Cubic`.
        x: the point.
    """

    def __init__(self, f: Any, x: Float[Tensor, " 2"], tau: float = 0.1, n: int = 1) -> None:
        self.f, self.x = f, x
        super().__init__(
            {"tau": ("τ", TAUS, tau), "n": ("directions a mean", COUNTS, n)},
            {"kind": ("estimate", KINDS, "central"), "directions": ("directions", DIRECTIONS, "gaussian")},
        )

    def picture_of(self, **given: Any) -> tuple[str, str]:
        """The landscape with estimates of the chosen kind."""
        chosen = self._values(given)
        found = figures.estimates(self.f, self.x, **chosen, count=DRAWN)
        facts = figures.landscape_facts(self.f, self.x, found)
        setting = f"{chosen['kind']}, {chosen['directions']}, τ = {chosen['tau']:g}, n = {chosen['n']}"
        words = figures.landscape_words(facts, setting)
        title = f"{setting}\n{figures.landscape_finding(facts)}"
        return figure_html(figures.landscape_figure(self.f, self.x, found, title), words), words
