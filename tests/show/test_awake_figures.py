"""The grid of lesson 13 is the methods' own schedule, its bars the formula's bytes, and the widget repaints both."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from inside import assert_titles_and_names_inside

from labkit.errors import LabError
from labkit.layerwise.awake import OUTSIDE
from labkit.layerwise.lisa import Lisa, standing_bytes
from labkit.planner import architecture
from labkit.show import awake

ARCH = architecture("llama-7b")


def drawn(axis):
    """The blocks that are dark, by step, as the axis shows them."""
    bars = [collection for collection in axis.collections if collection.get_alpha() is None]
    found: dict[int, set[str]] = {}
    rows = [OUTSIDE, *map(str, range(6))]
    for row, collection in enumerate(bars):
        for path in collection.get_paths():
            found.setdefault(round(path.vertices[:, 0].min()), set()).add(rows[row])
    return found


def test_the_grid_is_the_schedule():
    schedule = Lisa(layers=2, period=3, seed=4).rehearsed(6, 12)
    fig = awake.awake_figure(schedule, 6, "LISA")
    assert drawn(fig.axes[0]) == {step: set(names) for step, names in enumerate(schedule)}
    assert_titles_and_names_inside(fig)
    plt.close(fig)
    assert awake.shares(schedule, 6) == [sum(str(k) in names for names in schedule) / 12 for k in range(6)]
    assert "who is awake changes" in awake.awake_words(schedule, 6, "LISA")
    assert awake.finding([("0",), ("1",)], 2) == "In 2 steps a layer was awake in 50% of them"
    assert awake.finding([("0",), ("0",)], 2).endswith("0% to 100% of them; 1 of 2 never")


@pytest.mark.parametrize("name", awake.METHODS)
def test_each_method_of_the_widget_is_the_methods_own(name):
    schedule = awake.method_of(name, 2, 5).rehearsed(8, 40)
    sizes = {len([block for block in names if block != OUTSIDE]) for names in schedule}
    assert sizes == ({1} if name.startswith("BAdam") else {2})
    assert (OUTSIDE in schedule[0]) == (name == "LISA")


def test_the_bars_are_the_bytes_that_stand():
    schedule = Lisa(layers=3, period=5).rehearsed(ARCH.layers, 20)
    fig = awake.bytes_figure(schedule, ARCH, "LISA on llama-7b", 7)
    widths = sorted(bar.get_width() for bar in fig.axes[1].patches)
    expected = [*standing_bytes(ARCH, 3).values(), *standing_bytes(ARCH, ARCH.layers).values()]
    assert widths == pytest.approx(sorted(count / 1e9 for count in expected))
    [frame] = fig.axes[0].patches
    assert frame.get_x() == 6
    assert_titles_and_names_inside(fig)
    plt.close(fig)


def test_the_widget_repaints_and_says_the_bytes():
    widget = awake.AwakeExplorer(ARCH, "llama-7b", steps=20)
    before = widget.picture.value
    widget.sliders["layers"].value = 8
    assert widget.picture.value != before
    held = sum(standing_bytes(ARCH, 8).values()) / 1e9
    assert f"{held:.3g} GB stand" in widget.words
    widget.choices["method"].value = "BAdam, descending"
    assert f"In the first step {ARCH.layers - 1} are awake" in widget.words
    bundle = widget._repr_mimebundle_()
    assert "<img alt=" in bundle["text/html"] and bundle["text/plain"].startswith("[figure]")
    assert not plt.get_fignums()


def test_nothing_is_no_grid():
    with pytest.raises(LabError, match="nothing to draw"):
        awake.awake_figure([], 2, "LISA")
    with pytest.raises(LabError, match="no schedule"):
        awake.method_of("LoRA", 1, 1)
