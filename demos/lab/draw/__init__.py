"""The demos' pictures, drawn with Pillow alone: PNG files, and GIF films.

    plane.py     clouds of points and fields of arrows
    charts.py    curves
    images.py    grids of grey images, and films
    board.py     panels side by side with a caption: the lessons' pictures
    page.py      the page that all of them draw on: panels, text, pictures in rows
    axis.py      ranges of values, and their ticks

The same input gives the same bytes.
"""

from lab.draw.axis import Axis, tick_labels
from lab.draw.board import Arrows, Dots, Shades, View, board, cloud_grid, ellipse
from lab.draw.charts import Series, curves, loss_over_t
from lab.draw.images import animation_images, grid, strip
from lab.draw.page import CLOUD, DATA, EXACT, INK, MODEL
from lab.draw.plane import (
    animation,
    cloud_table,
    clouds,
    error_map,
    lattice,
    reverse_process,
    rows_of_clouds,
    score_field,
    square_around,
    view,
)

__all__ = [
    "CLOUD",
    "DATA",
    "EXACT",
    "INK",
    "MODEL",
    "Arrows",
    "Axis",
    "Dots",
    "Series",
    "Shades",
    "View",
    "animation",
    "animation_images",
    "board",
    "cloud_grid",
    "cloud_table",
    "clouds",
    "curves",
    "ellipse",
    "error_map",
    "grid",
    "lattice",
    "loss_over_t",
    "reverse_process",
    "rows_of_clouds",
    "score_field",
    "square_around",
    "strip",
    "tick_labels",
    "view",
]
