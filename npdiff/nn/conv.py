"""The parts of a convolutional network, as pairs like those of ops.py.

An image is x[i, j, c]: row, column, channel. The pairs of ops.py are also names of this module, so
a convolutional network takes all its parts from one place.
"""

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn.ops import Cache, Grads
from npdiff.nn.ops import level_waves as level_waves
from npdiff.nn.ops import linear_backward as linear_backward
from npdiff.nn.ops import linear_forward as linear_forward
from npdiff.nn.ops import silu_backward as silu_backward
from npdiff.nn.ops import silu_forward as silu_forward


def conv2d_forward(x: Array, w: Array, b: Array, stride: int = 1) -> tuple[Array, Cache]:
    """y is a sum of K x K shifted images, each times its own matrix w[k, l].

    y[i, j] = b + sum over k, l of x[stride i + k - p, stride j + l - p] w[k, l],   p = (K - 1) / 2

    k and l run over 0..K-1, and x is 0 beyond its border.

    x (B, H, W, I), w (K, K, I, O), K odd, b (O,) -> y (B, H', W', O), H' = H / stride rounded up.
    """
    xp, height, width, p = get_array_module(x), x.shape[1], x.shape[2], len(w) // 2
    padded = xp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    y = b
    for k, l in np.ndindex(w.shape[:2]):
        shifted = padded[:, k : k + height : stride, l : l + width : stride]  # (B, H', W', I)
        y = y + shifted @ w[k, l]
    return y, (padded, x.shape, w, stride)


def conv2d_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """The same loop: the gradient of each shifted image goes back to the pixels it was taken from.

    dL/d shifted = dL/dy w[k, l]^T
    dL/dw[k, l]  = sum over images and pixels of shifted^T dL/dy
    """
    padded, (batch, height, width, channels), w, stride = cache
    xp, p = get_array_module(grad_y), len(w) // 2
    grad_padded, grad_w = xp.zeros_like(padded), xp.zeros_like(w)
    grad_rows = grad_y.reshape(-1, w.shape[3])  # (B H' W', O), a row for each pixel
    for k, l in np.ndindex(w.shape[:2]):
        shift = np.s_[:, k : k + height : stride, l : l + width : stride]
        shifted = padded[shift]  # (B, H', W', I)
        grad_w[k, l] = shifted.reshape(-1, channels).T @ grad_rows  # (I, O)
        grad_padded[shift] += (grad_rows @ w[k, l].T).reshape(shifted.shape)
    grad_x = grad_padded[:, p : p + height, p : p + width]  # (B, H, W, I)
    return grad_x, {"w": grad_w, "b": grad_y.sum(axis=(0, 1, 2))}


def group_mean(x: Array) -> Array:
    """The mean over each group of an image.

    x (B, H W, groups, C / groups) -> (B, 1, groups, 1).
    """
    return x.mean(axis=1, keepdims=True).mean(axis=3, keepdims=True)


def group_norm_forward(
    x: Array, gain: Array, bias: Array, groups: int, tiny: float = 1e-5
) -> tuple[Array, Cache]:
    """y = gain n + bias,  n = (x - mean) / sqrt(var + tiny).

    mean and var are taken over a group: C / groups neighbouring channels at all pixels of an image.

    x (B, H, W, C), gain (C,), bias (C,) -> y (B, H, W, C).
    """
    d = x.reshape(len(x), -1, groups, x.shape[3] // groups)
    d = d - group_mean(d)
    # Again: what rounding left of the mean. So a constant has variance 0, however large it is.
    d = d - group_mean(d)
    rstd = 1 / (group_mean(d * d) + tiny) ** 0.5  # (B, 1, groups, 1)
    n = (d * rstd).reshape(x.shape)  # (B, H, W, C)
    return gain * n + bias, (n, rstd, gain)


def group_norm_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """With g = dL/dn = gain dL/dy, and means over the group of `count` numbers:

    dL/dx = (g - mean(g) - n mean(g n)) rstd,    rstd = 1 / sqrt(var + tiny)

    A change dx_j moves the mean by dx_j / count and the deviation by n_j dx_j / count, so
    dn_i/dx_j = (delta_ij - 1/count - n_i n_j / count) rstd. dL/dgain is the sum of n dL/dy, and
    dL/dbias the sum of dL/dy, over images and pixels.
    """
    n, rstd, gain = cache
    grouped = (len(n), -1, rstd.shape[2], n.shape[3] // rstd.shape[2])
    g, n_grouped = (gain * grad_y).reshape(grouped), n.reshape(grouped)
    grad_x = (g - group_mean(g) - n_grouped * group_mean(g * n_grouped)) * rstd
    grads = {"gain": (n * grad_y).sum(axis=(0, 1, 2)), "bias": grad_y.sum(axis=(0, 1, 2))}
    return grad_x.reshape(n.shape), grads


def scale_shift_forward(x: Array, scale: Array, shift: Array) -> tuple[Array, Cache]:
    """y = (1 + scale) x + shift, the same at every pixel of an image.

    x (B, H, W, C), scale (B, C), shift (B, C) -> y (B, H, W, C).
    """
    y = (1 + scale[:, None, None]) * x + shift[:, None, None]
    return y, (x, scale)


def scale_shift_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dx = (1 + scale) dL/dy.

    dL/dscale is the sum of x dL/dy over pixels, dL/dshift the sum of dL/dy.
    """
    x, scale = cache
    grad_x = (1 + scale[:, None, None]) * grad_y
    return grad_x, {"scale": (x * grad_y).sum(axis=(1, 2)), "shift": grad_y.sum(axis=(1, 2))}


def upsample_forward(x: Array) -> tuple[Array, Cache]:
    """y[i, j] = x[i // 2, j // 2]: each pixel becomes 2 x 2 equal ones.

    x (B, H, W, C) -> y (B, 2 H, 2 W, C).
    """
    return x.repeat(2, axis=1).repeat(2, axis=2), ()


def upsample_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dx[i, j] = the sum of dL/dy over the 2 x 2 pixels that came from x[i, j]."""
    rows = grad_y[:, ::2] + grad_y[:, 1::2]  # (B, H, 2 W, C)
    return rows[:, :, ::2] + rows[:, :, 1::2], {}  # (B, H, W, C)


def space_to_depth(x: Array) -> Array:
    """2 x 2 pixels become one of four times the channels.

    y[i, j] = [x[2i, 2j], x[2i, 2j+1], x[2i+1, 2j], x[2i+1, 2j+1]]

    Only the order changes, so the inverse is the transpose, and each is the other's backward pass.

    x (B, 2 H, 2 W, C) -> y (B, H, W, 4 C).
    """
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return blocks.reshape(batch, height // 2, width // 2, 4 * channels)


def depth_to_space(y: Array) -> Array:
    """The inverse of space_to_depth, and its backward pass.

    y (B, H, W, 4 C) -> x (B, 2 H, 2 W, C).
    """
    batch, height, width, channels = y.shape
    blocks = y.reshape(batch, height, width, 2, 2, channels // 4).swapaxes(2, 3)
    return blocks.reshape(batch, 2 * height, 2 * width, channels // 4)


def lookup_forward(label: np.ndarray, table: Array) -> tuple[Array, Cache]:
    """y = table[label], written as a product of one-hot rows with the table.

    Label -1 names the last row.

    label (B,) on the host, table (N, E) -> y (B, E).
    """
    check_label(label, len(table))
    one_hot = np.eye(len(table), dtype=table.dtype)[label]  # (B, N)
    one_hot = get_array_module(table).asarray(one_hot)
    return one_hot @ table, (one_hot,)


def lookup_backward(grad_y: Array, cache: Cache) -> tuple[None, Grads]:
    """dL/dtable[n] = the sum of dL/dy over the rows whose label is n; a label has no gradient."""
    (one_hot,) = cache
    return None, {"table": one_hot.T @ grad_y}  # (N, E)


def check_label(label: np.ndarray, count: int) -> None:
    """Raise ValueError unless label is a NumPy array of ints of shape (B,), in -1..count-1."""
    integers = isinstance(label, np.ndarray) and label.ndim == 1 and label.dtype.kind in "iu"
    if not integers or (label.size and not -1 <= label.min() <= label.max() < count):
        raise ValueError(
            f"label must be integers of shape (B,) in -1..{count - 1}, "
            f"in a NumPy array, got {label!r}"
        )
