import platform
import sys

import numpy as np
import pytest

from npdiff.kit.parallel import Pieces, keep_freed_memory
from npdiff.nn import mlp, unet
from npdiff.nn.params import flatten, unflatten
from npdiff.reverse import predictor
from npdiff.schedule import cosine
from npdiff.train import gradient, start, train

CHAIN = cosine(50)


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    params = unet.init(rng, width=8)
    params = unflatten(flatten(params) + 0.1 * rng.standard_normal(flatten(params).size, dtype=np.float32), params)
    x_0, eps = rng.standard_normal((2, n, 8, 8, 1), dtype=np.float32)
    return params, x_0, rng.integers(1, 51, size=n), eps, rng.integers(0, 11, size=n)


def test_any_number_of_threads_gives_the_same_gradient_to_the_bit_and_the_plain_one_to_rounding():
    params, x_0, t, eps, label = batch(11)
    plain_loss, plain = gradient(unet, params, x_0, t, eps, CHAIN, "v", "target", label=label)
    results = [Pieces(4, threads).gradient(unet, params, x_0, t, eps, CHAIN, "v", "target", label=label) for threads in (1, 2, 3)]
    for loss, grad in results:
        assert loss == results[0][0] and np.array_equal(grad, results[0][1]) and grad.dtype == np.float32
    assert np.isclose(results[0][0], plain_loss, rtol=1e-5)
    assert np.linalg.norm(results[0][1] - plain) < 1e-5 * np.linalg.norm(plain)


def test_a_predictor_in_pieces_gives_each_row_its_own_t_and_label():
    params, x_t, t, _, label = batch(7)
    make = lambda label: predictor(unet, params, CHAIN, "v", guidance=0.5, label=label)  # noqa: E731
    in_pieces = Pieces(3, 2).predictor(make, label=label)
    for time in (t, 20):
        assert np.allclose(in_pieces(x_t, time), make(label)(x_t, time), rtol=1e-4, atol=1e-5)


def test_a_network_without_inputs_runs_in_pieces_too():
    params = mlp.init(np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((10, 2), dtype=np.float32)
    assert np.array_equal(Pieces(4, 2).predictor(lambda: predictor(mlp, params, CHAIN))(x, 3), np.zeros_like(x))


def test_the_pieces_are_every_row_once_whatever_the_size():
    rows = np.arange(10)
    for size in (1, 3, 5, 10, 64):
        pieces = [rows[piece] for piece in Pieces(size, 1).cut(10)]
        assert np.array_equal(np.concatenate(pieces), rows) and max(map(len, pieces)) == min(size, 10)


def test_training_in_pieces_gives_the_same_theta_for_any_number_of_threads():
    def trained(threads):
        rng = np.random.default_rng(3)
        state = start(mlp.init(rng))
        sample = lambda n, rng: rng.standard_normal((n, 2), dtype=np.float32)  # noqa: E731
        losses = [step.loss for step in train(mlp, state, sample, CHAIN, rng, 4, batch=10, gradient=Pieces(4, threads).gradient)]
        return losses, state.theta

    losses, theta = trained(1)
    for threads in (2, 5):
        assert trained(threads)[0] == losses and np.array_equal(trained(threads)[1], theta)


def test_an_error_in_a_piece_reaches_the_caller():
    params, x_0, t, eps, label = batch(6)
    label[5] = 11
    with pytest.raises(ValueError, match="label"):
        Pieces(2, 2).gradient(unet, params, x_0, t, eps, CHAIN, label=label)


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_kept_memory_is_not_cleared_by_the_kernel_again():
    import resource

    keep_freed_memory()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        arrays = [np.ones(1 << 20, np.uint8) for _ in range(8)]  # 2,048 pages: without it, 40,960 page faults in all
        del arrays
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 10_000
