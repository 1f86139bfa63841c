"""Widgets of lesson 03: alpha against the size of the scores, and gradients by layer against depth.

Each paints one figure anew when a slider moves (`labkit.show.stability`, `labkit.show.stability_depth`). The same
figure, with alternative text, is the static twin for GitHub, paper and pages.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.numerics import deepnorm
from labkit.numerics.attention_softmax import damage
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.stability import SOFTMAX_STYLES, percent, score_histogram
from labkit.show.stability_depth import BySeed, profile_figure, profile_words

if TYPE_CHECKING:
    from torch import Tensor


class AlphaExplorer(Explorer):
    """Two sliders, the size of the scores and alpha: where the scores lie in fp16, and what attention loses.

    Args:
        q, k, v: of real attention, [*heads, seq, d].
        factor, alpha: where the sliders begin.
    """

    FACTORS = tuple(4.0**i for i in range(9))
    ALPHAS = tuple(2.0**i for i in range(33))

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, factor: float = 4096.0, alpha: float = 1.0) -> None:
        self.q, self.k, self.v = q, k, v
        super().__init__({"factor": ("scores enlarged by", self.FACTORS, factor), "alpha": ("α", self.ALPHAS, alpha)})

    def picture_of(self, **values: float) -> tuple[str, str]:
        """The histogram, the rows lost, and a line for each variant."""
        factor, alpha = values["factor"], values["alpha"]
        root, lines, lost = factor**0.5, [], {}
        for name in ("shifted", *SOFTMAX_STYLES):
            found = damage(name, self.q * root, self.k * root, self.v, alpha)
            lost[name] = found.lost
            error = "" if found.whole_error is None else f", relative error {found.whole_error:.1e}"
            lines.append(f"{name}: {percent(found.lost)} of the rows lost{error}")
        fig = score_histogram(self.q, self.k, alpha, factor, lost)
        alt = f"Scores enlarged {factor:g} times. {fig.axes[0].get_title(loc='left')}. {'; '.join(lines)}."
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        return f"{figure_html(fig, alt)}<ul>{items}</ul>", alt


class DepthExplorer(Explorer):
    """A slider for the depth: gradient norm by layer at initialization, with DeepNorm's alpha and beta.

    Args:
        profiles: gradient norms by layer, for each depth, normalization and seed.
        layers: where the slider begins (default: the deepest).

    Raises LabError without profiles.
    """

    def __init__(self, profiles: Mapping[int, Mapping[str, BySeed]], layers: int | None = None) -> None:
        if not profiles:
            raise LabError("There are no profiles to show.", "Measure at least one depth.")
        self.profiles = profiles
        depths = sorted(profiles)
        super().__init__({"layers": ("layers", depths, depths[-1] if layers is None else layers)})

    def picture_of(self, **values: float) -> tuple[str, str]:
        """The profile at a depth."""
        layers = int(values["layers"])
        own, glm = deepnorm.decoder_only(layers), deepnorm.glm(layers)
        words = profile_words(self.profiles[layers])
        text = (
            f"{layers} layers: DeepNorm α = {own.alpha:.2f}, β = {own.beta:.3f}; "
            f"with GLM-130B's constants α = {glm.alpha:.2f}, β = {glm.beta:.3f}."
        )
        fig = profile_figure(self.profiles[layers])
        return f"{figure_html(fig, f'{text} {words}.')}<p>{html.escape(text)}</p>", f"{text} {words}."
