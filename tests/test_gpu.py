"""On a GPU: CuPy's numbers are NumPy's, and a training step never waits for the device.

Fused kernels give what the plain formulas give.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import cupy_or_skip

from npdiff import exact, optim, reverse, sampler, schedule, train
from npdiff.backend import Array, get_array_module, standard_normal, to_numpy
from npdiff.nn import conv, mlp, ops
from npdiff.nn.params import map_leaves, pack

cupy = cupy_or_skip()

from npdiff.fast import engine, fused  # noqa: E402 (this imports CuPy)

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::ResourceWarning")]
SCHEDULE = schedule.cosine(T=20)
ROLL = exact.SwissRoll()
# float32 rounds at 6e-8. Sums of 32 stay far below this, and so do three steps of Adam, whose
# division magnifies small gradients.
PARITY = 1e-4


def values(seed: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def start(xp: Any, predict: str = "v") -> train.State:
    """A small network, without the zeros that training starts from."""
    theta, tree = pack(mlp.init(np.random.default_rng(0), hidden=16, layers=2))
    theta += 0.1 * values(1, theta.size)
    return train.start(map_leaves(xp.asarray, tree), predict)


def training(
    state: train.State,
    steps: int,
    data: exact.Mixture = ROLL,
    lr: float = 0.1,
    net: Any = mlp,
    update: Any = train.update,
) -> Iterator[train.TrainStep]:
    update, rng = partial(update, lr=lr), np.random.default_rng(2)
    return train.train(net, state, data.sample, SCHEDULE, rng, steps, batch=32, update=update)


def relative(a: Array, b: Array) -> float:
    """|a - b| / |b| in the Euclidean norm."""
    a, b = to_numpy(a), to_numpy(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_array_decides():
    x = cupy.asarray(values(0, 3))
    assert get_array_module(x) is cupy and isinstance(to_numpy(x), np.ndarray)
    z = standard_normal(np.random.default_rng(0), (2, 3), like=x)
    on_host = np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32)
    np.testing.assert_array_equal(to_numpy(z), on_host)


@pytest.mark.parametrize("fast", [False, True])
def test_training_steps_are_numpys(fast):
    on_host, on_device = start(np), start(cupy)
    theta_0 = on_host.theta.copy()
    net, _, update = engine(mlp, cupy) if fast else (mlp, mlp, train.update)
    steps = zip(training(on_device, 3, net=net, update=update), training(on_host, 3), strict=True)
    for a, b in steps:
        assert isinstance(a.loss, cupy.ndarray)
        assert a.loss.dtype == a.grad.dtype == on_device.theta.dtype == "float32"
        assert abs(float(a.loss) / float(b.loss) - 1) < PARITY
        assert relative(a.losses, b.losses) < PARITY
        assert relative(a.grad, b.grad) < PARITY
    assert relative(to_numpy(on_device.theta) - theta_0, on_host.theta - theta_0) < PARITY
    assert relative(to_numpy(on_device.ema) - theta_0, on_host.ema - theta_0) < PARITY


@pytest.mark.parametrize("predictor", ["network", "exact"])
def test_samples_are_numpys(predictor):
    x_0 = []
    for xp in np, cupy:
        predict_eps = ROLL.predictor(SCHEDULE)
        if predictor == "network":
            predict_eps = reverse.predictor(mlp, start(xp), SCHEDULE)
        x_T, rng = xp.asarray(values(3, 4, 2)), np.random.default_rng(4)
        *_, step = sampler.ddim(predict_eps, x_T, SCHEDULE, steps=5, eta=0.5, rng=rng)
        x_0.append(step.x_prev)
    assert x_0[1].dtype == "float32" and relative(x_0[1], x_0[0]) < PARITY


# A fused kernel may contract a product and a sum into one rounding, so its last bits may differ.
FUSED = 1e-6


def test_a_fused_formula_gives_what_the_plain_one_gives():
    x, grad_y = (cupy.asarray(4 * values(seed, 2, 5, 7, 3)) for seed in range(2))
    scale, shift = (cupy.asarray(values(seed, 2, 3)) for seed in (2, 3))
    (y, cache), (plain_y, plain_cache) = (of.silu_forward(x) for of in (fused, ops))
    grad_x, _ = fused.silu_backward(grad_y, cache)
    plain_grad_x, _ = ops.silu_backward(grad_y, plain_cache)
    z, plain_z = (of.scale_shift_forward(x, scale, shift)[0] for of in (fused, conv))
    for a, b in (y, plain_y), (grad_x, plain_grad_x), (z, plain_z):
        assert a.dtype == "float32" and relative(a, b) < FUSED


def test_the_fused_adam_changes_theta_m_and_v_in_place():
    results = []
    for adam in fused.adam, optim.adam:
        theta, grad, m, v = (cupy.asarray(values(seed, 9)) for seed in range(4))
        v *= v
        for step in range(1, 4):
            adam(theta, grad, m, v, step, lr=0.01)
        results.append([theta, m, v])
    for a, b, before in zip(*results, [0, 2, 3], strict=True):
        assert a.dtype == "float32" and relative(a, b) < FUSED
        assert relative(a, values(before, 9)) > FUSED


@pytest.mark.parametrize("fast", [False, True])
def test_a_training_step_does_not_wait_for_the_device(fast):
    """While a long kernel keeps the device busy, the host runs through three steps.

    At their end the device is still busy.
    """
    loop = "for (long long i = 0; i < n; ++i) y = y * 1664525u + 1013904223u"
    long_kernel = cupy.ElementwiseKernel("int64 n", "uint32 y", loop, "long_kernel")
    net, _, update = engine(mlp, cupy) if fast else (mlp, mlp, train.update)
    steps, y = training(start(cupy), 9, net=net, update=update), cupy.zeros(1, cupy.uint32)
    busy, stream = cupy.cuda.Event(), cupy.cuda.get_current_stream()
    # The first two rounds compile the kernels and fill the pools of memory; the last one counts.
    for _ in range(3):
        long_kernel(300_000_000, y)
        busy.record()
        began = time.perf_counter()
        for _ in range(3):
            next(steps)
        took, still_busy = time.perf_counter() - began, not busy.done
        stream.synchronize()
        if not busy.done:
            pytest.skip("this device does not tell when it is done, so it shows no wait")
    assert still_busy, f"three steps took {took:.3f} s, to the end of a kernel of about a second"


def test_the_loss_falls_in_200_steps():
    nearly_a_point = exact.Gaussian([1.0, -1.0], 0.01 * np.eye(2))
    losses = [step.loss for step in training(start(cupy), 200, nearly_a_point, lr=0.01)]
    first, middle, last = (float(sum(losses[i : i + 20])) for i in (0, 90, 180))
    assert last < middle < first / 2


MISTAKES = {
    "a host array in a sum": lambda x: x + np.ones(3, np.float32),
    "a silent copy to the host": np.asarray,
    "a sum with where": lambda x: x.sum(where=x > 0),
    "a maximum with initial": lambda x: x.max(initial=0.0),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_cupy_refuses_what_the_strict_array_refuses(mistake):
    with pytest.raises(TypeError):
        MISTAKES[mistake](cupy.asarray(values(0, 3)))
