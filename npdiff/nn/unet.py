"""A U-Net for small images: out = net(x, level, label), with x and out of shape (B, H, W, C).

    init(rng)                         -> params
    forward(params, x, level, label)  -> out, cache
    backward(params, cache, grad_out) -> grad_x, grads

The U, from x to out. One pixel of the fine level holds 2 x 2 pixels of x. Every block is given e,
an embedding of the noise level and the class; the class may be left out.

    fine     first - encode_fine ----------------- skip ----------------- decode_fine - last
                          |                                                    |
    coarse             shrink - encode_coarse ---- skip ---- decode_coarse - grow
                                      |                            |
                                      +--------- middle -----------+

    fine (B, H/2, W/2, width), coarse (B, H/4, W/4, 2 width)

The network is made of the pairs of `ops`: npdiff/nn/conv.py, unless `forward` is given others. The
cache passes them on to `backward`.
"""

import math
from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn import conv
from npdiff.nn.conv import depth_to_space, space_to_depth
from npdiff.nn.ops import Cache, check_inputs
from npdiff.nn.params import Tree

# Waves along level = log(noise / signal): the longest spans the whole range of levels, the shortest
# tells apart levels that differ by 1/4.
FREQUENCIES = 0.2 * 1.12 ** np.arange(32)
GROUPS = 8  # of channels, in every group norm
STRIDE = 4  # between pixels of x and those of the coarse level
NO_CLASS = -1  # the label of "no class given"; it names the last row of the lookup table


def init(
    rng: np.random.Generator,
    channels: int = 1,
    classes: int = 10,
    width: int = 32,
    outputs: int | None = None,
) -> Tree:
    """Float32 parameters for x of shape (B, H, W, channels): 448 thousand of them at width 32.

    Weights are drawn from N(0, 1 / inputs), class embeddings from N(0, 1). The last convolution of
    each block and that of the network start at zero: an untrained block adds nothing to its skip
    connection, and the output of an untrained network is 0. `outputs` is the number of channels of
    the output; default `channels`.
    """
    if width % GROUPS:
        raise ValueError(f"width must be a multiple of {GROUPS}, got {width}")
    fine, coarse, embedding = width, 2 * width, 4 * width
    return {
        "embedding": {
            "linear_1": layer(rng, 2 * len(FREQUENCIES), embedding),
            "linear_2": layer(rng, embedding, embedding),
            "lookup": {"table": rng.standard_normal((classes + 1, embedding), dtype=np.float32)},
        },
        "first": layer(rng, 3, 3, 4 * channels, fine),
        "encode_fine": block(rng, fine, fine, embedding),
        "shrink": layer(rng, 3, 3, fine, coarse),
        "encode_coarse": block(rng, coarse, coarse, embedding),
        "middle": block(rng, coarse, coarse, embedding),
        "decode_coarse": block(rng, 2 * coarse, coarse, embedding),
        "grow": layer(rng, 3, 3, coarse, fine),
        "decode_fine": block(rng, 2 * fine, fine, embedding),
        "norm": norm(fine),
        "last": layer(rng, 3, 3, fine, 4 * (outputs or channels), scale=0.0),
    }


def layer(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Tree:
    """A linear layer, w (I, O), or a convolution, w (K, K, I, O).

    w has the variance scale^2 / inputs, and b is 0.
    """
    deviation = np.float32(scale / math.sqrt(math.prod(shape[:-1])))
    w = deviation * rng.standard_normal(shape, dtype=np.float32)
    return {"w": w, "b": np.zeros(shape[-1], np.float32)}


def norm(channels: int) -> Tree:
    """A group norm: gain 1, bias 0."""
    return {"gain": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}


def block(rng: np.random.Generator, inputs: int, outputs: int, embedding: int) -> Tree:
    """A residual block.

    Where it changes the number of channels, its skip connection is a 1 x 1 convolution.
    """
    params = {
        "norm_1": norm(inputs),
        "conv_1": layer(rng, 3, 3, inputs, outputs),
        "modulation": layer(rng, embedding, 2 * outputs),
        "norm_2": norm(outputs),
        "conv_2": layer(rng, 3, 3, outputs, outputs, scale=0.0),
    }
    return params if inputs == outputs else {**params, "bypass": layer(rng, 1, 1, inputs, outputs)}


def forward(
    params: Tree, x: Array, level: Array, label: np.ndarray | None = None, ops: Any = conv
) -> tuple[Array, Cache]:
    """out (B, H, W, C), from x (B, H, W, C), level = log(noise / signal), (B,), and label (B,).

    label is an array of ints on the host: 0..classes-1, or NO_CLASS. label=None means NO_CLASS for
    every image. ValueError unless H and W are multiples of STRIDE.
    """
    if x.shape[1] % STRIDE or x.shape[2] % STRIDE:
        raise ValueError(
            f"x must have shape (B, H, W, C), H and W multiples of {STRIDE}, got {x.shape}"
        )
    h, cache = fine_forward(params, space_to_depth(x), level, label, ops)
    return depth_to_space(h), cache


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """dL/dx (B, H, W, C) and the gradients of the parameters, from grad_out = dL/d out."""
    grad_h, grads = fine_backward(params, cache, space_to_depth(grad_out))
    return depth_to_space(grad_h), grads


def fine_forward(
    params: Tree, x: Array, level: Array, label: np.ndarray | None, ops: Any
) -> tuple[Array, Cache]:
    """The U itself, on pixels of the fine level.

    x (B, h, w, 4 C), h and w even -> out (B, h, w, 4 C).
    """
    xp = get_array_module(x)
    check_inputs(x, level)
    if label is None:
        label = np.full(len(x), NO_CLASS)
    if len(label) != len(x):
        raise ValueError(f"label must have shape ({len(x)},), one for each image, got {len(label)}")
    e, embedding = embedding_forward(level, label, params["embedding"], ops)  # (B, E)
    h, first = ops.conv2d_forward(x, **params["first"])  # (B, h, w, width)
    fine, encode_fine = block_forward(h, e, params["encode_fine"], ops)
    h, shrink = ops.conv2d_forward(fine, **params["shrink"], stride=2)  # (B, h/2, w/2, 2 width)
    coarse, encode_coarse = block_forward(h, e, params["encode_coarse"], ops)
    h, middle = block_forward(coarse, e, params["middle"], ops)
    h, decode_coarse = block_forward(
        xp.concatenate([h, coarse], axis=3), e, params["decode_coarse"], ops
    )
    h, upsample = ops.upsample_forward(h)  # (B, h, w, 2 width)
    h, grow = ops.conv2d_forward(h, **params["grow"])  # (B, h, w, width)
    h, decode_fine = block_forward(xp.concatenate([h, fine], axis=3), e, params["decode_fine"], ops)
    h, norm = ops.group_norm_forward(h, **params["norm"], groups=GROUPS)
    h, silu = ops.silu_forward(h)
    out, last = ops.conv2d_forward(h, **params["last"])  # (B, h, w, 4 C)
    cache = (
        *(ops, embedding, first, encode_fine, shrink, encode_coarse, middle),
        *(decode_coarse, upsample, grow, decode_fine, norm, silu, last),
    )
    return out, cache


def fine_backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """dL/dx and the gradients of the parameters: the lines of `fine_forward`, reversed."""
    ops, embedding, first, encode_fine, shrink, encode_coarse, middle = cache[:7]
    decode_coarse, upsample, grow, decode_fine, norm, silu, last = cache[7:]
    grads: Tree = dict.fromkeys(params)  # in the order of params
    grad_h, grads["last"] = ops.conv2d_backward(grad_out, last)
    grad_h, _ = ops.silu_backward(grad_h, silu)
    grad_h, grads["norm"] = ops.group_norm_backward(grad_h, norm)
    grad_both, grad_e_5, grads["decode_fine"] = block_backward(grad_h, decode_fine, ops)
    grad_h, grad_fine = halves(grad_both)
    grad_h, grads["grow"] = ops.conv2d_backward(grad_h, grow)
    grad_h, _ = ops.upsample_backward(grad_h, upsample)
    grad_both, grad_e_4, grads["decode_coarse"] = block_backward(grad_h, decode_coarse, ops)
    grad_h, grad_coarse = halves(grad_both)
    grad_h, grad_e_3, grads["middle"] = block_backward(grad_h, middle, ops)
    grad_h, grad_e_2, grads["encode_coarse"] = block_backward(
        grad_coarse + grad_h, encode_coarse, ops
    )
    grad_h, grads["shrink"] = ops.conv2d_backward(grad_h, shrink)
    grad_h, grad_e_1, grads["encode_fine"] = block_backward(grad_fine + grad_h, encode_fine, ops)
    grad_x, grads["first"] = ops.conv2d_backward(grad_h, first)
    grad_e = grad_e_1 + grad_e_2 + grad_e_3 + grad_e_4 + grad_e_5
    grads["embedding"] = embedding_backward(grad_e, embedding, ops)
    return grad_x, grads


def halves(x: Array) -> tuple[Array, Array]:
    """The backward pass of a concatenation.   x (B, H, W, 2 C) -> (B, H, W, C) and (B, H, W, C)."""
    channels = x.shape[3] // 2
    return x[..., :channels], x[..., channels:]


def embedding_forward(
    level: Array, label: np.ndarray, params: Tree, ops: Any
) -> tuple[Array, Cache]:
    """e = silu(linear_2(silu(linear_1(waves of the level))) + table[label]).

    level (B,), label (B,) -> e (B, E).
    """
    waves = ops.level_waves(level, FREQUENCIES)  # (B, 64)
    h, linear_1 = ops.linear_forward(waves, **params["linear_1"])  # (B, E)
    h, silu_1 = ops.silu_forward(h)
    h, linear_2 = ops.linear_forward(h, **params["linear_2"])
    y, lookup = ops.lookup_forward(label, **params["lookup"])
    e, silu_2 = ops.silu_forward(h + y)
    return e, (linear_1, silu_1, linear_2, lookup, silu_2)


def embedding_backward(grad_e: Array, cache: Cache, ops: Any) -> Tree:
    """The gradients of the parameters. The level and the label have none."""
    linear_1, silu_1, linear_2, lookup, silu_2 = cache
    grad_h, _ = ops.silu_backward(grad_e, silu_2)
    _, grad_lookup = ops.lookup_backward(grad_h, lookup)
    grad_h, grad_linear_2 = ops.linear_backward(grad_h, linear_2)
    grad_h, _ = ops.silu_backward(grad_h, silu_1)
    _, grad_linear_1 = ops.linear_backward(grad_h, linear_1)
    return {"linear_1": grad_linear_1, "linear_2": grad_linear_2, "lookup": grad_lookup}


def block_forward(x: Array, e: Array, params: Tree, ops: Any) -> tuple[Array, Cache]:
    """y = bypass(x) + conv_2(silu(scale_shift(norm_2(conv_1(silu(norm_1(x))))))).

    [scale, shift] = modulation(e). bypass(x) is x unless the block changes the number of channels.

    x (B, H, W, I), e (B, E) -> y (B, H, W, O).
    """
    h, norm_1 = ops.group_norm_forward(x, **params["norm_1"], groups=GROUPS)  # (B, H, W, I)
    h, silu_1 = ops.silu_forward(h)
    h, conv_1 = ops.conv2d_forward(h, **params["conv_1"])  # (B, H, W, O)
    h, norm_2 = ops.group_norm_forward(h, **params["norm_2"], groups=GROUPS)
    both, modulation = ops.linear_forward(e, **params["modulation"])  # (B, 2 O)
    scale, shift = both[:, : h.shape[3]], both[:, h.shape[3] :]
    h, scale_shift = ops.scale_shift_forward(h, scale, shift)
    h, silu_2 = ops.silu_forward(h)
    h, conv_2 = ops.conv2d_forward(h, **params["conv_2"])
    bypass = None
    if "bypass" in params:
        x, bypass = ops.conv2d_forward(x, **params["bypass"])
    return x + h, (norm_1, silu_1, conv_1, norm_2, modulation, scale_shift, silu_2, conv_2, bypass)


def block_backward(grad_y: Array, cache: Cache, ops: Any) -> tuple[Array, Array, Tree]:
    """dL/dx, dL/de and the gradients of the parameters: `block_forward`, line by line reversed."""
    norm_1, silu_1, conv_1, norm_2, modulation, scale_shift, silu_2, conv_2, bypass = cache
    grads: Tree = dict.fromkeys(("norm_1", "conv_1", "modulation", "norm_2", "conv_2"))
    grad_x = grad_y
    if bypass is not None:
        grad_x, grads["bypass"] = ops.conv2d_backward(grad_y, bypass)
    grad_h, grads["conv_2"] = ops.conv2d_backward(grad_y, conv_2)
    grad_h, _ = ops.silu_backward(grad_h, silu_2)
    grad_h, modulated = ops.scale_shift_backward(grad_h, scale_shift)
    grad_both = get_array_module(grad_y).concatenate(
        [modulated["scale"], modulated["shift"]], axis=1
    )
    grad_e, grads["modulation"] = ops.linear_backward(grad_both, modulation)
    grad_h, grads["norm_2"] = ops.group_norm_backward(grad_h, norm_2)
    grad_h, grads["conv_1"] = ops.conv2d_backward(grad_h, conv_1)
    grad_h, _ = ops.silu_backward(grad_h, silu_1)
    grad_h, grads["norm_1"] = ops.group_norm_backward(grad_h, norm_1)
    return grad_x + grad_h, grad_e, grads
