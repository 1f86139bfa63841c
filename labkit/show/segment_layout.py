"""The picture of lesson 05's segment explorer: a model's layers in checkpointed segments, and the bytes of every cut.

With s segments of n layers the inputs of the segments are kept (I bytes each) and, while one of them is computed for
the second time, that segment's interior (A bytes a layer): about s I + (n / s) A (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.ledger import activations
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.memory.checkpointing import predicted_bytes, runs
from labkit.show.anatomy_style import COLOURS, amount, unit_of
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = "#DDDDDD"


@dataclass(frozen=True)
class SegmentPlan:
    """Bytes for every number of segments of a case; index 0 is without checkpointing.

    Attributes:
        layers: number of layers, n.
        input, interior: bytes that a segment's input takes, I, and that a layer keeps, A.
        kept: activations of the layers by `labkit.memory.checkpointing.predicted_bytes`.
        peaks: the whole step's predicted peak.
    """

    layers: int
    input: int
    interior: int
    kept: tuple[int, ...]
    peaks: tuple[int, ...]

    @classmethod
    def of(cls, case: Case) -> SegmentPlan:
        """Compute all of them.

        Raises:
            LabError: where nothing trains, so that nothing is kept.
        """
        if case.train == "nothing":
            raise LabError("Where nothing trains no activation is kept.", "Choose a case that trains.")
        layers = case.arch.layers
        size, interior = case.stored * case.tokens * case.arch.hidden, activations.total(activations.block(case))
        cut = [predicted_bytes(layers, s, size, interior) for s in range(1, layers + 1)]
        peaks = tuple(predict(case.with_(segments=s)).peak.total for s in range(layers + 1))
        return cls(layers, size, interior, (layers * interior, *cut), peaks)

    def alive(self, segments: int) -> tuple[int, slice]:
        """At the moment with the most activations: how many inputs are kept, and the run that is computed again."""
        if not segments:
            return 0, slice(0, self.layers)
        cuts = runs(self.layers, segments)
        sizes = [k * self.input + (cut.stop - cut.start) * self.interior for k, cut in enumerate(cuts, start=1)]
        worst = max(range(segments), key=lambda k: sizes[k])
        return worst + 1, cuts[worst]

    def again(self, segments: int) -> int:
        """How many layers are computed a second time in a step."""
        return self.layers if segments else 0

    def sum_words(self, segments: int) -> str:
        """The formula with its numbers."""
        inputs, run = self.alive(segments)
        length, kept = run.stop - run.start, amount(self.kept[segments])
        if not segments:
            return f"{length} layers × {amount(self.interior)} = {kept}; no layer is computed a second time."
        return (
            f"{inputs} input{'s' * (inputs != 1)} × {amount(self.input)} + {length} layer{'s' * (length != 1)} × "
            f"{amount(self.interior)} = {kept}; all {self.layers} layers are computed a second time: "
            "one more forward pass."
        )


def layout_figure(plan: SegmentPlan, segments: int) -> Figure:
    """Above, the layers with what of them is kept at the widest moment; below, bytes by number of segments."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplot_mosaic([["layers"] * 2, ["kept", "peaks"]], figsize=(7.2, 4.2), height_ratios=(1, 2.6))
    _layers(axes["layers"], plan, segments)
    root = (plan.layers * plan.interior / plan.input) ** 0.5
    _curve(axes["kept"], plan.kept, root, segments, COLOURS["activations"])
    _curve(axes["peaks"], plan.peaks, root, segments, PALETTE["blue"])
    axes["layers"].set_title(_title(plan, segments))
    axes["kept"].set_title("activations, s I + (n/s) A", fontsize="small")
    axes["peaks"].set_title("peak of the whole step", fontsize="small")
    shown = {t: handle for ax in axes.values() for handle, t in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, fontsize="small")
    return fig


def _layers(ax: Axes, plan: SegmentPlan, segments: int) -> None:
    """A box a layer, a gap between segments, a bar where a segment's input is kept."""
    inputs, run = plan.alive(segments)
    cuts = runs(plan.layers, segments) if segments else [slice(0, plan.layers)]
    whole = [layer for cut in cuts for layer in range(cut.start, cut.stop) if run.start <= layer < run.stop]
    rest = [layer for layer in range(plan.layers) if layer not in whole]
    box: dict[str, Any] = {"height": 0.7, "edgecolor": "white", "linewidth": 0.6, "align": "edge"}
    kept = "kept whole" if not segments else "computed again, kept whole for now"
    ax.barh([0] * len(whole), [1] * len(whole), left=whole, color=COLOURS["activations"], label=kept, **box)
    if rest:
        ax.barh([0] * len(rest), [1] * len(rest), left=rest, color=PALE, label="forgotten", **box)
    starts = [cut.start for cut in cuts][:inputs]
    if starts:
        wide = plan.layers / 150
        bars: dict[str, Any] = {"height": 1.0, "color": PALETTE["black"], "align": "edge"}
        ax.barh([-0.15] * len(starts), [wide] * len(starts), left=starts, label="input kept", **bars)
    ax.set(xlim=(-plan.layers / 100, plan.layers), ylim=(-0.25, 1), yticks=[])
    step = max(1, -(-plan.layers // 24))
    ticks = list(range(0, plan.layers, step))
    ax.set_xticks([t + 0.5 for t in ticks], [str(t + 1) for t in ticks], fontsize="small")
    ax.set_xlabel("layer", fontsize="small")
    ax.tick_params(axis="x", length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _curve(ax: Axes, values: tuple[int, ...], root: float, segments: int, colour: str) -> None:
    """Bytes by number of segments, the chosen number marked, with a level line for no checkpointing."""
    size, unit = unit_of(max(values))
    layers = len(values) - 1
    ax.plot(range(1, layers + 1), [value / size for value in values[1:]], color=colour, linestyle="-")
    ax.axhline(values[0] / size, color=PALETTE["black"], linestyle=":", label="without checkpointing")
    ax.axvline(layers**0.5, color=PALETTE["grey"], linewidth=1, linestyle="-.", label=f"√{layers} = {layers**0.5:.1f}")
    ax.axvline(root, color=PALETTE["grey"], linewidth=1.3, linestyle=(0, (1, 1)), label=f"√(nA/I) = {root:.1f}")
    # At zero segments the mark lies on the level line, where the axis begins.
    ax.plot([segments or 1], [values[segments] / size], "o", color=PALETTE["black"], ms=7, label="the slider's place")
    ax.set(xlabel="checkpointed segments (s)", ylabel=f"memory ({unit})", ylim=(0, 1.1 * max(values) / size))


def _title(plan: SegmentPlan, segments: int) -> str:
    if not segments:
        return f"Without checkpointing all {plan.layers} layers are kept: {amount(plan.kept[0])}"
    inputs, run = plan.alive(segments)
    length, share = run.stop - run.start, 100 * plan.kept[segments] / plan.kept[0]
    counts = f"{inputs} input{'s' * (inputs != 1)} and {length} whole layer{'s' * (length != 1)}"
    return f"{counts} are kept: {amount(plan.kept[segments])}, {share:.0f} % of all"


def layout_words(plan: SegmentPlan, segments: int) -> str:
    """What is kept where, the formula's sum, the peak, and the number with the fewest bytes."""
    inputs, run = plan.alive(segments)
    count = f"{segments} checkpointed segment{'s' * (segments != 1)}" if segments else "No checkpointing"
    text = f"{count} of {plan.layers} layers. {plan.sum_words(segments)}"
    if segments:
        starts = [cut.start + 1 for cut in runs(plan.layers, segments)][:inputs]
        whole = f"layer {run.stop}" if run.stop - run.start == 1 else f"layers {run.start + 1} to {run.stop}"
        text += f" At that moment the input of {_listed(starts)} is kept, and {whole} whole."
    best = min(range(1, plan.layers + 1), key=lambda s: plan.kept[s])
    return (
        f"{text} The step's peak is {amount(plan.peaks[segments])}, without checkpointing {amount(plan.peaks[0])}. "
        f"Fewest activations with {best} segments: {amount(plan.kept[best])}."
    )


def _listed(layers: list[int]) -> str:
    """Numbers of layers, the middle of a long list left out."""
    shown = [str(layer) for layer in layers]
    if len(shown) > 9:
        shown = [*shown[:3], "…", *shown[-2:]]
    return f"layer{'s' * (len(layers) > 1)} {', '.join(shown)}"
