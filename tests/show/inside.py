"""Whether what a figure says can be read."""

from matplotlib.figure import Figure


def assert_titles_and_names_inside(fig: Figure) -> None:
    """No title and no name sticks out of the figure at its left, its right or its top."""
    fig.draw_without_rendering()
    words = [t for axis in fig.axes for t in (axis._left_title, *axis.texts)] + [fig._suptitle]
    for text in words:
        if text is not None and text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= fig.bbox.width + 1 and box.y1 <= fig.bbox.height + 1, text.get_text()
