import numpy as np
import pytest
from conftest import EPS_32

from lab.pieces import InPieces
from npdiff.nn import mlp, unet
from npdiff.nn.params import flatten, unflatten
from npdiff.reverse import predictor
from npdiff.schedule import cosine

SCHEDULE = cosine(50)


class Counted:
    """A network that notes how many rows each of its forward passes had."""

    def __init__(self, net):
        self.net, self.rows = net, []

    def forward(self, params, x, level, *inputs):
        self.rows.append(len(x))
        return self.net.forward(params, x, level, *inputs)


def batch(n, seed=0):
    rng = np.random.default_rng(seed)
    params = unet.init(rng, width=16)
    theta = flatten(params)
    params = unflatten(theta + 0.1 * rng.standard_normal(theta.size, dtype=np.float32), params)
    x_t = rng.standard_normal((n, 8, 8, 1), dtype=np.float32)
    return params, x_t, rng.integers(1, 51, size=n), rng.integers(0, 11, size=n)


@pytest.mark.parametrize("rows", [1, 3, 11, 500])
@pytest.mark.parametrize("with_label", [False, True])
def test_a_forward_pass_in_pieces_is_the_whole_one(rows, with_label):
    params, x, t, label = batch(11)
    level, inputs = SCHEDULE.level[t].astype(np.float32), (label,) if with_label else ()
    counted = Counted(unet)
    out, cache = InPieces(counted, rows).forward(params, x, level, *inputs)
    whole, _ = unet.forward(params, x, level, *inputs)
    # A matrix product may sum in another order for another number of rows.
    np.testing.assert_allclose(out, whole, rtol=0, atol=1000 * EPS_32 * np.abs(whole).max())
    assert out.dtype == np.float32 and cache is None
    assert sum(counted.rows) == 11 and max(counted.rows) == min(rows, 11)


def test_a_predictor_in_pieces_gives_each_row_its_own_t_and_label():
    params, x_t, t, label = batch(11)
    in_pieces, settings = InPieces(unet, 3), dict(predict="v", guidance=0.5, label=label)
    whole = predictor(unet, params, SCHEDULE, **settings)
    parts = predictor(in_pieces, params, SCHEDULE, **settings)
    for time_ in (t, 20):
        np.testing.assert_allclose(parts(x_t, time_), whole(x_t, time_), rtol=1e-3, atol=1e-4)


def test_a_network_without_labels_runs_in_pieces_too():
    params = mlp.init(np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((10, 2), dtype=np.float32)
    assert np.array_equal(predictor(InPieces(mlp, 4), params, SCHEDULE)(x, 3), np.zeros_like(x))
