"""3 x 3 convolutions with a fifth of the products: Winograd's algorithms F(5, 3) and F(7, 3).

The definition is npdiff/nn/conv.py; this agrees with it to rounding. Take one dimension: m outputs
of a kernel w of three taps,

    y_i = sum over k of d_{i+k} w_k,    i = 0..m-1,    from n = m + 2 inputs d

A polynomial u of m coefficients times the polynomial w has n coefficients. They follow from its
values at n points, and the values of a product are the products of the values. Let V, (n, n), map
coefficients to values; V_m and V_3 are its first m and 3 columns:

    w u = V^-1 [(V_3 w) * (V_m u)],    n products instead of 3 m

For a fixed w this is a matrix acting on u, whose entry (i+k, i) is w_k. Its transpose acting on d
is y:

    y = A^T [(G w) * (B^T d)],    A = V_m, G = V_3, B^T = V^-T

Row p of B^T holds the coefficients of the polynomial that is 1 at point p and 0 at the others. More
points mean fewer products and more rounding: in float32 some 1e-6 of y's size with m = 5, 7e-6 with
m = 7.

In two dimensions each matrix acts on rows and on columns: n^2 products instead of 9 m^2, and over
channels each of the n^2 is a matrix product. Every step is linear in x and in w, so the backward
pass is the same steps transposed.

Sec. 4.1 and 4.3, Lavin & Gray 2016, arXiv:1509.09308.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from npdiff.backend import Array
from npdiff.fast.im2col import flipped
from npdiff.fast.layout import batch_first, pixel_sum, pixels_first
from npdiff.nn.ops import Cache, Grads

# The points are these, their negatives, and 0: of those tried, the ones that round least.
POINTS = {5: (1 / 2, 5 / 4, 3), 7: (1 / 2, 9 / 10, 3 / 2, 4)}


def matrices(m: int) -> tuple[Array, Array, Array]:
    """A^T (m, n), G (n, 3), B^T (n, n).

    Each row of G is scaled up by what the same row of B^T is scaled down: y stays, and rounding is
    least.
    """
    points = np.array([0, *POINTS[m], *(-p for p in POINTS[m])])
    a, g = (np.vander(points, coefficients, increasing=True) for coefficients in (m, 3))
    others = [np.delete(points, i) for i in range(m + 2)]
    lagrange = [
        np.poly(other)[::-1] / np.prod(p - other) for p, other in zip(points, others, strict=True)
    ]
    b_t = np.array(lagrange)
    norm_b, norm_g = (np.linalg.norm(rows, axis=1, keepdims=True) for rows in (b_t, g))
    size = np.sqrt(norm_b / norm_g)
    return a.T, g * size, b_t / size


MATRICES = {m: matrices(m) for m in POINTS}


def tile(height: int, width: int) -> int:
    """The m whose tiles of m x m outputs cover the image with the fewest products."""
    return min(MATRICES, key=lambda m: -(-height // m) * -(-width // m) * (m + 2) ** 2)


def both(matrix: Array, x: Array) -> Array:
    """The matrix acting on x's first two axes: matrix x matrix^T, where x is a matrix.

    matrix (M, N), x (N, N, ...) -> (M, M, ...).
    """
    matrix = matrix.astype(x.dtype)
    first = (matrix @ x.reshape(len(x), -1)).reshape(len(matrix), len(x), -1)  # (M, N, ...)
    return (matrix @ first).reshape(len(matrix), len(matrix), *x.shape[2:])


def from_tiles(matrix: Array, x: Array, m: int) -> Array:
    """The matrix acting on the rows and columns of the N x N pixels around each m x m tile.

    Pixels beyond the border are 0; there are B H/m W/m tiles.

    matrix (M, N), x (B, H, W, C) -> (M, M, tiles, C).
    """
    batch, height, width, channels = x.shape
    matrix, down, across = matrix.astype(x.dtype), -(-height // m), -(-width // m)
    size, pad, run = matrix.shape[1], (matrix.shape[1] - m) // 2, batch * channels
    padded = np.zeros((m * down + 2 * pad, m * across + 2 * pad, run), x.dtype)
    padded[pad : pad + height, pad : pad + width] = pixels_first(x)
    row, pixel, item = padded.strides
    windows = as_strided(padded, (down, size, padded.shape[1] * run), (m * row, row, item))
    rows = matrix @ windows  # (down, M, W + 2 pad, B C), the last two as one axis
    shape = down, len(matrix), across, size, run
    windows = as_strided(rows, shape, (*rows.strides[:2], m * pixel, pixel, item))
    out = np.empty((len(matrix), len(matrix), down, across, run), x.dtype)
    np.matmul(matrix, windows, out=out.transpose(2, 0, 3, 1, 4))
    return out.reshape(len(matrix), len(matrix), -1, channels)


def to_tiles(matrix: Array, x: Array, batch: int, height: int, width: int) -> Array:
    """The matrix acting on x's first two axes gives the m x m pixels of each tile.

    matrix (m, N), x (N, N, tiles, C) -> (B, H, W, C).
    """
    m, n = matrix.shape
    matrix, down, across = matrix.astype(x.dtype), -(-height // m), -(-width // m)
    rows = (matrix @ x.reshape(n, -1)).reshape(m, n, down, across, -1)
    y = np.empty((down, m, across, m, rows.shape[-1]), x.dtype)
    np.matmul(matrix, rows.transpose(0, 2, 3, 1, 4), out=y.transpose(1, 0, 2, 3, 4))
    return batch_first(y.reshape(m * down, m * across, -1)[:height, :width], batch)


def convolve(x: Array, w: Array) -> tuple[Array, Array]:
    """x convolved with w, and d = B^T (tiles of x) B for the backward pass.

    x (B, H, W, I), w (3, 3, I, O) -> y (B, H, W, O), d (n, n, tiles, I).
    """
    a_t, g, b_t = MATRICES[tile(*x.shape[1:3])]
    d = from_tiles(b_t, x, len(a_t))
    return to_tiles(a_t, d @ both(g, w), *x.shape[:3]), d


def conv2d_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """As conv.conv2d_forward, for kernels of 3 x 3 and stride 1 alone."""
    y, d = convolve(x, w)
    return y + b, (d, w)


def conv2d_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dw = G^T [d^T (A (tiles of dL/dy) A^T)] G, the forward pass's steps transposed.

    dL/dx = dL/dy convolved with the flipped kernel.
    """
    d, w = cache
    a_t, g, _ = MATRICES[len(d) - 2]
    grad_m = from_tiles(a_t.T, grad_y, len(a_t))  # (n, n, tiles, O)
    grad_w = both(g.T, d.swapaxes(2, 3) @ grad_m)  # (3, 3, I, O)
    grad_x, _ = convolve(grad_y, flipped(w))
    return grad_x, {"w": grad_w, "b": pixel_sum(grad_y).sum(axis=0)}
