"""The training loop: noise the data, let the network guess the noise, follow the gradient.

Algorithm 1, Ho et al. 2020, arXiv:2006.11239. `train` is a generator that yields every step with all its quantities:

    state = start(mlp.init(rng))
    for step in train(mlp, state, sample, schedule, rng, steps=10_000):
        ...
    predict_eps = predictor(mlp, state.ema_params, schedule)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npdiff.backend import Array, get_array_module, standard_normal
from npdiff.forward import q_sample
from npdiff.loss import l_simple
from npdiff.nn.params import Tree, flatten, pack, unflatten
from npdiff.optim import adam, average, clip_norm, learning_rate
from npdiff.reverse import network_input
from npdiff.schedule import Schedule


@dataclass
class State:
    """All that training changes: theta, the average of its past, Adam's two moments, and how many steps were taken.

    `params` and `ema_params` are views of theta and ema, as a network takes them.
    """

    theta: Array
    ema: Array
    m: Array
    v: Array
    params: Tree
    ema_params: Tree
    step: int = 0


class TrainStep(NamedTuple):
    step: int  # 1, 2, ..., steps
    x_0: Array
    t: np.ndarray
    eps: Array
    loss: Array  # L_simple a dimension, of shape (), on the device: float(loss) waits for it
    grad: Array  # dL/dtheta, before clipping


def start(params: Tree) -> State:
    """The state before the first step, with a copy of these parameters."""
    theta, params = pack(params)
    ema = theta.copy()
    return State(theta, ema, theta * 0, theta * 0, params, unflatten(ema, params))


def gradient(
    net: Any,
    params: Tree,
    x_0: Array,
    t: np.ndarray,
    eps: Array,
    schedule: Schedule,
    predict: str = "eps",
    weight: str = "eps",
    **inputs: Any,
) -> tuple[Array, Array]:
    """L_simple on a batch and dL/dtheta, of shape (P,): noise the data, let the network guess the noise, go back through it.

    `inputs` are further arguments of net.forward, such as label.
    """
    x_t = q_sample(x_0, t, eps, schedule)
    x, level = network_input(x_t, t, schedule)
    out, cache = net.forward(params, x, level, **inputs)
    loss, grad_out = l_simple(out, x_0, t, eps, schedule, predict, weight)
    _, grads = net.backward(params, cache, grad_out)
    return loss, flatten(grads)


def update(state: State, grad: Array, steps: int, lr: float, hold: float, clip: float, beta_2: float, ema_decay: float) -> None:
    """Step state.step + 1 of `steps`, along dL/dtheta: the gradient clipped, Adam at the rate of that step, the average of theta."""
    state.step += 1
    rate = learning_rate(state.step, steps, lr, hold=hold)
    adam(state.theta, clip_norm(grad, clip), state.m, state.v, state.step, rate, beta_2=beta_2)
    average(state.ema, state.theta, state.step, ema_decay)


def uniform(batch: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """t uniform on 1..T."""
    return rng.integers(1, T + 1, size=batch)


def early(batch: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """t = ceil(T u^2), u uniform on (0, 1]: P(t <= k) = sqrt(k / T), so the small t, where the bound is made, come more often.

    No weight takes that back: it is L_simple with t weighed by its probability, about 1 / (2 sqrt(t T)).
    """
    return np.ceil(T * (1 - rng.random(batch)) ** 2).astype(np.int64)


def train(
    net: Any,
    state: State,
    sample: Callable[[int, np.random.Generator], Any],
    schedule: Schedule,
    rng: np.random.Generator,
    steps: int,
    batch: int = 512,
    predict: str = "eps",
    weight: str = "eps",
    lr: float = 1e-3,
    clip: float = 1.0,
    beta_2: float = 0.999,
    ema_decay: float = 0.999,
    hold: float = 0.0,
    draw_t: Callable[[int, int, np.random.Generator], np.ndarray] = uniform,
    gradient: Callable[..., tuple[Array, Array]] = gradient,
) -> Iterator[TrainStep]:
    """Algorithm 1, Ho et al. 2020, arXiv:2006.11239, from state.step + 1 to `steps`; `state` is changed in place.

    Parameters
    ----------
    net : a module with forward and backward, such as npdiff.nn.mlp
    sample : sample(batch, rng) -> x_0, of shape (batch, ...), or x_0 and a dict of further arguments of net.forward
    rng : draws the data, t and eps
    predict, weight : see `loss.l_simple`
    lr, hold : the peak of `optim.learning_rate`, and the share of the steps that it is held for
    clip : the largest norm of the gradient
    beta_2 : of Adam
    draw_t : draw_t(batch, T, rng) -> t
    gradient : how loss and dL/dtheta are found: `gradient` above, or something faster that agrees with it
    """
    while state.step < steps:
        drawn = sample(batch, rng)
        x_0, inputs = drawn if isinstance(drawn, tuple) else (drawn, {})
        x_0 = get_array_module(state.theta).asarray(x_0)
        t = draw_t(batch, schedule.T, rng)
        eps = standard_normal(rng, x_0.shape, like=x_0)

        loss, grad = gradient(net, state.params, x_0, t, eps, schedule, predict, weight, **inputs)

        update(state, grad, steps, lr, hold, clip, beta_2, ema_decay)
        yield TrainStep(state.step, x_0, t, eps, loss, grad)
