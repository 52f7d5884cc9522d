"""MeanFlow: learn the average velocity of a path, and travel the whole path in one step.

Geng et al. 2025, arXiv:2505.13447.

What the paper proposed: flow matching learns the velocity at each point, so its sampler must follow
a curved path in short steps. Learn instead u, the average velocity between two times: one step with
it leads to the end of the path. The average is an integral along the path, too expensive to compute
in training. But by differentiating the integral one finds a target for u that needs only the
velocity at one point and the derivative of the network in one direction. There is no teacher.

What later work changed: the derivative is taken along the network's own velocity u(z_t, t, t),
which has less variance than eps - x_0 (Geng et al. 2025, arXiv:2512.02012); training begins with
flow matching and goes over to MeanFlow by degrees (Zhang et al. 2025, arXiv:2510.20771).

    line              z_t and its velocity                           sec. 3
    draw_times        r and t                                        sec. 4.3
    network_input     what a network is given                        sec. 4.3
    total_derivative  u and du/dt                                    eq. (8)
    target            u_target = v - (t - r) du/dt                   eq. (6), (11)
    squared_error     |u - u_target|^2, u_target held fixed          eq. (9)
    learn             training                                       Algorithm 1
    predictor         the network as u(z_t, r, t)
    sample            one step, or several                           eq. (12), Algorithm 2

    paper         here
    ------------  --------------------------------------------------------------------------
    x, epsilon    x_0, eps
    t, r          t, r: real numbers, from 0 (data) to 1 (noise), so no Schedule is needed; in
                  flow_matching.py this t is t / T
    z_t           z_t = (1 - t) x_0 + t eps
    v_t           velocity = eps - x_0; not the v of `output.py`
    u_theta       u
    sg(u_tgt)     u_target
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from npdiff import train
from npdiff.backend import Array, get_array_module, per_row, standard_normal
from npdiff.loss import row_mean
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree, flatten
from npdiff.reverse import of_state

PER_GAP, PER_TIME = 4.0, 10.0  # how fast the network's inputs change with t - r and with t

Times = float | np.ndarray  # one for all rows, or one for each, (B,), on the host
MeanVelocity = Callable[[Array, Times, Times], Array]


class MeanFlowStep(NamedTuple):
    step: int  # 1, 2, ..., steps
    x_0: Array
    r: np.ndarray
    t: np.ndarray
    eps: Array
    u: Array
    u_target: Array
    losses: Array  # the objective of each row, (B,)
    loss: Array  # and its mean, of shape (), on the device: float(loss) waits for it
    grad: Array  # dL/dtheta, before clipping


class Jump(NamedTuple):
    t: float
    r: float
    z_t: Array
    u: Array
    z_r: Array


def line(x_0: Array, eps: Array, t: np.ndarray) -> tuple[Array, Array]:
    """z_t = (1 - t) x_0 + t eps, on the straight line from data to noise, and its velocity.

    velocity = dz_t/dt = eps - x_0

    Sec. 3, Geng et al. 2025, arXiv:2505.13447.
    """
    t_row = per_row(t, x_0)
    return (1 - t_row) * x_0 + t_row * eps, eps - x_0


def draw_times(
    batch: int, rng: np.random.Generator, equal: float = 0.75
) -> tuple[np.ndarray, np.ndarray]:
    """r and t of each row, (B,): the smaller and the larger of two uniform draws.

    But in a share `equal` of the rows r = t. There the network learns the velocity itself, on which
    the averages rest. Sec. 4.3, Geng et al. 2025, arXiv:2505.13447, whose default is 0.75.
    """
    r, t = np.sort(rng.random((2, batch)), axis=0)
    return np.where(rng.random(batch) < equal, t, r), t


# The average velocity, u(z_t, r, t) = 1/(t - r) int_r^t v(z_tau, tau) dtau.  Eq. (3)


def network_input(z_t: Array, r: Times, t: Times) -> tuple[Array, Array]:
    """x = [z_t, 4 (t - r)] of shape (B, d + 1), and level = 10 t - 5 of shape (B,).

    The usual level, log(noise / signal) = log(t / (1 - t)), will not do: its derivative in t is
    infinite at both ends, and du/dt with it. Sec. 4.3, Geng et al. 2025, arXiv:2505.13447, compares
    other ways to tell a network r and t. ValueError unless 0 <= r <= t <= 1.
    """
    r, t = (np.full(len(z_t), a) for a in (r, t))
    if not (np.all(r >= 0) and np.all(r <= t) and np.all(t <= 1)):
        raise ValueError(f"needed: 0 <= r <= t <= 1, got r = {r}, t = {t}")
    x = get_array_module(z_t).concatenate([z_t, per_row(PER_GAP * (t - r), z_t)], axis=1)
    return x, per_row(PER_TIME * t - PER_TIME / 2, z_t)[:, 0]


def total_derivative(
    net: Any, params: Tree, z_t: Array, velocity: Array, r: np.ndarray, t: np.ndarray
) -> tuple[Array, Array, Cache]:
    """u(z_t, r, t), its derivative along the path, and the cache of the network.

    du/dt = velocity d_z u + d_t u

    It is the derivative of u in the direction (velocity, 0, 1): z_t moves at `velocity`, r stays,
    and t moves at the rate 1. Eq. (8), Geng et al. 2025, arXiv:2505.13447.
    """
    x, level = network_input(z_t, r, t)
    xp = get_array_module(x)
    d_x = xp.concatenate([velocity, xp.full_like(x[:, -1:], PER_GAP)], axis=1)  # (B, d + 1)
    return net.jvp(params, x, level, d_x, xp.full_like(level, PER_TIME))


def target(velocity: Array, du_dt: Array, r: np.ndarray, t: np.ndarray) -> Array:
    """u_target = velocity - (t - r) du/dt, which equals u if u is the average velocity.

    The derivative of (t - r) u = int_r^t v dtau in t is u + (t - r) du/dt = v. Eq. (4) to (6), Geng
    et al. 2025, arXiv:2505.13447. In training eps - x_0 takes the place of v, which is its mean
    given z_t (eq. (11)). Both terms are linear in the velocity, so the mean of the target is right.
    """
    return velocity - per_row(t - r, velocity) * du_dt


def squared_error(u: Array, u_target: Array) -> tuple[Array, Array]:
    """1/d |u - u_target|^2 of each row, (B,), and the gradient of each row's loss, (B, d).

    The target is held fixed, although it is made of the network: no gradient goes through it.
    Eq. (9), Geng et al. 2025, arXiv:2505.13447. The weight of sec. 4.3, a power of
    1 / (|u - u_target|^2 + c), is left out.
    """
    error = u - u_target
    return row_mean(error**2), 2 / error[0].size * error


def learn(
    net: Any,
    state: train.State,
    sample: Callable[[int, np.random.Generator], Array],
    rng: np.random.Generator,
    steps: int,
    batch: int = 512,
    draw_times: Callable[..., tuple[np.ndarray, np.ndarray]] = draw_times,
    update: Callable[[train.State, Array, int], None] = train.update,
) -> Iterator[MeanFlowStep]:
    """Train the network to predict u: steps state.step + 1 to `steps`, each yielded.

    Algorithm 1, Geng et al. 2025, arXiv:2505.13447.

    Parameters
    ----------
    net : a module with forward, backward and jvp, such as npdiff.nn.mlp
    state : train.start(mlp.init(rng, dim=d + 1, outputs=d)); its `predict` plays no part
    sample : sample(batch, rng) -> x_0 of shape (batch, d), on the host
    draw_times : draw_times(batch, rng) -> r, t
    """
    xp = get_array_module(state.theta)
    while state.step < steps:
        x_0 = xp.asarray(sample(batch, rng))
        r, t = draw_times(batch, rng)
        eps = standard_normal(rng, x_0.shape, like=x_0)

        z_t, velocity = line(x_0, eps, t)
        u, du_dt, cache = total_derivative(net, state.params, z_t, velocity, r, t)
        u_target = target(velocity, du_dt, r, t)
        losses, grad_u = squared_error(u, u_target)
        _, grads = net.backward(state.params, cache, grad_u / batch)
        grad = flatten(grads, like=state.params)

        update(state, grad, steps)
        yield MeanFlowStep(state.step, x_0, r, t, eps, u, u_target, losses, losses.mean(), grad)


def predictor(net: Any, params: Any) -> MeanVelocity:
    """The network as u(z_t, r, t); params : its parameters, or the State it was trained in."""
    params, _ = of_state(params)

    def u(z_t: Array, r: Times, t: Times) -> Array:
        x, level = network_input(z_t, r, t)
        return net.forward(params, x, level)[0]

    return u


def sample(u: MeanVelocity, z_1: Array, times: tuple[float, ...] = (1.0, 0.0)) -> Iterator[Jump]:
    """From noise to data in the steps between `times`, by default in one.

    z_r = z_t - (t - r) u(z_t, r, t)

    Eq. (12) and Algorithm 2, Geng et al. 2025, arXiv:2505.13447. With the true u all choices of
    `times` lead to the same z_0; with a learned one, more steps leave smaller errors.

    Parameters
    ----------
    u : u(z_t, r, t), from `predictor`
    z_1 : array of shape (B, d), a draw from N(0, I)
    times : falling, from 1 to 0
    """
    z_t = z_1
    for t, r in zip(times[:-1], times[1:], strict=True):
        average = u(z_t, r, t)
        z_r = z_t - (t - r) * average
        yield Jump(t, r, z_t, average, z_r)
        z_t = z_r
