"""Where ranks of these tests run."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def without_gpus():
    """Ranks on the CPU, on a machine with GPUs as well: the test compares with a CPU's bits, or with gloo's words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield
