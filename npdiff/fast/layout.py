"""The batch beside the channels in memory, on NumPy.

An image x[b, i, j, c] whose memory is in the order i, j, b, c keeps its shape, and NumPy's
operators and functions accept it and pass its order on. But what is the same for all pixels, a
mean, a gain, a scale, now meets B C adjacent numbers instead of C; a sum over pixels is a product
with ones; and a matrix that acts on rows or columns of pixels acts on all channels and images at
once.
"""

import functools

import numpy as np

from npdiff.backend import Array
from npdiff.nn.ops import Cache, Grads


def pixels_first(x: Array) -> Array:
    """x in the order of this file: a view where its memory is in that order, else a copy.

    x (B, H, W, C) -> (H, W, B C).
    """
    return np.ascontiguousarray(x.transpose(1, 2, 0, 3)).reshape(*x.shape[1:3], -1)


def batch_first(x: Array, batch: int) -> Array:
    """The inverse of pixels_first, a view.   x (H, W, B C) -> (B, H, W, C)."""
    return x.reshape(*x.shape[:2], batch, -1).transpose(2, 0, 1, 3)


def pixel_sum(x: Array) -> Array:
    """The sum over an image's pixels, as a product with ones.   x (B, H, W, C) -> (B, C)."""
    rows = pixels_first(x).reshape(-1, len(x) * x.shape[3])
    return (np.ones(len(rows), x.dtype) @ rows).reshape(len(x), -1)


def pixel_product(x: Array, y: Array) -> Array:
    """pixel_sum(x * y) without the array x * y.   x, y (B, H, W, C) -> (B, C)."""
    return np.einsum("ijn,ijn->n", pixels_first(x), pixels_first(y)).reshape(len(x), -1)


@functools.cache
def averages(channels: int, groups: int, count: int, dtype: np.dtype) -> Array:
    """The matrix that turns the channels' sums into the mean of each channel's group.

    A group has `count` numbers. The result has shape (C, C).
    """
    block = np.full((channels // groups, channels // groups), 1 / count)
    return np.kron(np.eye(groups), block).astype(dtype)


def group_norm_forward(
    x: Array, gain: Array, bias: Array, groups: int, tiny: float = 1e-5
) -> tuple[Array, Cache]:
    """As conv.group_norm_forward, whose n is rstd (n - rest) here.

    Factors that are the same for all pixels are multiplied together first.
    """
    mean = averages(len(gain), groups, x[0].size // groups, x.dtype)
    n = x - (pixel_sum(x) @ mean)[:, None, None]  # (B, H, W, C)
    rest = pixel_sum(n) @ mean  # (B, C), what rounding left in the mean
    var = np.maximum(pixel_product(n, n) @ mean - rest * rest, 0)  # (B, C)
    rstd = 1 / np.sqrt(var + tiny)
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


def upsample_forward(x: Array) -> tuple[Array, Cache]:
    """As conv.upsample_forward, in the order of this file."""
    batch, height, width, channels = x.shape
    y = np.empty((height, 2, width, 2, batch * channels), x.dtype)
    y[...] = pixels_first(x)[:, None, :, None]
    return batch_first(y.reshape(2 * height, 2 * width, -1), batch), ()


def convolve_to_few(x: Array, w: Array) -> Array:
    """A 3 x 3 convolution to few channels, at stride 1.

    x w[k, l] for all k and l is one product; then come the sums of shifted images.

    x (B, H, W, I), w (3, 3, I, O) -> y (B, H, W, O).
    """
    batch, height, width, inputs = x.shape
    products = w.transpose(0, 1, 3, 2).reshape(-1, inputs) @ pixels_first(x).reshape(-1, inputs).T
    products = products.reshape(3, 3, -1, height, width, batch)
    y = np.zeros((w.shape[3], height + 2, width + 2, batch), x.dtype)
    for k, l in np.ndindex(3, 3):
        y[:, 2 - k : 2 - k + height, 2 - l : 2 - l + width] += products[k, l]
    return y[:, 1:-1, 1:-1].transpose(3, 1, 2, 0)
