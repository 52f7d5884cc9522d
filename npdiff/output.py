"""What a network is given, and what its output stands for.

A network is given x = x_t / std, of about unit variance, and level = log(noise / signal). Its
output may stand for any of four things, each of which determines the noise once x_t is known:

    predict  target                          eps_hat                               eps_per_output
    -------  ------------------------------  ------------------------------------  ---------------
    "eps"    eps                             out                                   1
    "x_0"    x_0                             (x_t - signal out) / noise            -signal / noise
    "v"      (signal eps - noise x_0) / std  (noise x_t / std + signal out) / std  signal / std
    "score"  -eps, which is noise score      -out                                  -1

signal, noise and std = sqrt(signal^2 + noise^2) are the schedule's at t; std is 1 where the
variance is preserved. v is that of the network's input, so one formula holds on every schedule. In
each row eps_hat is linear in x_t and in out, so an error of the output becomes a multiple of it:

    eps_hat - eps = eps_per_output (out - target)

The table is all that the package knows of the parametrisation: everything else asks here.
"""

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.schedule import Schedule, Time

PREDICT = ("eps", "x_0", "v", "score")


def check_predict(predict: str) -> None:
    """Raise ValueError unless `predict` is one of PREDICT."""
    if predict not in PREDICT:
        raise ValueError(f"predict must be one of {', '.join(PREDICT)}, got {predict!r}")


def network_input(x_t: Array, t: Time, schedule: Schedule) -> tuple[Array, Array]:
    """x = x_t / std_t and level = log(noise_t / signal_t), the inputs of a network.

    A network is given the level and not t, so one network serves every schedule and every sampler.

    Returns
    -------
    x : array of shape (B, ...)
    level : array of shape (B,)
    """
    s = schedule.at(t, x_t)
    level = np.full(len(x_t), schedule.level[t], x_t.dtype)
    return x_t / s.std, get_array_module(x_t).asarray(level)


def target(x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str = "eps") -> Array:
    """What the network should put out: eps, x_0, v = (signal_t eps - noise_t x_0) / std_t, or -eps.

    v is that of sec. 4 and app. D, Salimans & Ho 2022, arXiv:2202.00512, for the network's input.
    """
    check_predict(predict)
    s = schedule.at(t, x_0, eps)
    if predict == "x_0":
        return x_0
    if predict == "v":
        return (s.signal * eps - s.noise * x_0) / s.std
    return eps if predict == "eps" else -eps


def eps_from_output(
    x_t: Array, t: Time, out: Array, schedule: Schedule, predict: str = "eps"
) -> Array:
    """eps_hat, the noise that the network's output says is in x_t: (B, ...) -> (B, ...)."""
    check_predict(predict)
    s = schedule.at(t, x_t, out)
    if predict == "x_0":
        return (x_t - s.signal * out) / s.noise
    if predict == "v":
        return (s.noise / s.std * x_t + s.signal * out) / s.std
    return out if predict == "eps" else -out


def eps_per_output(x_t: Array, t: Time, schedule: Schedule, predict: str = "eps") -> Array:
    """d eps_hat / d out at a fixed x_t: a float, or an array (B, 1, ..., 1) where rows differ."""
    check_predict(predict)
    s = schedule.at(t, x_t)
    if predict == "x_0":
        return -s.signal / s.noise
    if predict == "v":
        return s.signal / s.std
    return 1.0 if predict == "eps" else -1.0
