"""What a figure's edge would cut, `show.figure` makes fit."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from inside import assert_titles_and_names_inside

from labkit.show.display import _titles_inside


@pytest.mark.parametrize("title", ["short", "A title that is much too long for a figure as narrow as this one"])
def test_no_title_leaves_at_the_right(title):
    fig, axis = plt.subplots(figsize=(4, 3))
    axis.set_title(title)
    size = axis._left_title.get_fontsize()
    _titles_inside(fig)
    assert_titles_and_names_inside(fig)
    assert (axis._left_title.get_fontsize() == size) == (title == "short")


def test_no_title_leaves_at_the_top():
    fig, axis = plt.subplots(figsize=(3, 3))
    axis.set(aspect="equal", xlim=(0, 1), ylim=(0, 2))
    axis.set_title("one line\nand another\nand a third one")
    _titles_inside(fig)
    assert_titles_and_names_inside(fig)
