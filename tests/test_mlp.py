import numpy as np
import pytest
from conftest import EPS, RecordedOps, normal_values, seeds
from hypothesis import example, given
from hypothesis import strategies as st
from strict_array import asarray, no_sync

from npdiff.fast import numpy_ops
from npdiff.gradcheck import check_jvp, check_pair, directional_error
from npdiff.nn import mlp, ops
from npdiff.nn.params import flatten, leaves, map_leaves, unflatten

TOLERANCE = 1e-5  # as in test_ops


def random_net(seed, dim=2, hidden=5, layers=2):
    """Float64 parameters, none of them 0."""
    params = mlp.init(np.random.default_rng(seed), dim, hidden, layers)
    theta = flatten(params)
    return unflatten(0.5 * normal_values(seed, theta.size), params)


@given(seeds, st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 3))
@example(3219, 1, 1, 1, 0)  # a slope along a random direction is small here by chance
def test_backward_is_the_gradient_of_forward(seed, batch, dim, hidden, layers):
    params, rng = random_net(seed, dim, hidden, layers), np.random.default_rng(seed + 1)
    x, level = normal_values(seed + 2, batch, dim), 4 * normal_values(seed + 3, batch)
    out, cache = mlp.forward(params, x, level)
    grad_out = rng.standard_normal(out.shape)
    grad_x, grads = mlp.backward(params, cache, grad_out)
    assert (
        directional_error(
            lambda a: (mlp.forward(params, a, level)[0] * grad_out).sum(), x, grad_x, rng
        )
        < TOLERANCE
    )

    def loss(theta):
        return (mlp.forward(unflatten(theta, params), x, level)[0] * grad_out).sum()

    assert directional_error(loss, flatten(params), flatten(grads), rng) < TOLERANCE
    theta = flatten(params)
    start = 0
    for leaf, grad in zip(leaves(params), leaves(grads), strict=True):  # and each array alone
        stop = start + leaf.size

        def loss_of_leaf(a, start=start, stop=stop):
            return loss(np.concatenate([theta[:start], a.ravel(), theta[stop:]]))

        assert directional_error(loss_of_leaf, leaf, grad, rng) < TOLERANCE
        start = stop


@given(seeds, st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 3))
def test_jvp_is_the_derivative_of_forward_in_a_direction(seed, batch, dim, hidden, layers):
    # Of the levels, 4 times a normal variable, one in twelve lies beyond the range, where they
    # count as its end.
    params, rng = random_net(seed, dim, hidden, layers), np.random.default_rng(seed + 1)
    x, level = normal_values(seed + 2, batch, dim), 4 * normal_values(seed + 3, batch)
    errors = check_jvp(mlp, params, x, level, rng)
    assert set(errors) == {"x", "level", "both", "duality"}
    assert max(errors.values()) < TOLERANCE, errors


def test_the_derivative_along_a_level_beyond_the_range_is_0():
    params, x = random_net(0), normal_values(1, 5, 2)
    level = np.array([-np.inf, -7.1, 7.1, np.inf, 0.0])
    _, d_out, _ = mlp.jvp(params, x, level, 0 * x, np.ones(5))
    assert not d_out[:4].any() and d_out[4].all()


def test_jvp_puts_out_what_forward_does_and_its_cache_leads_back():
    params, x, level = random_net(0), normal_values(1, 4, 2), normal_values(2, 4)
    out, cache = mlp.forward(params, x, level)
    out_jvp, _, cache_jvp = mlp.jvp(params, x, level, x, level)
    np.testing.assert_array_equal(out_jvp, out)
    grad_x, grads = mlp.backward(params, cache, out)
    grad_x_jvp, grads_jvp = mlp.backward(params, cache_jvp, out)
    np.testing.assert_array_equal(grad_x_jvp, grad_x)
    np.testing.assert_array_equal(flatten(grads_jvp), flatten(grads))


@given(seeds, st.floats(-3, 3), st.floats(-3, 3))
def test_jvp_is_linear_in_the_direction(seed, a, b):
    params, x, level = random_net(seed), normal_values(seed, 3, 2), normal_values(seed + 1, 3)
    d_x, d_level = normal_values(seed + 2, 3, 2), normal_values(seed + 3, 3)
    along_x = mlp.jvp(params, x, level, d_x, 0 * d_level)[1]
    along_level = mlp.jvp(params, x, level, 0 * d_x, d_level)[1]
    _, d_out, _ = mlp.jvp(params, x, level, a * d_x, b * d_level)
    size = 3 * (np.abs(along_x).max() + np.abs(along_level).max())
    np.testing.assert_allclose(d_out, a * along_x + b * along_level, rtol=0, atol=1024 * EPS * size)


def test_jvp_refuses_a_direction_of_another_shape():
    params, x, level = random_net(0), normal_values(1, 4, 2), normal_values(2, 4)
    for d_x, d_level in ((x[:1], level), (x, level[:1]), (x, level[:, None])):
        with pytest.raises(ValueError, match="d_x and d_level must have the shapes"):
            mlp.jvp(params, x, level, d_x, d_level)


def test_gradients_have_every_leaf_in_the_order_of_the_parameters():
    params = mlp.init(np.random.default_rng(0), hidden=8)
    out, cache = mlp.forward(params, np.ones((3, 2), np.float32), np.zeros(3, np.float32))
    _, grads = mlp.backward(params, cache, np.ones_like(out))
    assert list(grads) == list(params)
    assert [list(layer) for layer in grads.values()] == [list(layer) for layer in params.values()]
    assert [g.shape for g in leaves(grads)] == [p.shape for p in leaves(params)]


def test_an_untrained_network_puts_out_0():
    params = mlp.init(np.random.default_rng(0))
    out, _ = mlp.forward(
        params, normal_values(1, 7, 2, dtype=np.float32), normal_values(2, 7, dtype=np.float32)
    )
    assert out.shape == (7, 2) and not out.any()


def test_init_draws_weights_of_variance_one_over_the_inputs():
    # 64 x 64 entries: the variance of a normal sample lies within 5 standard errors, sqrt(2/4096) =
    # 2.2% each.
    params = mlp.init(np.random.default_rng(0), hidden=64, layers=4)
    for name in ("layer_1", "layer_2", "layer_3", "layer_4"):
        assert params[name]["w"].var() * 64 == pytest.approx(1, abs=5 * np.sqrt(2 / 64**2))
        assert not params[name]["b"].any()
    inputs, outputs = params["first"]["w"].shape
    assert params["first"]["w"].var() * inputs == pytest.approx(
        1, abs=5 * np.sqrt(2 / (inputs * outputs))
    )
    assert list(params) == ["first", "layer_1", "layer_2", "layer_3", "layer_4", "last"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_precision_of_x_is_kept_forward_and_back(dtype):
    params = {
        name: {k: a.astype(dtype) for k, a in layer.items()}
        for name, layer in random_net(0).items()
    }
    out, cache = mlp.forward(
        params, normal_values(1, 3, 2, dtype=dtype), normal_values(2, 3, dtype=dtype)
    )
    grad_x, grads = mlp.backward(params, cache, out)
    assert {a.dtype for a in (out, grad_x, *leaves(grads))} == {np.dtype(dtype)}
    x, level = normal_values(1, 3, 2, dtype=dtype), normal_values(2, 3, dtype=dtype)
    _, d_out, _ = mlp.jvp(params, x, level, x, level)
    assert d_out.dtype == dtype


def test_the_network_hears_x_and_the_level_and_mixes_no_rows():
    params, x, level = random_net(0), normal_values(1, 4, 2), normal_values(2, 4)
    out, _ = mlp.forward(params, x, level)
    assert np.abs(out - mlp.forward(params, x, level + 0.1)[0]).max() > 1e-6
    assert np.abs(out - mlp.forward(params, x + 0.1, level)[0]).max() > 1e-6
    for i in range(4):
        np.testing.assert_allclose(
            mlp.forward(params, x[i : i + 1], level[i : i + 1])[0], out[i : i + 1], rtol=1e-12
        )


def test_a_level_beyond_the_range_counts_as_its_end():
    params, x = random_net(0), normal_values(1, 4, 2)
    for far, end in (
        (-np.inf, ops.LEVEL_MIN),
        (-30.0, ops.LEVEL_MIN),
        (30.0, ops.LEVEL_MAX),
        (np.inf, ops.LEVEL_MAX),
    ):
        out, _ = mlp.forward(params, x, np.full(4, far))
        np.testing.assert_array_equal(out, mlp.forward(params, x, np.full(4, end))[0])


def test_two_forwards_before_a_backward_do_not_disturb_each_other():
    params, level = random_net(0), np.zeros(3)
    one, two = normal_values(1, 3, 2), normal_values(2, 3, 2)
    out_one, cache_one = mlp.forward(params, one, level)
    expected_x, expected = mlp.backward(params, cache_one, out_one)
    out_one, cache_one = mlp.forward(params, one, level)
    out_two, cache_two = mlp.forward(params, two, level)
    mlp.backward(params, cache_two, out_two)
    grad_x, grads = mlp.backward(params, cache_one, out_one)
    np.testing.assert_array_equal(grad_x, expected_x)
    np.testing.assert_array_equal(flatten(grads), flatten(expected))


# Its residual layer, and the ops that it is made of


def residual_pair(seed, inputs):
    """The layer as a pair of functions of x, w and b."""
    w, b = normal_values(seed + 1, inputs, inputs), normal_values(seed + 2, inputs)
    return (
        lambda x, w, b: mlp.residual_forward(x, {"w": w, "b": b}, ops),
        lambda grad_y, cache: mlp.residual_backward(grad_y, cache, ops),
        {"w": w, "b": b},
    )


@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_residual_backward_is_the_gradient_of_residual_forward(seed, batch, inputs):
    forward, backward, params = residual_pair(seed, inputs)
    x, rng = 2 * normal_values(seed, batch, inputs), np.random.default_rng([seed, 1])
    errors = check_pair(forward, backward, x, rng, **params)
    assert set(errors) == {"x", "w", "b"}
    assert max(errors.values()) < TOLERANCE, errors


def test_a_residual_layer_keeps_precision_and_leaves_its_inputs_alone():
    forward, backward, params = residual_pair(0, 4)
    x = normal_values(3, 3, 4).astype(np.float32)
    params = {name: a.astype(np.float32) for name, a in params.items()}
    kept = [a.copy() for a in (x, *params.values())]
    y, cache = forward(x, **params)
    grad_y = normal_values(4, 3, 4).astype(np.float32)
    kept += [grad_y.copy(), y.copy()]
    grad_x, grads = backward(grad_y, cache)
    again, grads_again = backward(grad_y, cache)  # the cache survives its use
    assert {a.dtype for a in (y, grad_x, *grads.values())} == {np.dtype(np.float32)}
    after = [x, *params.values(), grad_y, y]
    for one, two in [*zip(kept, after, strict=True), (grad_x, again)]:
        np.testing.assert_array_equal(one, two)
    for name in grads:
        np.testing.assert_array_equal(grads[name], grads_again[name])


@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_a_residual_layer_adds_to_x(seed, batch, inputs):
    x, (forward, _, params) = normal_values(seed, batch, inputs), residual_pair(seed, inputs)
    w, b = params.values()
    y, _ = forward(x, w, b)
    np.testing.assert_allclose(y, x + x / (1 + np.exp(-x)) @ w + b, rtol=0, atol=256 * EPS)
    np.testing.assert_array_equal(forward(x, 0 * w, 0 * b)[0], x)


def test_ops_that_are_handed_in_are_the_only_ones_called_forward_and_back():
    params, x, level = random_net(0), normal_values(1, 4, 2), normal_values(2, 4)
    handed_in = RecordedOps(ops)
    (out, cache), strays = handed_in.strays(mlp.forward, params, x, level, handed_in)
    assert cache[0] is handed_in and not strays
    forward_calls = list(handed_in.calls)
    handed_in.calls.clear()
    (grad_x, grads), strays = handed_in.strays(mlp.backward, params, cache, out)
    assert not strays
    # Each forward pass that was called has its backward pass called, in reverse.
    assert forward_calls.pop(0) == "level_waves"
    mirrored = [name.replace("_forward", "_backward") for name in reversed(forward_calls)]
    assert handed_in.calls == mirrored

    (out_plain, cache), strays = handed_in.strays(mlp.forward, params, x, level)
    assert "linear_forward" in strays and cache[0] is ops  # the plain ops, where none are given
    np.testing.assert_array_equal(out, out_plain)
    grad_x_plain, grads_plain = mlp.backward(params, cache, out)
    np.testing.assert_array_equal(grad_x, grad_x_plain)
    np.testing.assert_array_equal(flatten(grads), flatten(grads_plain))


@pytest.mark.parametrize("of", [ops, numpy_ops], ids=["plain", "fast"])
def test_jvp_takes_the_ops_that_are_handed_in(of):
    params, x, level = random_net(0), normal_values(1, 4, 2), normal_values(2, 4)
    handed_in = RecordedOps(of)
    (out, d_out, cache), strays = handed_in.strays(mlp.jvp, params, x, level, x, level, handed_in)
    assert cache[0] is handed_in and not strays
    out_plain, d_out_plain, _ = mlp.jvp(params, x, level, x, level)
    for a, b in ((out, out_plain), (d_out, d_out_plain)):
        np.testing.assert_allclose(a, b, rtol=0, atol=256 * EPS * np.abs(b).max())


def test_jvp_obeys_the_rules_of_the_device_and_does_not_wait_for_it():
    params, x, level = random_net(0), normal_values(1, 4, 2), normal_values(2, 4)
    _, expected, _ = mlp.jvp(params, x, level, x, level)
    moved = map_leaves(asarray, params)
    x, level = asarray(x), asarray(level)
    with no_sync():
        _, d_out, _ = mlp.jvp(moved, x, level, x, level)
    np.testing.assert_array_equal(d_out.get(), expected)


@pytest.mark.parametrize("layers", [0, 3, 12])
def test_hidden_layers_are_those_that_init_made_in_order(layers):
    params = mlp.init(np.random.default_rng(0), hidden=2, layers=layers)
    assert mlp.hidden_layers(params) == [f"layer_{i}" for i in range(1, layers + 1)]


def test_outputs_may_differ_from_the_dimension_of_x():
    params = mlp.init(np.random.default_rng(0), dim=2, hidden=4, outputs=5)
    out, _ = mlp.forward(params, np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
    assert out.shape == (3, 5)
