"""Consistency models: one function that leads from every point of a path to the path's end.

Song et al. 2023, arXiv:2303.01469.

What the paper proposed: the ODE's paths lead from noise to data. Learn f(x_t, t), the end of the
path through x_t: it is the same at any two points of a path, and at noise 0 it is x itself. Two
neighbours of a path come from a trained network ("distillation") or, without one, from the same x_0
and eps at two levels ("training"). One evaluation is a sample; more make it better. What later work
changed: no average of theta in the target, and levels that become finer (Song & Dhariwal 2023,
arXiv:2310.14189), as is done here; continuous time (Lu & Song 2024, arXiv:2410.11081).

    jump                  f = signal x_t - noise v                  eq. (5)
    predictor             the network as f(x_t, t)
    data_pair             x_{t-1} from the same x_0 and eps         sec. 5
    teacher_pair          x_{t-1} by a step of the ODE              eq. (6)
    consistency_loss      the error of f, in units of v             eq. (7), (9)
    learn                 Algorithms 2 and 3
    finer                 more levels as training goes on           sec. 3.4, Song & Dhariwal
    sample                one jump, or several                      Algorithm 1

    paper              here
    -----------------  ------------------------------------------
    t_n, x_{t_n}       the level of step t, x_t / signal_t
    c_skip, c_out      signal, -noise, which is table 1 of EDM's for x of unit variance
    F_theta            v
    lambda             1 / noise^2, by which the error of f is one of v
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from npdiff import train
from npdiff.backend import Array, get_array_module, per_row, standard_normal
from npdiff.forward import q_sample
from npdiff.loss import row_mean
from npdiff.nn.params import pack
from npdiff.output import network_input
from npdiff.reverse import of_state
from npdiff.sampler import Predictor
from npdiff.schedule import Schedule, Time, uniform_log_snr

Pair = Callable[[Array, Array, Array, np.ndarray, Schedule], Array]


def jump(net: Any, params: Any, x: Array, signal: Array, noise: Array, level: Array) -> Array:
    """f(x) = signal x - noise v, the end of the path through x; x itself where the noise is 0.

    Eq. (5), Song et al. 2023, arXiv:2303.01469, with c_skip = signal and c_out = -noise, for x that
    preserves the variance. With a perfect v of one step, f would be E[x_0 | x]; trained to be
    consistent, it is the end of the path.
    """
    v, _ = net.forward(params, x, level)
    return signal * x - noise * v


def predictor(net: Any, params: Any, schedule: Schedule) -> Callable[[Array, Time], Array]:
    """The network as f(x_t, t), a jump from step t to the data.

    params : the network's parameters, or the `train.State` that it was trained in
    """
    params, _ = of_state(params, "v")

    def f(x_t: Array, t: Time) -> Array:
        s = schedule.at(t, x_t)
        _, level = network_input(x_t, t, schedule)
        return jump(net, params, x_t, s.signal, s.noise, level)

    return f


# Two neighbours on a path.


def data_pair(x_0: Array, eps: Array, x_t: Array, t: np.ndarray, schedule: Schedule) -> Array:
    """x_{t-1} = signal_{t-1} x_0 + noise_{t-1} eps, with the x_0 and the eps of x_t.

    Sec. 5, Song et al. 2023, arXiv:2303.01469. This is not on the path through x_t. Given x_t it
    is so on average, up to the square of the step, so no teacher is needed.
    """
    s = schedule.at(t, x_t)
    return s.signal_prev * x_0 + s.noise_prev * eps


def teacher_pair(
    x_0: Array,
    eps: Array,
    x_t: Array,
    t: np.ndarray,
    schedule: Schedule,
    predict_eps: Predictor,
) -> Array:
    """x_{t-1} by a step of Heun's method on dy = eps_hat dsigma, y = x / signal.

    Eq. (6), Song et al. 2023, arXiv:2303.01469. The step to t = 0 is Euler's. x_0 and eps are not
    looked at: the teacher knows the path.
    """
    s = schedule.at(t, x_t)
    h = s.noise_prev / s.signal_prev - s.noise / s.signal
    eps_hat = predict_eps(x_t, t)
    x_euler = s.signal_prev * (x_t / s.signal + h * eps_hat)
    eps_euler = predict_eps(x_euler, np.maximum(t - 1, 1))
    is_last = per_row(t == 1, x_t)
    slope = is_last * eps_hat + (1 - is_last) * (eps_hat + eps_euler) / 2
    return s.signal_prev * (x_t / s.signal + h * slope)


# Training.


def consistency_loss(
    out: Array, x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str, target: Array
) -> tuple[Array, Array]:
    """1/d |f(x_t) - target|^2 / noise_t^2 of each row, and its gradient; target = f(x_{t-1}).

    Eq. (7) and (9), Song et al. 2023, arXiv:2303.01469, with the weight 1 / noise^2. An error of v
    is one of f divided by the noise, so the network sees the weight 1 at every level. The target is
    held fixed: no gradient goes back through it.
    """
    s = schedule.at(t, out, x_0, eps)
    x_t = q_sample(x_0, t, eps, schedule)
    error = out - (s.signal * x_t - target) / s.noise
    return row_mean(error**2), 2 / error[0].size * error


def learn(
    net: Any,
    state: train.State,
    pair: Pair,
    sample: Callable[[int, np.random.Generator], Array],
    schedule_at: Callable[[int], Schedule],
    rng: np.random.Generator,
    steps: int,
    batch: int = 512,
    decay: float = 0.0,
    update: Callable[[train.State, Array, int], None] = train.update,
) -> Iterator[train.TrainStep]:
    """Consistency distillation or training, by the `pair` that it is given.

    Algorithms 2 and 3, Song et al. 2023, arXiv:2303.01469, with the target's parameters those of
    the network itself (Song & Dhariwal 2023, arXiv:2310.14189, sec. 3.2).

    Parameters
    ----------
    net, state : the network, and its state; its output is v
    pair : `data_pair`, or partial(teacher_pair, predict_eps=...)
    sample : sample(batch, rng) -> x_0 of shape (batch, ...), on the host
    schedule_at : the Schedule at a step, such as `finer`; it preserves the variance
    """
    xp = get_array_module(state.theta)
    theta_minus, params_minus = pack(state.params)
    while state.step < steps:
        schedule = schedule_at(state.step + 1)
        x_0 = xp.asarray(sample(batch, rng))
        t = rng.integers(1, schedule.T + 1, size=batch)
        eps = standard_normal(rng, x_0.shape, like=x_0)
        x_t = q_sample(x_0, t, eps, schedule)
        x_prev = pair(x_0, eps, x_t, t, schedule)
        s = schedule.at(t, x_t)
        level_prev = xp.asarray(schedule.level[t - 1].astype(x_t.dtype))
        target = jump(net, params_minus, x_prev, s.signal_prev, s.noise_prev, level_prev)
        objective = partial(consistency_loss, target=target)
        losses, grad = train.gradient(net, state.params, x_0, t, eps, schedule, "v", objective)
        update(state, grad, steps)
        theta_minus += (1 - decay) * (state.theta - theta_minus)
        yield train.TrainStep(state.step, x_0, t, eps, losses, losses.mean(), grad)


def finer(
    step: int, steps: int, fewest: int = 10, most: int = 1280, ends: tuple[float, float] = (-4, 5)
) -> Schedule:
    """Levels in equal steps, whose number doubles from `fewest` to `most` as training goes on.

    Few levels learn fast, and are biased; many have little bias, and learn slowly. Sec. 3.4, Song &
    Dhariwal 2023, arXiv:2310.14189.
    """
    doublings = math.log2(most / fewest)
    stage = math.floor((doublings + 1) * (step - 1) / steps)
    return uniform_log_snr(min(most, fewest * 2**stage), *ends)


def sample(
    f: Callable[[Array, Time], Array],
    x_T: Array,
    ts: list[int],
    schedule: Schedule,
    rng: np.random.Generator,
) -> Iterator[Array]:
    """x_0 after each jump: the first from x_T, and one more for each t of ts.

    x_0 = f(x_T, T);  for each t:  x_t = signal_t x_0 + noise_t z,  x_0 = f(x_t, t)

    Algorithm 1, Song et al. 2023, arXiv:2303.01469. Each further jump removes an error that the
    noise of level t hides.
    """
    x_0 = f(x_T, schedule.T)
    yield x_0
    for t in ts:
        x_t = q_sample(x_0, t, standard_normal(rng, x_0.shape, like=x_0), schedule)
        x_0 = f(x_t, t)
        yield x_0
