"""Widget of lesson 10: a slider for the rank, and what a rank trains, holds and could keep of a learned update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.predict import gradients, standing
from labkit.ledger.shapes import Architecture
from labkit.show.display import figure_html
from labkit.show.explorer import Explorer
from labkit.show.lora import kept
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TARGETS = {"q": ("q",), "q, v": ("q", "v"), "q, k, v, o": ("q", "k", "v", "o"), "all linear": ()}
MIB = 2**20


def lora_case(arch: Architecture, rank: int, targets: Sequence[str]) -> Case:
    """A step of LoRA; no targets mean all matrices of a block."""
    return Case(arch, 1, 1, train="lora", rank=rank, targets=tuple(targets) or tuple(arch.matrices))


def training_bytes(arch: Architecture, rank: int, targets: Sequence[str]) -> int:
    """Bytes of adapters, their gradients and moments, by the ledger's formula."""
    case = lora_case(arch, rank, targets)
    stands = standing(case, round_to=1)
    weights = 4 * sum(case.trained)
    return weights + stands["optimizer_states"] + gradients(case, round_to=1)


def rank_figure(
    values: Float[Tensor, " n"], rank: int, arch: Architecture, targets: Sequence[str], name: str
) -> Figure:
    """Singular values of an update; those that a matrix of this rank can keep are coloured."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    heights, number = (values / values[0]).tolist(), len(values)
    inside = min(rank, number)
    ax.bar(range(1, inside + 1), heights[:inside], 1.0, color=PALETTE["blue"], label=f"kept by rank {rank}")
    ax.bar(range(inside + 1, number + 1), heights[inside:], 1.0, color=PALETTE["orange"], label="lost")
    ax.set(xlabel=f"singular value of {name}'s update, by size", ylabel="of the largest", xlim=(0, number + 1))
    ax.set_title(f"{name}\n{_finding(values, rank, arch, targets)}")
    ax.legend(fontsize="small")
    return fig


def _finding(values: Tensor, rank: int, arch: Architecture, targets: Sequence[str]) -> str:
    trained = sum(lora_case(arch, rank, targets).trained)
    share, size = trained / arch.parameters, training_bytes(arch, rank, targets) / MIB
    most = float(kept(values)[min(rank, len(values)) - 1])
    return f"Rank {rank}: {trained:,} values ({share:.2%}), {size:.2f} MiB, keeps {most:.0%} of the squares at most"


class RankExplorer(Explorer):
    """Choose a rank, targets and the update of a matrix: values that train, bytes that they need, singular values kept.

    Args:
        arch: of the model, for the counts.
        spectra: singular values of learned updates by name.
        rank: to begin with.

    Raises:
        LabError: without updates.
    """

    def __init__(self, arch: Architecture, spectra: Mapping[str, Float[Tensor, " n"]], rank: int = 8) -> None:
        if not spectra:
            raise LabError("There is no update to look at.", "Give the singular values of at least one.")
        self.arch, self.spectra = arch, dict(spectra)
        most = min(min(weight.shape) for weight in arch.matrices.values())
        ranks = [known for known in RANKS if known <= most]
        names = list(self.spectra)
        super().__init__(
            {"rank": ("rank", ranks, min(rank, ranks[-1]))},
            {
                "update": ("update of", names, names[0]),
                "targets": ("adapters beside", list(TARGETS), "q, v"),
            },
        )

    def picture_of(self, **given: Any) -> tuple[str, str]:
        """The singular values, coloured up to the rank."""
        chosen_by = self._values(given)
        rank, update, targets = chosen_by["rank"], chosen_by["update"], chosen_by["targets"]
        values, chosen = self.spectra[update], TARGETS[targets]
        where = f"Bars of singular values of the update of {update}; adapters beside {targets}"
        words = f"{where}. {_finding(values, rank, self.arch, chosen)}."
        return figure_html(rank_figure(values, rank, self.arch, chosen, update), words), words
