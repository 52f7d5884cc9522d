"""The batch beside the channels in memory, on NumPy. A reader can skip this file.

An image x[b, i, j, c] whose memory is in the order i, j, b, c has the shape that it had, and NumPy's operators and functions take it
and hand its order on. But what is the same for all pixels, a mean, a gain, a scale, now meets B C numbers in a row instead
of C, a sum over pixels is a product with ones, and a matrix that acts on rows or columns of pixels acts on all channels and
images at once.
"""

import functools

import numpy as np

from npdiff.backend import Array
from npdiff.nn.ops import Cache, Grads


def pixels_first(x: Array) -> Array:  # x (B, H, W, C) -> (H, W, B C)
    """x in the order of this file: a view where its memory is in that order, else a copy."""
    return np.ascontiguousarray(x.transpose(1, 2, 0, 3)).reshape(*x.shape[1:3], -1)


def batch_first(x: Array, batch: int) -> Array:  # x (H, W, B C) -> (B, H, W, C)
    """The inverse of pixels_first: a view."""
    return x.reshape(*x.shape[:2], batch, -1).transpose(2, 0, 1, 3)


def pixel_sum(x: Array) -> Array:  # x (B, H, W, C) -> (B, C)
    """conv.pixel_sum as a product with ones."""
    rows = pixels_first(x).reshape(-1, len(x) * x.shape[3])
    return (np.ones(len(rows), x.dtype) @ rows).reshape(len(x), -1)


def pixel_product(x: Array, y: Array) -> Array:  # x, y (B, H, W, C) -> (B, C)
    """pixel_sum(x * y) without the array x * y."""
    return np.einsum("ijn,ijn->n", pixels_first(x), pixels_first(y)).reshape(len(x), -1)


@functools.cache
def averages(channels: int, groups: int, count: int, dtype: np.dtype) -> Array:
    """(C, C): acting on the channels' sums, the mean of a group of `count` numbers, for each of its channels."""
    return np.kron(np.eye(groups), np.full((channels // groups, channels // groups), 1 / count)).astype(dtype)


def group_norm_forward(x: Array, gain: Array, bias: Array, groups: int, eps: float = 1e-5) -> tuple[Array, Cache]:
    """As conv.group_norm_forward, whose n is rstd (n - rest) here: what is the same for all pixels is multiplied out first."""
    mean = averages(len(gain), groups, x[0].size // groups, x.dtype)
    n = x - (pixel_sum(x) @ mean)[:, None, None]  # (B, H, W, C)
    rest = pixel_sum(n) @ mean  # (B, C), what rounding left in the mean
    rstd = 1 / np.sqrt(np.maximum(pixel_product(n, n) @ mean - rest * rest, 0) + eps)  # (B, C)
    scale = gain * rstd
    y = n * scale[:, None, None]
    y += (bias - rest * scale)[:, None, None]
    return y, (n, rest, rstd, scale, mean)


def group_norm_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As conv.group_norm_backward."""
    n, rest, rstd, scale, mean = cache
    sum_g = pixel_sum(grad_y)  # (B, C)
    sum_gn = (pixel_product(grad_y, n) - rest * sum_g) * rstd
    mean_g, mean_gn = (scale * sum_g) @ mean, (scale * sum_gn) @ mean  # (B, C), times rstd
    grad_x = grad_y * scale[:, None, None]
    grad_x -= n * (rstd * mean_gn)[:, None, None]
    grad_x -= (mean_g - rest * rstd * mean_gn)[:, None, None]
    return grad_x, {"gain": sum_gn.sum(axis=0), "bias": sum_g.sum(axis=0)}


def convolve_to_few(x: Array, w: Array) -> Array:  # x (B, H, W, I), w (3, 3, I, O) -> y (B, H, W, O)
    """conv.convolve(x, w) for few outputs: x w[i, j] for all i and j in one product, and then the sum of the shifted images."""
    batch, height, width, inputs = x.shape
    products = w.transpose(0, 1, 3, 2).reshape(-1, inputs) @ pixels_first(x).reshape(-1, inputs).T
    products = products.reshape(3, 3, -1, height, width, batch)
    y = np.zeros((w.shape[3], height + 2, width + 2, batch), x.dtype)
    for i, j in np.ndindex(3, 3):
        y[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width] += products[i, j]
    return y[:, 1:-1, 1:-1].transpose(3, 1, 2, 0)
