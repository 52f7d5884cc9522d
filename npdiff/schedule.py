"""How much signal and how much noise is left at step t.

Every process here has the marginal

    x_t = signal[t] x_0 + noise[t] eps,        eps ~ N(0, I),        t = 0, 1, ..., T

and a Schedule is the table of these two numbers. t is an integer and 1-based, as in the papers: at t = 0 stands the
data (signal 1, noise 0), so that t - 1 needs no mask, and the last step is no special case.
"""

from dataclasses import dataclass, field

import numpy as np

from npdiff.backend import Array, get_array_module


@dataclass(frozen=True, eq=False)
class Schedule:
    """The fixed chain q, as float64 tables of shape (T+1,), indexed by t.

    signal, noise    x_t = signal[t] x_0 + noise[t] eps
    alpha, beta      q(x_t | x_{t-1}) = N(sqrt(alpha[t]) x_{t-1}, beta[t] I)
    alpha_bar        signal^2, the product of alpha[1..t]
    beta_tilde       the variance of q(x_{t-1} | x_t, x_0); 0 at t = 1
    level            log(noise / signal), what a network is told instead of t
    std              sqrt(signal^2 + noise^2), the standard deviation of x_t on data of unit variance

    The chain with these marginals is alpha[t] = (signal[t] / signal[t-1])^2, beta[t] = noise[t]^2 - alpha[t] noise[t-1]^2.
    Where signal^2 + noise^2 = 1 ("variance preserving") this is DDPM's beta_t = 1 - alpha_t, 1 - alpha_bar_t = noise[t]^2.

    Raises ValueError unless both tables start at (1, 0) and noise/signal rises with every t.
    """

    signal: np.ndarray
    noise: np.ndarray
    alpha: np.ndarray = field(init=False)
    alpha_bar: np.ndarray = field(init=False)
    beta: np.ndarray = field(init=False)
    beta_tilde: np.ndarray = field(init=False)
    level: np.ndarray = field(init=False)
    std: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        signal, noise = np.array(self.signal, np.float64), np.array(self.noise, np.float64)
        _check_tables(signal, noise)
        alpha, beta, beta_tilde = np.ones_like(signal), np.zeros_like(signal), np.zeros_like(signal)
        alpha[1:] = (signal[1:] / signal[:-1]) ** 2
        beta[1:] = noise[1:] ** 2 - alpha[1:] * noise[:-1] ** 2
        beta_tilde[1:] = noise[:-1] ** 2 / noise[1:] ** 2 * beta[1:]
        with np.errstate(divide="ignore"):  # -inf at t = 0; +inf where no signal is left
            level = np.log(noise) - np.log(signal)
        given = dict(signal=signal, noise=noise, level=level, std=np.sqrt(signal**2 + noise**2))
        tables = dict(given, alpha=alpha, alpha_bar=signal**2, beta=beta, beta_tilde=beta_tilde)
        for name, table in tables.items():
            table.setflags(write=False)
            object.__setattr__(self, name, table)

    @property
    def T(self) -> int:
        return len(self.signal) - 1


def _check_tables(signal: np.ndarray, noise: np.ndarray) -> None:
    if signal.ndim != 1 or signal.shape != noise.shape or len(signal) < 2:
        raise ValueError(f"signal and noise must be tables of one shape (T+1,), T >= 1, got {signal.shape} and {noise.shape}")
    if not (np.isfinite(signal).all() and np.isfinite(noise).all() and (signal >= 0).all() and (noise >= 0).all()):
        raise ValueError("signal and noise must be finite and not negative")
    if signal[0] != 1 or noise[0] != 0:
        raise ValueError(f"a schedule starts at the data, signal[0] = 1 and noise[0] = 0, got {signal[0]} and {noise[0]}")
    if not (noise[1:] * signal[:-1] > noise[:-1] * signal[1:]).all():
        raise ValueError("noise/signal must rise with every t")


def variance_preserving(beta: np.ndarray) -> Schedule:
    """The Schedule of the rates beta[1..T]: alpha_bar_t = prod_{s<=t} (1 - beta_s), signal^2 = alpha_bar, noise^2 = 1 - alpha_bar.

    Eq. (4), Ho et al. 2020, arXiv:2006.11239. `beta` has shape (T,), each rate in (0, 1).
    """
    beta = np.asarray(beta, np.float64)
    if beta.ndim != 1 or not ((beta > 0) & (beta < 1)).all():
        raise ValueError("beta must be a row of T rates, each above 0 and below 1")
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    if alpha_bar[-1] < 1e-300:
        raise ValueError("alpha_bar underflows: nothing of x_0 is left long before the last step; take fewer steps, or smaller beta")
    return Schedule(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))


def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """beta_t rises in equal steps from beta_1 to beta_T. Sec. 4, Ho et al. 2020, arXiv:2006.11239.

    The two ends are meant for T = 1000. With far fewer steps x_T still holds much of x_0: see `forward.prior_kl`.
    """
    return variance_preserving(np.linspace(beta_1, beta_T, _check_T(T)))


def cosine(T: int = 1000, s: float = 0.008) -> Schedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2(pi/2 (t/T + s) / (1 + s)); beta_t is then clipped at 0.999, as the paper does.

    Eq. (17), Nichol & Dhariwal 2021, arXiv:2102.09672.
    """
    u = np.arange(_check_T(T) + 1) / T
    f = np.cos(np.pi / 2 * (u + s) / (1 + s)) ** 2
    return variance_preserving(np.minimum(1 - f[1:] / f[:-1], 0.999))


def uniform_log_snr(T: int, level_1: float = -6.0, level_T: float = 5.0) -> Schedule:
    """Variance preserving, with level = log(noise / signal) in equal steps from level_1 to level_T: log-SNR is -2 level.

    signal^2 = 1 / (1 + exp(2 level)), noise^2 = 1 / (1 + exp(-2 level)).
    """
    level = np.linspace(level_1, level_T, _check_T(T))
    signal, noise = 1 / np.sqrt(1 + np.exp(2 * level)), 1 / np.sqrt(1 + np.exp(-2 * level))
    return Schedule(np.concatenate([[1.0], signal]), np.concatenate([[0.0], noise]))


def _check_T(T: int) -> int:
    if not isinstance(T, (int, np.integer)) or T < 1:
        raise ValueError(f"T must be a whole number of steps, at least 1, got {T!r}")
    return int(T)


def check_t(t: int | np.ndarray, schedule: Schedule) -> None:
    """Raise ValueError unless t is an int, or a NumPy array of ints of shape (B,), within 1..T."""
    if not isinstance(t, (int, np.integer, np.ndarray)) or np.ndim(t) > 1 or np.asarray(t).dtype.kind not in "iu":
        raise ValueError(f"t must be an int, or a NumPy array of ints of shape (B,), got {type(t).__name__}")
    lowest, highest = (t, t) if np.ndim(t) == 0 else (t.min(initial=1), t.max(initial=1))  # type: ignore[union-attr]
    if lowest < 1 or highest > schedule.T:
        raise ValueError(f"t must lie in 1..{schedule.T}, got {lowest if lowest < 1 else highest}; t is 1-based")


def coefficient(value: np.ndarray, like: Array) -> Array:
    """A number computed from the tables in float64, made ready to multiply `like` in like's own precision.

    For an int t a Python float; for t of shape (B,) an array of shape (B, 1, ..., 1), of like's dtype, on like's device.
    """
    if like.dtype.kind != "f":
        raise ValueError(f"x must be an array of floats, got {like.dtype}")
    if np.ndim(value) == 0:
        return float(value)
    if len(value) != like.shape[0]:
        raise ValueError(f"t has {len(value)} entries and x has {like.shape[0]} rows: one t a row, or one int for all")
    return get_array_module(like).asarray(value.astype(like.dtype).reshape(-1, *[1] * (like.ndim - 1)))
