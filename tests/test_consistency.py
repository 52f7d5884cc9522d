"""Consistency models: the identity at the data, pairs on a path, and the optimum at finitely many
levels, which is known for a Gaussian."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import EPS, STANDARD_ERRORS, random_mlp, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff import exact, train
from npdiff.forward import q_sample
from npdiff.gradcheck import directional_error
from npdiff.nn import mlp
from npdiff.nn.params import unflatten
from npdiff.output import network_input
from npdiff.papers import consistency as cm
from npdiff.papers import edm
from npdiff.schedule import uniform_log_snr

RNG = np.random.default_rng(0)
N = 16
SCHEDULE = uniform_log_snr(N, -4.0, 5.0)
S = 0.3  # the deviation of the Gaussian data
DATA = exact.Gaussian([0.0], [[S**2]])


def best_factors(schedule):
    """f(x_t) = a_t x_t of least loss: a_t = a_{t-1} Cov(x_t, x_{t-1}) / Var(x_t), and a_0 = 1."""
    signal, noise = schedule.signal, schedule.noise
    cov = signal[1:] * signal[:-1] * S**2 + noise[1:] * noise[:-1]
    return np.concatenate([[1.0], np.cumprod(cov / (signal[1:] ** 2 * S**2 + noise[1:] ** 2))])


def linear_net(factors, schedule):
    """A network whose jump from step t is factors[t] x_t: v = (signal - factor) / noise x_t."""

    def forward(params, x, level):
        t = np.abs(schedule.level[1:, None] - level).argmin(axis=0) + 1
        v = ((schedule.signal[t] - factors[t]) / schedule.noise[t])[:, None] * x
        return np.where(np.isfinite(level)[:, None], v, 0.0), ()

    return SimpleNamespace(forward=forward)


@given(seeds)
def test_at_the_data_the_jump_is_the_identity_whatever_the_network_says(seed):
    rng = np.random.default_rng(seed)
    theta, like = random_mlp(rng)
    x, level = rng.standard_normal((4, 2)), np.full(4, -np.inf)
    f = cm.jump(mlp, unflatten(theta, like), x, np.ones((4, 1)), np.zeros((4, 1)), level)
    np.testing.assert_array_equal(f, x)


def test_with_the_true_v_the_jump_is_x_0():
    t = RNG.integers(1, N + 1, size=9)
    x_0, eps = RNG.standard_normal((2, 9, 2))
    s = SCHEDULE.at(t, x_0)
    v = s.signal * eps - s.noise * x_0
    net = SimpleNamespace(forward=lambda params, x, level: (v, ()))
    f = cm.predictor(net, {}, SCHEDULE)
    np.testing.assert_allclose(f(q_sample(x_0, t, eps, SCHEDULE), t), x_0, atol=20 * EPS)


@given(seeds)
def test_a_pair_of_the_data_has_one_x_0_and_one_eps(seed):
    rng = np.random.default_rng(seed)
    x_0, eps = rng.standard_normal((2, N, 2))
    t = np.arange(1, N + 1)
    x_prev = cm.data_pair(x_0, eps, q_sample(x_0, t, eps, SCHEDULE), t, SCHEDULE)
    np.testing.assert_array_equal(x_prev[0], x_0[0])
    by_sampling = q_sample(x_0[1:], t[1:] - 1, eps[1:], SCHEDULE)
    np.testing.assert_allclose(x_prev[1:], by_sampling, atol=4 * EPS)


def test_a_teachers_pair_is_a_step_of_heuns_method():
    data = exact.Mixture([0.4, 0.6], [[-1.0], [0.9]], [[[0.05]], [[0.2]]])
    predict_eps, x_T = data.predictor(SCHEDULE), np.linspace(-2, 2, 7)[:, None]
    for step in edm.heun(predict_eps, x_T, SCHEDULE):
        t = np.full(7, step.t)
        x_prev = cm.teacher_pair(np.nan * x_T, np.nan * x_T, step.x_t, t, SCHEDULE, predict_eps)
        np.testing.assert_allclose(x_prev, step.x_prev, atol=1e-12)


def test_pairs_of_the_data_lie_on_the_path_on_average():
    # Given x_t, the mean of x_{t-1} is DDIM's step, since x_{t-1} is linear in x_0 and eps. For a
    # Gaussian it is E[x_{t-1} x_t] / Var(x_t) x_t, so both pairs have the best factors below.
    t, n = 9, 200_000
    x_0, eps = DATA.sample(n, RNG, np.float64), RNG.standard_normal((n, 1))
    x_t, ts = q_sample(x_0, t, eps, SCHEDULE), np.full(n, t)
    s = SCHEDULE.at(t, x_t)
    predict_eps = DATA.predictor(SCHEDULE)
    eps_hat = predict_eps(x_t, t)
    by_ddim = s.signal_prev * (x_t - s.noise * eps_hat) / s.signal + s.noise_prev * eps_hat
    product = (cm.data_pair(x_0, eps, x_t, ts, SCHEDULE) - by_ddim) * x_t
    error = product.std() / np.sqrt(n)
    assert abs(product.mean()) < STANDARD_ERRORS * error
    a = best_factors(SCHEDULE)
    np.testing.assert_allclose(by_ddim, a[t] / a[t - 1] * x_t, atol=1e-13)


def test_the_loss_is_the_error_of_the_jump_over_the_noise_and_its_gradient():
    theta, like = random_mlp(RNG)
    params, t = unflatten(theta, like), RNG.integers(1, N + 1, size=9)
    x_0, eps, target = RNG.standard_normal((3, 9, 2))
    x_t = q_sample(x_0, t, eps, SCHEDULE)
    f, noise = cm.predictor(mlp, params, SCHEDULE)(x_t, t), SCHEDULE.noise[t][:, None]
    objective = partial(cm.consistency_loss, target=target)
    losses, grad = train.gradient(mlp, params, x_0, t, eps, SCHEDULE, "v", objective)
    expected = (((f - target) / noise) ** 2).mean(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)

    def loss(theta):
        x, level = network_input(x_t, t, SCHEDULE)
        out, _ = mlp.forward(unflatten(theta, like), x, level)
        return cm.consistency_loss(out, x_0, t, eps, SCHEDULE, "v", target)[0].mean()

    assert directional_error(loss, theta, grad, RNG) < 1e-5


@pytest.mark.parametrize("kind", ["data", "teacher"])
def test_at_the_best_factors_of_a_gaussian_the_mean_gradient_is_0(kind):
    # A gradient of a_t is the mean of (error of f) x_t: by data pairs it is 0 in standard errors;
    # by Euler's pairs, which are linear in x_t, exactly.
    n, a = 200_000, best_factors(SCHEDULE)
    net = linear_net(a, SCHEDULE)
    for t in (1, 6, N):
        x_0, eps, ts = DATA.sample(n, RNG, np.float64), RNG.standard_normal((n, 1)), np.full(n, t)
        x_t = q_sample(x_0, t, eps, SCHEDULE)
        s = SCHEDULE.at(ts, x_t)
        if kind == "data":
            x_prev = cm.data_pair(x_0, eps, x_t, ts, SCHEDULE)
        else:
            x_prev = a[t] / a[t - 1] * x_t
        level = SCHEDULE.level[ts - 1]
        target = cm.jump(net, {}, x_prev, s.signal_prev, s.noise_prev, level)
        out, _ = net.forward({}, x_t, SCHEDULE.level[ts])
        _, grad_out = cm.consistency_loss(out, x_0, ts, eps, SCHEDULE, "v", target)
        product = grad_out * x_t
        allowed = STANDARD_ERRORS * product.std() / np.sqrt(n) if kind == "data" else 1e-12
        assert abs(product.mean()) < allowed


def test_the_best_jump_falls_short_by_what_few_levels_cost_and_reaches_the_flow_map_with_many():
    # The exact end of the path is s / sqrt(signal_T^2 s^2 + noise_T^2) x_T.
    shortfall = []
    for levels in (100, 200, 400):
        schedule = uniform_log_snr(levels, -9.0, 5.0)
        end = S / np.sqrt(schedule.signal[-1] ** 2 * S**2 + schedule.noise[-1] ** 2)
        shortfall.append(1 - best_factors(schedule)[-1] / end)
    assert 0.04 > shortfall[0] > shortfall[1] > shortfall[2] > 0
    ratios = shortfall[0] / shortfall[1], shortfall[1] / shortfall[2]  # order 1 in the levels
    assert ratios == pytest.approx((2, 2), abs=0.1)


def test_training_reaches_the_best_factors():
    rng, schedule = np.random.default_rng(0), uniform_log_snr(6, -3.0, 3.0)
    state = train.start(mlp.init(rng, dim=1, hidden=32, layers=2), predict="v")
    update = partial(train.update, lr=1e-2)
    steps = cm.learn(
        mlp, state, cm.data_pair, DATA.sample, lambda step: schedule, rng, 1500, 256, update=update
    )
    *_, last = steps
    assert state.step == last.step == 1500
    x = np.linspace(-1.5, 1.5, 31, dtype=np.float32)[:, None]
    f, a = cm.predictor(mlp, state, schedule), best_factors(schedule)
    for t in (2, 4, 6):
        slope = float((f(x, t) * x).sum() / (x * x).sum())
        # The data pairs scatter around the path, and Adam's last steps with them.
        assert slope == pytest.approx(a[t], abs=0.03)


@given(st.integers(1, 3000))
def test_the_levels_double_from_the_fewest_to_the_most(steps):
    counts = [cm.finer(step, steps, 12, 96).T for step in range(1, steps + 1)]
    assert counts[0] == 12 and counts == sorted(counts) and set(counts) <= {12, 24, 48, 96}
    if steps >= 4:
        assert counts[-1] == 96
        assert max(counts.count(c) for c in set(counts)) - min(map(counts.count, counts)) <= 1
    assert cm.finer(1, steps, 12, 96, (-4, 5)).level[[1, -1]] == pytest.approx([-4, 5])


def test_further_jumps_start_from_the_noised_sample():
    seen = []

    def f(x, t):
        seen.append((t, x))
        return 0.5 * x

    x_T, rng = np.ones((3, 2)), np.random.default_rng(5)
    first, second = cm.sample(f, x_T, [7], SCHEDULE, rng)
    z = np.random.default_rng(5).standard_normal((3, 2))
    assert [t for t, _ in seen] == [N, 7]
    np.testing.assert_array_equal(first, 0.5 * x_T)
    np.testing.assert_array_equal(seen[1][1], q_sample(first, 7, z, SCHEDULE))
    np.testing.assert_array_equal(second, 0.5 * seen[1][1])
