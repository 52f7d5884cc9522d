"""Points in the plane: the named sets, and a file of the user's own.

A `Points` draws training data of about zero mean and unit variance. Where the set has a closed form, `exact` holds it
(the swiss roll, and mixtures along other curves); where it has none `exact` is None, and nothing is made up.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npdiff.exact import Mixture, SwissRoll, gauss_legendre
from npdiff.kit.errors import UserError

Draw = Callable[[int, np.random.Generator], np.ndarray]


@dataclass
class Points:
    """A set of points in the plane: `sample` and `fresh` draw (n, 2) float32 arrays in the coordinates of training.

    sample    data to train on
    fresh     data to judge against, never trained on
    aside     how many different points `fresh` has, or None where it never ends
    sets      sets(n, rng): several sets of n real points that share none, the first of them fresh
    centre, scale    user coordinates = centre + scale * training coordinates
    digest    of the contents of a file, to know it again
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

    def to_user(self, x: np.ndarray) -> np.ndarray:
        """Training coordinates back in the user's: x = centre + scale x; in float64 where float32 has too few digits for it."""
        own = self.centre + self.scale * x
        coarse = np.spacing(np.abs(np.float32(self.centre))) > 1e-3 * np.float32(self.scale)
        return own.astype(np.float64 if np.any(coarse) else np.float32)


def points(name: str, digest: str = "") -> Points:
    """The set called `name`, one of NAMES, or the points of a .npy or .csv file. UserError for anything else.

    Where `digest` is given, of an earlier run, a file whose points are others is refused.
    """
    if name in NAMES:
        return NAMES[name]()
    if not name.lower().endswith((".npy", ".csv")):
        raise UserError(f"--data {name}: not a set of that name; take one of {', '.join(NAMES)}, or a .npy or .csv file of 2-D points")
    found = from_file(Path(name))
    if digest and found.digest != digest:
        raise UserError(
            f"{name}: its points have changed since the checkpoint was made; start anew without --resume, or into another --out"
        )
    return found


def endless(name: str, sample: Draw, exact: Mixture | None = None) -> Points:
    """A set that is drawn anew for every batch."""
    return Points(name, sample, sample, lambda n, rng: [sample(n, rng) for _ in range(8)], exact)


def swiss_roll() -> Points:
    roll = SwissRoll(noise=0.5)
    return endless("swiss_roll", roll.sample, roll)


def moons() -> Points:
    """Two half circles of radius 1, the second upside down and moved by (1, 0.5), both thickened by N(0, 0.1^2 I)."""
    angle, weights = on_interval(0, math.pi)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    exact = thick_curve(np.concatenate([weights, weights]), np.concatenate([upper, [1, 0.5] - upper]), noise=0.1)
    return endless("moons", exact.sample, exact)


def circles() -> Points:
    """Two circles about the origin, of radius 1 and 0.5, thickened by N(0, 0.06^2 I)."""
    angle, weights = on_interval(0, 2 * math.pi)
    outer = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    exact = thick_curve(np.concatenate([weights, weights]), np.concatenate([outer, 0.5 * outer]), noise=0.06)
    return endless("circles", exact.sample, exact)


def eight_gaussians() -> Points:
    """Eight round Gaussians of standard deviation 0.1 on a circle of radius 1."""
    angle = np.arange(8) * math.pi / 4
    exact = thick_curve(np.ones(8), np.stack([np.cos(angle), np.sin(angle)], axis=1), noise=0.1)
    return endless("8gaussians", exact.sample, exact)


def checkerboard() -> Points:
    """Uniform on the eight dark squares of a board of four by four. Its noised score is not written out here: no exact columns."""

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
    """Nodes and weights on (low, high), in equal panels: (16 panels,), (16 panels,)."""
    return gauss_legendre(np.linspace(low, high, panels + 1))


def thick_curve(weights: np.ndarray, curve: np.ndarray, noise: float) -> Mixture:
    """The curve's points, each widened to N(point, noise^2 I), moved and scaled to zero mean and a mean variance of 1."""
    weights = weights / weights.sum()
    offset = curve - weights @ curve
    scale = math.sqrt((weights @ offset**2).mean() + noise**2)
    return Mixture(weights, offset / scale, np.broadcast_to((noise / scale) ** 2 * np.eye(2), (len(weights), 2, 2)))


def from_file(path: Path) -> Points:
    """The user's points, each axis moved and scaled to mean 0 and variance 1; every fifth, in a fixed random order, is kept aside."""
    x = read(path)
    digest = hashlib.sha256(x.tobytes()).hexdigest()
    if len(x) < 10:
        raise UserError(f"{path}: {len(x)} points; at least 10 are needed, of which a fifth is kept aside to judge against")
    centre, scale = x.mean(axis=0), x.std(axis=0)
    if not (scale > 1e-9 * np.abs(x).max(axis=0)).all():
        raise UserError(
            f"{path}: the points spread too little about ({centre[0]:g}, {centre[1]:g}) to tell them apart; they must differ in x and in y"
        )
    x = ((x - centre) / scale).astype(np.float32)
    x = x[np.random.default_rng(0).permutation(len(x))]
    fifth = len(x) // 5
    aside, kept = x[:fifth], x[fifth:]

    def sample(n: int, rng: np.random.Generator) -> np.ndarray:
        return kept[rng.integers(len(kept), size=n)]

    def fresh(n: int, rng: np.random.Generator) -> np.ndarray:
        return aside[rng.integers(fifth, size=n)] if n > fifth else rng.permutation(aside)[:n]

    def sets(n: int, rng: np.random.Generator) -> list[np.ndarray]:
        return [x[i * fifth : i * fifth + min(n, fifth)] for i in range(5)]

    return Points(str(path), sample, fresh, sets, aside=fifth, centre=centre, scale=scale, digest=digest)


def read(path: Path) -> np.ndarray:
    """The file's points as float64 of shape (N, 2); UserError, naming the file and the line, for anything else."""
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}; give a .npy or .csv file of 2-D points")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; two numbers a line are needed")
    try:
        x = read_npy(path) if path.suffix.lower() == ".npy" else read_csv(path)
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: cannot be read as points ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != 2 or x.dtype.kind not in "fiu":
        shape = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else "an archive"
        raise UserError(f"{path}: holds {shape}; an array of numbers of shape (N, 2) is needed")
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise UserError(f"{path}: point {int(np.argmin(np.isfinite(x).all(axis=1))) + 1} is not finite; remove NaN and infinities")
    if np.abs(x).max(initial=0) > 1e30:
        raise UserError(f"{path}: holds {np.abs(x).max():g}; the largest number that can be worked with is 1e30")
    return x


def read_npy(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        return np.load(file, allow_pickle=False)


def read_csv(path: Path) -> np.ndarray:
    """Two numbers a line, split by commas, semicolons, tabs or blanks; a first line that is not numbers is a header."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file; two numbers a line are needed") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        separator = next((mark for mark in ",;" if mark in line), None)  # None: any blanks
        fields = line.split(separator)
        try:
            row = [float(field.replace("_", "x")) for field in fields]  # Python alone takes 1_0 for a number
        except ValueError:
            if not rows and number == 1:
                continue
            raise UserError(f"{path}, line {number}: {line.strip()[:40]!r} is not two numbers") from None
        if len(row) != 2:
            raise UserError(f"{path}, line {number}: {len(row)} numbers; two are needed, the x and y of a point")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no points in it; two numbers a line are needed")
    return np.array(rows)
