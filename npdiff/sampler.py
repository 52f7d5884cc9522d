"""The reverse process, step by step: from x_T, pure noise, to x_0.

A sampler is a generator that yields every step with all its named quantities. So a picture, a
progress line or a breakpoint is a `for` loop around it, and the sample is the last step's x_prev:

    for step in ddpm(predict_eps, x_T, schedule, rng):
        ...
    x_0 = step.x_prev

It takes any predict_eps(x_t, t): `reverse.predictor` makes one from a network,
`exact.Mixture.predictor` gives the exact one.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from npdiff.backend import Array, standard_normal
from npdiff.forward import x_0_from_eps
from npdiff.reverse import p_mean_from_eps, p_variance
from npdiff.schedule import Schedule, Time

Predictor = Callable[[Array, Time], Array]


class Step(NamedTuple):
    """One step back, from t to t_prev:  x_prev = mean + sigma z."""

    t: int
    t_prev: int
    x_t: Array
    eps_hat: Array  # the predicted noise in x_t
    x_0_hat: Array  # the x_0 that eps_hat implies
    mean: Array
    sigma: float  # the standard deviation of the step
    z: Array  # the noise that is added, drawn from N(0, I); zeros in a step that adds none
    x_prev: Array


def check_signal(schedule: Schedule) -> None:
    """ValueError where x_T is pure noise, signal[T] = 0: there eps does not determine the step."""
    if schedule.signal[-1] == 0:
        raise ValueError(
            "signal[T] is 0, and eps_hat does not determine a step from pure noise: use a schedule "
            "with some signal at T, or papers.flow_matching.euler, which takes the velocity"
        )


def ddpm(
    predict_eps: Predictor,
    x_T: Array,
    schedule: Schedule,
    rng: np.random.Generator,
    variance: str = "beta_tilde",
) -> Iterator[Step]:
    """Ancestral sampling in T steps, the last of which adds no noise.

    x_{t-1} ~ N(mu_theta(x_t, t), sigma_t^2 I)

    Algorithm 2, Ho et al. 2020, arXiv:2006.11239.

    Parameters
    ----------
    predict_eps : predict_eps(x_t, t) -> eps_hat
    x_T : array of shape (B, ...), a draw from N(0, I) where the schedule is variance preserving
    variance : sigma_t^2, "beta_tilde" or "beta"

    Raises
    ------
    ValueError
        For another `variance`, or a schedule with signal[T] = 0.
    """
    p_variance(schedule.T, schedule, variance)  # refuses another name before the first step
    check_signal(schedule)
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        mean = p_mean_from_eps(x_t, t, eps_hat, schedule)
        sigma = math.sqrt(p_variance(t, schedule, variance)) if t > 1 else 0.0
        z = standard_normal(rng, x_t.shape, like=x_t) if t > 1 else 0 * x_t
        x_prev = mean + sigma * z
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)
        x_t = x_prev


def ddim(
    predict_eps: Predictor,
    x_T: Array,
    schedule: Schedule,
    steps: int = 50,
    eta: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Iterator[Step]:
    """Jumps along a subsequence T = tau_S > ... > tau_0 = 0 of S = steps jumps.

    From t = tau_i to s = tau_{i-1}, by way of x_0_hat:

    x_s     = signal_s x_0_hat + sqrt(noise_s^2 - sigma^2) eps_hat + sigma z
    sigma^2 = eta^2 noise_s^2 / noise_t^2 (noise_t^2 - (signal_t / signal_s)^2 noise_s^2)

    Eq. (12) and (16), Song et al. 2021, arXiv:2010.02502, whose alpha is alpha_bar = signal^2. The
    steps of the subsequence form a Schedule of their own, and sigma^2 is eta^2 times its
    beta_tilde. With eta = 0 the steps are deterministic; with eta = 1 and steps = T this is DDPM
    with beta_tilde.

    Parameters
    ----------
    predict_eps : predict_eps(x_t, t) -> eps_hat
    x_T : array of shape (B, ...), a draw from N(0, I) where the schedule is variance preserving
    steps : the number of jumps, in 1..T
    eta : 0 or above; needs `rng` where it is not 0

    Raises
    ------
    ValueError
        For `steps` outside 1..T, a negative eta, one so large that sigma > noise_s, eta without
        `rng`, or a schedule with signal[T] = 0.
    """
    if not eta >= 0 or (eta > 0 and rng is None):
        raise ValueError(f"eta must be 0, or above 0 together with rng, got {eta}")
    check_signal(schedule)
    tau = subsequence(schedule.T, steps)
    jumps = Schedule(schedule.signal[tau], schedule.noise[tau])
    if np.any(eta * np.sqrt(jumps.beta_tilde[1:]) > jumps.noise[:-1]):
        raise ValueError(
            f"eta {eta} asks for a step with more noise than x_s may have; take eta <= 1"
        )
    x_t = x_T
    for i in range(steps, 0, -1):
        s, t = jumps.at(i, x_t), tau[i]
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        sigma = eta * s.beta_tilde**0.5
        mean = s.signal_prev * x_0_hat + (s.noise_prev**2 - sigma**2) ** 0.5 * eps_hat
        z = standard_normal(rng, x_t.shape, like=x_t) if rng and sigma > 0 else 0 * x_t
        x_prev = mean + sigma * z
        yield Step(t, tau[i - 1], x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)
        x_t = x_prev


def subsequence(T: int, steps: int) -> list[int]:
    """0 = tau_0 < ... < tau_S = T, in S = steps nearly equal jumps of whole numbers."""
    if not isinstance(steps, (int, np.integer)) or not 1 <= steps <= T:
        raise ValueError(f"steps must be a whole number in 1..{T}, got {steps!r}")
    return [round(T * i / steps) for i in range(steps + 1)]
