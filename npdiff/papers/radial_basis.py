"""The network of the 2015 paper's swiss roll: 16 radial basis functions, and T linear readouts.

App. D, Sohl-Dickstein et al. 2015, arXiv:1503.03585. The basis functions of x are normalised, and
each step t has a readout of its own. What later work changed: one network that is given t serves
every step, so what it learns at one t helps at the next.

    phi_k(x) = exp(a_k) / sum_j exp(a_j),   a_k = -exp(-2 s_k) |x - c_k|^2 / 2
    out      = phi(x) W_t + b_t

    init(rng, T) -> params
    forward(params, x, level) -> out, cache
    backward(params, cache, grad_out) -> grad_x, grads
"""

from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree


def init(rng: np.random.Generator, T: int = 40, dim: int = 2, units: int = 16) -> Tree:
    """Centres c drawn from N(0, I), widths exp(s) = 1/2, and readouts W and b of 0."""
    return {
        "centre": rng.standard_normal((units, dim), dtype=np.float32),
        "s": np.full(units, np.log(0.5), np.float32),
        "w": np.zeros((T + 1, units, 2 * dim), np.float32),
        "b": np.zeros((T + 1, 2 * dim), np.float32),
    }


def forward(params: Tree, x: Array, level: Array, ops: Any = None) -> tuple[Array, Cache]:
    """out of shape (B, 2 dim), for x (B, dim) and level (B,).

    level is 10 t / T - 5, from `dpm2015.network_input`: from it comes t, which selects the readout.
    `ops` is an argument of every network; this one has no layer in common with the others, and
    ignores it.
    """
    xp = get_array_module(x)
    T = len(params["b"]) - 1
    t = xp.rint((level + 5) / 10 * T).astype("int64")  # (B,)
    offset = x[:, None, :] - params["centre"]  # (B, units, dim)
    precision = xp.exp(-2 * params["s"])  # (units,)
    a = -0.5 * precision * (offset**2).sum(axis=2)  # (B, units)
    phi = xp.exp(a - a.max(axis=1, keepdims=True))
    phi /= phi.sum(axis=1, keepdims=True)
    out = xp.einsum("bk,bko->bo", phi, params["w"][t]) + params["b"][t]
    return out, (t, offset, precision, a, phi)


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """dL/dx of shape (B, dim) and the gradients of the parameters: `forward`, reversed.

    dL/da = phi (dL/dphi - sum of phi dL/dphi), as for every softmax;
    da/dx = -precision (x - c) = -da/dc,  da/ds = -2 a
    """
    t, offset, precision, a, phi = cache
    xp = get_array_module(a)
    one_hot = (t[:, None] == xp.arange(len(params["b"]))).astype(a.dtype)  # (B, T+1)
    grad_b = one_hot.T @ grad_out
    grad_w = xp.einsum("bt,bk,bo->tko", one_hot, phi, grad_out)
    grad_phi = xp.einsum("bo,bko->bk", grad_out, params["w"][t])
    grad_a = phi * (grad_phi - (phi * grad_phi).sum(axis=1, keepdims=True))
    grad_s = (grad_a * -2 * a).sum(axis=0)
    grad_offset = -(grad_a * precision)[:, :, None] * offset  # (B, units, dim)
    grads = {"centre": -grad_offset.sum(axis=0), "s": grad_s, "w": grad_w, "b": grad_b}
    return grad_offset.sum(axis=1), grads
