"""The learned process p_theta: the predicted noise in x_t gives one Gaussian step back to x_{t-1}.

    p_theta(x_{t-1} | x_t) = N(mu_theta(x_t, t), sigma_t^2 I)

The mean can be written with eps_hat, with x_0_hat or with the score; the three agree. The variance
is fixed, to beta_t or to beta_tilde_t. `predictor` turns a network into predict_eps(x_t, t), which
is all that a sampler ever sees. `exact.Mixture.predictor` returns the same kind of function.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from npdiff.backend import Array, get_array_module
from npdiff.forward import q_posterior
from npdiff.output import check_predict, eps_from_output, network_input
from npdiff.schedule import Schedule, Time, check_t

VARIANCE = ("beta_tilde", "beta")
NO_SIGNAL = (
    "alpha[t] is 0: x_t holds nothing of x_{t-1}, so eps does not determine the mean; "
    "use p_mean_from_x_0"
)


def p_mean_from_eps(x_t: Array, t: Time, eps_hat: Array, schedule: Schedule) -> Array:
    """mu_theta = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps_hat) / sqrt(alpha_t).

    Eq. (11), Ho et al. 2020, arXiv:2006.11239. All arrays have shape (B, ...).
    ValueError where alpha_t is 0.
    """
    s = schedule.at(t, x_t, eps_hat)
    if np.any(schedule.alpha[t] == 0):
        raise ValueError(NO_SIGNAL)
    return (x_t - s.beta / s.noise * eps_hat) / s.alpha**0.5


def p_mean_from_x_0(x_t: Array, t: Time, x_0_hat: Array, schedule: Schedule) -> Array:
    """mu_theta = the mean of q(x_{t-1} | x_t, x_0 = x_0_hat).

    Eq. (7) and (11), Ho et al. 2020, arXiv:2006.11239.
    """
    mean, _ = q_posterior(x_0_hat, x_t, t, schedule)
    return mean


def p_mean_from_score(x_t: Array, t: Time, score_hat: Array, schedule: Schedule) -> Array:
    """mu_theta = (x_t + beta_t score_hat) / sqrt(alpha_t).

    Eq. (11), Ho et al. 2020, with eps_hat = -noise_t score_hat; eq. (4), Song et al. 2021,
    arXiv:2011.13456. ValueError where alpha_t is 0.
    """
    s = schedule.at(t, x_t, score_hat)
    if np.any(schedule.alpha[t] == 0):
        raise ValueError(NO_SIGNAL)
    return (x_t + s.beta * score_hat) / s.alpha**0.5


def mean_per_eps(t: Time, schedule: Schedule) -> np.ndarray:
    """d mu_theta / d eps_hat = -beta_t / (sqrt(alpha_t) sqrt(1 - alpha_bar_t)).

    From eq. (11), Ho et al. 2020. So an error of eps_hat becomes an error of the mean:

    mu_theta - mu_tilde = mean_per_eps (eps_hat - eps)

    float64 on the host, of t's shape.
    """
    check_t(t, schedule.T)
    return -schedule.beta[t] / (np.sqrt(schedule.alpha[t]) * schedule.noise[t])


def p_variance(t: Time, schedule: Schedule, variance: str = "beta_tilde") -> np.ndarray:
    """sigma_t^2, the variance of the reverse step: beta_t or beta_tilde_t.

    beta_t is optimal for x_0 ~ N(0, I), beta_tilde_t for a single point x_0. Sec. 3.2, Ho et al.
    2020, arXiv:2006.11239. float64 on the host, of t's shape.
    """
    check_t(t, schedule.T)
    if variance not in VARIANCE:
        raise ValueError(f"variance must be one of {', '.join(VARIANCE)}, got {variance!r}")
    return schedule.beta[t] if variance == "beta" else schedule.beta_tilde[t]


def of_state(params: Any, predict: str | None = None) -> tuple[dict, str]:
    """The parameters, and what the network predicts, from a `train.State` or from the two as given.

    A State brings its averaged parameters and its `predict`. Without a State, `predict` is "eps"
    unless given. ValueError for another name, or one that contradicts the State's.
    """
    if isinstance(params, dict):
        predict = predict or "eps"
        check_predict(predict)
        return params, predict
    if predict not in (None, params.predict):
        raise ValueError(f"the network was trained to predict {params.predict!r}, got {predict!r}")
    return params.ema_params, params.predict


def warn_of_noise(schedule: Schedule, predict: str) -> None:
    """Warn where x_0_hat = (x_T - noise_T eps_hat) / signal_T multiplies an error by 1000."""
    signal_T = schedule.signal[-1]
    if predict in ("eps", "score") and 0 < signal_T < 1e-3:
        warnings.warn(
            f"predict={predict!r} on a schedule with signal[T] = {signal_T:.2g}: an error of 0.01 "
            f"in eps is one of {0.01 / signal_T:.0f} in x_0, by way of which DDIM jumps; "
            'train with predict="v"',
            stacklevel=3,
        )


def predictor(
    net: Any,
    params: Any,
    schedule: Schedule,
    predict: str | None = None,
    guidance: float = 0.0,
    **inputs: Any,
) -> Callable[[Array, Time], Array]:
    """The network as a function predict_eps(x_t, t) -> eps_hat; t is an int, or ints of shape (B,).

    Classifier-free guidance of weight w moves away from what the network predicts without a label:

    eps_hat = (1 + w) eps_hat(x_t | label) - w eps_hat(x_t)

    Eq. (6), Ho & Salimans 2022, arXiv:2207.12598. By Bayes' rule this is the noise of the score of
    p(x_t | label) p(label | x_t)^w, so samples move to where the label is certain. One network
    gives both predictions, since in training some labels are dropped (NO_CLASS). Both come from one
    call, on 2 B rows.

    Parameters
    ----------
    net : a module with forward(params, x, level, ...) -> out, cache, such as npdiff.nn.mlp
    params : its parameters; or a `train.State`, whose averaged parameters and `predict` are used
    predict : what the network's output stands for: "eps", "x_0", "v" or "score".
        Default: the State's, or "eps"
    guidance : w, 0 for none; needs label=..., and a net that has a NO_CLASS
    inputs : further arguments of net.forward, such as label, of shape (B,)

    Raises
    ------
    ValueError
        For another `predict`, one that contradicts the State's, guidance without a label or with
        other inputs beside it, or a t outside 1..T.
    """
    params, predict = of_state(params, predict)
    warn_of_noise(schedule, predict)
    if guidance and (set(inputs) != {"label"} or not hasattr(net, "NO_CLASS")):
        raise ValueError(
            "guidance needs a label to be guided by, label=..., no other input, and a network that "
            "can do without a label, one with a NO_CLASS"
        )

    def predict_eps(x_t: Array, t: Time) -> Array:
        x, level = network_input(x_t, t, schedule)
        out, _ = net.forward(params, x, level, **inputs)
        return eps_from_output(x_t, t, out, schedule, predict)

    def predict_guided_eps(x_t: Array, t: Time) -> Array:
        xp, n, label = get_array_module(x_t), len(x_t), inputs["label"]
        x, level = network_input(x_t, t, schedule)
        label_or_none = np.concatenate([label, np.full(n, net.NO_CLASS)])
        out, _ = net.forward(
            params, xp.concatenate([x, x]), xp.concatenate([level, level]), label_or_none
        )
        eps_cond = eps_from_output(x_t, t, out[:n], schedule, predict)
        eps_uncond = eps_from_output(x_t, t, out[n:], schedule, predict)
        return (1 + guidance) * eps_cond - guidance * eps_uncond

    return predict_guided_eps if guidance else predict_eps
