"""What a notebook shows: figures with alternative text, tables, source listings, predictions, widgets."""

from __future__ import annotations

import importlib

_HOME = {
    "PALETTE": "style",
    "use_style": "style",
    "figure": "display",
    "table": "display",
    "source": "display",
    "note": "display",
    "predict": "predictions",
    "reference": "recorded",
    "start": "lesson",
    "loss_curves": "plots",
    "run_table": "plots",
    "starts": "plots",
    "ledger_bars": "plots",
    "pipeline_picture": "pipeline",
    "scale_card": "card",
    "training_curve": "plots",
    "next_tokens": "plots",
    "bit_explorer": "bits",
    "bits_figure": "bits",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        # No submodule may bear a name of `_HOME`: importing it would put the module in the function's place.
        return getattr(importlib.import_module(f"labkit.show.{_HOME[name]}"), name)
    raise AttributeError(f"labkit.show has no {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
