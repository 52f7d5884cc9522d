"""Straight lines: the exact velocity, Euler's method and DDIM, straightness, reflow.

And what the samplers of eps say to a schedule that ends in pure noise.
"""

import math
from functools import partial

import numpy as np
import pytest
from conftest import EPS, assert_a_walk, random_mlp, seeds, times
from hypothesis import given
from hypothesis import strategies as st

from lab import order
from npdiff import exact, train
from npdiff.forward import q_sample
from npdiff.gradcheck import directional_error
from npdiff.loss import l_target
from npdiff.nn import mlp
from npdiff.nn.params import unflatten
from npdiff.output import network_input, target
from npdiff.papers import dpm_solver, edm, score_sde
from npdiff.papers import flow_matching as fm
from npdiff.reverse import predictor
from npdiff.sampler import ddim, ddpm
from npdiff.schedule import Schedule, cosine, linear

MIXTURE = exact.Mixture(
    [0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.1 * np.eye(2), [[0.3, 0.1], [0.1, 0.2]]]
)
ROLL = exact.SwissRoll()
T = 20
STRAIGHT = fm.straight(T)
RNG = np.random.default_rng(0)


# The exact answers, at every t


@pytest.mark.parametrize("data", [MIXTURE, ROLL], ids=["mixture", "roll"])
@given(t=times(STRAIGHT), seed=seeds)
def test_the_two_best_predictions_add_up_to_x_t_at_every_t(data, t, seed):
    # signal E[x_0 | x_t] + noise E[eps | x_t] = E[x_t | x_t]
    x_t, s = np.random.default_rng(seed).standard_normal((20, 2)), STRAIGHT.at(t, np.ones((1, 2)))
    x_0 = data.denoiser(STRAIGHT)(x_t, t)
    eps = data.predictor(STRAIGHT)(x_t, t)
    largest = max(1, np.abs(x_0).max(), np.abs(eps).max())
    np.testing.assert_allclose(s.signal * x_0 + s.noise * eps, x_t, atol=100 * EPS * largest)
    np.testing.assert_array_equal(data.velocity(STRAIGHT)(x_t, t), eps - x_0)


def test_of_pure_noise_the_best_guess_of_x_0_is_the_mean_of_the_data():
    x_T = RNG.standard_normal((10, 2))
    mean = MIXTURE.weights @ MIXTURE.means
    np.testing.assert_allclose(MIXTURE.denoiser(STRAIGHT)(x_T, T), mean + 0 * x_T, atol=20 * EPS)
    np.testing.assert_allclose(MIXTURE.velocity(STRAIGHT)(x_T, T), x_T - mean, atol=20 * EPS)
    np.testing.assert_allclose(ROLL.denoiser(STRAIGHT)(x_T, T), 0 * x_T, atol=1e-14)


def test_a_batch_of_t_is_a_row_at_a_time_and_float32_stays():
    x_t, t = RNG.standard_normal((T, 2)), np.arange(1, T + 1)
    for data in (MIXTURE, ROLL):
        together = data.denoiser(STRAIGHT)(x_t, t)
        rows = [data.denoiser(STRAIGHT)(x_t[[i]], int(t[i]))[0] for i in range(T)]
        np.testing.assert_allclose(together, rows, atol=1e-12)
        assert data.velocity(STRAIGHT)(x_t.astype(np.float32), t).dtype == np.float32


def test_the_best_guess_of_x_0_is_the_mean_over_all_x_0_weighted_by_bayes():
    # E[x_0 | x_t] = int x_0 q(x_t | x_0) p(x_0) dx_0 / q(x_t), by the trapezoid rule
    data = exact.Mixture([0.4, 0.6], [[-1.0], [0.9]], [[[0.05]], [[0.2]]])
    x_0 = np.linspace(-6, 6, 4001)[:, None]
    x_t = np.array([[-1.2], [0.1], [2.0]])
    for t in (1, 7, 19, 20):
        s = STRAIGHT.at(t, x_t)
        log_w = data.log_prob(x_0) - 0.5 * ((x_t - s.signal * x_0.T) / s.noise) ** 2
        w = np.exp(log_w - log_w.max(axis=1, keepdims=True))
        by_bayes = (w @ x_0) / w.sum(axis=1, keepdims=True)
        # The rule's error falls as exp(-(pi width / step)^2 / 2); the widths are 0.05 and the step
        # 0.003, so only rounding is left.
        np.testing.assert_allclose(data.denoiser(STRAIGHT)(x_t, t), by_bayes, atol=1e-11)


@given(s=st.floats(0.1, 3), t=times(STRAIGHT), seed=seeds)
def test_the_velocity_of_a_gaussian(s, t, seed):
    x_t, u = np.random.default_rng(seed).standard_normal((5, 1)), t / T
    expected = (u - (1 - u) * s**2) * x_t / ((1 - u) ** 2 * s**2 + u**2)
    velocity = exact.Gaussian([0.0], [[s**2]]).velocity(STRAIGHT)
    np.testing.assert_allclose(velocity(x_t, t), expected, atol=1e-13 * max(1, s**2))


# A network's velocity


@given(t=times(STRAIGHT), seed=seeds)
def test_a_velocity_follows_from_v_at_every_t(t, seed):
    x_0, eps = np.random.default_rng(seed).standard_normal((2, 6, 2))
    x_t, v = q_sample(x_0, t, eps, STRAIGHT), target(x_0, t, eps, STRAIGHT, "v")
    velocity = fm.velocity_from_v(x_t, t, v, STRAIGHT)
    np.testing.assert_allclose(velocity, eps - x_0, atol=50 * EPS)


def test_a_networks_velocity_is_that_of_its_eps_hat():
    theta, like = random_mlp(RNG)
    params = unflatten(theta, like)
    velocity = fm.predictor(mlp, params, STRAIGHT, "v")
    predict_eps = predictor(mlp, params, STRAIGHT, "v")
    x_t = RNG.standard_normal((7, 2))
    for t in (1, 10, 19):
        s = STRAIGHT.at(t, x_t)
        by_eps = (
            predict_eps(x_t, t) - x_t
        ) / s.signal  # eps - x_0, with x_0 = (x_t - u eps) / (1 - u)
        np.testing.assert_allclose(velocity(x_t, t), by_eps, atol=1e-12)
    assert np.isfinite(velocity(x_t, T)).all()


@given(seed=seeds)
def test_the_loss_is_the_error_of_the_velocity_and_that_of_v_reweighted(seed):
    rng = np.random.default_rng(seed)
    x_0, eps, out = rng.standard_normal((3, 9, 2))
    t = rng.integers(1, T + 1, size=9)
    x_t = q_sample(x_0, t, eps, STRAIGHT)
    loss, _ = fm.flow_matching_loss(out, x_0, t, eps, STRAIGHT)
    error = fm.velocity_from_v(x_t, t, out, STRAIGHT) - (eps - x_0)
    np.testing.assert_allclose(loss, (error**2).mean(axis=1), rtol=1e-10, atol=1e-13)
    loss_v, _ = l_target(out, x_0, t, eps, STRAIGHT, "v")
    np.testing.assert_allclose(loss, loss_v / STRAIGHT.std[t] ** 2, rtol=1e-12)
    one, _ = fm.flow_matching_loss(out[:1], x_0[:1], int(t[0]), eps[:1], STRAIGHT)
    np.testing.assert_allclose(one, loss[:1], rtol=1e-12)


def test_the_gradient_of_the_loss():
    theta, like = random_mlp(RNG)
    x_0, eps = RNG.standard_normal((2, 9, 2))
    t = RNG.integers(1, T + 1, size=9)

    def loss(theta):
        x, level = network_input(q_sample(x_0, t, eps, STRAIGHT), t, STRAIGHT)
        out, _ = mlp.forward(unflatten(theta, like), x, level)
        return fm.flow_matching_loss(out, x_0, t, eps, STRAIGHT)[0].mean()

    _, grad = train.gradient(
        mlp, unflatten(theta, like), x_0, t, eps, STRAIGHT, "v", fm.flow_matching_loss
    )
    assert directional_error(loss, theta, grad, RNG) < 1e-5


# The ODE


def test_euler_is_ddim():
    # On a schedule whose last level still has some signal, which DDIM needs; and the straight one
    # from there on, step by step.
    u = np.linspace(0, 0.999, T + 1)
    almost = Schedule(1 - u, u)
    x_T = RNG.standard_normal((50, 2))
    steps = list(fm.euler(MIXTURE.velocity(almost), x_T, almost))
    theirs = ddim(MIXTURE.predictor(almost), x_T, almost, steps=T)
    for a, b in zip(steps, theirs, strict=True):
        largest = 1 + np.abs(b.x_0_hat).max()
        # x_0_hat of DDIM divides rounding by the signal, 0.001 at worst.
        np.testing.assert_allclose(a.x_prev, b.x_prev, atol=1000 * 20 * EPS * largest)
        np.testing.assert_allclose(a.eps_hat, b.eps_hat, atol=1000 * 20 * EPS * largest)
    assert_a_walk(steps, x_T, almost)


@pytest.mark.parametrize("method", [fm.euler, fm.heun])
def test_a_walk_from_pure_noise_to_the_data(method):
    x_T = RNG.standard_normal((20, 2))
    assert_a_walk(list(method(MIXTURE.velocity(STRAIGHT), x_T, STRAIGHT)), x_T, STRAIGHT)
    one = fm.straight(1)
    *_, only = method(MIXTURE.velocity(one), x_T, one)
    mean = MIXTURE.weights @ MIXTURE.means
    np.testing.assert_allclose(only.x_prev, mean + 0 * x_T, atol=20 * EPS)  # one step: the mean


@pytest.mark.parametrize("method, expected", [(fm.euler, 1), (fm.heun, 2)])
def test_the_order_of_the_ode_is_that_of_the_closed_flow_map_of_a_gaussian(method, expected):
    # x_0 = m + s (x_T - 0): the flow keeps the quantile, so it is linear on a Gaussian.
    m, s, counts = 0.5, 0.6, [50, 100, 200, 400]
    data, x_T = exact.Gaussian([m], [[s**2]]), np.linspace(-2, 2, 9)[:, None]
    errors = []
    for N in counts:
        *_, last = method(data.velocity(fm.straight(N)), x_T, fm.straight(N))
        errors.append(np.abs(last.x_prev - (m + s * x_T)).max())
    assert order.order(counts, np.array(errors)) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("s", [0.3, 0.7, 2.0])
def test_the_straightness_of_a_gaussian(s):
    # x_t = gamma(u) z with gamma = sqrt((1 - u)^2 s^2 + u^2), so the velocity is gamma' z, and
    # S = E z^2 (int gamma'^2 du - (1 - s)^2).
    data, z, counts = (
        exact.Gaussian([0.0], [[s**2]]),
        RNG.standard_normal((200, 1)),
        [200, 400, 800],
    )
    u = (np.arange(100_000) + 0.5) / 100_000
    slope = (u - (1 - u) * s**2) / np.sqrt((1 - u) ** 2 * s**2 + u**2)
    expected = (z**2).mean() * ((slope**2).mean() - (1 - s) ** 2)
    lines = [fm.straight(N) for N in counts]
    found = np.array([fm.straightness(data.velocity(line), z, line) for line in lines])
    # Euler's path and the sum over its steps are both wrong by order 1 / N.
    assert order.order(counts, np.abs(found - expected)) == pytest.approx(1, abs=0.1)
    assert found[-1] == pytest.approx(expected, rel=0.03)


def test_straight_paths_are_followed_in_one_step_and_have_straightness_0():
    shift = np.array([2.0, -1.0])

    def velocity(x_t, t):  # x_0 = x_T - shift for every path
        return shift + 0 * x_t

    x_T = RNG.standard_normal((8, 2))
    assert fm.straightness(velocity, x_T, STRAIGHT) < 1e-25
    *_, last = fm.euler(velocity, x_T, fm.straight(1))
    np.testing.assert_allclose(last.x_prev, x_T - shift, atol=4 * EPS)


# The flow map


LINE = exact.Mixture([0.4, 0.6], [[-1.0], [0.9]], [[[0.05]], [[0.2]]])


@given(m=st.floats(-2, 2), s=st.floats(0.1, 3), u=st.floats(0.05, 1), seed=seeds)
def test_on_a_gaussian_the_flow_map_is_that_of_quantiles(m, s, u, seed):
    x = np.random.default_rng(seed).standard_normal((7, 1))
    data = exact.Gaussian([m], [[s**2]])
    level, end = (1 - u, u), (1 - u / 2, u / 2)
    closed, by_quantiles = (
        data.flow_map(x, *level, *end),
        exact.Mixture.flow_map(data, x, *level, *end),
    )
    # log_cdf is right to some 1e-15, and a quantile to that over the density, at 9 deviations.
    np.testing.assert_allclose(by_quantiles, closed, rtol=0, atol=1e-9 * (1 + np.abs(closed).max()))
    np.testing.assert_allclose(data.flow_map(closed, *end, *level), x, atol=1e-12)


def test_the_flow_map_of_a_mixture_carries_q_and_leads_back():
    x = np.linspace(-2.5, 2.5, 41)[:, None]
    y = LINE.flow_map(x, 0.0, 1.0)
    np.testing.assert_allclose(LINE.flow_map(y, 1.0, 0.0, 0.0, 1.0), x, atol=1e-9)
    # The change of variables: q_T(x) = p(y) dy/dx, by central differences. Their error is of order
    # h^2, so that with h is a third of what h and 2 h differ by.
    ahead, behind, far_ahead, far_behind = (
        LINE.flow_map(x + k * 1e-3, 0.0, 1.0) for k in (1, -1, 2, -2)
    )
    slope, wide = (ahead - behind)[:, 0] / 2e-3, (far_ahead - far_behind)[:, 0] / 4e-3
    gap = LINE.log_prob(y) + np.log(slope) - LINE.log_prob(x, 0.0, 1.0)
    assert (np.abs(gap) <= np.abs(np.log(wide / slope)) + 1e-8).all()
    with pytest.raises(ValueError, match=r"d = 1 alone.*exact_map"):
        MIXTURE.flow_map(np.ones((2, 2)), 0.0, 1.0)


def test_the_ode_of_the_exact_velocity_ends_where_the_flow_map_says():
    x_T = np.linspace(-2.4, 2.4, 25)[:, None]
    ends = LINE.flow_map(x_T, 0.0, 1.0)
    errors = [np.median(np.abs(fm.exact_map(LINE, x_T, N) - ends)) for N in (100, 200, 400)]
    assert order.order([100, 200, 400], np.array(errors)) == pytest.approx(2, abs=0.15)
    data, x_T = exact.Gaussian([0.5, -1.0], [[0.5, 0.2], [0.2, 1.2]]), RNG.standard_normal((9, 2))
    np.testing.assert_allclose(fm.exact_map(data, x_T, 400), data.flow_map(x_T, 0, 1), atol=1e-4)


# Reflow


def test_reflow_learns_pairs_that_one_straight_step_joins():
    # x_0 = A x_T: pairs without any crossing, whose velocity is a function of x_t.
    rng = np.random.default_rng(0)
    x_T = rng.standard_normal((4000, 2)).astype(np.float32)
    x_0 = (x_T * [0.5, 1.2] + [0.3, 0.0]).astype(np.float32)
    state = train.start(mlp.init(rng, hidden=32, layers=2), predict="v")
    update = partial(train.update, lr=5e-3)
    steps = list(fm.reflow(mlp, state, x_0, x_T, fm.straight(100), rng, 400, 256, update=update))
    assert state.step == 400 and steps[-1].loss < 0.01 * steps[0].loss
    (half,) = [np.mean([(step.t == 100).mean() for step in steps])]
    assert abs(half - 0.505) < 5 * 0.5 / math.sqrt(400 * 256)
    one = fm.straight(1)
    *_, last = fm.euler(fm.predictor(mlp, state, one), x_T, one)
    shuffled = x_0[rng.permutation(len(x_0))]
    assert ((last.x_prev - x_0) ** 2).mean() < 0.02 * ((shuffled - x_0) ** 2).mean()


def test_the_rows_of_reflow_stay_pairs():
    rng = np.random.default_rng(1)
    x_T = rng.standard_normal((50, 2)).astype(np.float32)
    state = train.start(mlp.init(rng, hidden=4, layers=1), predict="v")
    for step in fm.reflow(mlp, state, 3 * x_T, x_T, STRAIGHT, rng, 3, 16):
        np.testing.assert_array_equal(step.x_0, 3 * step.eps)


# What does not fit


@pytest.mark.parametrize(
    "method",
    [
        lambda e, x, s, r: ddpm(e, x, s, r),
        lambda e, x, s, r: ddim(e, x, s, 5),
        lambda e, x, s, r: edm.heun(e, x, s),
        lambda e, x, s, r: dpm_solver.dpm_solver_pp_2m(e, x, s),
        lambda e, x, s, r: score_sde.euler_maruyama(e, x, s, r),
        lambda e, x, s, r: score_sde.predictor_corrector(e, x, s, r),
    ],
    ids=["ddpm", "ddim", "heun", "dpm_solver", "euler_maruyama", "predictor_corrector"],
)
def test_a_sampler_of_eps_refuses_a_schedule_that_ends_in_pure_noise(method):
    def never(x_t, t):
        raise AssertionError("the predictor is not asked")

    with pytest.raises(ValueError, match=r"signal\[T\] is 0.*flow_matching\.euler") as error:
        next(method(never, np.ones((2, 2)), STRAIGHT, np.random.default_rng(0)))
    assert "\n" not in str(error.value)


def test_a_velocity_needs_a_straight_schedule_and_a_network_that_predicts_v():
    params = mlp.init(np.random.default_rng(0))
    x_T = np.ones((2, 2))
    for schedule in (linear(10), cosine(10)):
        with pytest.raises(ValueError, match="signal . noise = 1"):
            fm.predictor(mlp, params, schedule, "v")
        for method in (fm.euler, fm.heun):
            with pytest.raises(ValueError, match="signal . noise = 1"):
                next(method(lambda x_t, t: x_t, x_T, schedule))
    for predict in ("eps", "x_0", "score", None):
        with pytest.raises(ValueError, match="must predict v"):
            fm.predictor(mlp, params, STRAIGHT, predict)
    with pytest.raises(ValueError, match="must predict v"):
        fm.flow_matching_loss(x_T, x_T, 1, x_T, STRAIGHT, "eps")
    with pytest.raises(ValueError, match="T must be a whole number"):
        fm.straight(0)
