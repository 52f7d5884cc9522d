"""The fast operations give what npdiff/nn/conv.py gives, whatever the order of x in memory, and hand their own order on."""

from functools import partial

import numpy as np
import pytest
from conftest import EPS, EPS_32, normal_values, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff.kit.gradcheck import check_pair
from npdiff.nn import conv, fast, layout

sizes = st.integers(1, 8)
ORDERS = [(0, 1, 2, 3), (1, 2, 0, 3), (3, 2, 1, 0)]


@pytest.fixture(autouse=True)
def convolutions_of_the_workers(monkeypatch):
    monkeypatch.setattr(conv, "convolve", fast.convolve)
    monkeypatch.setattr(conv, "pixel_sum", layout.pixel_sum)


def in_order(x, order):
    """x, its memory in another order of its axes."""
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


def has_the_order_of_the_file(x):
    return x.size == 0 or np.shares_memory(layout.pixels_first(x), x)


def plainly(pair, x, grad_y, *params, **how):
    """y, grad_x and the parameters' gradients of an op of npdiff/nn/conv.py, as it is written there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "convolve", fast.plain_convolve)
        patch.setattr(conv, "pixel_sum", lambda x: x.sum(axis=(1, 2)))
        return both_ways(conv, pair, x, grad_y, *params, **how)


def both_ways(module, pair, x, grad_y, *params, **how):
    y, cache = getattr(module, f"{pair}_forward")(x, *params, **how)
    grad_x, grads = getattr(module, f"{pair}_backward")(grad_y, cache)
    return {"y": y, "grad_x": grad_x, **grads}


def assert_same(fast_ones, plain_ones, tolerance):
    assert fast_ones.keys() == plain_ones.keys()
    for name, plain in plain_ones.items():
        assert fast_ones[name].shape == plain.shape and fast_ones[name].dtype == plain.dtype, name
        assert np.linalg.norm(fast_ones[name] - plain) <= tolerance * max(1.0, np.linalg.norm(plain)), name


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (1, 1), (1, 2), (5, 1)])
@given(seeds, st.integers(1, 3), sizes, sizes, st.sampled_from([2, 16, 17]), st.sampled_from([3, 16]), st.sampled_from(ORDERS))
def test_convolutions(kernel, stride, seed, batch, height, width, inputs, outputs, order):
    x, w, b = (
        normal_values(seed, batch, height, width, inputs),
        normal_values(seed, kernel, kernel, inputs, outputs),
        normal_values(1, outputs),
    )
    grad_y = normal_values(seed, batch, -(-height // stride), -(-width // stride), outputs)
    for dtype, tolerance in [(np.float64, 1e5 * EPS), (np.float32, 1e3 * EPS_32)]:
        a = [array.astype(dtype) for array in (in_order(x, order), in_order(grad_y, order), w, b)]
        found = both_ways(fast, "conv2d", *a, stride=stride)
        assert_same(found, plainly("conv2d", *a, stride=stride), tolerance)
        if kernel == 3 and min(inputs, outputs) >= fast.FEW:
            assert has_the_order_of_the_file(found["y"]) and has_the_order_of_the_file(found["grad_x"] * 1)


@pytest.mark.parametrize("inputs, outputs", [(2, 3), (16, 2), (2, 16), (16, 16)])
def test_gradients_of_convolutions(inputs, outputs):
    w, b = normal_values(1, 3, 3, inputs, outputs), normal_values(2, outputs)
    errors = check_pair(fast.conv2d_forward, fast.conv2d_backward, normal_values(0, 2, 5, 7, inputs), np.random.default_rng(0), w=w, b=b)
    assert max(errors.values()) < 1e-5, errors


@given(seeds, st.integers(1, 3), sizes, sizes, st.sampled_from([1, 2, 4]), st.integers(1, 3), st.sampled_from(ORDERS))
def test_group_norm(seed, batch, height, width, groups, per_group, order):
    x, grad_y = (in_order(normal_values(seed + i, batch, height, width, groups * per_group), order) for i in (0, 1))
    gain, bias = normal_values(seed, 2, groups * per_group)
    how = {"groups": groups, "eps": 0.1}  # a group may be a single number, whose gradient eps alone decides
    found = both_ways(layout, "group_norm", x, grad_y, gain, bias, **how)
    assert_same(found, plainly("group_norm", x, grad_y, gain, bias, **how), 1e3 * EPS)
    forward = partial(layout.group_norm_forward, **how)
    if height * width * per_group > 1:
        errors = check_pair(forward, layout.group_norm_backward, x, np.random.default_rng(seed), gain=gain, bias=bias)
        assert max(errors.values()) < 1e-5, errors


@given(seeds, st.floats(-1e6, 1e6), st.sampled_from([np.float32, np.float64]))
def test_group_norm_of_a_constant_is_the_bias(seed, constant, dtype):
    gain, bias = normal_values(seed, 2, 12, dtype=dtype)
    y, cache = layout.group_norm_forward(np.full((2, 7, 7, 12), constant, dtype), gain, bias, groups=4)
    np.testing.assert_allclose(y, np.broadcast_to(bias, y.shape), atol=1e-3 if dtype == np.float32 else 1e-11)
    assert np.isfinite(layout.group_norm_backward(normal_values(seed, 2, 7, 7, 12, dtype=dtype), cache)[0]).all()


@given(seeds, st.integers(1, 3), sizes, sizes, sizes, st.sampled_from(ORDERS))
def test_sums_over_pixels(seed, batch, height, width, channels, order):
    x, y = (in_order(normal_values(seed + i, batch, height, width, channels), order) for i in (0, 1))
    np.testing.assert_allclose(layout.pixel_sum(x), x.sum(axis=(1, 2)), atol=1e3 * EPS)
    np.testing.assert_allclose(layout.pixel_product(x, y), (x * y).sum(axis=(1, 2)), atol=1e3 * EPS)


def test_numpy_hands_the_order_on():
    x = in_order(normal_values(0, 3, 4, 5, 8), (1, 2, 0, 3))
    assert np.array_equal(layout.batch_first(layout.pixels_first(x), 3), x)
    for y in (x + 1, x * x[:, :1, :1], np.tanh(x), x + in_order(x, (1, 2, 0, 3)), np.concatenate([x, x], axis=3), x[..., :4] * 2):
        assert has_the_order_of_the_file(y)


def test_a_forward_pass_keeps_for_the_backward_pass_what_is_asked_for(monkeypatch):
    forward = fast.cached(conv.conv2d_forward)
    x, w, b = normal_values(0, 1, 4, 4, 2), normal_values(1, 3, 3, 2, 3), normal_values(2, 3)
    assert forward(x, w, b)[1] is not None
    monkeypatch.setattr(fast, "backward_follows", False)
    y, cache = forward(x, w, b)
    assert cache is None and np.array_equal(y, conv.conv2d_forward(x, w, b)[0])


def test_what_rounding_left_in_the_mean_is_taken_out():
    # A constant of 1/3e-8: the first mean is off by the last digit, some 4, and eps alone stands against it.
    x, gain, bias = np.full((1, 6, 5, 12), np.float32(1e8 / 3)), *normal_values(0, 2, 12, dtype=np.float32)
    grad_y = normal_values(1, 1, 6, 5, 12, dtype=np.float32)
    found, plain = (both_ways(of, "group_norm", x, grad_y, gain, bias, groups=2) for of in (layout, conv))
    _, (_, rest, rstd, _, _) = layout.group_norm_forward(x, gain, bias, groups=2)
    assert abs(rest).max() > 0.1 and rstd.max() > 100
    np.testing.assert_allclose(found["gain"], plain["gain"], atol=1e-2)


def test_what_rounding_left_in_the_mean_counts_in_the_gradient_too():
    # Numbers near 1e8/3 differ by 2 at least: these by a few such steps, so that what is left in the mean is a good part of their spread.
    rng = np.random.default_rng(0)
    x = np.float32(1e8 / 3) + 4 * rng.integers(0, 3, size=(1, 6, 5, 12)).astype(np.float32)
    gain, bias = normal_values(0, 2, 12, dtype=np.float32)
    _, cache = layout.group_norm_forward(x, gain, bias, groups=2)
    n, rest, _, _, _ = cache
    assert abs(rest).max() > 0.1
    grad_y = n + normal_values(1, 1, 6, 5, 12, dtype=np.float32)  # so that the mean of g n is not small
    exact = both_ways(conv, "group_norm", x.astype(np.float64), grad_y.astype(np.float64), gain, bias, groups=2)["grad_x"]
    found, _ = layout.group_norm_backward(grad_y, cache)
    assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact)
