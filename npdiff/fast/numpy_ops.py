"""The ops of a network on NumPy, fast. Each agrees to rounding with its plain one.

This module is a complete namespace of ops: a network takes it as `forward(..., ops=numpy_ops)`. The
plain ops are in npdiff/nn/conv.py and npdiff/nn/ops.py; those that cannot be made faster are taken
from there.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from npdiff.backend import Array
from npdiff.fast import im2col, layout, winograd
from npdiff.fast.layout import batch_first, pixel_product, pixel_sum, pixels_first
from npdiff.fast.layout import group_norm_backward as group_norm_backward
from npdiff.fast.layout import group_norm_forward as group_norm_forward
from npdiff.fast.layout import upsample_forward as upsample_forward
from npdiff.nn.conv import lookup_backward as lookup_backward
from npdiff.nn.conv import lookup_forward as lookup_forward
from npdiff.nn.conv import upsample_backward as upsample_backward
from npdiff.nn.ops import Cache, Grads
from npdiff.nn.ops import level_waves as level_waves

FEW = 16  # channels: Winograd's algorithm does not pay for fewer


def suits_winograd(w: Array, stride: int) -> bool:
    return stride == 1 and len(w) == 3 and min(w.shape[2:]) >= FEW


def convolve(x: Array, w: Array, stride: int = 1) -> Array:
    """A convolution by the fastest way.   x (B, H, W, I), w (K, K, I, O) -> y (B, H', W', O)."""
    batch, height, width, inputs = x.shape
    if suits_winograd(w, stride):
        return winograd.convolve(x, w)[0]
    if stride == len(w) == 1:
        y = pixels_first(x).reshape(-1, inputs) @ w[0, 0]
        return batch_first(y.reshape(height, width, -1), batch)
    if stride == 1 and len(w) == 3 and w.shape[3] < FEW:
        return layout.convolve_to_few(x, w)
    return batch_first(pixels_first(im2col.convolve(x, w, stride)), batch)


def conv2d_forward(x: Array, w: Array, b: Array, stride: int = 1) -> tuple[Array, Cache]:
    """As conv.conv2d_forward. The cache begins with the backward pass that belongs to it."""
    if suits_winograd(w, stride):
        y, cache = winograd.conv2d_forward(x, w, b)
        return y, (winograd.conv2d_backward, cache)
    y = convolve(x, w, stride)
    y += b
    return y, (backward_by_columns, (x, w, stride))


def conv2d_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As conv.conv2d_backward."""
    backward, cache = cache
    return backward(grad_y, cache)


def backward_by_columns(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """The backward pass of a convolution that Winograd's algorithm does not serve.

    dL/dw = columns^T dL/dy;  dL/dx = dL/dy, its pixels spread, convolved with the flipped kernel.
    """
    x, w, stride = cache
    grad_w = im2col.columns(x, len(w), stride).T @ grad_y.reshape(-1, w.shape[3])  # (K K I, O)
    grad_x = convolve(im2col.spread(grad_y, x.shape, stride), im2col.flipped(w))  # (B, H, W, I)
    return grad_x, {"w": grad_w.reshape(w.shape), "b": pixel_sum(grad_y).sum(axis=0)}


def scale_shift_forward(x: Array, scale: Array, shift: Array) -> tuple[Array, Cache]:
    """As conv.scale_shift_forward."""
    y = x * (1 + scale)[:, None, None]
    y += shift[:, None, None]
    return y, (x, scale)


def scale_shift_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As conv.scale_shift_backward."""
    x, scale = cache
    grad_x = grad_y * (1 + scale)[:, None, None]
    return grad_x, {"scale": pixel_product(x, grad_y), "shift": pixel_sum(grad_y)}


def linear_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """As ops.linear_forward, with b added in place."""
    y = x @ w
    y += b
    return y, (x, w)


def linear_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As ops.linear_backward, with the sum over the batch as a product with ones."""
    x, w = cache
    grad_b = np.ones(len(grad_y), grad_y.dtype) @ grad_y
    return grad_y @ w.T, {"w": x.T @ grad_y, "b": grad_b}


def silu_forward(x: Array) -> tuple[Array, Cache]:
    """As ops.silu_forward, with s = sigmoid(x) computed in place."""
    s = 0.5 * x
    np.tanh(s, out=s)
    s *= 0.5
    s += 0.5
    y = x * s
    return y, (s, y)


def silu_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As ops.silu_backward:  dL/dx = dL/dy (s + y (1 - s))."""
    s, y = cache
    grad_x = 1 - s
    grad_x *= y
    grad_x += s
    grad_x *= grad_y
    return grad_x, {}


def without_cache(ops: Any) -> SimpleNamespace:
    """The same ops for forward passes alone: nothing is kept for a backward pass.

    An array that is dropped at once leaves its memory, which the processor still holds in its
    cache, to the next one.
    """

    def forgetful(op_forward: Any) -> Any:
        return lambda *args, **kwargs: (op_forward(*args, **kwargs)[0], None)

    forward = {name: f for name, f in vars(ops).items() if name.endswith("_forward")}
    return SimpleNamespace(
        level_waves=ops.level_waves, **{name: forgetful(f) for name, f in forward.items()}
    )
