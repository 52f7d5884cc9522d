"""Properties that random slips had shown to be untested: of the likelihood, the U-Net, guidance and
the check of gradients."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import EPS, normal_values, preserving_schedules, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiff import exact, gradcheck
from npdiff.forward import q_sample
from npdiff.likelihood import (
    bound,
    fixed,
    gaussian_decoder,
    one_t_bound,
    path,
    step_kl,
    terms_from_loss,
)
from npdiff.nn import conv, ops, unet
from npdiff.nn.params import pack, unflatten
from npdiff.reverse import predictor
from npdiff.schedule import cosine, linear

# The likelihood


@given(preserving_schedules(max_T=20), st.integers(1, 3), seeds)
def test_every_path_has_the_likelihood_itself_where_the_reverse_process_is_exact(
    schedule, dim, seed
):
    # N(0, I) stays N(0, I), and its reverse steps are Gaussians of variance beta. So the two chains
    # are one, and their ratio is p(x_0) on every path, not in the mean alone.
    rng, data = np.random.default_rng(seed), exact.Gaussian(np.zeros(dim), np.eye(dim))
    x_0 = rng.standard_normal((6, dim))
    nats = path(x_0, schedule, fixed(data.predictor(schedule), schedule, "beta"), rng)
    # Rounding moves x_{t-1} - mean, a difference of size sqrt(beta_t), by a few EPS |x|.
    atol = 256 * EPS * schedule.T * dim / math.sqrt(schedule.beta[1:].min())
    np.testing.assert_allclose(nats, -data.log_prob(x_0), rtol=1e-12, atol=atol)


@pytest.mark.parametrize("estimate", ["bound", "path", "one_t_bound"])
def test_the_decoder_is_given_x_0_then_the_mean_and_the_variance_at_t_1(estimate):
    schedule, rng, calls = cosine(5), np.random.default_rng(0), []
    x_0 = rng.standard_normal((7, 2))
    reverse = lambda x_t, t: (3 * x_t + np.reshape(t, (-1, 1)), 0.5 + 0 * x_t)  # noqa: E731

    def decoder(x, mean, var):
        calls.append((x, mean, var))
        return 10.0 + 0 * x

    if estimate == "bound":
        *_, (_, nats) = bound(x_0, schedule, reverse, rng, decoder)
    elif estimate == "path":

        def path_with(decoder):
            return path(x_0, schedule, reverse, np.random.default_rng(1), decoder)

        nats = path_with(decoder) - path_with(lambda x, mean, var: 0 * x)
    else:
        p = np.array([0, 0, 0.25, 0.25, 0.25, 0.25])
        nats, _, _ = one_t_bound(x_0, schedule, reverse, rng, p, decoder)
    np.testing.assert_allclose(nats, -20.0, rtol=1e-9)  # 10 nats for each of two coordinates
    for x, mean, var in calls:
        np.testing.assert_array_equal(x, x_0)
        noise = ((mean - 1) / 3 - schedule.signal[1] * x_0) / schedule.noise[1]  # t = 1
        assert 0.3 < noise.std() < 3 and (var == 0.5).all()


@settings(max_examples=25)
@given(preserving_schedules(max_T=12), st.floats(0.1, 3.0), st.floats(-0.5, 1.5), seeds)
def test_each_term_follows_from_the_loss_at_its_t(schedule, var, slope, seed):
    """For eps_hat = slope x_t and any table of variances, by quadrature over x_0 and the noise."""
    z, weights = np.polynomial.hermite_e.hermegauss(3)  # exact: every term is of degree 2
    x_0, eps = (a.reshape(-1, 1) for a in np.meshgrid(math.sqrt(var) * z, z))
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    table = np.random.default_rng(seed).uniform(0.5, 2.0, schedule.T + 1) * schedule.beta
    loss = (1 - slope * schedule.noise) ** 2 + (slope * schedule.signal) ** 2 * var
    terms = terms_from_loss(loss, schedule, table)
    reverse = fixed(lambda x, t: slope * x, schedule, table)
    assert terms.shape == (schedule.T + 1,) and terms[0] == 0
    for t in range(1, schedule.T + 1):
        x_t = q_sample(x_0, t, eps, schedule)
        if t > 1:
            nats = step_kl(x_0, x_t, t, schedule, reverse)
        else:
            nats = -gaussian_decoder(x_0, *reverse(x_t, 1))[:, 0]
        assert terms[t] == pytest.approx(weights @ nats, rel=1e-8, abs=1e-9)


# Guidance


@given(seeds, st.floats(0.1, 5.0))
def test_guidance_goes_from_the_guess_without_a_label_through_the_one_with_it(seed, w):
    eps_cond, eps_uncond = normal_values(seed, 2, 3, 2)

    def forward(params, x, level, label):
        return np.where(
            (label == -1)[:, None], *(np.tile(e, (2, 1)) for e in (eps_uncond, eps_cond))
        ), None

    net, label = SimpleNamespace(forward=forward, NO_CLASS=-1), np.array([0, 1, 2])
    guided = predictor(net, {}, linear(10), guidance=w, label=label)(np.zeros((3, 2)), 4)
    np.testing.assert_allclose(guided, eps_uncond + (1 + w) * (eps_cond - eps_uncond), atol=1e-12)


# The U-Net


def random_unet(width=8):
    """Every leaf random, in float64."""
    theta, like = pack(unet.init(np.random.default_rng(0), classes=3, width=width))
    return unflatten(theta + 0.2 * normal_values(1, theta.size), like)


@pytest.mark.parametrize(
    "far, end", [(-np.inf, ops.LEVEL_MIN), (-9.0, ops.LEVEL_MIN), (9.0, ops.LEVEL_MAX)]
)
def test_a_level_beyond_the_range_counts_as_its_end_for_the_u_net_too(far, end):
    params, x = random_unet(), normal_values(2, 2, 8, 8, 1)
    at_end, _ = unet.forward(params, x, np.full(2, end))
    np.testing.assert_array_equal(unet.forward(params, x, np.full(2, far))[0], at_end)
    inside, _ = unet.forward(params, x, np.full(2, 0.99 * end))
    assert np.abs(inside - at_end).max() > 1e-6


def test_an_untrained_block_adds_nothing_to_its_skip_connection():
    rng = np.random.default_rng(0)
    x, e = normal_values(1, 2, 4, 4, 8), normal_values(2, 2, 32)
    y, _ = unet.block_forward(x, e, unet.block(rng, 8, 8, 32), conv)
    np.testing.assert_array_equal(y, x)
    params = unet.block(rng, 8, 16, 32)
    y, _ = unet.block_forward(x, e, params, conv)
    np.testing.assert_array_equal(y, conv.conv2d_forward(x, **params["bypass"])[0])
    assert y.any()


@pytest.mark.parametrize("shape", [(1, 6, 8, 1), (1, 8, 6, 1), (1, 7, 8, 1)])
def test_a_height_or_a_width_that_is_no_multiple_of_4_is_refused(shape):
    params = unet.init(np.random.default_rng(0), width=8)
    with pytest.raises(ValueError, match="multiples of 4"):
        unet.forward(params, np.zeros(shape, np.float32), np.zeros(1, np.float32))


# The direction of a check of gradients


def directions(grad, count=200):
    """The directions in which `directional_error` looks, recovered from the points it asks for."""
    seen, rng = [], np.random.default_rng(0)
    for _ in range(count):
        points = []

        def f(x, points=points):
            points.append(x)
            return (grad * x).sum()

        gradcheck.directional_error(f, 0 * grad, grad, rng, h=1.0)
        seen.append((points[0] - points[1]) / 2)
    return np.array(seen)


def test_directions_have_length_1_lie_within_45_degrees_and_cover_every_side_of_the_gradient():
    grad = 7.0 * normal_values(0, 3)
    d, axis = directions(grad), grad / np.linalg.norm(grad)
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), 1)
    along = d @ axis
    assert (along >= math.sqrt(0.5) - 1e-12).all() and along.std() > 0.05
    across = d - along[:, None] * axis
    # Their mean is 0: no side is preferred, so an error across the gradient is not overlooked.
    standard_error = across.std(axis=0) / math.sqrt(len(d))
    assert (np.abs(across.mean(axis=0)) < 5 * standard_error).all() and across.std() > 0.1


def test_a_gradient_of_0_is_checked_along_random_directions():
    d = directions(np.zeros(3))
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), 1)
    assert np.linalg.matrix_rank(d) == 3
    errors = [
        gradcheck.directional_error(np.sum, np.zeros(3), np.zeros(3), np.random.default_rng(i))
        for i in range(5)
    ]
    assert min(errors) > 0.99  # the slope is not 0


def test_the_slope_is_the_difference_over_both_sides():
    # Along a parabola it is exact; that of one side alone would err by h times the curvature.
    f = lambda x: float((1 + x + 10 * x**2).sum())  # noqa: E731
    error = gradcheck.directional_error(f, np.zeros(1), np.ones(1), np.random.default_rng(0), h=0.1)
    assert error < 1e-12
