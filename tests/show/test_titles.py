"""What a figure's edge would cut, `show.figure` makes fit."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import pytest
import torch
from inside import assert_titles_and_names_inside

from labkit.show.display import _titles_made_to_fit
from labkit.show.dora import arrows_figure


@pytest.mark.parametrize("title", ["short", "A title that is much too long for a figure as narrow as this one"])
def test_no_title_leaves_at_the_right(title):
    fig, axis = plt.subplots(figsize=(4, 3))
    axis.set_title(title)
    size = axis._left_title.get_fontsize()
    fig.draw_without_rendering()
    assert _titles_made_to_fit(fig) == (title != "short")
    assert_titles_and_names_inside(fig)
    assert (axis._left_title.get_fontsize() == size) == (title == "short")


def test_no_title_leaves_at_the_top():
    """Where panels keep their proportions the layout makes no room for a second line."""
    weight = torch.tensor([[1.6, 0.4], [-0.4, 1.3]])
    fig = arrows_figure(weight, {"longer": 1.3 * weight, "as before": weight})
    fig.savefig(io.BytesIO(), dpi=110)
    assert _titles_made_to_fit(fig)
    assert_titles_and_names_inside(fig)
    assert not _titles_made_to_fit(fig)
