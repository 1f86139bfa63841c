"""What tests of tables that ranks fill have in common."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.scale import Scale


def rows_on_cpu(bench: Any, plan: Any) -> list[dict]:
    """The rows of a table by `plan`, measured on ranks without a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setitem(bench.PLANS, "tiny", plan)
        return list(bench.rows(Scale.here(name="tiny")))
