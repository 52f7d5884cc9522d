"""The U-Net as a score network: out = sigma score = (x_0_hat - x_t) / sigma, without having to learn to copy x_t.

Under wide noise out is x_t almost alone, and a small error of it hides the digit: put out by the U-Net itself, sigma score at sigma = 33
gave an x_0_hat three times further from x_0 (squared) than the mean of the class is. So x is passed by, as in table 1, Karras et al. 2022,
arXiv:2206.00364, with data of unit variance:

    x = x_t / sqrt(1 + sigma^2),    out = unet(x) / sqrt(1 + sigma^2) - sigma / sqrt(1 + sigma^2) x,    level = log sigma

It is -eps_hat of a U-Net that predicts v = -unet(x), see reverse.eps_from_output.
"""

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn import unet
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree

init = unet.init


def forward(params: Tree, x: Array, level: Array, label: np.ndarray | None = None) -> tuple[Array, Cache]:
    """As unet.forward, with out = signal unet(x) - noise x, where signal^2 + noise^2 = 1 and noise / signal = exp(level)."""
    xp, each = get_array_module(x), level[:, None, None, None]
    signal, noise = 1 / xp.sqrt(1 + xp.exp(2 * each)), 1 / xp.sqrt(1 + xp.exp(-2 * each))
    h, cache = unet.forward(params, x, level, label)
    return signal * h - noise * x, (signal, noise, cache)


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """As unet.backward."""
    signal, noise, cache = cache
    grad_x, grads = unet.backward(params, cache, signal * grad_out)
    return grad_x - noise * grad_out, grads
