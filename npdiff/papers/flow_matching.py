"""Flow matching: straight lines from noise to data.

Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023 ("rectified flow"), arXiv:2209.03003.

What the papers proposed: leave out the chain. Join each x_0 to a noise eps by a straight line and
learn the velocity at which it is travelled. Many lines cross at x_t; their mean velocity moves
noise to data along an ODE, and its paths do not cross. Liu et al. then draw pairs from the learned
ODE, join them by straight lines and learn again ("reflow"): the new paths are nearly straight, and
one step of Euler's method follows them.

What it is: a diffusion on one more schedule, `straight`. Its loss is that of v, reweighted, and
Euler's method on it is DDIM. Later work draws the middle of the lines more often (Esser et al.
2024, arXiv:2403.03206). Reflow is new: there the noise belongs to the data point.

    straight               signal = 1 - u, noise = u, with u = t / T
    velocity_from_v        a network's v as a velocity
    predictor              the network as velocity(x_t, t)
    flow_matching_loss     eq. (9), Lipman et al.
    euler, heun            the ODE, in steps of order 1 and 2
    exact_map              the end of the ODE's path, by the exact velocity
    straightness           sec. 2, Liu et al.
    reflow                 training on pairs that the ODE has joined

    Lipman et al.    Liu et al.       here
    ---------------  ---------------  --------------------------
    1 - t            1 - t            noise[t] = t / T = u
    x_1, x_0         X_1, X_0         x_0 (data), x_T (noise)
    v_t(x)           v(X_t, t)        - velocity(x_t, t), since our u runs from data to noise
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from npdiff import train
from npdiff.backend import Array
from npdiff.exact import Mixture
from npdiff.loss import l_target
from npdiff.output import network_input
from npdiff.reverse import of_state
from npdiff.sampler import Step
from npdiff.schedule import Schedule, Time, check_T

Velocity = Callable[[Array, Time], Array]


def straight(T: int) -> Schedule:
    """The straight line: x_t = (1 - u) x_0 + u eps with u = t / T, and pure noise at T.

    Eq. (20) and (22), Lipman et al. 2023, arXiv:2210.02747, with sigma_min = 0; eq. (1), Liu et al.
    2023, arXiv:2209.03003.
    """
    u = np.arange(check_T(T) + 1) / T
    return Schedule(1 - u, u)


def check_straight(schedule: Schedule) -> None:
    """Raise ValueError unless signal + noise = 1, so that d x_t / du = eps - x_0."""
    if not np.allclose(schedule.signal + schedule.noise, 1, rtol=0, atol=1e-12):
        raise ValueError(
            "a velocity needs a schedule with signal + noise = 1: flow_matching.straight(T)"
        )


def velocity_from_v(x_t: Array, t: Time, v: Array, schedule: Schedule) -> Array:
    """velocity = eps - x_0 = v / std - (signal - noise) x_t / std^2.

    v = (signal eps - noise x_0) / std is what a network predicts: see `output.py`. The formula
    solves it and x_t = signal x_0 + noise eps for eps - x_0, with signal + noise = 1. std is at
    least sqrt(1/2), so nothing is divided by 0, at pure noise neither.
    """
    s = schedule.at(t, x_t, v)
    return v / s.std - (s.signal - s.noise) / s.std**2 * x_t


def predictor(
    net: Any, params: Any, schedule: Schedule, predict: str | None = None, **inputs: Any
) -> Velocity:
    """The network as velocity(x_t, t); arguments as in `reverse.predictor`.

    ValueError unless the network predicts v, the one output from which the velocity follows both at
    the data and at pure noise; and unless the schedule is straight.
    """
    params, predict = of_state(params, predict)
    check_straight(schedule)
    check_v(predict)

    def velocity(x_t: Array, t: Time) -> Array:
        x, level = network_input(x_t, t, schedule)
        v, _ = net.forward(params, x, level, **inputs)
        return velocity_from_v(x_t, t, v, schedule)

    return velocity


def check_v(predict: str) -> None:
    if predict != "v":
        raise ValueError(
            'the network must predict v: train.start(..., predict="v"); from eps or x_0 the '
            f"velocity does not follow everywhere on the line; got {predict!r}"
        )


def flow_matching_loss(
    out: Array, x_0: Array, t: Time, eps: Array, schedule: Schedule, predict: str = "v"
) -> tuple[Array, Array]:
    """The flow-matching objective of each row, per coordinate, and its gradient.

    loss = 1/d |velocity_hat - (eps - x_0)|^2

    Eq. (9), Lipman et al. 2023, arXiv:2210.02747. By `velocity_from_v` an error of v is std times
    that of the velocity, so this is the loss of v with the weight 1 / std^2, between 1 and 2.

    Returns
    -------
    loss : array of shape (B,)
    grad_out : array of shape (B, ...), the gradient of each row's loss
    """
    check_v(predict)
    loss, grad_out = l_target(out, x_0, t, eps, schedule, predict)
    std = schedule.at(t, out).std
    weight = std**-2
    return loss * (weight if np.ndim(t) == 0 else weight.reshape(-1)), grad_out * weight


# The ODE.


def euler(velocity: Velocity, x_T: Array, schedule: Schedule) -> Iterator[Step]:
    """Euler's method on dx = velocity du, from pure noise to data: T steps.

    x_{t-1} = x_t + (u_{t-1} - u_t) velocity(x_t, t)

    Eq. (1), Liu et al. 2023, arXiv:2209.03003. Of order 1. Since x_0_hat = x_t - noise velocity and
    eps_hat = x_t + signal velocity, this is x_{t-1} = signal_{t-1} x_0_hat + noise_{t-1} eps_hat,
    the deterministic step of DDIM.

    Parameters
    ----------
    velocity : velocity(x_t, t), from `predictor` or `exact.Mixture.velocity`
    x_T : array of shape (B, ...), a draw from N(0, I)

    Raises
    ------
    ValueError
        Unless signal + noise = 1 at every t.
    """
    check_straight(schedule)
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x_t)
        slope = velocity(x_t, t)
        x_0_hat, eps_hat = x_t - s.noise * slope, x_t + s.signal * slope
        x_prev = x_t + (s.noise_prev - s.noise) * slope
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, x_prev, 0.0, 0 * x_t, x_prev)
        x_t = x_prev


def heun(velocity: Velocity, x_T: Array, schedule: Schedule) -> Iterator[Step]:
    """Heun's method: a step along the mean of the velocities at its two ends. Of order 2.

    x_euler = x_t + h velocity(x_t, t),                                  h = u_{t-1} - u_t
    x_{t-1} = x_t + h/2 (velocity(x_t, t) + velocity(x_euler, t - 1))

    The last step is the first line alone. Arguments and errors as in `euler`.
    """
    check_straight(schedule)
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x_t)
        slope = velocity(x_t, t)
        x_0_hat, eps_hat = x_t - s.noise * slope, x_t + s.signal * slope
        h = s.noise_prev - s.noise
        x_prev = x_t + h * slope
        if t > 1:
            x_prev = x_t + h * (slope + velocity(x_prev, t - 1)) / 2
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, x_prev, 0.0, 0 * x_t, x_prev)
        x_t = x_prev


def exact_map(data: Mixture, x_T: np.ndarray, steps: int = 200) -> np.ndarray:
    """Where the ODE of the exact velocity leads pure noise: (N, d) -> (N, d), in float64.

    By `heun`, of order 2. On the swiss roll 200 steps are right to some 1e-4. For a Gaussian and on
    a line there are closed forms: `exact.Gaussian.flow_map`, `exact.Mixture.flow_map`.
    """
    schedule = straight(steps)
    *_, last = heun(data.velocity(schedule), x_T.astype(np.float64), schedule)
    return last.x_prev


def straightness(velocity: Velocity, x_T: Array, schedule: Schedule) -> float:
    """How far the ODE's paths are from straight lines, per coordinate; 0 for straight ones.

    S = integral over u of E |(x_T - x_0) - velocity(x_t, t)|^2 / d

    Sec. 2.2, Liu et al. 2023, arXiv:2209.03003: one Euler step is exact if S is 0. The integral is
    a sum over the schedule's Euler steps, on whose path x_T - x_0 is the mean of the velocities.
    Waits for the device.
    """
    slopes = [(step.x_t - step.x_prev) * schedule.T for step in euler(velocity, x_T, schedule)]
    mean = sum(slopes) / schedule.T  # x_T - x_0
    return float(sum(((slope - mean) ** 2).mean() for slope in slopes)) / schedule.T


# Reflow.


def all_at_once(batch: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """t uniform on 1..T, but for half of the rows T itself, where a sampler of one step asks."""
    return np.where(rng.random(batch) < 0.5, T, rng.integers(1, T + 1, size=batch))


def reflow(
    net: Any,
    state: train.State,
    x_0: Array,
    x_T: Array,
    schedule: Schedule,
    rng: np.random.Generator,
    steps: int,
    batch: int = 512,
    draw_t: Callable[[int, int, np.random.Generator], np.ndarray] = all_at_once,
    update: Callable[[train.State, Array, int], None] = train.update,
) -> Iterator[train.TrainStep]:
    """Training on pairs: row i of the data belongs to row i of the noise.

    min E |(x_T - x_0) - velocity(x_t, t)|^2,    x_t = (1 - u) x_0 + u x_T

    Algorithm 1, Liu et al. 2023, arXiv:2209.03003. The pairs are ends of the paths of an ODE that
    was learned before, x_0 = the last x_prev of `heun` from x_T. These paths do not cross, so
    hardly any lines do: a line's velocity is known from any of its points, and the loss falls to
    nearly 0. As `train.train`, but for the pairs.

    Parameters
    ----------
    net, state : the network, and its state; it predicts v
    x_0, x_T : the pairs, arrays of shape (N, ...)
    draw_t : draw_t(batch, T, rng) -> t
    """
    while state.step < steps:
        rows = rng.integers(len(x_0), size=batch)
        t = draw_t(batch, schedule.T, rng)
        losses, grad = train.gradient(
            net, state.params, x_0[rows], t, x_T[rows], schedule, "v", flow_matching_loss
        )
        update(state, grad, steps)
        yield train.TrainStep(state.step, x_0[rows], t, x_T[rows], losses, losses.mean(), grad)
