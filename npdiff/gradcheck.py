"""Is a hand-written gradient right?

Compare it with differences, along one random direction for each array.

    errors = check_pair(my_forward, my_backward, x, rng, w=w, b=b)
    assert max(errors.values()) < 1e-5, errors

Give it float64 arrays at random values: at a gain of 1, a bias of 0 or an upstream gradient of
ones, real bugs hide.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module, to_numpy


def directional_error(
    f: Callable[[Array], Array], x: Array, grad: Array, rng: np.random.Generator, h: float = 1e-5
) -> float:
    """|numeric - analytic| / max(|numeric|, |analytic|) for the slope of the scalar f at x along a
    direction d of length 1.

    analytic = grad . d;    numeric = (f(x + h d) - f(x - h d)) / (2 h), whose own error is of order h^2.

    Parameters
    ----------
    f : takes an array of x's shape to a number
    x, grad : float64 arrays of one shape, not empty

    Raises
    ------
    ValueError
        Where x is not float64, or the shapes differ.
    """
    if x.dtype != "float64" or x.shape != grad.shape:
        raise ValueError(
            f"x and grad must be float64 of one shape, got {x.dtype} {x.shape} and {grad.dtype} {grad.shape}"
        )
    d = get_array_module(x).asarray(_direction(to_numpy(grad), rng))
    numeric = float(f(x + h * d) - f(x - h * d)) / (2 * h)
    analytic = float((grad * d).sum())
    return abs(numeric - analytic) / max(abs(numeric), abs(analytic), 1e-300)


def _direction(grad: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random direction of length 1 at no more than 45 degrees from grad, lest the slope be small
    by chance and rounding decide."""
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
    """The relative error of each gradient of an op, {"x": ..., and one for each parameter}, under a
    random upstream gradient.

    Parameters
    ----------
    forward : forward(x, **params) -> y, cache
    backward : backward(grad_y, cache) -> grad_x, grads, with grads named as params
    x, params : float64 arrays
    """
    y, cache = forward(x, **params)
    grad_y = get_array_module(x).asarray(rng.standard_normal(y.shape))
    grad_x, grads = backward(grad_y, cache)
    if set(grads) != set(params):
        raise ValueError(
            f"the backward pass gives gradients of {sorted(grads)}, the forward pass takes {sorted(params)}"
        )

    def loss(x: Array, **changed: Array) -> Array:
        return (forward(x, **{**params, **changed})[0] * grad_y).sum()

    errors = {"x": directional_error(loss, x, grad_x, rng)}
    for name, grad in grads.items():
        errors[name] = directional_error(
            lambda a, name=name: loss(x, **{name: a}), params[name], grad, rng
        )  # type: ignore[misc]
    return errors
