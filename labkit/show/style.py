"""One plot style for all lessons, with colours that colour-blind readers can tell apart.

The palette is Okabe & Ito's ("Color Universal Design", 2008), tested for the three common colour deficiencies.
"""

from __future__ import annotations

PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "grey": "#7F7F7F",
    "black": "#000000",
}
CYCLE = tuple(PALETTE[name] for name in ("blue", "orange", "green", "red", "purple", "sky", "black"))
# Lines also differ in dash, so that a printed page without colour still tells them apart.
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def use_style() -> None:
    """Set matplotlib's defaults: sizes that read in a notebook and on paper, no frame, light grid."""
    import matplotlib as mpl
    from cycler import cycler

    # Lessons display figures explicitly (labkit.show.figure); the inline backend would show them twice.
    mpl.rcParams.update(
        {
            "figure.figsize": (7.2, 3.8),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": cycler(color=CYCLE) + cycler(linestyle=DASHES),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "font.size": 10,
        }
    )
