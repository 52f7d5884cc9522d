"""The objective: how far the network's guess of the noise is from the noise, and the gradient that training starts from.

    L_simple = E |eps - eps_hat|^2,    over x_0 ~ data, t uniform on 1..T, eps ~ N(0, I)

The network may put out eps, x_0 or v. Each is a line in eps at a given x_t, so an error of the output is a multiple
of the error of eps,

    eps_hat - eps = slope_t (out - target)
    slope_t       = 1 for eps,  -signal_t / noise_t for x_0,  signal_t / std_t for v

and one formula serves all three. A network's v is that of its input, x_t / std_t with std_t = sqrt(signal_t^2 + noise_t^2): the same on
every schedule.
"""

import numpy as np

from npdiff.backend import Array
from npdiff.forward import Time
from npdiff.schedule import Schedule, check_t, coefficient


def target(x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str = "eps") -> Array:
    """What the network should put out: eps, x_0, or v = (signal_t eps - noise_t x_0) / std_t.

    Salimans & Ho 2022, arXiv:2202.00512, where std_t = sqrt(signal_t^2 + noise_t^2) is 1.
    """
    if predict == "eps":
        return eps
    if predict == "x_0":
        return x_0
    if predict == "v":
        check_t(t, schedule)
        signal_t, noise_t = schedule.signal[t] / schedule.std[t], schedule.noise[t] / schedule.std[t]
        return coefficient(signal_t, x_0) * eps - coefficient(noise_t, x_0) * x_0
    raise ValueError(f"predict must be one of eps, x_0, v, got {predict!r}")


def slope(t: Time, schedule: Schedule, predict: str = "eps") -> np.ndarray:
    """d eps_hat / d out at a fixed x_t, in float64, of t's shape."""
    check_t(t, schedule)
    signal_t, noise_t = schedule.signal[t], schedule.noise[t]
    if predict == "eps":
        return np.ones_like(signal_t)
    return -signal_t / noise_t if predict == "x_0" else signal_t / schedule.std[t]


def l_simple(
    out: Array, x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str = "eps", weight: str = "eps"
) -> tuple[Array, Array]:
    """L_simple on a batch, a dimension, and its gradient with respect to the network's output.

    loss     = mean (slope_t (out - target))^2
    grad_out = 2 / (number of entries) slope_t^2 (out - target)

    Eq. (14), Ho et al. 2020, arXiv:2006.11239, divided by the dimension.

    Parameters
    ----------
    out : array of shape (B, ...), the network's output at x_t
    x_0, eps : arrays of the same shape
    predict : what `out` stands for: "eps", "x_0" or "v"
    weight : "eps" for L_simple; "target" weighs every t by the plain square of out - target, slope_t = 1

    Returns
    -------
    loss : array of shape (), on out's device
    grad_out : array of shape (B, ...)

    Raises
    ------
    ValueError
        For another `predict` or `weight`, or a t outside 1..T.
    """
    if weight not in ("eps", "target"):
        raise ValueError(f'weight must be "eps" or "target", got {weight!r}')
    error = out - target(x_0, t, eps, schedule, predict)
    slope_t = coefficient(slope(t, schedule, predict), out) if weight == "eps" else 1.0
    loss = ((slope_t * error) ** 2).mean()
    grad_out = 2 / error.size * slope_t**2 * error
    return loss, grad_out
