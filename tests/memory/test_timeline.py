"""Spans: what is hidden is what compute went on beside, and a wait is not compute."""

import pytest

from labkit.errors import LabError
from labkit.memory.timeline import COMPUTE, DOWNLOAD, HOST, UPLOAD, WAIT, Span, Timeline, overlapped, union, without


def spans(*rows):
    return [Span(lane, "", start, end) for lane, start, end in rows]


@pytest.mark.parametrize(
    "rows, share",
    [
        ([(COMPUTE, 0, 10), (DOWNLOAD, 2, 6)], 1.0),
        ([(COMPUTE, 0, 10), (DOWNLOAD, 10, 16)], 0.0),
        ([(COMPUTE, 0, 10), (DOWNLOAD, 8, 12)], 0.5),
        ([(COMPUTE, 0, 10), (WAIT, 4, 6), (DOWNLOAD, 2, 6)], 0.5),
        ([(COMPUTE, 0, 10), (WAIT, 2, 6), (DOWNLOAD, 2, 6)], 0.0),
        ([(COMPUTE, 0, 10), (COMPUTE, 0, 10), (DOWNLOAD, 2, 6), (UPLOAD, 8, 12)], 0.75),
        ([(HOST, 0, 10), (DOWNLOAD, 2, 6)], 0.0),
    ],
)
def test_the_share_of_copy_time_beside_compute(rows, share):
    assert overlapped(spans(*rows)) == pytest.approx(share)


def test_without_copies_there_is_no_share():
    with pytest.raises(LabError, match="copy lane"):
        overlapped(spans((COMPUTE, 0, 10)))


def test_intervals_are_joined_and_cut():
    assert union([(4, 6), (0, 2), (1, 3), (6, 7)]) == [(0, 3), (4, 7)]
    assert without([(0, 10), (12, 14)], [(-1, 1), (3, 4), (9, 13)]) == [(1, 3), (4, 9), (13, 14)]
    assert without([(0, 1)], []) == [(0, 1)]


def test_spans_of_several_threads_come_in_order_and_an_exception_ends_one():
    timeline = Timeline()
    with timeline.span(COMPUTE, "outer"), timeline.span(DOWNLOAD, "inner"):
        pass
    with pytest.raises(ValueError), timeline.span(UPLOAD, "broken"):
        raise ValueError
    found = timeline.spans()
    assert [(s.lane, s.name) for s in found] == [(COMPUTE, "outer"), (DOWNLOAD, "inner"), (UPLOAD, "broken")]
    outer, inner, broken = found
    assert 0 <= outer.start_ms <= inner.start_ms <= inner.end_ms <= outer.end_ms <= broken.start_ms
    timeline.restart()
    assert timeline.spans() == []
