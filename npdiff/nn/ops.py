"""The parts of a network, as pairs: a forward pass and its backward pass, derived by hand.

    y, cache      = op_forward(x, ...)
    grad_x, grads = op_backward(grad_y, cache)

For a loss L, grad_y is dL/dy, the upstream gradient; by the chain rule grad_x = (dy/dx)^T grad_y.
`cache` is what the backward pass needs from the forward pass. `grads` holds the gradients of the
parameters, under the names that the forward pass gives them. No state is kept anywhere. To check a
pair of your own, see npdiff/gradcheck.py.

Some have a third part, the derivative of y when x moves and the parameters do not:

    d_y = op_jvp(d_x, cache)

d_x is the rate at which x moves, and d_y = (dy/dx) d_x, a Jacobian-vector product.
"""

import numpy as np

from npdiff.backend import Array, get_array_module, sigmoid

Cache = tuple
Grads = dict[str, Array]

LEVEL_MIN, LEVEL_MAX = -7.0, 7.0  # beyond these x is data, or noise, to within a part in a thousand


def linear_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """y = x w + b.   x (B, I), w (I, O), b (O,) -> y (B, O)."""
    return x @ w + b, (x, w)


def linear_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dx = dL/dy w^T;  dL/dw = x^T dL/dy;  dL/db = the sum of dL/dy over the batch."""
    x, w = cache
    grad_x = grad_y @ w.T  # (B, I)
    grad_w = x.T @ grad_y  # (I, O)
    grad_b = grad_y.sum(axis=0)  # (O,)
    return grad_x, {"w": grad_w, "b": grad_b}


def linear_jvp(d_x: Array, cache: Cache) -> Array:
    """d_y = d_x w."""
    _, w = cache
    return d_x @ w


def silu_forward(x: Array) -> tuple[Array, Cache]:
    """y = x sigmoid(x).   any shape."""
    s = sigmoid(x)
    y = x * s
    return y, (s, y)


def silu_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dx = dL/dy dy/dx, with s = sigmoid(x) and dy/dx = s + x s (1 - s) = s + y (1 - s)."""
    s, y = cache
    return grad_y * (s + y * (1 - s)), {}


def silu_jvp(d_x: Array, cache: Cache) -> Array:
    """d_y = dy/dx d_x, with the dy/dx of `silu_backward`."""
    s, y = cache
    return d_x * (s + y * (1 - s))


def embed_forward(x: Array, frequencies: Array) -> tuple[Array, Cache]:
    """y = [sin(x f), cos(x f)]: waves that let a small network tell close inputs apart.

    x (B, I), frequencies f (I, F), which are fixed -> y (B, 2 F).
    """
    xp = get_array_module(x)
    angle = x @ frequencies  # (B, F)
    sin, cos = xp.sin(angle), xp.cos(angle)
    return xp.concatenate([sin, cos], axis=1), (sin, cos, frequencies)


def embed_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """d sin(a)/da = cos(a), d cos(a)/da = -sin(a), and a = x f."""
    sin, cos, frequencies = cache
    grad_sin, grad_cos = grad_y[:, : sin.shape[1]], grad_y[:, sin.shape[1] :]
    grad_angle = grad_sin * cos - grad_cos * sin  # (B, F)
    return grad_angle @ frequencies.T, {}


def level_waves(level: Array, frequencies: np.ndarray) -> Array:
    """[sin(level f), cos(level f)], with the level clipped to LEVEL_MIN..LEVEL_MAX.

    level = log(noise / signal) is not learned, so no gradient goes back to it.

    level (B,), frequencies (F,) on the host -> (B, 2 F).
    """
    xp = get_array_module(level)
    level = xp.clip(level, LEVEL_MIN, LEVEL_MAX)[:, None]  # (B, 1)
    waves, _ = embed_forward(level, xp.asarray(frequencies[None].astype(level.dtype)))
    return waves


def level_waves_jvp(d_level: Array, level: Array, frequencies: np.ndarray) -> Array:
    """[cos(level f) f d_level, -sin(level f) f d_level]; 0 where the level is clipped.

    d_level, level (B,), frequencies (F,) on the host -> (B, 2 F).
    """
    xp = get_array_module(level)
    f = xp.asarray(frequencies[None].astype(level.dtype))  # (1, F)
    inside = (level >= LEVEL_MIN) & (level <= LEVEL_MAX)
    angle = xp.clip(level, LEVEL_MIN, LEVEL_MAX)[:, None] * f  # (B, F)
    d_angle = (inside * d_level)[:, None] * f  # (B, F)
    return xp.concatenate([xp.cos(angle) * d_angle, -xp.sin(angle) * d_angle], axis=1)


def check_inputs(x: Array, level: Array) -> None:
    """Raise ValueError unless x is made of floats, and level has one entry for each row of x."""
    if x.dtype.kind != "f":
        raise ValueError(
            f"x must be an array of floats, scaled to about unit variance, got {x.dtype}"
        )
    if level.shape != (len(x),):
        raise ValueError(
            f"level must have shape ({len(x)},), one entry for each row, got {level.shape}"
        )
