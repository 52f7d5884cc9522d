"""The parts of a network, as pairs: a forward pass, and beside it the backward pass, derived by hand.

    y, cache      = op_forward(x, ...)
    grad_x, grads = op_backward(grad_y, cache)

For a loss L, grad_y is dL/dy, handed down from above; by the chain rule grad_x = (dy/dx)^T grad_y. `cache` is what the
backward pass needs of the forward pass, and `grads` holds the parameters' gradients under the forward pass's names. No
state is kept anywhere. To check a pair of your own, see npdiff/kit/gradcheck.py.
"""

from npdiff.backend import Array, get_array_module, sigmoid
from npdiff.fuse import elementwise

Cache = tuple
Grads = dict[str, Array]


def linear_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:  # x (B, I), w (I, O), b (O,) -> y (B, O)
    """y = x w + b."""
    return x @ w + b, (x, w)


def linear_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dx = dL/dy w^T;  dL/dw = x^T dL/dy;  dL/db = the sum of dL/dy over the batch."""
    x, w = cache
    grad_x = grad_y @ w.T  # (B, I)
    grad_w = x.T @ grad_y  # (I, O)
    grad_b = grad_y.sum(axis=0)  # (O,)
    return grad_x, {"w": grad_w, "b": grad_b}


def silu_forward(x: Array) -> tuple[Array, Cache]:  # any shape
    """y = x sigmoid(x)."""
    y, s = _silu(x)
    return y, (s, y)


def silu_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dx = dL/dy dy/dx, with s = sigmoid(x) and dy/dx = s + x s (1 - s) = s + y (1 - s)."""
    s, y = cache
    return _silu_gradient(grad_y, s, y), {}


@elementwise
def _silu(x: Array) -> tuple[Array, Array]:
    s = sigmoid(x)
    return x * s, s


@elementwise
def _silu_gradient(grad_y: Array, s: Array, y: Array) -> Array:
    return grad_y * (s + y * (1 - s))


def embed_forward(x: Array, frequencies: Array) -> tuple[Array, Cache]:  # x (B, I), frequencies (I, F) -> y (B, 2 F)
    """y = [sin(x f), cos(x f)]: waves, by which a small network can tell close inputs apart. The frequencies are fixed."""
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


def residual_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:  # x (B, C) -> y (B, C)
    """y = x + linear(silu(x)): the layer learns what to add to x."""
    h, silu_cache = silu_forward(x)
    h, linear_cache = linear_forward(h, w, b)
    return x + h, (silu_cache, linear_cache)


def residual_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """dL/dx = dL/dy, straight through the sum, plus what comes back through the layer."""
    silu_cache, linear_cache = cache
    grad_h, grads = linear_backward(grad_y, linear_cache)
    grad_h, _ = silu_backward(grad_h, silu_cache)
    return grad_y + grad_h, grads
