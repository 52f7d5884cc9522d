"""Variational diffusion models: a network for the bound. Kingma, Salimans, Poole & Ho 2021, arXiv:2107.00630.

What the paper proposed: train for the likelihood itself, on many levels from almost no noise on. There the last bits of a pixel
decide, and a network that sees x alone cannot tell values apart that differ by a hundredth. So x is shown to it as waves too, fast
enough to see one of the 256 values beside the next. In small steps the bound depends on the two ends of the schedule alone;
`schedule.uniform_log_snr` is such a schedule. The paper also learns the ends, and the spacing for the least variance; here
`improved_ddpm.ImportanceSampler` does that.

    init(rng) -> params;    forward(params, x, level, label) -> out, cache;    backward(params, cache, grad_out) -> grad_x, grads

The network is the U-Net of npdiff/nn/unet.py, with [guess, o] for its output (see improved_ddpm.py). The U-Net's fine level has a pixel
for each 2 x 2 of its image. That is enough for looks; the bound wants every pixel to itself, as the paper's network gives it. So eight
channels, x, its waves and ones that tell where the image ends, go in as an image of twice the size: the fine level is at x's own pixels.
"""

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn import unet
from npdiff.nn.conv import depth_to_space, space_to_depth
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree

FREQUENCIES = np.pi * 2.0 ** np.array([3, 5, 7])  # per unit of x; 256 values lie 2/255 apart. The paper's are pi 2^7 and pi 2^8


def init(rng: np.random.Generator, channels: int = 1, classes: int = 10, width: int = 32) -> Tree:
    """The U-Net's parameters, for eight channels of each of x's, and for four numbers a pixel, of which two are used."""
    return unet.init(rng, 2 * channels, classes, width, outputs=channels)


def forward(params: Tree, x: Array, level: Array, label: np.ndarray | None = None) -> tuple[Array, Cache]:
    """out = unet([x, sin(f x), cos(f x), ..., 1], level, label).  x (B, H, W, C) -> out (B, H, W, 2 C)."""
    xp = get_array_module(x)
    waves = [(xp.sin(float(f) * x), xp.cos(float(f) * x)) for f in FREQUENCIES]
    inputs = xp.concatenate([x, *(wave for pair in waves for wave in pair), xp.ones_like(x)], axis=3)  # (B, H, W, 8 C)
    out, cache = unet.forward(params, depth_to_space(inputs), level, label)  # (B, 2 H, 2 W, C)
    return space_to_depth(out)[..., : 2 * x.shape[3]], (waves, cache)


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """d sin(f x)/dx = f cos(f x), d cos(f x)/dx = -f sin(f x); the two outputs that are not used have no gradient."""
    waves, cache = cache
    xp, channels = get_array_module(grad_out), grad_out.shape[3] // 2
    grad_all = xp.concatenate([grad_out, xp.zeros_like(grad_out)], axis=3)  # (B, H, W, 4 C)
    grad_inputs, grads = unet.backward(params, cache, depth_to_space(grad_all))
    grad_inputs = space_to_depth(grad_inputs)  # (B, H, W, 8 C)
    grad_x = grad_inputs[..., :channels].copy()
    for i, (f, (sin, cos)) in enumerate(zip(FREQUENCIES, waves, strict=True)):
        grad_sin, grad_cos = (grad_inputs[..., (2 * i + k) * channels : (2 * i + k + 1) * channels] for k in (1, 2))
        grad_x += float(f) * (cos * grad_sin - sin * grad_cos)
    return grad_x, grads
