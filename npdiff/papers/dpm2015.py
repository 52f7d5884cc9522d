"""Diffusion probabilistic models: where it began. Sohl-Dickstein, Weiss, Maheswaranathan & Ganguli 2015, arXiv:1503.03585.

What the paper proposed: destroy the data by a fixed chain of small Gaussian steps, learn the mean and the covariance of each step back, and
maximise a bound K on the log-likelihood that is a sum of divergences between Gaussians. With T = 40 steps it draws a swiss roll. What later
work changed: DDPM predicts the noise, fixes the variance and drops the weights of the terms, for looks; improved DDPM learns the variance
again; and the chain became long, since one network told t serves every step.

    bound            eq. (14)          K, the bound on E log p(x_0), here in bits a data point
    null_model       sec. 3            log pi(x_0), what K is compared with
    entropy_bounds   eq. (24)          H(X_{t-1} | X_t) between two entropies that are known without a model
    gradient                           of -K / T with respect to theta, for train.train(..., draw_t=after_1, gradient=gradient)
    rates_gradient   sec. 2.4          of the same with respect to beta_2..beta_T, with frozen noise

| paper | here |
|---|---|
| f_mu, f_Sigma | mean, var: [eps_hat, z] = net(x_t, t), mean by eq. (11) of Ho et al. 2020 for eps_hat, var = sigmoid(z + logit(beta_t)) |
| pi(x) | N(0, I) |
| T_pi(x | x'; beta) | q_step |

Where it holds: the cross-entropies to pi at both ends of the edge step cancel for data with E|x_0|^2 = d, which the paper's scaling to unit
variance gives; and the upper half of eq. (24) needs entropies that rise with t, which data wider than pi do not have (a test shows both).
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from npdiff import normal
from npdiff.backend import Array, get_array_module, sigmoid, standard_normal, to_numpy
from npdiff.exact import Mixture
from npdiff.forward import Time, q_sample, x_0_from_eps
from npdiff.likelihood import Reverse, mean_and_error, step_kl
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree, flatten
from npdiff.normal import BITS
from npdiff.reverse import mean_slope, p_mean_from_eps
from npdiff.sampler import Step
from npdiff.schedule import Schedule, coefficient


def told(t: Time, schedule: Schedule, like: Array) -> Array:
    """What the network is told of t: t / T, spread over -5..5, so that it does not change when the rates are learned. (B,)."""
    number = np.broadcast_to(10 * np.asarray(t) / schedule.T - 5, len(like))
    return get_array_module(like).asarray(number.astype(like.dtype))


def kernel(x_t: Array, t: Time, out: Array, schedule: Schedule) -> tuple[Array, Array]:
    """eps_hat and the variance of the step back from the network's output (B, 2 d)."""
    dim = x_t.shape[1]
    rate = schedule.beta[t]
    return out[:, :dim], sigmoid(out[:, dim:] + coefficient(np.log(rate) - np.log1p(-rate), x_t))


def reverse(net: Any, params: Tree, schedule: Schedule) -> Reverse:
    """reverse(x_t, t) -> mean, var, both (B, d): the learned step back."""

    def mean_and_variance(x_t: Array, t: Time) -> tuple[Array, Array]:
        eps_hat, var = kernel(x_t, t, net.forward(params, x_t, told(t, schedule, x_t))[0], schedule)
        return p_mean_from_eps(x_t, t, eps_hat, schedule), var

    return mean_and_variance


def ends(schedule: Schedule, dim: int) -> float:
    """H_q(X_T | X_0) - H_q(X_1 | X_0) - H_p(X_T) in nats."""
    H_T, H_1, H_p = (dim * normal.entropy(float(var)) for var in (schedule.noise[-1] ** 2, schedule.beta[1], 1.0))
    return H_T - H_1 - H_p


def bound(x_0: Array, schedule: Schedule, reverse: Reverse, rng: np.random.Generator) -> tuple[float, float]:
    """K = -sum_{t=2}^{T} E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) + H_q(X_T|X_0) - H_q(X_1|X_0) - H_p(X_T), and its standard error.

    In bits a data point; E log2 p(x_0) >= K. The step from x_1 to x_0 is that of the forward process, and adds nothing. Eq. (14).
    """
    nats = np.zeros(len(x_0))
    for t in range(2, schedule.T + 1):
        x_t = q_sample(x_0, t, standard_normal(rng, x_0.shape, like=x_0), schedule)
        nats += to_numpy(step_kl(x_0, x_t, t, schedule, reverse))
    return mean_and_error(BITS * (ends(schedule, x_0.shape[1]) - nats))


def null_model(dim: int) -> float:
    """E log2 pi(x_0) = -dim/2 log2(2 pi e), in bits, for data of variance 1."""
    return -dim * BITS * normal.entropy(1.0)


def moments(data: Mixture, x_t: np.ndarray, t: int, schedule: Schedule, h: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """Mean (N, d) and covariance (N, d, d) of q(x_{t-1} | x_t), in float64, for data in closed form.

    Cov = beta_tilde I + w^2 Cov[eps | x_t],  w = `reverse.mean_slope`,  Cov[eps | x_t] = I - noise d eps*/dx  (by central differences).
    """
    predict_eps, identity, x = data.predictor(schedule), np.eye(data.dim), x_t.astype(np.float64)
    slope = np.stack([(predict_eps(x + h * e, t) - predict_eps(x - h * e, t)) / (2 * h) for e in identity], axis=2)
    of_eps = identity - float(schedule.noise[t]) * slope
    mean = p_mean_from_eps(x, t, predict_eps(x, t), schedule)
    return mean, schedule.beta_tilde[t] * identity + mean_slope(t, schedule) ** 2 * of_eps


def best_reverse(data: Mixture, schedule: Schedule) -> Reverse:
    """The best Gaussian step back with a diagonal covariance: the mean and the variances of q(x_{t-1} | x_t), coordinate by coordinate."""

    def mean_and_variance(x_t: Array, t: Time) -> tuple[Array, Array]:
        mean, cov = moments(data, x_t, int(t), schedule)
        return mean, np.diagonal(cov, axis1=1, axis2=2)

    return mean_and_variance


def entropy_bounds(t: int, schedule: Schedule, dim: int) -> tuple[float, float]:
    """H_q(X_t|X_{t-1}) + H_q(X_{t-1}|X_0) - H_q(X_t|X_0) <= H_q(X_{t-1}|X_t) <= H_q(X_t|X_{t-1}), in nats, for t >= 2. Eq. (24)."""
    step, before, after = (dim * normal.entropy(float(v)) for v in (schedule.beta[t], schedule.noise[t - 1] ** 2, schedule.noise[t] ** 2))
    return step + before - after, step


def sample(reverse: Reverse, x_T: Array, schedule: Schedule, rng: np.random.Generator) -> Iterator[Step]:
    """x_{t-1} ~ N(mean, var) for t = T..2; the last step is the forward process's, x_0 ~ N(sqrt(1 - beta_1) x_1, beta_1)."""
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        mean, var = reverse(x_t, t) if t > 1 else (math.sqrt(schedule.alpha[1]) * x_t, 0 * x_t + float(schedule.beta[1]))
        eps_hat = (x_t - math.sqrt(schedule.alpha[t]) * mean) * float(schedule.noise[t] / schedule.beta[t])
        z = standard_normal(rng, x_t.shape, like=x_t)
        x_prev = mean + var**0.5 * z
        yield Step(t, t - 1, x_t, eps_hat, x_0_from_eps(x_t, t, eps_hat, schedule), mean, var**0.5, z, x_prev)
        x_t = x_prev


def after_1(batch: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """t uniform on 2..T: the step to x_0 is not learned."""
    return rng.integers(2, T + 1, size=batch)


def terms(
    net: Any, params: Tree, x_0: Array, t: np.ndarray, eps: Array, schedule: Schedule
) -> tuple[Array, Array, Array, Array, Array, Cache]:
    """KL of each row's step in nats (B,); (eps - eps_hat)^2 and var (B, d); dKL/d out (B, 2 d), dKL/d log var (B, d); the network's cache.

    KL = sum of 1/2 [log(var / beta_tilde) - 1 + (beta_tilde + w^2 (eps - eps_hat)^2) / var],  w = `reverse.mean_slope`
    """
    x_t = q_sample(x_0, t, eps, schedule)
    out, cache = net.forward(params, x_t, told(t, schedule, x_t))
    eps_hat, var = kernel(x_t, t, out, schedule)
    xp, beta_tilde = get_array_module(x_0), coefficient(schedule.beta_tilde[t], x_0)
    w2 = coefficient(mean_slope(t, schedule) ** 2, x_0)
    square = (eps - eps_hat) ** 2
    kl = 0.5 * (xp.log(var / beta_tilde) - 1 + (beta_tilde + w2 * square) / var).sum(axis=1)
    grad_log_var = 0.5 * (1 - (beta_tilde + w2 * square) / var)
    grad_out = xp.concatenate([w2 * (eps_hat - eps) / var, (1 - var) * grad_log_var], axis=1)  # d log sigmoid(z) = 1 - sigmoid(z)
    return kl, square, var, grad_out, grad_log_var, cache


def gradient(net: Any, params: Tree, x_0: Array, t: np.ndarray, eps: Array, schedule: Schedule, *_: str, **__: Any) -> tuple[Array, Array]:
    """In the place of train.gradient: the mean KL of a step, in nats, and its gradient with respect to theta."""
    kl, _square, _var, grad_out, _grad, cache = terms(net, params, x_0, t, eps, schedule)
    _, grads = net.backward(params, cache, grad_out / len(x_0))
    return kl.mean(), flatten(grads)


def rates_gradient(net: Any, params: Tree, x_0: Array, t: np.ndarray, eps: Array, schedule: Schedule) -> np.ndarray:
    """d(-K)/d beta_t in nats, (T+1,), by a batch with its noise frozen; 0 for beta_1, which stays as it is. Sec. 2.4.

    -K = (T - 1) E KL_t - ends. A rate enters KL_t by x_t = s x_0 + n eps, by |w|, by beta_tilde, and by var's logit(beta_t):
    d s = s/2 d log A,  d n = -A/(2 n) d log A,  d log |w| = d beta/beta + d beta/(2 (1 - beta)) + A/(2 n^2) d log A, with A = alpha_bar_t,
    d log beta_tilde = d beta/beta - A_prev/n_prev^2 d log A_prev + A/n^2 d log A,  and d log A_t / d beta_k = -1/(1 - beta_k) for k <= t.
    """
    s, T = schedule, schedule.T
    _kl, square, var, grad_out, grad_log_var, cache = terms(net, params, x_0, t, eps, schedule)
    grad_x = to_numpy(net.backward(params, cache, grad_out)[0]).astype(np.float64)
    x_0, eps, square, var, grad_log_var = (to_numpy(a).astype(np.float64) for a in (x_0, eps, square, var, grad_log_var))
    beta, A, A_prev, beta_tilde = s.beta[t], s.alpha_bar[t], s.alpha_bar[t - 1], s.beta_tilde[t]
    log_w = (mean_slope(t, s)[:, None] ** 2 * square / var).sum(axis=1)  # dKL/d log |w|
    log_beta_tilde = 0.5 * (beta_tilde[:, None] / var - 1).sum(axis=1)
    logit = ((1 - var) * grad_log_var).sum(axis=1)
    by_beta = (log_w + log_beta_tilde) / beta + log_w / (2 * (1 - beta)) + logit / (beta * (1 - beta))
    by_log_A = (grad_x * (np.sqrt(A)[:, None] * x_0 - (A / np.sqrt(1 - A))[:, None] * eps)).sum(axis=1) / 2
    by_log_A += log_w * A / (2 * (1 - A)) + log_beta_tilde * A / (1 - A)
    by_log_A_prev = -log_beta_tilde * A_prev / (1 - A_prev)
    each = (T - 1) / len(t)
    direct, through = each * np.bincount(t, by_beta, T + 1), each * np.bincount(t, by_log_A, T + 1)
    through[:-1] += each * np.bincount(t, by_log_A_prev, T + 1)[1:]
    through[T] += x_0.shape[1] / 2 * s.alpha_bar[T] / (1 - s.alpha_bar[T])  # of -H_q(X_T | X_0)
    grad = direct - np.cumsum(through[::-1])[::-1] / s.alpha  # alpha_k = 1 - beta_k
    grad[:2] = 0
    return grad
