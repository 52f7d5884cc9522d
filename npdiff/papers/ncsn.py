"""Noise-conditional score networks. Song & Ermon 2019, arXiv:1907.05600.

What the paper proposed: learn the score of the data under noise, on a ladder of levels sigma_1 > ... > sigma_L, by denoising score
matching; draw by Langevin dynamics at each level in turn, from the widest to the narrowest. What later work changed: it is DDPM's
objective, since score = -eps / sigma (a test shows it to rounding); the SDE view replaces the dynamics by a chain; more levels, and wider.

    ladder               sec. 4.3      sigma in equal ratios
    dsm                  eq. (5), (6)  the loss with lambda = sigma^2, and its gradient with respect to the network's output
    annealed_langevin    Algorithm 1

| paper | here |
|---|---|
| sigma_i, i = 1..L, falling | noise[t], t = L + 1 - i, rising: t counts from the data |
| s_theta(x, sigma) | score_hat = net / sigma |
| x~ | x_t |
| alpha_i, epsilon | step, epsilon |

The dynamics have a bias of their own: on N(0, v) at a fixed step the chain ends in N(0, v / (1 - step / (4 v))).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from npdiff.backend import Array, standard_normal
from npdiff.forward import Time, eps_from_score, q_sample
from npdiff.nn.params import Tree, flatten
from npdiff.reverse import network_input
from npdiff.schedule import Schedule, coefficient


def ladder(L: int = 10, sigma_L: float = 0.01, sigma_1: float = 1.0) -> Schedule:
    """L levels in equal ratios, from sigma_L at t = 1 to sigma_1 at t = L, with signal 1. Sec. 4.3, Song & Ermon 2019."""
    if not 0 < sigma_L < sigma_1:
        raise ValueError(f"needed: 0 < sigma_L < sigma_1, got {sigma_L} and {sigma_1}")
    return Schedule(np.ones(L + 1), np.concatenate([[0.0], np.geomspace(sigma_L, sigma_1, L)]))


def dsm(out: Array, t: Time, eps: Array, schedule: Schedule) -> tuple[Array, Array]:
    """sigma^2/2 |score_hat + (x_t - x_0) / sigma^2|^2 with score_hat = out / sigma, a dimension, and dloss/dout. Eq. (5) and (6).

    (x_t - x_0) / sigma^2 = eps / sigma: the sigmas cancel, and (out + eps)^2 / 2 is left.
    """
    sigma = coefficient(schedule.noise[t], out)
    score_hat, score = out / sigma, -eps / sigma
    error = score_hat - score
    return (0.5 * sigma**2 * error**2).mean(), sigma * error / error.size


def gradient(
    net: Any, params: Tree, x_0: Array, t: np.ndarray, eps: Array, schedule: Schedule, *_: str, **inputs: Any
) -> tuple[Array, Array]:
    """In the place of train.gradient: denoising score matching, and its gradient with respect to theta."""
    x, level = network_input(q_sample(x_0, t, eps, schedule), t, schedule)
    out, cache = net.forward(params, x, level, **inputs)
    loss, grad_out = dsm(out, t, eps, schedule)
    _, grads = net.backward(params, cache, grad_out)
    return loss, flatten(grads)


def score_of(net: Any, params: Tree, schedule: Schedule, **inputs: Any) -> Callable[[Array, Time], Array]:
    """The trained network as score(x_t, t)."""

    def score(x_t: Array, t: Time) -> Array:
        x, level = network_input(x_t, t, schedule)
        return net.forward(params, x, level, **inputs)[0] / coefficient(schedule.noise[t], x_t)

    return score


def predictor(net: Any, params: Tree, schedule: Schedule, **inputs: Any) -> Callable[[Array, Time], Array]:
    """The same as predict_eps(x_t, t) = -sigma score: every sampler takes it."""
    score = score_of(net, params, schedule, **inputs)
    return lambda x_t, t: eps_from_score(x_t, t, score(x_t, t), schedule)


class LangevinStep(NamedTuple):
    t: int
    step: float
    x_t: Array  # before the step
    score_hat: Array
    z: Array
    x_next: Array


def annealed_langevin(
    score: Callable[[Array, Time], Array], x: Array, schedule: Schedule, rng: np.random.Generator, epsilon: float = 2e-5, steps: int = 100
) -> Iterator[LangevinStep]:
    """For each level from the widest `steps` times x = x + step/2 score(x, sigma) + sqrt(step) z, step = epsilon sigma_i^2 / sigma_L^2.

    Algorithm 1, Song & Ermon 2019. The paper starts from uniform noise; any start within reach of the widest level does.
    """
    for t in range(schedule.T, 0, -1):
        step = epsilon * float(schedule.noise[t] / schedule.noise[1]) ** 2
        for _ in range(steps):
            score_hat, z = score(x, t), standard_normal(rng, x.shape, like=x)
            x_next = x + step / 2 * score_hat + math.sqrt(step) * z
            yield LangevinStep(t, step, x, score_hat, z, x_next)
            x = x_next
