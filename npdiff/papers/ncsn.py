"""Noise-conditional score networks. Song & Ermon 2019, arXiv:1907.05600; 2020, arXiv:2006.09011.

What the papers proposed: learn the score of the data under noise, on a ladder of levels sigma_1 >
... > sigma_L, by denoising score matching; sample by Langevin dynamics at each level in turn, from
the widest to the narrowest. What later work changed: the objective turned out to be DDPM's, since
score = -eps / sigma (a test shows that they agree to rounding); the SDE view replaces the dynamics
by a discretised reverse process.

    ladder               2019, sec. 4.3              sigma in equal ratios
    largest_distance     2020, Technique 1           sigma_1
    shell_overlap        2020, Technique 2           the ratio of two levels
    variance_ratio       2020, Technique 4           the step and the number of steps
    dsm                  2019, eq. (5), (6)          denoising score matching, an objective
    annealed_langevin    2019, Algorithm 1
    denoised_langevin    2020, Algorithm 1           the same, and a last denoising
    init, forward, backward                          the U-Net as a score network

    paper                       here
    --------------------------  ----------------------------------------------------------------
    sigma_i, i = 1..L, falling  noise[t], t = L + 1 - i, rising: t counts from the data
    s_theta(x, sigma)           score_hat = out / sigma, for a network with predict="score"
    x~                          x_t
    alpha_i, epsilon            step, epsilon; in 2020 half of both, as its noise is sqrt(2 alpha) z

The dynamics have a bias of their own. On N(0, v), with a fixed step, their stationary distribution
is N(0, v / (1 - step / (4 v))).
"""

import itertools
import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from npdiff import reverse
from npdiff.backend import Array, get_array_module, standard_normal
from npdiff.forward import eps_from_score, score_from_eps, x_0_from_eps
from npdiff.loss import row_mean
from npdiff.nn import conv, unet
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree
from npdiff.sampler import Step
from npdiff.schedule import Schedule, Time

# The ladder.


def ladder(L: int = 10, sigma_L: float = 0.01, sigma_1: float = 1.0) -> Schedule:
    """L levels in equal ratios, from sigma_L at t = 1 to sigma_1 at t = L, with signal 1.

    Sec. 4.3, Song & Ermon 2019, arXiv:1907.05600.
    """
    if not 0 < sigma_L < sigma_1:
        raise ValueError(f"needed: 0 < sigma_L < sigma_1, got {sigma_L} and {sigma_1}")
    return Schedule(np.ones(L + 1), np.concatenate([[0.0], np.geomspace(sigma_L, sigma_1, L)]))


def largest_distance(x_0: np.ndarray) -> float:
    """max |x_i - x_j| over the data: a good sigma_1, so that one mode can be reached from another.

    Technique 1, Song & Ermon 2020, arXiv:2006.09011.   x_0 (N, ...).
    """
    x = x_0.reshape(len(x_0), -1).astype(np.float64)
    squares = (x**2).sum(axis=1)  # |x_i - x_j|^2 = |x_i|^2 + |x_j|^2 - 2 x_i . x_j
    largest = max((squares + squares[i] - 2 * x @ x[i]).max() for i in range(len(x)))
    return math.sqrt(max(0.0, largest))


def shell_overlap(ratio: float, dim: int) -> float:
    """How much of one level's noise lies in the next level's shell; a good ratio gives about 1/2.

    Phi(sqrt(2 dim) (ratio - 1) + 3 ratio) - Phi(sqrt(2 dim) (ratio - 1) - 3 ratio)

    The norm of sigma eps is close to N(sqrt(dim) sigma, sigma^2 / 2). This is the probability that
    the norm at level sigma lies within 3 deviations of the mean at level ratio sigma.
    Technique 2, Song & Ermon 2020, arXiv:2006.09011.
    """
    Phi, offset = NormalDist().cdf, math.sqrt(2 * dim) * (ratio - 1)
    return Phi(offset + 3 * ratio) - Phi(offset - 3 * ratio)


def variance_ratio(share: float, ratio: float, steps: int) -> float:
    """v / sigma^2, the variance v that `steps` Langevin steps at level sigma leave; 1 is best.

    (1 - share/2)^(2 steps) (ratio^2 - v_inf) + v_inf,    v_inf = 1 / (1 - share/4)

    For data at a single point, so that the score is -x / sigma^2, a start of variance
    (ratio sigma)^2, the level before, and steps of length share sigma^2.
    Proposition 3 and Technique 4, Song & Ermon 2020, arXiv:2006.09011, whose epsilon / sigma_L^2 is
    share / 2.
    """
    v_inf = 1 / (1 - share / 4)
    return (1 - share / 2) ** (2 * steps) * (ratio**2 - v_inf) + v_inf


# Training, and the trained network as a function of x_t and t.


def dsm(
    out: Array, x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str = "score"
) -> tuple[Array, Array]:
    """Denoising score matching of each row, a coordinate, with the weight lambda = sigma^2.

    loss     = 1/d sigma^2/2 |score_hat + (x_t - x_0) / sigma^2|^2,    score_hat = out / sigma
    grad_out = 1/d sigma (score_hat + (x_t - x_0) / sigma^2)

    Here (x_t - x_0) / sigma^2 = eps / sigma, so the sigmas cancel, and |out + eps|^2 / 2 is left.
    Eq. (5) and (6), Song & Ermon 2019, arXiv:1907.05600.

    Returns
    -------
    loss : array of shape (B,)
    grad_out : array of shape (B, ...), the gradient of each row's loss

    Raises
    ------
    ValueError
        Unless predict is "score", which is what `out` stands for.
    """
    if predict != "score":
        raise ValueError(
            f'score matching needs train.start(..., predict="score"), got predict={predict!r}'
        )
    s = schedule.at(t, out, eps)
    score_hat, score = out / s.noise, -eps / s.noise  # the latter is grad log q(x_t | x_0)
    error = score_hat - score
    return row_mean(0.5 * s.noise**2 * error**2), s.noise * error / error[0].size


def predictor(
    net: Any, params: Any, schedule: Schedule, **inputs: Any
) -> Callable[[Array, Time], Array]:
    """The score network as predict_eps(x_t, t) = -sigma score_hat, for any sampler.

    params : the network's parameters, or the `train.State` that it was trained in
    """
    return reverse.predictor(net, params, schedule, "score", **inputs)


def score_of(
    net: Any, params: Any, schedule: Schedule, **inputs: Any
) -> Callable[[Array, Time], Array]:
    """The score network as score(x_t, t) = out / sigma; its arguments are those of `predictor`."""
    predict_eps = predictor(net, params, schedule, **inputs)

    def score(x_t: Array, t: Time) -> Array:
        return score_from_eps(x_t, t, predict_eps(x_t, t), schedule)

    return score


# Sampling.


class LangevinStep(NamedTuple):
    """One step at level t:  x_next = x_t + step/2 score_hat + sqrt(step) z."""

    t: int
    step: float
    x_t: Array
    score_hat: Array
    z: Array
    x_next: Array


def annealed_langevin(
    score: Callable[[Array, Time], Array],
    x: Array,
    schedule: Schedule,
    rng: np.random.Generator,
    epsilon: float = 2e-5,
    steps: int = 100,
) -> Iterator[LangevinStep]:
    """Langevin dynamics at each level in turn, from the widest to the narrowest, `steps` at each.

    x_next = x + step/2 score(x, sigma_i) + sqrt(step) z,    step = epsilon sigma_i^2 / sigma_L^2

    Algorithm 1, Song & Ermon 2019, arXiv:1907.05600. The paper starts from uniform noise; any x
    within reach of the widest level does.
    """
    sigma_L = float(schedule.noise[1])
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x)
        step = epsilon * (s.noise / sigma_L) ** 2
        for _ in range(steps):
            score_hat, z = score(x, t), standard_normal(rng, x.shape, like=x)
            x_next = x + step / 2 * score_hat + math.sqrt(step) * z
            yield LangevinStep(t, step, x, score_hat, z, x_next)
            x = x_next


def denoised_langevin(
    score: Callable[[Array, Time], Array],
    x: Array,
    schedule: Schedule,
    rng: np.random.Generator,
    epsilon: float = 2e-5,
    steps: int = 100,
) -> Iterator[Step]:
    """`annealed_langevin` with a last denoising, one Step a level, as the other samplers have it.

    x_0 = x + sigma_L^2 score(x, sigma_L) = E[x_0 | x], by Tweedie's formula

    The Step of a level is its last Langevin step, from t to t_prev = t - 1, where the next level
    starts. That of the last level is the denoising: t_prev = 0, and no noise is added. Algorithm 1,
    Song & Ermon 2020, arXiv:2006.09011.
    """
    dynamics = annealed_langevin(score, x, schedule, rng, epsilon, steps)
    for last in itertools.islice(dynamics, steps - 1, None, steps):  # the last step of each level
        t, x_t, score_hat, z, x_prev = last.t, last.x_t, last.score_hat, last.z, last.x_next
        mean, sigma = x_t + last.step / 2 * score_hat, math.sqrt(last.step)
        if t == 1:
            x_t, score_hat, z = last.x_next, score(last.x_next, 1), 0 * x
            s = schedule.at(1, x_t)
            mean, sigma = x_t + s.noise**2 * score_hat, 0.0
            x_prev = mean
        eps_hat = eps_from_score(x_t, t, score_hat, schedule)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)


# The U-Net as a score network.

NO_CLASS = unet.NO_CLASS
init = unet.init


def forward(
    params: Tree, x: Array, level: Array, label: np.ndarray | None = None, ops: Any = conv
) -> tuple[Array, Cache]:
    """out = sigma score = signal unet(x) - noise x, with signal^2 + noise^2 = 1.

    Here x = x_t / sqrt(1 + sigma^2), level = log(sigma) and noise / signal = sigma. Arguments and
    shapes are those of `unet.forward`.

    Under wide noise sigma score is close to -x, and a small error of it hides the image. A U-Net
    that had to learn to copy x gave, at sigma = 33, an x_0_hat three times further from x_0
    (squared) than the mean image of its class is. So x has a skip connection, as in table 1, Karras
    et al. 2022, arXiv:2206.00364, for data of unit variance. The output is -eps_hat of a U-Net that
    predicts v = -unet(x): see `output.eps_from_output`.
    """
    xp, level_of_row = get_array_module(x), level[:, None, None, None]
    signal = 1 / xp.sqrt(1 + xp.exp(2 * level_of_row))  # (B, 1, 1, 1)
    noise = 1 / xp.sqrt(1 + xp.exp(-2 * level_of_row))
    h, cache = unet.forward(params, x, level, label, ops)
    return signal * h - noise * x, (signal, noise, cache)


def backward(params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
    """dL/dx and the gradients of the parameters: the lines of `forward`, reversed."""
    signal, noise, cache = cache
    grad_x, grads = unet.backward(params, cache, signal * grad_out)
    return grad_x - noise * grad_out, grads
