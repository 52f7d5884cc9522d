"""Points in the plane: clouds, the two processes, fields of scores."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lab.draw.axis import Axis
from lab.draw.images import film, mix
from lab.draw.page import CLOUD, DATA, EXACT, INK, MODEL, SCALE, SOFT, Figure, Panel, table

Extent = tuple[float, float, float, float]  # x_low, x_high, y_low, y_high
Arrays = Sequence[np.ndarray]
Drifts = Sequence[tuple[np.ndarray, np.ndarray] | None]
Lines = Sequence[str]  # of text, one below the other

LINE = 19  # from one line of text to the next
ARROWS = 11  # a side of the lattice, at most: then arrows are long enough to be read


# Panels of the plane


def square_around(points: np.ndarray, cut: float = 0.5, margin: float = 0.08) -> Extent:
    """A square that holds the points, but for `cut` per cent at each side, and a margin."""
    points = points[np.isfinite(points).all(axis=1)]
    if len(points):
        low, high = np.percentile(points, [cut, 100 - cut], axis=0)
    else:
        low, high = np.array([-1.0, -1.0]), np.array([1.0, 1.0])
    (x, y), half = (low + high) / 2, (0.5 + margin) * float((high - low).max()) or 1.0
    return float(x - half), float(x + half), float(y - half), float(y + half)


def lattice(extent: Extent, n: int = 16) -> np.ndarray:
    """The centres of n x n equal cells of the extent: (n^2, 2)."""
    x_low, x_high, y_low, y_high = extent
    at = (np.arange(n) + 0.5) / n
    x, y = np.meshgrid(x_low + at * (x_high - x_low), y_low + at * (y_high - y_low))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def view(extent: Extent, side: int) -> Panel:
    """A square panel that shows the extent."""
    return Panel(side, side, Axis(*extent[:2]), Axis(*extent[2:]))


def cloud_panel(cloud: np.ndarray, extent: Extent, side: int, color: str) -> Image.Image:
    """A panel with one cloud of points, (N, 2)."""
    panel = view(extent, side)
    panel.dots(cloud, color)
    return panel.image


@np.errstate(all="ignore")
def unit_of(vectors: np.ndarray) -> float:
    """The length that half of the vectors exceed, of which the longest arrows are drawn."""
    length = np.hypot(*vectors.T)
    length = length[np.isfinite(length)]
    return float(np.median(length)) or 1.0 if len(length) else 1.0


def in_words(unit: float) -> str:
    """What an arrow of full length stands for, with the unit of `unit_of`."""
    return f"longest arrows: {unit:.2g} or more"


def every_few(points: np.ndarray) -> np.ndarray:
    """The indices of those points of a `lattice` that have arrows: a lattice of up to ARROWS^2."""
    n = math.isqrt(len(points))
    step = math.ceil(n / ARROWS)
    at = np.arange(step // 2, n, step)
    return (n * at[:, None] + at).ravel()


def width_in_words(extent: Extent) -> str:
    """How much of the plane a panel shows."""
    return (
        f"Each panel shows a square of side {extent[1] - extent[0]:.1f} (the data have variance 1)."
    )


def lettered(
    figure: Figure, side: int, above: Sequence[Lines], below: Sequence[Lines] = (), foot: str = ""
) -> Figure:
    """The page of a `table` of square panels, with text around its columns.

    Parameters
    ----------
    figure : the page of a table without titles, of panels of this side
    above, below : lines of text for each column
    foot : a line of text at the foot of the page
    """
    width, height = (pixels / SCALE for pixels in figure.image.size)
    room, under = max(map(len, above)) * LINE, max(map(len, below), default=0) * LINE
    page = Figure(width, room + height + under + (LINE + 6) * bool(foot))
    page.image.paste(figure.image, (0, room * SCALE))
    for texts, base in ((above, 23.0), (below, room + height - 2)):
        for j, lines in enumerate(texts):
            middle = width - 20 - side / 2 - (len(texts) - 1 - j) * (side + 12)
            for i, line in enumerate(lines):
                size, color = (15, INK) if texts is above and i == 0 else (13, SOFT)
                page.text(middle, base + i * LINE, line, size, color, align=0.5)
    page.text(20, room + height + under + 8, foot, 13, SOFT)
    return page


# Clouds


def clouds(path: str | Path, named: dict[str, np.ndarray]) -> None:
    """Clouds of points side by side, (N, 2) each, below their names and on one scale."""
    extent = square_around(np.concatenate(list(named.values())))
    row = [cloud_panel(cloud, extent, 260, DATA) for cloud in named.values()]
    table([row], list(named)).save(path)


def rows_of_clouds(
    path: str | Path, named: dict[str, list[np.ndarray]], columns: Sequence[Lines], note: str
) -> None:
    """A row of clouds for each name, all on the scale of the last clouds.

    `columns` holds the title of each column; the note stands at the foot of the page.
    """
    last = np.concatenate([row[-1] for row in named.values()])
    extent = square_around(last, cut=0.1, margin=0.25)
    rows = [[cloud_panel(cloud, extent, 190, MODEL) for cloud in row] for row in named.values()]
    page = table(rows, labels=[[(name, INK)] for name in named])
    lettered(page, 190, columns, foot=f"{width_in_words(extent)} {note}").save(path)


def cloud_table(
    path: str | Path,
    clouds: dict[tuple[str, int], np.ndarray],
    names: Sequence[str],
    counts: Sequence[int],
    title: str,
) -> None:
    """clouds[name, count] in a row for each name and a column for each count, on one scale.

    `title` is the title of a column, with {} where the count goes.
    """
    extent = square_around(clouds[names[0], counts[-1]])
    rows = [
        [cloud_panel(clouds[name, count], extent, 170, MODEL) for count in counts] for name in names
    ]
    titles, labels = [title.format(count) for count in counts], [[(name, INK)] for name in names]
    table(rows, titles, labels).save(path)


def animation(
    path: str | Path, clouds: Arrays, ts: Sequence[int], extent: Extent | None = None
) -> None:
    """Points on their way from x_T to x_0, as a GIF.

    Parameters
    ----------
    path : where the GIF is written
    clouds : the frames, of shape (N, 2) each; some fifty make a smooth film
    ts : the t of each frame, T first
    extent : what is shown; by default nearly all of the first and the last cloud
    """
    extent = extent or square_around(np.concatenate([clouds[0], clouds[-1]]))
    film(path, [cloud_panel(cloud, extent, 340, MODEL) for cloud in clouds], ts)


# The forward and the reverse process


def reverse_process(
    path: str | Path,
    columns: Sequence[Lines],
    forward_clouds: Arrays,
    reverse_clouds: Arrays,
    drifts: Drifts,
    extent: Extent | None = None,
) -> None:
    """The two processes and the drift of the reverse one, a column for each of several t.

    It is the figure of Sohl-Dickstein et al. 2015, arXiv:1503.03585.

    Parameters
    ----------
    path : where the PNG is written
    columns : the title of each, t = 0 (data) at the left and T (noise) at the right
    forward_clouds : for each t, draws of x_t from q, of shape (N, 2)
    reverse_clouds : for each t, the sampler's x_t, of shape (N, 2)
    drifts : for each t, the points of a `lattice` and mean(x_t) - x_t there, both (G, 2); None at
        t = 0, where the two clouds are shown together
    extent : what the panels show; by default nearly all of the forward process
    """
    extent = extent or square_around(np.concatenate(forward_clouds))
    forward_row = [cloud_panel(cloud, extent, 190, DATA) for cloud in forward_clouds]
    reverse_row = [cloud_panel(cloud, extent, 190, MODEL) for cloud in reverse_clouds]
    drift_row, scales = [], []
    for q, p, drift in zip(forward_clouds, reverse_clouds, drifts, strict=True):
        panel = view(extent, 190)
        if drift is None:
            panel.dots(q, DATA, alpha=0.3)
            panel.dots(p, MODEL, alpha=0.2)
            scales.append(["both clouds"])
        else:
            unit = unit_of(drift[1])
            panel.dots(q, CLOUD, alpha=0.25)
            panel.arrows(*drift, unit, INK)
            scales.append([in_words(unit)])
        drift_row.append(panel.image)
    labels = [
        [("forward process", DATA), ("x_{t} from q", SOFT), ("data to noise", SOFT)],
        [("reverse process", MODEL), ("x_{t} from p", SOFT), ("noise to data", SOFT)],
        [("drift of a step back", INK), ("mean(x_{t}) \u2212 x_{t}", SOFT)],
    ]
    page = table([forward_row, reverse_row, drift_row], labels=labels)
    lettered(page, 190, columns, scales, width_in_words(extent)).save(path)


# Scores


def score_field(
    path: str | Path,
    columns: Sequence[Lines],
    clouds: Arrays,
    points: np.ndarray,
    learned: Arrays,
    exact: Arrays | None = None,
    names: tuple[str, str] = ("learned score", "exact score"),
) -> None:
    """The learned score as arrows, a column for each of several t.

    Where the exact score is known it is drawn below the learned one, and a second row shows the
    size of their difference.

    Parameters
    ----------
    path : where the PNG is written
    columns : the title of each
    clouds : for each t, draws of x_t, (N, 2), shown faintly: an error matters only where they lie
    points : a `lattice`, (G, 2), whose extent the panels show; not all of it has arrows
    learned, exact : for each t, the score at the points, (G, 2)
    names : of the learned and the exact arrows
    """
    half = np.ptp(points, axis=0) / (math.sqrt(len(points)) - 1) / 2  # of a cell
    (x_low, y_low), (x_high, y_high) = points.min(axis=0) - half, points.max(axis=0) + half
    extent = float(x_low), float(x_high), float(y_low), float(y_high)
    shown, fields, errors, scales = every_few(points), [], [], []
    for i, cloud in enumerate(clouds):
        unit = unit_of(learned[i] if exact is None else exact[i])
        field = view(extent, 290)
        field.dots(cloud, CLOUD, alpha=0.5)
        if exact is not None:
            field.arrows(points[shown], exact[i][shown], unit, EXACT, width=5.0)
            errors.append(error_map(extent, cloud, learned[i], exact[i], unit).image)
        field.arrows(points[shown], learned[i][shown], unit, MODEL, width=1.5)
        fields.append(field.image)
        scales.append([in_words(unit)])
    foot = width_in_words(extent)
    if exact is None:
        page = table([fields], labels=[[(names[0], MODEL)]])
        lettered(page, 290, columns, scales, foot).save(path)
        return
    labels = [
        [(names[0], MODEL), (names[1], EXACT)],
        [("their difference", MODEL), ("(longest arrows: 1)", SOFT)],
    ]
    page = table([fields, errors], labels=labels)
    color_key(page, 20, page.image.height / SCALE - 125)
    lettered(page, 290, columns, scales, foot).save(path)


@np.errstate(all="ignore")
def error_map(
    extent: Extent, cloud: np.ndarray, learned: np.ndarray, exact: np.ndarray, unit: float
) -> Panel:
    """|learned - exact| / unit in each cell of a lattice, as a shade.

    The shades run on a logarithmic scale, from white at 0.01 to full colour at 1.
    """
    panel, n = view(extent, 290), math.isqrt(len(exact))
    error = np.hypot(*(learned - exact).T) / unit
    shades = mix(MODEL, Axis(0.01, 1, log=True).place(error)).reshape(n, n, 3)
    cells = Image.fromarray(shades[::-1])
    panel.image.paste(cells.resize(panel.image.size, Image.Resampling.NEAREST))
    panel.dots(cloud, INK, alpha=0.15, radius=0.7)
    return panel


def color_key(figure: Figure, x: float, y: float) -> None:
    """What the shades of `error_map` mean."""
    shades = mix(MODEL, np.linspace(0, 1, 110 * SCALE))
    figure.put(Image.fromarray(np.tile(shades, (8 * SCALE, 1, 1))), x, y)
    for share, label in ((0.0, "0.01"), (0.5, "0.1"), (1.0, "1")):
        figure.text(x + share * 110, y + 24, label, 12, SOFT, align=share)
