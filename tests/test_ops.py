import inspect

import numpy as np
import pytest
from conftest import EPS, EPS_32, dtypes, normal_values, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff.gradcheck import check_pair
from npdiff.nn import ops

# Central differences of step 1e-5 err by 1e-10 times a third derivative, and by EPS / 1e-5 = 2e-11
# of the sum that is differenced. A random slope is rarely below a thousandth of that sum; a slip
# errs by a tenth and more.
TOLERANCE = 1e-5

sizes = st.integers(1, 5)


def generator(seed):
    """For the upstream gradient and the direction. The seed of x would make x^T dL/dy symmetric."""
    return np.random.default_rng([seed, 1])


def embed_pair(seed, inputs, waves):
    """embed's frequencies are fixed numbers, no parameter: the pair as a function of x alone."""
    frequencies = normal_values(seed, inputs, waves)
    return (lambda x: ops.embed_forward(x, frequencies)), ops.embed_backward


def pairs(seed, batch, inputs, outputs):
    """Every op of the file: forward, backward, x and parameters at random values."""
    x = 2 * normal_values(seed, batch, inputs)
    w, b = normal_values(seed + 1, inputs, outputs), normal_values(seed + 2, outputs)
    return {
        "linear": (ops.linear_forward, ops.linear_backward, x, {"w": w, "b": b}),
        "silu": (ops.silu_forward, ops.silu_backward, x, {}),
        "embed": (*embed_pair(seed + 4, inputs, outputs), x, {}),
    }


def test_every_op_of_the_file_is_a_pair_and_is_checked_here():
    names = {
        name
        for name, f in inspect.getmembers(ops, inspect.isfunction)
        if f.__module__ == ops.__name__ and not name.startswith("_")
    }
    here = {f"{name}_{way}" for name in pairs(0, 2, 2, 2) for way in ("forward", "backward")}
    jvps = {"linear_jvp", "silu_jvp", "level_waves_jvp"}
    assert names == here | jvps | {"level_waves", "check_inputs"}  # nothing goes back to the level


@pytest.mark.parametrize("name", pairs(0, 2, 2, 2))
@given(seed=seeds, batch=sizes, inputs=sizes, outputs=sizes)
def test_backward_is_the_gradient_of_forward(name, seed, batch, inputs, outputs):
    forward, backward, x, params = pairs(seed, batch, inputs, outputs)[name]
    errors = check_pair(forward, backward, x, generator(seed), **params)
    assert set(errors) == {"x", *params}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", pairs(0, 2, 2, 2))
def test_a_pair_keeps_precision_and_leaves_its_inputs_alone(name):
    forward, backward, x, params = pairs(0, 3, 4, 2)[name]
    if name == "embed":
        frequencies = normal_values(1, 4, 2).astype(np.float32)
        forward = lambda x: ops.embed_forward(x, frequencies)  # noqa: E731
    x, params = (
        x.astype(np.float32),
        {key: value.astype(np.float32) for key, value in params.items()},
    )
    kept = x.copy(), {key: value.copy() for key, value in params.items()}
    y, cache = forward(x, **params)
    grad_y = normal_values(2, *y.shape).astype(np.float32)
    kept_grad_y, y_before = grad_y.copy(), y.copy()
    grad_x, grads = backward(grad_y, cache)
    again, grads_again = backward(grad_y, cache)  # the cache survives its use
    assert {a.dtype for a in (y, grad_x, *grads.values())} == {np.dtype(np.float32)}
    assert grad_x.shape == x.shape and {key: g.shape for key, g in grads.items()} == {
        key: p.shape for key, p in params.items()
    }
    for before, after in [
        (kept[0], x),
        (kept_grad_y, grad_y),
        (y_before, y),
        (grad_x, again),
        *((kept[1][k], params[k]) for k in params),
    ]:
        np.testing.assert_array_equal(before, after)
    for key in grads:
        np.testing.assert_array_equal(grads[key], grads_again[key])


@given(seeds, sizes, sizes, sizes)
def test_linear_is_x_w_plus_b(seed, batch, inputs, outputs):
    x, w, b = (
        normal_values(seed, batch, inputs),
        normal_values(seed + 1, inputs, outputs),
        normal_values(seed + 2, outputs),
    )
    y, _ = ops.linear_forward(x, w, b)
    for i in range(batch):
        for o in range(outputs):
            assert y[i, o] == pytest.approx(
                sum(x[i, k] * w[k, o] for k in range(inputs)) + b[o], abs=32 * EPS * 10
            )


@given(st.floats(-30, 30))
def test_silu_is_x_times_the_sigmoid(x):
    y, _ = ops.silu_forward(np.array([x]))
    assert y[0] == pytest.approx(x / (1 + np.exp(-x)), abs=8 * EPS * abs(x))


def test_silu_never_overflows():
    x = np.array([-1e30, -1e4, -100, 0, 100, 1e4, 1e30], np.float32)
    y, cache = ops.silu_forward(x)
    grad_x, _ = ops.silu_backward(np.ones_like(x), cache)
    np.testing.assert_allclose(y, [0, 0, 0, 0, 100, 1e4, 1e30], rtol=EPS_32)
    np.testing.assert_allclose(grad_x, [0, 0, 0, 0.5, 1, 1, 1], rtol=EPS_32)


@given(seeds, sizes, sizes, sizes)
def test_embed_is_sines_then_cosines(seed, batch, inputs, waves):
    x, frequencies = normal_values(seed, batch, inputs), normal_values(seed + 1, inputs, waves)
    y, _ = ops.embed_forward(x, frequencies)
    assert y.shape == (batch, 2 * waves)
    angle = (x[:, :, None] * frequencies).sum(axis=1)
    np.testing.assert_allclose(y[:, :waves], np.sin(angle), rtol=0, atol=256 * EPS)
    np.testing.assert_allclose(y[:, waves:], np.cos(angle), rtol=0, atol=256 * EPS)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=5), st.integers(1, 6), dtypes)
def test_level_waves_are_sines_and_cosines_of_the_clipped_level(levels, waves, dtype):
    level, frequencies = np.array(levels, dtype), np.linspace(0.2, 2, waves)
    y = ops.level_waves(level, frequencies)
    assert y.shape == (len(level), 2 * waves) and y.dtype == dtype
    angle = np.clip(level.astype(np.float64), -7, 7)[:, None] * frequencies  # at most 14
    rounding = 32 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(y[:, :waves], np.sin(angle), rtol=0, atol=rounding)
    np.testing.assert_allclose(y[:, waves:], np.cos(angle), rtol=0, atol=rounding)


def test_levels_of_data_and_of_pure_noise_count_as_the_ends_of_the_range():
    ends = np.array([-np.inf, -30, ops.LEVEL_MIN, ops.LEVEL_MAX, 30, np.inf])
    y = ops.level_waves(ends, np.array([0.3, 1.7]))
    for row, end in ((0, 2), (1, 2), (4, 3), (5, 3)):
        np.testing.assert_array_equal(y[row], y[end])


@pytest.mark.parametrize("name", ["linear", "silu"])
@given(seed=seeds, batch=sizes, inputs=sizes, outputs=sizes)
def test_jvp_and_backward_are_transposed(name, seed, batch, inputs, outputs):
    """grad_y . (J d_x) = (J^T grad_y) . d_x, up to the rounding of two sums of the same terms."""
    forward, backward, x, params = pairs(seed, batch, inputs, outputs)[name]
    y, cache = forward(x, **params)
    rng = generator(seed)
    grad_y, d_x = rng.standard_normal(y.shape), rng.standard_normal(x.shape)
    d_y = {"linear": ops.linear_jvp, "silu": ops.silu_jvp}[name](d_x, cache)
    grad_x, _ = backward(grad_y, cache)
    w = np.abs(params.get("w", np.eye(x.shape[1])))
    size = (np.abs(grad_y) * (np.abs(d_x) @ w)).sum()  # of the terms; |dy/dx| of silu is below 1.1
    assert (grad_y * d_y).sum() == pytest.approx((grad_x * d_x).sum(), rel=0, abs=64 * EPS * size)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=5), st.integers(1, 6), seeds)
def test_level_waves_jvp_is_the_slope_of_the_waves_and_0_beyond_the_range(levels, waves, seed):
    # The difference errs by h^2 f^3 / 6 < 2e-10, and by rounding, 2e-16 / h. Across an end of the
    # range there is no slope, so those levels are moved.
    h, level, frequencies = 1e-5, np.array(levels), np.linspace(0.2, 2, waves)
    level += 4 * h * (np.abs(np.abs(level) - 7) < 2 * h)
    d_level = normal_values(seed, len(level))
    d_waves = ops.level_waves_jvp(d_level, level, frequencies)
    ahead, behind = (ops.level_waves(level + step, frequencies) for step in (h, -h))
    slope = (ahead - behind) / (2 * h) * d_level[:, None]
    np.testing.assert_allclose(d_waves, slope, rtol=0, atol=1e-9 * np.abs(d_level).max())
    assert not d_waves[np.abs(level) > 7].any()
    assert d_waves[np.abs(level) < 7].any(axis=1).all()


def test_level_waves_jvp_at_data_and_at_pure_noise_is_0():
    ends = np.array([-np.inf, np.inf])
    assert not ops.level_waves_jvp(np.ones(2), ends, np.array([0.3, 1.7])).any()
