"""A page to draw on: panels with coordinates, text, and pictures in rows.

A Panel is a rectangle with coordinates of its own. What lies beyond its edge is left out, and so is
every number that is not finite. A Figure is the page, on which panels and text stand. Both are
drawn SCALE times too large and reduced at the end, which smooths dots, lines and letters. All
lengths are in pixels of the finished picture. Arrays are NumPy arrays on the host.
"""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lab.draw.axis import Axis
from lab.files import in_one_move

SCALE = 3
DATA, MODEL, EXACT = "#1f4e79", "#d5600f", "#9a9a9a"  # colour-blind readers too tell these apart
INK, SOFT, RULE, CLOUD = "#222222", "#6b6b6b", "#d4d4d4", "#a9b4be"
MINUS = "\u2212"

Label = Sequence[tuple[str, str]]  # lines of text, each with its colour


class Panel:
    """A rectangle of the page with coordinates, x to the right and y upwards."""

    def __init__(self, width: int, height: int, x: Axis, y: Axis) -> None:
        self.x, self.y = x, y
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) -> (n, 2), in pixels of the large image."""
        across, up = self.x.place(points[:, 0]), self.y.place(points[:, 1])
        return np.stack([across * self.image.width, (1 - up) * self.image.height], axis=1)

    def dots(self, points: np.ndarray, color: str, alpha: float = 0.4, radius: float = 1.1) -> None:
        """Discs of thin ink: where n of them overlap they cover 1 - (1 - alpha)^n of the paper."""
        width, height = self.image.size
        at = self.pixels(points)
        near = (np.abs(at) < 2 * max(width, height)).all(axis=1)  # False for NaN
        at = at[near].astype(np.int64)
        r = round(radius * SCALE)
        inside_disc = np.hypot(*np.mgrid[-r : r + 1, -r : r + 1]) <= radius * SCALE
        disc = np.argwhere(inside_disc) - r  # (m, 2)
        x, y = (at[:, None] + disc).reshape(-1, 2).T
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        n = np.bincount(y[inside] * width + x[inside], minlength=width * height)
        cover = 255 * (1 - (1 - alpha) ** np.arange(n.max() + 1))  # for n = 0, 1, ...
        mask = cover.round().astype(np.uint8)[n.reshape(height, width)]
        self.image.paste(color, mask=Image.fromarray(mask))

    @np.errstate(all="ignore")
    def arrows(
        self, points: np.ndarray, vectors: np.ndarray, unit: float, color: str, width: float = 1.0
    ) -> None:
        """An arrow from each point of a `lattice`.

        A vector of length `unit`, and every longer one, has an arrow of 0.85 cells.
        """
        cell = np.ptp(points[:, 0]) / max(math.sqrt(len(points)) - 1, 1)
        shortened = vectors / np.maximum(np.hypot(*vectors.T)[:, None], unit)
        a, b = self.pixels(points), self.pixels(points + 0.85 * cell * shortened)
        length = np.hypot(*(b - a).T)
        shown = (length > 0) & (length < math.inf)
        for outline in arrow_outlines(a[shown], b[shown], length[shown], width * SCALE):
            self.draw.polygon([*map(tuple, outline)], fill=color)

    def line(self, x: np.ndarray, y: np.ndarray, color: str, width: float) -> None:
        """A line through the points in their order, broken where one is missing."""
        at = self.pixels(np.stack([x, y], axis=1))
        missing = ~np.isfinite(at).all(axis=1)
        thickness = round(width * SCALE)
        for piece in np.split(at, np.flatnonzero(missing)):
            piece = piece[np.isfinite(piece).all(axis=1)].clip(-1e5, 1e5)
            if len(piece) > 1:
                self.draw.line([*map(tuple, piece)], fill=color, width=thickness, joint="curve")


def arrow_outlines(a: np.ndarray, b: np.ndarray, length: np.ndarray, width: float) -> np.ndarray:
    """Arrows of a shaft and a head as polygons, from a (n, 2) to b (n, 2): (n, 7, 2)."""
    along = (b - a) / length[:, None]
    across = along[:, ::-1] * [-1, 1]
    head = np.minimum(4 * width, 0.6 * length)
    neck, zero = length - head, np.zeros_like(length)
    shaft, barb = np.minimum(width / 2, head / 6), head * 0.4
    forwards = np.stack([zero, neck, neck, length, neck, neck, zero], axis=1)[..., None]
    sideways = np.stack([-shaft, -shaft, -barb, zero, barb, shaft, shaft], axis=1)[..., None]
    return a[:, None] + forwards * along[:, None] + sideways * across[:, None]


@functools.cache
def font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SCALE)  # type: ignore[return-value]


def runs(text: str, size: float, rise: float = 0.0) -> Iterator[tuple[str, float, float]]:
    """The pieces of a line, each with its size and its rise above the base line.

    `_{..}` is a subscript, `^{..}` a superscript. A minus is a piece of its own.
    """
    for mark, script, plain in re.findall(r"([_^])\{(.*?)\}|(\u2212|[^_^\u2212]+|[_^])", text):
        if mark:
            yield from runs(script, 0.7 * size, rise + size * {"^": 0.38, "_": -0.16}[mark])
        else:
            yield plain, size, rise


def text_width(text: str, size: float) -> float:
    return sum(run_width(piece, s) for piece, s, _ in runs(text, size))


def run_width(piece: str, size: float) -> float:
    return 0.62 * size if piece == MINUS else font(size).getlength(piece) / SCALE


class Figure:
    """A white page."""

    def __init__(self, width: float, height: float) -> None:
        size = (math.ceil(width) * SCALE, math.ceil(height) * SCALE)
        self.image = Image.new("RGB", size, "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, text: str, size: float = 14, color: str = INK, align: float = 0.0
    ) -> None:
        """A line of text on the base line y.

        With align = 0, 0.5 or 1, x is its left end, its middle or its right end.
        """
        x -= align * text_width(text, size)
        for piece, s, rise in runs(text, size):
            base = y - rise
            if piece == MINUS:  # the font has none
                bar = base - 0.3 * s
                self.rule(x + 0.08 * s, bar, x + 0.54 * s, bar, color, 0.075 * s)
            else:
                self.draw.text((x * SCALE, base * SCALE), piece, color, font(s), anchor="ls")
            x += run_width(piece, s)

    def rule(
        self, x_0: float, y_0: float, x_1: float, y_1: float, color: str = RULE, width: float = 1.0
    ) -> None:
        """A straight line from (x_0, y_0) to (x_1, y_1)."""
        ends = [x_0 * SCALE, y_0 * SCALE, x_1 * SCALE, y_1 * SCALE]
        self.draw.line(ends, color, round(width * SCALE))

    def put(self, image: Image.Image, x: float, y: float, frame: bool = True) -> None:
        """An image of the large size, with its upper left corner at (x, y)."""
        x, y = round(x) * SCALE, round(y) * SCALE
        self.image.paste(image, (x, y))
        if frame:
            box = [x - SCALE, y - SCALE, x + image.width + SCALE - 1, y + image.height + SCALE - 1]
            self.draw.rectangle(box, outline=RULE, width=SCALE)

    def reduced(self, smooth: bool = True) -> Image.Image:
        """The picture at its final size. With smooth=False large pixels keep their exact values."""
        method = Image.Resampling.LANCZOS if smooth else Image.Resampling.BOX
        return self.image.resize((self.image.width // SCALE, self.image.height // SCALE), method)

    def save(self, path: str | Path, smooth: bool = True) -> None:
        """Write a PNG of at most 256 colours, which takes a third of the bytes."""
        picture = self.reduced(smooth)
        few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        write(few, path, "PNG", optimize=True)


def write(image: Image.Image, path: str | Path, form: str, **options: object) -> None:
    """Write an image in the format `form`, in one move."""
    with in_one_move(Path(path)) as temporary:
        image.save(temporary, format=form, **options)


def table(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str] = (),
    labels: Sequence[Label] = (),
    gap: int = 12,
    margin: int = 20,
) -> Figure:
    """Pictures of one size in rows.

    Parameters
    ----------
    rows : the pictures, of the large size
    columns : a title above each column, or none
    labels : a label of a few lines at the left of each row, or none
    gap, margin : between the pictures, and around them; a gap of 2 or less leaves no frames
    """
    width, height = rows[0][0].width // SCALE, rows[0][0].height // SCALE
    widths = [18 + text_width(line, 15) for label in labels for line, _ in label]
    left, top = margin + max(widths, default=0), margin + (26 if columns else 0)
    across, down = max(map(len, rows)) * (width + gap) - gap, len(rows) * (height + gap) - gap
    figure = Figure(left + across + margin, top + down + margin)
    for j, title in enumerate(columns):
        figure.text(left + j * (width + gap) + width / 2, top - 13, title, 15, INK, align=0.5)
    for i, row in enumerate(rows):
        y = top + i * (height + gap)
        label = labels[i] if labels else ()
        for k, (line, color) in enumerate(label):
            below_middle = 5 + 21 * (k - (len(label) - 1) / 2)
            figure.text(margin, y + height / 2 + below_middle, line, 15, color)
        for j, picture in enumerate(row):
            figure.put(picture, left + j * (width + gap), y, frame=gap > 2)
    return figure
