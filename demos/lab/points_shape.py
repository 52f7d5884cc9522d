"""What in a set of points keeps a network from learning it: outliers, heavy tails, far clusters.

A network is trained on points of unit variance. Where a few points make up the variance, the
others are crowded together; and what is narrower than the least noise of the schedule is blurred.

Measured on 2,000 points of N(0, I), one of them moved to (1e4, 1e4), after 2,000 steps of 256
points: the samples' quartiles of x were (-0.59, 1.25) scaled by the standard deviation, and
(-0.71, 0.67) by the interquartile range, for the right (-0.72, 0.68). Cauchy points: (-2.3, 2.2)
and (-1.1, 1.1), for (-0.98, 0.96).
"""

from typing import NamedTuple

import numpy as np

FAR = 30.0  # normal points come to 4 interquartile ranges, ten of them to 9; t with 3 degrees to 20
NARROW = 0.01  # of the standard deviation: the noise at t = 1 of the linear schedule
LOOKED_AT = 1000  # points whose neighbours are looked for


class Shape(NamedTuple):
    """Figures of points in the plane, the first two for each axis.

    std          the standard deviation
    farthest     the largest |x - median|, over the interquartile range
    local        the spread of a point's neighbours along an axis, over the standard deviation: the
                 median over points of the median |dx| among the twentieth of all that is nearest;
                 the smaller of the two axes, and 0 where most neighbours agree in one of them
    """

    std: np.ndarray
    farthest: np.ndarray
    local: float


def of(x: np.ndarray) -> Shape:
    """The figures of points (N, 2), N at least 2, which differ in both axes."""
    std = x.std(axis=0)
    low, median, high = np.percentile(x, [25, 50, 75], axis=0)
    width = np.where(high > low, high - low, std)  # half of the points may agree in an axis
    farthest = np.abs(x - median).max(axis=0) / width
    some = np.random.default_rng(0).permutation(x)[:LOOKED_AT] / std
    apart = np.abs(some[:, None] - some)  # (n, n, 2)
    count = max(2, len(some) // 20)
    nearest = np.argsort((apart**2).sum(axis=2), axis=1)[:, 1 : 1 + count]
    neighbours = np.take_along_axis(apart, nearest[:, :, None], axis=1)  # (n, count, 2)
    local = np.median(np.median(neighbours, axis=1), axis=0)
    return Shape(std, farthest, float(local.min()))


def notes(shape: Shape, scale: str) -> list[str]:
    """The figures in a line; and a line for each thing that hinders learning, with its remedy."""
    (std_x, std_y), (far_x, far_y) = shape.std, shape.farthest
    lines = [
        f"standard deviation ({std_x:.4g}, {std_y:.4g}); largest |x - median| over the "
        f"interquartile range ({far_x:.3g}, {far_y:.3g})"
    ]
    farthest = shape.farthest.max()
    if farthest > FAR and scale == "std":
        lines.append(
            f"warning: outliers or heavy tails: a point lies {farthest:.3g} interquartile ranges "
            "from the median, and such points crowd the others together; remove them, or use "
            "--scale robust"
        )
    elif farthest > FAR:
        lines.append(
            f"scaled by the interquartile range; few samples will reach the farthest points, "
            f"{farthest:.3g} times as far from the median"
        )
    elif 0 < shape.local < NARROW:
        lines.append(
            f"warning: narrow parts far apart: neighbours differ by {shape.local:.1g} standard "
            f"deviations, and noise of {NARROW:g} blurs them, so they come out too wide; split "
            "the file, a run for each part"
        )
    return lines
