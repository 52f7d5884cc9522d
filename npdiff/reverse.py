"""The learned process p_theta: a network's guess of the noise in x_t becomes one Gaussian step back to x_{t-1}.

    p_theta(x_{t-1} | x_t) = N(mu_theta(x_t, t), sigma_t^2 I)

The mean has three forms, equal whenever x_t = signal_t x_0 + noise_t eps and score = -eps / noise_t hold between the
guesses. The variance is fixed, to beta_t or to beta_tilde_t. `predictor` makes a network into predict_eps(x_t, t),
which is all that a sampler ever sees; `exact.Mixture.predictor` gives the same kind of function.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.forward import Time, eps_from_v, eps_from_x_0, q_posterior
from npdiff.schedule import Schedule, check_t, coefficient

PREDICT = ("eps", "x_0", "v")
VARIANCE = ("beta_tilde", "beta")


def p_mean_from_eps(x_t: Array, t: Time, eps_hat: Array, schedule: Schedule) -> Array:
    """mu_theta = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps_hat) / sqrt(alpha_t).

    Eq. (11), Ho et al. 2020, arXiv:2006.11239. All arrays have shape (B, ...).
    """
    check_t(t, schedule)
    weight_eps = coefficient(schedule.beta[t] / schedule.noise[t], x_t)
    return (x_t - weight_eps * eps_hat) / _sqrt_alpha(x_t, t, schedule)


def mean_slope(t: Time, schedule: Schedule) -> np.ndarray:
    """d mu_theta / d eps_hat = -beta_t / (sqrt(alpha_t) sqrt(1 - alpha_bar_t)), by eq. (11), Ho et al. 2020; float64, of t's shape.

    So an error of eps_hat is an error of the mean: mu_theta - mu_tilde = mean_slope (eps_hat - eps).
    """
    check_t(t, schedule)
    return -schedule.beta[t] / (np.sqrt(schedule.alpha[t]) * schedule.noise[t])


def p_mean_from_x_0(x_t: Array, t: Time, x_0_hat: Array, schedule: Schedule) -> Array:
    """mu_theta = the mean of q(x_{t-1} | x_t, x_0 = x_0_hat). Eq. (7) and (11), Ho et al. 2020, arXiv:2006.11239."""
    mean, _ = q_posterior(x_0_hat, x_t, t, schedule)
    return mean


def p_mean_from_score(x_t: Array, t: Time, score_hat: Array, schedule: Schedule) -> Array:
    """mu_theta = (x_t + beta_t score_hat) / sqrt(alpha_t).

    Eq. (11), Ho et al. 2020, with eps_hat = -noise_t score_hat; eq. (4), Song et al. 2021, arXiv:2011.13456.
    """
    check_t(t, schedule)
    beta_t = coefficient(schedule.beta[t], x_t)
    return (x_t + beta_t * score_hat) / _sqrt_alpha(x_t, t, schedule)


def _sqrt_alpha(x_t: Array, t: Time, schedule: Schedule) -> Array:
    if np.any(schedule.alpha[t] == 0):
        raise ValueError("alpha[t] is 0: x_t holds nothing of x_{t-1}, so eps does not determine the mean; use p_mean_from_x_0")
    return coefficient(np.sqrt(schedule.alpha[t]), x_t)


def p_variance(t: Time, schedule: Schedule, variance: str = "beta_tilde") -> np.ndarray:
    """sigma_t^2 of the step: beta_t, best for x_0 ~ N(0, I), or beta_tilde_t, best for a single point x_0; float64, of t's shape.

    Sec. 3.2, Ho et al. 2020, arXiv:2006.11239.
    """
    check_t(t, schedule)
    if variance not in VARIANCE:
        raise ValueError(f"variance must be one of {', '.join(VARIANCE)}, got {variance!r}")
    return schedule.beta[t] if variance == "beta" else schedule.beta_tilde[t]


def network_input(x_t: Array, t: Time, schedule: Schedule) -> tuple[Array, Array]:
    """What a network is given: x_t / sqrt(signal_t^2 + noise_t^2), of about unit variance, and level = log(noise_t / signal_t).

    Told the level and not the step's number, one network serves every schedule and every sampler. level has shape (B,).
    """
    scale = coefficient(1 / schedule.std[t], x_t)
    level = np.broadcast_to(schedule.level[t], len(x_t)).astype(x_t.dtype)
    return scale * x_t, get_array_module(x_t).asarray(level)


def eps_from_output(x_t: Array, t: Time, out: Array, schedule: Schedule, predict: str) -> Array:
    """eps_hat, from a network's output that stands for eps, x_0 or v."""
    if predict not in PREDICT:
        raise ValueError(f"predict must be one of {', '.join(PREDICT)}, got {predict!r}")
    if predict == "x_0":
        return eps_from_x_0(x_t, t, out, schedule)
    if predict == "v":  # that of the network's input, x_t / std_t
        return eps_from_v(x_t, t, coefficient(schedule.std[t], x_t) * out, schedule)
    return out


def predictor(
    net: Any, params: dict, schedule: Schedule, predict: str = "eps", guidance: float = 0.0, **inputs: Any
) -> Callable[[Array, Time], Array]:
    """The network as a function predict_eps(x_t, t) -> eps_hat, with t an int, or ints of shape (B,).

    With guidance w, away from what the network says without `inputs`: eps_hat = (1 + w) eps_cond - w eps_uncond.
    Eq. (6), Ho & Salimans 2022, arXiv:2207.12598.

    Parameters
    ----------
    net : a module with forward(params, x, level, ...) -> out, cache, such as npdiff.nn.mlp
    params : its parameters, trained or averaged
    predict : what the network's output stands for: "eps", "x_0" or "v"
    guidance : w, 0 for none
    inputs : further arguments of net.forward, such as label

    Raises
    ------
    ValueError
        For another `predict`, guidance without inputs, or a t outside 1..T.
    """
    if predict not in PREDICT:
        raise ValueError(f"predict must be one of {', '.join(PREDICT)}, got {predict!r}")
    if guidance and not inputs:
        raise ValueError("guidance needs inputs to be guided by, such as label=...")

    def predict_eps(x_t: Array, t: Time) -> Array:
        check_t(t, schedule)
        x, level = network_input(x_t, t, schedule)
        out, _ = net.forward(params, x, level, **inputs)
        eps_cond = eps_from_output(x_t, t, out, schedule, predict)
        if not guidance:
            return eps_cond
        out, _ = net.forward(params, x, level)
        eps_uncond = eps_from_output(x_t, t, out, schedule, predict)
        return (1 + guidance) * eps_cond - guidance * eps_uncond

    return predict_eps
