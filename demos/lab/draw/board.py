"""A board: panels side by side, each with a title, axes and a legend, and a caption below them.

A panel holds marks, the first of them at the bottom: lines, dots, arrows, and shades of a table of
values. Text may hold `x_{t}` for a subscript and `10^{3}` for a superscript.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lab.draw.axis import Axis
from lab.draw.charts import Series, axes, grid_lines
from lab.draw.images import mix
from lab.draw.page import DATA, INK, MODEL, SOFT, Figure, Panel, text_width
from lab.draw.plane import square_around

WIDTH, EDGE, LEFT, GAP = 980, 20, 54, 22  # the page, its margin, room for numbers, between panels
LINE = 19  # from one line of text to the next


class Dots(NamedTuple):
    """A cloud of points, (N, 2)."""

    label: str
    points: np.ndarray
    color: str = DATA
    alpha: float = 0.4
    radius: float = 1.1


class Arrows(NamedTuple):
    """An arrow from each point of a `lattice`, (N, 2); those of length `unit` fill their cells."""

    label: str
    points: np.ndarray
    vectors: np.ndarray
    unit: float
    color: str = INK
    width: float = 1.2


class Shades(NamedTuple):
    """A table of values in 0..1, (rows, columns), that fills the panel, its first row at the top.

    0 is white and 1 the full colour.
    """

    label: str
    values: np.ndarray
    color: str = DATA


Mark = Series | Dots | Arrows | Shades


class View(NamedTuple):
    """A panel: what it shows, and what its axes are.

    extent is (x_low, x_high, y_low, y_high), by default all that the marks cover. Shades alone have
    no axes unless an extent is given. A mark with an empty label has no entry in the legend.
    """

    title: str
    marks: Sequence[Mark]
    xlabel: str = ""
    ylabel: str = ""
    log_x: bool = False
    log_y: bool = False
    extent: tuple[float, float, float, float] | None = None


def board(
    path: str | Path,
    views: Sequence[View],
    caption: str,
    columns: int = 2,
    height: int | None = None,
) -> None:
    """Panels in rows of `columns`, and a caption that says what to see, as a PNG.

    Parameters
    ----------
    path : where the PNG is written
    views : the panels, row after row
    caption : one paragraph, wrapped to the page
    columns : panels in a row
    height : of each panel in pixels, by default its width; then a plane keeps its proportions
    """
    width = (WIDTH - 2 * EDGE - (columns - 1) * GAP) // columns - LEFT
    height = height or width
    rows = [views[i : i + columns] for i in range(0, len(views), columns)]
    tops = [max(room_above(view, width) for view in row) for row in rows]
    below = [24 + LINE * any(view.xlabel for view in row) + 12 for row in rows]
    lines = list(wrapped(caption, WIDTH - 2 * EDGE, 14))
    figure = Figure(
        WIDTH, EDGE + sum(tops) + sum(below) + len(rows) * height + LINE * len(lines) + EDGE
    )
    top = float(EDGE)
    for row, above, under in zip(rows, tops, below, strict=True):
        top += above
        for j, view in enumerate(row):
            left = EDGE + LEFT + j * (width + LEFT + GAP)
            put_view(figure, view, left, top, width, height)
        top += height + under
    put_caption(figure, lines, top)
    figure.save(path)


def cloud_grid(
    path: str | Path, named: dict[str, Sequence[Dots]], caption: str, columns: int = 7
) -> None:
    """Clouds in small square panels, each below its name, and a caption.

    Parameters
    ----------
    path : where the PNG is written
    named : the clouds of each panel, by the panel's name, which may have several lines; all panels
        show the extent of the very first cloud
    caption : one paragraph, wrapped to the page
    columns : panels in a row
    """
    gap, size = 10, 11.5
    side = (WIDTH - 2 * EDGE + gap) // columns - gap
    extent = square_around(next(iter(named.values()))[0].points, margin=0.2)
    names = [
        [line for part in name.split("\n") for line in wrapped(part, side, size)] for name in named
    ]
    above, rows = 15 * max(map(len, names)) + 6, math.ceil(len(named) / columns)
    pitch, lines = above + side + gap, list(wrapped(caption, WIDTH - 2 * EDGE, 14))
    figure = Figure(WIDTH, EDGE + rows * pitch + LINE * len(lines) + EDGE)
    for k, (clouds, name) in enumerate(zip(named.values(), names, strict=True)):
        left, top = EDGE + k % columns * (side + gap), EDGE + k // columns * pitch + above
        panel = Panel(side, side, Axis(*extent[:2]), Axis(*extent[2:]))
        for cloud in clouds:
            draw_mark(panel, cloud)
        figure.put(panel.image, left, top)
        for i, line in enumerate(reversed(name)):
            figure.text(left, top - 6 - 15 * i, line, size, INK)
    put_caption(figure, lines, EDGE + rows * pitch)
    figure.save(path)


def put_caption(figure: Figure, lines: Sequence[str], top: float) -> None:
    """Lines of text across the page, the first of them just below `top`."""
    for i, line in enumerate(lines):
        figure.text(EDGE, top + LINE * (i + 1) - 4, line, 14, INK)


def put_view(figure: Figure, view: View, left: float, top: float, width: int, height: int) -> None:
    """A panel with its upper left corner at (left, top); above it title, legend and y's name."""
    panel = Panel(width, height, *axes_of(view))
    if all(isinstance(mark, Series) for mark in view.marks):
        grid_lines(panel)
    for mark in view.marks:
        draw_mark(panel, mark)
    figure.put(panel.image, left, top)
    if has_axes(view):
        axes(figure, panel, left, top, view.xlabel, most=max(3, width // 70))

    base = top - 8
    if view.ylabel:
        figure.text(left, base, view.ylabel, 13, SOFT)
        base -= LINE
    for line in reversed(list(legend_lines(view, width))):
        x = left
        for mark in line:
            figure.rule(x, base - 4.5, x + 16, base - 4.5, mark.color, 4)
            figure.text(x + 21, base, mark.label, 13, INK)
            x += entry_width(mark)
        base -= LINE
    figure.text(left, base - 1, view.title, 15, INK)


def has_axes(view: View) -> bool:
    """False for a table of values alone, which has no coordinates."""
    return view.extent is not None or not all(isinstance(mark, Shades) for mark in view.marks)


def axes_of(view: View) -> tuple[Axis, Axis]:
    """The ranges of x and y that a panel shows."""
    if not has_axes(view):
        return Axis(0.0, 1.0), Axis(0.0, 1.0)
    if view.extent is not None:
        return Axis(*view.extent[:2], view.log_x), Axis(*view.extent[2:], view.log_y)
    at = [mark for mark in view.marks if not isinstance(mark, Shades)]
    x = np.concatenate([m.x if isinstance(m, Series) else m.points[:, 0] for m in at])
    y = np.concatenate([m.y if isinstance(m, Series) else m.points[:, 1] for m in at])
    lines_only = all(isinstance(mark, Series) for mark in at)
    return Axis.around(x, view.log_x, 0 if lines_only else 0.05), Axis.around(y, view.log_y)


def draw_mark(panel: Panel, mark: Mark) -> None:
    if isinstance(mark, Series):
        panel.line(mark.x, mark.y, mark.color, mark.width)
    elif isinstance(mark, Dots):
        panel.dots(mark.points, mark.color, mark.alpha, mark.radius)
    elif isinstance(mark, Arrows):
        panel.arrows(mark.points, mark.vectors, mark.unit, mark.color, mark.width)
    else:
        shades = mix(mark.color, mark.values.ravel()).reshape(*mark.values.shape, 3)
        cells = Image.fromarray(shades)
        panel.image.paste(cells.resize(panel.image.size, Image.Resampling.NEAREST))


def ellipse(
    label: str, mean: np.ndarray, cov: np.ndarray, color: str = MODEL, deviations: float = 1.0
) -> Series:
    """The points at so many standard deviations from the mean of N(mean, cov): a closed line."""
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    x, y = mean[:, None] + deviations * np.linalg.cholesky(cov) @ circle
    return Series(label, x, y, color)


# Text


def room_above(view: View, width: int) -> int:
    """The height of a panel's title, legend and name of the y axis."""
    return 8 + LINE * (1 + len(list(legend_lines(view, width))) + bool(view.ylabel))


def legend_lines(view: View, width: int) -> Iterator[list[Mark]]:
    """The marks that have a label, in lines no wider than the panel."""
    line: list[Mark] = []
    for mark in view.marks:
        if mark.label:
            if line and sum(map(entry_width, [*line, mark])) > width:
                yield line
                line = []
            line = [*line, mark]
    if line:
        yield line


def entry_width(mark: Mark) -> float:
    return 21 + text_width(mark.label, 13) + 16


def wrapped(text: str, width: float, size: float) -> Iterator[str]:
    """The text in lines of at most this width."""
    line = ""
    for word in text.split():
        if line and text_width(f"{line} {word}", size) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    if line:
        yield line
