"""Figures of lesson 05: bytes and time by number of checkpointed segments, and copies hidden behind arithmetic.

Figure functions return a matplotlib Figure for `labkit.show.figure`; the `*_words` function beside each gives its
alternative text from the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.memory.timeline import COMPUTE, COPIES, LANES, WAIT, Span, overlapped, union, without
from labkit.show.anatomy_style import MIB, amount, number
from labkit.show.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Spans = Sequence[Span]
STEP, BLOCKS = ("predicted_mib", "peak_allocated_mib"), ("predicted_blocks_mib", "peak_blocks_mib")
METHOD_STYLES = (("blue", "o", "-"), ("red", "s", ""), ("green", "^", ""), ("purple", "D", ""))
LANE_COLOURS = dict(zip(LANES, ("blue", "red", "green", "grey", "purple"), strict=True))


def segment_rows(case: Case, segments: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """The predicted peak by number of segments (default: 0, without checkpointing, and from 1 to all layers)."""
    chosen = range(case.arch.layers + 1) if segments is None else segments
    return [{"segments": s, "predicted_mib": predict(case.with_(segments=s)).peak.total / MIB} for s in chosen]


class _Segments:
    """Rows sorted out: what decides is measured if anything was, of our method if it is there, else the first one.

    Raises LabError without a checkpointed row.
    """

    def __init__(self, rows: Sequence[Row], layers: int, blocks: bool):
        self.rows, self.layers = sorted(rows, key=lambda row: row["segments"]), layers
        self.formula, measured = BLOCKS if blocks else STEP
        self.measured = any(row["segments"] and row.get(measured) for row in rows)
        self.column = measured if self.measured else self.formula
        methods = list(dict.fromkeys(row.get("method", "measured") for row in self.rows if row["segments"]))
        methods.sort(key=lambda method: method != "checkpointed")
        self.methods = methods
        found = [(y, x) for method in methods[:1] for x, y in self.points(self.column, method)]
        if not found:
            raise LabError("No row is checkpointed.", "Give rows with one or more segments.")
        self.least, self.best = min(found)
        self.timed = any(row.get("step_ms") for row in rows)
        sizes = [(row["layer_interior_mib"], row["layer_input_mib"]) for row in rows if row.get("layer_input_mib")]
        self.root = (layers * sizes[0][0] / sizes[0][1]) ** 0.5 if sizes else None
        ceiling = dict(self.points("peak_blocks_mib", methods[0]) if self.measured and not blocks else ())
        self.loss = ceiling.get(self.best, self.least) < self.least

    def points(self, column: str, method: str) -> list[tuple[int, float]]:
        """Segments and values of one method."""
        mine = [row for row in self.rows if row["segments"] and row.get("method", "measured") == method]
        return [(row["segments"], row[column]) for row in mine if row.get(column)]

    def plain(self, column: str) -> float | None:
        """A value without checkpointing."""
        return next((row[column] for row in self.rows if row["segments"] == 0 and row.get(column)), None)

    def title(self) -> str:
        """Where the minimum is, and what it saves and costs."""
        count = f"{self.best} segment{'s' * (self.best != 1)}"
        roots = f"√{self.layers} = {self.layers**0.5:.1f}" + (f", √(nA/I) = {self.root:.0f}" if self.root else "")
        line = f"Fewest bytes{' measured' * self.measured} with {count} ({roots}): {amount(MIB * self.least)}"
        more, plain, time = [], self.plain(self.column), self.plain("step_ms")
        if plain:
            more.append(f"{100 * (1 - self.least / plain):.0f} % less than without")
        if time and (chosen := dict(self.points("step_ms", self.methods[0])).get(self.best)):
            more.append(f"for {100 * (chosen / time - 1):.0f} % more time")
        if self.loss:
            more.append("and then the loss sets the floor")
        return "\n".join([line, ", ".join(more)]) if more else line


def segments_figure(rows: Sequence[Row], layers: int, blocks: bool = False) -> Figure:
    """Peak memory and, where it was measured, time by number of segments; the minimum and the roots are marked.

    The roots are √layers, and √(n A / I) where the rows have `layer_input_mib` and `layer_interior_mib`.

    Args:
        rows: with `segments` (0: without checkpointing), `predicted_mib`, and if measured `peak_allocated_mib`,
            `step_ms` and `method`, as in the reference table `checkpointing`.
        layers: of the model.
        blocks: draw the peak outside head and loss (`predicted_blocks_mib`, `peak_blocks_mib`) instead.
    """
    import matplotlib.pyplot as plt

    found = _Segments(rows, layers, blocks)
    fig, axes = plt.subplots(1 + found.timed, 1, figsize=(7.2, 4.8 if found.timed else 3.6), sharex=True, squeeze=False)
    memory = axes[0, 0]
    size, unit = (1024, "GiB") if found.least >= 1024 else (1, "MiB")
    formula = found.points(found.formula, found.methods[0])
    # Wide and pale: what was measured on it leaves it visible on both sides.
    style: dict[str, Any] = {"color": PALETTE["sky"], "linewidth": 6, "alpha": 0.5, "label": "formula"}
    memory.plot([x for x, _ in formula], [y / size for _, y in formula], **style)
    if found.measured:
        _methods(memory, found, found.column, size)
    _level(memory, found.plain(found.column), size)
    words = f"fewest bytes: {found.best} segment{'s' * (found.best != 1)}"
    memory.plot([found.best], [found.least / size], "v", color=PALETTE["black"], ms=8, zorder=5, label=words)
    memory.set_ylabel(f"{'blocks’ peak' if blocks else 'peak memory'} ({unit})")
    memory.set_title(found.title())
    if found.timed:
        _methods(axes[1, 0], found, "step_ms", 1)
        _level(axes[1, 0], found.plain("step_ms"), 1)
        axes[1, 0].set_ylabel("step (ms)")
    for ax in axes[:, 0]:
        _roots(ax, found, layers)
        ax.set_ylim(0, 1.12 * ax.dataLim.ymax)
    _segment_ticks(axes[-1, 0], [row["segments"] for row in rows if row["segments"]])
    _legend(fig, axes[:, 0])
    fig.align_ylabels()
    return fig


def _legend(fig: Figure, axes: Any) -> None:
    """Below the panels, each name once."""
    shown = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, fontsize="small")


def _roots(ax: Axes, found: _Segments, layers: int) -> None:
    _root(ax, layers**0.5, f"√{layers} = {layers**0.5:.1f}", "-.")
    if found.root:
        _root(ax, found.root, f"√(nA/I) = {found.root:.1f}", (0, (1, 1)))


def _root(ax: Axes, place: float, name: str, linestyle: Any) -> None:
    ax.axvline(place, color=PALETTE["grey"], linewidth=1.3, linestyle=linestyle, label=name)


def _methods(ax: Axes, found: _Segments, column: str, size: float) -> None:
    """The first method as a line, the others as marks on it or beside."""
    for method, (colour, mark, line) in zip(found.methods, METHOD_STYLES, strict=False):
        points = found.points(column, method)
        style: dict[str, Any] = {
            "color": PALETTE[colour],
            "marker": mark,
            "linestyle": line,
            "ms": 6 if line == "" else 4,
        }
        style |= {"markerfacecolor": "none"} if line == "" else {}
        if points:
            ax.plot([x for x, _ in points], [y / size for _, y in points], label=method, **style)


def _level(ax: Axes, plain: float | None, size: float) -> None:
    """A level line where something lies without checkpointing."""
    if plain is not None:
        ax.axhline(plain / size, color=PALETTE["black"], linestyle=":", linewidth=1.3, label="without checkpointing")


def _segment_ticks(ax: Axes, counts: Sequence[int]) -> None:
    """A logarithmic axis that names no two numbers in one place; the last one is always named."""
    shown: list[int] = []
    for count in sorted(set(counts), reverse=True):
        if not shown or 1.2 * count <= shown[-1]:
            shown.append(count)
    ax.set(xscale="log", xlabel="checkpointed segments (logarithmic)")
    ax.set_xticks(shown, [str(count) for count in shown])
    ax.minorticks_off()


def segments_words(rows: Sequence[Row], layers: int, blocks: bool = False) -> str:
    """The minimum, and each number of segments with its peak and its time."""
    found = _Segments(rows, layers, blocks)
    told = []
    for method in found.methods:
        times = dict(found.points("step_ms", method))
        each = [f"{x}: {_costs(y, times.get(x))}" for x, y in found.points(found.column, method)]
        if each:
            told.append(f"{method} {', '.join(each)}" if found.measured else ", ".join(each))
    plain, title = found.plain(found.column), ", ".join(found.title().splitlines())
    kind = f"{'Measured' if found.measured else 'Predicted'} peak{' outside head and loss' * blocks}"
    without = "" if plain is None else f" Without: {_costs(plain, found.plain('step_ms'))}."
    told_by = f"By segments: {'; '.join(told)}."
    return f"{kind} by number of checkpointed segments of {layers} layers. {title}.{without} {told_by}"


def _costs(mib: float, time: float | None) -> str:
    return amount(MIB * mib) + (f" in {number(time)} ms" if time else "")


def overlap_figure(spans: Spans | Mapping[str, Spans]) -> Figure:
    """What ran when: a lane for each of compute, wait, download, host and upload, bars over time.

    Args:
        spans: of a `labkit.memory.timeline.Timeline`; or several, by name, one panel each over the same time.
    """
    import matplotlib.pyplot as plt

    runs = _named(spans)
    lanes = [lane for lane in LANES if any(span.lane == lane for run in runs.values() for span in run)]
    tall = 0.7 + len(runs) * (0.45 + 0.3 * len(lanes))
    fig, axes = plt.subplots(len(runs), 1, figsize=(7.2, tall), sharex=True, squeeze=False)
    for ax, (name, run) in zip(axes[:, 0], runs.items(), strict=True):
        zero, end = _extent(run)
        for row, lane in enumerate(lanes):
            here = [span for span in run if span.lane == lane]
            busy = [part for span in here for part in _at_work(span, run)]
            bars = [(start - zero, end - start) for start, end in busy]
            # A thin edge of the bar's own colour keeps spans of a few microseconds visible.
            colour = PALETTE[LANE_COLOURS[lane]]
            ax.broken_barh(bars, (row - 0.38, 0.76), facecolors=colour, edgecolor=colour, linewidth=0.3)
            _names(ax, here, zero, row)
        ax.set_yticks(range(len(lanes)), lanes)
        ax.set(ylim=(len(lanes) - 0.5, -0.5), xlim=(0, max(b - a for a, b in map(_extent, runs.values()))))
        ax.grid(False, axis="y")
        ax.set_axisbelow(True)
        ax.axvline(end - zero, color=PALETTE["black"], linewidth=1)
        ax.set_title(f"{name}: {_overlap_words(run)}" if name else _overlap_words(run), fontsize="small")
    axes[-1, 0].set_xlabel("time (ms)")
    if len(runs) > 1:
        fig.suptitle(_overlap_title(runs), x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return fig


def _at_work(span: Span, run: Spans) -> list[tuple[float, float]]:
    """A span without the waits in it: compute that stands still is drawn as a gap."""
    whole = [(span.start_ms, span.end_ms)]
    return without(whole, _waits(run)) if span.lane == COMPUTE else whole


def _names(ax: Axes, spans: Spans, zero: float, row: int) -> None:
    """Names of the spans that are a tenth of the whole or more, on the bar's colour also where it has gaps."""
    whole = ax.get_xlim()[1] if row else max((span.end_ms - zero for span in spans), default=0.0)
    for span in spans:
        if span.end_ms - span.start_ms >= 0.1 * whole:
            colour = "black" if LANE_COLOURS[span.lane] == "purple" else "white"
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": colour, "fontsize": "small"}
            ground = {"facecolor": PALETTE[LANE_COLOURS[span.lane]], "edgecolor": "none", "pad": 1}
            middle = (span.start_ms + span.end_ms) / 2 - zero
            ax.text(middle, row, span.name, clip_on=True, bbox=ground, **style)


def _named(spans: Spans | Mapping[str, Spans]) -> dict[str, Spans]:
    runs = dict(spans) if isinstance(spans, Mapping) else {"": spans}
    if not runs or not all(runs.values()):
        raise LabError("A timeline has no spans.", "Watch a step first.")
    return runs


def _extent(spans: Spans) -> tuple[float, float]:
    return min(span.start_ms for span in spans), max(span.end_ms for span in spans)


def _waits(spans: Spans) -> list[tuple[float, float]]:
    return union((s.start_ms, s.end_ms) for s in spans if s.lane == WAIT)


def _waited(spans: Spans) -> float:
    return sum(end - start for start, end in _waits(spans))


def _overlap_words(spans: Spans) -> str:
    start, end = _extent(spans)
    waits = f"compute waits {number(_waited(spans))} of {number(end - start)} ms"
    if not any(span.lane in COPIES and span.end_ms > span.start_ms for span in spans):
        return waits
    return f"{100 * overlapped(spans):.0f} % of the copying is hidden, {waits}"


def _overlap_title(runs: Mapping[str, Spans]) -> str:
    times = {name: end - start for name, (start, end) in ((n, _extent(run)) for n, run in runs.items())}
    fast, slow = (f(times, key=lambda name: times[name]) for f in (min, max))
    return f"{fast} takes {number(times[fast])} ms, {slow} {times[slow] / times[fast]:.2f} times as long"


def overlap_words(spans: Spans | Mapping[str, Spans]) -> str:
    """For each run how much copying is hidden, how long compute waits, and how busy each lane is."""
    told = []
    for name, run in _named(spans).items():
        busy = []
        for lane in LANES:
            joined = union((s.start_ms, s.end_ms) for s in run if s.lane == lane)
            if joined:
                busy.append(f"{lane} {number(sum(end - start for start, end in joined))} ms")
        head = f"{name}: " if name else ""
        told.append(f"{head}{_overlap_words(run)}; time on the lanes: {', '.join(busy)}")
    return f"Lanes of bars over time. {'. '.join(told)}."
