"""Adam, the learning rate's schedule, gradient clipping and the average of theta, on one vector."""

import math

from npdiff.backend import Array, get_array_module


def learning_rate(step: int, steps: int, lr: float, warmup: int = 100, hold: float = 0.0) -> float:
    """The rate at `step` of `steps`: a linear rise to lr, then half a cosine down to 0.

    It rises over the first `warmup` steps; the cosine starts after a share `hold` of all steps.
    """
    rise = min(1.0, step / warmup) if warmup else 1.0
    decayed = max(0.0, min(1.0, step / steps) - hold) / (1 - hold)
    return lr * rise * 0.5 * (1 + math.cos(math.pi * decayed))


def clip_norm(grad: Array, largest: float) -> Array:
    """grad min(1, largest / |grad|): scaled down where its Euclidean norm exceeds `largest`."""
    norm = (grad * grad).sum() ** 0.5
    return grad * get_array_module(grad).minimum(largest / (norm + 1e-12), 1.0)


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
    """One step of Adam: theta and the running means m of grad and v of grad^2 change in place.

    Algorithm 1, Kingma & Ba 2015, arXiv:1412.6980, whose beta_1, beta_2 and epsilon are decay_1,
    decay_2 and tiny. `step` counts from 1.
    """
    m[...] = decay_1 * m + (1 - decay_1) * grad
    v[...] = decay_2 * v + (1 - decay_2) * grad**2
    m_hat = m / (1 - decay_1**step)
    v_hat = v / (1 - decay_2**step)
    theta -= lr * m_hat / (v_hat**0.5 + tiny)


def average(ema: Array, theta: Array, step: int, decay: float = 0.999) -> None:
    """The exponential moving average of theta, in place.

    ema = d ema + (1 - d) theta,    d = min(decay, step / (step + 9))

    The smaller d at the start forgets the random theta that training began from.
    """
    d = min(decay, step / (step + 9))
    ema[...] = d * ema + (1 - d) * theta
