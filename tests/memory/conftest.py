"""What the tests of this folder share."""

import offload_runs
import pytest


@pytest.fixture(autouse=True)
def _others_threads():
    """Threads that another test's failed run still holds are not this one's."""
    offload_runs.note_threads()
