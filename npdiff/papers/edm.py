"""The design space of diffusion models. Karras et al. 2022, arXiv:2206.00364.

What the paper proposed: the noise levels, the solver, the scaling of the network and the weight of
the loss are separate choices, and each is derived from an argument of its own. With them some 18
steps do what took DDPM a thousand.

    levels          eq. (5)        sigma in equal steps of sigma^(1/7)
    heun            Algorithm 1    a step along the slope, then one along the mean of two slopes
    precondition    table 1        c_skip, c_out, c_in, c_noise
    Denoiser        eq. (7)        D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), as a network
    weighted_loss   eq. (8)        the objective, with lambda = 1 / c_out^2
    predictor                      the trained network as predict_eps(x_t, t)

    paper          here
    -------------  -------------------------------------------------------------------
    sigma, s(t)    noise / signal, signal (in the paper signal is 1)
    x              x_t / signal, which is x_0 + sigma eps
    D(x; sigma)    x_0_hat, the output of `Denoiser(net)`, a network with predict="x_0"
    F(.; c_noise)  `net`
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from npdiff import reverse
from npdiff.backend import Array, get_array_module
from npdiff.forward import x_0_from_eps
from npdiff.loss import row_mean
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree
from npdiff.sampler import Predictor, Step, check_signal
from npdiff.schedule import Schedule, Time


def levels(
    T: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Schedule:
    """sigma_t in equal steps of sigma^(1/rho), t = 1..T, with signal 1.

    sigma_t^(1/rho) = sigma_min^(1/rho) + (t - 1)/(T - 1) (sigma_max^(1/rho) - sigma_min^(1/rho))

    Eq. (5), Karras et al. 2022, arXiv:2206.00364, counted from the data. x_T is a draw from
    N(0, sigma_max^2 I), or from a slightly wider normal.
    """
    if not (T > 1 and 0 < sigma_min < sigma_max):
        raise ValueError(
            f"needed: T > 1 and 0 < sigma_min < sigma_max, got {T}, {sigma_min}, {sigma_max}"
        )
    sigma = np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), T) ** rho
    return Schedule(np.ones(T + 1), np.concatenate([[0.0], sigma]))


def heun(predict_eps: Predictor, x_T: Array, schedule: Schedule) -> Iterator[Step]:
    """Heun's method on the probability-flow ODE, of order 2 at two evaluations a step.

    For y = x / signal and sigma = noise / signal the ODE is dy = eps_hat dsigma, on any schedule:

    y_euler = y + h eps_hat(y, sigma_t),                                   h = sigma_{t-1} - sigma_t
    y_prev  = y + h/2 (eps_hat(y, sigma_t) + eps_hat(y_euler, sigma_{t-1}))

    The last step, to sigma = 0, is the first line alone. Algorithm 1, Karras et al. 2022,
    arXiv:2206.00364. ValueError where signal[T] is 0.
    """
    check_signal(schedule)
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x_t)
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        y = x_t / s.signal
        h = s.noise_prev / s.signal_prev - s.noise / s.signal
        x_prev = s.signal_prev * (y + h * eps_hat)
        if t > 1:
            mean_eps_hat = (eps_hat + predict_eps(x_prev, t - 1)) / 2
            x_prev = s.signal_prev * (y + h * mean_eps_hat)
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, x_prev, 0.0, 0 * x_t, x_prev)
        x_t = x_prev


def precondition(sigma: Array, sigma_data: float = 1.0) -> tuple[Array, Array, Array, Array]:
    """c_skip, c_out, c_in and c_noise, each of sigma's shape.

    For x = x_0 + sigma eps and x_0 of variance sigma_data^2:

    c_in    = 1 / sqrt(sigma^2 + sigma_data^2)
    c_skip  = sigma_data^2 / (sigma^2 + sigma_data^2)
    c_out   = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
    c_noise = log(sigma)

    By c_in the network's input has variance 1. So has its target, (x_0 - c_skip x) / c_out, if
    c_out^2 = (1 - c_skip)^2 sigma_data^2 + c_skip^2 sigma^2. Of all c_skip the one above makes
    c_out smallest, by which D multiplies an error of the network. c_noise is the level, which our
    networks are given; the paper's are given a quarter of it.
    Table 1 and app. B.6, Karras et al. 2022, arXiv:2206.00364.
    """
    total = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / total
    c_out = sigma * sigma_data / total**0.5
    c_in = 1 / total**0.5
    c_noise = get_array_module(sigma).log(sigma)
    return c_skip, c_out, c_in, c_noise


class Denoiser:
    """D(x; sigma) = c_skip x + c_out net(c_in x, c_noise), a network that predicts x_0.

    It has the init, forward and backward of a network, and is trained like any other:

        state = train.start(net.init(rng), predict="x_0")
        train.train(edm.Denoiser(net), state, ..., objective=edm.weighted_loss)

    Eq. (7), Karras et al. 2022, arXiv:2206.00364.

    Parameters
    ----------
    net : a module such as npdiff.nn.mlp, whose parameters these are
    sigma_data : the standard deviation of a coordinate of x_0
    """

    def __init__(self, net: Any, sigma_data: float = 1.0) -> None:
        self.net, self.sigma_data = net, sigma_data

    def init(self, rng: np.random.Generator, **sizes: Any) -> Tree:
        return self.net.init(rng, **sizes)

    def forward(self, params: Tree, x: Array, level: Array, **inputs: Any) -> tuple[Array, Cache]:
        """D of x's shape, for x = x_t / std as every network is given it, and level = log(sigma).

        `inputs` are handed on to net.forward: label, ops. level must be finite.
        """
        sigma = get_array_module(level).exp(level).reshape(-1, *[1] * (x.ndim - 1))
        std = (1 + sigma**2) ** 0.5  # of x_t / signal = x_0 + sigma eps
        c_skip, c_out, c_in, _ = precondition(sigma, self.sigma_data)  # c_noise is the level
        out, cache = self.net.forward(params, c_in * std * x, level, **inputs)
        return c_skip * std * x + c_out * out, (std, c_skip, c_out, c_in, cache)

    def backward(self, params: Tree, cache: Cache, grad_D: Array) -> tuple[Array, Tree]:
        """dL/dx and the gradients of the parameters: the lines of `forward`, reversed."""
        std, c_skip, c_out, c_in, cache = cache
        grad_in, grads = self.net.backward(params, cache, c_out * grad_D)
        return c_skip * std * grad_D + c_in * std * grad_in, grads


def weighted_loss(
    out: Array,
    x_0: Array,
    t: Time,
    eps: Array,
    schedule: Schedule,
    predict: str = "x_0",
    sigma_data: float = 1.0,
) -> tuple[Array, Array]:
    """lambda |D - x_0|^2 of each row, a coordinate, with lambda = 1 / c_out^2 and D = out.

    Eq. (8), Karras et al. 2022, arXiv:2206.00364: this is |F - its target|^2, so the network inside
    D sees a loss of weight 1 at every level.

    Returns
    -------
    loss : array of shape (B,)
    grad_out : array of shape (B, ...), the gradient of each row's loss

    Raises
    ------
    ValueError
        Unless predict is "x_0", which is what a `Denoiser` predicts.
    """
    if predict != "x_0":
        raise ValueError(f'a Denoiser predicts "x_0": train.start(..., predict="x_0"); {predict=}')
    s = schedule.at(t, out, x_0)
    _, c_out, _, _ = precondition(s.noise / s.signal, sigma_data)
    error = (out - x_0) / c_out
    return row_mean(error**2), 2 / error[0].size * error / c_out


def predictor(
    net: Any, params: Any, schedule: Schedule, sigma_data: float = 1.0, **inputs: Any
) -> Callable[[Array, Time], Array]:
    """The preconditioned network as predict_eps(x_t, t), on any schedule.

    params : those of `net`, or the State that a `Denoiser(net, sigma_data)` was trained in
    """
    return reverse.predictor(Denoiser(net, sigma_data), params, schedule, "x_0", **inputs)
