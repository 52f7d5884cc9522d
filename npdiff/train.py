"""The training loop: noise the data, predict the noise, follow the gradient.

Algorithm 1, Ho et al. 2020, arXiv:2006.11239. `train` is a generator that yields every step with
all its quantities:

    state = start(mlp.init(rng))
    for step in train(mlp, state, sample, schedule, rng, steps=10_000):
        ...
    predict_eps = predictor(mlp, state, schedule)
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npdiff.backend import Array, get_array_module, per_row, standard_normal, to_numpy
from npdiff.forward import prior_kl, q_sample
from npdiff.loss import l_simple
from npdiff.nn.params import Tree, flatten, pack, unflatten
from npdiff.optim import adam, average, clip_norm, learning_rate
from npdiff.output import check_predict, network_input
from npdiff.schedule import Schedule, unit_variance

Objective = Callable[..., tuple[Array, Array]]


@dataclass
class State:
    """All that training changes, and what the network learns to predict.

    theta, ema            the parameters as one vector, and their average over past steps
    m, v                  Adam's two moments
    params, ema_params    views of theta and ema, as a network takes them
    predict               what the network's output stands for: see `output.py`
    step                  the number of steps taken
    """

    theta: Array
    ema: Array
    m: Array
    v: Array
    params: Tree
    ema_params: Tree
    predict: str = "eps"
    step: int = 0


class TrainStep(NamedTuple):
    step: int  # 1, 2, ..., steps
    x_0: Array
    t: np.ndarray
    eps: Array
    losses: Array  # the objective of each row, (B,)
    loss: Array  # and its weighted mean, of shape (), on the device: float(loss) waits for it
    grad: Array  # dL/dtheta, before clipping


def start(params: Tree, predict: str = "eps") -> State:
    """The state before the first step of a network that will learn to `predict`.

    The parameters are copied.
    """
    check_predict(predict)
    theta, params = pack(params)
    ema = theta.copy()
    return State(theta, ema, theta * 0, theta * 0, params, unflatten(ema, params), predict)


def gradient(
    net: Any,
    params: Tree,
    x_0: Array,
    t: np.ndarray,
    eps: Array,
    schedule: Schedule,
    predict: str = "eps",
    objective: Objective = l_simple,
    weight: np.ndarray | None = None,
    network_input: Callable[..., tuple[Array, Array]] = network_input,
    **inputs: Any,
) -> tuple[Array, Array]:
    """The objective of each row, and the gradient of its weighted mean with respect to theta.

    Noise the data, predict, and go back through the network:

    L = 1/B sum over the batch of weight objective

    Parameters
    ----------
    net, params : a module such as npdiff.nn.mlp, and its parameters
    x_0, eps : arrays of shape (B, ...)
    t : ints of shape (B,)
    predict : what the network's output stands for
    objective : objective(out, x_0, t, eps, schedule, predict) -> loss (B,), grad_out: see `loss.py`
    weight : array of shape (B,) on the host, for t that were not drawn uniformly; default 1
    network_input : network_input(x_t, t, schedule) -> x, level: what the network is given
    inputs : further arguments of net.forward, such as label

    Returns
    -------
    losses : array of shape (B,)
    grad : array of shape (P,), dL/dtheta
    """
    x_t = q_sample(x_0, t, eps, schedule)
    x, level = network_input(x_t, t, schedule)
    out, cache = net.forward(params, x, level, **inputs)
    losses, grad_out = objective(out, x_0, t, eps, schedule, predict)
    share = 1 / len(x_0) if weight is None else weight / len(x_0)  # of each row in the mean
    _, grads = net.backward(params, cache, grad_out * per_row(share, grad_out))
    return losses, flatten(grads, like=params)


def update(
    state: State,
    grad: Array,
    steps: int,
    lr: float = 1e-3,
    hold: float = 0.0,
    clip: float = 1.0,
    decay_2: float = 0.999,
    ema_decay: float = 0.999,
    adam: Callable[..., None] = adam,
) -> None:
    """Take step state.step + 1 of `steps`: clip the gradient, take a step of Adam, average theta.

    Parameters
    ----------
    grad : dL/dtheta, of shape (P,)
    lr, hold : the peak of `optim.learning_rate`, and the share of the steps for which it is held
    clip : the largest norm of the gradient
    decay_2 : the decay of Adam's second moment
    ema_decay : the decay of the average of theta
    adam : the step of Adam, with the arguments of `optim.adam`
    """
    if not (lr > 0 and clip > 0):
        raise ValueError(f"lr and clip must be above 0, got {lr} and {clip}")
    state.step += 1
    rate = learning_rate(state.step, steps, lr, hold=hold)
    adam(state.theta, clip_norm(grad, clip), state.m, state.v, state.step, rate, decay_2=decay_2)
    average(state.ema, state.theta, state.step, ema_decay)


def check_data(x_0: Array, schedule: Schedule) -> None:
    """Look at the first batch: refuse data that cannot be learned, warn of a bad scale.

    The networks expect data of about unit variance. The reverse process starts from pure noise, so
    KL(q(x_T | x_0) || N(0, I)), with x_T scaled as the network sees it, should be near 0.
    """
    x = to_numpy(x_0)
    if not x.size or x.dtype.kind != "f" or not np.isfinite(x).all():
        raise ValueError(f"a batch must be finite floats, and not empty, got {x.dtype} {x.shape}")
    std = float(x.std())
    if not 0.2 < std < 5:
        warnings.warn(
            f"the data have standard deviation {std:.3g}: scale them to about 1, and samples back",
            stacklevel=3,
        )
    kl = float(prior_kl(x, unit_variance(schedule)).mean()) / x[0].size
    if kl > 0.05:
        warnings.warn(
            f"x_T still holds x_0: KL(q(x_T | x_0) || N(0, I)) is {kl:.2g} nats a coordinate, but "
            "sampling starts from pure noise; use more steps, or a schedule with less signal[T]",
            stacklevel=3,
        )


def uniform(batch: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """t uniform on 1..T, as in Algorithm 1 of Ho et al. 2020."""
    return rng.integers(1, T + 1, size=batch)


def early(batch: int, T: int, rng: np.random.Generator) -> np.ndarray:
    """t = ceil(T u^2), u uniform on (0, 1]: small t, which dominate the bound, come more often.

    P(t <= k) = sqrt(k / T). No weight undoes this, so each t counts in the objective by its
    probability, about 1 / (2 sqrt(t T)).
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
    objective: Objective = l_simple,
    draw_t: Callable[[int, int, np.random.Generator], Any] = uniform,
    update: Callable[[State, Array, int], None] = update,
) -> Iterator[TrainStep]:
    """Train the network: steps state.step + 1 to `steps`, each yielded; `state` changes in place.

    Algorithm 1, Ho et al. 2020, arXiv:2006.11239.

    Parameters
    ----------
    net : a module with forward and backward, such as npdiff.nn.mlp
    state : from `start`; it records what the network predicts
    sample : sample(batch, rng) -> x_0 of shape (batch, ...), or x_0 and a dict of further arguments
        of net.forward
    rng : draws the data, t and eps
    objective : objective(out, x_0, t, eps, schedule, predict) -> loss (B,), grad_out: see `loss.py`
    draw_t : draw_t(batch, T, rng) -> t, or t and the weight of each row
    update : update(state, grad, steps); the optimiser's settings are bound by
        partial(update, lr=...)
    """
    first = state.step + 1
    while state.step < steps:
        data = sample(batch, rng)
        x_0, inputs = data if isinstance(data, tuple) else (data, {})
        if state.step + 1 == first:
            check_data(x_0, schedule)
        x_0 = get_array_module(state.theta).asarray(x_0)
        drawn = draw_t(batch, schedule.T, rng)
        t, weight = drawn if isinstance(drawn, tuple) else (drawn, None)
        eps = standard_normal(rng, x_0.shape, like=x_0)

        losses, grad = gradient(
            net, state.params, x_0, t, eps, schedule, state.predict, objective, weight, **inputs
        )

        update(state, grad, steps)
        loss = (losses if weight is None else losses * per_row(weight, losses)).mean()
        yield TrainStep(state.step, x_0, t, eps, losses, loss, grad)
