"""Figures of lesson 10: what is drawn is what was computed, and the titles say what the numbers say."""

from __future__ import annotations

import pytest
import torch
from inside import assert_titles_and_names_inside

from labkit.errors import LabError
from labkit.ledger import activations
from labkit.ledger.case import Case
from labkit.ledger.predict import gradients, standing
from labkit.ledger.shapes import Architecture
from labkit.show import lora, lora_bytes, lora_tables
from labkit.show.lora_widgets import RankExplorer, lora_case, rank_figure, training_bytes
from labkit.show.style import PALETTE

OPT = Architecture("opt", 24, 2048, 32, 32, 64, 8192, 50272, positions=2050, biases=True)  # OPT-1.3B
TINY = Architecture("llama", 6, 256, 4, 2, 64, 704, 2048)


def lines(ax):
    return {line.get_label(): list(line.get_ydata()) for line in ax.lines}


def test_dimensions_are_drawn_in_order_and_the_title_names_the_smallest_that_suffices():
    rows = [{"dimensions": d, "accuracy": a} for d, a in ((10_000, 0.81), (1, 0.6), (100, 0.75))]
    fig = lora.dimensions_figure(rows, 0.58, 0.82, 100)
    drawn = lines(fig.axes[0])
    assert drawn["90% of its gain"][0] == pytest.approx(58 + 0.9 * 24)
    (marks,) = fig.axes[0].containers
    assert list(marks.lines[0].get_ydata()) == [60.0, 75.0, 81.0]
    assert marks.lines[0].get_linestyle() == "None"  # nothing ran between the marks
    ends = [segment[:, 1] for segment in marks.lines[2][0].get_segments()]
    assert ends[1] == pytest.approx([75 - 10 * (0.75 * 0.25) ** 0.5, 75 + 10 * (0.75 * 0.25) ** 0.5])
    assert fig.axes[0].get_title(loc="left").startswith("10,000 random directions reach 90%")
    assert lora.reaching(rows, 0.58, 0.76) == 100 and lora.reaching(rows[1:], 0.58, 0.82) is None
    assert "None of these" in lora.dimensions_words(rows[1:], 0.58, 0.82, 100)
    assert "d = 100: 75.0 ± 4.3 %, 71% of the gain" in lora.dimensions_words(rows, 0.58, 0.82, 100)
    assert "gained nothing" in lora.dimensions_words(rows, 0.82, 0.58, 100)
    assert lora.reaching(rows, 0.82, 0.58) is None
    assert_titles_and_names_inside(fig)


def test_ranks_are_those_of_matrices_that_are_made_to_have_them():
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(20, 5, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(12, 5, generator=generator))
    values = lora.singular_values(u * torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0]) @ v.T)
    assert values[:5].tolist() == pytest.approx([3, 2, 1, 1, 1], rel=1e-5) and values[5:].max() < 1e-5
    assert lora.kept(values)[:5].tolist() == pytest.approx([9 / 16, 13 / 16, 14 / 16, 15 / 16, 1])
    assert [lora.rank_for(values, share) for share in (0.5, 0.8, 0.9, 0.99)] == [1, 2, 4, 5]
    one = lora.singular_values(u[:, :1] @ v[:, :1].T)
    spectra = {"made": values, "thin": one}
    noise = {"noise": torch.ones(10)}
    fig = lora.spectra_figure(spectra, noise)
    title = fig.axes[0].get_title(loc="left")
    assert title == "90% of an update's squares need ranks 1 to 4; of noise, rank 9"
    drawn = lines(fig.axes[0])
    assert drawn["made: rank 4 of 12"] == pytest.approx((100 * lora.kept(values)).tolist())
    assert "thin: rank 8 keeps 100%, 90% need rank 1 of 12" in lora.spectra_words(spectra, noise)
    grey = [line for line in fig.axes[0].lines if line.get_label().startswith("noise")]
    assert [line.get_linestyle() for line in grey] == [":"] and grey[0].get_color() == PALETTE["grey"]
    with pytest.raises(LabError, match="update is zero"):
        lora.singular_values(torch.zeros(3, 4))
    assert_titles_and_names_inside(fig)


def test_the_crossing_is_the_ledger_s():
    batches = (1, 8)
    sizes = lora_bytes.crossing(OPT, batches, 512, "bfloat16")
    full, thin = (Case(OPT, 8, 512, "bfloat16", train=kind, master=kind == "full", adapter="lora")
                  for kind in ("full", "lora"))  # fmt: skip
    for case, label, rest in ((full, "full", "weights, gradients, moments"), (thin, "LoRA", "the same")):
        stands = sum(standing(case).values()) - standing(case)["buffers"] + gradients(case)
        assert sizes[f"{label}: {rest}"][1] == stands
        blocks = 23 * activations.total(activations.block(case))
        others = activations.total(activations.block(case, first=True)) + activations.total(activations.outside(case))
        assert sizes[f"{label}: activations"][1] == blocks + others
    assert 18 < sizes["full: weights, gradients, moments"][0] / OPT.parameters < 18.1
    fig = lora_bytes.crossing_figure(sizes, batches, 512, "OPT-1.3B", asked=4096)
    assert lines(fig.axes[0])["LoRA: activations"] == [size / 2**30 for size in sizes["LoRA: activations"]]
    whole = [sum(v[at] for name, v in sizes.items() if name.startswith("full")) for at in (0, 1)]
    thin_whole = [sum(v[at] for name, v in sizes.items() if name.startswith("LoRA")) for at in (0, 1)]
    said = (
        f"LoRA saves {1 - thin_whole[0] / whole[0]:.0%} at 512 tokens and {1 - thin_whole[1] / whole[1]:.0%} at 4,096"
    )
    assert fig.axes[0].get_title(loc="left") == f"OPT-1.3B: {said}"
    assert said in lora_bytes.crossing_words(sizes, batches, 512, "OPT-1.3B")
    tokens = lora_bytes.equal_at(sizes, [512, 4096], "LoRA")
    assert tokens == round(4096 * sizes["LoRA: the same"][1] / sizes["LoRA: activations"][1])
    crosses = [(line.get_xdata()[0], line.get_ydata()[0]) for line in fig.axes[0].lines if line.get_marker() == "x"]
    assert (tokens, sizes["LoRA: the same"][0] / 2**30) in crosses and len(crosses) == 2
    assert f"LoRA at {tokens:,} tokens" in lora_bytes.crossing_words(sizes, batches, 512, "OPT-1.3B")
    assert f"4,096 tokens: LoRA saves {1 - thin_whole[1] / whole[1]:.0%}" in lines(fig.axes[0])
    assert_titles_and_names_inside(fig)


def test_operations_are_stacked():
    rows = [
        {"method": name, "flops_forward": forward, "flops_backward": backward}
        for name, forward, backward in (("full", 2_000_000, 4_000_000), ("lora", 2_100_000, 2_100_000))
    ]
    fig = lora.flops_figure(rows)
    bars = fig.axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([2.0, 2.1, 4.0, 2.1]) and bars[2].get_x() == 2.0
    assert fig.axes[0].get_title(loc="left") == "Of full fine-tuning's operations: lora 70%"
    named = lora.flops_figure([row | {"model": "opt-1.3b"} for row in rows])
    assert named.axes[0].get_title(loc="left") == "opt-1.3b, of full fine-tuning's operations: lora 70%"
    assert "10⁶" in fig.axes[0].get_xlabel() and "lora: forward 2,100,000" in lora.flops_words(rows)


def rank_rows():
    """As the table has them, with made numbers."""
    found = {("q", 1): 0.7, ("q", 8): 0.74, ("q,v", 1): 0.8, ("q,v", 8): 0.81}
    rows = [
        {"model": "tiny", "targets": targets, "rank": rank, "accuracy": accuracy, "accuracy_std": 0.02}
        for (targets, rank), accuracy in found.items()
    ]
    return [*rows, {"model": "another", "targets": "q", "rank": 1, "accuracy": 0.1, "accuracy_std": None}]


def test_ranks_are_compared_with_the_seeds_spread():
    fig = lora_tables.ranks_figure(rank_rows())
    title = fig.axes[0].get_title(loc="left")
    assert title == "Ranks differ by up to 4.0 points, targets by 10.0, seeds by ± 2.0"
    assert [list(c.lines[0].get_ydata()) for c in fig.axes[0].containers] == [[70.0, 74.0], [80.0, 81.0]]
    words = lora_tables.ranks_words(rank_rows())
    assert "q,v rank 8: 81.0 ± 2.0 %" in words and "for tiny" in words and "another" not in words
    assert_titles_and_names_inside(fig)
    large = [{"model": "tiny", "targets": "q", "rank": 64, "accuracy": 0.6, "accuracy_std": 0.2}]
    fig = lora_tables.ranks_figure(rank_rows() + large)  # its rate was chosen for another rank
    title = fig.axes[0].get_title(loc="left").splitlines()
    assert title[0] == "Up to rank 8: ranks differ by up to 4.0 points, targets by 10.0, seeds by ± 2.0"
    assert title[1] == "Rank 64: 60.0 % at the least"
    assert_titles_and_names_inside(fig)
    with pytest.raises(LabError, match="labkit bench lora-rank"):
        lora_tables.ranks_figure([])


def plus_rows(steps=(40, 20, None, 15)):
    grid = [(1e-4, 1), (1e-4, 16), (1e-3, 1), (1e-3, 4)]
    return [
        {"model": "tiny", "learning_rate": rate, "ratio": ratio, "steps_to_loss": count, "steps_to_loss_std": 1.0}
        for (rate, ratio), count in zip(grid, steps, strict=True)
    ]


def test_the_best_ratio_is_held_against_the_best_single_rate():
    fig = lora_tables.plus_figure(plus_rows())
    title = fig.axes[0].get_title(loc="left")
    assert title == "Fastest: ratio 4 at rate 0.001, 15 ± 1 steps; at ratio 1, 40 ± 1"
    assert [list(c.lines[0].get_ydata()) for c in fig.axes[0].containers] == [[40, 20], [15]]
    words = lora_tables.plus_words(plus_rows())
    assert "rate 0.001, ratio 1: never" in words
    assert "none at ratio 1" in lora_tables.plus_words(plus_rows((None, 20, None, 15)))
    assert "None of these runs" in lora_tables.plus_words(plus_rows((None,) * 4))
    assert_titles_and_names_inside(fig)


def test_methods_within_the_best_one_s_spread_are_counted():
    values = (("full", 8_000_000, 0.82, 0.01), ("lora", 57_344, 0.815, 0.01), ("linear-probe", 514, 0.7, 0.02))
    names = ("method", "trainable_params", "accuracy", "accuracy_std")
    rows = [{"model": "tiny", **dict(zip(names, row, strict=True))} for row in values]
    rows.append({"model": "tiny", "method": "qlora", "trainable_params": 1, "accuracy": None, "accuracy_std": None})
    fig = lora_tables.methods_figure(rows)
    title = fig.axes[0].get_title(loc="left")
    assert title == "Within a spread of the best (full): 2 of 3; smallest: lora"
    named = [text.get_text().split() for text in fig.axes[0].get_yticklabels()]
    assert named == [["linear-probe", "514"], ["lora", "57,344"], ["full", "8,000,000"]]
    assert [c.lines[0].get_xdata()[0] for c in fig.axes[0].containers] == [70.0, 81.5, 82.0]
    words = lora_tables.methods_words(rows)
    assert "lora: 57,344 values, 81.5 ± 1.0 %" in words and "qlora" not in words
    assert_titles_and_names_inside(fig)


def test_published_rows_are_shown_by_source(capsys):
    rows = [{"method": "lora", "WikiSQL": 73.4, "source": "one"}, {"method": "bitfit", "MNLI": 91.0, "source": "one"},
            {"model": "RoBERTa", "source": "two"}]  # fmt: skip
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_tables, "table", lambda rows, caption: shown.append((rows, caption)))
        lora_tables.published(rows)
    assert [caption for _, caption in shown] == ["Published: one", "Published: two"]
    assert shown[0][0] == [
        {"method": "lora", "WikiSQL": 73.4, "MNLI": None},
        {"method": "bitfit", "WikiSQL": None, "MNLI": 91.0},
    ]


def test_the_slider_counts_values_bytes_and_squares():
    values = torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0])
    explorer = RankExplorer(TINY, {"q": values, "v": values[:2]}, rank=2)
    trained = 6 * 2 * (256 + 256 + 256 + 128)
    assert sum(lora_case(TINY, 2, ("q", "v")).trained) == trained
    assert training_bytes(TINY, 2, ("q", "v")) == 16 * trained + 4 * 6 * 4  # and a step count a tensor
    assert f"Rank 2: {trained:,} values" in explorer.words and "keeps 81% of the squares" in explorer.words
    explorer.sliders["rank"].value = 1
    assert "keeps 56%" in explorer.words and f"{trained // 2:,} values" in explorer.words
    explorer.choices["targets"].value = "all linear"
    everything = 6 * (2 * 512 + 2 * 384 + 3 * 960)
    assert f"{everything:,} values" in explorer.words
    explorer.choices["update"].value = "v"
    explorer.sliders["rank"].value = 64
    assert "keeps 100%" in explorer.words and "update of v" in explorer.words
    bundle = explorer._repr_mimebundle_()
    assert "<img alt=" in bundle["text/html"] and bundle["text/plain"] == f"[figure] {explorer.words}"
    assert [value for _, value in explorer.sliders["rank"].options][-1] == 128  # k has 128 rows
    title = rank_figure(values, 2, TINY, ("q",), "q, last block").axes[0].get_title(loc="left")
    assert title.startswith("q, last block") and "Rank 2" in title
    with pytest.raises(LabError, match="no update"):
        RankExplorer(TINY, {})


def test_pairs_are_our_rows_beside_pefts_of_the_same_setting():
    same = {"model": "m", "adapter_dtype": "float32", "targets": "q,v", "batch": 1, "seq_len": 8, "rank": 8}
    rows = [
        same | {"method": name, "dropout": dropout, "step_ms": ms, "peak_allocated_mib": mib, "step_iqr_ms": 2.0}
        for name, dropout, ms, mib in (
            ("full", 0.0, 9.0, 9.0),
            ("lora", 0.0, 80.0, 10.0),
            ("peft.lora", 0.0, 100.0, 10.0),
            ("lora", 0.1, 90.0, None),
            ("peft.lora", 0.1, 75.0, None),
            ("dora", 0.0, 90.0, 5.0),
        )
    ]
    found = lora_tables.pairs(rows)
    assert [(row["dropout"], row["time, ours / peft"], row.get("peak, ours / peft")) for row in found] == [
        (0.0, 0.8, 1.0),
        (0.1, 1.2, None),
    ]
    assert lora_tables.pairs_finding(rows) == (
        "Ours over peft's, 2 settings: time 0.80 to 1.20, peak 1.00 to 1.00 times"
    )
    with pytest.raises(LabError, match="no such rows"):
        lora_tables.pairs_finding(rows[:1])
