"""How good are drawn digits? Each figure is to be read beside the same one for real digits.

Images x are uint8 of shape (N, 28, 28). Features (N, F) are those of classifier.py.
"""

from collections.abc import Iterable

import numpy as np

PIXELS = np.float32(255)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance, squared, between the normal distributions fitted to two sets.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), with means m and covariances C.

    Eq. (6), Heusel et al. 2017, arXiv:1706.08500. It is 0 where the two normals agree, and positive
    on average for two finite sets of one distribution: see `frechet_floor`.

    Parameters
    ----------
    a, b : features of shape (N, F) and (M, F), N and M at least 2
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    C_a, C_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    # With r_a = C_a^(1/2) and r_b = C_b^(1/2), C_a C_b has the eigenvalues of r_a C_b r_a =
    # (r_a r_b)(r_a r_b)^T, the squared singular values of r_a r_b. So the trace is their sum.
    trace_of_root = np.linalg.svd(root(C_a) @ root(C_b), compute_uv=False).sum()
    difference = a.mean(axis=0) - b.mean(axis=0)
    return float(difference @ difference + np.trace(C_a) + np.trace(C_b) - 2 * trace_of_root)


def root(C: np.ndarray) -> np.ndarray:
    """C^(1/2) = u diag(w)^(1/2) u^T, for the covariance C = u diag(w) u^T: (F, F) -> (F, F)."""
    w, u = np.linalg.eigh(C)
    return u * np.sqrt(np.maximum(w, 0)) @ u.T  # rounding can make a w of 0 negative


def frechet_floor(
    train_features: np.ndarray,
    train_label: np.ndarray,
    test_features: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    draws: int = 5,
) -> tuple[float, float]:
    """The Frechet distance of training digits to the test set, which perfect samples would have.

    Mean and standard deviation over `draws` random sets of training digits. Each set has as many
    digits of each class as `label` has, or all if the training set has fewer.
    """
    classes, counts = np.unique(label, return_counts=True)

    def draw() -> np.ndarray:
        rows = [
            rng.permutation(np.flatnonzero(train_label == c))[:count]
            for c, count in zip(classes, counts, strict=True)
        ]
        return train_features[np.concatenate(rows)]

    values = [frechet(draw(), test_features) for _ in range(draws)]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def histogram_error(classes: np.ndarray, reference: np.ndarray) -> float:
    """max over c of |share of class c in `classes` - its share in `reference`|: ints (N,), (M,)."""
    size = 1 + max(classes.max(), reference.max())
    shares = [np.bincount(label, minlength=size) / len(label) for label in (classes, reference)]
    return float(np.abs(shares[0] - shares[1]).max())


def nearest(
    x: np.ndarray, train_x: np.ndarray, rows: int = 1000, columns: int = 8000
) -> tuple[np.ndarray, np.ndarray]:
    """For each image the distance to the nearest training image, and the index of that image.

    distance_i = min over j of |x_i - y_j|, with y = train_x and pixels in 0..1.

    Returns
    -------
    distance : float32 of shape (N,)
    index : ints of shape (N,)
    """
    index, distance = np.empty(len(x), np.intp), np.empty(len(x), np.float32)
    for start in range(0, len(x), rows):
        block = slice(start, start + rows)
        vectors = as_vectors(x[block])
        index[block] = nearest_index(vectors, train_x, columns)
        # The index came from a difference of large numbers. The distance is computed directly.
        distance[block] = np.linalg.norm(vectors - as_vectors(train_x[index[block]]), axis=1)
    return distance, index


def nearest_index(x: np.ndarray, train_x: np.ndarray, columns: int) -> np.ndarray:
    """argmin over j of |x_i - y_j|^2, by matrix products with `columns` y at a time.

    |x - y|^2 = |x|^2 - 2 x.y + |y|^2, and |x|^2 is the same for every j.

    x (N, D) float32 in 0..1, train_x (M, 28, 28) uint8 -> (N,).
    """
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


def as_vectors(x: np.ndarray) -> np.ndarray:
    """(N, 28, 28) uint8 -> (N, 784) float32 in 0..1."""
    return x.reshape(len(x), -1) / PIXELS


def labels_in_proportion(
    train_label: np.ndarray, n: int, classes: Iterable[int] | None = None
) -> np.ndarray:
    """n labels in rising order, the classes in the proportions of the training set.

    The quota of class c is n N_c / (sum of N_c), with N_c its number of training digits. It is
    rounded down. The labels still missing go one each to the classes with the largest remainders,
    and among equal remainders to the smaller c.

    Parameters
    ----------
    classes : the classes to use; by default all

    Raises
    ------
    ValueError
        For a class that the training set does not have.
    """
    present, N = np.unique(train_label, return_counts=True)
    chosen = present if classes is None else np.unique(np.fromiter(classes, int))
    if not len(chosen) or not np.isin(chosen, present).all():
        raise ValueError(
            f"classes must be among those of the training digits, {present.tolist()}, "
            f"got {chosen.tolist()}"
        )
    N = N[np.isin(present, chosen)]
    # In whole numbers, so that equal remainders compare equal.
    count, remainder = np.divmod(n * N, N.sum())
    count[np.argsort(-remainder, kind="stable")[: n - count.sum()]] += 1
    return np.repeat(chosen.astype(np.int64), count)
