"""Adam on NumPy, in place and with one temporary array: `optim.adam` to rounding."""

import numpy as np

from npdiff.backend import Array


def adam(
    theta: Array,
    grad: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    decay_1: float = 0.9,
    decay_2: float = 0.999,
    tiny: float = 1e-8,
) -> None:
    """As optim.adam, on NumPy, with one array beside those that are given."""
    change = grad - m
    change *= 1 - decay_1
    m += change  # decay_1 m + (1 - decay_1) grad

    np.multiply(grad, grad, out=change)
    change -= v
    change *= 1 - decay_2
    v += change  # decay_2 v + (1 - decay_2) grad^2

    np.multiply(v, 1 / (1 - decay_2**step), out=change)  # v_hat
    np.sqrt(change, out=change)
    change += tiny
    np.divide(m, change, out=change)
    change *= lr / (1 - decay_1**step)  # m becomes m_hat
    theta -= change
