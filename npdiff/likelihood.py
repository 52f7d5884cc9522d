"""The variational bound on the likelihood (ELBO), term by term.

Log-likelihoods and divergences are in nats per data point.

    -log p(x_0) <= L_T + sum_{t=2}^{T} L_{t-1} + L_0,      eq. (5), Ho et al. 2020, arXiv:2006.11239

    L_T      = KL(q(x_T | x_0) || N(0, I))
    L_{t-1}  = E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
    L_0      = -E log p(x_0 | x_1)

The reverse step p(x_{t-1} | x_t) = N(mean, var) is a function reverse(x_t, t) -> mean, var. `fixed`
makes one from any predict_eps; npdiff/papers/improved_ddpm.py makes one whose variance is learned.
For bits per dimension, divide by the number of coordinates and by log 2.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from npdiff import normal
from npdiff.backend import Array, get_array_module, per_row, standard_normal, to_numpy
from npdiff.forward import prior_kl, q_posterior, q_sample, q_step
from npdiff.reverse import mean_per_eps, p_mean_from_eps
from npdiff.schedule import Schedule, Time

Reverse = Callable[[Array, Time], tuple[Array, Array]]


class Term(NamedTuple):
    """One term of the bound: its mean over the data, in nats, and that mean's standard error."""

    name: str  # "L_T", "L_t-1" or "L_0"
    t: int
    nats: float
    error: float


def fixed(
    predict_eps: Callable[[Array, Time], Array],
    schedule: Schedule,
    variance: str | np.ndarray = "beta_tilde",
) -> Reverse:
    """reverse(x_t, t) -> the mean of eq. (11), Ho et al. 2020, and a fixed variance.

    Parameters
    ----------
    predict_eps : predict_eps(x_t, t) -> eps_hat
    variance : "beta", "beta_tilde", or a table of shape (T+1,)
    """
    table = variance_table(variance, schedule) if isinstance(variance, str) else variance

    def reverse(x_t: Array, t: Time) -> tuple[Array, Array]:
        mean = p_mean_from_eps(x_t, t, predict_eps(x_t, t), schedule)
        return mean, per_row(table[t], x_t)

    return reverse


def variance_table(name: str, schedule: Schedule) -> np.ndarray:
    """The variance of each step, (T+1,): "beta" or "beta_tilde".

    At t = 1 beta_tilde is 0, which would leave no density; beta_1 takes its place.
    """
    if name == "beta":
        return schedule.beta
    return np.concatenate([schedule.beta[:2], schedule.beta_tilde[2:]])


def best_variance(loss: np.ndarray, schedule: Schedule) -> np.ndarray:
    """The variance of each reverse step that minimises the bound, (T+1,) -> (T+1,).

    variance_t = beta_tilde_t + w_t^2 loss_t,    w_t = `reverse.mean_per_eps`

    loss[t] is the predictor's mean of |eps - eps_hat|^2 per coordinate. This is the mean of
    |x_{t-1} - mean|^2 per coordinate: given x_t and x_0, x_{t-1} has variance beta_tilde_t, and its
    mean moves by w_t with eps. For a perfect predictor it is the mean variance of q(x_{t-1} | x_t).
    Theorem 1, Bao et al. 2022, arXiv:2201.06503, written with the loss instead of the score.
    """
    w = mean_per_eps(np.arange(1, schedule.T + 1), schedule)
    return schedule.beta_tilde + np.concatenate([[0.0], w**2 * loss[1:]])


def gaussian_decoder(x_0: Array, mean: Array, var: Array) -> Array:
    """log p(x_0 | x_1) of continuous data: log N(x_0; mean, var), in nats, for each coordinate."""
    return normal.log_prob(x_0, mean, var)


def discretised_decoder(x_0: Array, mean: Array, var: Array) -> Array:
    """log p(x_0 | x_1) of pixels 0..255, scaled to x/127.5 - 1 in [-1, 1], in nats, for each pixel.

    p(x_0) = Phi((x_0 + 1/255 - mean) / sigma) - Phi((x_0 - 1/255 - mean) / sigma)

    This is the mass of N(mean, var) within half a pixel value of x_0. The two end values take the
    tails, so the 256 masses sum to 1. Eq. (13), Ho et al. 2020, arXiv:2006.11239.
    """
    xp, sigma = get_array_module(x_0), var**0.5
    upper = xp.where(x_0 > 0.999, math.inf, (x_0 + 1 / 255 - mean) / sigma)
    lower = xp.where(x_0 < -0.999, -math.inf, (x_0 - 1 / 255 - mean) / sigma)
    # Above the mean both values of Phi are near 1 and their difference would lose its digits: there
    # the mirror image is taken.
    above = lower + upper > 0
    log_upper = normal.log_cdf(xp.where(above, -lower, upper))
    log_lower = normal.log_cdf(xp.where(above, -upper, lower))
    return log_upper + xp.log1p(-xp.exp(log_lower - log_upper))


def step_kl(x_0: Array, x_t: Array, t: Time, schedule: Schedule, reverse: Reverse) -> Array:
    """L_{t-1} of each data point given x_t, for t >= 2, in nats: (B, ...) -> (B,).

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
    """
    mean, var = reverse(x_t, t)
    mean_q, var_q = q_posterior(x_0, x_t, t, schedule)
    return normal.kl(mean_q, var_q, mean, var).reshape(len(x_0), -1).sum(axis=1)


def bound(
    x_0: Array,
    schedule: Schedule,
    reverse: Reverse,
    rng: np.random.Generator,
    decoder: Callable[..., Array] = gaussian_decoder,
) -> Iterator[tuple[Term, np.ndarray]]:
    """The terms of eq. (5), from L_T down to L_0, each with its values at the data points, (B,).

    The values, summed over the T + 1 terms, are the bound at each data point. Each term draws its
    own x_t; given x_t, its KL is exact ("Rao-Blackwellised").
    """
    yield term("L_T", schedule.T, prior_kl(x_0, schedule))
    for t in range(schedule.T, 1, -1):
        x_t = q_sample(x_0, t, standard_normal(rng, x_0.shape, like=x_0), schedule)
        yield term("L_t-1", t, step_kl(x_0, x_t, t, schedule, reverse))
    x_1 = q_sample(x_0, 1, standard_normal(rng, x_0.shape, like=x_0), schedule)
    yield term("L_0", 1, -decoder(x_0, *reverse(x_1, 1)).reshape(len(x_0), -1).sum(axis=1))


def term(name: str, t: int, nats: Array) -> tuple[Term, np.ndarray]:
    """A Term, and its values at the data points, (B,), in float64 on the host."""
    values = to_numpy(nats).astype(np.float64)
    return Term(name, t, *mean_and_error(values)), values


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of (B,) and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def path(
    x_0: Array,
    schedule: Schedule,
    reverse: Reverse,
    rng: np.random.Generator,
    decoder: Callable[..., Array] = gaussian_decoder,
) -> Array:
    """The bound along one path x_0, ..., x_T of q, in nats: (B, ...) -> (B,).

    -log N(x_T; 0, I) - sum_t log p(x_{t-1} | x_t) + sum_t log q(x_t | x_{t-1})

    Eq. (3), Ho et al. 2020: the ELBO of a hierarchical latent-variable model whose encoder has no
    parameters. Its expectation is the sum of `bound`; its variance is larger.
    """

    def total(log_p: Array) -> Array:
        return log_p.reshape(len(x_0), -1).sum(axis=1)

    x_prev, nats = x_0, 0.0
    for t in range(1, schedule.T + 1):
        eps = standard_normal(rng, x_0.shape, like=x_0)
        x_t = q_step(x_prev, t, eps, schedule)
        mean, var = reverse(x_t, t)
        log_p = decoder(x_0, mean, var) if t == 1 else normal.log_prob(x_prev, mean, var)
        log_q = normal.log_prob(eps, 0.0, 1.0) - 0.5 * math.log(schedule.beta[t])
        nats = nats + total(log_q - log_p)
        x_prev = x_t
    return nats - total(normal.log_prob(x_prev, 0.0, 1.0))


def terms_from_loss(loss: np.ndarray, schedule: Schedule, variance: np.ndarray) -> np.ndarray:
    """The terms L_{t-1}, t = 1..T, in nats per coordinate, with the Gaussian decoder.

    L_{t-1} = 1/2 [r - 1 - log r + w_t^2 loss_t / var_t],    r = beta_tilde_t / var_t
    L_0     = 1/2 [log(2 pi var_1) + w_1^2 loss_1 / var_1],  w_t = `reverse.mean_per_eps`

    loss[t] is the predictor's mean of |eps - eps_hat|^2 per coordinate; the bound is linear in it.
    All tables have shape (T+1,); that of the terms is 0 at t = 0.
    """
    var, beta_tilde, terms = variance[1:], schedule.beta_tilde[1:], np.zeros(schedule.T + 1)
    w2 = mean_per_eps(np.arange(1, schedule.T + 1), schedule) ** 2
    r = np.where(beta_tilde > 0, beta_tilde / var, 1.0)
    terms[1:] = 0.5 * (r - 1 - np.log(r) + w2 * loss[1:] / var)
    terms[1] += 0.5 * (normal.LOG_2PI + math.log(var[0]))
    return terms


# The bound of many images at little cost: each image draws one t, more often where terms are large.


def one_t_bound(
    x_0: Array,
    schedule: Schedule,
    reverse: Reverse,
    rng: np.random.Generator,
    p: np.ndarray,
    decoder: Callable[..., Array],
) -> tuple[Array, np.ndarray, Array]:
    """For each data point L_0, one t in 2..T drawn with probability p[t], and L_{t-1} / p[t].

    Three arrays of shape (B,), in nats but for t. The third is an unbiased estimate of the sum of
    L_{t-1} over t = 2..T. p has shape (T+1,), with p[0] = p[1] = 0; see `importance`.
    """
    t = rng.choice(schedule.T + 1, size=len(x_0), p=p)
    x_1 = q_sample(x_0, 1, standard_normal(rng, x_0.shape, like=x_0), schedule)
    L_0 = -decoder(x_0, *reverse(x_1, 1)).reshape(len(x_0), -1).sum(axis=1)
    x_t = q_sample(x_0, t, standard_normal(rng, x_0.shape, like=x_0), schedule)
    return L_0, t, step_kl(x_0, x_t, t, schedule, reverse) * per_row(1 / p[t], L_0)


def importance(
    x_0: Array, schedule: Schedule, reverse: Reverse, rng: np.random.Generator, count: int = 40
) -> np.ndarray:
    """p[t], proportional to the root mean square of L_{t-1}, of shape (T+1,).

    This p gives `one_t_bound` the least variance. The root mean square is measured on x_0 at about
    `count` values of t and interpolated between them.
    """
    ts = [t for t in spread_over_t(schedule.T, count) if t > 1]
    root_mean_square = []
    for t in ts:
        x_t = q_sample(x_0, t, standard_normal(rng, x_0.shape, like=x_0), schedule)
        nats = to_numpy(step_kl(x_0, x_t, t, schedule, reverse)).astype(np.float64)
        root_mean_square.append(math.sqrt((nats**2).mean()))
    log_t = np.log(np.arange(2, schedule.T + 1))
    p = np.exp(np.interp(log_t, np.log(ts), np.log(root_mean_square)))
    return np.concatenate([[0.0, 0.0], p / p.sum()])


def spread_over_t(T: int, count: int) -> list[int]:
    """About `count` different t from 1 to T, denser at small t, where the terms change fastest."""
    return sorted({max(1, round(T ** (i / (count - 1)))) for i in range(count)} | {1, T})
