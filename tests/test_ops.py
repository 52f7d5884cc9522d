import inspect

import numpy as np
import pytest
from conftest import EPS, EPS_32, normal_values, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff.kit.gradcheck import check_pair, directional_error
from npdiff.nn import ops

# Central differences of step 1e-5 err by 1e-10 times a third derivative, and by EPS / 1e-5 = 2e-11
# of the sum that is differenced. A random slope is rarely below a thousandth of that sum; a slip
# errs by a tenth and more.
TOLERANCE = 1e-5

sizes = st.integers(1, 5)


def generator(seed):
    """For the upstream gradient and the direction: of another seed than x, which would make x^T
    dL/dy symmetric."""
    return np.random.default_rng([seed, 1])


def embed_pair(seed, inputs, waves):
    """embed's frequencies are fixed numbers, no parameter: the pair as a function of x alone."""
    frequencies = normal_values(seed, inputs, waves)
    return (lambda x: ops.embed_forward(x, frequencies)), ops.embed_backward


def pairs(seed, batch, inputs, outputs):
    """Every op of the file: forward, backward, x and parameters at random values."""
    x = 2 * normal_values(seed, batch, inputs)
    w, b, square = (
        normal_values(seed + 1, inputs, outputs),
        normal_values(seed + 2, outputs),
        normal_values(seed + 3, inputs, inputs),
    )
    return {
        "linear": (ops.linear_forward, ops.linear_backward, x, {"w": w, "b": b}),
        "silu": (ops.silu_forward, ops.silu_backward, x, {}),
        "embed": (*embed_pair(seed + 4, inputs, outputs), x, {}),
        "residual": (
            ops.residual_forward,
            ops.residual_backward,
            x,
            {"w": square, "b": normal_values(seed + 5, inputs)},
        ),
    }


def test_every_op_of_the_file_is_a_pair_and_is_checked_here():
    names = {
        name
        for name, f in inspect.getmembers(ops, inspect.isfunction)
        if f.__module__ == ops.__name__ and not name.startswith("_")
    }
    here = {f"{name}_{way}" for name in pairs(0, 2, 2, 2) for way in ("forward", "backward")}
    assert names == here


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


@given(seeds, sizes, sizes)
def test_residual_adds_a_layer_to_x(seed, batch, inputs):
    x, w, b = (
        normal_values(seed, batch, inputs),
        normal_values(seed + 1, inputs, inputs),
        normal_values(seed + 2, inputs),
    )
    y, _ = ops.residual_forward(x, w, b)
    np.testing.assert_allclose(y, x + x / (1 + np.exp(-x)) @ w + b, rtol=0, atol=256 * EPS)
    np.testing.assert_array_equal(ops.residual_forward(x, 0 * w, 0 * b)[0], x)


# gradcheck itself


def slipped(part, change):
    """linear_backward with one slip in one of its gradients."""

    def backward(grad_y, cache):
        grad_x, grads = ops.linear_backward(grad_y, cache)
        gradients = {"x": grad_x, **grads}
        gradients[part] = change(gradients[part])
        return gradients.pop("x"), gradients

    return backward


@pytest.mark.parametrize("part", ["x", "w", "b"])
@pytest.mark.parametrize(
    "change",
    [lambda g: -g, lambda g: 2 * g, lambda g: 0.5 * g, lambda g: 0 * g, lambda g: g[::-1].copy()],
    ids=["sign", "twice", "half", "none", "reversed"],
)
@pytest.mark.parametrize("seed", range(5))
def test_gradcheck_catches_a_planted_slip_and_names_it(part, change, seed):
    x, w, b = normal_values(seed, 4, 3), normal_values(seed + 1, 3, 3), normal_values(seed + 2, 3)
    errors = check_pair(ops.linear_forward, slipped(part, change), x, generator(seed), w=w, b=b)
    assert errors.pop(part) > 100 * TOLERANCE
    assert max(errors.values()) < TOLERANCE


@pytest.mark.parametrize("seed", range(5))
def test_gradcheck_catches_a_transposed_matrix(seed):
    x, w, b = normal_values(seed, 4, 3), normal_values(seed + 1, 3, 3), normal_values(seed + 2, 3)
    errors = check_pair(
        ops.linear_forward, slipped("w", lambda g: g.T), x, generator(seed), w=w, b=b
    )
    assert errors["w"] > 100 * TOLERANCE


@pytest.mark.parametrize("seed", range(5))
def test_gradcheck_catches_a_gradient_that_only_an_upstream_of_ones_hides(seed):
    def backward(grad_y, cache):  # silu with the upstream gradient left out
        return ops.silu_backward(np.ones_like(grad_y), cache)

    assert (
        check_pair(ops.silu_forward, backward, normal_values(seed, 4, 3), generator(seed))["x"]
        > 100 * TOLERANCE
    )


def test_gradcheck_takes_a_function_of_any_shape():
    x = normal_values(0, 2, 3, 4)
    rng = np.random.default_rng(1)
    assert directional_error(lambda a: (a**3).sum(), x, 3 * x**2, rng) < TOLERANCE
    assert directional_error(lambda a: (a**3).sum(), x, 2 * x**2, rng) > 0.1


def test_gradcheck_refuses_what_it_cannot_judge():
    x, w, b = normal_values(0, 4, 3), normal_values(1, 3, 3), normal_values(2, 3)
    with pytest.raises(ValueError, match="float64"):
        directional_error(np.sum, x.astype(np.float32), x, np.random.default_rng(0))
    with pytest.raises(ValueError, match="shape"):
        directional_error(np.sum, x, x.T, np.random.default_rng(0))
    with pytest.raises(ValueError, match="gives gradients of"):
        check_pair(
            ops.linear_forward,
            lambda grad_y, cache: (grad_y, {"w": w}),
            x,
            np.random.default_rng(0),
            w=w,
            b=b,
        )
