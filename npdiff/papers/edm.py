"""The design space of diffusion models. Karras et al. 2022, arXiv:2206.00364.

What the paper proposed: levels, solver, scaling of the network and weight of the loss are separate choices, and it makes each of them by an
argument. With them some 18 steps do for what took DDPM a thousand.

    levels            eq. (5)        sigma in equal steps of sigma^(1/7)
    heun              Algorithm 1    a step along the ODE's slope, then a step along the mean of the slopes at both ends
    precondition      table 1        c_skip, c_out, c_in, c_noise: D(x; sigma) = c_skip x + c_out net(c_in x, c_noise)
    gradient, predictor              training with that, and the result as predict_eps

| paper | here |
|---|---|
| sigma, s(t) | noise / signal, signal: here 1, so that x_t = x_0 + sigma eps |
| D(x; sigma) | x_0_hat |
| F(x; c_noise) | the network |
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.forward import Time, eps_from_x_0, q_sample, x_0_from_eps
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree, flatten
from npdiff.sampler import Predictor, Step
from npdiff.schedule import Schedule, coefficient


def levels(T: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """sigma_t = (sigma_min^(1/rho) + (t - 1)/(T - 1) (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho, t = 1..T, with signal 1.

    Eq. (5), Karras et al. 2022, arXiv:2206.00364, counted from the data. x_T is a draw from N(0, sigma_max^2 I), or a little wider.
    """
    if not (T > 1 and 0 < sigma_min < sigma_max):
        raise ValueError(f"needed: T > 1 and 0 < sigma_min < sigma_max, got {T}, {sigma_min}, {sigma_max}")
    sigma = np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), T) ** rho
    return Schedule(np.ones(T + 1), np.concatenate([[0.0], sigma]))


def heun(predict_eps: Predictor, x_T: Array, schedule: Schedule) -> Iterator[Step]:
    """Heun's method on the probability-flow ODE, dy = eps_hat dsigma for y = x / signal and sigma = noise / signal, on any schedule.

    y' = y + h eps_hat(y, sigma);   y = y + h (eps_hat(y, sigma) + eps_hat(y', sigma')) / 2;   h = sigma' - sigma
    The last step, to sigma' = 0, has the first line alone. Of order 2, at two evaluations a step. Algorithm 1, Karras et al. 2022.
    """
    s, x_t = schedule, x_T
    for t in range(s.T, 0, -1):
        signal_t, signal_prev = float(s.signal[t]), float(s.signal[t - 1])
        h = float(s.noise[t - 1] / s.signal[t - 1] - s.noise[t] / s.signal[t])
        eps_hat = predict_eps(x_t, t)
        x_prev = signal_prev * (x_t / signal_t + h * eps_hat)
        if t > 1:
            slope = (eps_hat + predict_eps(x_prev, t - 1)) / 2
            x_prev = signal_prev * (x_t / signal_t + h * slope)
        zeros = get_array_module(x_t).zeros_like(x_t)
        yield Step(t, t - 1, x_t, eps_hat, x_0_from_eps(x_t, t, eps_hat, s), x_prev, 0.0, zeros, x_prev)
        x_t = x_prev


def precondition(sigma: np.ndarray, sigma_data: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """c_skip, c_out, c_in, c_noise. Table 1 and appendix B.6, Karras et al. 2022.

    Let x = x_0 + sigma eps, and x_0 of variance sigma_data^2.
    c_in = 1 / sqrt(sigma^2 + sigma_data^2)                             so that the network's input has variance 1
    c_out^2 = (1 - c_skip)^2 sigma_data^2 + c_skip^2 sigma^2            so that its target, (x_0 - c_skip x) / c_out, has variance 1
    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)                    which makes c_out smallest: an error of the network counts least
    c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)             at that c_skip
    c_noise = log(sigma): what our networks are told. (The paper tells its own a quarter of it.)
    """
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / np.sqrt(total), 1 / np.sqrt(total), np.log(sigma)


def denoise(
    net: Any, params: Tree, x_t: Array, t: Time, schedule: Schedule, sigma_data: float, **inputs: Any
) -> tuple[Array, Array, Cache]:
    """D(x; sigma) = c_skip x + c_out net(c_in x, c_noise) for x = x_t / signal_t; also c_out, and the network's cache."""
    x = x_t / coefficient(schedule.signal[t], x_t)
    *scales, c_noise = precondition(schedule.noise[t] / schedule.signal[t], sigma_data)
    c_skip, c_out, c_in = (coefficient(c, x_t) for c in scales)
    c_noise = get_array_module(x_t).asarray(np.broadcast_to(c_noise, len(x_t)).astype(x_t.dtype))
    out, cache = net.forward(params, c_in * x, c_noise, **inputs)
    return c_skip * x + c_out * out, c_out, cache


def gradient(
    net: Any, params: Tree, x_0: Array, t: np.ndarray, eps: Array, schedule: Schedule, *_: str, sigma_data: float = 1.0, **inputs: Any
) -> tuple[Array, Array]:
    """In the place of train.gradient: the loss E[lambda |D(x; sigma) - x_0|^2] a dimension, lambda = 1 / c_out^2, and dL/dtheta.

    Eq. (8), Karras et al. 2022: seen from the network every level has the weight 1.
    """
    D, c_out, cache = denoise(net, params, q_sample(x_0, t, eps, schedule), t, schedule, sigma_data, **inputs)
    error = (D - x_0) / c_out
    _, grads = net.backward(params, cache, 2 / error.size * error)
    return (error**2).mean(), flatten(grads)


def predictor(net: Any, params: Tree, schedule: Schedule, sigma_data: float = 1.0, **inputs: Any) -> Callable[[Array, Time], Array]:
    """The preconditioned network as predict_eps(x_t, t), on any schedule."""

    def predict_eps(x_t: Array, t: Time) -> Array:
        return eps_from_x_0(x_t, t, denoise(net, params, x_t, t, schedule, sigma_data, **inputs)[0], schedule)

    return predict_eps
