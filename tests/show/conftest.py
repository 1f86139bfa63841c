"""Every figure of a test is drawn without a screen, in the course's style (titles stand on the left), and closed."""

import matplotlib
import matplotlib.pyplot
import pytest

from labkit.show.style import use_style

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def style_and_clean_up():
    use_style()
    yield
    matplotlib.pyplot.close("all")
