"""On a GPU: CuPy's numbers are NumPy's, fused kernels give what the plain formulas give, and a training step never waits for the device."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import cupy_or_skip

from npdiff import exact, fuse, optim, reverse, sampler, schedule, train
from npdiff.backend import Array, get_array_module, standard_normal, to_numpy
from npdiff.nn import mlp, ops
from npdiff.nn.params import map_leaves, pack

cupy = cupy_or_skip()

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::ResourceWarning")]
SCHEDULE = schedule.cosine(T=20)
ROLL = exact.SwissRoll()
PARITY = 1e-4  # float32 rounds at 6e-8; sums of 32 and three steps of Adam, whose division enlarges small gradients, stay far below


def values(seed: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def start(xp: Any) -> train.State:
    """A small network, without the zeros that training starts from."""
    theta, tree = pack(mlp.init(np.random.default_rng(0), hidden=16, layers=2))
    theta += 0.1 * values(1, theta.size)
    return train.start(map_leaves(xp.asarray, tree))


def training(state: train.State, steps: int, data: exact.Mixture = ROLL, lr: float = 0.1) -> Iterator[train.TrainStep]:
    return train.train(mlp, state, data.sample, SCHEDULE, np.random.default_rng(2), steps, batch=32, predict="v", lr=lr)


def relative(a: Array, b: Array) -> float:
    """|a - b| / |b| in the Euclidean norm."""
    a, b = to_numpy(a), to_numpy(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_the_array_decides():
    x = cupy.asarray(values(0, 3))
    assert get_array_module(x) is cupy and isinstance(to_numpy(x), np.ndarray)
    z = standard_normal(np.random.default_rng(0), (2, 3), like=x)
    np.testing.assert_array_equal(to_numpy(z), np.random.default_rng(0).standard_normal((2, 3), dtype=np.float32))


def test_training_steps_are_numpys():
    on_host, on_device = start(np), start(cupy)
    theta_0 = on_host.theta.copy()
    for a, b in zip(training(on_device, 3), training(on_host, 3), strict=True):
        assert isinstance(a.loss, cupy.ndarray) and a.loss.dtype == a.grad.dtype == on_device.theta.dtype == "float32"
        assert abs(float(a.loss) / float(b.loss) - 1) < PARITY
        assert relative(a.grad, b.grad) < PARITY
    assert relative(to_numpy(on_device.theta) - theta_0, on_host.theta - theta_0) < PARITY
    assert relative(to_numpy(on_device.ema) - theta_0, on_host.ema - theta_0) < PARITY


@pytest.mark.parametrize("predictor", ["network", "exact"])
def test_samples_are_numpys(predictor):
    x_0 = []
    for xp in np, cupy:
        predict_eps = reverse.predictor(mlp, start(xp).params, SCHEDULE, "v") if predictor == "network" else ROLL.predictor(SCHEDULE)
        *_, step = sampler.ddim(predict_eps, xp.asarray(values(3, 4, 2)), SCHEDULE, steps=5, eta=0.5, rng=np.random.default_rng(4))
        x_0.append(step.x_prev)
    assert x_0[1].dtype == "float32" and relative(x_0[1], x_0[0]) < PARITY


# A fused kernel may contract a product and a sum into one rounding, so its last bits may differ.
FUSED = 1e-6


@pytest.mark.skipif(not fuse.FUSE, reason="NPDIFF_FUSE=0")
def test_a_fused_formula_gives_what_the_plain_one_gives():
    x, y, sigmoid = (cupy.asarray(4 * values(seed, 5, 7)) for seed in range(3))
    for f, arrays in (ops._silu, [x]), (ops._silu_gradient, [x, y, sigmoid]):
        fused, plain = f(*arrays), f.__wrapped__(*arrays)
        for a, b in zip(fused if isinstance(fused, tuple) else [fused], plain if isinstance(plain, tuple) else [plain], strict=True):
            assert a.dtype == "float32" and relative(a, b) < FUSED


@pytest.mark.skipif(not fuse.FUSE, reason="NPDIFF_FUSE=0")
def test_adam_is_one_kernel_that_changes_theta_m_and_v_in_place(monkeypatch):
    results = []
    for adam in optim._adam, optim._adam.__wrapped__:
        monkeypatch.setattr(optim, "_adam", adam)
        theta, grad, m, v = (cupy.asarray(values(seed, 9)) for seed in range(4))
        v *= v
        for step in range(1, 4):
            optim.adam(theta, grad, m, v, step, lr=0.01)
        results.append([theta, m, v])
    for a, b, before in zip(*results, [0, 2, 3], strict=True):
        assert a.dtype == "float32" and relative(a, b) < FUSED
        assert relative(a, values(before, 9)) > FUSED


def test_a_training_step_does_not_wait_for_the_device():
    """While one long kernel keeps the device busy the host runs through three steps, and finds it still busy."""
    loop = "for (long long i = 0; i < n; ++i) y = y * 1664525u + 1013904223u"
    long_kernel = cupy.ElementwiseKernel("int64 n", "uint32 y", loop, "long_kernel")
    steps, y, busy, stream = training(start(cupy), 9), cupy.zeros(1, cupy.uint32), cupy.cuda.Event(), cupy.cuda.get_current_stream()
    for _ in range(3):  # the first two rounds compile the kernels and fill the pools of memory; the last one counts
        long_kernel(300_000_000, y)
        busy.record()
        began = time.perf_counter()
        for _ in range(3):
            next(steps)
        took, still_busy = time.perf_counter() - began, not busy.done
        stream.synchronize()
        if not busy.done:
            pytest.skip("this device does not tell when it is done, so it shows no wait")
    assert still_busy, f"three steps took {took:.3f} s, to the end of a kernel that runs for about a second"


def test_the_loss_falls_in_200_steps():
    nearly_a_point = exact.Gaussian([1.0, -1.0], 0.01 * np.eye(2))
    losses = [step.loss for step in training(start(cupy), 200, nearly_a_point, lr=0.01)]
    first, middle, last = (float(sum(losses[i : i + 20])) for i in (0, 90, 180))
    assert last < middle < first / 2


@pytest.mark.parametrize(
    "mistake", [lambda x: x + np.ones(3, np.float32), np.asarray, lambda x: x.sum(where=x > 0), lambda x: x.max(initial=0.0)]
)
def test_cupy_refuses_what_the_strict_array_refuses(mistake):
    with pytest.raises(TypeError):
        mistake(cupy.asarray(values(0, 3)))
