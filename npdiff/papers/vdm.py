"""Variational diffusion models: a network for the bound. Kingma, Salimans, Poole & Ho 2021, arXiv:2107.00630.

What the paper proposed: train for the likelihood itself, on many levels from almost no noise on. There the last bits of a pixel
decide, and a network that sees x alone cannot tell values apart that differ by a hundredth. So x is shown to it as waves too, fast
enough to see one of the 256 values beside the next. In small steps the bound depends on the two ends of the schedule alone;
`schedule.uniform_log_snr` is such a schedule. The paper also learns the ends, and the spacing for the least variance; here
`improved_ddpm.ImportanceSampler` does that.

    init(rng) -> params;    forward(params, x, level, label) -> out, cache;    backward(params, cache, grad_out) -> grad_x, grads

The network is the U-Net of npdiff/nn/unet.py, with [guess, o] for its output (see improved_ddpm.py).
"""

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn import unet
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree

FREQUENCIES = np.pi * 2.0 ** np.array([3, 5, 7])  # per unit of x; 256 values lie 2/255 apart. The paper's are pi 2^7 and pi 2^8


def init(rng: np.random.Generator, channels: int = 1, classes: int = 10, width: int = 32) -> Tree:
    """The U-Net's parameters, for x and its waves, and for two outputs a channel."""
    return unet.init(rng, channels * (1 + 2 * len(FREQUENCIES)), classes, width, outputs=2 * channels)


def forward(params: Tree, x: Array, level: Array, label: np.ndarray | None = None) -> tuple[Array, Cache]:
    """out = unet([x, sin(f x), cos(f x), ...], level, label).  x (B, H, W, C) -> out (B, H, W, 2 C)."""
    xp = get_array_module(x)
    waves = [(xp.sin(float(f) * x), xp.cos(float(f) * x)) for f in FREQUENCIES]
    out, cache = unet.forward(params, xp.concatenate([x, *(wave for pair in waves for wave in pair)], axis=3), level, label)
    return out, (waves, cache)


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """d sin(f x)/dx = f cos(f x), d cos(f x)/dx = -f sin(f x)."""
    waves, cache = cache
    grad_inputs, grads = unet.backward(params, cache, grad_out)
    channels = waves[0][0].shape[3]
    grad_x = grad_inputs[..., :channels].copy()
    for i, (f, (sin, cos)) in enumerate(zip(FREQUENCIES, waves, strict=True)):
        grad_sin, grad_cos = (grad_inputs[..., (2 * i + k) * channels : (2 * i + k + 1) * channels] for k in (1, 2))
        grad_x += float(f) * (cos * grad_sin - sin * grad_cos)
    return grad_x, grads
