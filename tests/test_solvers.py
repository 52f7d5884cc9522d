"""The samplers and the likelihood of the later papers, with the exact predictor: their order, and
the distribution that they end in."""

import math
from functools import partial
from itertools import product

import numpy as np
import pytest
from conftest import (
    STANDARD_ERRORS,
    Counted,
    assert_a_walk,
    assert_within_standard_errors,
    preserving_schedules,
    random_mlp,
    schedules,
    seeds,
    sign_turned,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import order
from npdiff import exact, train
from npdiff.gradcheck import check_pair, directional_error
from npdiff.nn import mlp
from npdiff.nn.params import flatten, unflatten
from npdiff.papers import dpm_solver, edm, score_sde
from npdiff.reverse import predictor
from npdiff.sampler import ddim
from npdiff.schedule import cosine, uniform_log_snr

MIXTURE = exact.Mixture([0.4, 0.6], [[-1.0], [0.9]], [[[0.05]], [[0.2]]])
COUNTS = [50, 100, 200, 400]
X = np.linspace(-2.5, 2.5, 101)[:, None]


def uniform(N):
    return uniform_log_snr(N, -3.0, 3.0)


def karras(N):
    return edm.levels(N, 0.05, 20.0)


def solve(method, data, x_T, schedule):
    start = math.hypot(schedule.signal[-1], schedule.noise[-1]) * x_T
    return method(data.predictor(schedule), start, schedule)


def every_level(predict_eps, x_T, schedule):
    return ddim(predict_eps, x_T, schedule, schedule.T)


@pytest.mark.parametrize(
    "method, levels, expected",
    [
        (every_level, uniform, 1),
        (every_level, karras, 1),
        (edm.heun, karras, 2),
        (edm.heun, uniform, 2),
        (dpm_solver.dpm_solver_pp_2m, uniform, 2),
    ],
)
def test_the_order_of_a_deterministic_sampler(method, levels, expected):
    best = order.end(solve(edm.heun, MIXTURE, X, levels(6400)))
    errors = order.errors(partial(solve, method, MIXTURE, X), levels, COUNTS, best)
    assert order.order(COUNTS, errors) == pytest.approx(expected, abs=0.15)


def test_euler_maruyama_is_of_weak_order_1():
    var, errors, counts = 0.25, [], [50, 100, 200, 400, 800]
    data = exact.Gaussian([0.0], [[var]])
    for N in counts:
        schedule = uniform(N)
        variance = 1.0
        predict_eps, rng = data.predictor(schedule), np.random.default_rng(0)
        for step in score_sde.euler_maruyama(predict_eps, np.ones((1, 1)), schedule, rng):
            if step.t == 1:
                break
            # The mean is a multiple of x, so the moments are exact.
            variance = (step.mean / step.x_t).item() ** 2 * variance + step.sigma**2
        errors.append(abs(variance - (schedule.signal[1] ** 2 * var + schedule.noise[1] ** 2)))
    assert order.order(counts, np.array(errors)) == pytest.approx(1, abs=0.15)


def test_the_harness_finds_the_slope_of_a_power():
    counts = [11, 21, 41]
    assert order.order(counts, 3.0 * (np.array(counts) - 1.0) ** -1.5) == pytest.approx(1.5)


@pytest.mark.parametrize("method", [edm.heun, dpm_solver.dpm_solver_pp_2m])
@given(st.floats(0.2, 3.0))
def test_solvers_reach_the_map_between_gaussians_on_every_kind_of_schedule(method, var):
    # The ODE's exact map of N(0, v_T) to N(0, var) is a multiple. The error is that of order 2 in
    # 300 steps, and of a last step of first order from sigma_1.
    data = exact.Gaussian([0.0], [[var]])
    for schedule in (uniform_log_snr(300, -5, 4), edm.levels(300, 0.005, 40.0)):
        if method is edm.heun or schedule.signal[-1] < 1:
            x_T = np.array([[1.0], [-0.5]])
            *_, last = method(data.predictor(schedule), x_T, schedule)
            v_T = schedule.signal[-1] ** 2 * var + schedule.noise[-1] ** 2
            np.testing.assert_allclose(last.x_prev, math.sqrt(var / v_T) * x_T, rtol=3e-3)
            assert last.t_prev == 0


@pytest.mark.parametrize("method", ["euler_maruyama", "predictor_corrector"])
@pytest.mark.parametrize("exploding", [False, True])
def test_the_stochastic_samplers_end_in_the_distribution_of_the_data(method, exploding):
    var, n, r = 0.5, 40_000, 0.1
    data, rng = exact.Gaussian([0.0], [[var]]), np.random.default_rng(0)
    schedule = edm.levels(300, 0.01, 20.0) if exploding else uniform_log_snr(300, -4.5, 4)
    x_T = math.sqrt(schedule.signal[-1] ** 2 * var + schedule.noise[-1] ** 2) * rng.standard_normal(
        (n, 1)
    )
    more = {"snr": r} if method == "predictor_corrector" else {}
    *_, last = getattr(score_sde, method)(data.predictor(schedule), x_T, schedule, rng, **more)
    # A Langevin step e leaves v / (1 - e / (2 v)), and e = 2 alpha r^2 v; ancestral steps with
    # beta_tilde are narrow by O(1/T).
    error = STANDARD_ERRORS * math.sqrt(2 / n)
    low, high = (-0.03, 1 / (1 - r**2) - 1) if more else (-0.03, 0.03)
    assert low - error < last.x_prev.var() / var - 1 < high + error
    assert abs(last.x_prev.mean()) < STANDARD_ERRORS * math.sqrt(var / n) + 0.01


@pytest.mark.parametrize(
    "sampler, evaluations",
    [
        (score_sde.euler_maruyama, lambda T: T),
        (score_sde.predictor_corrector, lambda T: T + (T - 1)),
        (partial(score_sde.predictor_corrector, corrections=3), lambda T: T + 3 * (T - 1)),
        (lambda p, x_T, s, rng: edm.heun(p, x_T, s), lambda T: T + (T - 1)),
        (lambda p, x_T, s, rng: dpm_solver.dpm_solver_pp_2m(p, x_T, s), lambda T: T),
    ],
    ids=["euler_maruyama", "predictor_corrector", "three corrections", "heun", "dpm_solver"],
)
@given(preserving_schedules(max_T=8), seeds)
def test_every_sampler_walks_from_T_to_0_by_its_means_sigmas_and_noise(
    sampler, evaluations, schedule, seed
):
    predict_eps, rng = Counted(MIXTURE.predictor(schedule)), np.random.default_rng(seed)
    x_T = rng.standard_normal((4, 1))
    steps = list(sampler(predict_eps, x_T, schedule, rng))
    assert_a_walk(steps, x_T, schedule)
    assert not steps[-1].z.any()  # the last step adds no noise
    assert predict_eps.calls == evaluations(schedule.T)


def test_a_corrector_step_stays_at_its_level_and_the_last_step_has_none():
    schedule, rng = cosine(5), np.random.default_rng(0)
    predict_eps, x_T = MIXTURE.predictor(schedule), rng.standard_normal((4, 1))
    steps = list(score_sde.predictor_corrector(predict_eps, x_T, schedule, rng, corrections=2))
    expected = [(t + 1, t) if k == 0 else (t, t) for t in (4, 3, 2, 1) for k in range(3)]
    assert [(s.t, s.t_prev) for s in steps] == [*expected, (1, 0)]
    for step in steps:
        np.testing.assert_allclose(step.x_prev, step.mean + step.sigma * step.z)


def test_a_corrector_step_has_the_length_that_its_noise_and_the_score_give_it():
    schedule, rng, r = cosine(6), np.random.default_rng(0), 0.2
    predict_eps, x_T = MIXTURE.predictor(schedule), rng.standard_normal((50, 1))
    steps = score_sde.predictor_corrector(predict_eps, x_T, schedule, rng, snr=r)
    norm = lambda x: np.abs(x).mean()  # noqa: E731  for points on a line
    for step in (step for step in steps if step.t == step.t_prev):
        score = -step.eps_hat / schedule.noise[step.t]
        e = 2 * schedule.alpha[step.t + 1] * (r * norm(step.z) / norm(score)) ** 2
        np.testing.assert_allclose(step.mean, step.x_t + e * score, rtol=1e-9)
        assert step.sigma == pytest.approx(math.sqrt(2 * e))


def test_dpm_solver_extrapolates_along_a_line_in_lambda_over_unequal_steps():
    schedule = edm.levels(8, 0.05, 20.0)

    def x_0_at(t, ahead=0.0):  # a line in lambda = -level, at t or this far ahead of it
        return 0.3 - 0.2 * (schedule.level[t] - ahead)

    def predict_eps(x_t, t):
        return (x_t - schedule.signal[t] * x_0_at(t)) / schedule.noise[t]

    for step in dpm_solver.dpm_solver_pp_2m(predict_eps, np.array([[1.0]]), schedule):
        if 1 < step.t < schedule.T:
            t, s = step.t, step.t_prev
            h = schedule.level[t] - schedule.level[s]
            D = x_0_at(t, ahead=h / 2)  # x_0 half way, by which the step is exact to second order
            expected = schedule.noise[s] / schedule.noise[t] * step.x_t - math.expm1(-h) * D
            np.testing.assert_allclose(step.x_prev, expected, rtol=1e-9)


# The likelihood by the ODE


@pytest.mark.parametrize(
    "data",
    [
        exact.Gaussian([0.2, -0.1], [[0.6, 0.2], [0.2, 0.3]]),
        exact.Mixture([0.3, 0.7], [[-1.0, 0.0], [0.5, 0.5]], [0.1 * np.eye(2), 0.4 * np.eye(2)]),
        exact.SwissRoll(0.5),
    ],
    ids=["gaussian", "mixture", "roll"],
)
def test_the_ode_finds_the_true_density_with_an_error_of_order_2(data):
    x_0 = data.sample(60, np.random.default_rng(0), np.float64)
    gaps = {}
    for T in (100, 200, 400):
        schedule = edm.levels(T, 0.002, 80.0)
        log_p = score_sde.ode_log_prob(score_sde.perfect(data, schedule), x_0, schedule)
        gaps[T] = (log_p - data.log_prob(x_0)).mean()
    assert 2.5 < gaps[100] / gaps[200] < 6 and abs(gaps[400]) < 2e-3
    assert gaps[100] > 0  # too few steps look better than the truth


def test_the_ode_finds_the_same_density_on_a_schedule_that_preserves_variance():
    data = exact.Mixture([0.3, 0.7], [[-1.0, 0.0], [0.5, 0.5]], [0.1 * np.eye(2), 0.4 * np.eye(2)])
    x_0, gaps = data.sample(60, np.random.default_rng(0), np.float64), []
    for T in (200, 400, 800):
        schedule = uniform_log_snr(T, -6.5, 5.0)
        log_p = score_sde.ode_log_prob(score_sde.perfect(data, schedule), x_0, schedule)
        gaps.append(np.abs(log_p - data.log_prob(x_0)).mean())
    assert gaps[2] < gaps[1] < gaps[0] and gaps[2] < 5e-3


def divergence_by_differences(predict_eps, x, t, h):
    return sum(
        (predict_eps(x + h * e, t) - predict_eps(x - h * e, t))[:, j] / (2 * h)
        for j, e in enumerate(np.eye(x.shape[1]))
    )


@given(preserving_schedules(max_T=10), seeds)
def test_the_perfect_divergence_is_that_of_the_predictor(schedule, seed):
    rng = np.random.default_rng(seed)
    data = exact.Mixture([0.5, 0.5], [[-0.5, 0.0], [0.5, 0.5]], [0.3 * np.eye(2), 0.4 * np.eye(2)])
    x, t, h = rng.standard_normal((3, 2)), int(rng.integers(1, schedule.T + 1)), 1e-5
    numeric = divergence_by_differences(data.predictor(schedule), x, t, h)
    np.testing.assert_allclose(score_sde.perfect(data, schedule)(x, t)[1], numeric, atol=1e-5)


@given(schedules(max_T=10), seeds, st.sampled_from(["eps", "x_0", "v", "score"]))
def test_the_divergence_of_a_network_is_that_of_its_predictor(schedule, seed, predict):
    rng = np.random.default_rng(seed)
    params = unflatten(*random_mlp(rng))
    x, t, h = rng.standard_normal((3, 2)), int(rng.integers(1, schedule.T + 1)), 1e-6
    if schedule.signal[t] == 0:
        return
    predict_eps = predictor(mlp, params, schedule, predict)
    numeric = divergence_by_differences(predict_eps, x, t, h)
    eps_hat, div = score_sde.exact_divergence(mlp, params, schedule, predict)(x, t)
    np.testing.assert_allclose(eps_hat, predict_eps(x, t), rtol=1e-12)
    np.testing.assert_allclose(div, numeric, rtol=1e-4, atol=1e-4 * (1 + np.abs(numeric).max()))


def test_the_divergences_take_a_state_of_training():
    rng, schedule = np.random.default_rng(0), cosine(10)
    state, x = train.start(unflatten(*random_mlp(rng)), predict="v"), rng.standard_normal((3, 2))
    state.ema[...] += 0.1
    for make in (
        score_sde.exact_divergence,
        lambda *model: score_sde.hutchinson(*model[:3], np.random.default_rng(1), *model[3:]),
    ):
        of_state = make(mlp, state, schedule)(x, 4)
        np.testing.assert_array_equal(of_state[0], predictor(mlp, state, schedule)(x, 4))
        for one, other in zip(
            of_state, make(mlp, state.ema_params, schedule, "v")(x, 4), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_hutchinsons_estimate_averaged_over_all_signs_is_the_divergence():
    rng, schedule = np.random.default_rng(0), cosine(10)
    params = unflatten(*random_mlp(rng))
    x = rng.standard_normal((1, 2))

    class Signs:
        def __init__(self, u):
            self.u = np.array([u])

        def choice(self, values, shape):
            return self.u

    estimates = [
        score_sde.hutchinson(mlp, params, schedule, Signs(u))(x, 4)[1]
        for u in product([-1.0, 1.0], repeat=2)
    ]
    _, div = score_sde.exact_divergence(mlp, params, schedule)(x, 4)
    assert np.mean(estimates) == pytest.approx(div.item())
    assert np.std(estimates) > 1e-3


def test_hutchinsons_estimate_has_the_divergence_for_its_mean_in_standard_errors():
    rng, schedule, n = np.random.default_rng(0), cosine(10), 20_000
    params = unflatten(*random_mlp(rng))
    x = np.broadcast_to(rng.standard_normal(2), (n, 2))
    _, estimates = score_sde.hutchinson(mlp, params, schedule, rng)(x, 4)
    _, div = score_sde.exact_divergence(mlp, params, schedule)(x[:1], 4)
    assert_within_standard_errors(estimates, div.item())


class Sine:
    """out = sin(3 x), coordinate by coordinate: its Jacobian is diagonal."""

    @staticmethod
    def forward(params, x, level):
        return np.sin(3 * x), 3 * np.cos(3 * x)

    @staticmethod
    def backward(params, slope, grad_out):
        return slope * grad_out, {}


@given(seeds, st.sampled_from(["eps", "x_0", "v", "score"]))
def test_hutchinsons_estimate_is_exact_for_a_diagonal_jacobian(seed, predict):
    # The signs square to 1. Any other noise, normal noise among them, would add a variance.
    rng, schedule = np.random.default_rng(seed), cosine(10)
    x, t = rng.standard_normal((6, 3)), int(rng.integers(1, 11))
    _, estimate = score_sde.hutchinson(Sine, {}, schedule, rng, predict)(x, t)
    _, div = score_sde.exact_divergence(Sine, {}, schedule, predict)(x, t)
    np.testing.assert_allclose(estimate, div, rtol=1e-12, atol=1e-12 * np.abs(div).max())


@given(schedules(max_T=10), seeds)
def test_without_a_predicted_noise_the_odes_density_is_the_prior_scaled_to_t_0(schedule, seed):
    if schedule.signal[-1] == 0:
        return
    x_0, var = np.random.default_rng(seed).standard_normal((5, 3)), 1 / schedule.signal[-1] ** 2
    var *= schedule.signal[-1] ** 2 + schedule.noise[-1] ** 2  # of x_0 = x_T / signal_T
    log_p = score_sde.ode_log_prob(lambda x, t: (0 * x, 0 * x[:, 0]), x_0, schedule)
    expected = -0.5 * (x_0**2 / var + np.log(2 * math.pi * var)).sum(axis=1)
    np.testing.assert_allclose(log_p, expected, rtol=1e-12, atol=1e-12)


# EDM's scaling


@given(st.floats(1e-3, 100), st.floats(0.1, 5))
def test_preconditioning_keeps_input_and_target_at_variance_1_and_c_out_smallest(sigma, sigma_data):
    sigma = np.float64(sigma)
    c_skip, c_out, c_in, c_noise = edm.precondition(sigma, sigma_data)
    assert c_in**2 * (sigma_data**2 + sigma**2) == pytest.approx(1) and c_noise == np.log(sigma)
    amplified = lambda skip: (1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2  # noqa: E731
    assert amplified(c_skip) == pytest.approx(c_out**2)
    assert amplified(c_skip) <= min(amplified(c_skip + 1e-3), amplified(c_skip - 1e-3))


class Zero:
    """The network that puts out 0, with one parameter that does nothing."""

    @staticmethod
    def forward(params, x, level):
        return 0 * x, None

    @staticmethod
    def backward(params, cache, grad_out):
        return 0 * grad_out, {"all": np.zeros(1)}


def edm_gradient(params, x_0, t, eps, schedule, sigma_data=1.0, net=mlp):
    """The loss of each row, and the gradient of their mean with respect to theta."""
    objective = partial(edm.weighted_loss, sigma_data=sigma_data)
    denoiser = edm.Denoiser(net, sigma_data)
    return train.gradient(denoiser, params, x_0, t, eps, schedule, "x_0", objective)


def test_for_gaussian_data_of_that_width_the_best_network_puts_out_0_with_loss_1_at_every_level():
    s, n, schedule, rng = 0.7, 200_000, edm.levels(5, 0.01, 10.0), np.random.default_rng(0)
    data = exact.Gaussian([0.0], [[s * s]])
    x_0, eps = data.sample(n, rng, np.float64), rng.standard_normal((n, 1))
    for t in range(1, 6):
        losses, _ = edm_gradient({"all": np.zeros(1)}, x_0, np.full(n, t), eps, schedule, s, Zero)
        assert abs(losses.mean() - 1) < STANDARD_ERRORS * math.sqrt(2 / n)
        x_t = x_0 + schedule.noise[t] * eps
        eps_hat, eps_star = (
            edm.predictor(Zero, {}, schedule, s)(x_t, t),
            data.predictor(schedule)(x_t, t),
        )
        np.testing.assert_allclose(eps_hat, eps_star, rtol=1e-9, atol=1e-12)


@settings(max_examples=20)
@given(schedules(max_T=8), seeds, st.floats(0.3, 2))
def test_the_gradient_of_its_loss(schedule, seed, sigma_data):
    if schedule.signal[-1] == 0:
        return
    rng = np.random.default_rng(seed)
    theta, like = random_mlp(rng)
    x_0, eps, t = *rng.standard_normal((2, 6, 2)), rng.integers(1, schedule.T + 1, 6)

    def losses_and_gradient(theta):
        return edm_gradient(unflatten(theta, like), x_0, t, eps, schedule, sigma_data)

    loss = lambda theta: losses_and_gradient(theta)[0].mean()  # noqa: E731
    assert directional_error(loss, theta, losses_and_gradient(theta)[1], rng) < 1e-5


@settings(max_examples=20)
@given(seeds, st.floats(0.3, 2))
def test_the_denoiser_has_the_right_gradients_in_x_and_theta(seed, sigma_data):
    rng, net = np.random.default_rng(seed), edm.Denoiser(mlp, sigma_data)
    theta, like = random_mlp(rng)
    params, x, level = unflatten(theta, like), rng.standard_normal((6, 2)), rng.uniform(-4, 4, 6)
    forward = lambda x: net.forward(params, x, level)  # noqa: E731
    backward = lambda grad, cache: (net.backward(params, cache, grad)[0], {})  # noqa: E731
    assert check_pair(forward, backward, x, rng)["x"] < 1e-5

    out, cache = forward(x)
    grad_out = rng.standard_normal(out.shape)
    _, grads = net.backward(params, cache, grad_out)

    def weighted_out(theta):
        return (net.forward(unflatten(theta, like), x, level)[0] * grad_out).sum()

    assert directional_error(weighted_out, theta, flatten(grads), rng) < 1e-5


@given(st.floats(0.01, 50), st.floats(0.3, 2), seeds)
def test_the_denoiser_is_table_1_of_the_paper(sigma, sigma_data, seed):
    rng = np.random.default_rng(seed)
    params, x = unflatten(*random_mlp(rng)), rng.standard_normal((4, 2))  # x = x_0 + sigma eps
    c_skip, c_out, c_in, c_noise = edm.precondition(np.float64(sigma), sigma_data)
    F, _ = mlp.forward(params, c_in * x, np.full(4, c_noise))
    network_input = x / math.sqrt(1 + sigma**2), np.full(4, math.log(sigma))
    D, _ = edm.Denoiser(mlp, sigma_data).forward(params, *network_input)
    np.testing.assert_allclose(D, c_skip * x + c_out * F, rtol=1e-9, atol=1e-12)


@given(seeds, st.floats(0.3, 2))
def test_the_gradient_of_each_rows_weighted_loss_with_respect_to_the_output(seed, sigma_data):
    rng, schedule = np.random.default_rng(seed), edm.levels(6, 0.05, 20.0)
    out, x_0, eps = rng.standard_normal((3, 6, 2))
    t, weight = rng.integers(1, 7, 6), rng.standard_normal((6, 1))
    loss, grad_out = edm.weighted_loss(out, x_0, t, eps, schedule, "x_0", sigma_data)
    _, c_out, _, _ = edm.precondition(schedule.noise[t], sigma_data)
    np.testing.assert_allclose(loss, ((out - x_0) ** 2).mean(axis=1) / c_out**2, rtol=1e-12)

    def weighted(out):
        return (
            weight[:, 0] * edm.weighted_loss(out, x_0, t, eps, schedule, "x_0", sigma_data)[0]
        ).sum()

    assert directional_error(weighted, out, weight * grad_out, rng) < 1e-5
    with pytest.raises(ValueError, match="x_0"):
        edm.weighted_loss(out, x_0, t, eps, schedule, "eps")


def test_with_sigma_data_1_it_is_v_prediction_with_the_sign_turned():
    rng, schedule = np.random.default_rng(0), cosine(10)
    params = unflatten(*random_mlp(rng))
    x_t, t = rng.standard_normal((5, 2)), rng.integers(1, 11, 5)
    by_v = predictor(mlp, sign_turned(params), schedule, "v")(x_t, t)
    np.testing.assert_allclose(edm.predictor(mlp, params, schedule)(x_t, t), by_v, rtol=1e-9)


def test_training_with_it_leads_to_the_perfect_predictor():
    rng, schedule, data = np.random.default_rng(0), edm.levels(100, 0.02, 20.0), exact.SwissRoll()
    net = edm.Denoiser(mlp)
    state = train.start(net.init(rng, hidden=32, layers=2), predict="x_0")
    t = rng.integers(1, 101, 2000)
    eps = rng.standard_normal((2000, 2), dtype=np.float32)
    x_t = data.sample(2000, rng) + schedule.noise[t][:, None].astype(np.float32) * eps
    eps_star = data.predictor(schedule)(x_t, t)

    def excess():
        return ((edm.predictor(mlp, state, schedule)(x_t, t) - eps_star) ** 2).mean()

    before, update = excess(), partial(train.update, lr=5e-3)
    for _ in train.train(
        net, state, data.sample, schedule, rng, 2400, 128, edm.weighted_loss, update=update
    ):
        pass
    assert excess() < 0.5 * before
    # The Denoiser is a network like any other.
    eps_hat = predictor(net, state, schedule)(x_t, t)
    np.testing.assert_array_equal(eps_hat, edm.predictor(mlp, state, schedule)(x_t, t))


def test_levels_are_karras():
    schedule = edm.levels(18)
    i = np.arange(18)
    # Eq. (5) of the paper, counted from the noise.
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedule.noise[1:], sigma[::-1], rtol=1e-12)
    assert schedule.noise[0] == 0 and (schedule.signal == 1).all()
    for bad in ({"T": 1}, {"sigma_min": 0.0}, {"sigma_min": 90.0}):
        with pytest.raises(ValueError, match="sigma"):
            edm.levels(**bad)


def test_uniform_log_snr_is_uniform_and_preserves_variance():
    schedule = uniform_log_snr(11, -5.0, 5.0)
    np.testing.assert_allclose(schedule.level[1:], np.linspace(-5, 5, 11), atol=1e-12)
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1, rtol=1e-14)


@pytest.mark.parametrize("T, t, expected", [(4, 1, 0.88), (10, 2, 0.10), (40, 10, 0.0007)])
def test_a_reverse_step_on_the_roll_is_closer_to_a_gaussian_the_more_steps_there_are(
    T, t, expected
):
    kl = exact.non_gaussianity(exact.SwissRoll(), t, cosine(T), 8000, np.random.default_rng(0))
    # By sums over a grid in the place of draws of x_{t-1}: 0.883 +- 0.045, 0.103 +- 0.012 and
    # 0.00073 +- 0.00010.
    assert kl == pytest.approx(expected, rel=0.15)


def test_a_reverse_step_on_gaussian_data_is_a_gaussian():
    data, schedule = exact.Gaussian([0.1, 0.2], [[0.6, 0.2], [0.2, 0.3]]), cosine(5)
    for t in range(1, 6):
        kl = exact.non_gaussianity(data, t, schedule, 2000, np.random.default_rng(0))
        assert kl == pytest.approx(0, abs=1e-9)
