import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from _digits import in_pieces
from npdiff.kit.parallel import Workers, cut, keep_freed_memory
from npdiff.nn import conv, mlp, unet
from npdiff.nn.params import flatten, unflatten
from npdiff.reverse import predictor
from npdiff.schedule import cosine
from npdiff.train import gradient, start, train

CHAIN = cosine(50)


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    params = unet.init(rng, width=16)
    params = unflatten(flatten(params) + 0.1 * rng.standard_normal(flatten(params).size, dtype=np.float32), params)
    x_0, eps = rng.standard_normal((2, n, 8, 8, 1), dtype=np.float32)
    return params, x_0, rng.integers(1, 51, size=n), eps, rng.integers(0, 11, size=n)


@pytest.fixture(scope="module")
def two():
    workers = Workers(2, 4)
    yield workers
    workers.stop()


def test_any_number_of_workers_gives_the_same_gradient_to_the_bit_and_the_plain_one_to_rounding(two):
    params, x_0, t, eps, label = batch(11)
    plain_loss, plain = gradient(unet, params, x_0, t, eps, CHAIN, "v", "target", label=label)
    results = [
        workers.gradient(unet, params, x_0, t, eps, CHAIN, "v", "target", label=label) for workers in (Workers(1, 4), two, Workers(3, 4))
    ]
    for loss, grad in results:
        assert loss == results[0][0] and np.array_equal(grad, results[0][1]) and grad.dtype == loss.dtype == np.float32
    assert np.isclose(results[0][0], plain_loss, rtol=1e-5)
    assert np.linalg.norm(results[0][1] - plain) < 1e-5 * np.linalg.norm(plain)


def test_the_plain_convolutions_stay_where_a_reader_steps_through():
    assert unet.conv2d_forward is conv.conv2d_forward and unet.conv2d_backward is conv.conv2d_backward


def test_workers_see_what_changes_theta(two):
    params, x_0, t, eps, label = batch(6)
    before = two.gradient(unet, params, x_0, t, eps, CHAIN, label=label)
    params["last"]["b"] += 1
    after = two.gradient(unet, params, x_0, t, eps, CHAIN, label=label)
    assert after[0] != before[0]
    assert np.isclose(after[0], gradient(unet, params, x_0, t, eps, CHAIN, label=label)[0], rtol=1e-5)


def test_float64_stays_float64(two):
    params, x_0, t, eps, label = batch(6)
    params = unflatten(flatten(params).astype(np.float64), params)
    loss, grad = two.gradient(unet, params, x_0.astype(np.float64), t, eps.astype(np.float64), CHAIN, label=label)
    plain_loss, plain = gradient(unet, params, x_0.astype(np.float64), t, eps.astype(np.float64), CHAIN, label=label)
    assert grad.dtype == np.float64 and np.linalg.norm(grad - plain) < 1e-12 * np.linalg.norm(plain)


def test_a_forward_pass_is_shared_row_by_row(two):
    params, x, _, _, label = batch(7)
    level = np.linspace(-2, 2, 7, dtype=np.float32)
    for told in None, label:
        out, cache = two.forward(unet).forward(params, x, level, told)
        assert cache is None
        np.testing.assert_allclose(out, unet.forward(params, x, level, told)[0], atol=1e-4)
        np.testing.assert_array_equal(out, two.forward(unet).forward(params, x, level, label=told)[0])


def test_who_only_goes_forward_keeps_nothing_and_the_next_gradient_is_the_same(two):
    params, x_0, t, eps, label = batch(6)
    before = two.gradient(unet, params, x_0, t, eps, CHAIN, label=label)
    two.predictor(unet, params, CHAIN, label=label)(x_0, t)
    after = two.gradient(unet, params, x_0, t, eps, CHAIN, label=label)
    assert before[0] == after[0] and np.array_equal(before[1], after[1])


def test_a_predictor_in_pieces_gives_each_row_its_own_t_and_label(two):
    params, x_t, t, _, label = batch(11)
    whole = predictor(unet, params, CHAIN, "v", guidance=0.5, label=label)
    make = lambda label: predictor(unet, params, CHAIN, "v", guidance=0.5, label=label)  # noqa: E731
    for predict_eps in (two.predictor(unet, params, CHAIN, "v", guidance=0.5, label=label), in_pieces(make, 3, label=label)):
        for time_ in (t, 20):
            assert np.allclose(predict_eps(x_t, time_), whole(x_t, time_), rtol=1e-3, atol=1e-4)


def test_a_network_without_inputs_runs_in_pieces_too(two):
    params = mlp.init(np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((10, 2), dtype=np.float32)
    assert np.array_equal(two.predictor(mlp, params, CHAIN)(x, 3), np.zeros_like(x))
    assert np.array_equal(in_pieces(lambda: predictor(mlp, params, CHAIN), 4)(x, 3), np.zeros_like(x))


def test_the_pieces_are_every_row_once_whatever_the_size():
    rows = np.arange(10)
    for size in (1, 3, 5, 10, 64):
        pieces = [rows[piece] for piece in cut(10, size)]
        assert np.array_equal(np.concatenate(pieces), rows) and max(map(len, pieces)) == min(size, 10)


def test_training_in_pieces_gives_the_same_theta_for_any_number_of_workers(two):
    def trained(workers):
        rng = np.random.default_rng(3)
        state = start(mlp.init(rng))
        sample = lambda n, rng: rng.standard_normal((n, 2), dtype=np.float32)  # noqa: E731
        losses = [step.loss for step in train(mlp, state, sample, CHAIN, rng, 4, batch=10, gradient=workers.gradient)]
        return losses, state.theta

    losses, theta = trained(Workers(1, 4))
    assert trained(two)[0] == losses and np.array_equal(trained(two)[1], theta)


def test_an_error_in_a_piece_reaches_the_caller_and_the_next_call_works(two):
    params, x_0, t, eps, label = batch(6)
    right = two.gradient(unet, params, x_0, t, eps, CHAIN, label=label)
    wrong = label.copy()
    wrong[5] = 11
    with pytest.raises(ValueError, match="label"):
        two.gradient(unet, params, x_0, t, eps, CHAIN, label=wrong)
    assert two.gradient(unet, params, x_0, t, eps, CHAIN, label=label)[0] == right[0]


SCRIPT = """
    import os, sys, time
    import numpy as np
    from npdiff.kit.parallel import Workers
    from npdiff.nn import mlp
    from npdiff.schedule import cosine
    if __name__ == "__main__":
        workers = Workers(2, 4)
        predict_eps = workers.predictor(mlp, mlp.init(np.random.default_rng(0)), cosine(10))
        predict_eps(np.zeros((8, 2), np.float32), 3)
        import multiprocessing
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them_and_say_nothing(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
    ) as run:
        workers = [int(pid) for pid in run.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
        os.killpg(run.pid, how) if how == signal.SIGINT else os.kill(run.pid, how)  # Ctrl-C goes to all processes, a kill to one
        said = run.communicate(timeout=20)[1].decode()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers)) and said.count("Traceback") == (how == signal.SIGINT), said  # the script's own KeyboardInterrupt


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_kept_memory_is_not_cleared_by_the_kernel_again():
    import resource

    keep_freed_memory()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        arrays = [np.ones(1 << 20, np.uint8) for _ in range(8)]  # 2,048 pages: without it, 40,960 page faults in all
        del arrays
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 10_000
