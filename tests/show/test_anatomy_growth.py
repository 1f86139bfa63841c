"""The figures of growth draw the highest bytes of each category, and say with which power they grow."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_hex

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.ledger.shapes import Architecture
from labkit.show import anatomy_growth
from labkit.show.anatomy_style import COLOURS, highest

OPT = Architecture("opt", 24, 2048, 32, 32, 64, 8192, 50272, positions=2050, biases=True)  # OPT-1.3B
BASE = Case(OPT, 4, 512)


def title(axis) -> str:
    return axis.get_title(loc="left")


def test_growth_finds_flash_linear_and_eager_quadratic_in_the_sequence():
    sweeps = {
        kind: {t: BASE.with_(seq_len=t, attention=kind) for t in (512, 4096, 2**17)} for kind in ("flash", "eager")
    }
    fig = anatomy_growth.growth_figure(sweeps)
    flash, eager = fig.axes
    assert title(flash) == "flash; slopes at the end:\nweights 0, activations 1, logits 1"
    assert title(eager) == "eager; slopes at the end:\nweights 0, activations 2, logits 1"
    drawn = {line.get_label(): line for line in eager.lines}
    expected = [highest(predict(case))["activations"] for case in sweeps["eager"].values()]
    np.testing.assert_allclose(drawn["activations"].get_ydata(), expected)
    np.testing.assert_allclose(drawn["weights"].get_ydata(), [drawn["weights"].get_ydata()[0]] * 3)
    assert to_hex(drawn["activations"].get_color()) == COLOURS["activations"].lower()
    times = predict(sweeps["eager"][2**17]).peak.total / predict(sweeps["eager"][512]).peak.total
    assert f"{times:,.0f} times (eager)" in fig.get_suptitle()
    assert flash.get_xlabel() == "sequence length (tokens)" and "bytes" in flash.get_ylabel()
    assert "64 GiB" in [t.get_text() for t in flash.get_yticklabels()]
    assert (
        "powers at the end: weights 0.00, optimizer states 0.00, gradients 0.00, activations 1.00"
        in anatomy_growth.growth_words(sweeps)
    )
    with pytest.raises(LabError, match="two sizes"):
        anatomy_growth.growth_figure({"one": {1: BASE}})


def test_growth_with_the_model_names_parameters():
    small = Architecture("opt", 12, 768, 12, 12, 64, 3072, 50272, positions=2050, biases=True)
    sweep = {arch.parameters: BASE.with_(arch=arch) for arch in (small, OPT)}
    fig = anatomy_growth.growth_figure({"full": sweep}, "model (parameters)")
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["125 M", "1.32 B"]
    assert fig.get_suptitle().startswith("Model from 125 M to 1.32 B:\nthe peak grows ")


def test_names_of_many_sizes_stay_apart():
    lengths = [2**i for i in range(5, 17)]
    sweeps = {str(n): {t: BASE.with_(seq_len=t) for t in lengths} for n in range(3)}
    for count in (1, 2, 3):
        fig = anatomy_growth.growth_figure(dict(list(sweeps.items())[:count]))
        fig.draw_without_rendering()
        for ax in fig.axes:
            labels = [label for label in ax.get_xticklabels() if label.get_text()]
            boxes = [label.get_window_extent() for label in labels]
            assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), [label.get_text() for label in labels]
            assert labels[0].get_text() == "32" and labels[-1].get_text() == "65536"
            assert len(labels) >= 3 and len(ax.get_xticks()) == len(lengths)


def test_lines_in_one_place_differ_in_width():
    sweep = {t: BASE.with_(seq_len=t) for t in (512, 1024)}
    lines = {line.get_label(): line for line in anatomy_growth.growth_figure({"": sweep}, model="m").axes[0].lines}
    weights, gradients = lines["weights"], lines["gradients"]
    np.testing.assert_allclose(weights.get_ydata(), gradients.get_ydata(), rtol=0.01)
    assert weights.get_linewidth() > gradients.get_linewidth() + 1 and weights.get_zorder() <= gradients.get_zorder()
