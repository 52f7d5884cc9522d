"""How good are drawn digits? Figures that mean something beside those of real digits in their place.

A set of images is x of shape (N, 28, 28), uint8; features are those of demos/_classifier.py.
"""

from collections.abc import Iterable

import numpy as np

PIXELS = np.float32(255)


def frechet(a: np.ndarray, b: np.ndarray) -> float:  # a (N, F), b (M, F), N and M at least 2
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): the squared distance between normals of the features' means and covariances.

    Eq. (6), Heusel et al. 2017, arXiv:1706.08500. With r_a = C_a^(1/2) and r_b = C_b^(1/2), C_a C_b has the eigenvalues of
    r_a C_b r_a = (r_a r_b)(r_a r_b)^T, which are the squares of the singular values of r_a r_b: these sum to the root's trace.
    0 where both normals agree; of two finite sets of one law it is positive: see `frechet_floor`.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    C_a, C_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    trace_of_root = np.linalg.svd(root(C_a) @ root(C_b), compute_uv=False).sum()
    apart = a.mean(axis=0) - b.mean(axis=0)
    return float(apart @ apart + np.trace(C_a) + np.trace(C_b) - 2 * trace_of_root)


def root(C: np.ndarray) -> np.ndarray:  # (F, F) -> (F, F)
    """C^(1/2) = u diag(w)^(1/2) u^T, for the symmetric C = u diag(w) u^T; w is at least 0, and what rounding takes below is put at 0."""
    w, u = np.linalg.eigh(C)
    return u * np.sqrt(np.maximum(w, 0)) @ u.T


def frechet_floor(
    train_features: np.ndarray,
    train_label: np.ndarray,
    test_features: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    draws: int = 5,
) -> tuple[float, float]:
    """Mean and standard deviation, over `draws`, of the distance of training digits from the test set: what perfect samples reach.

    Every draw has as many digits of each class as `label` has, or all where the training set has fewer.
    """

    def draw() -> np.ndarray:
        rows = [
            rng.permutation(np.flatnonzero(train_label == c))[:count]
            for c, count in zip(*np.unique(label, return_counts=True), strict=True)
        ]
        return train_features[np.concatenate(rows)]

    values = [frechet(draw(), test_features) for _ in range(draws)]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def histogram_error(classes: np.ndarray, reference: np.ndarray) -> float:  # (N,), (M,) integers
    """The largest |share of class c in `classes` - share of c in `reference`| over all c."""
    size = 1 + max(classes.max(), reference.max())
    shares = [np.bincount(label, minlength=size) / len(label) for label in (classes, reference)]
    return float(np.abs(shares[0] - shares[1]).max())


def nearest(
    x: np.ndarray, train_x: np.ndarray, rows: int = 1000, columns: int = 8000
) -> tuple[np.ndarray, np.ndarray]:
    """The distance min over j of |x_i - y_j|, for y = train_x and pixels in 0..1, and that j: (N,) float32, (N,).

    |x - y|^2 = |x|^2 - 2 x.y + |y|^2, by products of blocks of `rows` x and `columns` y. That difference of large numbers only
    finds j; the distance is then computed as it is written.
    """
    index = np.empty(len(x), np.intp)
    for start in range(0, len(x), rows):
        index[start : start + rows] = nearest_index(
            as_vectors(x[start : start + rows]), train_x, columns
        )
    pairs = (slice(start, start + rows) for start in range(0, len(x), rows))
    distance = [
        np.linalg.norm(as_vectors(x[i]) - as_vectors(train_x[index[i]]), axis=1) for i in pairs
    ]
    return np.concatenate(distance), index


def nearest_index(
    x: np.ndarray, train_x: np.ndarray, columns: int
) -> np.ndarray:  # x (N, D) float32 -> (N,)
    """argmin over j of |y_j|^2 - 2 x.y_j, to which |x|^2 adds the same for every j."""
    best, index = np.full(len(x), np.inf, np.float32), np.zeros(len(x), np.intp)
    for start in range(0, len(train_x), columns):
        y = as_vectors(train_x[start : start + columns])  # (columns, D)
        value = (-2 * x) @ y.T  # (N, columns)
        value += np.einsum("jd,jd->j", y, y)
        j = value.argmin(axis=1)
        lowest = value[np.arange(len(x)), j]
        index = np.where(lowest < best, start + j, index)
        best = np.minimum(lowest, best)
    return index


def as_vectors(x: np.ndarray) -> np.ndarray:  # (N, 28, 28) uint8 -> (N, 784) float32 in 0..1
    return x.reshape(len(x), -1) / PIXELS


def labels_in_proportion(
    train_label: np.ndarray, n: int, classes: Iterable[int] | None = None
) -> np.ndarray:
    """n labels in rising order, each class of `classes` (all, if None) as often as in the training set, rounded so that they sum to n.

    Class c has the quota n N_c / (sum of N_c), rounded down; what is then missing goes to the largest remainders, one each, and
    among equal ones to the smaller c.

    Raises
    ------
    ValueError
        For a class that the training set does not have.
    """
    present, N = np.unique(train_label, return_counts=True)
    chosen = present if classes is None else np.unique(np.fromiter(classes, int))
    if not len(chosen) or not np.isin(chosen, present).all():
        raise ValueError(
            f"classes must be among those of the training digits, {present.tolist()}, got {chosen.tolist()}"
        )
    N = N[np.isin(present, chosen)]
    count, remainder = np.divmod(n * N, N.sum())  # in whole numbers, so equal remainders are equal
    count[np.argsort(-remainder, kind="stable")[: n - count.sum()]] += 1
    return np.repeat(chosen.astype(np.int64), count)
