"""The figure of buckets shows the times that it is given."""

from __future__ import annotations

import pytest
from inside import assert_titles_and_names_inside

from labkit.parallel.reducer_watch import Sent, Watched
from labkit.show import buckets

MIB = 2**20
WAYS = {
    "buckets": Watched(10.0, (Sent(MIB, 2.0, 5.0), Sent(3 * MIB, 4.0, 9.0), Sent(MIB, 9.5, 12.0))),
    "naive": Watched(8.0, (Sent(MIB, 8.5, 9.0), Sent(4 * MIB, 9.0, 14.0))),
    "quick": Watched(8.0, (Sent(MIB, 1.0, 2.0),)),
}


def test_what_is_exposed_is_what_follows_the_backward_pass():
    assert [(w.early, w.exposed_ms) for w in WAYS.values()] == [(3, 2.0), (0, 6.0), (1, 0.0)]


def test_bars_are_where_the_averages_were():
    fig = buckets.buckets_figure(WAYS)
    panel = fig.axes[0]
    spans = [tuple(path.get_extents().intervalx) for bars in panel.collections for path in bars.get_paths()]
    assert spans[0] == (0, 10.0)
    # Solid is an average's own time: the second one has waited from 4 to 5 for the first.
    assert spans[2::2] == [(2.0, 5.0), (5.0, 9.0), (9.5, 12.0)] and spans[3] == (4.0, 5.0)
    assert "3 of 3 begin in the backward pass; 2 ms are exposed" in panel.get_title(loc="left")
    assert fig.axes[1].get_xlim()[1] == pytest.approx(1.02 * 14)
    assert_titles_and_names_inside(fig)
    words = buckets.buckets_words(WAYS)
    assert "backward ends at 8 ms, the last average at 14 ms; 5 MiB are averaged" in words
