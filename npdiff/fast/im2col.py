"""A convolution as one matrix product: each pixel's neighbourhood is written out as a row.

This serves every kernel and stride. It takes K x K times the memory of x, which the sum over
shifted images in npdiff/nn/conv.py does not.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from npdiff.backend import Array, get_array_module


def output_size(size: int, stride: int) -> int:
    """size / stride, rounded up."""
    return -(-size // stride)


def columns(x: Array, kernel: int, stride: int = 1) -> Array:
    """A row for each output pixel: the kernel x kernel pixels of x around it, 0 beyond the border.

    x (B, H, W, C) -> (B H' W', K K C).
    """
    batch, height, width, channels = x.shape
    if kernel == stride == 1:
        return x.reshape(-1, channels)
    pad = kernel // 2
    padded = np.zeros((batch, height + 2 * pad, width + 2 * pad, channels), x.dtype)
    padded[:, pad : pad + height, pad : pad + width] = x
    image, row, pixel, item = padded.strides
    # Neighbours in a row of the image are adjacent in memory, so a row of the kernel is one run.
    run = kernel * channels
    shape = batch, output_size(height, stride), output_size(width, stride), kernel, run
    windows = as_strided(padded, shape, (image, stride * row, stride * pixel, row, item))
    return windows.reshape(-1, kernel * run)


def convolve(x: Array, w: Array, stride: int = 1) -> Array:
    """A convolution without the bias.   x (B, H, W, I), w (K, K, I, O) -> y (B, H', W', O)."""
    batch, height, width, _ = x.shape
    y = columns(x, len(w), stride) @ w.reshape(-1, w.shape[3])  # (B H' W', O)
    return y.reshape(batch, output_size(height, stride), output_size(width, stride), -1)


def flipped(w: Array) -> Array:
    """The kernel of the way back: dL/dx is dL/dy convolved with it, at stride 1.

    x[m, n] meets w[k, l] in y[m - k + p, n - l + p]. So dL/dx[m, n] = sum over k, l of
    dL/dy[m - k + p, n - l + p] w[k, l]^T, which is the convolution of dL/dy with
    w[K-1 - k, K-1 - l]^T.   w (K, K, I, O) -> (K, K, O, I).
    """
    return w[::-1, ::-1].swapaxes(2, 3)


def spread(grad_y: Array, shape: tuple[int, ...], stride: int) -> Array:
    """dL/dy with its pixels `stride` apart and zeros between them: this brings a stride back to 1.

    grad_y (B, H', W', O), shape of x (B, H, W, I) -> (B, H, W, O).
    """
    if stride == 1:
        return grad_y
    y = get_array_module(grad_y).zeros((*shape[:3], grad_y.shape[3]), grad_y.dtype)
    y[:, ::stride, ::stride] = grad_y
    return y
