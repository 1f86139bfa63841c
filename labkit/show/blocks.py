"""The block explorer: one block of real weights, the numbers that a code book offers it, and what is lost.

`block_figure` is the static picture. `block_explorer` is the widget around it: code book, block size and block are
ordinary ipywidgets, so the keyboard works and each has a description for screen readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from labkit.errors import LabError
from labkit.numerics.quantize import codebook, quantize_blockwise
from labkit.show.display import figure_html
from labkit.show.quantization import style_of
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BOOKS = ("nf4", "fp4", "int4", "int8", "dynamic8")
SIZES = (16, 32, 64, 128, 256, 1024, 4096)


def block_facts(weights: Tensor, book: str, block_size: int, block: int) -> dict[str, Any]:
    """What becomes of one block, and of the whole tensor.

    Returns:
        `values` of the block over `absmax`, its largest magnitude; `error`, the block's root mean square error over
        its root mean square; `error_all`, the same of the whole tensor; `used` of the book's `offered` different
        numbers; `bits` stored a weight; `block`, its number.

    Raises:
        LabError: for a block that the tensor does not have.
    """
    flat = weights.detach().float().reshape(-1).cpu()
    blocks = -(-len(flat) // block_size)
    if not 0 <= block < blocks:
        raise LabError(f"There is no block {block}.", f"Blocks of {block_size} go from 0 to {blocks - 1} here.")
    stored = quantize_blockwise(flat, book, block_size)
    back, here = stored.dequantize(), slice(block * block_size, (block + 1) * block_size)
    mine, read = flat[here], back[here]
    top = float(mine.abs().max())
    return {
        "values": mine / top if top else mine,
        "absmax": top,
        "error": float((read - mine).norm() / mine.norm()) if top else 0.0,
        "error_all": float((back - flat).norm() / flat.norm()),
        "used": len(read.unique()),
        "offered": len(stored.book.values.unique()),
        "bits": stored.bits_per_parameter,
        "block": block,
    }


def block_figure(weights: Tensor, book: str = "nf4", block_size: int = 64, block: int = 0) -> tuple[Figure, str]:
    """The block's histogram with the book's numbers (lines) and thresholds (marks below); and its alternative text."""
    return _drawn(block_facts(weights, book, block_size, block), book, block_size)


def _drawn(facts: dict[str, Any], book: str, block_size: int) -> tuple[Figure, str]:
    import matplotlib.pyplot as plt

    numbers = codebook(book).values.unique()
    thresholds = (numbers[:-1] + numbers[1:]) / 2
    fig, axis = plt.subplots(figsize=(7.4, 3.7))
    axis.hist(facts["values"].numpy(), bins=64, range=(-1, 1), color=PALETTE["sky"], label="weights")
    top = axis.get_ylim()[1]
    colour, _ = style_of(book)
    width = 1.4 if len(numbers) < 20 else 0.4
    axis.vlines(numbers.numpy(), 0, top, color=colour, linewidth=width, label=f"numbers of {book}")
    if len(numbers) < 20:
        marks, label = [-0.03 * top] * len(thresholds), "thresholds between them"
        axis.plot(thresholds.numpy(), marks, "^", color=PALETTE["black"], ms=4, clip_on=False, label=label)
    fig.legend(loc="outside lower center", ncols=3, fontsize="small")
    axis.set(
        xlabel=f"weight over {facts['absmax']:.3g}, the largest magnitude of block {facts['block']}", ylabel="weights"
    )
    axis.set_xlim(-1.03, 1.03)
    axis.set_title(f"{book}, blocks of {block_size}: this block errs by {100 * facts['error']:.1f} %, "
                   f"all by {100 * facts['error_all']:.1f} %")  # fmt: skip
    alt = (
        f"Histogram of the {len(facts['values'])} weights of block {facts['block']}, scaled by {facts['absmax']:.3g}, "
        f"with the {facts['offered']} numbers of {book} as lines; the block uses {facts['used']} of them. Error of the "
        f"block {100 * facts['error']:.1f} percent, of all blocks {100 * facts['error_all']:.1f} percent, at "
        f"{facts['bits']:.2f} stored bits a weight."
    )
    return fig, alt


class BlockExplorer:
    """The widget: choose a code book, a block size and a block, and see the block and its error.

    Displays itself as the last expression of a cell; front ends without widgets show the static figure.
    """

    def __init__(self, weights: Tensor, book: str = "nf4", block_size: int = 64, block: int = 0) -> None:
        import ipywidgets as w

        self.weights = weights.detach()
        label = {"description_width": "90px"}
        self.book = w.Dropdown(options=BOOKS, value=book, description="Code book", style=label)
        self.size = w.SelectionSlider(options=SIZES, value=block_size, description="Block size", style=label)
        self.block = w.BoundedIntText(value=block, min=0, max=self._last(block_size), description="Block", style=label)
        self.book.tooltip = "The numbers that a scaled weight may become"
        self.size.tooltip = "How many weights share one scale"
        self.block.tooltip = "Which block of the tensor is drawn"
        self.picture, self.message = w.HTML(), w.HTML()
        controls = w.HBox([self.book, self.size, self.block], layout=w.Layout(flex_flow="row wrap"))
        self.box = w.VBox([controls, self.message, self.picture])
        self.book.observe(self._changed, "value")
        self.size.observe(self._resized, "value")
        self.block.observe(self._changed, "value")
        self._paint()

    def _last(self, block_size: int) -> int:
        return -(-self.weights.numel() // block_size) - 1

    def _resized(self, change: dict[str, Any]) -> None:
        # Larger blocks are fewer; the box moves its own value down, which paints.
        before = self.block.value
        self.block.max = self._last(change["new"])
        if self.block.value == before:
            self._paint()

    def _changed(self, change: dict[str, Any]) -> None:
        self._paint()

    def _paint(self) -> None:
        chosen = (self.book.value, self.size.value, self.block.value)
        facts = block_facts(self.weights, *chosen)
        self.message.value = (
            f"The block uses {facts['used']} of {facts['offered']} numbers; {facts['bits']:.3f} stored bits a weight."
        )
        fig, self.words = _drawn(facts, *chosen[:2])
        self.picture.value = figure_html(fig, self.words)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        static = {"text/html": self.picture.value, "text/plain": f"[figure] {self.words}"}
        return {**self.box._repr_mimebundle_(), **static}


def block_explorer(weights: Tensor, book: str = "nf4", block_size: int = 64, block: int = 0) -> BlockExplorer:
    """The block explorer of a weight tensor."""
    return BlockExplorer(weights, book, block_size, block)
