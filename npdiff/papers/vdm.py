"""Variational diffusion models: a network for the bound. Kingma et al. 2021, arXiv:2107.00630.

What the paper proposed: train for the likelihood itself, on many levels, the first with almost no
noise. There the last bits of a pixel decide, and a network that sees x alone cannot tell values
apart that differ by a hundredth. So x is also shown to it as waves (Fourier features), fast enough
to separate neighbours among the 256 values. In small steps the bound depends on the two ends of the
schedule alone; `schedule.uniform_log_snr` is such a schedule. The paper also learns the ends, and
the spacing of least variance; here `improved_ddpm.ImportanceSampler` lowers the variance instead.

    init(rng) -> params
    forward(params, x, level, label) -> out, cache
    backward(params, cache, grad_out) -> grad_x, grads

The network is the U of npdiff/nn/unet.py, and its output is [guess, o] (see improved_ddpm.py). In
`unet.forward` a pixel of the fine level holds 2 x 2 pixels of x, which is enough for samples that
look good. The bound needs a pixel of the fine level for each pixel of x, as in the paper's network,
so `unet.fine_forward` is called here. Its input has eight channels for each of x's: x itself, six
waves, and ones, which show where the image ends.
"""

from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn import conv, unet
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree

# Per unit of x, in which the 256 values lie 2/255 apart. The paper's are pi 2^7 and pi 2^8.
FREQUENCIES = np.pi * 2.0 ** np.array([3, 5, 7])
NO_CLASS = unet.NO_CLASS


def init(rng: np.random.Generator, channels: int = 1, classes: int = 10, width: int = 32) -> Tree:
    """Float32 parameters for x of shape (B, H, W, channels).

    `unet.init` makes an input of 4 for each channel that it is asked for, so twice `channels` gives
    the eight; of the four outputs for each of x's channels two are used.
    """
    return unet.init(rng, 2 * channels, classes, width, outputs=channels)


def forward(
    params: Tree, x: Array, level: Array, label: np.ndarray | None = None, ops: Any = conv
) -> tuple[Array, Cache]:
    """out = U([x, sin(f x), cos(f x), ..., 1], level, label).  x (B, H, W, C) -> (B, H, W, 2 C).

    Level and label are those of `unet.forward`. ValueError unless H and W are even.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"x must have shape (B, H, W, C) with H and W even, got {x.shape}")
    xp = get_array_module(x)
    waves = [wave for f in FREQUENCIES for wave in (xp.sin(float(f) * x), xp.cos(float(f) * x))]
    inputs = xp.concatenate([x, *waves, xp.ones_like(x)], axis=3)  # (B, H, W, 8 C)
    h, cache = unet.fine_forward(params, inputs, level, label, ops)  # (B, H, W, 4 C)
    return h[..., : 2 * x.shape[3]], (waves, cache)


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """dL/dx and the gradients of the parameters: the lines of `forward`, reversed.

    d sin(f x)/dx = f cos(f x),  d cos(f x)/dx = -f sin(f x);  the outputs that are not used have
    gradient 0.
    """
    waves, cache = cache
    xp, channels = get_array_module(grad_out), grad_out.shape[3] // 2
    grad_h = xp.concatenate([grad_out, xp.zeros_like(grad_out)], axis=3)  # (B, H, W, 4 C)
    grad_inputs, grads = unet.fine_backward(params, cache, grad_h)  # (B, H, W, 8 C)
    grad_x, *grad_waves = (
        grad_inputs[..., i : i + channels] for i in range(0, 7 * channels, channels)
    )
    for i, f in enumerate(FREQUENCIES):
        sin, cos = waves[2 * i : 2 * i + 2]
        grad_sin, grad_cos = grad_waves[2 * i : 2 * i + 2]
        grad_x = grad_x + float(f) * (cos * grad_sin - sin * grad_cos)
    return grad_x, grads
