"""A page to draw on, with Pillow alone: ranges of values, panels, text, and pictures in rows.

A Panel is a rectangle with coordinates of its own; whatever lies beyond its edge, and every number that is not finite,
is left out. A Figure is the page on which panels and text stand. Both are drawn SCALE times too large and reduced at
the end, which smooths dots, lines and letters alike; every length below is in pixels of the finished picture. Arrays
are NumPy arrays on the host. The same input gives the same bytes.
"""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lab.files import in_one_move

SCALE = 3
DATA, MODEL, EXACT = (
    "#1f4e79",
    "#d5600f",
    "#9a9a9a",
)  # blue and orange, which colour-blind readers too tell apart
INK, SOFT, RULE, CLOUD = "#222222", "#6b6b6b", "#d4d4d4", "#a9b4be"

Extent = tuple[float, float, float, float]  # x_low, x_high, y_low, y_high
Label = Sequence[tuple[str, str]]  # lines of text, each with its colour


class Axis(NamedTuple):
    """A range of values, on a linear or a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: np.ndarray, log: bool = False, margin: float = 0.05) -> "Axis":
        """Room for every value that the scale can show; a linear one starts at 0 where that costs less than half of it."""
        values = values[np.isfinite(values) & ((values > 0) | (not log))]
        low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
        if log:
            factor = (high / low) ** margin if high > low else 2.0
            return cls(low / factor, high * factor, log)
        room = margin * (high - low) if high > low else 0.5
        return cls(0.0 if 0 <= low < high / 2 else low - room, high + room)

    @np.errstate(all="ignore")
    def place(self, values: np.ndarray) -> np.ndarray:
        """0 at the low end, 1 at the high end; not finite where the value is not, or has no logarithm."""
        low, high, at = (
            np.log(v) if self.log else np.asarray(v, np.float64)
            for v in (self.low, self.high, values)
        )
        return (at - low) / (high - low)

    def ticks(self, most: int = 6) -> list[float]:
        """Steps of 1, 2 or 5 times a power of ten; on a logarithmic scale powers of ten, with 2 and 5 between few of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = math.ceil(len(decades) / most)
            ticks = [
                m * 10.0**k
                for k in decades
                if k % every == 0
                for m in ((1, 2, 5) if len(decades) <= 3 else (1,))
            ]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(ticks) > 1:
                return ticks
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step = next(
            m * power for m in (1, 2, 5, 10, 20) if (self.high - self.low) / (m * power) <= most
        )
        return [
            k * step
            for k in range(
                math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1
            )
        ]


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
        """Discs as of thin ink: n of them, one on another, cover 1 - (1 - alpha)^n of the paper."""
        width, height = self.image.size
        at = self.pixels(points)
        at = at[(np.abs(at) < 2 * max(width, height)).all(axis=1)].astype(
            np.int64
        )  # no NaN passes a comparison
        r = round(radius * SCALE)
        disc = (
            np.argwhere(np.hypot(*np.mgrid[-r : r + 1, -r : r + 1]) <= radius * SCALE) - r
        )  # (m, 2)
        x, y = (at[:, None] + disc).reshape(-1, 2).T
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        n = np.bincount(y[inside] * width + x[inside], minlength=width * height).reshape(
            height, width
        )
        cover = 255 * (1 - (1 - alpha) ** np.arange(n.max() + 1))  # for n = 0, 1, ...
        self.image.paste(color, mask=Image.fromarray(cover.round().astype(np.uint8)[n]))

    @np.errstate(all="ignore")
    def arrows(
        self, points: np.ndarray, vectors: np.ndarray, unit: float, color: str, width: float = 1.0
    ) -> None:
        """An arrow from each point of a `lattice`, 0.85 cells long for a vector of length `unit`, and for all longer ones."""
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
        for piece in np.split(at, np.flatnonzero(missing)):
            piece = piece[np.isfinite(piece).all(axis=1)].clip(-1e5, 1e5)
            if len(piece) > 1:
                self.draw.line(
                    [*map(tuple, piece)], fill=color, width=round(width * SCALE), joint="curve"
                )


def arrow_outlines(a: np.ndarray, b: np.ndarray, length: np.ndarray, width: float) -> np.ndarray:
    """Arrows of a shaft and a head as polygons, from a (n, 2) to b (n, 2): (n, 7, 2)."""
    along = (b - a) / length[:, None]
    across = along[:, ::-1] * [-1, 1]
    head = np.minimum(4 * width, 0.6 * length)
    neck, zero = length - head, np.zeros_like(length)
    shaft = np.minimum(width / 2, head / 6)
    forwards = np.stack([zero, neck, neck, length, neck, neck, zero], axis=1)[..., None]
    sideways = np.stack([-shaft, -shaft, -head * 0.4, zero, head * 0.4, shaft, shaft], axis=1)[
        ..., None
    ]
    return a[:, None] + forwards * along[:, None] + sideways * across[:, None]


@functools.cache
def font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SCALE)  # type: ignore[return-value]


def runs(text: str, size: float, rise: float = 0.0) -> Iterator[tuple[str, float, float]]:
    """The pieces of a line with their size and rise: `_{..}` is set lower, `^{..}` higher, and a minus stands alone."""
    for mark, script, plain in re.findall(r"([_^])\{(.*?)\}|(\u2212|[^_^\u2212]+|[_^])", text):
        if mark:
            yield from runs(script, 0.7 * size, rise + size * {"^": 0.38, "_": -0.16}[mark])
        else:
            yield plain, size, rise


def text_width(text: str, size: float) -> float:
    return sum(
        0.62 * s if piece == "\u2212" else font(s).getlength(piece) / SCALE
        for piece, s, _ in runs(text, size)
    )


class Figure:
    """A white page."""

    def __init__(self, width: float, height: float) -> None:
        self.image = Image.new(
            "RGB", (math.ceil(width) * SCALE, math.ceil(height) * SCALE), "white"
        )
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, text: str, size: float = 14, color: str = INK, align: float = 0.0
    ) -> None:
        """A line of text on the base line y; align is 0 where x is its left end, 0.5 its middle, 1 its right end."""
        x -= align * text_width(text, size)
        for piece, s, rise in runs(text, size):
            if piece == "\u2212":  # the font has no minus
                self.rule(
                    x + 0.08 * s,
                    y - rise - 0.3 * s,
                    x + 0.54 * s,
                    y - rise - 0.3 * s,
                    color,
                    0.075 * s,
                )
            else:
                self.draw.text((x * SCALE, (y - rise) * SCALE), piece, color, font(s), anchor="ls")
            x += text_width(piece, s)

    def rule(
        self, x_0: float, y_0: float, x_1: float, y_1: float, color: str = RULE, width: float = 1.0
    ) -> None:
        self.draw.line(
            [x_0 * SCALE, y_0 * SCALE, x_1 * SCALE, y_1 * SCALE], color, round(width * SCALE)
        )

    def put(self, image: Image.Image, x: float, y: float, frame: bool = True) -> None:
        """An image of the large size, with its upper left corner at (x, y)."""
        x, y = round(x) * SCALE, round(y) * SCALE
        self.image.paste(image, (x, y))
        if frame:
            box = [x - SCALE, y - SCALE, x + image.width + SCALE - 1, y + image.height + SCALE - 1]
            self.draw.rectangle(box, outline=RULE, width=SCALE)

    def reduced(self, smooth: bool = True) -> Image.Image:
        """The finished picture; not smooth, a picture made of large pixels keeps their exact values."""
        method = Image.Resampling.LANCZOS if smooth else Image.Resampling.BOX
        return self.image.resize((self.image.width // SCALE, self.image.height // SCALE), method)

    def save(self, path: str | Path, smooth: bool = True) -> None:
        """As a PNG of at most 256 colours, which takes a third of the bytes."""
        write(
            self.reduced(smooth).quantize(
                256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
            ),
            path,
            "PNG",
            optimize=True,
        )


def write(image: Image.Image, path: str | Path, form: str, **options: object) -> None:
    with in_one_move(Path(path)) as temporary:
        image.save(temporary, format=form, **options)


def table(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str] = (),
    labels: Sequence[Label] = (),
    gap: int = 12,
    margin: int = 20,
) -> Figure:
    """Pictures of one size in rows, a title above each column and a label of a few lines at the left of each row."""
    width, height = rows[0][0].width // SCALE, rows[0][0].height // SCALE
    left = margin + max(
        [18 + text_width(line, 15) for label in labels for line, _ in label], default=0
    )
    top = margin + (26 if columns else 0)
    figure = Figure(
        left + max(map(len, rows)) * (width + gap) - gap + margin,
        top + len(rows) * (height + gap) - gap + margin,
    )
    for j, title in enumerate(columns):
        figure.text(left + j * (width + gap) + width / 2, top - 13, title, 15, INK, align=0.5)
    for i, row in enumerate(rows):
        y = top + i * (height + gap)
        for k, (line, color) in enumerate(labels[i] if labels else ()):
            figure.text(
                margin, y + height / 2 + 5 + 21 * (k - (len(labels[i]) - 1) / 2), line, 15, color
            )
        for j, picture in enumerate(row):
            figure.put(picture, left + j * (width + gap), y, frame=gap > 2)
    return figure
