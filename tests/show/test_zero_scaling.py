"""Efficiency by number of ranks: which rows belong together, and what a rank keeps of its speed."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from labkit.bench import zero as bench
from labkit.errors import LabError
from labkit.show import zero_scaling


def made(model: str = "a", counts: tuple[int, ...] = (2, 4, 8), share: int = 4, loss: float = 0.9) -> list[dict]:
    """Rows of two methods, a rank of which loses a tenth of its speed with each doubling, or nothing."""
    rows = []
    for method, keeps in (("ddp", 1.0), ("zero3", loss)):
        for number, ranks in enumerate(counts):
            for batch in dict.fromkeys((share * ranks, share * counts[-1])):
                speed = 1000.0 * ranks * keeps**number
                row = {"model": model, "method": method, "world_size": ranks, "batch": batch, "tokens_per_s": speed}
                rows.append(row | {"step_ms": 1e3 * batch / speed, "hold_weights": None, "reshard": None})
    return rows


def test_the_plans_rows_are_those_that_belong_together():
    plan = bench.Plan((("a", 4),), 16, "float32", (2, 4, 8))
    every = [setting for ranks in plan.world_sizes for setting in bench.settings(plan, "a", 4, ranks)]
    assert len(every) == len(set(every)) == 5 * len(bench.METHODS)
    sizes = {(s.world_size, s.batch) for s in every}
    assert sizes == {(2, 8), (4, 16), (8, 32), (2, 32), (4, 32)}
    rows = made()
    assert {(r["world_size"], r["batch"]) for r in zero_scaling.same_share(rows)} == {(2, 8), (4, 16), (8, 32)}
    assert {(r["world_size"], r["batch"]) for r in zero_scaling.same_batch(rows)} == {(2, 32), (4, 32), (8, 32)}


def test_a_rank_keeps_what_it_keeps():
    found = zero_scaling.curves(made(), "a")
    for kind in zero_scaling.KINDS:
        assert found[kind]["ddp"] == [(2, 1.0), (4, 1.0), (8, 1.0)]
        assert [share for _, share in found[kind]["zero3"]] == pytest.approx([1.0, 0.9, 0.81])
    assert "81% (zero3) to 100% (ddp)" in zero_scaling.finding(made(), "a")


def test_what_was_not_measured_is_left_out_and_other_models_are():
    rows = made() + made("b", loss=0.5)
    rows.append(rows[0] | {"world_size": 16, "batch": 64, "step_ms": None, "tokens_per_s": None})
    assert zero_scaling.curves(rows, "a") == zero_scaling.curves(made(), "a")
    assert {r["model"] for r in zero_scaling.same_share(rows)} == {"a", "b"}


def test_one_number_of_ranks_is_no_scaling():
    rows = made(counts=(2,))
    assert len(zero_scaling.same_share(rows)) == 2 and not zero_scaling.same_batch(rows)
    with pytest.raises(LabError, match="one number of ranks"):
        zero_scaling.figure(rows, "a")


def test_the_figure_names_both_kinds_and_all_methods():
    fig = zero_scaling.figure(made(), "a")
    assert [axis.get_title(loc="left") for axis in fig.axes] == ["weak scaling", "strong scaling"]
    assert all(axis.get_xlabel() == "ranks" for axis in fig.axes)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["ddp", "zero3"]
    told = zero_scaling.words(made(), "a")
    assert "weak scaling: ddp 100% at 2" in told and "zero3 100% at 2, 90% at 4, 81% at 8" in told
    plt.close(fig)
