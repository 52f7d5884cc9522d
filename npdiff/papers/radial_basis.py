"""The network of the 2015 paper's swiss roll: 16 normalised radial basis functions of x, and a readout of its own for every step t.

Appendix D, Sohl-Dickstein et al. 2015, arXiv:1503.03585. What later work changed: one network that is told t serves all steps, and what
it learns at one t helps at the next.

    init(rng, T) -> params;    forward(params, x, told) -> out, cache;    backward(params, cache, grad_out) -> grad_x, grads

    phi_k(x) = exp(a_k) / sum_j exp(a_j),   a_k = -exp(-2 s_k) |x - c_k|^2 / 2;     out = phi(x) W_t + b_t
"""

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree


def init(rng: np.random.Generator, T: int = 40, dim: int = 2, units: int = 16) -> Tree:
    """Centres drawn from N(0, I), widths exp(s) = 1/2, readouts 0: (T+1, units, 2 dim) and (T+1, 2 dim)."""
    return {
        "centre": rng.standard_normal((units, dim), dtype=np.float32),
        "s": np.full(units, np.log(0.5), np.float32),
        "w": np.zeros((T + 1, units, 2 * dim), np.float32),
        "b": np.zeros((T + 1, 2 * dim), np.float32),
    }


def forward(params: Tree, x: Array, told: Array) -> tuple[Array, Cache]:
    """out of shape (B, 2 dim) for x (B, dim) and told (B,), which is 10 t / T - 5."""
    xp = get_array_module(x)
    t = xp.rint((told + 5) / 10 * (len(params["b"]) - 1)).astype("int64")  # (B,)
    offset = x[:, None, :] - params["centre"]  # (B, units, dim)
    precision = xp.exp(-2 * params["s"])  # (units,)
    a = -0.5 * precision * (offset**2).sum(axis=2)  # (B, units)
    phi = xp.exp(a - a.max(axis=1, keepdims=True))
    phi /= phi.sum(axis=1, keepdims=True)
    out = xp.einsum("bk,bko->bo", phi, params["w"][t]) + params["b"][t]
    return out, (t, offset, precision, a, phi)


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """dL/da = phi (dL/dphi - sum of phi dL/dphi), as for every softmax; da/dx = -precision (x - c) = -da/dc;  da/ds = -2 a."""
    t, offset, precision, a, phi = cache
    xp = get_array_module(a)
    one_hot = (t[:, None] == xp.arange(len(params["b"]))).astype(a.dtype)  # (B, T+1)
    grad_w = xp.einsum("bt,bk,bo->tko", one_hot, phi, grad_out)
    grad_phi = xp.einsum("bo,bko->bk", grad_out, params["w"][t])
    grad_a = phi * (grad_phi - (phi * grad_phi).sum(axis=1, keepdims=True))
    grad_offset = -(grad_a * precision)[:, :, None] * offset  # (B, units, dim)
    grads = {"centre": -grad_offset.sum(axis=0), "s": (grad_a * -2 * a).sum(axis=0), "w": grad_w, "b": one_hot.T @ grad_out}
    return grad_offset.sum(axis=1), grads
