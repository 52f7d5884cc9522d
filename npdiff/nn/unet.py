"""A U-Net for small images: out = net(x, level, label), both of shape (B, H, W, C), the class label optional.

    init(rng) -> params;    forward(params, x, level, label) -> out, cache;    backward(params, cache, grad_out) -> grad_x, grads

The U, from x to out. A pixel of the fine level holds 2 x 2 pixels of x. Every block is told e, an embedding of level and class.

    fine    (B, H/2, W/2, width)     first - encode_fine ------------------ skip ------------------- decode_fine - last
                                                  |                                                       |
    coarse  (B, H/4, W/4, 2 width)             shrink - encode_coarse ----- skip ----- decode_coarse - grow
                                                              |                              |
                                                              +---------- middle ------------+
"""

import math

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.nn.conv import (
    conv2d_backward,
    conv2d_forward,
    depth_to_space,
    group_norm_backward,
    group_norm_forward,
    lookup_backward,
    lookup_forward,
    scale_shift_backward,
    scale_shift_forward,
    space_to_depth,
    upsample_backward,
    upsample_forward,
)
from npdiff.nn.ops import Cache, embed_forward, linear_backward, linear_forward, silu_backward, silu_forward
from npdiff.nn.params import Tree

# Waves along level = log(noise/signal), from one that spans the whole range to one that tells levels of 1/4 apart.
# Beyond the range x is data, or noise, to within a part in a thousand.
FREQUENCIES = 0.2 * 1.12 ** np.arange(32)
LEVEL_MIN, LEVEL_MAX = -7.0, 7.0
GROUPS = 8  # of channels, in every group norm
STRIDE = 4  # between pixels of x and those of the coarse level


def init(rng: np.random.Generator, channels: int = 1, classes: int = 10, width: int = 32, outputs: int | None = None) -> Tree:
    """Float32 parameters for x of shape (B, H, W, channels): 448 thousand of them at width 32. `outputs` channels of out, as many if None.

    Weights are drawn from N(0, 1/inputs), class embeddings from N(0, 1); row `classes` stands for no class. Whatever ends
    a block starts at zero, and so does the last convolution: an untrained block adds nothing, an untrained network puts out 0.
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
    """Weights of a linear layer, shape (I, O), or of a convolution, shape (K, K, I, O), of variance scale^2/inputs; biases 0."""
    deviation = np.float32(scale / math.sqrt(math.prod(shape[:-1])))
    return {"w": deviation * rng.standard_normal(shape, dtype=np.float32), "b": np.zeros(shape[-1], np.float32)}


def norm(channels: int) -> Tree:
    return {"gain": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}


def block(rng: np.random.Generator, inputs: int, outputs: int, embedding: int) -> Tree:
    """Parameters of a residual block. Where the number of channels changes, x passes by through a 1 x 1 convolution."""
    params = {
        "norm_1": norm(inputs),
        "conv_1": layer(rng, 3, 3, inputs, outputs),
        "modulation": layer(rng, embedding, 2 * outputs),
        "norm_2": norm(outputs),
        "conv_2": layer(rng, 3, 3, outputs, outputs, scale=0.0),
    }
    return params if inputs == outputs else {**params, "bypass": layer(rng, 1, 1, inputs, outputs)}


def embedding_forward(level: Array, label: np.ndarray, linear_1: Tree, linear_2: Tree, lookup: Tree) -> tuple[Array, Cache]:
    """e = silu(linear_2(silu(linear_1(waves of the level))) + table[label]).  level (B,), label (B,) -> e (B, E)."""
    xp = get_array_module(level)
    level = xp.clip(level, LEVEL_MIN, LEVEL_MAX)[:, None]  # (B, 1)
    waves, _ = embed_forward(level, xp.asarray(FREQUENCIES[None].astype(level.dtype)))  # (B, 64)
    h, linear_1_cache = linear_forward(waves, **linear_1)  # (B, E)
    h, silu_1_cache = silu_forward(h)
    h, linear_2_cache = linear_forward(h, **linear_2)
    y, lookup_cache = lookup_forward(label, **lookup)
    e, silu_2_cache = silu_forward(h + y)
    return e, (linear_1_cache, silu_1_cache, linear_2_cache, lookup_cache, silu_2_cache)


def embedding_backward(grad_e: Array, cache: Cache) -> Tree:
    """The gradients of the parameters; those of the level and the label end here."""
    linear_1_cache, silu_1_cache, linear_2_cache, lookup_cache, silu_2_cache = cache
    grad_h, _ = silu_backward(grad_e, silu_2_cache)
    _, lookup = lookup_backward(grad_h, lookup_cache)
    grad_h, linear_2 = linear_backward(grad_h, linear_2_cache)
    grad_h, _ = silu_backward(grad_h, silu_1_cache)
    _, linear_1 = linear_backward(grad_h, linear_1_cache)
    return {"linear_1": linear_1, "linear_2": linear_2, "lookup": lookup}


def block_forward(
    x: Array, e: Array, norm_1: Tree, conv_1: Tree, modulation: Tree, norm_2: Tree, conv_2: Tree, bypass: Tree | None = None
) -> tuple[Array, Cache]:  # x (B, H, W, I), e (B, E) -> y (B, H, W, O)
    """y = bypass(x) + conv_2(silu(scale_shift(norm_2(conv_1(silu(norm_1(x)))))), with [scale, shift] = linear(e)."""
    h, norm_1_cache = group_norm_forward(x, **norm_1, groups=GROUPS)  # (B, H, W, I)
    h, silu_1_cache = silu_forward(h)
    h, conv_1_cache = conv2d_forward(h, **conv_1)  # (B, H, W, O)
    h, norm_2_cache = group_norm_forward(h, **norm_2, groups=GROUPS)
    told, modulation_cache = linear_forward(e, **modulation)  # (B, 2 O)
    h, scale_shift_cache = scale_shift_forward(h, scale=told[:, : h.shape[3]], shift=told[:, h.shape[3] :])
    h, silu_2_cache = silu_forward(h)
    h, conv_2_cache = conv2d_forward(h, **conv_2)
    x, bypass_cache = conv2d_forward(x, **bypass) if bypass else (x, None)
    inner = norm_1_cache, silu_1_cache, conv_1_cache, norm_2_cache, modulation_cache, scale_shift_cache, silu_2_cache, conv_2_cache
    return x + h, (inner, bypass_cache)


def block_backward(grad_y: Array, cache: Cache) -> tuple[Array, Array, Tree]:
    """dL/dx, dL/de and the gradients of the parameters: the lines of `block_forward`, reversed."""
    inner, bypass_cache = cache
    norm_1_cache, silu_1_cache, conv_1_cache, norm_2_cache, modulation_cache, scale_shift_cache, silu_2_cache, conv_2_cache = inner
    grad_x, bypass = conv2d_backward(grad_y, bypass_cache) if bypass_cache else (grad_y, None)
    grad_h, conv_2 = conv2d_backward(grad_y, conv_2_cache)
    grad_h, _ = silu_backward(grad_h, silu_2_cache)
    grad_h, told = scale_shift_backward(grad_h, scale_shift_cache)
    grad_told = get_array_module(grad_y).concatenate([told["scale"], told["shift"]], axis=1)  # (B, 2 O)
    grad_e, modulation = linear_backward(grad_told, modulation_cache)
    grad_h, norm_2 = group_norm_backward(grad_h, norm_2_cache)
    grad_h, conv_1 = conv2d_backward(grad_h, conv_1_cache)
    grad_h, _ = silu_backward(grad_h, silu_1_cache)
    grad_h, norm_1 = group_norm_backward(grad_h, norm_1_cache)
    grads = {"norm_1": norm_1, "conv_1": conv_1, "modulation": modulation, "norm_2": norm_2, "conv_2": conv_2}
    return grad_x + grad_h, grad_e, {**grads, "bypass": bypass} if bypass else grads


def forward(params: Tree, x: Array, level: Array, label: np.ndarray | None = None) -> tuple[Array, Cache]:
    """out of x's shape (B, H, W, C), for level = log(noise/signal) of shape (B,) and label of shape (B,) on the host, in 0..classes.

    The label `classes`, one more than the last class, means no class, and so does label=None. ValueError unless H and W are
    multiples of STRIDE.
    """
    if x.shape[1] % STRIDE or x.shape[2] % STRIDE:
        raise ValueError(f"x must have shape (B, H, W, C), with H and W multiples of {STRIDE}, got {x.shape}")
    xp = get_array_module(x)
    if label is None:
        label = np.full(len(x), len(params["embedding"]["lookup"]["table"]) - 1)
    e, embedding = embedding_forward(level, label, **params["embedding"])  # (B, E)
    h, first = conv2d_forward(space_to_depth(x), **params["first"])  # (B, H/2, W/2, width)
    fine, encode_fine = block_forward(h, e, **params["encode_fine"])
    h, shrink = conv2d_forward(fine, **params["shrink"], stride=2)  # (B, H/4, W/4, 2 width)
    coarse, encode_coarse = block_forward(h, e, **params["encode_coarse"])
    h, middle = block_forward(coarse, e, **params["middle"])
    h, decode_coarse = block_forward(xp.concatenate([h, coarse], axis=3), e, **params["decode_coarse"])
    h, upsample = upsample_forward(h)  # (B, H/2, W/2, 2 width)
    h, grow = conv2d_forward(h, **params["grow"])  # (B, H/2, W/2, width)
    h, decode_fine = block_forward(xp.concatenate([h, fine], axis=3), e, **params["decode_fine"])
    h, norm = group_norm_forward(h, **params["norm"], groups=GROUPS)
    h, silu = silu_forward(h)
    h, last = conv2d_forward(h, **params["last"])  # (B, H/2, W/2, 4 C)
    cache = embedding, first, encode_fine, shrink, encode_coarse, middle, decode_coarse, upsample, grow, decode_fine, norm, silu, last
    return depth_to_space(h), cache


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """dL/dx of shape (B, H, W, C), and dL/d(every parameter), from grad_out = dL/d(out): the lines of `forward`, reversed."""
    embedding, first, encode_fine, shrink, encode_coarse, middle, decode_coarse, upsample, grow, decode_fine, norm, silu, last = cache
    grads: Tree = dict.fromkeys(params)  # in the order of params
    grad_h, grads["last"] = conv2d_backward(space_to_depth(grad_out), last)
    grad_h, _ = silu_backward(grad_h, silu)
    grad_h, grads["norm"] = group_norm_backward(grad_h, norm)
    grad_both, grad_e_5, grads["decode_fine"] = block_backward(grad_h, decode_fine)
    grad_h, grad_fine = halves(grad_both)
    grad_h, grads["grow"] = conv2d_backward(grad_h, grow)
    grad_h, _ = upsample_backward(grad_h, upsample)
    grad_both, grad_e_4, grads["decode_coarse"] = block_backward(grad_h, decode_coarse)
    grad_h, grad_coarse = halves(grad_both)
    grad_h, grad_e_3, grads["middle"] = block_backward(grad_h, middle)
    grad_h, grad_e_2, grads["encode_coarse"] = block_backward(grad_coarse + grad_h, encode_coarse)
    grad_h, grads["shrink"] = conv2d_backward(grad_h, shrink)
    grad_h, grad_e_1, grads["encode_fine"] = block_backward(grad_fine + grad_h, encode_fine)
    grad_h, grads["first"] = conv2d_backward(grad_h, first)
    grads["embedding"] = embedding_backward(grad_e_1 + grad_e_2 + grad_e_3 + grad_e_4 + grad_e_5, embedding)
    return depth_to_space(grad_h), grads


def halves(x: Array) -> tuple[Array, Array]:  # x (B, H, W, 2 C) -> (B, H, W, C) and (B, H, W, C): a concatenation undone
    channels = x.shape[3] // 2
    return x[..., :channels], x[..., channels:]
