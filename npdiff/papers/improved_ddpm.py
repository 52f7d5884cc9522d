"""Improved DDPM, with a learned variance. Nichol & Dhariwal 2021, arXiv:2102.09672.

What the paper proposed: DDPM's samples were good and its likelihood was not, since the variance of
its reverse step is fixed, to beta_t or to beta_tilde_t. Here the network has a second output, which
places the variance between the two and is trained on the bound. What later work changed: the best
variance follows from the loss itself (`likelihood.best_variance`), which gives much of the gain
without training.

    log_variance        eq. (15)      share log beta_t + (1 - share) log beta_tilde_t
    vlb                 eq. (4)-(7)   a term of the bound, and its gradient by hand
    vlb_objective       eq. (4)       the bound L_vlb as an objective
    hybrid              eq. (16)      L_simple + 0.001 L_vlb, whose L_vlb trains the variance alone
    ImportanceSampler   eq. (18)      t with p_t proportional to sqrt(E[L_t^2]), by which L_vlb is
                                      estimated with less variance

The network's output has twice x's channels, [guess, o]: the guess of eps, x_0 or v (whatever it
predicts), and o = 2 share - 1. As in the authors' code, beta_tilde_2 takes the place of
beta_tilde_1 = 0, which has no logarithm.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from npdiff import likelihood, normal
from npdiff.backend import Array, get_array_module, per_row
from npdiff.forward import q_sample
from npdiff.loss import l_simple
from npdiff.output import eps_from_output, eps_per_output, network_input
from npdiff.reverse import mean_per_eps, of_state, p_mean_from_eps, warn_of_noise
from npdiff.schedule import Schedule, Time

LAMBDA = 0.001  # the weight of L_vlb beside L_simple

# The learned step.


def split(out: Array) -> tuple[Array, Array]:
    """The network's output (B, ..., 2 C) as the guess and o, each (B, ..., C)."""
    channels = out.shape[-1] // 2
    return out[..., :channels], out[..., channels:]


def log_ends(t: Time, schedule: Schedule, x: Array) -> tuple[Array, Array]:
    """log beta_t and log beta_tilde_t, with beta_tilde_2 at t = 1, ready to multiply x."""
    s, s_2 = schedule.at(t, x), schedule.at(np.maximum(t, 2), x)
    return normal.log(s.beta), normal.log(s_2.beta_tilde)


def log_variance(o: Array, t: Time, schedule: Schedule) -> Array:
    """log variance = share log beta_t + (1 - share) log beta_tilde_t,  share = (o + 1) / 2.

    Eq. (15), Nichol & Dhariwal 2021, arXiv:2102.09672.
    """
    log_beta, log_beta_tilde = log_ends(t, schedule, o)
    share = (o + 1) / 2
    return share * log_beta + (1 - share) * log_beta_tilde


def eps_hat_and_o(
    net: Any, params: dict, x_t: Array, t: Time, schedule: Schedule, predict: str, **inputs: Any
) -> tuple[Array, Array]:
    """The predicted noise and o, each (B, ..., C), from one pass of the network."""
    x, level = network_input(x_t, t, schedule)
    out, _ = net.forward(params, x, level, **inputs)
    guess, o = split(out)
    return eps_from_output(x_t, t, guess, schedule, predict), o


def reverse(
    net: Any, params: Any, schedule: Schedule, predict: str | None = None, **inputs: Any
) -> likelihood.Reverse:
    """The learned step as reverse(x_t, t) -> mean, variance, which likelihood.bound takes.

    params : the network's parameters, or the `train.State` that it was trained in
    predict : what the guess stands for; default the State's, or "eps"
    """
    params, predict = of_state(params, predict)

    def mean_and_variance(x_t: Array, t: Time) -> tuple[Array, Array]:
        eps_hat, o = eps_hat_and_o(net, params, x_t, t, schedule, predict, **inputs)
        mean = p_mean_from_eps(x_t, t, eps_hat, schedule)
        return mean, get_array_module(x_t).exp(log_variance(o, t, schedule))

    return mean_and_variance


def predictor(
    net: Any, params: Any, schedule: Schedule, predict: str | None = None, **inputs: Any
) -> Callable[[Array, Time], Array]:
    """The guess alone as predict_eps(x_t, t), for the samplers; arguments as in `reverse`."""
    params, predict = of_state(params, predict)
    warn_of_noise(schedule, predict)

    def predict_eps(x_t: Array, t: Time) -> Array:
        eps_hat, _ = eps_hat_and_o(net, params, x_t, t, schedule, predict, **inputs)
        return eps_hat

    return predict_eps


# The bound, and its gradient.


def vlb(
    eps_hat: Array,
    o: Array,
    x_0: Array,
    t: np.ndarray,
    eps: Array,
    schedule: Schedule,
    discretised: bool = False,
) -> tuple[Array, Array, Array]:
    """L_{t-1} of each data point in nats, or L_0 where t = 1, and its gradients.

    L_{t-1} = sum over coordinates of 1/2 (r - 1 - log r + d^2 / var),   r = beta_tilde / var
    dL/dmean = -d / var,   dL/dlog var = 1/2 (1 - (beta_tilde + d^2) / var)

    with d = mean_q - mean = w (eps - eps_hat) and w = `reverse.mean_per_eps`. At t = 1 the decoder
    takes the place of the step; there the mean of q is x_0 itself.
    Eq. (4)-(7), Nichol & Dhariwal 2021, arXiv:2102.09672.

    Returns
    -------
    nats : array of shape (B,)
    grad_eps_hat, grad_o : arrays of shape (B, ..., C)
    """
    xp, s = get_array_module(x_0), schedule.at(t, x_0)
    log_var = log_variance(o, t, schedule)
    var = xp.exp(log_var)
    w = per_row(mean_per_eps(t, schedule), x_0)
    d = w * (eps - eps_hat)
    r = xp.maximum(s.beta_tilde / var, 1e-30)  # 0 at t = 1, where L_0 takes its place below
    nats = 0.5 * (r - 1 - xp.log(r) + d**2 / var)
    grad_mean, grad_log_var = -d / var, 0.5 * (1 - (s.beta_tilde + d**2) / var)
    first = xp.asarray(np.flatnonzero(t == 1))
    if len(first):
        mean = x_0[first] - d[first]
        decode = discretised_decoder if discretised else gaussian_decoder
        nats[first], grad_mean[first], grad_log_var[first] = decode(x_0[first], mean, var[first])
    log_beta, log_beta_tilde = log_ends(t, schedule, o)
    grad_o = 0.5 * (log_beta - log_beta_tilde) * grad_log_var
    return nats.reshape(len(x_0), -1).sum(axis=1), w * grad_mean, grad_o


def gaussian_decoder(x_0: Array, mean: Array, var: Array) -> tuple[Array, Array, Array]:
    """-log N(x_0; mean, var), and its gradients with respect to mean and log var."""
    d = x_0 - mean
    return -normal.log_prob(x_0, mean, var), -d / var, 0.5 * (1 - d**2 / var)


def discretised_decoder(x_0: Array, mean: Array, var: Array) -> tuple[Array, Array, Array]:
    """-log P of `likelihood.discretised_decoder`, and its gradients in mean and log var.

    P = Phi(u) - Phi(l), with du/dmean = -1 / sigma and du/dlog var = -u / 2, and the same for l:

    dP/dmean = (phi(l) - phi(u)) / sigma,    dP/dlog var = (l phi(l) - u phi(u)) / 2
    """
    xp, sigma = get_array_module(x_0), var**0.5
    log_p = likelihood.discretised_decoder(x_0, mean, var).astype(x_0.dtype)

    def density_over_p(edge: Array) -> Array:  # phi(edge) / P
        return xp.exp(-0.5 * edge**2 - 0.5 * normal.LOG_2PI - log_p)

    upper, lower = (x_0 + 1 / 255 - mean) / sigma, (x_0 - 1 / 255 - mean) / sigma
    # The edges of the two end values lie at infinity, where phi is 0.
    at_upper = xp.where(x_0 > 0.999, 0.0, density_over_p(upper)).astype(x_0.dtype)
    at_lower = xp.where(x_0 < -0.999, 0.0, density_over_p(lower)).astype(x_0.dtype)
    return -log_p, (at_upper - at_lower) / sigma, 0.5 * (upper * at_upper - lower * at_lower)


# Objectives of the network's output.


def vlb_objective(
    out: Array,
    x_0: Array,
    t: np.ndarray,
    eps: Array,
    schedule: Schedule,
    predict: str = "eps",
    discretised: bool = False,
) -> tuple[Array, Array]:
    """T L_{t-1} of each row, in nats a coordinate, and its gradient with respect to out.

    L_vlb = sum_t L_{t-1} = T E_t[L_{t-1}], so the mean over t uniform on 1..T is the bound without
    L_T. Eq. (4), Nichol & Dhariwal 2021, arXiv:2102.09672.

    Parameters
    ----------
    out : array of shape (B, ..., 2 C), [guess, o]
    x_0, eps : arrays of shape (B, ..., C)
    predict : what the guess stands for
    discretised : L_0 is that of pixels, `likelihood.discretised_decoder`, and not of points

    Returns
    -------
    loss : array of shape (B,)
    grad_out : array of shape (B, ..., 2 C)
    """
    guess, o = split(out)
    x_t = q_sample(x_0, t, eps, schedule)
    eps_hat = eps_from_output(x_t, t, guess, schedule, predict)
    nats, grad_eps_hat, grad_o = vlb(eps_hat, o, x_0, t, eps, schedule, discretised)
    grad_guess = eps_per_output(x_t, t, schedule, predict) * grad_eps_hat
    scale = schedule.T / x_0[0].size
    grad_out = get_array_module(out).concatenate([grad_guess, grad_o], axis=-1)
    return scale * nats, scale * grad_out


def hybrid(
    out: Array,
    x_0: Array,
    t: np.ndarray,
    eps: Array,
    schedule: Schedule,
    predict: str = "eps",
    discretised: bool = False,
) -> tuple[Array, Array]:
    """L_hybrid = L_simple + LAMBDA L_vlb of each row; arguments and returns as in `vlb_objective`.

    grad_out is deliberately not the gradient of this loss. The guess is trained by L_simple alone,
    as if L_vlb did not depend on it ("stop-gradient"); o is trained by LAMBDA L_vlb, on which alone
    it acts. Eq. (16) and sec. 3.1, Nichol & Dhariwal 2021, arXiv:2102.09672.
    """
    guess, _ = split(out)
    simple, grad_guess = l_simple(guess, x_0, t, eps, schedule, predict)
    bound, grad_bound = vlb_objective(out, x_0, t, eps, schedule, predict, discretised)
    _, grad_o = split(grad_bound)
    grad_out = get_array_module(out).concatenate([grad_guess, LAMBDA * grad_o], axis=-1)
    return simple + LAMBDA * bound, grad_out


class ImportanceSampler:
    """t with p_t proportional to sqrt(E[L_t^2]), from the last `keep` losses at each t.

    It learns from the losses of every step, in the caller's own loop:

        sampler = ImportanceSampler(schedule.T)
        for step in train(..., objective=vlb_objective, draw_t=sampler.draw):
            sampler.learn(step.t, to_numpy(step.losses))

    p_t is uniform until each t has so many. Eq. (18), Nichol & Dhariwal 2021, arXiv:2102.09672.
    """

    def __init__(self, T: int, keep: int = 10) -> None:
        self.last = np.full((T + 1, keep), np.nan)

    @property
    def p(self) -> np.ndarray:
        """p_t, of shape (T+1,), with p_0 = 0. A thousandth is uniform, so every t is drawn."""
        T = len(self.last) - 1
        if np.isnan(self.last[1:]).any():
            return np.concatenate([[0.0], np.full(T, 1 / T)])
        root_mean_square = np.sqrt((self.last[1:] ** 2).mean(axis=1))
        p = 0.999 * root_mean_square / root_mean_square.sum() + 0.001 / T
        return np.concatenate([[0.0], p])

    def draw(self, batch: int, T: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """t, and the weight 1 / (T p_t), by which the mean is that over uniform t: (B,), (B,)."""
        p = self.p
        t = rng.choice(T + 1, size=batch, p=p)
        return t, 1 / (T * p[t])

    def learn(self, t: np.ndarray, losses: np.ndarray) -> None:
        """Keep the loss at each t, in the place of the oldest. Only their ratios matter."""
        for one_t, loss in zip(t, losses, strict=True):
            row = self.last[one_t]
            row[:-1], row[-1] = row[1:], loss
