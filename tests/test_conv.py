from functools import partial

import numpy as np
import pytest
import strict_array
from conftest import EPS, EPS_32, dtypes, seeds
from hypothesis import example, given
from hypothesis import strategies as st

from npdiff.gradcheck import check_pair, directional_error
from npdiff.nn import conv

# A difference along a direction of length 1 with h = 1e-5 has an error of order h^2 times the third
# derivative, and rounding of order EPS |loss| / h, some 1e-10; a wrong gradient is wrong by a tenth
# or more. A slope that happens to be small costs digits.
GRADIENT = 1e-5

sizes = st.integers(1, 6)
channels = st.integers(1, 5)
kernels = st.sampled_from([1, 3, 5])
strides = st.sampled_from([1, 2])


@st.composite
def images(
    draw, multiple: int = 1, channel_multiple: int = 1, max_batch: int = 3
) -> tuple[tuple[int, int, int, int], np.random.Generator]:
    """A shape (B, H, W, C), and a generator of values."""
    batch = draw(st.integers(1, max_batch))
    height, width = (multiple * draw(sizes) for _ in range(2))
    shape = (batch, height, width, channel_multiple * draw(channels))
    return shape, np.random.default_rng(draw(seeds))


def naive_conv2d(x, w, b, stride):
    """Each pixel of y, one after the other, from the definition."""
    kernel, pad = len(w), len(w) // 2
    height, width = x.shape[1:3]
    y = np.zeros((len(x), -(-height // stride), -(-width // stride), w.shape[3])) + b
    for i, j in np.ndindex(y.shape[1:3]):
        for k, l in np.ndindex(kernel, kernel):
            row, column = stride * i + k - pad, stride * j + l - pad
            if 0 <= row < height and 0 <= column < width:
                y[:, i, j] += x[:, row, column] @ w[k, l]
    return y


@given(images(), channels, kernels, strides)
def test_conv2d_is_its_definition(image, outputs, kernel, stride):
    shape, rng = image
    x, w, b = (
        rng.standard_normal(shape),
        rng.standard_normal((kernel, kernel, shape[3], outputs)),
        rng.standard_normal(outputs),
    )
    y, _ = conv.conv2d_forward(x, w, b, stride)
    terms = kernel * kernel * shape[3] + 1
    # Each of the sums is good to terms * EPS/2 of the absolute sum.
    rounding = terms * EPS * naive_conv2d(abs(x), abs(w), abs(b), stride).max()
    np.testing.assert_allclose(y, naive_conv2d(x, w, b, stride), rtol=0, atol=rounding)


@given(images(), channels, kernels, strides)
def test_conv2d_gradients(image, outputs, kernel, stride):
    shape, rng = image
    w, b = rng.standard_normal((kernel, kernel, shape[3], outputs)), rng.standard_normal(outputs)
    errors = check_pair(
        partial(conv.conv2d_forward, stride=stride),
        conv.conv2d_backward,
        rng.standard_normal(shape),
        rng,
        w=w,
        b=b,
    )
    assert max(errors.values()) < GRADIENT, errors


@given(images(), channels, kernels, strides)
def test_conv2d_backward_is_the_adjoint(image, outputs, kernel, stride):
    """<conv(x), y> = <x, conv^T(y)> = <w, grad_w>: a convolution is linear in x and in w."""
    shape, rng = image
    x, w = rng.standard_normal(shape), rng.standard_normal((kernel, kernel, shape[3], outputs))
    y, cache = conv.conv2d_forward(x, w, np.zeros(outputs), stride)
    grad_y = rng.standard_normal(y.shape)
    grad_x, grads = conv.conv2d_backward(grad_y, cache)
    terms = (
        abs(conv.conv2d_forward(abs(x), abs(w), np.zeros(outputs), stride)[0]) * abs(grad_y)
    ).sum()
    rounding = 2 * EPS * (kernel * kernel * max(shape[3], outputs) + x.size + y.size) * terms
    assert abs((y * grad_y).sum() - (x * grad_x).sum()) <= rounding
    assert abs((y * grad_y).sum() - (w * grads["w"]).sum()) <= rounding


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 1), (2, 3)])
def test_conv2d_and_its_gradients_are_sums_over_pixels_and_taps(size, kernel, stride):
    """Both passes, tap by tap and pixel by pixel; images of odd size, even, or smaller than w."""
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal((2, *size, 3)), rng.standard_normal(2)
    w = rng.standard_normal((kernel, kernel, 3, 2))
    y, cache = conv.conv2d_forward(x, w, b, stride)
    np.testing.assert_allclose(y, naive_conv2d(x, w, b, stride), rtol=0, atol=1000 * EPS)
    assert y.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 2)
    grad_y = rng.standard_normal(y.shape)
    grad_x, grad_w = np.zeros_like(x), np.zeros_like(w)
    for n, i, j, k, l in np.ndindex(*y.shape[:3], kernel, kernel):
        row, column = stride * i + k - kernel // 2, stride * j + l - kernel // 2
        if 0 <= row < size[0] and 0 <= column < size[1]:
            grad_x[n, row, column] += w[k, l] @ grad_y[n, i, j]
            grad_w[k, l] += np.outer(x[n, row, column], grad_y[n, i, j])
    result, grads = conv.conv2d_backward(grad_y, cache)
    # Sums of at most 140 products of numbers below 5, each rounded to EPS.
    np.testing.assert_allclose(result, grad_x, rtol=0, atol=1000 * EPS)
    np.testing.assert_allclose(grads["w"], grad_w, rtol=0, atol=1000 * EPS)
    np.testing.assert_allclose(grads["b"], grad_y.sum(axis=(0, 1, 2)), rtol=0, atol=1000 * EPS)


@given(images(channel_multiple=2), st.sampled_from([1, 2]), st.floats(1e-8, 1.0))
def test_group_norm_is_its_formula(image, channels_a_group, tiny):
    shape, rng = image
    x, (gain, bias) = rng.standard_normal(shape), rng.standard_normal((2, shape[3]))
    groups = shape[3] // channels_a_group
    y, _ = conv.group_norm_forward(x, gain, bias, groups, tiny)
    for n, g in np.ndindex(shape[0], groups):
        of_group = slice(g * channels_a_group, (g + 1) * channels_a_group)
        block = x[n, :, :, of_group]
        mean = block.sum() / block.size
        var = ((block - mean) ** 2).sum() / block.size
        expected = gain[of_group] * (block - mean) / np.sqrt(var + tiny) + bias[of_group]
        # The rounding of x - mean, of size EPS times x, is divided by sqrt(var + tiny).
        rounding = 64 * EPS * (1 + np.abs(block).max()) / np.sqrt(var + tiny)
        scale = 1 + np.abs(gain).max() + np.abs(bias).max()
        np.testing.assert_allclose(
            y[n, :, :, of_group], expected, rtol=0, atol=scale * rounding + 8 * EPS
        )


@given(
    images(channel_multiple=2), st.sampled_from(["one channel a group", "one group", "two groups"])
)
def test_group_norm_gradients(image, grouping):
    shape, rng = image
    groups = {"one channel a group": shape[3], "one group": 1, "two groups": 2}[grouping]
    x, gain, bias = (
        3 * rng.standard_normal(shape) + 1,
        rng.standard_normal(shape[3]),
        rng.standard_normal(shape[3]),
    )
    # A group may be a single number, whose gradient `tiny` alone decides.
    forward = partial(conv.group_norm_forward, groups=groups, tiny=0.1)
    y, cache = forward(x, gain, bias)
    # The number is its own mean: y is the bias, and no slope is left to compare.
    if shape[1] * shape[2] * shape[3] // groups == 1:
        assert (y == bias).all() and (conv.group_norm_backward(y, cache)[0] == 0).all()
    elif shape[1] * shape[2] * shape[3] // groups > 2:
        errors = check_pair(forward, conv.group_norm_backward, x, rng, gain=gain, bias=bias)
        assert max(errors.values()) < GRADIENT, errors


@given(images(channel_multiple=4), st.floats(-1e4, 1e4), st.floats(0.1, 1e3), dtypes)
def test_group_norm_standardises_each_group(image, offset, scale, dtype):
    (batch, height, width, n_channels), rng = image
    x = (offset + scale * rng.standard_normal((batch, height + 3, width + 3, n_channels))).astype(
        dtype
    )
    y, _ = conv.group_norm_forward(
        x, np.ones(n_channels, dtype), np.zeros(n_channels, dtype), groups=4, tiny=0.0
    )
    groups = y.astype(np.float64).reshape(batch, -1, 4, n_channels // 4)
    # The mean is found again after the offset is gone, so only a few roundings of y itself, of size
    # 4 or so, are left.
    assert abs(groups.mean(axis=(1, 3))).max() < 20 * np.finfo(dtype).eps
    # The variance adds rounding of up to one for each row and column summed.
    assert (
        abs(groups.var(axis=(1, 3)) - 1).max()
        < (height + width + n_channels + 20) * np.finfo(dtype).eps
    )


@given(images(channel_multiple=2), st.floats(-1e30, 1e30), dtypes)
@example(((2, 6, 5, 4), np.random.default_rng(0)), 1e8 / 3, np.float32)
def test_group_norm_of_a_constant_is_the_bias(image, constant, dtype):
    """Its variance is exactly 0.

    What rounding leaves of the mean is a multiple of the last digit of x; a second mean finds it.
    """
    shape, rng = image
    gain, bias = (
        rng.standard_normal(shape[3]).astype(dtype),
        rng.standard_normal(shape[3]).astype(dtype),
    )
    for groups in (1, 2, shape[3]):
        y, cache = conv.group_norm_forward(np.full(shape, constant, dtype), gain, bias, groups)
        np.testing.assert_array_equal(y, np.broadcast_to(bias, shape))
        grad_x, grads = conv.group_norm_backward(rng.standard_normal(shape).astype(dtype), cache)
        assert all(np.isfinite(g).all() and g.dtype == dtype for g in (grad_x, *grads.values()))


@given(images(channel_multiple=2), st.floats(-1e6, 1e6))
def test_group_norm_forgets_a_large_offset(image, offset):
    """x + offset becomes what x does, up to the digits that x lost when the offset was added."""
    (batch, height, width, n_channels), rng = image
    x = np.float32(offset) + rng.standard_normal(
        (batch, height + 1, width + 1, n_channels), dtype=np.float32
    )
    one, zero = np.ones(n_channels, np.float32), np.zeros(n_channels, np.float32)
    y, _ = conv.group_norm_forward(x, one, zero, groups=2)
    y_64, _ = conv.group_norm_forward(
        x.astype(np.float64) - offset, one.astype(float), zero.astype(float), groups=2
    )
    np.testing.assert_allclose(y, y_64, rtol=0, atol=40 * EPS_32 * (1 + abs(y_64).max()) ** 3)


@given(images())
def test_scale_shift_gradients(image):
    shape, rng = image
    scale, shift = (
        rng.standard_normal((shape[0], shape[3])),
        rng.standard_normal((shape[0], shape[3])),
    )
    errors = check_pair(
        conv.scale_shift_forward,
        conv.scale_shift_backward,
        rng.standard_normal(shape),
        rng,
        scale=scale,
        shift=shift,
    )
    assert max(errors.values()) < GRADIENT, errors


@given(images())
def test_upsample_repeats_each_pixel(image):
    shape, rng = image
    x = rng.standard_normal(shape)
    y, _ = conv.upsample_forward(x)
    np.testing.assert_array_equal(y, x.repeat(2, axis=1).repeat(2, axis=2))


@given(images())
def test_upsample_gradient(image):
    shape, rng = image
    assert (
        check_pair(conv.upsample_forward, conv.upsample_backward, rng.standard_normal(shape), rng)[
            "x"
        ]
        < GRADIENT
    )


@given(images(multiple=2))
def test_depth_to_space_undoes_space_to_depth(image):
    shape, rng = image
    x = rng.standard_normal(shape)
    y = conv.space_to_depth(x)
    np.testing.assert_array_equal(conv.depth_to_space(y), x)
    np.testing.assert_array_equal(y[..., : shape[3]], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., shape[3] : 2 * shape[3]], x[:, ::2, 1::2])


@given(images(multiple=2))
def test_depth_to_space_is_the_backward_pass_of_space_to_depth(image):
    shape, rng = image
    x, grad_y = (
        rng.standard_normal(shape),
        rng.standard_normal((shape[0], shape[1] // 2, shape[2] // 2, 4 * shape[3])),
    )
    for forward, backward, a, grad in (
        (conv.space_to_depth, conv.depth_to_space, x, grad_y),
        (conv.depth_to_space, conv.space_to_depth, conv.space_to_depth(x), x),
    ):
        assert (
            directional_error(lambda a, f=forward, g=grad: (f(a) * g).sum(), a, backward(grad), rng)
            < GRADIENT
        )


@given(st.integers(1, 12), st.integers(1, 5), seeds)
def test_lookup_gradient_adds_up_equal_labels(batch, rows, seed):
    rng = np.random.default_rng(seed)
    label, table = rng.integers(0, rows, batch), rng.standard_normal((rows, 3))
    y, cache = conv.lookup_forward(label, table)
    np.testing.assert_array_equal(y, table[label])
    grad_y = rng.standard_normal(y.shape)
    _, grads = conv.lookup_backward(grad_y, cache)
    for n in range(rows):
        np.testing.assert_allclose(
            grads["table"][n],
            grad_y[label == n].sum(axis=0),
            rtol=0,
            atol=batch * EPS * abs(grad_y).sum(),
        )


def test_label_minus_1_is_the_last_row_and_its_gradient_goes_there():
    table = np.random.default_rng(0).standard_normal((4, 3))
    y, cache = conv.lookup_forward(np.array([-1, 3, 0]), table)
    np.testing.assert_array_equal(y, table[[3, 3, 0]])
    _, grads = conv.lookup_backward(np.ones((3, 3)), cache)
    np.testing.assert_array_equal(grads["table"], [[1] * 3, [0] * 3, [0] * 3, [2] * 3])


@pytest.mark.parametrize("label", [[-2], [3], [0.0], [[0]], [True]])
def test_lookup_refuses_labels_that_name_no_row(label):
    with pytest.raises(ValueError, match=r"label must be integers of shape \(B,\) in -1..2"):
        conv.lookup_forward(np.array(label), np.zeros((3, 2)))


@given(images(), kernels, strides, dtypes)
def test_every_op_obeys_the_rules_of_a_device_and_keeps_the_dtype(image, kernel, stride, dtype):
    shape, rng = image
    xp = strict_array.strict

    def draw(*shape):
        return xp.asarray(rng.standard_normal(shape).astype(dtype))

    def check(forward, backward, *args):
        y, cache = forward(*args)
        grad_x, grads = backward(y, cache)
        assert all(a.dtype == dtype for a in (y, grad_x, *grads.values()) if a is not None)

    x, per_channel, per_image = draw(*shape), draw(shape[3]), draw(shape[0], shape[3])
    label = rng.integers(0, 4, shape[0])
    with strict_array.no_sync():
        check(
            partial(conv.conv2d_forward, stride=stride),
            conv.conv2d_backward,
            x,
            draw(kernel, kernel, shape[3], 2),
            draw(2),
        )
        check(
            partial(conv.group_norm_forward, groups=shape[3]),
            conv.group_norm_backward,
            x,
            per_channel,
            per_channel,
        )
        check(conv.scale_shift_forward, conv.scale_shift_backward, x, per_image, per_image)
        check(conv.upsample_forward, conv.upsample_backward, x)
        check(conv.lookup_forward, conv.lookup_backward, label, draw(4, 3))
