"""A multilayer perceptron for points in the plane, or in any few dimensions: out = net(x, level).

init(rng) -> params;    forward(params, x, level) -> out, cache;    backward(params, cache, grad_out) -> grad_x, grads
"""

import math

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn.ops import (
    Cache,
    embed_forward,
    linear_backward,
    linear_forward,
    residual_backward,
    residual_forward,
    silu_backward,
    silu_forward,
)
from npdiff.nn.params import Tree

# Waves along level = log(noise/signal), from one that spans the whole range to one that tells levels of 1 apart.
# Beyond the range x is data, or noise, to within a part in a thousand.
FREQUENCIES = 0.3 * 1.4 ** np.arange(6)
LEVEL_MIN, LEVEL_MAX = -7.0, 7.0


def init(rng: np.random.Generator, dim: int = 2, hidden: int = 64, layers: int = 4, outputs: int | None = None) -> Tree:
    """Float32 parameters of `layers` residual layers of `hidden` units, for x of shape (B, dim); `outputs` numbers out, dim if None.

    Weights are drawn from N(0, 1/inputs). The last layer starts at zero, so an untrained network puts out 0.
    """

    def linear(inputs: int, outputs: int) -> Tree:
        w = rng.standard_normal((inputs, outputs), dtype=np.float32) / np.float32(math.sqrt(inputs))
        return {"w": w, "b": np.zeros(outputs, np.float32)}

    params = {"first": linear(dim + 2 * len(FREQUENCIES), hidden)}
    for i in range(1, layers + 1):
        params[f"layer_{i}"] = linear(hidden, hidden)
    params["last"] = {"w": np.zeros((hidden, outputs or dim), np.float32), "b": np.zeros(outputs or dim, np.float32)}
    return params


def forward(params: Tree, x: Array, level: Array) -> tuple[Array, Cache]:
    """out of shape (B, dim), for x of shape (B, dim) and level = log(noise/signal) of shape (B,)."""
    xp = get_array_module(x)
    level = xp.clip(level, LEVEL_MIN, LEVEL_MAX)[:, None]  # (B, 1)
    waves, _ = embed_forward(level, xp.asarray(FREQUENCIES[None].astype(x.dtype)))  # (B, 12)
    h, first = linear_forward(xp.concatenate([x, waves], axis=1), **params["first"])  # (B, hidden)
    layers = []
    for i in range(1, len(params) - 1):
        h, layer = residual_forward(h, **params[f"layer_{i}"])  # (B, hidden)
        layers.append(layer)
    h, silu = silu_forward(h)  # (B, hidden)
    out, last = linear_forward(h, **params["last"])  # (B, dim)
    return out, (first, layers, silu, last)


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """dL/dx of shape (B, dim), and dL/d(every parameter), from grad_out = dL/d(out): the lines of `forward`, reversed."""
    first, layers, silu, last = cache
    grads: Tree = dict.fromkeys(params)  # in the order of params
    grad_h, grads["last"] = linear_backward(grad_out, last)
    grad_h, _ = silu_backward(grad_h, silu)
    for i in range(len(params) - 2, 0, -1):
        grad_h, grads[f"layer_{i}"] = residual_backward(grad_h, layers[i - 1])
    grad_inputs, grads["first"] = linear_backward(grad_h, first)
    return grad_inputs[:, : -2 * len(FREQUENCIES)], grads
