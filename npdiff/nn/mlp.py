"""A multilayer perceptron for points in the plane, or in any few dimensions: out = net(x, level).

    init(rng)                           -> params
    forward(params, x, level)           -> out, cache
    backward(params, cache, grad_out)   -> grad_x, grads
    jvp(params, x, level, d_x, d_level) -> out, d_out, cache

The network is made of the pairs of `ops`: npdiff/nn/ops.py, unless `forward` is given others. The
cache passes them on to `backward`.
"""

import math
from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn import ops
from npdiff.nn.ops import Cache, Grads, check_inputs, level_waves_jvp, linear_jvp, silu_jvp
from npdiff.nn.params import Tree

# Waves along level = log(noise / signal): the longest spans the whole range of levels, the shortest
# tells apart levels that differ by 1.
FREQUENCIES = 0.3 * 1.4 ** np.arange(6)


def init(
    rng: np.random.Generator,
    dim: int = 2,
    hidden: int = 64,
    layers: int = 4,
    outputs: int | None = None,
) -> Tree:
    """Float32 parameters for x of shape (B, dim): `layers` residual layers of `hidden` units.

    Weights are drawn from N(0, 1 / inputs). The last layer starts at zero, so the output of an
    untrained network is 0. `outputs` is the size of the output; default `dim`.
    """
    outputs = outputs or dim

    def linear(inputs: int, outputs: int) -> Tree:
        w = rng.standard_normal((inputs, outputs), dtype=np.float32) / np.float32(math.sqrt(inputs))
        return {"w": w, "b": np.zeros(outputs, np.float32)}

    params = {"first": linear(dim + 2 * len(FREQUENCIES), hidden)}
    for i in range(1, layers + 1):
        params[f"layer_{i}"] = linear(hidden, hidden)
    params["last"] = {
        "w": np.zeros((hidden, outputs), np.float32),
        "b": np.zeros(outputs, np.float32),
    }
    return params


def hidden_layers(params: Tree) -> list[str]:
    """The names of the residual layers: layer_1, layer_2, ..."""
    return [name for name in params if name.startswith("layer_")]


def forward(params: Tree, x: Array, level: Array, ops: Any = ops) -> tuple[Array, Cache]:
    """out (B, dim), from x (B, dim) and level = log(noise / signal), (B,)."""
    check_inputs(x, level)
    dim = len(params["first"]["w"]) - 2 * len(FREQUENCIES)
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x must have shape (B, {dim}) for a network of dim={dim}, got {x.shape}")
    waves = ops.level_waves(level, FREQUENCIES)  # (B, 12)
    inputs = get_array_module(x).concatenate([x, waves], axis=1)  # (B, dim + 12)
    h, first = ops.linear_forward(inputs, **params["first"])  # (B, hidden)
    layers = {}
    for name in hidden_layers(params):
        h, layers[name] = residual_forward(h, params[name], ops)  # (B, hidden)
    h, silu = ops.silu_forward(h)  # (B, hidden)
    out, last = ops.linear_forward(h, **params["last"])  # (B, dim)
    return out, (ops, first, layers, silu, last)


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """dL/dx (B, dim) and the gradients of the parameters: the lines of `forward`, reversed."""
    ops, first, layers, silu, last = cache
    grads: Tree = dict.fromkeys(params)  # in the order of params
    grad_h, grads["last"] = ops.linear_backward(grad_out, last)
    grad_h, _ = ops.silu_backward(grad_h, silu)
    for name in reversed(hidden_layers(params)):
        grad_h, grads[name] = residual_backward(grad_h, layers[name], ops)
    grad_inputs, grads["first"] = ops.linear_backward(grad_h, first)
    return grad_inputs[:, : -2 * len(FREQUENCIES)], grads


def jvp(
    params: Tree, x: Array, level: Array, d_x: Array, d_level: Array, ops: Any = ops
) -> tuple[Array, Array, Cache]:
    """out, its derivative d_out when x and level move at the rates d_x and d_level, and the cache.

    d_out = (d out / d x) d_x + (d out / d level) d_level

    A Jacobian-vector product: the lines of `forward`, each differentiated, in the same order. What
    they need is in the caches, which all `ops` fill alike. `backward` may follow from `cache`.
    """
    if d_x.shape != x.shape or d_level.shape != level.shape:
        raise ValueError(
            f"d_x and d_level must have the shapes of x and level, {x.shape} and {level.shape}, "
            f"got {d_x.shape} and {d_level.shape}"
        )
    out, cache = forward(params, x, level, ops)
    _, first, layers, silu, last = cache
    d_waves = level_waves_jvp(d_level, level, FREQUENCIES)  # (B, 12)
    d_inputs = get_array_module(x).concatenate([d_x, d_waves], axis=1)  # (B, dim + 12)
    d_h = linear_jvp(d_inputs, first)  # (B, hidden)
    for name in hidden_layers(params):
        d_h = residual_jvp(d_h, layers[name])  # (B, hidden)
    d_h = silu_jvp(d_h, silu)  # (B, hidden)
    return out, linear_jvp(d_h, last), cache


def residual_forward(x: Array, linear: Tree, ops: Any) -> tuple[Array, Cache]:
    """y = x + linear(silu(x)): the layer learns what to add to x.   x (B, C) -> y (B, C)."""
    h, silu_cache = ops.silu_forward(x)
    h, linear_cache = ops.linear_forward(h, **linear)
    return x + h, (silu_cache, linear_cache)


def residual_backward(grad_y: Array, cache: Cache, ops: Any) -> tuple[Array, Grads]:
    """dL/dx = dL/dy, through the skip connection, plus the gradient through the layer."""
    silu_cache, linear_cache = cache
    grad_h, grads = ops.linear_backward(grad_y, linear_cache)
    grad_h, _ = ops.silu_backward(grad_h, silu_cache)
    return grad_y + grad_h, grads


def residual_jvp(d_x: Array, cache: Cache) -> Array:
    """d_y = d_x, through the skip connection, plus the derivative of the layer."""
    silu_cache, linear_cache = cache
    d_h = silu_jvp(d_x, silu_cache)
    return d_x + linear_jvp(d_h, linear_cache)
