"""Adam, the learning rate over time, the clipping of the gradient and the averaging of theta: each on one vector."""

import math

from npdiff.backend import Array, get_array_module
from npdiff.fuse import elementwise


def learning_rate(step: int, steps: int, lr: float, warmup: int = 100, hold: float = 0.0) -> float:
    """lr at its peak: a linear rise over the first `warmup` steps, a `hold` share of 1..steps at the peak, half a cosine down to 0."""
    rise = min(1.0, step / warmup) if warmup else 1.0
    fallen = max(0.0, min(1.0, step / steps) - hold) / (1 - hold)
    return lr * rise * 0.5 * (1 + math.cos(math.pi * fallen))


def clip_norm(grad: Array, largest: float) -> Array:
    """grad, made shorter where its Euclidean norm is above `largest`:  grad min(1, largest / |grad|)."""
    xp = get_array_module(grad)
    norm = xp.sqrt((grad * grad).sum())
    return grad * xp.minimum(largest / (norm + 1e-12), 1.0)


def adam(
    theta: Array, grad: Array, m: Array, v: Array, step: int, lr: float, beta_1: float = 0.9, beta_2: float = 0.999, eps: float = 1e-8
) -> None:
    """One step of Adam; theta, m and v are changed in place. `step` counts from 1.

    m = beta_1 m + (1 - beta_1) grad            m_hat = m / (1 - beta_1^step)
    v = beta_2 v + (1 - beta_2) grad^2          v_hat = v / (1 - beta_2^step)
    theta = theta - lr m_hat / (sqrt(v_hat) + eps)

    Algorithm 1, Kingma & Ba 2015, arXiv:1412.6980.
    """
    m_hat_factor, v_hat_factor = 1 / (1 - beta_1**step), 1 / (1 - beta_2**step)
    _adam(theta, grad, m, v, 1 - beta_1, 1 - beta_2, lr * m_hat_factor, v_hat_factor, eps)


@elementwise
def _adam(
    theta: Array, grad: Array, m: Array, v: Array, new_m: float, new_v: float, step_size: float, v_hat_factor: float, eps: float
) -> None:
    m += new_m * (grad - m)
    v += new_v * (grad * grad - v)
    theta -= step_size * m / (get_array_module(theta).sqrt(v_hat_factor * v) + eps)


def average(ema: Array, theta: Array, step: int, decay: float = 0.999) -> None:
    """Exponential moving average of theta, in place:  ema = d ema + (1 - d) theta, with d = min(decay, step / (step + 9)).

    The smaller d at the start forgets the random theta that training began from.
    """
    d = min(decay, step / (step + 9))
    ema += (1 - d) * (theta - ema)
