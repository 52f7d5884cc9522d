"""3 x 3 convolutions with a quarter of the products: Winograd's F(4, 3), on NumPy. A reader can skip this file.

The definition is npdiff/nn/conv.py, and this agrees with it to rounding. In one dimension, four neighbouring outputs y of a
kernel w of three taps depend on six inputs d. They come from the values of polynomials at six points, 0, 1, -1, 2, -2 and
infinity: G w are the values of the kernel's, B^T d those of the input's, and A^T leads from their products back to the outputs:

    y = A^T [(G w) * (B^T d)],    6 products in the place of 12

In two dimensions each matrix acts on rows and on columns: 36 products in the place of 144 for 4 x 4 outputs, and over channels
each of the 36 is a matrix product. Every step is linear in x and in w, so the backward pass is the same steps transposed.
Sec. 4.1 and 4.3, Lavin & Gray 2016, arXiv:1509.09308.
"""

from typing import Any

import numpy as np

from npdiff.backend import Array
from npdiff.nn import conv
from npdiff.nn.ops import Cache, Grads

TILE = 4
B_T = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
)  # (6, 6)
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24  # (6, 3)
A_T = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])  # (4, 6)
FEWEST_CHANNELS = 16  # with fewer, the plain convolution is as fast


def both(matrix: Array, x: Array) -> Array:  # matrix (M, N), x (N, N, ...) -> (M, M, ...)
    """The matrix acting on x's first axis and on its second: matrix x matrix^T, where x is a matrix."""
    matrix = matrix.astype(x.dtype)
    first = (matrix @ x.reshape(len(x), -1)).reshape(len(matrix), len(x), -1)  # (M, N, ...)
    return (matrix @ first).reshape(len(matrix), len(matrix), *x.shape[2:])


def tiles(x: Array, size: int) -> Array:  # x (B, H, W, C) -> (size, size, tiles, C), with B H/4 W/4 tiles, rounded up
    """Row k, column l of the size x size pixels around each 4 x 4 tile; zeros beyond the border."""
    batch, height, width, channels = x.shape
    down, across, pad = -(-height // TILE), -(-width // TILE), (size - TILE) // 2
    padded = np.zeros((batch, TILE * down + 2 * pad, TILE * across + 2 * pad, channels), x.dtype)
    padded[:, pad : pad + height, pad : pad + width] = x
    image, row, pixel, item = padded.strides
    strides = (row, pixel, image, TILE * row, TILE * pixel, item)
    windows = np.lib.stride_tricks.as_strided(padded, (size, size, batch, down, across, channels), strides)
    return windows.reshape(size, size, -1, channels)


def convolve(x: Array, w: Array) -> tuple[Array, Array]:  # x (B, H, W, I), w (3, 3, I, O) -> y (B, H, W, O), d (6, 6, tiles, I)
    """conv.convolve(x, w), and d = B^T (tiles of x) B for the backward pass."""
    batch, height, width, _ = x.shape
    down, across = -(-height // TILE), -(-width // TILE)
    d = both(B_T, tiles(x, TILE + 2))
    y = both(A_T, d @ both(G, w)).reshape(TILE, TILE, batch, down, across, -1)
    y = y.transpose(2, 3, 0, 4, 1, 5).reshape(batch, TILE * down, TILE * across, -1)
    return y[:, :height, :width], d


def conv2d_forward(x: Array, w: Array, b: Array, stride: int = 1) -> tuple[Array, Cache]:
    """As conv.conv2d_forward, which also takes what this one does not pay for."""
    if stride > 1 or len(w) != 3 or min(w.shape[2:]) < FEWEST_CHANNELS:
        y, cache = conv.conv2d_forward(x, w, b, stride)
        return y, (None, cache)
    y, d = convolve(x, w)
    return y + b, (d, w)


def conv2d_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dw = G^T [d^T (A (tiles of dL/dy) A^T)] G: the forward pass's steps, transposed; dL/dx as in conv.conv2d_backward."""
    d, w = cache
    if d is None:
        return conv.conv2d_backward(grad_y, w)
    grad_m = both(A_T.T, tiles(grad_y, TILE))  # (6, 6, tiles, O)
    grad_w = both(G.T, d.swapaxes(2, 3) @ grad_m)  # (3, 3, I, O)
    grad_b = conv.pixel_sum(grad_y).sum(axis=0)
    grad_x, _ = convolve(grad_y, w[::-1, ::-1].swapaxes(2, 3))
    return grad_x, {"w": grad_w, "b": grad_b}


def pixel_sum(x: Array) -> Array:  # x (B, H, W, C) -> (B, C)
    """conv.pixel_sum as a product with ones, three times as fast."""
    return (np.ones((1, x.shape[1] * x.shape[2]), x.dtype) @ x.reshape(len(x), -1, x.shape[3]))[:, 0]


def put_into(net: Any) -> None:
    """These in the place of the plain ones, for a network's module: in a process that no one steps through."""
    net.conv2d_forward, net.conv2d_backward = conv2d_forward, conv2d_backward
    conv.pixel_sum = pixel_sum
