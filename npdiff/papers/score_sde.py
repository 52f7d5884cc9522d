"""Score-based models through stochastic differential equations. Song et al. 2021, arXiv:2011.13456.

What the paper proposed: the forward process is an SDE, dx = f x dt + g dw, and it has a reverse SDE and an ODE with the same
marginals, which need nothing but the score. DDPM and NCSN are two of its discretisations. What later work changed: better variables and
levels for the ODE (edm.py, dpm_solver.py).

    euler_maruyama        eq. (6)             the reverse SDE, in steps
    predictor_corrector   Algorithms 2 and 3  a step of ancestral sampling, then Langevin steps at the new level
    ode_log_prob          eq. (39)            log p(x_0) by the probability-flow ODE: how it moves x, and how it stretches space

Over one step of a Schedule, f dt = log(signal_t / signal_{t-1}) and g^2 dt = beta_t, to first order. In y = x / signal and
sigma = noise / signal the ODE is dy = eps_hat dsigma, without coefficients, for every schedule.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from npdiff import normal
from npdiff.backend import Array, get_array_module, standard_normal
from npdiff.exact import Mixture
from npdiff.forward import Time, x_0_from_eps
from npdiff.loss import slope
from npdiff.nn.params import Tree
from npdiff.reverse import eps_from_output, network_input, p_mean_from_eps
from npdiff.sampler import Predictor, Step
from npdiff.schedule import Schedule, coefficient

EpsAndDivergence = Callable[[Array, Time], tuple[Array, Array]]


def euler_maruyama(predict_eps: Predictor, x_T: Array, schedule: Schedule, rng: np.random.Generator) -> Iterator[Step]:
    """The reverse SDE, dx = [f x - g^2 score] dt + g dw, with t running back, in steps of the schedule; no noise in the last one.

    x_{t-1} = x_t - f dt x_t + g^2 dt score + g sqrt(dt) z.  Eq. (6), Song et al. 2021, arXiv:2011.13456. Of weak order 1.
    """
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        score = -eps_hat / float(schedule.noise[t])
        f_dt, g2_dt = 0.5 * math.log(schedule.alpha[t]), float(schedule.beta[t])
        mean = x_t - f_dt * x_t + g2_dt * score
        sigma = math.sqrt(g2_dt) if t > 1 else 0.0
        z = standard_normal(rng, x_t.shape, like=x_t) if t > 1 else get_array_module(x_t).zeros_like(x_t)
        x_prev = mean + sigma * z
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)
        x_t = x_prev


def predictor_corrector(
    predict_eps: Predictor, x_T: Array, schedule: Schedule, rng: np.random.Generator, corrections: int = 1, snr: float = 0.16
) -> Iterator[Step]:
    """Ancestral steps, each followed by `corrections` Langevin steps at the level that it reached. Algorithms 2 and 3, Song et al. 2021.

    x = x + e score + sqrt(2 e) z,  e = 2 alpha_t (snr |z| / |score|)^2,  with norms averaged over the batch (Algorithms 4 and 5).
    A Langevin step is yielded with t = t_prev. The step to t = 0 has none: there the score is not defined.
    """
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        eps_hat = predict_eps(x_t, t)
        mean, sigma = p_mean_from_eps(x_t, t, eps_hat, schedule), math.sqrt(schedule.beta_tilde[t])
        z = standard_normal(rng, x_t.shape, like=x_t)
        x_prev = mean + sigma * z
        yield Step(t, t - 1, x_t, eps_hat, x_0_from_eps(x_t, t, eps_hat, schedule), mean, sigma, z, x_prev)
        x_t = x_prev
        for _ in range(corrections if t > 1 else 0):
            eps_hat = predict_eps(x_t, t - 1)
            score = -eps_hat / float(schedule.noise[t - 1])
            z = standard_normal(rng, x_t.shape, like=x_t)
            e = 2 * float(schedule.alpha[t]) * (snr * norm(z) / norm(score)) ** 2
            mean, sigma = x_t + e * score, (2 * e) ** 0.5
            x_prev = mean + sigma * z
            yield Step(t - 1, t - 1, x_t, eps_hat, x_0_from_eps(x_t, t - 1, eps_hat, schedule), mean, sigma, z, x_prev)
            x_t = x_prev


def norm(x: Array) -> Array:
    """The mean over the batch of the Euclidean norm: (B, ...) -> ()."""
    return ((x * x).reshape(len(x), -1).sum(axis=1) ** 0.5).mean()


def ode_log_prob(eps_and_divergence: EpsAndDivergence, x_0: Array, schedule: Schedule) -> Array:
    """log p(x_0) in nats, (B, ...) -> (B,), by the probability-flow ODE from t = 1 to T in Heun's steps. Eq. (39), Song et al. 2021.

    log p(x_0) = log N(x_T; 0, (signal_T^2 + noise_T^2) I) + d log signal_T + integral of div_y eps_hat dsigma,  dy = eps_hat dsigma
    The prior has the variance of x_T for data of unit variance. x_0 is taken for y at sigma_1: data without the noise that
    level 1 has, which changes log p by order sigma_1^2. Heun's error is of order 2 in the steps; too few of them flatter the model.
    """
    s = schedule
    sigma = s.noise / s.signal
    y = x_0
    slope_1, div_1 = eps_and_divergence(float(s.signal[1]) * y, 1)
    stretched = 0.0
    for t in range(2, s.T + 1):
        h = float(sigma[t] - sigma[t - 1])
        slope_2, div_2 = eps_and_divergence(float(s.signal[t]) * (y + h * slope_1), t)
        y = y + h * (slope_1 + slope_2) / 2
        stretched = stretched + h * (float(s.signal[t - 1]) * div_1 + float(s.signal[t]) * div_2) / 2  # div_y = signal div_x
        if t < s.T:
            slope_1, div_1 = eps_and_divergence(float(s.signal[t]) * y, t)
    x_T, signal_T, var = float(s.signal[-1]) * y, float(s.signal[-1]), float(s.signal[-1] ** 2 + s.noise[-1] ** 2)
    prior = normal.log_prob(x_T, 0.0, var).reshape(len(x_0), -1).sum(axis=1)
    return prior + x_0[0].size * math.log(signal_T) + stretched


def exact_divergence(net: Any, params: Tree, schedule: Schedule, predict: str = "eps", **inputs: Any) -> EpsAndDivergence:
    """(x_t, t) -> eps_hat, div eps_hat (B,), summing d eps_hat_j / dx_j over the coordinates j: one backward pass for each."""

    def eps_and_divergence(x_t: Array, t: Time) -> tuple[Array, Array]:
        eps_hat, vjp = eps_and_vjp(net, params, x_t, t, schedule, predict, **inputs)
        units = get_array_module(x_t).eye(x_t[0].size, dtype=x_t.dtype).reshape(-1, 1, *x_t.shape[1:])
        return eps_hat, sum((vjp(unit + 0 * x_t) * unit).reshape(len(x_t), -1).sum(axis=1) for unit in units)

    return eps_and_divergence


def hutchinson(
    net: Any, params: Tree, schedule: Schedule, rng: np.random.Generator, predict: str = "eps", **inputs: Any
) -> EpsAndDivergence:
    """(x_t, t) -> eps_hat, u . J u with u = +-1: an estimate of div eps_hat = E[u . J u]. Eq. (40), Song et al. 2021."""

    def eps_and_divergence(x_t: Array, t: Time) -> tuple[Array, Array]:
        eps_hat, vjp = eps_and_vjp(net, params, x_t, t, schedule, predict, **inputs)
        u = get_array_module(x_t).asarray(rng.choice([-1.0, 1.0], x_t.shape).astype(x_t.dtype))
        return eps_hat, (vjp(u) * u).reshape(len(x_t), -1).sum(axis=1)

    return eps_and_divergence


def eps_and_vjp(
    net: Any, params: Tree, x_t: Array, t: Time, schedule: Schedule, predict: str, **inputs: Any
) -> tuple[Array, Callable[[Array], Array]]:
    """eps_hat, and u -> u^T d eps_hat / dx_t: by what stands before the network, through it, and after it.

    eps_hat = a x_t + b net(scale x_t), linear in x_t and in the network's output: u^T d eps_hat/dx = a u + scale net's backward(b u).
    """
    x, level = network_input(x_t, t, schedule)
    out, cache = net.forward(params, x, level, **inputs)
    scale = coefficient(1 / schedule.std[t], x_t)
    b = coefficient(slope(t, schedule, predict), x_t)

    def vjp(u: Array) -> Array:
        grad_x, _ = net.backward(params, cache, b * u)
        return eps_from_output(u, t, 0 * u, schedule, predict) + scale * grad_x

    return eps_from_output(x_t, t, out, schedule, predict), vjp


def perfect(data: Mixture, schedule: Schedule) -> EpsAndDivergence:
    """(x_t, t) -> eps*, div eps* of data with a closed form: eps* = -noise score, and the loss that is left says how it spreads.

    div eps* = (1 - E[|eps - eps*|^2 | x_t] / d) d / noise_t, by Tweedie's formula of second order (`Mixture.irreducible_loss`).
    """
    predict_eps = data.predictor(schedule)

    def eps_and_divergence(x_t: Array, t: Time) -> tuple[Array, Array]:
        return predict_eps(x_t, t), (1 - data.irreducible_loss(x_t, t, schedule)) * (data.dim / float(schedule.noise[t]))

    return eps_and_divergence
