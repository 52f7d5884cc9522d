"""The check of gradients is itself checked: each slip is planted once."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import normal_values, random_mlp

from npdiff.gradcheck import check_jvp, check_pair, directional_error
from npdiff.nn import mlp, ops
from npdiff.nn.params import unflatten

TOLERANCE = 1e-5  # as in test_ops


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
    errors = check_pair(
        ops.linear_forward, slipped(part, change), x, np.random.default_rng([seed, 1]), w=w, b=b
    )
    assert errors.pop(part) > 100 * TOLERANCE
    assert max(errors.values()) < TOLERANCE


@pytest.mark.parametrize("seed", range(5))
def test_gradcheck_catches_a_transposed_matrix(seed):
    x, w, b = normal_values(seed, 4, 3), normal_values(seed + 1, 3, 3), normal_values(seed + 2, 3)
    errors = check_pair(
        ops.linear_forward,
        slipped("w", lambda g: g.T),
        x,
        np.random.default_rng([seed, 1]),
        w=w,
        b=b,
    )
    assert errors["w"] > 100 * TOLERANCE


@pytest.mark.parametrize("seed", range(5))
def test_gradcheck_catches_a_gradient_that_only_an_upstream_of_ones_hides(seed):
    def backward(grad_y, cache):  # silu with the upstream gradient left out
        return ops.silu_backward(np.ones_like(grad_y), cache)

    assert (
        check_pair(
            ops.silu_forward, backward, normal_values(seed, 4, 3), np.random.default_rng([seed, 1])
        )["x"]
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


@pytest.mark.parametrize("seed", range(20))
def test_the_direction_is_no_more_than_45_degrees_from_the_gradient(seed):
    # So the slope is at least 0.7 |grad|, and no check is decided by rounding.
    grad = normal_values(seed, 50)
    points = []

    def f(x):
        points.append(x)
        return (grad * x).sum()

    directional_error(f, np.zeros(50), grad, np.random.default_rng([seed, 1]), h=1.0)
    direction = (points[0] - points[1]) / 2
    assert np.linalg.norm(direction) == pytest.approx(1)
    assert (grad * direction).sum() >= 0.7 * np.linalg.norm(grad)


def jvp_errors(seed, jvp=mlp.jvp, backward=mlp.backward):
    """check_jvp of an MLP with one of its three parts replaced."""
    theta, like = random_mlp(np.random.default_rng(seed))
    net = SimpleNamespace(forward=mlp.forward, backward=backward, jvp=jvp)
    x, level = normal_values(seed + 1, 4, 2), 2 * normal_values(seed + 2, 4)
    return check_jvp(net, unflatten(theta, like), x, level, np.random.default_rng([seed, 1]))


@pytest.mark.parametrize("seed", range(5))
def test_check_jvp_passes_a_right_derivative(seed):
    errors = jvp_errors(seed)
    assert max(errors.values()) < TOLERANCE
    assert errors["duality"] < 1e-12  # no difference quotient: rounding alone


@pytest.mark.parametrize("seed", range(5))
def test_check_jvp_catches_a_planted_slip_and_names_it(seed):
    def of_change(change):
        def jvp(params, x, level, d_x, d_level):
            out, _, cache = mlp.jvp(params, x, level, d_x, d_level)
            return out, change(params, x, level, d_x, d_level), cache

        return jvp_errors(seed, jvp)

    halved = of_change(lambda *a: 0.5 * mlp.jvp(*a)[1])
    assert min(halved.values()) > 100 * TOLERANCE

    deaf = of_change(
        lambda params, x, level, d_x, d_level: mlp.jvp(params, x, level, d_x, 0 * level)[1]
    )
    assert deaf["x"] < TOLERANCE and deaf["duality"] < TOLERANCE
    assert min(deaf["level"], deaf["both"]) > 100 * TOLERANCE

    def another_backward(params, cache, grad_out):  # with the rows reversed
        grad_x, grads = mlp.backward(params, cache, grad_out)
        return grad_x[::-1], grads

    wrong_way_back = jvp_errors(seed, backward=another_backward)
    assert wrong_way_back.pop("duality") > 100 * TOLERANCE
    assert max(wrong_way_back.values()) < TOLERANCE
