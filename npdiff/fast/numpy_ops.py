"""The fast operations of a network on NumPy, in the place of those of npdiff/nn/conv.py, with which they agree to rounding.

A reader can skip this file: only the processes of npdiff/kit/parallel.py, that no one steps through, and demos/benchmark.py use it.
"""

from collections.abc import Callable
from typing import Any

from npdiff.backend import Array
from npdiff.nn import conv, layout, winograd
from npdiff.nn.layout import batch_first, pixels_first
from npdiff.nn.ops import Cache, Grads

FEW = 16  # channels: Winograd's algorithm does not pay for fewer
plain_convolve = conv.convolve
backward_follows = True  # False in a worker where no gradient is asked for


def convolve(x: Array, w: Array, stride: int = 1) -> Array:
    """conv.convolve, by the way that pays."""
    batch, height, width, inputs = x.shape
    if stride == len(w) == 1:
        return batch_first((pixels_first(x).reshape(-1, inputs) @ w[0, 0]).reshape(height, width, -1), batch)
    if stride == 1 and len(w) == 3 and min(w.shape[2:]) >= FEW:
        return winograd.convolve(x, w)[0]
    if stride == 1 and len(w) == 3 and w.shape[3] < FEW:
        return layout.convolve_to_few(x, w)
    return batch_first(pixels_first(plain_convolve(x, w, stride)), batch)


def conv2d_forward(x: Array, w: Array, b: Array, stride: int = 1) -> tuple[Array, Cache]:
    """As conv.conv2d_forward."""
    pair = winograd if stride == 1 and len(w) == 3 and min(w.shape[2:]) >= FEW else conv
    y, cache = pair.conv2d_forward(x, w, b, stride)
    return y, (pair.conv2d_backward, cache)


def conv2d_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As conv.conv2d_backward."""
    backward, cache = cache
    return backward(grad_y, cache)


def cached(forward: Callable) -> Callable:
    """An op's forward pass that keeps nothing for the backward pass unless one follows: memory still in cache is then used again."""

    def lean_forward(*args: Any, **kwargs: Any) -> tuple[Array, Cache | None]:
        y, cache = forward(*args, **kwargs)
        return y, cache if backward_follows else None

    return lean_forward


def put_into(net: Any) -> None:
    """These in the place of the plain ones, for a network's module."""
    conv.convolve, conv.pixel_sum = convolve, layout.pixel_sum
    net.conv2d_forward, net.conv2d_backward = cached(conv2d_forward), conv2d_backward
    net.group_norm_forward, net.group_norm_backward = cached(layout.group_norm_forward), layout.group_norm_backward
    net.scale_shift_forward, net.silu_forward = cached(net.scale_shift_forward), cached(net.silu_forward)
