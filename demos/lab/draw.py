"""The demos' pictures: clouds of points, fields of arrows, curves, grids of images and GIFs."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor

from lab.page import (
    CLOUD,
    DATA,
    EXACT,
    INK,
    MODEL,
    RULE,
    SCALE,
    SOFT,
    Axis,
    Extent,
    Figure,
    Panel,
    table,
    text_width,
    write,
)

Arrays = Sequence[np.ndarray]
Drifts = Sequence[tuple[np.ndarray, np.ndarray] | None]


# Points in the plane.


def square_around(points: np.ndarray, cut: float = 0.5, margin: float = 0.08) -> Extent:
    """A square with equal scales that holds all points but `cut` per cent at each side, and a margin."""
    points = points[np.isfinite(points).all(axis=1)]
    low, high = (
        np.percentile(points, [cut, 100 - cut], axis=0)
        if len(points)
        else np.array([[-1.0, -1.0], [1.0, 1.0]])
    )
    (x, y), half = (low + high) / 2, (0.5 + margin) * float((high - low).max()) or 1.0
    return float(x - half), float(x + half), float(y - half), float(y + half)


def lattice(extent: Extent, n: int = 16) -> np.ndarray:
    """The middles of n x n equal cells of the extent: (n^2, 2)."""
    x_low, x_high, y_low, y_high = extent
    at = (np.arange(n) + 0.5) / n
    x, y = np.meshgrid(x_low + at * (x_high - x_low), y_low + at * (y_high - y_low))
    return np.stack([x.ravel(), y.ravel()], axis=1)


@np.errstate(all="ignore")
def unit_of(vectors: np.ndarray) -> float:
    """The length that one vector in four exceeds."""
    length = np.hypot(*vectors.T)
    return (
        float(np.percentile(length[np.isfinite(length)], 75)) or 1.0
        if np.isfinite(length).any()
        else 1.0
    )


def view(extent: Extent, side: int) -> Panel:
    return Panel(side, side, Axis(*extent[:2]), Axis(*extent[2:]))


def mix(color: str, shares: np.ndarray) -> np.ndarray:
    """The colour on white, a share in 0..1 of it: (n,) -> uint8 of shape (n, 3). In full where the share is not a number."""
    shares = np.nan_to_num(shares, nan=1.0).clip(0, 1)[:, None]
    return (255 + shares * (np.array(ImageColor.getrgb(color)) - 255)).round().astype(np.uint8)


def clouds(path: str | Path, named: dict[str, np.ndarray]) -> None:
    """Clouds of points side by side, each of shape (N, 2), under their names and on one scale."""
    extent = square_around(np.concatenate(list(named.values())))
    panels = [view(extent, 260) for _ in named]
    for panel, cloud in zip(panels, named.values(), strict=True):
        panel.dots(cloud, DATA)
    table([[panel.image for panel in panels]], list(named)).save(path)


def rows_of_clouds(path: str | Path, named: dict[str, list[np.ndarray]]) -> None:
    """For each name a row of clouds, on one scale: that of the last ones."""
    extent = square_around(
        np.concatenate([clouds[-1] for clouds in named.values()]), cut=0.1, margin=0.25
    )
    rows = []
    for clouds in named.values():
        panels = [view(extent, 190) for _ in clouds]
        for panel, cloud in zip(panels, clouds, strict=True):
            panel.dots(cloud, MODEL)
        rows.append([panel.image for panel in panels])
    table(rows, labels=[[(name, INK)] for name in named]).save(path)


def cloud_table(
    path: str | Path,
    clouds: dict[tuple[str, int], np.ndarray],
    names: Sequence[str],
    counts: Sequence[int],
    title: str,
) -> None:
    """A cloud for each name, in rows, and each number, in columns under the title with that number in it, all on one scale."""
    extent = square_around(clouds[names[0], counts[-1]])

    def picture(cloud: np.ndarray) -> Image.Image:
        panel = view(extent, 170)
        panel.dots(cloud, MODEL)
        return panel.image

    rows = [[picture(clouds[name, count]) for count in counts] for name in names]
    table(rows, [title.format(count) for count in counts], [[(name, INK)] for name in names]).save(
        path
    )


def reverse_process(
    path: str | Path,
    ts: Sequence[int],
    forward_clouds: Arrays,
    reverse_clouds: Arrays,
    drifts: Drifts,
    extent: Extent | None = None,
) -> None:
    """The two processes and the drift between them, a column for each t: the figure of Sohl-Dickstein et al. 2015, arXiv:1503.03585.

    Parameters
    ----------
    path : where the PNG is written
    ts : the columns, t = 0 (data) at the left and T (noise) at the right
    forward_clouds : for each t, draws of x_t from q, of shape (N, 2)
    reverse_clouds : for each t, the sampler's x_t, of shape (N, 2)
    drifts : for each t, the points of a `lattice` and mean(x_t) - x_t there, both (G, 2); None at t = 0, where the two clouds meet
    extent : what the panels show; by default nearly all of the forward process
    """
    extent = extent or square_around(np.concatenate(forward_clouds))
    columns = []
    for q, p, drift in zip(forward_clouds, reverse_clouds, drifts, strict=True):
        forward, reverse, below = view(extent, 190), view(extent, 190), view(extent, 190)
        forward.dots(q, DATA)
        reverse.dots(p, MODEL)
        if drift is None:
            below.dots(q, DATA, alpha=0.3)
            below.dots(p, MODEL, alpha=0.2)
        else:
            below.dots(q, CLOUD, alpha=0.25)
            below.arrows(*drift, unit_of(drift[1]), INK)
        columns.append([forward.image, reverse.image, below.image])
    labels = [
        [("forward process", DATA), ("x_{t} from q", SOFT), ("data to noise", SOFT)],
        [("reverse process", MODEL), ("x_{t} from p", SOFT), ("noise to data", SOFT)],
        [("drift of a step back", INK), ("mean(x_{t}) \u2212 x_{t}", SOFT)]
        + [("both clouds at t = 0", SOFT)] * (drifts[0] is None),
    ]
    table([*zip(*columns, strict=True)], [f"t = {t}" for t in ts], labels).save(path)


def score_field(
    path: str | Path,
    ts: Sequence[int],
    clouds: Arrays,
    points: np.ndarray,
    learned: Arrays,
    exact: Arrays | None = None,
    names: tuple[str, str] = ("learned score", "exact score"),
) -> None:
    """The learned score, over the exact one and with the size of their difference where that is known; a column for each t.

    Parameters
    ----------
    path : where the PNG is written
    ts : the columns
    clouds : for each t, draws of x_t, of shape (N, 2), shown faintly: only where they lie does an error matter
    points : a `lattice`, (G, 2), whose extent the panels show
    learned, exact : for each t, the score at the points, (G, 2)
    """
    half = np.ptp(points, axis=0) / (math.sqrt(len(points)) - 1) / 2  # of a cell
    (x_low, y_low), (x_high, y_high) = points.min(axis=0) - half, points.max(axis=0) + half
    extent = float(x_low), float(x_high), float(y_low), float(y_high)
    fields, errors = [], []
    for i, cloud in enumerate(clouds):
        unit = unit_of(learned[i] if exact is None else exact[i])
        field = view(extent, 250)
        field.dots(cloud, CLOUD, alpha=0.3)
        if exact is not None:
            field.arrows(points, exact[i], unit, EXACT, width=2.4)
            errors.append(error_map(extent, cloud, learned[i], exact[i], unit).image)
        field.arrows(points, learned[i], unit, MODEL)
        fields.append(field.image)
    labels = [
        [(names[0], MODEL), (names[1], EXACT)],
        [("size of the error", MODEL), ("(longest arrow: 1)", SOFT)],
    ]
    rows, labels = ([fields, errors], labels) if errors else ([fields], [labels[0][:1]])
    figure = table(rows, [f"t = {t}" for t in ts], labels)
    if errors:
        color_key(figure, 20, figure.image.height / SCALE - 105)
    figure.save(path)


@np.errstate(all="ignore")
def error_map(
    extent: Extent, cloud: np.ndarray, learned: np.ndarray, exact: np.ndarray, unit: float
) -> Panel:
    """|learned - exact| / unit in the cells of a lattice, from white at 0.01 to full colour at 1 in steps of equal ratio."""
    panel, n = view(extent, 250), math.isqrt(len(exact))
    error = np.hypot(*(learned - exact).T) / unit
    shades = mix(MODEL, Axis(0.01, 1, log=True).place(error)).reshape(n, n, 3)
    panel.image.paste(
        Image.fromarray(shades[::-1]).resize(panel.image.size, Image.Resampling.NEAREST)
    )
    panel.dots(cloud, INK, alpha=0.15, radius=0.7)
    return panel


def color_key(figure: Figure, x: float, y: float) -> None:
    """What the colours of `error_map` mean."""
    shades = mix(MODEL, np.linspace(0, 1, 110 * SCALE))
    figure.put(Image.fromarray(np.tile(shades, (8 * SCALE, 1, 1))), x, y)
    for share, label in ((0.0, "0.01"), (0.5, "0.1"), (1.0, "1")):
        figure.text(x + share * 110, y + 24, label, 12, SOFT, align=share)


# Curves.


class Series(NamedTuple):
    """A line of a chart."""

    label: str
    x: np.ndarray
    y: np.ndarray
    color: str = MODEL
    width: float = 1.6


def numbers(ticks: Sequence[float]) -> list[str]:
    """Labels of ticks with a true minus: 0.5, 1.0, 1.5 in equal steps, 0.1, 1, 10 in others, powers of ten if any is tiny or huge."""
    if all(tick == 0 or 1e-3 <= abs(tick) < 1e6 for tick in ticks):
        even = len(ticks) > 2 and np.ptp(np.diff(ticks)) < 1e-9 * np.ptp(ticks)
        decimals = max((len(f"{tick:g}".partition(".")[2]) for tick in ticks), default=0)
        texts = [f"{tick:.{decimals}f}" if even else f"{tick:g}" for tick in ticks]
    else:
        parts = [f"{tick:e}".split("e") for tick in ticks]
        texts = [
            f"{float(digits):g} \u00d7 10^{{{int(power)}}}" if float(digits) else "0"
            for digits, power in parts
        ]
    return [re.sub("^1 \u00d7 ", "", text).replace("-", "\u2212") for text in texts]


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
    """Lines between a row with the scale's name and the legend above, and the ticks of x below."""
    left, width = 74, figure.image.width // SCALE - 74 - 30
    panel = Panel(width, height, x, y)
    for tick, label in zip(y.ticks(), numbers(y.ticks()), strict=True):
        up = float(y.place(np.array(tick)))
        panel.line(np.array([x.low, x.high]), np.array([tick, tick]), "#ececec", 1)
        figure.text(left - 10, top + (1 - up) * height + 5, label, 13, SOFT, align=1)
    for s in series:
        panel.line(s.x, s.y, s.color, s.width)
    figure.put(panel.image, left, top, frame=False)
    figure.rule(left, top + height, left + width, top + height, EXACT)
    for tick, label in zip(x.ticks(), numbers(x.ticks()), strict=True):
        across = left + float(x.place(np.array(tick))) * width
        figure.rule(across, top + height, across, top + height + 5, EXACT)
        figure.text(across, top + height + 20, label, 13, SOFT, align=0.5)
    figure.text(left + width / 2, top + height + 42, xlabel, 14, INK, align=0.5)
    legend = series if len(series) > 1 else []
    room = width - sum(text_width(s.label, 14) + 44 for s in legend)
    figure.text(
        left, top - (14 if text_width(ylabel, 14) < room else 36), ylabel, 14, INK
    )  # above a legend that needs the row
    right = float(left + width)
    for s in reversed(legend):
        right -= text_width(s.label, 14)
        figure.text(right, top - 14, s.label, 14, INK)
        figure.rule(right - 26, top - 18.5, right - 6, top - 18.5, s.color, max(s.width, 2))
        right -= 44


def curves(
    path: str | Path,
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    height: int = 420,
) -> None:
    """A chart of lines. A value that is not finite, or has no place on a logarithmic scale, leaves a gap.

    Parameters
    ----------
    path : where the PNG is written
    series : the lines; the later lies on the earlier
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
    """The loss at each t on the loss that no predictor can go below, and under it what the network adds.

    Parameters
    ----------
    path : where the PNG is written
    t : (n,), 1 or above, on a logarithmic scale: what there is to see is at small t
    loss : (n,), mean square error of eps for each dimension
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
        chart(
            figure,
            438,
            180,
            [Series("excess", t, excess)],
            x,
            Axis.around(excess, log=True),
            "t",
            "excess over the irreducible loss",
        )
    figure.save(path)


# Images and films.


def rows_of(images: np.ndarray, columns: int, zoom: int) -> list[list[Image.Image]]:
    """Grey images, uint8 of shape (N, H, W), laid out in rows, every pixel a square of zoom x zoom."""
    if images.dtype != np.uint8 or images.ndim != 3 or not len(images):
        raise ValueError(
            f"images must be uint8 of shape (N, H, W), got {images.dtype} of shape {images.shape}"
        )
    large = images.repeat(zoom * SCALE, axis=1).repeat(zoom * SCALE, axis=2)
    return [
        [Image.fromarray(image) for image in large[i : i + columns]]
        for i in range(0, len(large), columns)
    ]


def grid(
    path: str | Path,
    images: np.ndarray,
    columns: int,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    zoom: int = 2,
) -> None:
    """Grey images in rows, as a PNG.

    Parameters
    ----------
    path : where the PNG is written
    images : uint8 of shape (N, H, W), 0 black and 255 white, row after row
    columns : how many stand in a row; the last row may be shorter
    column_labels, row_labels : one for each column and row, or none
    """
    labels = [[(label, INK)] for label in row_labels]
    table(rows_of(images, columns, zoom), column_labels, labels, gap=2).save(path, smooth=False)


def strip(path: str | Path, images: np.ndarray, labels: Sequence[str] = (), zoom: int = 2) -> None:
    """Grey images in one row, as a PNG: uint8 of shape (N, H, W), with a label above each, or none."""
    grid(path, images, len(images), labels, zoom=zoom)


def animation(
    path: str | Path, clouds: Arrays, ts: Sequence[int], extent: Extent | None = None
) -> None:
    """Points on their way from x_T to x_0, as a GIF.

    Parameters
    ----------
    path : where the GIF is written
    clouds : a frame each, of shape (N, 2); some fifty of them make a smooth film
    ts : the t of each frame, T first
    extent : what is shown; by default nearly all of the first and the last cloud
    """
    extent = extent or square_around(np.concatenate([clouds[0], clouds[-1]]))
    pictures = []
    for cloud in clouds:
        panel = view(extent, 340)
        panel.dots(cloud, MODEL)
        pictures.append(panel.image)
    film(path, pictures, ts)


def animation_images(
    path: str | Path, batches: Arrays, ts: Sequence[int], columns: int, zoom: int = 2
) -> None:
    """Grey images on their way from x_T to x_0, as a GIF: `animation` with frames of uint8, (N, H, W), laid out as in `grid`."""
    film(
        path,
        [table(rows_of(images, columns, zoom), gap=2, margin=0).image for images in batches],
        ts,
    )


def film(path: str | Path, pictures: Sequence[Image.Image], ts: Sequence[int]) -> None:
    """The pictures one after another, the last for two seconds, each over its t and a line that grows from T to 0."""
    palette = Image.new("P", (1, 1))  # of 16 oranges and 16 greys
    palette.putpalette(
        np.concatenate([mix(color, np.linspace(0, 1, 16)) for color in (MODEL, INK)]).tobytes()
    )
    frames = []
    for picture, t in zip(pictures, ts, strict=True):
        width, height = picture.width // SCALE, picture.height // SCALE
        figure = Figure(width + 20, height + 44)
        figure.put(picture, 10, 10)
        figure.text(10, height + 33, f"t = {t}", 15)
        figure.rule(90, height + 28, width + 10, height + 28, RULE, 2)
        figure.rule(
            90, height + 28, 90 + (1 - t / max(*ts, 1)) * (width - 80), height + 28, MODEL, 2
        )
        frames.append(figure.reduced().quantize(palette=palette, dither=Image.Dither.NONE))
    durations = [60] * (len(frames) - 1) + [2000]
    write(
        frames[0],
        path,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        optimize=False,
    )
