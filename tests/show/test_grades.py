"""The summary of a class: its titles state what the numbers say, and its words hold them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from labkit.show.grades import grades_figure, grades_words, summary
from labkit.show.style import PALETTE

SHARES = {"Sum": [1, 1, 0.5, 1], "Product": [0, 1, 0.25, 0], "Essay": [0.1]}


@pytest.fixture
def axes():
    fig = grades_figure([0, 4, 9, 10], 10, SHARES)
    yield fig.axes
    plt.close(fig)


def test_bars_and_titles_are_the_numbers(axes):
    left, right = axes
    assert [bar.get_height() for bar in left.patches] == [1, 0, 0, 0, 1, 0, 0, 0, 0, 2]
    assert left.get_title(loc="left") == "Half of 4 have 6.5 points or more"
    assert [round(bar.get_width(), 2) for bar in right.patches] == [87.5, 31.25, 10]
    assert right.get_title(loc="left") == "Hardest: Product", "an essay that is marked once says nothing of a class"
    assert [plt.matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in right.patches] == [
        PALETTE["sky"].upper(),
        PALETTE["orange"].upper(),
        PALETTE["sky"].upper(),
    ]


def test_words_and_files(tmp_path):
    words = grades_words([0, 4, 9, 10], 10, SHARES)
    assert "lowest 0, median 6.5, mean 5.75, highest 10" in words and "Product 31 %" in words
    paths = summary(tmp_path, "A <lab>", [0, 4, 9, 10], 10, {**SHARES, "Open": []}, ["4 students."])
    assert sorted(path.name for path in paths) == ["summary.html", "summary.png", "summary.svg"]
    page = (tmp_path / "summary.html").read_text(encoding="utf-8")
    assert "A &lt;lab&gt;" in page and "<lab>" not in page and "http" not in page and "4 students." in page
    assert (tmp_path / "summary.svg").read_bytes().startswith(b"<?xml") and not plt.get_fignums()


@pytest.mark.parametrize(
    ("shares", "title"), [({"A": [1, 1], "B": [1, 1]}, "All exercises did equally well"), ({}, "Nothing is marked yet")]
)
def test_a_class_without_a_hardest_exercise(shares, title):
    fig = grades_figure([2, 2], 2, shares)
    assert fig.axes[1].get_title(loc="left") == title
    plt.close(fig)
