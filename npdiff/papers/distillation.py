"""Progressive distillation: a student learns to take two of its teacher's steps in one.

Salimans & Ho 2022, arXiv:2202.00512.

What the paper proposed: DDIM is deterministic, so what N steps do is a function of the noise, and a
network can learn to do it in N / 2 steps; then the student becomes the teacher. 64 steps become one
in six stages. With one step x_0 must be predicted from pure noise, which eps cannot do; so the
paper introduced v. What later work changed: consistency models (consistency.py) jump to the data at
once, and need no stages.

    angular          the schedule signal = cos phi, noise = sin phi, with phi in equal steps
    predictor        the network as predict_v(x_t, t)
    exact_v          E[v | x_t], the best predict_v
    ddim             DDIM in v: a rotation by the angle of a step.  App. D
    two_steps_in_one the v that takes a student where two steps take the teacher.  App. G
    distil           Algorithm 2

    paper                 here
    --------------------  ---------------------------
    z_t, alpha_t, sigma_t  x_t, signal[t], noise[t]
    phi_t                  pi/2 t / T
    v_phi                  v
    x~                     x_0 of the student's target: (x'' - n''/n x_t) / (s'' - n''/n s)
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from npdiff import train
from npdiff.backend import Array, get_array_module, standard_normal
from npdiff.exact import Mixture
from npdiff.forward import q_sample
from npdiff.loss import row_mean
from npdiff.output import network_input
from npdiff.reverse import of_state
from npdiff.sampler import Step
from npdiff.schedule import Schedule, Time, check_T

PredictV = Callable[[Array, Time], Array]


def angular(T: int) -> Schedule:
    """signal = cos phi and noise = sin phi, with phi = pi/2 t / T; pure noise at T.

    App. D, Salimans & Ho 2022, arXiv:2202.00512.
    """
    phi = np.pi / 2 * np.arange(check_T(T) + 1) / T
    signal = np.cos(phi)
    signal[-1] = 0.0  # which rounding makes 6e-17
    return Schedule(signal, np.sin(phi))


def predictor(net: Any, params: Any, schedule: Schedule, **inputs: Any) -> PredictV:
    """The network as predict_v(x_t, t), at every t, pure noise included.

    params : the network's parameters, or the `train.State` that it was trained in, for v
    """
    params, _ = of_state(params, "v")

    def predict_v(x_t: Array, t: Time) -> Array:
        x, level = network_input(x_t, t, schedule)
        return net.forward(params, x, level, **inputs)[0]

    return predict_v


def exact_v(data: Mixture, schedule: Schedule) -> PredictV:
    """The best predictor of v: E[v | x_t] = signal_t E[eps | x_t] - noise_t E[x_0 | x_t]."""
    predict_eps, predict_x_0 = data.predictor(schedule), data.denoiser(schedule)

    def predict_v(x_t: Array, t: Time) -> Array:
        s = schedule.at(t, x_t)
        return s.signal * predict_eps(x_t, t) - s.noise * predict_x_0(x_t, t)

    return predict_v


def rotate(x_t: Array, v: Array, angle: float) -> Array:
    """The step of DDIM that lowers phi by `angle`: cos(angle) x_t - sin(angle) v.

    x_t = cos(phi) x_0 + sin(phi) eps and v = cos(phi) eps - sin(phi) x_0 are at right angles in the
    plane of x_0 and eps, so a rotation leads from phi to any other angle. App. D, Salimans & Ho
    2022, arXiv:2202.00512.
    """
    return math.cos(angle) * x_t - math.sin(angle) * v


def ddim(predict_v: PredictV, x_T: Array, schedule: Schedule) -> Iterator[Step]:
    """DDIM along an angular schedule, each step a rotation; from pure noise, and in one step too.

    x_0_hat = signal_t x_t - noise_t v,    eps_hat = noise_t x_t + signal_t v

    App. D, Salimans & Ho 2022, arXiv:2202.00512. The same as `sampler.ddim` where signal_T > 0.
    """
    x_t, angle = x_T, np.pi / 2 / schedule.T
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x_t)
        v = predict_v(x_t, t)
        x_0_hat, eps_hat = s.signal * x_t - s.noise * v, s.noise * x_t + s.signal * v
        x_prev = rotate(x_t, v, angle)
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, x_prev, 0.0, 0 * x_t, x_prev)
        x_t = x_prev


def two_steps_in_one(teacher: PredictV, x_t: Array, t: np.ndarray, T: int) -> Array:
    """The student's target at its step t of T: the v of one step that does two of the teacher's.

    x'' = two rotations by pi/2 / (2 T), and cos(pi/2 / T) x_t - sin(pi/2 / T) v = x''

    App. G, Salimans & Ho 2022, arXiv:2202.00512, who solve for x_0 in the place of v. The teacher
    runs on angular(2 T), where the student's step t is 2 t.
    """
    half = np.pi / 2 / (2 * T)
    x_mid = rotate(x_t, teacher(x_t, 2 * t), half)
    x_end = rotate(x_mid, teacher(x_mid, 2 * t - 1), half)
    return (math.cos(2 * half) * x_t - x_end) / math.sin(2 * half)


def squared_error(
    out: Array, x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str, target: Array
) -> tuple[Array, Array]:
    """1/d |out - target|^2 of each row and its gradient: an objective with a target of its own.

    With v as the output this is the paper's weight SNR + 1 on the error of x_0. Sec. 4.
    """
    error = out - target
    return row_mean(error**2), 2 / error[0].size * error


def distil(
    net: Any,
    state: train.State,
    teacher: PredictV,
    sample: Callable[[int, np.random.Generator], Array],
    T: int,
    rng: np.random.Generator,
    steps: int,
    batch: int = 512,
    update: Callable[[train.State, Array, int], None] = train.update,
) -> Iterator[train.TrainStep]:
    """One stage: the student learns to do in T steps what its teacher does in 2 T.

    Algorithm 2, Salimans & Ho 2022, arXiv:2202.00512. The target is a function of x_t, so the best
    loss is 0, and a perfect student is its teacher's DDIM.

    Parameters
    ----------
    net, state : the student, which starts from its teacher's parameters and predicts v
    teacher : predict_v(x_t, t) on angular(2 T): `predictor`, or `exact_v`
    sample : sample(batch, rng) -> x_0 of shape (batch, ...), on the host
    T : the student's number of steps
    """
    schedule = angular(T)
    xp = get_array_module(state.theta)
    while state.step < steps:
        x_0 = xp.asarray(sample(batch, rng))
        t = rng.integers(1, T + 1, size=batch)
        eps = standard_normal(rng, x_0.shape, like=x_0)
        v = two_steps_in_one(teacher, q_sample(x_0, t, eps, schedule), t, T)
        objective = partial(squared_error, target=v)
        losses, grad = train.gradient(net, state.params, x_0, t, eps, schedule, "v", objective)
        update(state, grad, steps)
        yield train.TrainStep(state.step, x_0, t, eps, losses, losses.mean(), grad)
