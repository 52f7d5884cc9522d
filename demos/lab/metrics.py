"""How good are samples, and how good could they be? Every figure comes with the one that real data reach."""

import numpy as np

from npdiff.exact import SwissRoll


def mean_distance(x: np.ndarray, y: np.ndarray, same: bool = False) -> float:
    """Mean of |x_i - y_j| over all pairs, or over the pairs i != j where x and y are the same set: (N, d), (M, d)."""
    total = 0.0
    for rows in np.array_split(x, max(1, x.shape[0] * y.shape[0] // 2**18)):  # in pieces that stay in cache
        squares = sum(np.subtract.outer(rows[:, i], y[:, i]) ** 2 for i in range(x.shape[1]))
        total += float(np.sqrt(squares).sum(dtype=np.float64))
    return total / (len(x) * (len(y) - same))


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, without bias: 0 on average, and negative half of the time, where x and y have one law.

    As a U-statistic: the pairs within a set leave out a point's distance to itself. Szekely & Rizzo 2013,
    doi:10.1016/j.jspi.2013.03.018. x has shape (N, d), y (M, d), N and M at least 2.
    """
    return 2 * mean_distance(x, y) - mean_distance(x, x, same=True) - mean_distance(y, y, same=True)


def real_against_real(sets: list[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation of the energy distance between two of these sets of real points: what no sampler can beat.

    Over all pairs of the sets, each set's own mean distance computed once.
    """
    within = [mean_distance(x, x, same=True) for x in sets]
    values = [2 * mean_distance(sets[i], sets[j]) - within[i] - within[j] for i in range(len(sets)) for j in range(i)]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def distance_to_curve(x: np.ndarray, roll: SwissRoll, nodes: int = 4000) -> np.ndarray:
    """Distance of each point to the middle of the roll: (N, 2) -> (N,). Nodes a hundredth of the roll's noise apart."""
    curve = roll.curve(np.sqrt(np.linspace(roll.U_MIN**2, roll.U_MAX**2, nodes))).astype(x.dtype)
    nearest = [
        sum(np.subtract.outer(rows[:, i], curve[:, i]) ** 2 for i in range(2)).min(axis=1)
        for rows in np.array_split(x, max(1, len(x) * nodes // 2**18))
    ]
    return np.sqrt(np.concatenate(nearest))
