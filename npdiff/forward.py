"""The forward process q: a fixed chain of Gaussians that turns data into noise.

Nothing in it is learned.

    one step      q(x_t | x_{t-1})        = N(sqrt(alpha_t) x_{t-1}, beta_t I)
    marginal      q(x_t | x_0)            = N(signal_t x_0, noise_t^2 I)
    posterior     q(x_{t-1} | x_t, x_0)   = N(mu_tilde_t, beta_tilde_t I)

x has shape (B, ...). t is an int, or a NumPy array of ints of shape (B,), in 1..T. float32 in gives
float32 out. Each function begins by fetching the schedule's numbers at t, `s = schedule.at(t, x)`,
which raises ValueError for a t outside 1..T. The formula follows.
"""

import numpy as np

from npdiff import normal
from npdiff.backend import Array
from npdiff.schedule import Schedule, Time


def q_step(x_prev: Array, t: Time, eps: Array, schedule: Schedule) -> Array:
    """One step of noise: a draw from q(x_t | x_{t-1}).

    x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) eps

    Eq. (2), Ho et al. 2020, arXiv:2006.11239, where alpha_t = 1 - beta_t.

    Parameters
    ----------
    x_prev : array of shape (B, ...), x_{t-1}
    eps : array of the same shape, a draw from N(0, I)

    Returns
    -------
    x_t : array of the same shape
    """
    s = schedule.at(t, x_prev, eps)
    return s.alpha**0.5 * x_prev + s.beta**0.5 * eps


def q_marginal(x_0: Array, t: Time, schedule: Schedule) -> tuple[Array, Array]:
    """Mean and variance of q(x_t | x_0).

    mean = sqrt(alpha_bar_t) x_0
    var  = 1 - alpha_bar_t

    Eq. (4), Ho et al. 2020, arXiv:2006.11239. For any schedule, the mean is signal_t x_0 and the
    variance noise_t^2.

    Returns
    -------
    mean : array of shape (B, ...)
    var : float, or array of shape (B, 1, ..., 1) for a batch of t
    """
    s = schedule.at(t, x_0)
    return s.signal * x_0, s.noise**2


def q_sample(x_0: Array, t: Time, eps: Array, schedule: Schedule) -> Array:
    """All t steps of noise at once: a draw from q(x_t | x_0).

    x_t = signal_t x_0 + noise_t eps

    Eq. (4), Ho et al. 2020, arXiv:2006.11239, where signal_t = sqrt(alpha_bar_t) and
    noise_t = sqrt(1 - alpha_bar_t).

    Parameters
    ----------
    x_0 : array of shape (B, ...)
    eps : array of the same shape, a draw from N(0, I)

    Returns
    -------
    x_t : array of the same shape
    """
    s = schedule.at(t, x_0, eps)
    return s.signal * x_0 + s.noise * eps


def q_posterior(x_0: Array, x_t: Array, t: Time, schedule: Schedule) -> tuple[Array, Array]:
    """Mean and variance of q(x_{t-1} | x_t, x_0), the reverse step given x_0.

    mean = sqrt(alpha_bar_prev) beta_t / (1 - alpha_bar_t) x_0
         + sqrt(alpha_t) (1 - alpha_bar_prev) / (1 - alpha_bar_t) x_t
    var  = beta_tilde_t = (1 - alpha_bar_prev) / (1 - alpha_bar_t) beta_t

    Eq. (6)-(7), Ho et al. 2020, arXiv:2006.11239. In the code, for any schedule, sqrt(alpha_bar) is
    signal and 1 - alpha_bar is noise^2. At t = 1 the variance is 0 and the mean is x_0.

    Parameters
    ----------
    x_0, x_t : arrays of shape (B, ...)

    Returns
    -------
    mean : array of shape (B, ...)
    var : float, or array of shape (B, 1, ..., 1) for a batch of t
    """
    s = schedule.at(t, x_t, x_0)
    weight_x_0 = s.signal_prev * s.beta / s.noise**2
    weight_x_t = s.alpha**0.5 * s.noise_prev**2 / s.noise**2
    return weight_x_0 * x_0 + weight_x_t * x_t, s.beta_tilde


def prior_kl(x_0: Array, schedule: Schedule) -> Array:
    """KL(q(x_T | x_0) || N(0, I)) in nats: the cost of starting the reverse process from noise.

    This is L_T in eq. (5), Ho et al. 2020, arXiv:2006.11239, for each data point, summed over its
    coordinates.

    Parameters
    ----------
    x_0 : array of shape (B, ...)

    Returns
    -------
    array of shape (B,)
    """
    mean, var = q_marginal(x_0, schedule.T, schedule)
    return normal.kl(mean, var, 0.0, 1.0).reshape(len(x_0), -1).sum(axis=1)


# Conversions. Given x_t = signal_t x_0 + noise_t eps, each of eps, x_0, v and the score determines
# the others.


def x_0_from_eps(x_t: Array, t: Time, eps: Array, schedule: Schedule) -> Array:
    """x_0 = (x_t - noise_t eps) / signal_t.

    Eq. (15), Ho et al. 2020. ValueError where signal_t is 0.
    """
    s = schedule.at(t, x_t, eps)
    if np.any(schedule.signal[t] == 0):
        raise ValueError(
            "signal[t] is 0: x_t holds nothing of x_0, so eps does not determine it; "
            "take a smaller t"
        )
    return (x_t - s.noise * eps) / s.signal


def eps_from_x_0(x_t: Array, t: Time, x_0: Array, schedule: Schedule) -> Array:
    """eps = (x_t - signal_t x_0) / noise_t.

    Eq. (4), Ho et al. 2020, solved for eps.
    """
    s = schedule.at(t, x_t, x_0)
    return (x_t - s.signal * x_0) / s.noise


def v_from_eps(x_t: Array, t: Time, eps: Array, schedule: Schedule) -> Array:
    """v = signal_t eps - noise_t x_0.

    Sec. 4 and app. D, Salimans & Ho 2022, arXiv:2202.00512. ValueError where signal_t is 0.
    """
    s = schedule.at(t, x_t)
    x_0 = x_0_from_eps(x_t, t, eps, schedule)
    return s.signal * eps - s.noise * x_0


def eps_from_v(x_t: Array, t: Time, v: Array, schedule: Schedule) -> Array:
    """eps = (noise_t x_t + signal_t v) / (signal_t^2 + noise_t^2).

    The equations for x_t and v, solved for eps. App. D, Salimans & Ho 2022, arXiv:2202.00512, where
    the denominator is 1.
    """
    s = schedule.at(t, x_t, v)
    return (s.noise * x_t + s.signal * v) / (s.signal**2 + s.noise**2)


def score_from_eps(x_t: Array, t: Time, eps: Array, schedule: Schedule) -> Array:
    """score = grad log q(x_t) = -eps / noise_t, where eps is the mean of the noise given x_t.

    Eq. (11) and sec. 3.2, Ho et al. 2020; eq. (5), Song & Ermon 2019, arXiv:1907.05600.
    """
    s = schedule.at(t, x_t, eps)
    return -eps / s.noise


def eps_from_score(x_t: Array, t: Time, score: Array, schedule: Schedule) -> Array:
    """eps = -noise_t score, the inverse of `score_from_eps`."""
    s = schedule.at(t, x_t, score)
    return -s.noise * score
