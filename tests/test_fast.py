"""The fast ops on NumPy give what the plain ones give, whatever the order of x in memory.

They also pass that order on. The engine's Adam is `optim.adam` to rounding.
"""

import inspect
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from conftest import EPS, EPS_32, dtypes, normal_values, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff import fast, optim, train
from npdiff.fast import im2col, layout, numpy_ops
from npdiff.fast.adam import adam
from npdiff.gradcheck import check_pair
from npdiff.nn import conv, mlp, unet

GRADIENT = 1e-5  # see test_conv.py
sizes = st.integers(1, 8)
ORDERS = [(0, 1, 2, 3), (1, 2, 0, 3), (3, 2, 1, 0)]


def in_order(x, order):
    """x, its memory in another order of its axes."""
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


def has_pixels_first(x):
    return x.size == 0 or np.shares_memory(layout.pixels_first(x), x)


def both_ways(module, pair, x, grad_y, *params, **settings):
    """y, grad_x and the gradients of the parameters."""
    y, cache = getattr(module, f"{pair}_forward")(x, *params, **settings)
    grad_x, grads = getattr(module, f"{pair}_backward")(grad_y, cache)
    return {"y": y, "grad_x": grad_x, **grads}


def assert_same(fast_ones, plain_ones, tolerance):
    assert fast_ones.keys() == plain_ones.keys()
    for name, plain in plain_ones.items():
        found = fast_ones[name]
        assert found.shape == plain.shape and found.dtype == plain.dtype, name
        assert np.linalg.norm(found - plain) <= tolerance * max(1.0, np.linalg.norm(plain)), name


def ops_of(namespace):
    return {name for name in vars(namespace) if name.endswith(("_forward", "_backward"))}


def test_the_namespace_has_every_op_of_the_plain_one_with_the_same_arguments():
    needed = ops_of(conv) | {"level_waves"}
    assert needed == ops_of(numpy_ops) | {"level_waves"}
    for name in needed:
        plain, found = (inspect.signature(getattr(ops, name)) for ops in (conv, numpy_ops))
        assert [*plain.parameters] == [*found.parameters], name


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (1, 1), (1, 2), (5, 1), (5, 2)])
@given(
    *(seeds, st.integers(1, 3), sizes, sizes),
    *(st.sampled_from([2, 16, 17]), st.sampled_from([3, 16]), st.sampled_from(ORDERS)),
)
def test_convolutions(kernel, stride, seed, batch, height, width, inputs, outputs, order):
    x = normal_values(seed, batch, height, width, inputs)
    w, b = normal_values(seed, kernel, kernel, inputs, outputs), normal_values(1, outputs)
    grad_y = normal_values(seed, batch, -(-height // stride), -(-width // stride), outputs)
    for dtype, tolerance in [(np.float64, 1e5 * EPS), (np.float32, 1e3 * EPS_32)]:
        arrays = in_order(x, order), in_order(grad_y, order), w, b
        a = [array.astype(dtype) for array in arrays]
        found = both_ways(numpy_ops, "conv2d", *a, stride=stride)
        assert_same(found, both_ways(conv, "conv2d", *a, stride=stride), tolerance)
        if numpy_ops.suits_winograd(w, stride):
            assert has_pixels_first(found["y"]) and has_pixels_first(found["grad_x"] * 1)


@given(
    seeds,
    st.integers(1, 3),
    sizes,
    sizes,
    sizes,
    sizes,
    st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 2)]),
)
def test_im2col_is_the_plain_convolution(seed, batch, height, width, inputs, outputs, shape):
    kernel, stride = shape
    x = normal_values(seed, batch, height, width, inputs)
    w = normal_values(seed + 1, kernel, kernel, inputs, outputs)
    y, cache = conv.conv2d_forward(x, w, np.zeros(outputs), stride)
    assert_same({"y": im2col.convolve(x, w, stride)}, {"y": y}, 1e3 * EPS)
    grad_y = normal_values(seed + 2, *y.shape)
    grad_x = im2col.convolve(im2col.spread(grad_y, x.shape, stride), im2col.flipped(w))
    assert_same({"x": grad_x}, {"x": conv.conv2d_backward(grad_y, cache)[0]}, 1e3 * EPS)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("inputs, outputs", [(2, 3), (16, 2), (2, 16), (16, 16)])
def test_gradients_of_convolutions(inputs, outputs, stride):
    x, w, b = (
        normal_values(0, 2, 5, 7, inputs),
        normal_values(1, 3, 3, inputs, outputs),
        normal_values(2, outputs),
    )
    forward = partial(numpy_ops.conv2d_forward, stride=stride)
    errors = check_pair(forward, numpy_ops.conv2d_backward, x, np.random.default_rng(0), w=w, b=b)
    assert max(errors.values()) < GRADIENT, errors


@given(
    *(seeds, st.integers(1, 3), sizes, sizes),
    *(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.sampled_from(ORDERS)),
)
def test_group_norm(seed, batch, height, width, groups, per_group, order):
    shape = batch, height, width, groups * per_group
    x, grad_y = (in_order(normal_values(seed + i, *shape), order) for i in (0, 1))
    gain, bias = normal_values(seed, 2, groups * per_group)
    # A group may be a single number, whose gradient `tiny` alone decides.
    settings = {"groups": groups, "tiny": 0.1}
    found, plain = (
        both_ways(ops, "group_norm", x, grad_y, gain, bias, **settings) for ops in (numpy_ops, conv)
    )
    assert_same(found, plain, 1e3 * EPS)
    if height * width * per_group > 1:
        forward, rng = partial(layout.group_norm_forward, **settings), np.random.default_rng(seed)
        errors = check_pair(forward, layout.group_norm_backward, x, rng, gain=gain, bias=bias)
        assert max(errors.values()) < GRADIENT, errors


@given(seeds, st.floats(-1e6, 1e6), dtypes)
def test_group_norm_of_a_constant_is_the_bias(seed, constant, dtype):
    gain, bias = normal_values(seed, 2, 12, dtype=dtype)
    x = np.full((2, 7, 7, 12), constant, dtype)
    y, cache = layout.group_norm_forward(x, gain, bias, groups=4)
    atol = 1e-3 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(y, np.broadcast_to(bias, y.shape), atol=atol)
    grad_x, _ = layout.group_norm_backward(normal_values(seed, 2, 7, 7, 12, dtype=dtype), cache)
    assert np.isfinite(grad_x).all()


@given(seeds, sizes, sizes, sizes)
def test_linear(seed, batch, inputs, outputs):
    x, grad_y = normal_values(seed, batch, inputs), normal_values(seed + 1, batch, outputs)
    params = normal_values(seed + 2, inputs, outputs), normal_values(seed + 3, outputs)
    found, plain = (both_ways(ops, "linear", x, grad_y, *params) for ops in (numpy_ops, conv))
    assert_same(found, plain, 1e2 * EPS)


@pytest.mark.parametrize("pair, parameters", [("scale_shift", 2), ("silu", 0), ("upsample", 0)])
@given(seeds, st.integers(1, 3), sizes, sizes, sizes, st.sampled_from(ORDERS))
def test_ops_without_weights(pair, parameters, seed, batch, height, width, channels, order):
    x = in_order(normal_values(seed, batch, height, width, channels), order)
    params = normal_values(seed + 1, parameters, batch, channels)
    y, _ = getattr(conv, f"{pair}_forward")(x, *params)
    grad_y = in_order(normal_values(seed + 2, *y.shape), order)
    before = [a.copy() for a in (x, grad_y, *params)]
    found, plain = (both_ways(ops, pair, x, grad_y, *params) for ops in (numpy_ops, conv))
    assert_same(found, plain, 1e2 * EPS)
    if order == (1, 2, 0, 3):
        assert has_pixels_first(found["y"]) and has_pixels_first(found["grad_x"])
    for a, b in zip((x, grad_y, *params), before, strict=True):
        np.testing.assert_array_equal(a, b)  # what is computed in place is never an argument


@given(seeds, st.integers(1, 3), sizes, sizes, sizes, st.sampled_from(ORDERS))
def test_sums_over_pixels(seed, batch, height, width, channels, order):
    shape = batch, height, width, channels
    x, y = (in_order(normal_values(seed + i, *shape), order) for i in (0, 1))
    np.testing.assert_allclose(layout.pixel_sum(x), x.sum(axis=(1, 2)), atol=1e3 * EPS)
    np.testing.assert_allclose(layout.pixel_product(x, y), (x * y).sum(axis=(1, 2)), atol=1e3 * EPS)


def test_numpy_passes_the_order_on():
    x = in_order(normal_values(0, 3, 4, 5, 8), (1, 2, 0, 3))
    assert np.array_equal(layout.batch_first(layout.pixels_first(x), 3), x)
    for y in (
        *(x + 1, x * x[:, :1, :1], np.tanh(x), x + in_order(x, (1, 2, 0, 3))),
        *(np.concatenate([x, x], axis=3), x[..., :4] * 2),
    ):
        assert has_pixels_first(y)


def test_rounding_left_in_the_mean_is_removed():
    # A constant of 1e8 / 3: the first mean is off by its last digit, some 4, against which stands
    # `tiny` alone.
    x = np.full((1, 6, 5, 12), np.float32(1e8 / 3))
    gain, bias = normal_values(0, 2, 12, dtype=np.float32)
    grad_y = normal_values(1, 1, 6, 5, 12, dtype=np.float32)
    found, plain = (
        both_ways(ops, "group_norm", x, grad_y, gain, bias, groups=2) for ops in (layout, conv)
    )
    _, (_, rest, rstd, _, _) = layout.group_norm_forward(x, gain, bias, groups=2)
    assert abs(rest).max() > 0.1 and rstd.max() > 100
    np.testing.assert_allclose(found["gain"], plain["gain"], atol=1e-2)


def test_rounding_left_in_the_mean_counts_in_the_gradient_too():
    # Float32 numbers near 1e8 / 3 are 2 or 4 apart, and these differ by a few such steps. So what
    # is left in the mean is a good part of their spread.
    rng = np.random.default_rng(0)
    x = np.float32(1e8 / 3) + 4 * rng.integers(0, 3, size=(1, 6, 5, 12)).astype(np.float32)
    gain, bias = normal_values(0, 2, 12, dtype=np.float32)
    _, cache = layout.group_norm_forward(x, gain, bias, groups=2)
    n, rest, _, _, _ = cache
    assert abs(rest).max() > 0.1
    # The mean of g n is not small for this upstream gradient.
    grad_y = n + normal_values(1, 1, 6, 5, 12, dtype=np.float32)
    wide = x.astype(np.float64), grad_y.astype(np.float64)
    exact = both_ways(conv, "group_norm", *wide, gain, bias, groups=2)["grad_x"]
    found, _ = layout.group_norm_backward(grad_y, cache)
    assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact)


def test_a_forward_pass_without_cache_is_the_same_and_keeps_nothing():
    lean = numpy_ops.without_cache(numpy_ops)
    x, w, b = normal_values(0, 1, 4, 4, 2), normal_values(1, 3, 3, 2, 3), normal_values(2, 3)
    y, cache = lean.conv2d_forward(x, w, b, stride=2)
    assert cache is None
    assert np.array_equal(y, numpy_ops.conv2d_forward(x, w, b, stride=2)[0])
    assert {*vars(lean)} == {name for name in ops_of(numpy_ops) if name.endswith("_forward")} | {
        "level_waves"
    }


@given(seeds, dtypes, st.integers(1, 1000), st.floats(1e-6, 1.0))
def test_adam_in_place_is_adam(seed, dtype, step, lr):
    """Some ten operations in another order; m, v and theta's change are sums of two terms each."""
    theta, grad, m = normal_values(seed, 3, 50, dtype=dtype)
    v = normal_values(seed + 1, 50, dtype=dtype) ** 2
    plain, found = ([a.copy() for a in (theta, m, v)] for _ in range(2))
    for of, (theta_of, m_of, v_of) in (optim.adam, plain), (adam, found):
        before = grad.copy()
        of(theta_of, grad, m_of, v_of, step, lr, decay_1=0.9, decay_2=0.99)
        np.testing.assert_array_equal(grad, before)
    eps = float(np.finfo(dtype).eps)
    size_m, size_v = abs(m) + abs(grad), v + grad**2
    changes = plain[0] - theta, found[0] - theta
    assert (abs(found[1] - plain[1]) <= 4 * eps * size_m).all()
    assert (abs(found[2] - plain[2]) <= 4 * eps * size_v).all()
    # The relative error of sqrt(v_hat) is half that of v, which its cancelling terms magnify.
    m_hat, root = size_m / (1 - 0.9**step), (plain[2] / (1 - 0.99**step)) ** 0.5
    largest = lr * m_hat / root * (8 + 4 * size_v / plain[2]) + abs(theta) + abs(changes[0])
    assert (abs(changes[1] - changes[0]) <= 4 * eps * largest).all()


def test_the_engine_changes_no_module():
    """Is what one reads what runs? Every function of the book is the object that it was."""

    def functions():
        books = (train, optim, conv, unet, mlp)
        return {(book.__name__, name): f for book in books for name, f in vars(book).items()}

    before = functions()
    net, forward_net, update = fast.engine(unet, threads=1)
    after = functions()
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert net.init is forward_net.init is unet.init
    assert net.NO_CLASS == forward_net.NO_CLASS == unet.NO_CLASS
    assert update.func is train.update and update.keywords == {"adam": adam}


def test_the_engine_needs_no_cupy_and_the_book_no_engine():
    code = "import sys; import npdiff.fast; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys; import npdiff.train, npdiff.reverse, npdiff.nn.unet, npdiff.nn.mlp; "
        "assert not any(name.startswith('npdiff.fast') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
