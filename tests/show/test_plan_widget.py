"""The planner's widget and its static twin show the plan's own numbers, and say what they cannot answer."""

from __future__ import annotations

import html
import itertools
import re
from dataclasses import replace

import pytest

from labkit.errors import LabError
from labkit.ledger.gpus import GPUS
from labkit.planner import plan
from labkit.published import NAMES
from labkit.show.anatomy_style import GIB, amount, number
from labkit.show.plan_picture import PALE, plan_figure, plan_html, plan_rows, plan_table, plan_words, show_plan
from labkit.show.plan_widget import PlanExplorer

TOO_SMALL = {"batch": 1, "host": "64GB", "only": "offloaded"}


@pytest.fixture(scope="module")
def some():
    """Nine of eighteen ways fit."""
    return plan("opt-1.3b", "12GB", batch=4, seq_len=512)


def bars(axis):
    """Left and right end, and opacity, of each row's boxes."""
    rows = [[] for _ in axis.containers[0]]
    for container in axis.containers:
        for row, box in zip(rows, container, strict=True):
            row.append((box.get_x(), box.get_x() + box.get_width(), box.get_alpha()))
    return rows


def test_a_bar_ends_at_its_way_s_peak_and_is_pale_where_it_does_not_fit(some):
    assert 0 < sum(option.fits for option in some.options) < len(some.options)
    axis = plan_figure(some).axes[0]
    said = [text.get_text().partition(",")[0] for text in axis.texts]
    for option, row in zip(some.options, bars(axis), strict=True):
        assert number(option.peak.total / GIB) in said
        assert row[-1][1] == pytest.approx(option.peak.total / GIB, rel=0.01)
        assert all(start == pytest.approx(end) for (_, end, _), (start, _, _) in itertools.pairwise(row))
        assert {alpha for *_, alpha in row} == {1.0 if option.fits else PALE}
    assert [label.get_text() for label in axis.get_yticklabels()] == [option.name for option in some.options]
    assert axis.lines[0].get_xdata()[0] == pytest.approx(some.usable / GIB)
    assert axis.get_ylim()[0] > axis.get_ylim()[1], "the first way stands on top"
    assert axis.get_xlabel() == "memory at the peak (GiB)"


def test_the_legend_names_the_drawn_categories_in_full_colours(some):
    legend = plan_figure(some).legends[0]
    assert {"weights", "optimizer states", "gradients"} <= {text.get_text() for text in legend.get_texts()}
    assert all(patch.get_alpha() is None for patch in legend.get_patches())


@pytest.mark.parametrize(
    ("model", "gpu", "more", "finding"),
    [
        ("opt-1.3b", "12GB", {"batch": 4, "seq_len": 512}, r"9 of 18 ways to train opt-1.3b fit 12GB\nThe first, full"),
        ("opt-175b", "8GB", {}, r"No way to train opt-175b fits 8GB\nThe smallest peak, qlora\+checkpointing, is"),
        ("smollm2-135m", "h100", {}, r"18 of 18 ways to train smollm2-135m fit h100\nThe peaks go from .* usable"),
        ("llama-7b", "rtx-4090", TOO_SMALL, r"\noffloaded\+checkpointing would, but needs .* host$"),
        ("opt-1.3b", "12GB", {"gpus": 8, "only": "zero3"}, r"2 of 2 ways to train opt-1.3b fit 8 × 12GB\n"),
    ],
)
def test_the_title_says_the_finding_and_stays_in_the_figure(model, gpu, more, finding):
    found = plan(model, gpu, **more)
    fig = plan_figure(found)
    axis = fig.axes[0]
    assert re.search(finding, axis.get_title(loc="left")), axis.get_title(loc="left")
    fig.canvas.draw()
    width, height = fig.get_size_inches() * fig.dpi
    texts = [axis._left_title, axis.xaxis.label, *axis.texts, *axis.get_yticklabels(), *fig.legends[0].get_texts()]
    for text in texts:
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()
    assert axis.xaxis.label.get_window_extent().y0 > fig.legends[0].get_window_extent().y1
    names = [text.get_window_extent().y1 for text in axis.texts if text.get_text().startswith("usable")]
    assert all(top < axis._left_title.get_window_extent().y0 for top in names)


def test_the_line_is_left_out_where_bars_would_vanish_beside_it():
    small = plan("smollm2-135m", "h100")
    axis = plan_figure(small).axes[0]
    assert not axis.lines and f"{amount(small.usable)} are usable" in axis.get_title(loc="left")


def test_the_words_tell_each_way_s_peak(some):
    words = plan_words(some)
    assert "4 × 512 tokens" in words and f"against {amount(some.usable)} usable" in words
    for option in some.options:
        largest = max(option.peak.bytes, key=option.peak.bytes.get).replace("_", " ")
        fits = "fits" if option.fits else "does not fit"
        assert f"{option.name} {amount(option.peak.total)}, the largest part {largest}, {fits}" in words


def test_the_table_has_the_plan_s_rows_and_keeps_its_cells_apart(some):
    table, rows = plan_table(some), plan_rows(some)
    assert [row["method"] for row in rows] == [option.name for option in some.options]
    for row, option in zip(rows, some.options, strict=True):
        assert row["largest batch"] == (str(option.largest_batch) if option.largest_batch else "–")
        assert row["host (GiB)"] == (number(option.host_bytes / GIB) if option.host_bytes else "–")
        assert row["fits"] == ("yes" if option.fits else "no")
    assert re.findall(r'<th scope="row"[^>]*>([^<]+)</th>', table) == [option.name for option in some.options]
    assert all("padding:" in tag for tag in re.findall(r"<t[hd] [^>]*>|<t[hd]>", table))
    assert f"{some.arch.parameters:,} parameters" in table and amount(some.usable) in table


def test_step_times_stand_where_the_plan_has_them(some):
    known = replace(some, options=(replace(some.options[0], seconds=0.1234), *some.options[1:]))
    assert [row["step (s)"] for row in plan_rows(known)][:2] == ["0.12", "–"]


def test_a_host_that_is_too_small_is_told_from_a_gpu_that_is():
    says = {row["method"]: row["fits"] for row in plan_rows(plan("llama-7b", "rtx-4090", batch=1, host="64GB"))}
    assert says["offloaded"] == "no (host)" and says["full-fp32"] == "no" and says["lora"] == "yes"
    found = plan("llama-7b", "rtx-4090", **TOO_SMALL)
    assert "offloaded+checkpointing would, but needs" in plan_html(found) and "No lines to run" in plan_html(found)
    assert sum("host too small" in text.get_text() for text in plan_figure(found).axes[0].texts) == 2
    assert "the host is too small" in plan_words(found)


def test_the_page_has_lines_for_the_best_and_what_is_not_known(some):
    page = html.unescape(re.sub(r"<[^>]+>", "", plan_html(some)))
    assert some.lines(some.best) in page and f"The lines that run {some.best.name}" in page
    assert some.unknown and all(text in page for text in some.unknown)
    assert "model's 2,048 positions" not in page
    assert "model's 2,048 positions" in html.unescape(plan_html(plan("opt-1.3b", "h100", 1, 4096)))


def test_a_model_s_folder_is_no_part_of_its_title(some):
    assert "train config.json fit" in plan_words(replace(some, model="/home/someone/config.json"))


def test_a_plan_shows_itself_without_a_widget(some, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append((bundle, raw)))
    show_plan(some)
    (bundle, raw), *rest = shown
    assert raw and not rest and bundle["text/html"] == plan_html(some)
    assert bundle["text/plain"] == f"[figure] {plan_words(some)}\n{some.lines(some.best)}"


def test_an_empty_plan_is_refused(some):
    for view in (plan_figure, plan_words, plan_table):
        with pytest.raises(LabError, match="no ways"):
            view(replace(some, options=()))


def test_every_control_has_a_label_and_repaints():
    explorer = PlanExplorer()
    controls = {**explorer.choices, **explorer.sliders}
    assert {value for _, value in explorer.choices["model"].options} == set(NAMES)
    assert set(GPUS) <= {value for _, value in explorer.choices["gpu"].options}
    shown = [control for row in explorer.box.children for control in getattr(row, "children", (row,))]
    changes = {"model": "llama-7b", "gpu": "h100", "gpus": 8, "host": "64GB", "batch": 2, "seq_len": 512}
    assert set(controls) == set(changes)
    for key, value in changes.items():
        before = explorer.picture.value
        assert controls[key] in shown and controls[key].description and controls[key].tooltip
        controls[key].value = value
        assert explorer.picture.value != before, key
    assert explorer.plan == plan("llama-7b", "h100", 2, 512, "64GB", 8)
    assert explorer.picture.value == plan_html(explorer.plan) and explorer.words == plan_words(explorer.plan)
    bundle = explorer._repr_mimebundle_()
    assert "<img alt=" in bundle["text/html"] and bundle["text/plain"] == f"[figure] {explorer.words}"


def test_the_widget_begins_with_what_it_is_given():
    explorer = PlanExplorer("tiny", "10GB", gpus=3, batch=5, seq_len=100, host="96GB")
    assert explorer.plan == plan("tiny", "10GB", 5, 100, "96GB", 3)
    assert list(explorer.sliders["batch"].options)[:4] == [("1", 1), ("2", 2), ("4", 4), ("5", 5)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "opt-1.4b"}, "There is no model 'opt-1.4b'. Did you mean 'opt-1.3b'?"),
        ({"model": "nowhere/config.json"}, "is no model's configuration"),
        ({"gpu": "rtx-4099"}, "There is no GPU 'rtx-4099'. Did you mean 'rtx-4090'?"),
        ({"gpu": "<b>"}, "There is no GPU '<b>'."),
        ({"gpus": 0}, "0 GPUs are none."),
        ({"batch": 0}, "0 is no batch."),
    ],
)
def test_an_error_is_a_sentence_and_the_controls_still_work(given, says, monkeypatch):
    monkeypatch.setattr("labkit.models.config", lambda name: pytest.fail("a misspelt name was looked up on the hub"))
    explorer = PlanExplorer(**given)
    assert explorer.plan is None and says in explorer.words
    assert explorer.picture.value.startswith('<p role="alert">') and "<img" not in explorer.picture.value
    assert "<b>" not in explorer.picture.value and "Traceback" not in explorer.picture.value
    assert explorer._repr_mimebundle_()["text/plain"] == explorer.words
    (key,) = given
    control = {**explorer.choices, **explorer.sliders}[key]
    control.value = {"model": "opt-125m", "gpu": "t4", "gpus": 1, "batch": 1}[key]
    assert explorer.plan is not None and "<img" in explorer.picture.value
    control.value = given[key]
    assert explorer.plan is None and "<img" not in explorer.picture.value
