"""The ring of lesson 06 takes the steps of `labkit.parallel.collectives`, and its figures show them."""

from __future__ import annotations

import pytest
from inside import assert_titles_and_names_inside

from labkit.errors import LabError
from labkit.grading.ranks import ranks
from labkit.parallel import collectives
from labkit.show import ring


def test_each_step_adds_one_rank_and_the_reduce_scatter_leaves_what_ours_leaves():
    for n in (1, 2, 3, 5):
        moments = ring.ring_moments(n)
        assert [m.step for m in moments] == list(range(2 * (n - 1) + 1))
        for m in moments[1:n]:
            assert all(str(row[c]).count("1") == m.step + 1 for row, c in zip(m.values, m.arrived, strict=True))
        # Rank r of `collectives.reduce_scatter` has chunk r, and after N - 1 steps the picture has it finished there.
        whole = int("1" * n)
        finished = [[c for c, v in enumerate(row) if v == whole] for row in moments[n - 1].values]
        assert finished == [[rank] for rank in range(n)]
        assert all(value == whole for row in moments[-1].values for value in row)


def test_the_chunks_on_the_way_are_those_of_our_ring(monkeypatch):
    import torch
    import torch.distributed as dist

    n = 4

    def work(group):
        seen = []

        def exchange(leaving, arriving, rank, world_size, _group, _traffic):
            group.exchange(leaving, (rank + 1) % world_size, arriving, (rank - 1) % world_size)
            seen.append(arriving.tolist())

        here.rank, here.exchange = group.rank, exchange
        collectives.all_reduce(torch.full((n,), 10.0**group.rank))
        return seen

    import threading

    here = threading.local()
    monkeypatch.setattr(dist, "get_rank", lambda group=None: here.rank)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: n)
    monkeypatch.setattr(collectives, "_exchange", lambda *given: here.exchange(*given))
    moments = ring.ring_moments(n)
    for rank, seen in enumerate(ranks(n, work)):
        for m, (value,) in zip(moments[1:], seen, strict=True):
            own = 10**rank if m.step < n else 0  # our ring adds after it has received
            assert m.values[rank][m.arrived[rank]] == value + own


def test_figures_and_words_tell_the_step():
    fig = ring.ring_figure(4, 3)
    ax = fig.axes[0]
    assert ax.get_title(loc="left") == "Step 3 of 6, reduce-scatter: 4 of 16 chunks are finished sums"
    assert [t.get_text() for t in ax.texts].count("1111") == 4 and len(ax.patches) == 16
    assert_titles_and_names_inside(fig)
    assert "rank 1 chunk 1 from rank 0" in ring.ring_words(4, 3)
    widget = ring.RingExplorer(3)
    widget.sliders["step"].value = 4
    assert "9 of 9 chunks are finished" in widget.words and widget.play.max == 4
    with pytest.raises(LabError):
        ring.ring_moments(9)


def test_copies_stand_on_the_formula():
    rows = [{"method": "ring", "world_size": n, "copies": 2 * (n - 1) / n} for n in (1, 2, 4)]
    rows += [{"method": "through rank 0", "world_size": n, "copies": n - 1.0} for n in (1, 2, 4)]
    ax = ring.sent_figure(rows).axes[0]
    line = next(line for line in ax.lines if line.get_label() == "ring")
    assert list(line.get_ydata()) == [0, 1, 1.5]
    assert ax.get_title(loc="left") == "On 4 ranks the busiest sends, in copies: 1.5 (ring), 3 (through rank 0)"
    assert "through rank 0 on 4: 3" in ring.sent_words(rows)


def test_frames_are_the_moments_side_by_side():
    fig = ring.frames_figure(3)
    drawn = [ax for ax in fig.axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in drawn] == [
        "beginning", "step 1, adds", "step 2, adds", "step 3, copies", "step 4, copies"
    ]  # fmt: skip
    for ax, moment in zip(drawn, ring.ring_moments(3), strict=True):
        assert [int(text.get_text()) for text in ax.texts] == [value for row in moment.values for value in row]
    assert "2 steps that add, then 2 that copy" in ring.frames_words(3)


def test_lines_go_through_both_ends_and_the_title_says_the_largest_error():
    rows = [{"method": "a", "mib": mib, "step_ms": ms} for mib, ms in ((0.0, 1.0), (2.0, 4.0), (4.0, 5.0))]
    rows += [{"method": "b", "mib": mib, "step_ms": ms} for mib, ms in ((1.0, 1.0), (2.0, 2.0), (3.0, None))]
    fig = ring.rates_figure([dict(row, mib=row["mib"] + 1) for row in rows])
    lines = fig.axes[0].lines
    assert list(lines[1].get_ydata()) == [1.0, 4.0, 5.0] and len(lines[3].get_ydata()) == 2
    assert (lines[0].get_ydata()[0], lines[0].get_ydata()[-1]) == pytest.approx((1.0, 5.0))
    assert "within 25 %" in fig.axes[0].get_title(loc="left")  # 3 ms on the line, 4 ms measured
    assert_titles_and_names_inside(fig)
    assert "b 1 ms at 1 MiB and 2 ms at 2 MiB" in ring.rates_words(rows)
