"""How good are samples of points in the plane?

Each figure comes with the same one for real data in the samples' place. Samples can fall on either
side of it, and a perfect sampler has the same on average.
"""

import numpy as np

from npdiff.exact import SwissRoll


def mean_distance(x: np.ndarray, y: np.ndarray, same: bool = False) -> float:
    """The mean of |x_i - y_j| over all pairs: (N, d), (M, d) -> a float.

    Where x and y are the same set, pass same=True: the pairs with i = j are then left out.
    """
    total = 0.0
    pieces = max(1, len(x) * len(y) // 2**18)  # so small that a piece stays in the cache
    for rows in np.array_split(x, pieces):
        squares = sum(np.subtract.outer(rows[:, i], y[:, i]) ** 2 for i in range(x.shape[1]))
        total += float(np.sqrt(squares).sum(dtype=np.float64))
    return total / (len(x) * (len(y) - same))


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, estimated without bias.

    Where x and y have the same distribution it is 0 on average, and negative half of the time. The
    estimate is a U-statistic: within a set, the distance of a point to itself is left out.
    Szekely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018.

    Parameters
    ----------
    x, y : arrays of shape (N, d) and (M, d), N and M at least 2
    """
    return 2 * mean_distance(x, y) - mean_distance(x, x, same=True) - mean_distance(y, y, same=True)


def real_against_real(sets: list[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation of the energy distance between two sets of real points.

    A perfect sampler has the same on average. All pairs of these sets are taken, and the mean
    distance within each set is computed once.
    """
    within = [mean_distance(x, x, same=True) for x in sets]
    values = [
        2 * mean_distance(sets[i], sets[j]) - within[i] - within[j]
        for i in range(len(sets))
        for j in range(i)
    ]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def distance_to_curve(x: np.ndarray, roll: SwissRoll, nodes: int = 4000) -> np.ndarray:
    """The distance of each point to the curve in the middle of the roll: (N, 2) -> (N,).

    4000 nodes along the curve lie a hundredth of the roll's noise apart.
    """
    u = np.sqrt(np.linspace(roll.U_MIN**2, roll.U_MAX**2, nodes))  # nearly equal arc lengths
    curve = roll.curve(u).astype(x.dtype)
    squares = [
        sum(np.subtract.outer(rows[:, i], curve[:, i]) ** 2 for i in range(2)).min(axis=1)
        for rows in np.array_split(x, max(1, len(x) * nodes // 2**18))
    ]
    return np.sqrt(np.concatenate(squares))
