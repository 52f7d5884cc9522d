"""The samplers and the likelihood of the later papers, with the exact predictor: of the order, and on the law, that they claim."""

import math
from functools import partial
from itertools import product

import numpy as np
import pytest
from conftest import STANDARD_ERRORS, preserving_schedules, random_mlp, schedules, seeds, sign_turned
from hypothesis import given, settings
from hypothesis import strategies as st

import _gaussian_step
from npdiff import exact, schedule, train
from npdiff.kit import order
from npdiff.kit.gradcheck import directional_error
from npdiff.nn import mlp
from npdiff.nn.params import unflatten
from npdiff.papers import dpm_solver, edm, score_sde
from npdiff.reverse import predictor
from npdiff.sampler import ddim

MIXTURE = exact.Mixture([0.4, 0.6], [[-1.0], [0.9]], [[[0.05]], [[0.2]]])
COUNTS = [50, 100, 200, 400]
X = np.linspace(-2.5, 2.5, 101)[:, None]


def uniform(N):
    return schedule.uniform_log_snr(N, -3.0, 3.0)


def karras(N):
    return edm.levels(N, 0.05, 20.0)


def solve(method, data, x_T, chain):
    start = math.hypot(chain.signal[-1], chain.noise[-1]) * x_T
    return method(data.predictor(chain), start, chain)


def every_level(predict_eps, x_T, chain):
    return ddim(predict_eps, x_T, chain, chain.T)


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
        chain = uniform(N)
        variance = 1.0
        for step in score_sde.euler_maruyama(data.predictor(chain), np.ones((1, 1)), chain, np.random.default_rng(0)):
            if step.t == 1:
                break
            variance = (step.mean / step.x_t).item() ** 2 * variance + step.sigma**2  # the mean is a multiple of x: moments are exact
        errors.append(abs(variance - (chain.signal[1] ** 2 * var + chain.noise[1] ** 2)))
    assert order.order(counts, np.array(errors)) == pytest.approx(1, abs=0.15)


def test_the_harness_finds_the_slope_of_a_power():
    counts = [11, 21, 41]
    assert order.order(counts, 3.0 * (np.array(counts) - 1.0) ** -1.5) == pytest.approx(1.5)


@pytest.mark.parametrize("method", [edm.heun, dpm_solver.dpm_solver_pp_2m])
@given(st.floats(0.2, 3.0))
def test_solvers_reach_the_map_between_gaussians_on_every_kind_of_schedule(method, var):
    # The ODE's exact map of N(0, v_T) to N(0, var) is a multiple; order 2 in 300 steps, and a last step of first order from sigma_1.
    data = exact.Gaussian([0.0], [[var]])
    for chain in (schedule.uniform_log_snr(300, -5, 4), edm.levels(300, 0.005, 40.0)):
        if method is edm.heun or chain.signal[-1] < 1:
            x_T = np.array([[1.0], [-0.5]])
            *_, last = method(data.predictor(chain), x_T, chain)
            v_T = chain.signal[-1] ** 2 * var + chain.noise[-1] ** 2
            np.testing.assert_allclose(last.x_prev, math.sqrt(var / v_T) * x_T, rtol=3e-3)
            assert last.t_prev == 0


@pytest.mark.parametrize("method", ["euler_maruyama", "predictor_corrector"])
@pytest.mark.parametrize("exploding", [False, True])
def test_the_stochastic_samplers_land_on_the_law(method, exploding):
    var, n, r = 0.5, 40_000, 0.1
    data, rng = exact.Gaussian([0.0], [[var]]), np.random.default_rng(0)
    chain = edm.levels(300, 0.01, 20.0) if exploding else schedule.uniform_log_snr(300, -4.5, 4)
    x_T = math.sqrt(chain.signal[-1] ** 2 * var + chain.noise[-1] ** 2) * rng.standard_normal((n, 1))
    more = {"snr": r} if method == "predictor_corrector" else {}
    *_, last = getattr(score_sde, method)(data.predictor(chain), x_T, chain, rng, **more)
    # A Langevin step e leaves v / (1 - e / (2 v)), and e = 2 alpha r^2 v; ancestral steps with beta_tilde are narrow by O(1/T).
    error = STANDARD_ERRORS * math.sqrt(2 / n)
    low, high = (-0.03, 1 / (1 - r**2) - 1) if more else (-0.03, 0.03)
    assert low - error < last.x_prev.var() / var - 1 < high + error
    assert abs(last.x_prev.mean()) < STANDARD_ERRORS * math.sqrt(var / n) + 0.01


def test_a_corrector_step_stays_at_its_level_and_the_last_step_has_none():
    chain, rng = schedule.cosine(5), np.random.default_rng(0)
    steps = list(score_sde.predictor_corrector(MIXTURE.predictor(chain), rng.standard_normal((4, 1)), chain, rng, corrections=2))
    assert [(s.t, s.t_prev) for s in steps] == [
        (5, 4),
        (4, 4),
        (4, 4),
        (4, 3),
        (3, 3),
        (3, 3),
        (3, 2),
        (2, 2),
        (2, 2),
        (2, 1),
        (1, 1),
        (1, 1),
        (1, 0),
    ]
    for step in steps:
        np.testing.assert_allclose(step.x_prev, step.mean + step.sigma * step.z)


def test_a_corrector_step_has_the_length_that_its_noise_and_the_score_give_it():
    chain, rng, r = schedule.cosine(6), np.random.default_rng(0), 0.2
    steps = score_sde.predictor_corrector(MIXTURE.predictor(chain), rng.standard_normal((50, 1)), chain, rng, snr=r)
    norm = lambda x: np.abs(x).mean()  # noqa: E731  for points on a line
    for step in (step for step in steps if step.t == step.t_prev):
        score = -step.eps_hat / chain.noise[step.t]
        e = 2 * chain.alpha[step.t + 1] * (r * norm(step.z) / norm(score)) ** 2
        np.testing.assert_allclose(step.mean, step.x_t + e * score, rtol=1e-9)
        assert step.sigma == pytest.approx(math.sqrt(2 * e))


def test_dpm_solver_extrapolates_along_a_line_in_lambda_over_unequal_steps():
    chain = edm.levels(8, 0.05, 20.0)
    x_0_at = lambda t, of=0.0: 0.3 - 0.2 * (chain.level[t] - of)  # noqa: E731  lambda = -level; `of` is how far ahead

    def predict_eps(x_t, t):
        return (x_t - chain.signal[t] * x_0_at(t)) / chain.noise[t]

    for step in dpm_solver.dpm_solver_pp_2m(predict_eps, np.array([[1.0]]), chain):
        if 1 < step.t < chain.T:
            t, s = step.t, step.t_prev
            h = chain.level[t] - chain.level[s]
            D = x_0_at(t, of=h / 2)  # the guess half way: what makes the step exact to second order
            np.testing.assert_allclose(step.x_prev, chain.noise[s] / chain.noise[t] * step.x_t - math.expm1(-h) * D, rtol=1e-9)


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
        chain = edm.levels(T, 0.002, 80.0)
        gaps[T] = (score_sde.ode_log_prob(score_sde.perfect(data, chain), x_0, chain) - data.log_prob(x_0)).mean()
    assert 2.5 < gaps[100] / gaps[200] < 6 and abs(gaps[400]) < 2e-3
    assert gaps[100] > 0  # too few steps look better than the truth


def test_the_ode_finds_the_same_density_on_a_schedule_that_preserves_variance():
    data = exact.Mixture([0.3, 0.7], [[-1.0, 0.0], [0.5, 0.5]], [0.1 * np.eye(2), 0.4 * np.eye(2)])
    x_0, gaps = data.sample(60, np.random.default_rng(0), np.float64), []
    for T in (200, 400, 800):
        chain = schedule.uniform_log_snr(T, -6.5, 5.0)
        gaps.append(np.abs(score_sde.ode_log_prob(score_sde.perfect(data, chain), x_0, chain) - data.log_prob(x_0)).mean())
    assert gaps[2] < gaps[1] < gaps[0] and gaps[2] < 5e-3


@given(preserving_schedules(max_T=10), seeds)
def test_the_perfect_divergence_is_that_of_the_predictor(chain, seed):
    rng = np.random.default_rng(seed)
    data = exact.Mixture([0.5, 0.5], [[-0.5, 0.0], [0.5, 0.5]], [0.3 * np.eye(2), 0.4 * np.eye(2)])
    x, t, h = rng.standard_normal((3, 2)), int(rng.integers(1, chain.T + 1)), 1e-5
    predict_eps = data.predictor(chain)
    numeric = sum((predict_eps(x + h * e, t) - predict_eps(x - h * e, t))[:, j] / (2 * h) for j, e in enumerate(np.eye(2)))
    np.testing.assert_allclose(score_sde.perfect(data, chain)(x, t)[1], numeric, atol=1e-5)


@given(schedules(max_T=10), seeds, st.sampled_from(["eps", "x_0", "v"]))
def test_the_divergence_of_a_network_is_that_of_its_predictor(chain, seed, predict):
    rng = np.random.default_rng(seed)
    params = unflatten(*random_mlp(rng))
    x, t, h = rng.standard_normal((3, 2)), int(rng.integers(1, chain.T + 1)), 1e-6
    if chain.signal[t] == 0:
        return
    predict_eps = predictor(mlp, params, chain, predict)
    numeric = sum((predict_eps(x + h * e, t) - predict_eps(x - h * e, t))[:, j] / (2 * h) for j, e in enumerate(np.eye(2)))
    eps_hat, found = score_sde.exact_divergence(mlp, params, chain, predict)(x, t)
    np.testing.assert_allclose(eps_hat, predict_eps(x, t), rtol=1e-12)
    np.testing.assert_allclose(found, numeric, rtol=1e-4, atol=1e-4 * (1 + np.abs(numeric).max()))


def test_hutchinsons_estimate_averaged_over_all_signs_is_the_divergence():
    rng, chain = np.random.default_rng(0), schedule.cosine(10)
    params = unflatten(*random_mlp(rng))
    x = rng.standard_normal((1, 2))

    class Signs:
        def __init__(self, u):
            self.u = np.array([u])

        def choice(self, values, shape):
            return self.u

    estimates = [score_sde.hutchinson(mlp, params, chain, Signs(u))(x, 4)[1] for u in product([-1.0, 1.0], repeat=2)]
    assert np.mean(estimates) == pytest.approx(score_sde.exact_divergence(mlp, params, chain)(x, 4)[1].item())
    assert np.std(estimates) > 1e-3


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
    @staticmethod
    def forward(params, x, level):
        return 0 * x, None

    @staticmethod
    def backward(params, cache, grad_out):
        return None, {"all": np.zeros(1)}


def test_for_gaussian_data_of_that_width_the_best_network_puts_out_0_and_the_loss_is_1_at_every_level():
    s, n, chain, rng = 0.7, 200_000, edm.levels(5, 0.01, 10.0), np.random.default_rng(0)
    data = exact.Gaussian([0.0], [[s * s]])
    x_0, eps = data.sample(n, rng, np.float64), rng.standard_normal((n, 1))
    for t in range(1, 6):
        loss, _ = edm.gradient(Zero, {}, x_0, np.full(n, t), eps, chain, sigma_data=s)
        assert abs(loss - 1) < STANDARD_ERRORS * math.sqrt(2 / n)
        x_t = x_0 + chain.noise[t] * eps
        np.testing.assert_allclose(edm.predictor(Zero, {}, chain, s)(x_t, t), data.predictor(chain)(x_t, t), rtol=1e-9, atol=1e-12)


@settings(max_examples=20)
@given(schedules(max_T=8), seeds, st.floats(0.3, 2))
def test_its_gradient_and_its_predictor(chain, seed, sigma_data):
    if chain.signal[-1] == 0:
        return
    rng = np.random.default_rng(seed)
    theta, like = random_mlp(rng)
    x_0, eps, t = *rng.standard_normal((2, 6, 2)), rng.integers(1, chain.T + 1, 6)
    loss = lambda theta: edm.gradient(mlp, unflatten(theta, like), x_0, t, eps, chain, sigma_data=sigma_data)[0]  # noqa: E731
    _, grad = edm.gradient(mlp, unflatten(theta, like), x_0, t, eps, chain, sigma_data=sigma_data)
    assert directional_error(loss, theta, grad, rng) < 1e-5


def test_with_sigma_data_1_it_is_v_prediction_with_the_sign_turned():
    rng, chain = np.random.default_rng(0), schedule.cosine(10)
    params = unflatten(*random_mlp(rng))
    turned = sign_turned(params)
    x_t, t = rng.standard_normal((5, 2)), rng.integers(1, 11, 5)
    np.testing.assert_allclose(edm.predictor(mlp, params, chain)(x_t, t), predictor(mlp, turned, chain, "v")(x_t, t), rtol=1e-9)


def test_training_with_it_leads_to_the_perfect_predictor():
    rng, chain, data = np.random.default_rng(0), edm.levels(100, 0.02, 20.0), exact.SwissRoll()
    state = train.start(mlp.init(rng, hidden=32, layers=2))
    t = rng.integers(1, 101, 2000)
    x_t = data.sample(2000, rng) + chain.noise[t][:, None].astype(np.float32) * rng.standard_normal((2000, 2), dtype=np.float32)

    def excess():
        return ((edm.predictor(mlp, state.ema_params, chain)(x_t, t) - data.predictor(chain)(x_t, t)) ** 2).mean()

    before = excess()
    for _ in train.train(mlp, state, data.sample, chain, rng, 2400, 128, lr=5e-3, gradient=edm.gradient):
        pass
    assert excess() < 0.5 * before


def test_levels_are_karras():
    chain = edm.levels(18)
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # the paper's eq. (5), counted from the noise
    np.testing.assert_allclose(chain.noise[1:], sigma[::-1], rtol=1e-12)
    assert chain.noise[0] == 0 and (chain.signal == 1).all()
    for bad in ({"T": 1}, {"sigma_min": 0.0}, {"sigma_min": 90.0}):
        with pytest.raises(ValueError, match="sigma"):
            edm.levels(**bad)


def test_uniform_log_snr_is_uniform_and_preserves_variance():
    chain = schedule.uniform_log_snr(11, -5.0, 5.0)
    np.testing.assert_allclose(chain.level[1:], np.linspace(-5, 5, 11), atol=1e-12)
    np.testing.assert_allclose(chain.signal**2 + chain.noise**2, 1, rtol=1e-14)


@pytest.mark.parametrize("T, t, expected", [(4, 1, 0.88), (10, 2, 0.10), (40, 10, 0.0007)])
def test_a_step_back_on_the_roll_is_nearer_to_a_gaussian_the_more_steps_there_are(T, t, expected):
    found = _gaussian_step.non_gaussianity(exact.SwissRoll(), t, schedule.cosine(T), 8000, np.random.default_rng(0))
    # By sums over a grid in place of draws of x_{t-1}: 0.883 +- 0.045, 0.103 +- 0.012 and 0.00073 +- 0.00010.
    assert found == pytest.approx(expected, rel=0.15)


def test_a_step_back_on_gaussian_data_is_a_gaussian():
    data, chain = exact.Gaussian([0.1, 0.2], [[0.6, 0.2], [0.2, 0.3]]), schedule.cosine(5)
    for t in range(1, 6):
        assert _gaussian_step.non_gaussianity(data, t, chain, 2000, np.random.default_rng(0)) == pytest.approx(0, abs=1e-9)
