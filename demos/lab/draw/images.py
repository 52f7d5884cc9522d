"""Grids of grey images as PNG files, and films as GIF files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from lab.draw.page import DATA, INK, MODEL, RULE, SCALE, Figure, table, write

COLORS = {"real": DATA, "drawn": MODEL}  # of these labels; others are black


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
    columns : the number of images in a row; the last row may be shorter
    column_labels, row_labels : one for each column and row, or none
    """
    labels = [[(label, COLORS.get(label, INK))] for label in row_labels]
    table(rows_of(images, columns, zoom), column_labels, labels, gap=2).save(path, smooth=False)


def strip(path: str | Path, images: np.ndarray, labels: Sequence[str] = (), zoom: int = 2) -> None:
    """Grey images in one row, as a PNG: uint8 of shape (N, H, W), a label above each, or none."""
    grid(path, images, len(images), labels, zoom=zoom)


def animation_images(
    path: str | Path, batches: Sequence[np.ndarray], ts: Sequence[int], columns: int, zoom: int = 2
) -> None:
    """Grey images on their way from x_T to x_0, as a GIF.

    Parameters
    ----------
    path : where the GIF is written
    batches : the frames, each uint8 of shape (N, H, W), laid out as in `grid`
    ts : the t of each frame, T first
    """
    frames = [table(rows_of(x, columns, zoom), gap=2, margin=0).image for x in batches]
    film(path, frames, ts)


def rows_of(images: np.ndarray, columns: int, zoom: int) -> list[list[Image.Image]]:
    """Grey images, uint8 of shape (N, H, W), in rows, every pixel a square of zoom x zoom."""
    if images.dtype != np.uint8 or images.ndim != 3 or not len(images):
        raise ValueError(
            f"images must be uint8 of shape (N, H, W), got {images.dtype} of shape {images.shape}"
        )
    large = images.repeat(zoom * SCALE, axis=1).repeat(zoom * SCALE, axis=2)
    rows = [large[i : i + columns] for i in range(0, len(large), columns)]
    return [[Image.fromarray(image) for image in row] for row in rows]


def film(path: str | Path, pictures: Sequence[Image.Image], ts: Sequence[int]) -> None:
    """A GIF of the pictures, the last one shown for two seconds.

    Below each stand its t, and a line that grows from the first picture to the last.
    """
    shades = [mix(color, np.linspace(0, 1, 16)) for color in (MODEL, INK)]  # oranges and greys
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(shades).tobytes())
    frames = []
    for i, (picture, t) in enumerate(zip(pictures, ts, strict=True)):
        width, height = picture.width // SCALE, picture.height // SCALE
        figure = Figure(width + 20, height + 44)
        figure.put(picture, 10, 10)
        figure.text(10, height + 33, f"t = {t}", 15)
        done = i / max(len(ts) - 1, 1)
        figure.rule(90, height + 28, width + 10, height + 28, RULE, 2)
        figure.rule(90, height + 28, 90 + done * (width - 80), height + 28, MODEL, 2)
        frames.append(figure.reduced().quantize(palette=palette, dither=Image.Dither.NONE))
    first, *rest = frames
    timing = dict(duration=[60] * len(rest) + [2000], loop=0)
    write(first, path, "GIF", save_all=True, append_images=rest, optimize=False, **timing)


def mix(color: str, shares: np.ndarray) -> np.ndarray:
    """The colour on white, a share in 0..1 of it: (n,) -> uint8 of shape (n, 3).

    A share that is NaN counts as 1.
    """
    shares = np.nan_to_num(shares, nan=1.0).clip(0, 1)[:, None]
    return (255 + shares * (np.array(ImageColor.getrgb(color)) - 255)).round().astype(np.uint8)
