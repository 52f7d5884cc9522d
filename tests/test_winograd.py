"""Winograd's convolution is the plain one, with the rounding that its file states."""

import numpy as np
import pytest
from conftest import EPS, dtypes, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff.fast import winograd
from npdiff.gradcheck import check_pair
from npdiff.nn import conv

sizes = st.integers(1, 13)


# With all matrices absolute, |x| and |w| give how far rounding is magnified.
ABSOLUTE = {m: tuple(abs(a) for a in matrices) for m, matrices in winograd.MATRICES.items()}


def arrays(seed, batch, height, width, inputs, outputs, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = {
        "x": (batch, height, width, inputs),
        "w": (3, 3, inputs, outputs),
        "b": (outputs,),
        "grad_y": (batch, height, width, outputs),
    }
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def both_ways(module, a, matrices=winograd.MATRICES):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "MATRICES", matrices)
        y, cache = module.conv2d_forward(a["x"], a["w"], a["b"])
        grad_x, grads = module.conv2d_backward(a["grad_y"], cache)
    return {"y": y, "grad_x": grad_x, **grads}


@pytest.mark.parametrize("m", winograd.MATRICES)
def test_in_one_dimension_it_is_the_sum_that_defines_it(m):
    # y_i = sum over k of d_{i+k} w_k is bilinear: the identity holds for all d and w once it holds
    # for the unit vectors.
    a_t, g, b_t = winograd.MATRICES[m]
    assert a_t.shape == (m, m + 2) and g.shape == (m + 2, 3) and b_t.shape == (m + 2, m + 2)
    for d in np.eye(m + 2):
        for w in np.eye(3):
            y = a_t @ ((g @ w) * (b_t @ d))
            definition = [sum(d[i + k] * w[k] for k in range(3)) for i in range(m)]
            magnified = abs(a_t) @ (abs(g @ w) * abs(b_t @ d))
            assert (abs(y - definition) <= 4 * m * EPS * magnified).all()


@pytest.mark.parametrize("m", winograd.MATRICES)
def test_a_row_of_b_is_a_polynomial_that_is_0_at_all_points_but_its_own(m):
    points = np.array([0, *winograd.POINTS[m], *(-p for p in winograd.POINTS[m])])
    a_t, _, b_t = winograd.MATRICES[m]
    np.testing.assert_array_equal(a_t[1], points)
    at_points = np.vander(points, m + 2, increasing=True) @ b_t.T
    np.testing.assert_allclose(at_points - np.diag(np.diag(at_points)), 0, atol=1e-10)


@pytest.mark.parametrize("size, m", [(14, 7), (7, 7), (5, 5), (8, 5), (15, 5), (16, 7), (20, 7)])
def test_the_tile_is_the_one_with_fewest_products(size, m):
    assert winograd.tile(size, size) == m


@given(seeds, st.integers(1, 3), sizes, sizes, st.integers(1, 4), st.integers(1, 4), dtypes)
def test_it_agrees_with_the_plain_convolution_in_value_and_gradients(
    seed, batch, height, width, inputs, outputs, dtype
):
    a = arrays(seed, batch, height, width, inputs, outputs, dtype)
    plain, found = both_ways(conv, a), both_ways(winograd, a)
    magnified = both_ways(winograd, {name: abs(value) for name, value in a.items()}, ABSOLUTE)
    for name in plain:
        assert found[name].shape == plain[name].shape and found[name].dtype == dtype
        # Each number is a chain of sums: of 9 terms twice, over channels, images and tiles, and of
        # 9 terms twice.
        roundings = 36 + inputs + outputs + batch * (height + 1) * (width + 1)
        bound = roundings * np.finfo(dtype).eps * magnified[name]
        assert (abs(found[name] - plain[name]) <= bound).all(), name


@pytest.mark.parametrize("size, error", [(5, 2e-6), (7, 1e-5), (14, 1e-5)])
def test_rounding_is_what_the_file_says(size, error):
    a = arrays(0, 16, size, size, 32, 32, np.float32)
    exact = both_ways(conv, {name: value.astype(np.float64) for name, value in a.items()})
    for name, found in both_ways(winograd, a).items():
        assert np.sqrt(((found - exact[name]) ** 2).mean()) < error * exact[name].std(), name


@given(seeds, st.integers(1, 2), st.integers(1, 6), st.integers(1, 6))
def test_its_gradients(seed, batch, height, width):
    a, rng = arrays(seed, batch, height, width, 2, 3), np.random.default_rng(seed)
    pair = winograd.conv2d_forward, winograd.conv2d_backward
    errors = check_pair(*pair, a["x"], rng, w=a["w"], b=a["b"])
    assert max(errors.values()) < 1e-5
