"""The figures and the widget of lesson 11 draw the numbers they are given."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from inside import assert_titles_and_names_inside

from labkit.adapters.decompose import Change, changes, correlation, interval
from labkit.bench.dora import METHODS, PUBLISHED
from labkit.errors import LabError
from labkit.show import dora as figures
from labkit.show import dora_record as record


def training(seed: int, layers: int = 3) -> list[Change]:
    torch.manual_seed(seed)
    names = [f"model.layers.{k}.self_attn.{n}_proj" for k in range(layers) for n in "qv"]
    start = {name: torch.randn(6, 5) for name in names}
    found = []
    for step in (2, 4, 6, 8):
        after = {name: w + 0.02 * step * torch.randn(6, 5) for name, w in start.items()}
        found += changes(start, after, step)
    return found


def test_a_panel_of_changes_has_a_mark_a_matrix_and_moment_and_the_line_that_fits():
    seen = {"full": training(0), "lora": training(1)}
    fig = figures.changes_figure(seen)
    assert_titles_and_names_inside(fig)
    for ax, (name, made) in zip(fig.axes, seen.items(), strict=True):
        assert [c.get_offsets()[0, 0] for c in ax.collections] == pytest.approx([c.direction for c in made])
        assert [c.get_offsets()[0, 1] for c in ax.collections] == pytest.approx([c.magnitude for c in made])
        sizes = [c.get_sizes()[0] for c in ax.collections]
        assert sizes == sorted(sizes) and len(set(sizes)) == 4
        (line,) = ax.lines
        xs, ys = line.get_data()
        last = [c for c in made if c.step == 8]
        steep, level = statistics.linear_regression([c.direction for c in last], [c.magnitude for c in last])
        assert [c.get_alpha() for c in ax.collections] == [1.0 if c.step == 8 else 0.35 for c in made]
        assert list(ys) == pytest.approx([level + steep * x for x in xs], rel=1e-6)
        low, high = interval(last)
        assert ax.get_title(loc="left") == f"{name}: r = {correlation(last):+.2f}\n95 %: {low:+.2f} to {high:+.2f}"
        assert ax.get_ylim()[1] > max(c.magnitude for made in seen.values() for c in made)
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in fig.axes}) == 1
    (legend,) = fig.legends
    assert [t.get_text() for t in legend.texts][:2] == ["queries, at the end", "values, at the end"]
    values = {name: correlation(made[-6:]) for name, made in seen.items()}
    both = [*values.values(), *map(correlation, seen.values())]
    assert all(f"{v:+.2f}" in figures.changes_words(seen) for v in both)


def line_of(slope: float, length: float, noise: tuple[float, ...] = (0.0,) * 6) -> list[Change]:
    """Six matrices at the end, whose mean change of length is about `length`."""
    size = [length + slope * (k - 2.5) + more for k, more in enumerate(noise)]
    return [Change(f"{k}", 3, torch.tensor([m]), torch.tensor([0.1 * (k + 1)])) for k, m in enumerate(size)]


def test_the_finding_names_only_correlations_that_can_be_told_from_0():
    scattered = line_of(0.0, 0.5, (0.0, 0.1, 0.0, 0.1, 0.0, 0.1))
    seen = {"lora": line_of(0.01, 0.1), "full": scattered, "dora": line_of(-0.01, 0.2)}
    assert figures.sure(seen) == ["lora", "dora"]
    told = "At the end r differs from 0 only in lora and dora; lengths change 5.5 times as much in full as in lora"
    assert figures.changes_finding(seen) == told
    assert figures.changes_finding({"full": scattered}).startswith("At the end no r can be told from 0; ")


def test_arrows_end_where_the_rows_do_and_words_say_how_far_they_turned():
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    fig = figures.arrows_figure(before, {"LoRA": after})
    ends = [t.xy for t in fig.axes[0].texts if t.get_text() == ""]
    assert ends == [(1, 0), (0, 1), (0, 2), (0, 3)]
    assert fig.axes[0].get_title(loc="left") == "LoRA:\nrows turn, lengths change by 0.50"
    assert len(fig.legends[0].texts) == 3
    assert "row 1 +0.00 and 90°, row 2 +1.00 and 0°" in figures.arrows_words(before, {"LoRA": after})
    assert_titles_and_names_inside(fig)


def test_the_widget_shows_the_rows_of_what_is_chosen():
    seen = {"full": training(0), "dora": training(1)}
    widget = figures.RowsExplorer(seen)
    assert widget.words == figures.rows_words(seen["full"][-6], "full")
    widget.choices["method"].value = "dora"
    widget.choices["layer"].value = "model.layers.1.self_attn.v_proj"
    widget.sliders["step"].value = 4
    change = next(c for c in seen["dora"] if c.step == 4 and "1.self_attn.v" in c.layer)
    assert widget.words == figures.rows_words(change, "dora") and "1.self_attn.v_proj after step 4" in widget.words
    assert widget._repr_mimebundle_()["text/plain"] == f"[figure] {widget.words}"
    fig = figures.rows_figure(change, "dora")
    assert fig.axes[0].get_title(loc="left").startswith("dora, layers.1.v_proj, step 4: ")
    xs, ys = fig.axes[0].lines[1].get_data()
    assert list(ys) == change.lengths.tolist()
    assert [math.cos(math.radians(x)) for x in xs] == pytest.approx([1 - d for d in change.turns.tolist()], rel=1e-9)
    assert_titles_and_names_inside(fig)


def rows() -> list[dict]:
    return [
        {"model": "m", "method": name, "accuracy": 0.8 + 0.01 * k, "accuracy_std": 0.004, "share": 0.01 * k,
         "step_ms": 10.0 + k, "peak_allocated_mib": None if k == 4 else 100.0 + k}
        for k, name in enumerate(METHODS)
    ]  # fmt: skip


def test_recorded_bars_have_the_tables_heights_and_the_finding_weighs_the_spread():
    fig = record.record_figure(rows())
    assert_titles_and_names_inside(fig)
    heights = [bar.get_height() for c in fig.axes[0].containers if hasattr(c, "patches") for bar in c.patches]
    assert heights == pytest.approx([80, 81, 82, 83, 84])
    assert "not\nmeasured" in {t.get_text() for t in fig.axes[3].texts}
    # √(0.81 · 0.19 / 1500 + 0.004² / 3) and √(0.83 · 0.17 / 1500 + 0.004² / 3) together
    gain, error = record.gain_of(rows(), "dora")
    assert gain == pytest.approx(2.0) and error == pytest.approx(1.4399, abs=0.0002)
    told = "DoRA against LoRA: +2.0 points, standard error 1.4: not more than luck would give"
    assert record.record_finding(rows()) == told
    better = [row | {"accuracy": 0.9 if row["method"] == "dora" else 0.8} for row in rows()]
    assert "+10.0 points, standard error 1.3: more than luck" in record.record_words(better)
    unsteady = [row | {"accuracy_std": 0.15} for row in better]
    assert "not more than luck" in record.record_words(unsteady)


def test_published_marks_are_the_papers_averages():
    fig = record.published_figure(PUBLISHED)
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["llama-7b", "llama-13b", "llama2-7b", "llama3-8b"]
    drawn = {line.get_label(): list(line.get_ydata()) for line in fig.axes[0].lines}
    assert drawn["LoRA"] == [74.7, 80.5, 77.6, 80.8] and drawn["DoRA, half rank"] == [77.5, 80.8, 80.5, 85.0]
    places = [tuple(line.get_xdata()) for line in fig.axes[0].lines]
    assert len({x for across in places for x in across}) == 12  # no mark on another
    assert fig.axes[0].get_title(loc="left").endswith("0.3 to 4.2 points above LoRA")
    assert "llama3-8b LoRA 80.8, DoRA, half rank 85.0, DoRA 85.2" in record.published_words(PUBLISHED)
    assert_titles_and_names_inside(fig)


DRAWING = [figures.changes_figure, figures.RowsExplorer, record.record_figure, record.published_figure]


@pytest.mark.parametrize("draw", DRAWING)
def test_nothing_to_draw_is_said(draw):
    with pytest.raises(LabError, match="nothing to draw"):
        draw({})
