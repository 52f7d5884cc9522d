"""How much signal and how much noise there is at step t.

Every process here has the marginal

    x_t = signal[t] x_0 + noise[t] eps,        eps ~ N(0, I),        t = 0, 1, ..., T

and a Schedule is the table of these two numbers. t is an integer and 1-based, as in the papers.
t = 0 is the data (signal 1, noise 0), so t - 1 needs no mask and the last step is no special case.
"""

from typing import NamedTuple

import numpy as np

from npdiff.backend import Array, get_array_module

Time = int | np.ndarray


class At(NamedTuple):
    """The tables of a Schedule at t, ready to multiply x: see `Schedule.at`."""

    signal: Array
    noise: Array
    alpha: Array
    beta: Array
    beta_tilde: Array
    std: Array
    level: Array
    signal_prev: Array  # signal[t - 1]
    noise_prev: Array  # noise[t - 1]


class Schedule:
    """The fixed chain q, as read-only float64 tables of shape (T+1,), indexed by t.

    signal, noise    x_t = signal[t] x_0 + noise[t] eps
    alpha, beta      q(x_t | x_{t-1}) = N(sqrt(alpha[t]) x_{t-1}, beta[t] I)
    alpha_bar        signal^2, the product of alpha[1..t]
    beta_tilde       the variance of q(x_{t-1} | x_t, x_0); 0 at t = 1
    std              sqrt(signal^2 + noise^2), the deviation of x_t for data of unit variance
    level            log(noise / signal): the network is told this, not t. The log-SNR is -2 level

    Given the marginals, the chain follows:

        alpha[t] = (signal[t] / signal[t-1])^2
        beta[t] = noise[t]^2 - alpha[t] noise[t-1]^2
        beta_tilde[t] = noise[t-1]^2 / noise[t]^2 beta[t]

    Where signal^2 + noise^2 = 1 ("variance preserving") this is DDPM's alpha_t = 1 - beta_t.

    Parameters
    ----------
    signal, noise : arrays of shape (T+1,), T >= 1

    Raises
    ------
    ValueError
        Unless the tables start at signal 1 and noise 0, and noise / signal rises with every t.
    """

    def __init__(self, signal: np.ndarray, noise: np.ndarray) -> None:
        signal, noise = np.array(signal, np.float64), np.array(noise, np.float64)
        check_tables(signal, noise)
        self.T = len(signal) - 1
        self.signal, self.noise = signal, noise

        self.alpha, self.beta = np.ones_like(signal), np.zeros_like(signal)
        self.beta_tilde = np.zeros_like(signal)
        self.alpha[1:] = (signal[1:] / signal[:-1]) ** 2
        self.beta[1:] = noise[1:] ** 2 - self.alpha[1:] * noise[:-1] ** 2
        self.beta_tilde[1:] = noise[:-1] ** 2 / noise[1:] ** 2 * self.beta[1:]

        self.alpha_bar = signal**2
        self.std = np.sqrt(signal**2 + noise**2)
        with np.errstate(divide="ignore"):  # -inf at t = 0; +inf where the signal is 0
            self.level = np.log(noise) - np.log(signal)

        at_t = (signal, noise, self.alpha, self.beta, self.beta_tilde, self.std, self.level)
        at_t_prev = (np.roll(signal, 1), np.roll(noise, 1))
        self._rows = np.stack([*at_t, *at_t_prev])  # (9, T+1), in the order of At
        for table in (*at_t, self.alpha_bar, self._rows):
            table.setflags(write=False)

    def at(self, t: Time, x: Array, *others: Array) -> At:
        """The numbers at t that a formula needs, each ready to multiply x.

        Parameters
        ----------
        t : int, or NumPy array of ints of shape (B,), in 1..T
        x : float array of shape (B, ...)
        others : the formula's other arrays, which must have x's shape

        Returns
        -------
        At : named tuple
            For an int t, of Python floats. For a batch of t, of arrays of shape (B, 1, ..., 1), in
            x's precision and on x's device.

        Raises
        ------
        ValueError
            For a t outside 1..T, a batch of t that is not as long as x, an x that is not made of
            floats, or another array of another shape.
        """
        check_t(t, self.T)
        if x.dtype.kind != "f":
            raise ValueError(f"x must be an array of floats, got {x.dtype}")
        for other in others:
            if np.shape(other) != x.shape:
                raise ValueError(
                    f"the arrays must have one shape, got {x.shape} and {np.shape(other)}"
                )
        if not isinstance(t, np.ndarray) or t.ndim == 0:
            return At(*self._rows[:, t].tolist())
        if len(t) != len(x):
            raise ValueError(
                f"t has {len(t)} entries and x has {len(x)} rows: give one t a row, or one int"
            )
        rows = self._rows[:, t].astype(x.dtype)  # (9, B)
        rows = rows.reshape(*rows.shape, *[1] * (x.ndim - 1))
        return At(*get_array_module(x).asarray(rows))


def check_t(t: Time, T: int) -> None:
    """Raise ValueError unless t is an int, or a NumPy array of ints of shape (B,), within 1..T."""
    if (
        not isinstance(t, (int, np.integer, np.ndarray))
        or np.ndim(t) > 1
        or np.asarray(t).dtype.kind not in "iu"
    ):
        raise ValueError(
            f"t must be an int, or a NumPy array of ints of shape (B,), got {type(t).__name__}"
        )
    if isinstance(t, np.ndarray) and t.ndim:
        lowest, highest = t.min(initial=T), t.max(initial=1)
    else:
        lowest = highest = t
    if lowest < 1 or highest > T:
        raise ValueError(
            f"t must lie in 1..{T}, got {lowest if lowest < 1 else highest}; t is 1-based"
        )


def check_tables(signal: np.ndarray, noise: np.ndarray) -> None:
    """Raise ValueError unless these two tables make a Schedule."""
    if signal.ndim != 1 or signal.shape != noise.shape or len(signal) < 2:
        raise ValueError(
            "signal and noise must be tables of one shape (T+1,), T >= 1, "
            f"got {signal.shape} and {noise.shape}"
        )
    both = np.stack([signal, noise])
    if not (np.isfinite(both) & (both >= 0)).all():
        raise ValueError("signal and noise must be finite and not negative")
    if signal[0] != 1 or noise[0] != 0:
        raise ValueError(
            "a schedule starts at the data, signal[0] = 1 and noise[0] = 0, "
            f"got {signal[0]} and {noise[0]}"
        )
    if not (noise[1:] * signal[:-1] > noise[:-1] * signal[1:]).all():
        raise ValueError("noise / signal must rise with every t")


def variance_preserving(beta: np.ndarray) -> Schedule:
    """The Schedule of the rates beta[1..T]: signal^2 = alpha_bar, noise^2 = 1 - alpha_bar.

    alpha_bar_t = product of (1 - beta_s) over s <= t.  Eq. (4), Ho et al. 2020, arXiv:2006.11239.

    Parameters
    ----------
    beta : array of shape (T,), each rate in (0, 1)
    """
    beta = np.asarray(beta, np.float64)
    if beta.ndim != 1 or not ((beta > 0) & (beta < 1)).all():
        raise ValueError("beta must be an array of T rates, each above 0 and below 1")
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    if alpha_bar[-1] < 1e-300:
        raise ValueError(
            "alpha_bar underflows: no signal is left long before the last step; "
            "take fewer steps, or smaller beta"
        )
    return Schedule(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))


def unit_variance(schedule: Schedule) -> Schedule:
    """The process of x_t / std_t, which is what a network sees: signal / std and noise / std.

    The levels stay as they are, and the variance is preserved: signal^2 + noise^2 = 1.
    """
    return Schedule(schedule.signal / schedule.std, schedule.noise / schedule.std)


def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """beta_t rises in equal steps from beta_1 to beta_T.

    Sec. 4, Ho et al. 2020, arXiv:2006.11239. The two ends are meant for T = 1000. With far fewer
    steps x_T still holds much of x_0: see `forward.prior_kl`.
    """
    return variance_preserving(np.linspace(beta_1, beta_T, check_T(T)))


def cosine(T: int = 1000, s: float = 0.008) -> Schedule:
    """alpha_bar_t = f(t) / f(0),  f(t) = cos^2(pi/2 (t/T + s) / (1 + s)).

    As in the paper, beta_t is then clipped at 0.999.  Eq. (17), Nichol & Dhariwal 2021,
    arXiv:2102.09672.
    """
    u = np.arange(check_T(T) + 1) / T
    f = np.cos(np.pi / 2 * (u + s) / (1 + s)) ** 2
    return variance_preserving(np.minimum(1 - f[1:] / f[:-1], 0.999))


def uniform_log_snr(T: int, level_1: float = -6.0, level_T: float = 5.0) -> Schedule:
    """Variance preserving, with level = log(noise / signal) in equal steps from level_1 to level_T.

    signal^2 = 1 / (1 + exp(2 level)),  noise^2 = 1 / (1 + exp(-2 level)).
    """
    level = np.linspace(level_1, level_T, check_T(T))
    signal, noise = 1 / np.sqrt(1 + np.exp(2 * level)), 1 / np.sqrt(1 + np.exp(-2 * level))
    return Schedule(np.concatenate([[1.0], signal]), np.concatenate([[0.0], noise]))


def check_T(T: int) -> int:
    """T as an int; ValueError unless it is a whole number, at least 1."""
    if not isinstance(T, (int, np.integer)) or T < 1:
        raise ValueError(f"T must be a whole number of steps, at least 1, got {T!r}")
    return int(T)
