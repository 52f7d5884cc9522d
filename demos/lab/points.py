"""Sets of points in the plane: the named ones, and those of a user's file.

Training data have about zero mean and unit variance. Where the density of a set is known in closed
form, `Points.exact` holds it: the swiss roll, and mixtures along other curves. Elsewhere it is
None, and no exact figures are given.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lab import points_file, points_shape
from lab.errors import UserError
from npdiff.exact import Mixture, SwissRoll, gauss_legendre

Draw = Callable[[int, np.random.Generator], np.ndarray]
IQR_OF_NORMAL = 1.348980  # the interquartile range of N(0, 1)


@dataclass
class Points:
    """A set of points in the plane.

    sample    sample(n, rng): training data, float32 of shape (n, 2), in training coordinates
    fresh     fresh(n, rng): data to judge by, of the same kind, never trained on
    sets      sets(n, rng): several disjoint sets of n real points, the first of them fresh
    exact     the density of the data, or None where it is not known
    aside     how many different points `fresh` has, or None where it has no end
    centre, scale    user coordinates = centre + scale * training coordinates
    digest    a hash of the points of a file, by which a later run knows them again
    notes     lines for the user about the points of a file
    """

    name: str
    sample: Draw
    fresh: Draw
    sets: Callable[[int, np.random.Generator], list[np.ndarray]]
    exact: Mixture | None = None
    aside: int | None = None
    centre: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0
    digest: str = ""
    notes: list[str] = field(default_factory=list)

    def to_user(self, x: np.ndarray) -> np.ndarray:
        """x = centre + scale x, in the user's coordinates.

        The result is float32, or float64 where float32 has too few digits to tell points apart.
        """
        x = self.centre + self.scale * x
        coarse = np.spacing(np.abs(np.float32(self.centre))) > 1e-3 * np.float32(self.scale)
        return x.astype(np.float64 if np.any(coarse) else np.float32)


def load(name: str, digest: str = "", scale: str = "std") -> Points:
    """The set of this name, one of NAMES, or the points of a .npy or .csv file.

    For `scale` see `from_file`. UserError for anything else, and for a file whose points do not
    have the `digest` of an earlier run.
    """
    if name in NAMES:
        return NAMES[name]()
    if not name.lower().endswith((".npy", ".csv")):
        raise UserError(
            f"--data {name}: no set has this name; use one of {', '.join(NAMES)}, or a .npy or "
            ".csv file of 2-D points"
        )
    points = from_file(Path(name), scale)
    if digest and points.digest != digest:
        raise UserError(
            f"{name}: its points have changed since the checkpoint was made; start again without "
            "--resume, or into another --out"
        )
    return points


# The named sets


def endless(name: str, sample: Draw, exact: Mixture | None = None) -> Points:
    """A set of which any number of points can be drawn."""

    def sets(n: int, rng: np.random.Generator) -> list[np.ndarray]:
        return [sample(n, rng) for _ in range(8)]

    return Points(name, sample, fresh=sample, sets=sets, exact=exact)


def swiss_roll() -> Points:
    roll = SwissRoll(noise=0.5)
    return endless("swiss_roll", roll.sample, roll)


def moons() -> Points:
    """Two half circles of radius 1, thickened by N(0, 0.1^2 I).

    The second one is upside down and moved by (1, 0.5).
    """
    angle, weights = on_interval(0, math.pi)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    lower = [1, 0.5] - upper
    weights = np.concatenate([weights, weights])
    exact = thick_curve(weights, np.concatenate([upper, lower]), noise=0.1)
    return endless("moons", exact.sample, exact)


def circles() -> Points:
    """Two circles about the origin, of radius 1 and 0.5, thickened by N(0, 0.06^2 I)."""
    angle, weights = on_interval(0, 2 * math.pi)
    outer = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    weights = np.concatenate([weights, weights])
    exact = thick_curve(weights, np.concatenate([outer, 0.5 * outer]), noise=0.06)
    return endless("circles", exact.sample, exact)


def eight_gaussians() -> Points:
    """Eight round Gaussians of standard deviation 0.1 on a circle of radius 1."""
    angle = np.arange(8) * math.pi / 4
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    exact = thick_curve(np.ones(8), centres, noise=0.1)
    return endless("8gaussians", exact.sample, exact)


def checkerboard() -> Points:
    """Uniform on the eight dark squares of a board of four by four.

    Its score under noise is not written out here, so it has no exact figures.
    """

    def sample(n: int, rng: np.random.Generator) -> np.ndarray:
        row = rng.integers(4, size=n)
        column = 2 * rng.integers(2, size=n) + row % 2
        corner = np.stack([column, row], axis=1) - 2
        return ((corner + rng.random((n, 2))) / math.sqrt(4 / 3)).astype(np.float32)

    return endless("checkerboard", sample)


NAMES: dict[str, Callable[[], Points]] = {
    "swiss_roll": swiss_roll,
    "moons": moons,
    "circles": circles,
    "8gaussians": eight_gaussians,
    "checkerboard": checkerboard,
}


def on_interval(low: float, high: float, panels: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a quadrature on (low, high), in equal panels: (16 panels,) each."""
    return gauss_legendre(np.linspace(low, high, panels + 1))


def thick_curve(weights: np.ndarray, curve: np.ndarray, noise: float) -> Mixture:
    """A mixture of N(point, noise^2 I) over the points of the curve.

    It is moved to zero mean, and scaled so that the mean of its two variances is 1.
    """
    weights = weights / weights.sum()
    offset = curve - weights @ curve
    scale = math.sqrt((weights @ offset**2).mean() + noise**2)
    covs = np.broadcast_to((noise / scale) ** 2 * np.eye(2), (len(weights), 2, 2))
    return Mixture(weights, offset / scale, covs)


# A user's points


def centre_and_width(path: Path, x: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """By what the axes of x (N, 2) are moved and scaled; UserError where they hardly spread."""
    centre, width = x.mean(axis=0), x.std(axis=0)
    if not (width > 1e-9 * np.abs(x).max(axis=0)).all():
        raise UserError(
            f"{path}: the points spread too little about ({centre[0]:g}, {centre[1]:g}) to tell "
            "them apart; they must differ in x and in y"
        )
    if scale == "std":
        return centre, width
    low, centre, high = np.percentile(x, [25, 50, 75], axis=0)
    width = (high - low) / IQR_OF_NORMAL
    if not (width > 1e-9 * np.abs(x).max(axis=0)).all():
        raise UserError(
            f"{path}: the interquartile range is ({high[0] - low[0]:g}, {high[1] - low[1]:g}), "
            "too small to scale by; use --scale std"
        )
    return centre, width


def from_file(path: Path, scale: str = "std") -> Points:
    """The points of a file, moved and scaled along each axis.

    To mean 0 and variance 1 with scale="std"; with scale="robust" to the median 0 and the
    interquartile range of N(0, 1), which outliers do not change. Every fifth point, in a fixed
    random order, is kept aside to judge by.
    """
    x = points_file.read(path)
    digest = hashlib.sha256(x.tobytes()).hexdigest()
    if len(x) < 10:
        raise UserError(
            f"{path}: {len(x)} points; at least 10 are needed, of which a fifth is kept aside to "
            "judge by"
        )
    centre, width = centre_and_width(path, x, scale)
    notes = points_shape.notes(points_shape.of(x), scale)
    x = ((x - centre) / width).astype(np.float32)
    x = x[np.random.default_rng(0).permutation(len(x))]
    fifth = len(x) // 5
    aside, trained = x[:fifth], x[fifth:]

    def sample(n: int, rng: np.random.Generator) -> np.ndarray:
        return trained[rng.integers(len(trained), size=n)]

    def fresh(n: int, rng: np.random.Generator) -> np.ndarray:
        return aside[rng.integers(fifth, size=n)] if n > fifth else rng.permutation(aside)[:n]

    def sets(n: int, rng: np.random.Generator) -> list[np.ndarray]:
        return [x[i * fifth : i * fifth + min(n, fifth)] for i in range(5)]

    return Points(
        str(path),
        sample,
        fresh,
        sets,
        aside=fifth,
        centre=centre,
        scale=width,
        digest=digest,
        notes=notes,
    )
