"""Pictures of conversations: which tokens are read and which are learned, what stands in a batch, who sees whom."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from labkit.errors import LabError
from labkit.instructions import IGNORED, Conversations
from labkit.show.display import _emit
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

READ, LEARNED, PADDING = "read", "learned", "padding"
_CODES = {PADDING: 0, READ: 1, LEARNED: 2}
_FILLS = {READ: "#dce6f0", LEARNED: "#ffd59a", PADDING: "#f2f2f2"}


def roles(batch: Conversations, row: int) -> list[str]:
    """What each place of a row is: read only, learned, or padding."""
    pairs = zip(batch.labels[row].tolist(), batch.attention_mask[row].tolist(), strict=True)
    return [PADDING if not real else READ if label == IGNORED else LEARNED for label, real in pairs]


def show_tokens(tokenizer: PreTrainedTokenizerBase, batch: Conversations, row: int = 0) -> None:
    """Display a row token by token, the learned ones in another colour, in bold and underlined."""
    kinds = roles(batch, row)
    pieces = [str(tokenizer.decode([token])) for token in batch.input_ids[row].tolist()]
    cells = []
    for piece, kind in zip(pieces, kinds, strict=True):
        extra = ";font-weight:bold;text-decoration:underline" if kind == LEARNED else ""
        shown = html.escape(piece.replace("\n", "⏎")) or "&nbsp;"
        style = f"background:{_FILLS[kind]};color:#000;padding:0.1em 0.25em;margin:1px;display:inline-block{extra}"
        cells.append(f'<span style="{style}" title="{kind}">{shown}</span>')
    learned = sum(kind == LEARNED for kind in kinds)
    caption = f"{len(kinds)} tokens; bold and underlined: the {learned} that are learned"
    plain = " ".join(f"[{p!r}]" if k == LEARNED else repr(p) for p, k in zip(pieces, kinds, strict=True))
    _emit(f'<p>{caption}</p><p style="line-height:1.9">{"".join(cells)}</p>', f"{caption} (in brackets): {plain}")


def rows_figure(batches: dict[str, Conversations]) -> Figure:
    """Every place of some batches, one panel each: read, learned or padding; a packed row's conversations are cut."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    _some(batches)
    heights = [len(batch.input_ids) for batch in batches.values()]
    fig, axes = plt.subplots(
        len(batches), 1, figsize=(7.6, 1.6 + 0.22 * sum(heights)), height_ratios=heights, sharex=True, squeeze=False
    )
    fills = [PALETTE["grey"], PALETTE["sky"], PALETTE["orange"]]
    for axis, (name, batch) in zip(axes[:, 0], batches.items(), strict=True):
        picture = [[_CODES[kind] for kind in roles(batch, row)] for row in range(len(batch.input_ids))]
        axis.imshow(picture, cmap=ListedColormap(fills), vmin=0, vmax=2, aspect="auto", interpolation="none")
        starts = ((batch.position_ids == 0) & (batch.attention_mask == 1)).nonzero().tolist()
        for row, place in starts:
            axis.plot([place - 0.5, place - 0.5], [row - 0.5, row + 0.5], "-", color=PALETTE["black"], linewidth=1.5)
        axis.set_title(f"{name}: {_count(batch)}", fontsize="small", fontweight="normal")
        axis.set(yticks=range(len(picture)), ylabel="row")
        axis.grid(False)
    axes[-1, 0].set_xlabel("place in the row (tokens)")
    handles: list[Any] = [Patch(color=fills[_CODES[kind]], label=kind) for kind in _CODES]
    handles.append(Line2D([], [], color=PALETTE["black"], label="a conversation begins"))
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    fig.suptitle(rows_finding(batches), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def _count(batch: Conversations) -> str:
    rows, width = batch.input_ids.shape
    return f"{rows} rows × {width} places, {batch.padding:.0%} of them padding"


def rows_finding(batches: dict[str, Conversations]) -> str:
    """The share of padding of each."""
    return "Padding: " + ", ".join(f"{batch.padding:.0%} {name}" for name, batch in batches.items())


def rows_words(batches: dict[str, Conversations]) -> str:
    """The panels in words."""
    told = "; ".join(f"{name}: {_count(batch)}, {batch.tokens} tokens" for name, batch in batches.items())
    return f"Places of two batches, coloured as read, learned or padding. {told}."


def mask_figure(batch: Conversations, row: int = 0) -> Figure:
    """Which place may look at which in a row: filled where attention is allowed."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    seen = (batch.blocks(torch.float32)[row, 0] == 0).int()
    size = len(seen)
    fig, axis = plt.subplots(figsize=(4.4, 4.4))
    axis.imshow(seen, cmap=ListedColormap(["#ffffff", PALETTE["blue"]]), interpolation="none")
    axis.plot([-0.5, size - 0.5], [-0.5, size - 0.5], color=PALETTE["grey"], linewidth=0.8, linestyle=":")
    axis.set(xlabel="is looked at", ylabel="looks")
    axis.grid(False)
    axis.set_title(mask_finding(batch, row))
    return fig


def lengths(batch: Conversations, row: int) -> list[int]:
    """Tokens of each conversation of a row."""
    starts = ((batch.position_ids[row] == 0) & (batch.attention_mask[row] == 1)).nonzero().flatten().tolist()
    end = int(batch.attention_mask[row].sum())
    return [later - start for start, later in zip(starts, [*starts[1:], end], strict=True)]


def mask_finding(batch: Conversations, row: int = 0) -> str:
    """How many conversations the row holds, and what share of the causal pairs their mask allows."""
    sizes, width = lengths(batch, row), batch.input_ids.shape[1]
    allowed = int((batch.blocks(torch.float32)[row, 0] == 0).sum())
    share = f"{allowed / (width * (width + 1) / 2):.0%} of a causal mask"
    return f"Row {row}, {len(sizes)} conversations: each sees itself alone,\n{share}"


def mask_words(batch: Conversations, row: int = 0) -> str:
    """The picture in words."""
    return (
        f"Attention mask of a packed row. {' '.join(mask_finding(batch, row).split())}; conversations of "
        f"{', '.join(map(str, lengths(batch, row)))} tokens, each a triangle below the diagonal, nothing between them."
    )


def answers_table(asked: Sequence[Any], columns: dict[str, Sequence[str]]) -> list[dict[str, str]]:
    """Rows for `show.table`: what was asked, what was wanted, and what each model answered."""
    found = []
    for number, pair in enumerate(asked):
        answers = {name: texts[number] or "(nothing)" for name, texts in columns.items()}
        found.append({"asked": pair.asked.replace("\n", " | "), "wanted": pair.answer} | answers)
    return found


def _some(given: Any) -> None:
    if not given:
        raise LabError("There is nothing to draw.", "Give at least one batch.")
