"""Formulas that CuPy runs as one kernel each, where every operator would be a kernel of its own.

A fused function takes arrays and finished Python floats: arithmetic between two numbers inside it
would be done in half precision.
"""

import cupy

from npdiff.backend import Array
from npdiff.nn.ops import Cache, Grads


@cupy.fuse()
def _silu(x: Array) -> tuple[Array, Array]:
    s = 0.5 * cupy.tanh(0.5 * x) + 0.5
    return x * s, s


@cupy.fuse()
def _silu_gradient(grad_y: Array, s: Array, y: Array) -> Array:
    return grad_y * (s + y * (1 - s))


def silu_forward(x: Array) -> tuple[Array, Cache]:
    """As ops.silu_forward."""
    y, s = _silu(x)
    return y, (s, y)


def silu_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As ops.silu_backward."""
    s, y = cache
    return _silu_gradient(grad_y, s, y), {}


@cupy.fuse()
def _scale_shift(x: Array, scale: Array, shift: Array) -> Array:
    return x * (1 + scale) + shift


def scale_shift_forward(x: Array, scale: Array, shift: Array) -> tuple[Array, Cache]:
    """As conv.scale_shift_forward."""
    return _scale_shift(x, scale[:, None, None], shift[:, None, None]), (x, scale)


@cupy.fuse()
def _adam(
    theta: Array,
    grad: Array,
    m: Array,
    v: Array,
    new_m: float,
    new_v: float,
    step_size: float,
    v_hat_factor: float,
    tiny: float,
) -> None:
    m += new_m * (grad - m)
    v += new_v * (grad * grad - v)
    theta -= step_size * m / (cupy.sqrt(v_hat_factor * v) + tiny)


def adam(
    theta: Array,
    grad: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    decay_1: float = 0.9,
    decay_2: float = 0.999,
    tiny: float = 1e-8,
) -> None:
    """As optim.adam."""
    step_size, v_hat_factor = lr / (1 - decay_1**step), 1 / (1 - decay_2**step)
    _adam(theta, grad, m, v, 1 - decay_1, 1 - decay_2, step_size, v_hat_factor, tiny)
