"""Figures of lesson 04 over many cases: what grows with what.

Figure functions return a matplotlib Figure for `labkit.show.figure`; the `*_words` function beside each gives its
alternative text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.predict import predict
from labkit.ledger.trace import Moment
from labkit.show.anatomy_style import CATEGORIES, COLOURS, amount, called, highest, number, visible
from labkit.show.style import DASHES, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTER = 0.085  # inches of a small letter of a name on an axis
# A dash for each category, so that lines differ on paper too.
LINE_DASHES: dict[str, Any] = dict(zip(CATEGORIES, (*DASHES, "-"), strict=True))
Sweep = Mapping[float, Case]


def growth_figure(sweeps: Mapping[str, Sweep], over: str = "sequence length (tokens)", model: str = "") -> Figure:
    """The most bytes of each category in a step, and the peak of their sum, against one size, on logarithmic axes.

    On such axes a power of x is a straight line and its exponent is the slope. A panel a sweep.

    Args:
        sweeps: by the panel's name, cases by the value on the axis, two or more.
        over: what that value is, with its unit.
        model: its name, where all cases are of one.
    """
    import matplotlib.pyplot as plt

    tall = max(predict(case).peak.total for sweep in sweeps.values() for case in sweep.values())
    lowest = list[int]()
    fig, axes = plt.subplots(1, len(sweeps), figsize=(7.2 if len(sweeps) < 3 else 9, 3.9), sharey=True, squeeze=False)
    for ax, (name, sweep) in zip(axes[0], sweeps.items(), strict=True):
        xs, lines, peaks = _grown(sweep)
        for category, counts in lines.items():
            # Wide under narrow, so that of two lines in one place both are seen.
            ax.plot(
                xs, counts, label=called(category), linewidth=5 - 0.7 * CATEGORIES.index(category), **_line(category)
            )
            lowest.append(min(c for c in counts if c))
        style = {"color": PALETTE["black"], "linestyle": "-", "linewidth": 1, "label": "peak of the sum"}
        ax.plot(xs, peaks, **style)
        ax.set(xscale="log", yscale="log", xlabel=over)
        ax.set_xticks(xs, _apart(xs, 0.8 * fig.get_figwidth() / len(sweeps)), fontsize="small")
        ax.minorticks_off()
        ax.set_title(f"{name}; slopes at the end:\n{_slopes(xs, lines)}", fontsize="small")
    ends = min(lowest) / 1.5, 1.7 * tall
    axes[0, 0].set(ylabel="highest in the step (bytes, logarithmic)", ylim=ends)
    ticks = [16**k for k in range(5, 14) if ends[0] <= 16**k <= ends[1]]
    axes[0, 0].set_yticks(ticks, [amount(tick) for tick in ticks])
    axes[0, 0].minorticks_off()
    shown = {label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, fontsize="small")
    fig.suptitle(_growth_title(sweeps, over, model), x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return fig


def _line(category: str) -> dict[str, Any]:
    """A category's colour and dash; yellow gets an outline, for it is pale on white."""
    from matplotlib.patheffects import Normal, Stroke

    style = {"color": COLOURS[category], "linestyle": LINE_DASHES[category], "marker": "o", "ms": 3}
    pale = COLOURS[category] == PALETTE["yellow"]
    return style | ({"path_effects": [Stroke(linewidth=3.2, foreground=PALETTE["grey"]), Normal()]} if pale else {})


def _grown(sweep: Sweep) -> tuple[list[float], dict[str, list[int]], list[int]]:
    """The values, for each category that matters somewhere its bytes, and the peaks."""
    if len(sweep) < 2:
        raise LabError("Growth needs two sizes at least.", "Add a case to the sweep.")
    xs = sorted(sweep)
    traces = [predict(sweep[x]) for x in xs]
    tops = [highest(trace) for trace in traces]
    # A logarithmic axis also shows what matters at one end only.
    seen = {name for top in tops for name in visible([Moment("", top)])}
    names = [name for name in CATEGORIES if name in seen]
    return xs, {n: [top.get(n, 0) for top in tops] for n in names}, [trace.peak.total for trace in traces]


def _powers(xs: Sequence[float], lines: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Each category's exponent between the two last values."""
    return {n: log(c[-1] / c[-2]) / log(xs[-1] / xs[-2]) for n, c in lines.items() if c[-2]}


def _slopes(xs: Sequence[float], lines: Mapping[str, Sequence[int]]) -> str:
    """The exponents in words: of what stays, of activations and of logits."""
    powers = _powers(xs, lines)
    shown = [name for name in ("weights", "activations", "logits") if name in powers]
    return ", ".join(f"{called(name)} {abs(round(powers[name], 1)):g}" for name in shown)


def _apart(xs: Sequence[float], inches: float) -> list[str]:
    """Names of the sizes on a logarithmic axis of so many inches: the ends', and between them those with room."""
    names = [_short(x) for x in xs]
    places = [inches * log(x / xs[0]) / log(xs[-1] / xs[0]) for x in xs]

    def meet(i: int, k: int) -> bool:
        return abs(places[k] - places[i]) < LETTER * ((len(names[i]) + len(names[k])) / 2 + 1)

    kept = [0]
    for i in range(1, len(xs) - 1):
        if not meet(i, kept[-1]) and not meet(i, len(xs) - 1):
            kept.append(i)
    return [name if i in kept or i == len(xs) - 1 else "" for i, name in enumerate(names)]


def _short(x: float) -> str:
    for size, letter in ((1e9, " B"), (1e6, " M")):
        if x >= size:
            return f"{x / size:.3g}{letter}"
    return f"{x:g}"


def _growth_title(sweeps: Mapping[str, Sweep], over: str, model: str) -> str:
    told = []
    for name, sweep in sweeps.items():
        _, _, peaks = _grown(sweep)
        told.append(f"{number(peaks[-1] / peaks[0])} times ({name})")
    xs = sorted(next(iter(sweeps.values())))
    what = over.split(" (")[0].capitalize()
    model = f"{model}: {what.lower()}" if model else what
    return f"{model} from {_short(xs[0])} to {_short(xs[-1])}:\nthe peak grows {', '.join(told)}"


def growth_words(sweeps: Mapping[str, Sweep], over: str = "sequence length (tokens)") -> str:
    """For each sweep the categories at both ends, and its exponent between the two last values."""
    told = []
    for name, sweep in sweeps.items():
        xs, lines, peaks = _grown(sweep)
        ends = ", ".join(f"{called(n)} from {amount(c[0])} to {amount(c[-1])}" for n, c in lines.items())
        powers = ", ".join(f"{called(n)} {abs(round(power, 2)):.2f}" for n, power in _powers(xs, lines).items())
        told.append(
            f"{name}, {over} from {_short(xs[0])} to {_short(xs[-1])}: {ends}; peak from {amount(peaks[0])} to "
            f"{amount(peaks[-1])}; powers at the end: {powers}"
        )
    return f"Bytes by category, both axes logarithmic. {'. '.join(told)}."
