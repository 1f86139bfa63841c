"""The block explorer: true facts of each block, every control repaints, a static twin with alternative text."""

from __future__ import annotations

import re

import pytest
import torch

from labkit.errors import LabError
from labkit.numerics.quantize import codebook, quantize_blockwise
from labkit.show import blocks


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(10, 50, generator=torch.Generator().manual_seed(1)) * 0.02


@pytest.mark.parametrize("book", blocks.BOOKS)
def test_the_facts_are_those_of_a_search_for_the_nearest_number(weights, book):
    mine = weights.flatten()[64:128]
    numbers, top = codebook(book).values, mine.abs().max()
    nearest = numbers[(mine[:, None] / top - numbers).abs().argmin(1)]
    facts = blocks.block_facts(weights, book, 64, 1)
    assert facts["absmax"] == float(top) and facts["block"] == 1
    torch.testing.assert_close(facts["values"], mine / top)
    assert facts["error"] == pytest.approx(float((nearest * top - mine).norm() / mine.norm()), rel=1e-4)
    assert facts["used"] == len(nearest.unique()) and facts["offered"] == len(numbers.unique())
    whole = quantize_blockwise(weights, book, 64)
    assert facts["bits"] == whole.bits_per_parameter
    assert facts["error_all"] == pytest.approx(float((whole.dequantize() - weights).norm() / weights.norm()))


def test_the_last_block_may_be_short_and_a_block_of_zeros_has_no_error(weights):
    assert len(blocks.block_facts(weights, "nf4", 64, 7)["values"]) == 500 - 7 * 64
    zeros = blocks.block_facts(torch.cat([torch.zeros(64), torch.ones(64)]), "nf4", 64, 0)
    assert zeros["absmax"] == zeros["error"] == 0 and zeros["used"] == 1


@pytest.mark.parametrize("block", [-1, 8])
def test_a_block_that_is_not_there_is_named(weights, block):
    with pytest.raises(LabError, match="Blocks of 64 go from 0 to 7"):
        blocks.block_facts(weights, "nf4", 64, block)


def test_the_figure_draws_every_weight_number_and_threshold(weights):
    fig, alt = blocks.block_figure(weights, "fp4", 64, 2)
    axis = fig.axes[0]
    assert sum(bar.get_height() for bar in axis.patches) == 64
    lines = [segment[0][0] for segment in axis.collections[0].get_segments()]
    assert lines == pytest.approx(codebook("fp4").values.unique().tolist())
    marks = axis.lines[0].get_xdata()
    assert len(marks) == len(lines) - 1 and marks[0] == pytest.approx((lines[0] + lines[1]) / 2)
    told = [t.get_text() for t in fig.legends[0].get_texts()]
    assert told == ["weights", "numbers of fp4", "thresholds between them"]
    facts = blocks.block_facts(weights, "fp4", 64, 2)
    assert f"errs by {100 * facts['error']:.1f} %" in axis.get_title(loc="left")
    assert "64 weights of block 2" in alt and f"{100 * facts['error_all']:.1f} percent" in alt and "4.51" in alt


def test_a_book_of_256_numbers_has_no_marks(weights):
    fig, _ = blocks.block_figure(weights, "int8", 64, 0)
    assert not fig.axes[0].lines and len(fig.axes[0].collections[0].get_segments()) == 255
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["weights", "numbers of int8"]


def pictured(explorer: blocks.BlockExplorer) -> str:
    """The alternative text of the picture that stands there now."""
    return re.search(r'alt="([^"]+)"', explorer.picture.value).group(1)


def test_every_control_repaints_picture_and_message(weights):
    explorer = blocks.block_explorer(weights)
    seen = {pictured(explorer)}
    for control, value in ((explorer.book, "int4"), (explorer.block, 3), (explorer.size, 16)):
        control.value = value
        seen.add(pictured(explorer))
    assert len(seen) == 4
    facts = blocks.block_facts(weights, "int4", 16, 3)
    assert explorer.message.value.startswith(f"The block uses {facts['used']} of 15 numbers")
    assert f"{facts['bits']:.3f} stored bits" in explorer.message.value


def test_larger_blocks_are_fewer_and_the_chosen_one_stays_inside(weights):
    explorer = blocks.block_explorer(weights, block_size=16, block=31)
    assert explorer.block.max == 31
    explorer.size.value = 256
    assert (explorer.block.max, explorer.block.value) == (1, 1)
    assert "weights of block 1," in pictured(explorer)
    explorer.size.value = 4096
    assert explorer.block.value == 0 and "500 weights of block 0," in pictured(explorer)
    explorer.size.value = 16
    assert explorer.block.max == 31 and "16 weights of block 0," in pictured(explorer)
    explorer.block.value = 99
    assert explorer.block.value == 31, "the box does not leave the tensor"


def test_controls_have_names_and_the_twin_is_the_picture(weights):
    explorer = blocks.block_explorer(weights.requires_grad_())
    for control in (explorer.book, explorer.size, explorer.block):
        assert control.description and len(control.tooltip.split()) > 3
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/html"] == explorer.picture.value and "<img alt=" in bundle["text/html"]
    assert bundle["text/plain"] == f"[figure] {explorer.words}"
