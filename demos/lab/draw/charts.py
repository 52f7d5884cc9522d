"""Charts: curves, and the loss at each t."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.draw.axis import Axis, tick_labels
from lab.draw.page import EXACT, INK, MODEL, SCALE, SOFT, Figure, Panel, text_width


class Series(NamedTuple):
    """A line of a chart."""

    label: str
    x: np.ndarray
    y: np.ndarray
    color: str = MODEL
    width: float = 1.6


def curves(
    path: str | Path,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    height: int = 420,
) -> None:
    """A chart of lines.

    A value that is not finite, or that has no place on a logarithmic scale, leaves a gap.

    Parameters
    ----------
    path : where the PNG is written
    series : the lines; a later one lies on top of an earlier one
    xlabel, ylabel : `x_{t}` sets a subscript and `10^{3}` a superscript
    """
    figure = Figure(760, height)
    x = Axis.around(np.concatenate([s.x for s in series]), log_x, margin=0)
    y = Axis.around(np.concatenate([s.y for s in series]), log_y)
    chart(figure, 50, height - 50 - 62, series, x, y, xlabel, ylabel)
    figure.save(path)


def loss_over_t(
    path: str | Path,
    t: np.ndarray,
    loss: np.ndarray,
    floor: np.ndarray | None = None,
    excess: np.ndarray | None = None,
) -> None:
    """The loss at each t beside the irreducible one, and below it the difference.

    Parameters
    ----------
    path : where the PNG is written
    t : (n,), 1 or above, on a logarithmic scale, since the structure is at small t
    loss : (n,), the mean square error of eps, a coordinate
    floor : (n,), the irreducible loss
    excess : (n,), loss minus floor, best measured as the mean square of eps_hat - eps*
    """
    upper = [Series("irreducible", t, floor, EXACT, 4.0)] if floor is not None else []
    upper.append(Series("network", t, loss, MODEL))
    figure = Figure(760, 420 if excess is None else 680)
    x = Axis.around(t, log=True, margin=0)
    y = Axis.around(np.concatenate([s.y for s in upper]))
    chart(figure, 50, 308, upper, x, y, "t" if excess is None else "", "loss for each dimension")
    if excess is not None:
        lower, y = [Series("excess", t, excess)], Axis.around(excess, log=True)
        chart(figure, 438, 180, lower, x, y, "t", "excess over the irreducible loss")
    figure.save(path)


def chart(
    figure: Figure,
    top: float,
    height: int,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    xlabel: str,
    ylabel: str,
) -> None:
    """Lines, with the y axis' name and the legend above them and the x axis below."""
    left, width = 74, figure.image.width // SCALE - 74 - 30
    panel = Panel(width, height, x, y)
    grid_lines(panel)
    for s in series:
        panel.line(s.x, s.y, s.color, s.width)
    figure.put(panel.image, left, top, frame=False)
    axes(figure, panel, left, top, xlabel)

    shown = series if len(series) > 1 else []
    room = width - sum(text_width(s.label, 14) + 44 for s in shown)
    # The name of the y axis goes above a legend that leaves it no room.
    figure.text(left, top - (14 if text_width(ylabel, 14) < room else 36), ylabel, 14, INK)
    legend(figure, shown, right=float(left + width), base=top - 14)


def grid_lines(panel: Panel) -> None:
    """A thin line across the panel at each tick of its y axis."""
    for tick in panel.y.ticks():
        panel.line(np.array([panel.x.low, panel.x.high]), np.array([tick, tick]), "#ececec", 1)


def axes(figure: Figure, panel: Panel, left: float, top: float, xlabel: str, most: int = 6) -> None:
    """The numbers at the left of a panel that stands at (left, top), and the x axis below it."""
    width, height = panel.image.width / SCALE, panel.image.height / SCALE
    bottom = top + height
    for tick, label in zip(panel.y.ticks(), tick_labels(panel.y.ticks()), strict=True):
        up = float(panel.y.place(np.array(tick)))
        figure.text(left - 10, bottom - up * height + 5, label, 13, SOFT, align=1)
    figure.rule(left, bottom, left + width, bottom, EXACT)
    for tick, label in zip(panel.x.ticks(most), tick_labels(panel.x.ticks(most)), strict=True):
        across = left + float(panel.x.place(np.array(tick))) * width
        figure.rule(across, bottom, across, bottom + 5, EXACT)
        figure.text(across, bottom + 20, label, 13, SOFT, align=0.5)
    figure.text(left + width / 2, bottom + 42, xlabel, 14, INK, align=0.5)


def legend(figure: Figure, series: Sequence[Series], right: float, base: float) -> None:
    """The series' labels with a piece of their lines, from right to left, the last one first."""
    for s in reversed(series):
        right -= text_width(s.label, 14)
        figure.text(right, base, s.label, 14, INK)
        figure.rule(right - 26, base - 4.5, right - 6, base - 4.5, s.color, max(s.width, 2))
        right -= 44
