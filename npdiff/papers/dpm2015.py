"""Diffusion probabilistic models, the first of them. Sohl-Dickstein et al. 2015, arXiv:1503.03585.

What the paper proposed: destroy the data by a fixed chain of small Gaussian steps, learn the mean
and the covariance of each reverse step, and maximise a bound K on the log-likelihood, a sum of
divergences between Gaussians. With T = 40 steps it draws a swiss roll. What later work changed:
DDPM predicts the noise, fixes the variance and drops the weights of the terms, for better samples;
improved DDPM learns the variance again; and chains became long, since one network that is given t
serves every step.

    bound            eq. (14)    K, the bound on E log p(x_0), here in bits a data point
    null_model       sec. 3      E log pi(x_0), which K is compared with
    entropy_bounds   eq. (24)    H(X_{t-1} | X_t) lies between two entropies known without a model
    objective                    the KL of each step, for train.gradient
    rates_gradient   sec. 2.4    the gradient of -K with respect to beta_2..beta_T

A network is trained by train.update, with t from `after_1` and the gradient of

    train.gradient(..., objective=objective, network_input=network_input)

    paper               here
    ------------------  ----------------------------------------------------------------------
    f_mu, f_Sigma       mean, var, from the network's output [eps_hat, z]: the mean of eq. (11),
                        Ho et al. 2020, and var = sigmoid(z + logit(beta_t))
    pi(x)               N(0, I)
    T_pi(x | x'; beta)  forward.q_step

Where it holds: the cross-entropies with pi at both ends of the chain cancel for data with
E|x_0|^2 = d, to which the paper scales its data. The upper half of eq. (24) needs entropies that
rise with t; those of data wider than pi do not (a test shows both).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from npdiff import normal
from npdiff.backend import Array, get_array_module, per_row, sigmoid, standard_normal, to_numpy
from npdiff.exact import Mixture
from npdiff.forward import q_sample, x_0_from_eps
from npdiff.likelihood import Reverse, mean_and_error, step_kl
from npdiff.nn.params import Tree
from npdiff.normal import BITS
from npdiff.reverse import mean_per_eps, of_state, p_mean_from_eps
from npdiff.sampler import Step
from npdiff.schedule import Schedule, Time

# The learned step.


def network_input(x_t: Array, t: Time, schedule: Schedule) -> tuple[Array, Array]:
    """x_t as it is, and t / T spread over -5..5, in the place of `output.network_input`.

    The level of a step changes while the rates are learned; t / T does not.

    Returns
    -------
    x : array of shape (B, ...)
    level : array of shape (B,), 10 t / T - 5
    """
    level = np.broadcast_to(10 * np.asarray(t) / schedule.T - 5, len(x_t)).astype(x_t.dtype)
    return x_t, get_array_module(x_t).asarray(level)


def kernel(x_t: Array, t: Time, out: Array, schedule: Schedule) -> tuple[Array, Array]:
    """eps_hat and var = sigmoid(z + logit(beta_t)), each (B, d), from out = [eps_hat, z]."""
    s, dim = schedule.at(t, x_t), x_t.shape[1]
    eps_hat, z = out[:, :dim], out[:, dim:]
    return eps_hat, sigmoid(z + normal.log(s.beta / (1 - s.beta)))


def reverse(net: Any, params: Any, schedule: Schedule) -> Reverse:
    """The learned step as reverse(x_t, t) -> mean, var, both (B, d).

    params : the network's parameters, or the `train.State` that it was trained in
    """
    params, _ = of_state(params, "eps")

    def mean_and_variance(x_t: Array, t: Time) -> tuple[Array, Array]:
        x, level = network_input(x_t, t, schedule)
        out, _ = net.forward(params, x, level)
        eps_hat, var = kernel(x_t, t, out, schedule)
        return p_mean_from_eps(x_t, t, eps_hat, schedule), var

    return mean_and_variance


def best_reverse(data: Mixture, schedule: Schedule) -> Reverse:
    """The best reverse step that is Gaussian with a diagonal covariance, as reverse(x_t, t).

    Its mean and variances are those of q(x_{t-1} | x_t), coordinate by coordinate.
    """

    def mean_and_variance(x_t: Array, t: Time) -> tuple[Array, Array]:
        mean, cov = data.reverse_step(x_t, int(t), schedule)
        return mean, cov.diagonal(axis1=1, axis2=2)

    return mean_and_variance


# The bound.


def ends(schedule: Schedule, dim: int) -> float:
    """H_q(X_T | X_0) - H_q(X_1 | X_0) - H_p(X_T), the part of K without a network, in nats."""
    H_T = dim * normal.entropy(schedule.noise[-1] ** 2)
    H_1 = dim * normal.entropy(schedule.beta[1])
    H_p = dim * normal.entropy(1.0)
    return H_T - H_1 - H_p


def bound(
    x_0: Array, schedule: Schedule, reverse: Reverse, rng: np.random.Generator
) -> tuple[float, float]:
    """K, with E log2 p(x_0) >= K, and its standard error, in bits a data point.

    K = -sum_{t=2}^{T} E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
        + H_q(X_T | X_0) - H_q(X_1 | X_0) - H_p(X_T)

    Eq. (14), Sohl-Dickstein et al. 2015, arXiv:1503.03585. The step from x_1 to x_0 is that of the
    forward process, and adds nothing.
    """
    nats = np.zeros(len(x_0))
    for t in range(2, schedule.T + 1):
        x_t = q_sample(x_0, t, standard_normal(rng, x_0.shape, like=x_0), schedule)
        nats += to_numpy(step_kl(x_0, x_t, t, schedule, reverse))
    return mean_and_error(BITS * (ends(schedule, x_0.shape[1]) - nats))


def null_model(dim: int) -> float:
    """E log2 pi(x_0) = -dim/2 log2(2 pi e), in bits, for data of variance 1."""
    return -dim * BITS * normal.entropy(1.0)


def entropy_bounds(t: int, schedule: Schedule, dim: int) -> tuple[float, float]:
    """Bounds on H_q(X_{t-1} | X_t) in nats, for t >= 2.

    H_q(X_t | X_{t-1}) + H_q(X_{t-1} | X_0) - H_q(X_t | X_0) <= H_q(X_{t-1} | X_t)
    H_q(X_{t-1} | X_t) <= H_q(X_t | X_{t-1})

    Eq. (24), Sohl-Dickstein et al. 2015, arXiv:1503.03585.
    """
    H_step = dim * normal.entropy(schedule.beta[t])
    H_prev = dim * normal.entropy(schedule.noise[t - 1] ** 2)
    H_t = dim * normal.entropy(schedule.noise[t] ** 2)
    return H_step + H_prev - H_t, H_step


# Sampling.


def sample(
    reverse: Reverse, x_T: Array, schedule: Schedule, rng: np.random.Generator
) -> Iterator[Step]:
    """x_{t-1} ~ N(mean, var) for t = T..2, and x_0 ~ N(sqrt(1 - beta_1) x_1, beta_1).

    The last step is that of the forward process. eps_hat is the noise that each mean implies, by
    eq. (11), Ho et al. 2020.
    """
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x_t)
        if t > 1:
            mean, var = reverse(x_t, t)
        else:
            mean, var = s.alpha**0.5 * x_t, 0 * x_t + s.beta
        eps_hat = (x_t - s.alpha**0.5 * mean) * (s.noise / s.beta)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        z = standard_normal(rng, x_t.shape, like=x_t)
        x_prev = mean + var**0.5 * z
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, var**0.5, z, x_prev)
        x_t = x_prev


# Training.


def after_1(batch: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """t uniform on 2..T: the step from x_1 to x_0 is not learned."""
    return rng.integers(2, T + 1, size=batch)


def objective(
    out: Array, x_0: Array, t: np.ndarray, eps: Array, schedule: Schedule, predict: str = "eps"
) -> tuple[Array, Array]:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) of each row, in nats.

    KL = sum over the coordinates of 1/2 [log(var / beta_tilde) - 1 + square / var]

    with square = beta_tilde + w^2 (eps - eps_hat)^2, the mean of (x_{t-1} - mean)^2 under q, and
    w = `reverse.mean_per_eps`. It is the paper's sum over the coordinates, not their mean: K is
    a bound for a whole data point. The gradient, by d log sigmoid(z) / dz = 1 - sigmoid(z), is

    dKL/d eps_hat = w^2 (eps_hat - eps) / var,    dKL/dz = (1 - var) 1/2 (1 - square / var)

    Returns
    -------
    loss : array of shape (B,)
    grad_out : array of shape (B, 2 d)

    Raises
    ------
    ValueError
        For a t below 2, where the step is not learned, or unless predict is "eps".
    """
    if predict != "eps":
        raise ValueError(f'the network puts out [eps_hat, z], so predict is "eps", got {predict!r}')
    if np.min(t) < 2:
        raise ValueError("t must be at least 2: the step to x_0 is not learned; see after_1")
    s, w = schedule.at(t, x_0), per_row(mean_per_eps(t, schedule), x_0)
    x_t = q_sample(x_0, t, eps, schedule)
    eps_hat, var = kernel(x_t, t, out, schedule)
    square = s.beta_tilde + w**2 * (eps - eps_hat) ** 2
    kl = 0.5 * (normal.log(var / s.beta_tilde) - 1 + square / var)
    grad_eps_hat = w**2 * (eps_hat - eps) / var
    grad_z = (1 - var) * 0.5 * (1 - square / var)
    return kl.sum(axis=1), get_array_module(out).concatenate([grad_eps_hat, grad_z], axis=1)


def rates_gradient(
    net: Any, params: Tree, x_0: Array, t: np.ndarray, eps: Array, schedule: Schedule
) -> np.ndarray:
    """d(-K)/d beta_t in nats, estimated from a batch with its noise frozen: shape (T+1,).

    -K = (T - 1) E KL_t - ends. With A = alpha_bar_t, a rate enters KL_t

    by x_t = signal x_0 + noise eps:  d signal = signal/2 d log A,  d noise = -A/(2 noise) d log A
    by log |w|:         d beta / beta + d beta / (2 (1 - beta)) + A/(2 noise^2) d log A
    by log beta_tilde:  d beta / beta - A_prev/noise_prev^2 d log A_prev + A/noise^2 d log A
    by var, in which logit(beta) is added to z

    and d log A_t / d beta_k = -1 / (1 - beta_k) for k <= t. beta_1 is not learned, and its entry
    is 0. Sec. 2.4, Sohl-Dickstein et al. 2015, arXiv:1503.03585.
    """
    T, dim = schedule.T, x_0.shape[1]
    x_t = q_sample(x_0, t, eps, schedule)
    x, level = network_input(x_t, t, schedule)
    out, cache = net.forward(params, x, level)
    eps_hat, var = kernel(x_t, t, out, schedule)
    _, grad_out = objective(out, x_0, t, eps, schedule)
    grad_x, _ = net.backward(params, cache, grad_out)
    x_0, eps, eps_hat, var, grad_out, grad_x = (
        to_numpy(a).astype(np.float64) for a in (x_0, eps, eps_hat, var, grad_out, grad_x)
    )
    s, w = schedule.at(t, x_0), mean_per_eps(t, schedule)[:, None]
    beta, A, A_prev = schedule.beta[t], schedule.alpha_bar[t], schedule.alpha_bar[t - 1]

    # Of each row's KL_t, (B,):
    grad_log_w = (w**2 * (eps - eps_hat) ** 2 / var).sum(axis=1)
    grad_log_beta_tilde = 0.5 * (s.beta_tilde / var - 1).sum(axis=1)
    grad_logit = grad_out[:, dim:].sum(axis=1)
    grad_beta = (grad_log_w + grad_log_beta_tilde) / beta + grad_log_w / (2 * (1 - beta))
    grad_beta += grad_logit / (beta * (1 - beta))
    grad_log_A = (grad_x * (s.signal * x_0 - A[:, None] / s.noise * eps)).sum(axis=1) / 2
    grad_log_A += grad_log_w * A / (2 * (1 - A)) + grad_log_beta_tilde * A / (1 - A)
    grad_log_A_prev = -grad_log_beta_tilde * A_prev / (1 - A_prev)

    # Of -K, (T+1,): a row stands for (T - 1) / B of it, and beta_k acts on every A_t with t >= k.
    direct, through_A, each = np.zeros(T + 1), np.zeros(T + 1), (T - 1) / len(t)
    np.add.at(direct, t, each * grad_beta)
    np.add.at(through_A, t, each * grad_log_A)
    np.add.at(through_A, t - 1, each * grad_log_A_prev)
    through_A[T] += dim / 2 * schedule.alpha_bar[T] / (1 - schedule.alpha_bar[T])  # -H_q(X_T | X_0)
    grad = direct - np.cumsum(through_A[::-1])[::-1] / (1 - schedule.beta)
    grad[:2] = 0
    return grad
