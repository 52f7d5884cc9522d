import numpy as np
import pytest
from conftest import EPS, EPS_32, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff.kit.gradcheck import check_pair
from npdiff.nn import conv, winograd

sizes = st.integers(1, 13)
# Rounding of the transforms: their entries are at most 8 and multiply values by at most 100 or so in all (|A^T| |B^T| row sums squared).
GROWTH = 1000


@pytest.fixture(autouse=True)
def few_channels_too(monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)


def arrays(seed, batch, height, width, inputs, outputs, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = {"x": (batch, height, width, inputs), "w": (3, 3, inputs, outputs), "b": (outputs,), "grad_y": (batch, height, width, outputs)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def test_in_one_dimension_it_is_the_sum_that_it_stands_for():
    # y_i = sum over k of d_{i+k} w_k is bilinear: the identity holds for all d and w once it holds for the unit vectors, exactly.
    for d in np.eye(6):
        for w in np.eye(3):
            y = winograd.A_T @ ((winograd.G @ w) * (winograd.B_T @ d))
            np.testing.assert_allclose(y, [sum(d[i + k] * w[k] for k in range(3)) for i in range(4)], atol=8 * EPS)


@given(seeds, st.integers(1, 3), sizes, sizes, st.integers(1, 4), st.integers(1, 4), st.sampled_from([np.float32, np.float64]))
def test_it_agrees_with_the_plain_convolution_in_value_and_gradients(seed, batch, height, width, inputs, outputs, dtype):
    a = arrays(seed, batch, height, width, inputs, outputs, dtype)
    plain, plain_cache = conv.conv2d_forward(a["x"], a["w"], a["b"])
    fast, fast_cache = winograd.conv2d_forward(a["x"], a["w"], a["b"])
    plain_x, plain_grads = conv.conv2d_backward(a["grad_y"], plain_cache)
    fast_x, fast_grads = winograd.conv2d_backward(a["grad_y"], fast_cache)
    eps = EPS if dtype == np.float64 else EPS_32
    for one, other in [(fast, plain), (fast_x, plain_x), *((fast_grads[name], plain_grads[name]) for name in plain_grads)]:
        assert one.shape == other.shape and one.dtype == dtype
        assert np.linalg.norm(one - other) <= GROWTH * eps * max(1.0, np.linalg.norm(other))


@given(seeds, st.integers(1, 2), st.integers(1, 6), st.integers(1, 6))
def test_its_gradients(seed, batch, height, width):
    a = arrays(seed, batch, height, width, 2, 3)
    errors = check_pair(winograd.conv2d_forward, winograd.conv2d_backward, a["x"], np.random.default_rng(seed), w=a["w"], b=a["b"])
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 2), (1, 2)])
def test_what_it_does_not_pay_for_goes_to_the_plain_convolution(kernel, stride):
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 8, 8, 3)), rng.standard_normal((kernel, kernel, 3, 4)), rng.standard_normal(4)
    y, cache = winograd.conv2d_forward(x, w, b, stride)
    plain, plain_cache = conv.conv2d_forward(x, w, b, stride)
    assert np.array_equal(y, plain)
    assert np.array_equal(winograd.conv2d_backward(y, cache)[0], conv.conv2d_backward(y, plain_cache)[0])
