"""Score-based models through SDEs and ODEs. Song et al. 2021, arXiv:2011.13456.

What the paper proposed: the forward process is an SDE, dx = f x dt + g dw. It has a reverse SDE,
and an ODE with the same marginals, which need nothing but the score. DDPM and NCSN are two of its
discretisations. What later work changed: better variables and levels for the ODE (edm.py,
dpm_solver.py).

    euler_maruyama        eq. (6)             the reverse SDE, discretised
    predictor_corrector   Algorithms 2, 3     an ancestral step, then Langevin steps at its level
    ode_log_prob          eq. (39)            log p(x_0) by the probability-flow ODE

Over one step of a Schedule f dt = log(signal_t / signal_{t-1}) and g^2 dt = beta_t, to first
order. In y = x / signal and sigma = noise / signal the ODE is dy = eps_hat dsigma, on every
schedule.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from npdiff import normal
from npdiff.backend import Array, get_array_module, standard_normal
from npdiff.exact import Mixture
from npdiff.forward import score_from_eps, x_0_from_eps
from npdiff.output import eps_from_output, eps_per_output, network_input
from npdiff.reverse import of_state, p_mean_from_eps
from npdiff.sampler import Predictor, Step, check_signal
from npdiff.schedule import Schedule, Time

EpsAndDivergence = Callable[[Array, Time], tuple[Array, Array]]

# The reverse SDE.


def euler_maruyama(
    predict_eps: Predictor, x_T: Array, schedule: Schedule, rng: np.random.Generator
) -> Iterator[Step]:
    """The reverse SDE in the steps of the schedule, the last of which adds no noise.

    dx      = [f x - g^2 score] dt + g dw, with t running backwards
    x_{t-1} = x_t - f dt x_t + g^2 dt score + g sqrt(dt) z

    Eq. (6), Song et al. 2021, arXiv:2011.13456. Of weak order 1. ValueError where signal[T] is 0.
    """
    check_signal(schedule)
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x_t)
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        score = score_from_eps(x_t, t, eps_hat, schedule)
        f_dt, g2_dt = 0.5 * math.log(s.alpha), s.beta
        mean = x_t - f_dt * x_t + g2_dt * score
        sigma = g2_dt**0.5 if t > 1 else 0.0
        z = standard_normal(rng, x_t.shape, like=x_t) if t > 1 else 0 * x_t
        x_prev = mean + sigma * z
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)
        x_t = x_prev


def predictor_corrector(
    predict_eps: Predictor,
    x_T: Array,
    schedule: Schedule,
    rng: np.random.Generator,
    corrections: int = 1,
    snr: float = 0.16,
) -> Iterator[Step]:
    """Ancestral steps, each followed by `corrections` Langevin steps at the level that it reached.

    x = x + e score + sqrt(2 e) z,    e = 2 alpha_t (snr |z| / |score|)^2

    with norms averaged over the batch. Algorithms 2 to 5, Song et al. 2021, arXiv:2011.13456. A
    Langevin step is yielded with t = t_prev. None follows the step to t = 0, where the score is not
    defined.
    """
    check_signal(schedule)
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x_t)
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        mean, sigma = p_mean_from_eps(x_t, t, eps_hat, schedule), s.beta_tilde**0.5
        z = standard_normal(rng, x_t.shape, like=x_t) if t > 1 else 0 * x_t
        x_prev = mean + sigma * z
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)
        x_t = x_prev
        for _ in range(corrections if t > 1 else 0):
            eps_hat = predict_eps(x_t, t - 1)
            x_0_hat = x_0_from_eps(x_t, t - 1, eps_hat, schedule)
            score = score_from_eps(x_t, t - 1, eps_hat, schedule)
            z = standard_normal(rng, x_t.shape, like=x_t)
            e = 2 * s.alpha * (snr * norm(z) / norm(score)) ** 2
            mean, sigma = x_t + e * score, (2 * e) ** 0.5
            x_prev = mean + sigma * z
            yield Step(t - 1, t - 1, x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)
            x_t = x_prev


def norm(x: Array) -> Array:
    """The mean over the batch of the Euclidean norm: (B, ...) -> ()."""
    return ((x * x).reshape(len(x), -1).sum(axis=1) ** 0.5).mean()


# The likelihood by the ODE.


def ode_log_prob(eps_and_divergence: EpsAndDivergence, x_0: Array, schedule: Schedule) -> Array:
    """log p(x_0) in nats, (B, ...) -> (B,), by the probability-flow ODE from t = 1 to T.

    log p(x_0) = log N(x_T; 0, (signal_T^2 + noise_T^2) I) + d log signal_T
                 + integral of div_y eps_hat dsigma,    along dy = eps_hat dsigma

    Eq. (39), Song et al. 2021, arXiv:2011.13456, in Heun's steps. The prior has the variance of x_T
    for data of unit variance. x_0 stands for y at sigma_1: data without the noise of level 1, which
    changes log p by order sigma_1^2. Heun's error is of order 2 in the steps; with too few of them
    the result is better than the truth.

    Parameters
    ----------
    eps_and_divergence : (x_t, t) -> eps_hat, div_x eps_hat: `exact_divergence`, `hutchinson` or
        `perfect`
    """
    s = schedule.at(1, x_0)
    y, integral = x_0, 0.0
    eps_hat, div = eps_and_divergence(s.signal * y, 1)
    for t in range(2, schedule.T + 1):
        s = schedule.at(t, x_0)
        h = s.noise / s.signal - s.noise_prev / s.signal_prev
        eps_euler, div_euler = eps_and_divergence(s.signal * (y + h * eps_hat), t)
        y = y + h * (eps_hat + eps_euler) / 2
        # div_y = signal div_x, since x = signal y
        integral = integral + h * (s.signal_prev * div + s.signal * div_euler) / 2
        if t < schedule.T:
            eps_hat, div = eps_and_divergence(s.signal * y, t)
    x_T, var_T = s.signal * y, s.signal**2 + s.noise**2
    prior = normal.log_prob(x_T, 0.0, var_T).reshape(len(x_0), -1).sum(axis=1)
    return prior + x_0[0].size * math.log(s.signal) + integral


def exact_divergence(
    net: Any, params: Any, schedule: Schedule, predict: str | None = None, **inputs: Any
) -> EpsAndDivergence:
    """(x_t, t) -> eps_hat, div eps_hat of shape (B,), exactly.

    div eps_hat = sum_j d eps_hat_j / dx_j, by one backward pass for each coordinate j.

    params : the network's parameters, or the `train.State` that it was trained in
    predict : what the network's output stands for; default the State's, or "eps"
    """
    params, predict = of_state(params, predict)

    def eps_and_divergence(x_t: Array, t: Time) -> tuple[Array, Array]:
        eps_hat, vjp = eps_and_vjp(net, params, x_t, t, schedule, predict, **inputs)
        unit_vectors = get_array_module(x_t).eye(x_t[0].size, dtype=x_t.dtype)
        div = 0.0
        for unit in unit_vectors.reshape(-1, 1, *x_t.shape[1:]):
            div = div + (vjp(unit + 0 * x_t) * unit).reshape(len(x_t), -1).sum(axis=1)
        return eps_hat, div

    return eps_and_divergence


def hutchinson(
    net: Any,
    params: Any,
    schedule: Schedule,
    rng: np.random.Generator,
    predict: str | None = None,
    **inputs: Any,
) -> EpsAndDivergence:
    """(x_t, t) -> eps_hat, an estimate of div eps_hat = E[u . J u], from one u of random signs.

    Eq. (40), Song et al. 2021, arXiv:2011.13456. params and predict as in `exact_divergence`.
    """
    params, predict = of_state(params, predict)

    def eps_and_divergence(x_t: Array, t: Time) -> tuple[Array, Array]:
        eps_hat, vjp = eps_and_vjp(net, params, x_t, t, schedule, predict, **inputs)
        u = get_array_module(x_t).asarray(rng.choice([-1.0, 1.0], x_t.shape).astype(x_t.dtype))
        return eps_hat, (vjp(u) * u).reshape(len(x_t), -1).sum(axis=1)

    return eps_and_divergence


def eps_and_vjp(
    net: Any, params: dict, x_t: Array, t: Time, schedule: Schedule, predict: str, **inputs: Any
) -> tuple[Array, Callable[[Array], Array]]:
    """eps_hat, and the vector-Jacobian product u -> u^T d eps_hat / dx_t.

    eps_hat is linear in x_t and in out = net(x_t / std): with eps_hat = a x_t + b out,

    u^T d eps_hat/dx_t = a u + net's backward(b u) / std
    """
    s = schedule.at(t, x_t)
    x, level = network_input(x_t, t, schedule)
    out, cache = net.forward(params, x, level, **inputs)
    b = eps_per_output(x_t, t, schedule, predict)

    def vjp(u: Array) -> Array:
        a_u = eps_from_output(u, t, 0 * u, schedule, predict)
        grad_x, _ = net.backward(params, cache, b * u)
        return a_u + grad_x / s.std

    return eps_from_output(x_t, t, out, schedule, predict), vjp


def perfect(data: Mixture, schedule: Schedule) -> EpsAndDivergence:
    """(x_t, t) -> eps*, div eps* of data with a closed form.

    div eps* = (1 - E[|eps - eps*|^2 | x_t] / d) d / noise_t, by Tweedie's formula of second order:
    see `Mixture.irreducible_loss`.
    """
    predict_eps = data.predictor(schedule)

    def eps_and_divergence(x_t: Array, t: Time) -> tuple[Array, Array]:
        s = schedule.at(t, x_t)
        div = (1 - data.irreducible_loss(x_t, t, schedule)) * (data.dim / s.noise)
        return predict_eps(x_t, t), div

    return eps_and_divergence
