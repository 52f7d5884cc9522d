"""Is a hand-written gradient right?

Compare it with finite differences, along one random direction for each array.

    errors = check_pair(my_forward, my_backward, x, rng, w=w, b=b)
    assert max(errors.values()) < 1e-5, errors

`check_jvp` does the same for a network's derivative in a direction, which is written by hand too.

Use float64 arrays of random values: a gain of 1, a bias of 0 or an upstream gradient of ones hides
real bugs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module, to_numpy
from npdiff.nn.params import Tree


def directional_error(
    f: Callable[[Array], Array], x: Array, grad: Array, rng: np.random.Generator, h: float = 1e-5
) -> float:
    """The relative error of `grad`, judged by the slope of the scalar f at x along a direction d.

    analytic = grad . d,    |d| = 1
    numeric  = (f(x + h d) - f(x - h d)) / (2 h), whose own error is of order h^2
    error    = |numeric - analytic| / max(|numeric|, |analytic|)

    Parameters
    ----------
    f : takes an array of x's shape to a number
    x, grad : float64 arrays of one shape, not empty

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Where x is not float64, or the shapes differ.
    """
    if x.dtype != "float64" or x.shape != grad.shape:
        raise ValueError(
            "x and grad must be float64 of one shape, "
            f"got {x.dtype} {x.shape} and {grad.dtype} {grad.shape}"
        )
    d = get_array_module(x).asarray(_direction(to_numpy(grad), rng))
    numeric = float(f(x + h * d) - f(x - h * d)) / (2 * h)
    analytic = float((grad * d).sum())
    return abs(numeric - analytic) / max(abs(numeric), abs(analytic), 1e-300)


def _direction(grad: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random direction of length 1, at most 45 degrees from grad.

    Otherwise the slope could be small by chance, and its error all rounding.
    """
    d = rng.standard_normal(grad.shape)
    d *= (1.0 if (d * grad).sum() >= 0 else -1.0) / np.linalg.norm(d)
    d += grad / max(np.linalg.norm(grad), 1e-300)
    return d / np.linalg.norm(d)


def check_pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    x: Array,
    rng: np.random.Generator,
    **params: Array,
) -> dict[str, float]:
    """The relative error of each gradient of an op, under a random upstream gradient.

    Parameters
    ----------
    forward : forward(x, **params) -> y, cache
    backward : backward(grad_y, cache) -> grad_x, grads, with grads named as params
    x, params : float64 arrays

    Returns
    -------
    dict : the error of dL/dx under "x", and that of each parameter under its name
    """
    y, cache = forward(x, **params)
    grad_y = get_array_module(x).asarray(rng.standard_normal(y.shape))
    grad_x, grads = backward(grad_y, cache)
    if set(grads) != set(params):
        raise ValueError(
            f"the backward pass gives gradients of {sorted(grads)}, "
            f"the forward pass takes {sorted(params)}"
        )

    def loss(x: Array, **changed: Array) -> Array:
        y, _ = forward(x, **{**params, **changed})
        return (y * grad_y).sum()

    def loss_along(name: str) -> Callable[[Array], Array]:
        return lambda value: loss(x, **{name: value})

    errors = {"x": directional_error(loss, x, grad_x, rng)}
    for name, grad in grads.items():
        errors[name] = directional_error(loss_along(name), params[name], grad, rng)
    return errors


def check_jvp(
    net: Any, params: Tree, x: Array, level: Array, rng: np.random.Generator, h: float = 1e-5
) -> dict[str, float]:
    """The relative errors of a network's derivative d_out in random directions.

    numeric = (net(x + h d_x, level + h d_level) - net(x - h d_x, level - h d_level)) / (2 h)
    error   = |numeric - d_out| / max(|numeric|, |d_out|)

    With d_level = 0 the derivative is d_out = J d_x, where J = d out / d x is the Jacobian. From an
    upstream gradient u `backward` computes grad_x = J^T u. So u . d_out = grad_x . d_x to rounding.

    Parameters
    ----------
    net : a module with forward, backward and jvp, such as npdiff.nn.mlp
    params : its parameters, float64
    x, level : float64 arrays of shape (B, ...) and (B,)

    Returns
    -------
    dict : the error along x under "x", along level under "level", along the two together under
        "both", and |u . d_out - grad_x . d_x|, relative to the larger, under "duality"
    """
    xp = get_array_module(x)
    d_x, d_level = (xp.asarray(rng.standard_normal(a.shape)) for a in (x, level))

    def error_along(d_x: Array, d_level: Array) -> float:
        _, d_out, _ = net.jvp(params, x, level, d_x, d_level)
        ahead, _ = net.forward(params, x + h * d_x, level + h * d_level)
        behind, _ = net.forward(params, x - h * d_x, level - h * d_level)
        return _relative((ahead - behind) / (2 * h), d_out)

    errors = {
        "x": error_along(d_x, 0 * d_level),
        "level": error_along(0 * d_x, d_level),
        "both": error_along(d_x, d_level),
    }
    _, d_out, cache = net.jvp(params, x, level, d_x, 0 * d_level)
    u = xp.asarray(_direction(to_numpy(d_out), rng))
    grad_x, _ = net.backward(params, cache, u)
    errors["duality"] = _relative((u * d_out).sum(), (grad_x * d_x).sum())
    return errors


def _relative(a: Array, b: Array) -> float:
    """|a - b| / max(|a|, |b|), with Euclidean norms."""
    norm_a, norm_b, difference = (float((c * c).sum()) ** 0.5 for c in (a, b, a - b))
    return difference / max(norm_a, norm_b, 1e-300)
