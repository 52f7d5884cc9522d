import numpy as np

from npdiff.kit.parallel import Pieces
from npdiff.nn import mlp, unet
from npdiff.nn.params import flatten, unflatten
from npdiff.reverse import predictor
from npdiff.schedule import cosine
from npdiff.train import gradient

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
