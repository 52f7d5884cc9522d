"""Improved DDPM: the variance of the reverse step is learned too. Nichol & Dhariwal 2021, arXiv:2102.09672.

What the paper proposed: DDPM's samples were good and its likelihood was not, since the variance of its reverse step is fixed, to beta_t or
to beta_tilde_t. Here the network has a second output that says where between the two the variance lies, and is trained on the bound. What
later work changed: with the best variance known from the loss itself (`likelihood.best_variance`) much of this comes without training.

    log_variance        eq. (15)      log variance = share log beta_t + (1 - share) log beta_tilde_t
    vlb                 eq. (4)-(7)   a term of the bound, and its gradient by hand
    gradient            eq. (16)      "hybrid": L_simple + 0.001 L_vlb, with L_vlb's gradient stopped at the mean; or "vlb" alone
    ImportanceSampler   eq. (18)      t drawn with p_t proportional to sqrt(E[L_t^2]), so that L_vlb is estimated with less variance

The network's output has twice x's channels, [guess, o]: the guess of eps, x_0 or v, and o = 2 share - 1. beta_tilde_2 stands for
beta_tilde_1 = 0, which has no logarithm, as in the authors' code.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from npdiff import likelihood, normal
from npdiff.backend import Array, get_array_module, to_numpy
from npdiff.forward import Time, q_sample
from npdiff.loss import l_simple, slope
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree, flatten
from npdiff.reverse import eps_from_output, mean_slope, network_input, p_mean_from_eps
from npdiff.schedule import Schedule, coefficient

LAMBDA = 0.001  # the weight of L_vlb beside L_simple


def split(out: Array) -> tuple[Array, Array]:
    """The network's output (B, ..., 2 C) as the guess and o, each (B, ..., C)."""
    channels = out.shape[-1] // 2
    return out[..., :channels], out[..., channels:]


def log_ends(t: Time, schedule: Schedule, like: Array) -> tuple[Array, Array]:
    """log beta_t and log beta_tilde_t, with beta_tilde_2 at t = 1."""
    return coefficient(np.log(schedule.beta[t]), like), coefficient(np.log(schedule.beta_tilde[np.maximum(t, 2)]), like)


def log_variance(o: Array, t: Time, schedule: Schedule) -> Array:
    """log variance = share log beta_t + (1 - share) log beta_tilde_t, share = (o + 1) / 2. Eq. (15), Nichol & Dhariwal 2021."""
    log_beta, log_beta_tilde = log_ends(t, schedule, o)
    share = (o + 1) / 2
    return share * log_beta + (1 - share) * log_beta_tilde


def outputs(
    net: Any, params: Tree, x_t: Array, t: Time, schedule: Schedule, predict: str, **inputs: Any
) -> tuple[Array, Array, Array, Cache]:
    """eps_hat, o, the guess that eps_hat stands for, and the network's cache."""
    x, level = network_input(x_t, t, schedule)
    out, cache = net.forward(params, x, level, **inputs)
    guess, o = split(out)
    return eps_from_output(x_t, t, guess, schedule, predict), o, guess, cache


def reverse(net: Any, params: Tree, schedule: Schedule, predict: str = "eps", **inputs: Any) -> likelihood.Reverse:
    """The learned step as likelihood.bound takes it: reverse(x_t, t) -> mean, variance."""

    def mean_and_variance(x_t: Array, t: Time) -> tuple[Array, Array]:
        eps_hat, o, _guess, _cache = outputs(net, params, x_t, t, schedule, predict, **inputs)
        return p_mean_from_eps(x_t, t, eps_hat, schedule), get_array_module(x_t).exp(log_variance(o, t, schedule))

    return mean_and_variance


def predictor(net: Any, params: Tree, schedule: Schedule, predict: str = "eps", **inputs: Any) -> Callable[[Array, Time], Array]:
    """As reverse.predictor, from the guess alone: for the samplers."""
    return lambda x_t, t: outputs(net, params, x_t, t, schedule, predict, **inputs)[0]


def vlb(
    eps_hat: Array, o: Array, x_0: Array, t: np.ndarray, eps: Array, schedule: Schedule, discretised: bool = False
) -> tuple[Array, Array, Array]:
    """L_{t-1} of each data point, or L_0 where t = 1, in nats: (B,); and its gradients with respect to eps_hat and o, each (B, ..., C).

    With r = beta_tilde / var, w = `reverse.mean_slope` and d = mean_q - mean = w (eps - eps_hat):
    L_{t-1} = sum of 1/2 (r - 1 - log r + d^2 / var);   dL/dmean = -d / var;   dL/dlog var = 1/2 (1 - (beta_tilde + d^2) / var)
    At t = 1 the posterior is the point x_0: these are then the gradients of -log N(x_0; mean, var) too.
    """
    xp = get_array_module(x_0)
    log_var = log_variance(o, t, schedule)
    var = xp.exp(log_var)
    w = coefficient(mean_slope(t, schedule), x_0)
    beta_tilde = coefficient(schedule.beta_tilde[t], x_0)
    d = w * (eps - eps_hat)
    r = xp.maximum(beta_tilde / var, 1e-30)
    nats = 0.5 * (r - 1 - xp.log(r) + d**2 / var)
    grad_mean, grad_log_var = -d / var, 0.5 * (1 - (beta_tilde + d**2) / var)
    first = np.flatnonzero(t == 1)
    if len(first):
        mean = x_0[first] - d[first]
        decode = discretised_decoder if discretised else gaussian_decoder
        nats[first], grad_mean[first], grad_log_var[first] = decode(x_0[first], mean, var[first])
    log_beta, log_beta_tilde = log_ends(t, schedule, o)
    return nats.reshape(len(x_0), -1).sum(axis=1), w * grad_mean, 0.5 * (log_beta - log_beta_tilde) * grad_log_var


def gaussian_decoder(x_0: Array, mean: Array, var: Array) -> tuple[Array, Array, Array]:
    """-log N(x_0; mean, var), and its gradients with respect to mean and log var."""
    d = x_0 - mean
    return -normal.log_prob(x_0, mean, var), -d / var, 0.5 * (1 - d**2 / var)


def discretised_decoder(x_0: Array, mean: Array, var: Array) -> tuple[Array, Array, Array]:
    """-log P with P = Phi(u) - Phi(l), as likelihood.discretised_decoder has it, and its gradients with respect to mean and log var.

    du/dmean = -1 / sigma and du/dlog var = -u / 2, the same for l:
    dP/dmean = (phi(l) - phi(u)) / sigma,  dP/dlog var = (l phi(l) - u phi(u)) / 2
    """
    xp, sigma = get_array_module(x_0), var**0.5
    log_p = likelihood.discretised_decoder(x_0, mean, var).astype(x_0.dtype)

    def density_over_p(edge: Array) -> Array:  # phi(edge) / P; at an end that lies at infinity it is 0
        return xp.exp(-0.5 * edge**2 - 0.5 * normal.LOG_2PI - log_p)

    upper, lower = (x_0 + 1 / 255 - mean) / sigma, (x_0 - 1 / 255 - mean) / sigma
    at_upper = xp.where(x_0 > 0.999, 0.0, density_over_p(upper)).astype(x_0.dtype)
    at_lower = xp.where(x_0 < -0.999, 0.0, density_over_p(lower)).astype(x_0.dtype)
    return -log_p, (at_upper - at_lower) / sigma, 0.5 * (upper * at_upper - lower * at_lower)


def gradient(
    net: Any,
    params: Tree,
    x_0: Array,
    t: np.ndarray,
    eps: Array,
    schedule: Schedule,
    predict: str = "eps",
    weight: str = "hybrid",
    importance: np.ndarray | None = None,
    discretised: bool = False,
    **inputs: Any,
) -> tuple[Array, Array]:
    """In the place of train.gradient: L_{t-1} of each data point in nats (B,), and dL/dtheta of the objective, a mean over the batch.

    weight      "hybrid": L_simple a dimension + LAMBDA L_vlb a dimension, where only o feels L_vlb; "vlb": L_vlb a dimension alone
    importance  1 / (T p_t) of each data point where t was not drawn uniformly: (B,)
    """
    eps_hat, o, guess, cache = outputs(net, params, q_sample(x_0, t, eps, schedule), t, schedule, predict, **inputs)
    nats, grad_eps_hat, grad_o = vlb(eps_hat, o, x_0, t, eps, schedule, discretised)

    scale = coefficient(schedule.T / x_0.size * (np.ones(len(t)) if importance is None else importance), x_0)  # L_vlb = T E_t[L_t]
    grad_guess = scale * coefficient(slope(t, schedule, predict), x_0) * grad_eps_hat
    grad_o = scale * grad_o
    if weight == "hybrid":
        _, grad_guess = l_simple(guess, x_0, t, eps, schedule, predict)
        grad_o = LAMBDA * grad_o
    _, grads = net.backward(params, cache, get_array_module(x_0).concatenate([grad_guess, grad_o], axis=-1))
    return nats, flatten(grads)


class ImportanceSampler:
    """t with p_t proportional to sqrt(E[L_t^2]), from the last `keep` values at each t; uniform until each t has so many. Eq. (18)."""

    def __init__(self, T: int, keep: int = 10) -> None:
        self.last = np.full((T + 1, keep), np.nan)

    @property
    def p(self) -> np.ndarray:
        """p_t, of shape (T+1,), with p_0 = 0; a thousandth of it is uniform, so that no t is forgotten."""
        T = len(self.last) - 1
        if np.isnan(self.last[1:]).any():
            return np.concatenate([[0.0], np.full(T, 1 / T)])
        root = np.sqrt((self.last[1:] ** 2).mean(axis=1))
        return np.concatenate([[0.0], 0.999 * root / root.sum() + 0.001 / T])

    def draw(self, batch: int, T: int, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(T + 1, size=batch, p=self.p)

    def importance(self, t: np.ndarray) -> np.ndarray:
        """1 / (T p_t): the weight that makes the mean over draws that over uniform t."""
        return 1 / ((len(self.last) - 1) * self.p[t])

    def learn(self, t: np.ndarray, nats: np.ndarray) -> None:
        """Keep L_t, seen at t, in the place of the oldest."""
        for one, value in zip(t, nats, strict=True):
            row = self.last[one]
            row[:-1], row[-1] = row[1:], value

    def gradient(self, of: Callable[..., tuple[Array, Array]] = gradient) -> Callable[..., tuple[Array, Array]]:
        """`of` with these weights, which learns from every step, for train.train(..., draw_t=self.draw, gradient=self.gradient()).

        Its loss is an estimate of the bound without L_T, in bits a dimension.
        """

        def weighted(net: Any, params: Tree, x_0: Array, t: np.ndarray, *rest: Any, **inputs: Any) -> tuple[Array, Array]:
            importance, schedule_length = self.importance(t), len(self.last) - 1
            nats, grad = of(net, params, x_0, t, *rest, importance=importance, **inputs)
            self.learn(t, to_numpy(nats))
            weight = coefficient(schedule_length * normal.BITS / x_0[0].size * importance, nats)
            return (weight * nats).mean(), grad

        return weighted
