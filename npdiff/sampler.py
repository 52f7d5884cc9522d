"""Walking the chain back: from x_T, pure noise, to x_0.

A sampler is a generator that yields every step with all its named quantities, so a picture, a progress line or a
breakpoint is a `for` loop around it, and the sample is the last step's x_prev:

    for step in ddpm(predict_eps, x_T, schedule, rng):
        ...
    x_0 = step.x_prev

It takes any predict_eps(x_t, t): `reverse.predictor` makes one from a network, `exact.Mixture.predictor` the exact one.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from npdiff.backend import Array, get_array_module, standard_normal
from npdiff.forward import Time, x_0_from_eps
from npdiff.reverse import p_mean_from_eps, p_variance
from npdiff.schedule import Schedule

Predictor = Callable[[Array, Time], Array]


class Step(NamedTuple):
    """One step back, from t to t_prev:  x_prev = mean + sigma z."""

    t: int
    t_prev: int
    x_t: Array
    eps_hat: Array  # the predictor's guess of the noise in x_t
    x_0_hat: Array  # and what that says about x_0
    mean: Array
    sigma: float  # standard deviation of the step
    z: Array  # the noise drawn, zeros in a step without any
    x_prev: Array


def ddpm(predict_eps: Predictor, x_T: Array, schedule: Schedule, rng: np.random.Generator, variance: str = "beta_tilde") -> Iterator[Step]:
    """Ancestral sampling, all T steps: x_{t-1} ~ N(mu_theta(x_t, t), sigma_t^2 I), with no noise at the last.

    Algorithm 2, Ho et al. 2020, arXiv:2006.11239.

    Parameters
    ----------
    predict_eps : predict_eps(x_t, t) -> eps_hat
    x_T : array of shape (B, ...), a draw from N(0, I) where the schedule is variance preserving
    variance : sigma_t^2, "beta_tilde" or "beta"

    Raises
    ------
    ValueError
        For another `variance`.
    """
    p_variance(schedule.T, schedule, variance)
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        mean = p_mean_from_eps(x_t, t, eps_hat, schedule)
        sigma = math.sqrt(p_variance(t, schedule, variance)) if t > 1 else 0.0
        z = standard_normal(rng, x_t.shape, like=x_t) if t > 1 else get_array_module(x_t).zeros_like(x_t)
        x_prev = mean + sigma * z
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)
        x_t = x_prev


def ddim(
    predict_eps: Predictor, x_T: Array, schedule: Schedule, steps: int = 50, eta: float = 0.0, rng: np.random.Generator | None = None
) -> Iterator[Step]:
    """Jumps along a subsequence T = tau_S > ... > tau_0 = 0, S = steps, through the guess of x_0:

    x_s = signal_s x_0_hat + sqrt(noise_s^2 - sigma^2) eps_hat + sigma z,    from t = tau_i to s = tau_{i-1}
    sigma = eta noise_s / noise_t sqrt(noise_t^2 - (signal_t / signal_s)^2 noise_s^2)

    Eq. (12) and (16), Song et al. 2021, arXiv:2010.02502, whose alpha is alpha_bar = signal^2. With eta = 0 nothing is
    drawn; with eta = 1 and steps = T this is DDPM with beta_tilde.

    Parameters
    ----------
    predict_eps : predict_eps(x_t, t) -> eps_hat
    x_T : array of shape (B, ...), a draw from N(0, I) where the schedule is variance preserving
    steps : how many, in 1..T
    eta : 0 or above; needs `rng` where it is not 0

    Raises
    ------
    ValueError
        For `steps` outside 1..T, a negative eta, one so large that sigma > noise_s, or eta without `rng`.
    """
    if not eta >= 0 or (eta > 0 and rng is None):
        raise ValueError(f"eta must be 0, or above 0 together with rng, got {eta}")
    tau, x_t = subsequence(schedule.T, steps), x_T
    for t, t_prev in zip(tau[:-1], tau[1:], strict=True):
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        sigma = ddim_sigma(t, t_prev, schedule, eta)
        signal_prev, noise_prev = float(schedule.signal[t_prev]), float(schedule.noise[t_prev])
        mean = signal_prev * x_0_hat + math.sqrt(noise_prev**2 - sigma**2) * eps_hat
        z = standard_normal(rng, x_t.shape, like=x_t) if rng and sigma > 0 else get_array_module(x_t).zeros_like(x_t)
        x_prev = mean + sigma * z
        yield Step(t, t_prev, x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)
        x_t = x_prev


def ddim_sigma(t: int, t_prev: int, schedule: Schedule, eta: float) -> float:
    """Standard deviation of DDIM's step from t to t_prev, eq. (16), Song et al. 2021: eta times that of q(x_{t_prev} | x_t, x_0)."""
    signal, noise = schedule.signal, schedule.noise
    var_given_prev = noise[t] ** 2 - (signal[t] / signal[t_prev]) ** 2 * noise[t_prev] ** 2  # of q(x_t | x_{t_prev})
    sigma = eta * noise[t_prev] / noise[t] * math.sqrt(var_given_prev)
    if sigma > noise[t_prev]:
        raise ValueError(f"eta {eta} asks for more noise at t={t_prev} than the schedule has there; take eta <= 1")
    return float(sigma)


def subsequence(T: int, steps: int) -> list[int]:
    """T = tau_S > ... > tau_0 = 0, in S = steps nearly equal jumps of whole numbers."""
    if not isinstance(steps, (int, np.integer)) or not 1 <= steps <= T:
        raise ValueError(f"steps must be a whole number in 1..{T}, got {steps!r}")
    return [round(T * (steps - i) / steps) for i in range(steps + 1)]
