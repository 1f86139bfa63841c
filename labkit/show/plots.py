"""Figures that several lessons share: loss curves, comparisons of runs, ledgers."""

from __future__ import annotations

from labkit.ledger import CATEGORIES, MIB, Ledger
from labkit.run import UNITS, Run
from labkit.show.display import figure, table
from labkit.show.style import PALETTE

# One colour a category in every lesson.
CATEGORY_COLOURS = dict(zip(CATEGORIES, ("blue", "sky", "orange", "green", "red", "grey"), strict=True))


def _label(run: Run) -> str:
    return f"{run.method}, {run.start}"


def smoothed(values: list[float], window: int) -> list[float]:
    """Mean of the last `window` values at each point (fewer at the beginning)."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def loss_curves(runs: list[Run], title: str = "", window: int = 20, guess: float | None = None) -> None:
    """Draw the training loss of runs over their steps, as a moving mean over `window` steps.

    `guess` is the loss of knowing nothing, drawn as a line.
    """
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots()
    lines = [smoothed(run.losses, window) for run in runs]
    for run, line in zip(runs, lines, strict=True):
        axis.plot(range(1, len(line) + 1), line, label=_label(run))
    if guess is not None:
        axis.axhline(guess, color=PALETTE["grey"], linewidth=1)
        axis.text(len(lines[0]), guess, "guessing", ha="right", va="bottom", fontsize="small")
    axis.set(xlabel="step", ylabel=f"training loss (nats, mean of {window} steps)")
    lowest = min(zip(runs, lines, strict=True), key=lambda pair: pair[1][-1])[0]
    axis.set_title(title or f"The loss falls furthest for {_label(lowest)}")
    axis.legend()
    ends = "; ".join(f"{_label(r)} from {v[0]:.2f} to {v[-1]:.2f}" for r, v in zip(runs, lines, strict=True))
    figure(fig, f"Training loss in nats over {len(lines[0])} steps: {ends}.")


def run_table(runs: list[Run], columns: tuple[str, ...] = (), caption: str = "") -> None:
    """Display runs side by side, one row each; only columns that some run has."""
    rows = [run.row() for run in runs]
    shown = columns or tuple(k for k in rows[0] if any(row[k] is not None for row in rows))
    table([{k: row[k] for k in shown} for row in rows], UNITS, caption)


def ledger_bars(ledgers: dict[str, Ledger], title: str) -> None:
    """Draw measured bytes as one stacked bar a ledger, with the prediction's end marked where there is one."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.2, 1.1 + 0.6 * len(ledgers)))
    widest = max(ledger.total_measured for ledger in ledgers.values())
    # What would be thinner than a hair gets no colour, and no place in the legend.
    used = [c for c in CATEGORIES if any(g.measured.get(c, 0) > widest / 500 for g in ledgers.values())]
    for row, ledger in enumerate(ledgers.values()):
        left = 0.0
        for category in used:
            width = ledger.measured.get(category, 0) / MIB
            colour = PALETTE[CATEGORY_COLOURS[category]]
            label = category.replace("_", " ") if row == 0 else None
            axis.barh(row, width, left=left, color=colour, label=label, edgecolor="white")
            if width > 0.08 * widest / MIB:
                axis.text(left + width / 2, row, f"{width:.0f}", ha="center", va="center", color="white")
            left += width
    axis.set(yticks=range(len(ledgers)), yticklabels=list(ledgers), xlabel="memory (MiB)")
    axis.set_title(title)
    axis.invert_yaxis()
    below = -0.7 / len(ledgers)  # the same distance from the axis, however many bars stand above it
    columns = len(used) if len(used) < 5 else 3  # more do not fit side by side
    axis.legend(ncols=columns, loc="upper left", bbox_to_anchor=(0, below), fontsize="small")
    axis.grid(False, axis="y")
    figure(fig, f"Stacked bars of measured memory. {'; '.join(_spoken(n, g, used) for n, g in ledgers.items())}.")


def _spoken(name: str, ledger: Ledger, used: list[str]) -> str:
    parts = ", ".join(f"{c.replace('_', ' ')} {ledger.measured.get(c, 0) / MIB:.1f} MiB" for c in used)
    return f"{name}: {parts}"


def training_curve(curve: list[dict]) -> None:
    """Draw the tiny model's pretraining: loss on the text it trains on and on text that it never saw."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots()
    tokens = [point["tokens"] / 1e6 for point in curve]
    names = {
        "loss": "training text",
        "held_out_written": "unseen, written by SmolLM2",
        "held_out_archive": "unseen, real",
    }
    for column, label in names.items():
        axis.plot(tokens, [point[column] for point in curve], label=label)
    best = min(curve, key=lambda point: point["held_out_archive"])
    axis.axvline(best["tokens"] / 1e6, color=PALETTE["grey"], linewidth=1)
    axis.text(best["tokens"] / 1e6 + 1, 7.5, "lowest on\nreal sentences", fontsize="small")
    axis.set(xlabel="tokens read (million)", ylabel="loss (nats a token)", ylim=(1.5, 9.5))
    axis.set_title(f"On real sentences the loss stops falling after {best['tokens'] / 1e6:.0f} million tokens")
    axis.legend()
    last = curve[-1]
    figure(
        fig,
        f"Three loss curves over {tokens[-1]:.0f} million tokens, all from {curve[0]['loss']:.1f} nats. Training text "
        f"ends at {last['loss']:.2f}, unseen written text at {last['held_out_written']:.2f}; unseen real sentences "
        f"reach {best['held_out_archive']:.2f} at {best['tokens'] / 1e6:.0f} million tokens and end at "
        f"{last['held_out_archive']:.2f}.",
    )


def next_tokens(words: dict[str, float], title: str, marked: tuple[str, ...] = ()) -> None:
    """Draw next-token probabilities (shares) as bars, in the order given; words that contain a marked one stand out."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.2, 0.9 + 0.28 * len(words)))
    colours = [PALETTE["orange" if any(repr(m) in word for m in marked) else "blue"] for word in words]
    axis.barh(range(len(words)), [100 * p for p in words.values()], color=colours)
    for row, p in enumerate(words.values()):
        axis.text(100 * p, row, f" {100 * p:.2g} %", va="center", fontsize="small")
    axis.set(yticks=range(len(words)), xlabel="probability of being the next token (%)")
    axis.set_yticklabels(list(words))
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set_title(title)
    figure(fig, f"Bars. {', '.join(f'{word} {100 * p:.2g} %' for word, p in words.items())}.")


def starts(rows: list[dict]) -> None:
    """Draw the accuracy of recorded runs, pretrained and random start in turn, with the spread over seeds."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.2, 2.8))
    names = [f"{row['model']}, {row['start']} start" for row in rows]
    means, spreads = ([100 * row[k] for row in rows] for k in ("accuracy", "accuracy_std"))
    gains = sorted(a - b for a, b in zip(means[::2], means[1::2], strict=True))
    axis.barh(names, means, xerr=spreads, color=PALETTE["blue"])
    axis.axvline(50, color=PALETTE["black"], linewidth=1, label="guessing")
    axis.set(xlabel="accuracy (%)", xlim=(0, 100))
    axis.set_title(f"The pretrained start wins by {gains[0]:.0f} to {gains[-1]:.0f} points")
    axis.invert_yaxis()
    axis.legend(loc="lower right")
    shares = "; ".join(f"{n} {m:.1f} ± {s:.1f}" for n, m, s in zip(names, means, spreads, strict=True))
    figure(fig, f"Bars of accuracy in percent, with a line at 50, guessing. {shares}.")
