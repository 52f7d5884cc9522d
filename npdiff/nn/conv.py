"""The parts of a convolutional network, as pairs like those of ops.py. An image is x[i, j, c]: row, column, channel.

A sum over shifted images is a matrix product, once every pixel's neighbourhood is written out as a row of a matrix.
"""

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.fuse import elementwise
from npdiff.nn.ops import Cache, Grads


def columns(x: Array, kernel: int, stride: int = 1) -> Array:  # x (B, H, W, C) -> (B H' W', K K C)
    """A row for each output pixel: the kernel x kernel pixels of x around it, zeros beyond the border."""
    batch, height, width, channels = x.shape
    if kernel == stride == 1:
        return x.reshape(-1, channels)
    xp, pad = get_array_module(x), kernel // 2
    padded = xp.zeros((batch, height + 2 * pad, width + 2 * pad, channels), x.dtype)
    padded[:, pad : pad + height, pad : pad + width] = x
    image, row, pixel, item = padded.strides
    # Neighbours in a row of the image lie one after the other in memory, so a row of the kernel is one run of kernel * channels numbers.
    shape = (batch, output_size(height, stride), output_size(width, stride), kernel, kernel * channels)
    windows = xp.lib.stride_tricks.as_strided(padded, shape, (image, stride * row, stride * pixel, row, item))
    return windows.reshape(-1, kernel * kernel * channels)


def output_size(size: int, stride: int) -> int:
    return -(-size // stride)  # size / stride, rounded up


def convolve(x: Array, w: Array, stride: int = 1) -> Array:  # x (B, H, W, I), w (K, K, I, O) -> y (B, H', W', O)
    """y[i, j] = sum over k, l in 0..K-1 of x[stride i + k - p, stride j + l - p] w[k, l], with p = (K-1)/2, and x = 0 beyond its border.

    K is odd; H' = H/stride and W' = W/stride, rounded up.
    """
    batch, height, width, _ = x.shape
    y = columns(x, len(w), stride) @ w.reshape(-1, w.shape[3])  # (B H' W', O)
    return y.reshape(batch, output_size(height, stride), output_size(width, stride), -1)


def pixel_sum(x: Array) -> Array:  # x (B, H, W, C) -> (B, C)
    """The sum over an image's pixels."""
    return x.sum(axis=(1, 2))


def conv2d_forward(x: Array, w: Array, b: Array, stride: int = 1) -> tuple[Array, Cache]:
    """y = convolve(x, w) + b.  x (B, H, W, I), w (K, K, I, O), b (O,) -> y (B, H', W', O)."""
    y = convolve(x, w, stride)
    y += b
    return y, (x, w, stride)


def conv2d_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dw[k, l] = sum over i, j of x[stride i + k - p, stride j + l - p]^T dL/dy[i, j]: columns^T dL/dy, a single product.

    x[m, n] meets w[k, l] in y[i, j] where stride i = m - k + p. Let g be dL/dy with its pixels spread `stride` apart, zeros
    between them. Then dL/dx[m, n] = sum over k, l of g[m - k + p, n - l + p] w[k, l]^T, and with k = K-1 - k', l = K-1 - l' this is
    sum over k', l' of g[m + k' - p, n + l' - p] w[K-1 - k', K-1 - l']^T: g convolved with the flipped, transposed kernel.
    """
    x, w, stride = cache
    grad_w = columns(x, len(w), stride).T @ grad_y.reshape(-1, w.shape[3])  # (K K I, O)
    grad_b = pixel_sum(grad_y).sum(axis=0)  # (O,)
    spread = grad_y
    if stride > 1:
        spread = get_array_module(x).zeros((*x.shape[:3], w.shape[3]), x.dtype)  # (B, H, W, O)
        spread[:, ::stride, ::stride] = grad_y
    grad_x = convolve(spread, w[::-1, ::-1].swapaxes(2, 3))  # (B, H, W, I)
    return grad_x, {"w": grad_w.reshape(w.shape), "b": grad_b}


def group_sum(sums: Array, groups: int) -> Array:  # sums (B, C) -> (B, 1, 1, C)
    """The sum over the channels of a group, for each of its channels: a group is C / groups neighbouring channels."""
    batch, channels = sums.shape
    totals = sums.reshape(batch, groups, -1).sum(axis=2, keepdims=True)  # (B, groups, 1)
    return get_array_module(sums).broadcast_to(totals, (batch, groups, channels // groups)).reshape(batch, 1, 1, channels)


def group_norm_forward(x: Array, gain: Array, bias: Array, groups: int, eps: float = 1e-5) -> tuple[Array, Cache]:
    """y = gain n + bias, with n = (x - mean) / sqrt(var + eps), and mean and var over the pixels and channels of an image's group.

    x (B, H, W, C), gain (C,), bias (C,) -> y (B, H, W, C).
    """
    xp, count = get_array_module(x), x[0].size // groups
    n = x - group_sum(pixel_sum(x), groups) / count  # (B, H, W, C)
    n -= group_sum(pixel_sum(n), groups) / count  # what rounding left in the mean: so a constant has variance 0, whatever its size
    rstd = 1 / xp.sqrt(group_sum(pixel_sum(n * n), groups) / count + eps)  # (B, 1, 1, C)
    y, n = _scaled(n, rstd, gain, bias)
    return y, (n, rstd, gain, groups)


def group_norm_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """With g = gain dL/dy = dL/dn, and means over the group:  dL/dx = (g - mean(g) - n mean(g n)) / sqrt(var + eps).

    The mean moves by dx/count, and the root of the variance by n dx/count: so dn_i/dx_j = (delta_ij - 1/count - n_i n_j/count) rstd.
    dL/dgain = sum of n dL/dy, dL/dbias = sum of dL/dy; the gain is constant over pixels, so these sums give the means too.
    """
    n, rstd, gain, groups = cache
    count = n[0].size // groups
    sum_g, sum_gn = pixel_sum(grad_y), pixel_sum(grad_y * n)  # (B, C)
    mean_g, mean_gn = group_sum(gain * sum_g, groups) / count, group_sum(gain * sum_gn, groups) / count  # (B, 1, 1, C)
    grad_x = _group_norm_gradient(grad_y, n, mean_g, mean_gn, rstd, gain)  # (B, H, W, C)
    return grad_x, {"gain": sum_gn.sum(axis=0), "bias": sum_g.sum(axis=0)}


@elementwise
def _scaled(n: Array, rstd: Array, gain: Array, bias: Array) -> tuple[Array, Array]:
    n = n * rstd
    return n * gain + bias, n


@elementwise
def _group_norm_gradient(grad_y: Array, n: Array, mean_g: Array, mean_gn: Array, rstd: Array, gain: Array) -> Array:
    return (gain * grad_y - mean_g - n * mean_gn) * rstd


def scale_shift_forward(x: Array, scale: Array, shift: Array) -> tuple[Array, Cache]:  # x (B, H, W, C), scale (B, C), shift (B, C)
    """y = (1 + scale) x + shift, the same for every pixel of an image."""
    return _scale_shift(x, scale[:, None, None, :], shift[:, None, None, :]), (x, scale)


def scale_shift_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dx = (1 + scale) dL/dy;  dL/dscale = the sum of x dL/dy over the pixels;  dL/dshift = the sum of dL/dy over the pixels."""
    x, scale = cache
    grad_x = _scale(grad_y, scale[:, None, None, :])
    return grad_x, {"scale": pixel_sum(x * grad_y), "shift": pixel_sum(grad_y)}


@elementwise
def _scale_shift(x: Array, scale: Array, shift: Array) -> Array:
    return x * (1 + scale) + shift


@elementwise
def _scale(grad_y: Array, scale: Array) -> Array:
    return grad_y * (1 + scale)


def upsample_forward(x: Array) -> tuple[Array, Cache]:  # x (B, H, W, C) -> y (B, 2 H, 2 W, C)
    """y[i, j] = x[i // 2, j // 2]: each pixel becomes 2 x 2 equal ones."""
    batch, height, width, channels = x.shape
    y = get_array_module(x).broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return y.reshape(batch, 2 * height, 2 * width, channels), ()


def upsample_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dx[i, j] = the sum of dL/dy over the 2 x 2 pixels that came from x[i, j]."""
    rows = grad_y[:, ::2] + grad_y[:, 1::2]  # (B, H, 2 W, C)
    return rows[:, :, ::2] + rows[:, :, 1::2], {}  # (B, H, W, C)


def space_to_depth(x: Array) -> Array:  # x (B, 2 H, 2 W, C) -> y (B, H, W, 4 C)
    """y[i, j] = [x[2i, 2j], x[2i, 2j+1], x[2i+1, 2j], x[2i+1, 2j+1]]: 2 x 2 pixels become one of four times the channels.

    Only the order changes. So the inverse is the transpose, which is the backward pass: that of depth_to_space, and the reverse.
    """
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return blocks.reshape(batch, height // 2, width // 2, 4 * channels)


def depth_to_space(y: Array) -> Array:  # y (B, H, W, 4 C) -> x (B, 2 H, 2 W, C)
    """The inverse of space_to_depth, and its backward pass."""
    batch, height, width, channels = y.shape
    blocks = y.reshape(batch, height, width, 2, 2, channels // 4).swapaxes(2, 3)
    return blocks.reshape(batch, 2 * height, 2 * width, channels // 4)


def check_label(label: np.ndarray, count: int) -> None:
    if label.ndim != 1 or label.dtype.kind not in "iu" or label.size and not 0 <= label.min() <= label.max() < count:
        raise ValueError(f"label must be integers of shape (B,) in 0..{count - 1}, got {label}")


def lookup_forward(label: np.ndarray, table: Array) -> tuple[Array, Cache]:  # label (B,) in 0..N-1 on the host, table (N, E) -> y (B, E)
    """y = table[label], as the product of one-hot rows with the table."""
    check_label(label, len(table))
    one_hot = get_array_module(table).asarray(np.eye(len(table), dtype=table.dtype)[label])  # (B, N)
    return one_hot @ table, (one_hot,)


def lookup_backward(grad_y: Array, cache: Cache) -> tuple[None, Grads]:
    """dL/dtable[n] = the sum of dL/dy over the rows whose label is n; a label has no gradient."""
    (one_hot,) = cache
    return None, {"table": one_hot.T @ grad_y}  # (N, E)
