"""The papers of 2015 and 2019: identities, enumerations, gradients by differences, and where their
samplers end."""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import (
    STANDARD_ERRORS,
    Counted,
    assert_a_walk,
    preserving_schedules,
    random_mlp,
    seeds,
    sign_turned,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiff import exact, normal, train
from npdiff.backend import standard_normal
from npdiff.forward import q_posterior, q_sample, q_step
from npdiff.gradcheck import check_pair, directional_error
from npdiff.likelihood import fixed
from npdiff.loss import l_simple
from npdiff.nn import mlp, unet
from npdiff.nn.params import leaves, pack, unflatten
from npdiff.papers import binomial, dpm2015, ncsn, posterior, radial_basis
from npdiff.reverse import predictor
from npdiff.sampler import ddpm
from npdiff.schedule import cosine, linear, uniform_log_snr, variance_preserving

GRADIENT = 1e-5
T = 12
SCHEDULE = uniform_log_snr(T, math.log(1e-2), 3.0)


# 2015, Gaussian


@given(preserving_schedules(max_T=20), st.integers(1, 3), seeds)
def test_a_model_that_undoes_the_noise_of_pi_has_the_bound_of_the_null_model(schedule, dim, seed):
    # The data of p(x_{t-1} | x_t) = T_pi(x_{t-1} | x_t; beta_t) are pi. For any data with
    # E|x_0|^2 = d, K = E log pi(x_0).
    rng = np.random.default_rng(seed)
    x_0 = rng.standard_normal((4000, dim))
    x_0 *= math.sqrt(dim / (x_0**2).sum(axis=1).mean())

    def isotropic(x_t, t):
        return math.sqrt(schedule.alpha[t]) * x_t, float(schedule.beta[t])

    K, error = dpm2015.bound(x_0, schedule, isotropic, rng)
    assert abs(K - dpm2015.null_model(dim)) <= STANDARD_ERRORS * error + 1e-9


def test_the_null_model_of_the_roll_is_that_of_the_paper():
    assert dpm2015.null_model(2) == pytest.approx(-4.094, abs=1e-3)


def test_K_lies_below_the_ceiling_and_reaches_it_for_gaussian_data_in_many_steps():
    rng, data = np.random.default_rng(0), exact.Gaussian([0.0, 0.0], [[1.0, 0.6], [0.6, 1.0]])
    ceiling, gaps = -data.entropy() / math.log(2), []
    for steps in (10, 40, 160):
        schedule = uniform_log_snr(steps, math.log(1e-2), 4.0)
        K, error = dpm2015.bound(
            data.sample(4000, rng, np.float64), schedule, dpm2015.best_reverse(data, schedule), rng
        )
        gaps.append(ceiling - K)
        assert ceiling + STANDARD_ERRORS * error > K
    assert gaps[2] < gaps[1] < gaps[0]


def test_no_variance_beside_the_best_gives_a_larger_K():
    rng, data = np.random.default_rng(0), exact.SwissRoll()
    x_0, best, schedule = (
        data.sample(500, rng, np.float64),
        dpm2015.best_reverse(data, SCHEDULE),
        SCHEDULE,
    )
    scaled = [lambda x, t, f=f: (best(x, t)[0], f * best(x, t)[1]) for f in (0.8, 1.0, 1.25)]
    K = [dpm2015.bound(x_0, schedule, reverse, np.random.default_rng(1))[0] for reverse in scaled]
    assert K[1] > K[0] and K[1] > K[2]


def test_the_best_reverse_step_of_gaussian_data_is_q_itself():
    data = exact.Gaussian([0.0, 0.0], [[0.5, 0.0], [0.0, 2.0]])
    x_t = np.random.default_rng(0).standard_normal((5, 2))
    mean, var = dpm2015.best_reverse(data, SCHEDULE)(x_t, 6)
    v = [SCHEDULE.signal[t] ** 2 * np.array([0.5, 2.0]) + SCHEDULE.noise[t] ** 2 for t in (5, 6)]
    np.testing.assert_allclose(
        var, np.broadcast_to(SCHEDULE.beta[6] * v[0] / v[1], (5, 2)), rtol=1e-6
    )
    np.testing.assert_allclose(mean, math.sqrt(SCHEDULE.alpha[6]) * v[0] / v[1] * x_t, rtol=1e-9)


@given(preserving_schedules(max_T=20), st.floats(0.05, 1.0))
def test_the_entropy_of_a_reverse_step_lies_between_the_bounds_of_eq_24_for_data_no_wider_than_pi(
    schedule, var
):
    v = schedule.signal**2 * var + schedule.noise**2
    for t in range(2, schedule.T + 1):
        low, high = dpm2015.entropy_bounds(t, schedule, 1)
        assert (
            low - 1e-9 <= normal.entropy(float(schedule.beta[t] * v[t - 1] / v[t])) <= high + 1e-9
        )


def test_for_wider_data_the_upper_bound_of_eq_24_fails_and_the_lower_holds():
    schedule, var = cosine(10), 4.0
    v = schedule.signal**2 * var + schedule.noise**2
    for t in range(2, 10):
        low, high = dpm2015.entropy_bounds(t, schedule, 1)
        entropy = normal.entropy(float(schedule.beta[t] * v[t - 1] / v[t]))
        assert low < entropy and entropy > high


def gradient_of_K(params, x_0, t, eps, schedule):
    """KL of each row, and the gradient of their mean with respect to theta."""
    options = dict(objective=dpm2015.objective, network_input=dpm2015.network_input)
    return train.gradient(mlp, params, x_0, t, eps, schedule, **options)


@settings(max_examples=20)
@given(seeds)
def test_the_gradient_of_K(seed):
    rng = np.random.default_rng(seed)
    theta, like = random_mlp(rng, outputs=4)
    x_0, eps, t = *rng.standard_normal((2, 9, 2)), rng.integers(2, T + 1, 9)

    def mean_kl(theta):
        return gradient_of_K(unflatten(theta, like), x_0, t, eps, SCHEDULE)[0].mean()

    _, grad = gradient_of_K(unflatten(theta, like), x_0, t, eps, SCHEDULE)
    assert directional_error(mean_kl, theta, grad, rng) < GRADIENT


@given(seeds)
def test_the_gradient_of_each_rows_KL_with_respect_to_the_output(seed):
    rng = np.random.default_rng(seed)
    x_0, eps, t = *rng.standard_normal((2, 9, 2)), rng.integers(2, T + 1, 9)
    out, weight = rng.standard_normal((9, 4)), rng.standard_normal((9, 1))
    kl, grad_out = dpm2015.objective(out, x_0, t, eps, SCHEDULE)
    assert kl.shape == (9,) and grad_out.shape == (9, 4)

    def weighted_kl(out):  # a weight of its own for each row, so that no two rows can be mixed up
        return (weight[:, 0] * dpm2015.objective(out, x_0, t, eps, SCHEDULE)[0]).sum()

    assert directional_error(weighted_kl, out, weight * grad_out, rng) < GRADIENT


def test_the_step_to_x_0_is_not_learned_and_the_network_predicts_eps():
    x_0, eps, out = np.zeros((2, 2)), np.ones((2, 2)), np.zeros((2, 4))
    with pytest.raises(ValueError, match="at least 2"):
        dpm2015.objective(out, x_0, np.array([2, 1]), eps, SCHEDULE)
    with pytest.raises(ValueError, match="predict"):
        dpm2015.objective(out, x_0, np.array([2, 2]), eps, SCHEDULE, "v")


def test_the_network_of_2015_is_given_x_t_and_t_over_T():
    x_t = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    x, level = dpm2015.network_input(x_t, np.array([3, 6, 12]), SCHEDULE)
    assert x is x_t and level.dtype == np.float32
    np.testing.assert_allclose(level, [-2.5, 0, 5])
    np.testing.assert_array_equal(dpm2015.network_input(x_t, 6, SCHEDULE)[1], np.zeros(3))


def test_the_learned_step_is_the_same_from_a_state_and_from_its_averaged_parameters():
    rng = np.random.default_rng(0)
    state = train.start(unflatten(*random_mlp(rng, outputs=4)))
    state.ema[...] += 0.1
    x_t = rng.standard_normal((5, 2))
    steps = [dpm2015.reverse(mlp, p, SCHEDULE)(x_t, 4) for p in (state, state.ema_params)]
    np.testing.assert_array_equal(*steps)


@settings(max_examples=20)
@given(seeds)
def test_the_gradient_of_K_in_the_rates(seed):
    rng = np.random.default_rng(seed)
    theta, like = random_mlp(rng, outputs=4)
    params, n = unflatten(theta, like), 9
    x_0, eps, t = *rng.standard_normal((2, n, 2)), rng.integers(2, T + 1, n)

    def minus_K(beta):
        schedule = variance_preserving(beta[1:])
        kl, _ = gradient_of_K(params, x_0, t, eps, schedule)
        return (T - 1) * kl.mean() - dpm2015.ends(schedule, 2)

    beta = np.concatenate([[0.0], rng.uniform(0.05, 0.4, T)])
    grad = dpm2015.rates_gradient(mlp, params, x_0, t, eps, variance_preserving(beta[1:]))
    assert grad.shape == (T + 1,) and (grad[:2] == 0).all()
    for k in range(2, T + 1):
        h = np.zeros(T + 1)
        h[k] = 1e-6
        assert grad[k] == pytest.approx(
            (minus_K(beta + h) - minus_K(beta - h)) / 2e-6, rel=1e-4, abs=1e-4
        )


def test_the_terms_of_training_are_those_of_the_bound():
    rng = np.random.default_rng(0)
    theta, like = random_mlp(rng, outputs=4)
    params, x_0 = unflatten(theta, like), rng.standard_normal((40_000, 2))
    K, error = dpm2015.bound(x_0, SCHEDULE, dpm2015.reverse(mlp, params, SCHEDULE), rng)
    t, eps = dpm2015.after_1(len(x_0), T, rng), rng.standard_normal(x_0.shape)
    assert t.min() == 2 and t.max() == T
    kl, _ = gradient_of_K(params, x_0, t, eps, SCHEDULE)
    estimate = (dpm2015.ends(SCHEDULE, 2) - (T - 1) * kl.mean()) / math.log(2)
    assert abs(estimate - K) < STANDARD_ERRORS * math.hypot(
        error, (T - 1) * kl.std() / math.log(2) / math.sqrt(len(x_0))
    )


def test_sampling_with_the_best_steps_of_gaussian_data_gives_the_data_back():
    rng, var = np.random.default_rng(0), 0.5
    data, schedule, n = (
        exact.Gaussian([0.0], [[var]]),
        uniform_log_snr(40, math.log(1e-2), 4.0),
        40_000,
    )
    *_, last = dpm2015.sample(
        dpm2015.best_reverse(data, schedule), rng.standard_normal((n, 1)), schedule, rng
    )
    # The last step is the forward process's: v_1 becomes (1 - beta_1) v_1 + beta_1.
    v_1 = schedule.signal[1] ** 2 * var + schedule.noise[1] ** 2
    expected = (1 - schedule.beta[1]) * v_1 + schedule.beta[1]
    assert (
        abs(last.x_prev.var() / expected - 1) < STANDARD_ERRORS * math.sqrt(2 / n) + 0.005
        and last.t_prev == 0
    )


@settings(max_examples=20)
@given(seeds)
def test_the_radial_basis_network_and_its_gradients(seed):
    rng = np.random.default_rng(seed)
    theta, like = pack(radial_basis.init(rng, T=6, units=5))
    params = unflatten(theta.astype(np.float64) + 0.3 * rng.standard_normal(theta.size), like)
    x, t = rng.standard_normal((7, 2)), rng.integers(1, 7, 7)
    level = 10 * t / 6 - 5.0

    def forward(x, **params):
        return radial_basis.forward(params, x, level)

    def backward(grad_out, cache):
        return radial_basis.backward(params, cache, grad_out)

    assert max(check_pair(forward, backward, x, rng, **params).values()) < GRADIENT
    phi = np.exp(
        -0.5 * ((x[:, None] - params["centre"]) ** 2).sum(axis=2) / np.exp(params["s"]) ** 2
    )
    out = np.stack(
        [p / p.sum() @ params["w"][k] + params["b"][k] for p, k in zip(phi, t, strict=True)]
    )
    found, cache = radial_basis.forward(params, x, level)
    np.testing.assert_allclose(found, out, rtol=1e-9)
    _, grads = radial_basis.backward(params, cache, out)
    assert [a.shape for a in leaves(grads)] == [a.shape for a in leaves(params)]


def test_the_radial_basis_functions_start_with_a_width_of_a_half_and_readouts_of_0():
    params = radial_basis.init(np.random.default_rng(0), T=3, units=2)
    x, level = np.array([[1.0, -1.0]], np.float32), np.full(1, -5 + 10 / 3)
    out, _ = radial_basis.forward(params, x, level)
    assert out.shape == (1, 4) and not out.any()
    params["centre"][...] = x + np.array(
        [[0.0, 0.0], [0.3, 0.4]]
    )  # the second at a distance of 1/2
    params["w"][1, :, 0] = [0.0, 1.0]
    share, _ = radial_basis.forward(params, x, level)  # of the second, in the sum of both
    assert share[0, 0] / (1 - share[0, 0]) == pytest.approx(math.exp(-1 / 2), rel=1e-5)


def test_far_from_every_centre_the_nearest_one_decides():
    # There every exp(a_k) is 0 in floating point, and only their ratios are left.
    rng, params = (
        np.random.default_rng(0),
        radial_basis.init(np.random.default_rng(0), T=3, units=4),
    )
    params["centre"][...] = [[2, 0], [-2, 0], [0, 2], [0, -2]]
    params["w"][...] = rng.standard_normal(params["w"].shape)
    params["b"][...] = rng.standard_normal(params["b"].shape)
    x = np.array([[60, 1], [-60, 1], [1, 60], [1, -60]], np.float32)
    out, cache = radial_basis.forward(params, x, np.full(4, -5 + 20 / 3))
    np.testing.assert_allclose(out, params["w"][2] + params["b"][2], rtol=1e-6)
    grad_x, grads = radial_basis.backward(params, cache, np.ones_like(out))
    assert all(np.isfinite(a).all() for a in (grad_x, *leaves(grads)))


def test_the_learned_chain_walks_from_T_to_0_and_asks_for_every_step_but_the_last():
    data = exact.Mixture([0.4, 0.6], [[-1.0], [0.9]], [[[0.05]], [[0.2]]])
    reverse, rng = Counted(dpm2015.best_reverse(data, SCHEDULE)), np.random.default_rng(0)
    x_T = rng.standard_normal((5, 1))
    steps = list(dpm2015.sample(reverse, x_T, SCHEDULE, rng))
    assert_a_walk(steps, x_T, SCHEDULE)
    assert reverse.calls == T - 1
    assert all(step.z.any() and (step.sigma > 0).all() for step in steps)  # the last one too
    for step in steps:  # eps_hat is that of eq. (11), Ho et al. 2020
        mean = step.x_t - SCHEDULE.beta[step.t] / SCHEDULE.noise[step.t] * step.eps_hat
        np.testing.assert_allclose(step.mean, mean / math.sqrt(SCHEDULE.alpha[step.t]), rtol=1e-9)
    sigma_1 = math.sqrt(SCHEDULE.beta[1])  # of the forward process
    np.testing.assert_allclose(steps[-1].mean, math.sqrt(SCHEDULE.alpha[1]) * steps[-1].x_t)
    np.testing.assert_allclose(steps[-1].sigma, sigma_1)


# 2015, binomial

RATES = binomial.rates(6, first=0.02, last=0.05)


def test_the_binomial_marginal_is_the_chain_summed_over_all_paths():
    for x_0 in (0.0, 1.0):
        p = np.array([1 - x_0, x_0])  # of x = 0 and 1
        for t in range(1, RATES.T + 1):
            step = [binomial.q_step(np.array([x]), t, RATES)[0] for x in (0.0, 1.0)]
            p = sum(p[k] * np.array([1 - step[k], step[k]]) for k in (0, 1))
            assert binomial.q_marginal(np.array([[x_0]]), t, RATES).item() == pytest.approx(
                p[1], rel=1e-12
            )


def test_the_binomial_posterior_is_bayes_by_enumeration():
    for t, x_0, x_t in itertools.product(range(2, RATES.T + 1), (0.0, 1.0), (0.0, 1.0)):
        joint = []
        for x_prev in (0.0, 1.0):
            before = binomial.q_marginal(np.array([x_0]), t - 1, RATES)[0]
            step = binomial.q_step(np.array([x_prev]), t, RATES)[0]
            joint.append((before if x_prev else 1 - before) * (step if x_t else 1 - step))
        posterior = binomial.q_posterior(np.array([[x_0]]), np.array([[x_t]]), np.array([t]), RATES)
        assert posterior.item() == pytest.approx(joint[1] / sum(joint), rel=1e-12)


@given(seeds)
def test_the_reverse_step_with_the_right_x_0_is_the_posterior(seed):
    rng = np.random.default_rng(seed)
    x_0, x_t = rng.integers(0, 2, (2, 5, 4)).astype(float)
    t = rng.integers(2, RATES.T + 1, 5)
    p = binomial.p_step(x_0, x_t, t, RATES)
    np.testing.assert_allclose(p, binomial.q_posterior(x_0, x_t, t, RATES), rtol=1e-12)


def test_fair_coins_have_K_of_minus_one_bit_each_by_a_model_that_knows_nothing():
    rng = np.random.default_rng(0)
    x_0 = rng.integers(0, 2, (4000, 3)).astype(float)

    def guess(x_t, t):  # p(x_0 | x_t) for fair coins is the marginal, reversed
        return binomial.q_marginal(x_t, t, RATES)

    K, error = binomial.bound(x_0, RATES, guess, rng)
    assert abs(K + 3) < STANDARD_ERRORS * error + 1e-9


def test_K_of_independent_coins_comes_near_their_entropy_from_below():
    rng, p, n = np.random.default_rng(0), 0.2, 4000
    rates = binomial.rates(60, first=1e-3, last=1e-3)
    x_0 = (rng.random((n, 2)) < p).astype(float)

    def exact_guess(x_t, t):  # Bayes for each bit
        one = binomial.q_marginal(np.ones_like(x_t), t, rates)
        zero = binomial.q_marginal(np.zeros_like(x_t), t, rates)
        one, zero = x_t * one + (1 - x_t) * (1 - one), x_t * zero + (1 - x_t) * (1 - zero)
        return p * one / (p * one + (1 - p) * zero)

    K, error = binomial.bound(x_0, rates, exact_guess, rng)
    ceiling = -2 * binomial.entropy(p) / math.log(2)
    assert ceiling - 0.1 < K < ceiling + STANDARD_ERRORS * error
    *_, (t, x) = binomial.sample(exact_guess, rng.integers(0, 2, (n, 2)).astype(float), rates, rng)
    assert t == 0 and abs(x.mean() - p) < STANDARD_ERRORS * math.sqrt(p * (1 - p) / (2 * n)) + 1e-3


@settings(max_examples=20)
@given(seeds)
def test_the_gradient_of_the_binomial_bound(seed):
    rng = np.random.default_rng(seed)
    theta, like = random_mlp(rng, dim=4)
    x_0, t = rng.integers(0, 2, (6, 4)).astype(float), rng.integers(2, RATES.T + 1, 6)

    def loss_and_gradient(theta):
        params, frozen = unflatten(theta, like), np.random.default_rng(seed)
        return binomial.loss_and_gradient(mlp, params, x_0, t, RATES, frozen)

    _, grad = loss_and_gradient(theta)
    assert directional_error(lambda theta: loss_and_gradient(theta)[0], theta, grad, rng) < GRADIENT


def test_the_levels_of_the_binomial_process_are_uniform():
    rates = binomial.rates(11)
    logit = np.log(rates.A[1:] / (1 - rates.A[1:]))
    np.testing.assert_allclose(np.diff(logit), np.diff(logit)[0], rtol=1e-9)
    np.testing.assert_allclose(np.cumprod(1 - rates.beta[1:]), rates.A[1:], rtol=1e-12)


@given(st.integers(2, 50), st.floats(1e-4, 0.3), st.floats(1e-4, 0.3))
def test_the_binomial_process_keeps_1_minus_first_after_one_step_and_last_after_all(T, first, last):
    rates = binomial.rates(T, first, last)
    assert rates.T == T and rates.beta[0] == 0 and rates.A[0] == 1
    assert rates.A[1] == pytest.approx(1 - first) and rates.beta[1] == pytest.approx(first)
    assert rates.A[T] == pytest.approx(last)


def test_K_is_the_mean_log_ratio_of_both_chains_over_all_paths_of_one_bit():
    # E_q log2 [p(x_0, ..., x_T) / q(x_1, ..., x_T | x_0)]. Under p the step to x_0 is that of the
    # forward process, and x_T is a fair coin.
    guess = lambda x_t, t: 0.2 + 0.5 * x_t + 0.01 * t  # noqa: E731
    chance = lambda p, bit: p if bit else 1 - p  # noqa: E731
    share, K = 0.3, 0.0
    for x_0, *later in itertools.product((0.0, 1.0), repeat=RATES.T + 1):
        path, log_p, log_q = [x_0, *later], math.log(0.5), 0.0
        for t in range(1, RATES.T + 1):
            x_prev, x_t = (np.array([[x]]) for x in path[t - 1 : t + 1])
            log_q += math.log(chance(binomial.q_step(x_prev, t, RATES).item(), path[t]))
            back = binomial.q_step(x_t, 1, RATES)
            if t > 1:
                back = binomial.p_step(guess(x_t, t), x_t, t, RATES)
            log_p += math.log(chance(back.item(), path[t - 1]))
        K += chance(share, x_0) * math.exp(log_q) * (log_p - log_q) / math.log(2)
    rng, n = np.random.default_rng(0), 50_000
    x_0 = np.arange(n)[:, None] < share * n
    estimate, error = binomial.bound(x_0.astype(float), RATES, guess, rng)
    assert error < 0.01 and abs(estimate - K) < STANDARD_ERRORS * error


def test_a_network_is_given_bits_as_signs_and_half_the_logarithm_of_noise_over_signal():
    given_to_the_net = []

    def forward(params, x, level):
        given_to_the_net.append((x, level))
        return np.log(3) + 0 * x, "cache"

    net, x_t = SimpleNamespace(forward=forward), np.array([[0.0, 1.0], [1.0, 1.0]])
    params = {"a": np.zeros(1, np.float32)}
    for t in (3, np.array([1, 6])):
        p_0, cache = binomial.guess_and_cache(net, params, x_t, t, RATES)
        x, level = given_to_the_net.pop()
        assert x.dtype == level.dtype == np.float32 and level.shape == (2,) and cache == "cache"
        np.testing.assert_array_equal(x, [[-1, 1], [1, 1]])
        np.testing.assert_allclose(np.exp(2 * level), (1 - RATES.A[t]) / RATES.A[t], rtol=1e-5)
        np.testing.assert_allclose(p_0, 3 / 4)  # the odds are exp(out)
        np.testing.assert_array_equal(p_0, binomial.guess_of(net, params, RATES)(x_t, t))


def test_binomial_sampling_asks_for_every_step_but_the_last_and_that_is_the_forward_processs():
    guess, rng = Counted(lambda x_t, t: 0.2 + 0.5 * x_t), np.random.default_rng(0)
    again = np.random.default_rng(0)
    x_t = rng.integers(0, 2, (2000, 3)).astype(float)
    again.integers(0, 2, (2000, 3))
    for t, (t_prev, x_prev) in zip(
        range(RATES.T, 0, -1), binomial.sample(guess, x_t, RATES, rng), strict=True
    ):
        p = x_t * (1 - RATES.beta[1]) + RATES.beta[1] / 2
        if t > 1:
            p = binomial.p_step(0.2 + 0.5 * x_t, x_t, t, RATES)
        assert t_prev == t - 1
        np.testing.assert_array_equal(x_prev, again.random(p.shape) < p)
        x_t = x_prev
    assert guess.calls == RATES.T - 1


# 2015, multiplying by a second distribution


@given(st.floats(-2, 2), st.floats(0.1, 3), st.floats(-2, 2), st.floats(0.1, 3))
def test_the_product_of_normals_is_their_product(mean, var, r_mean, r_var):
    m, v = posterior.product(mean, var, r_mean, r_var)
    x = np.linspace(-1, 1, 5)
    ratio = (
        normal.log_prob(x, mean, var) + normal.log_prob(x, r_mean, r_var) - normal.log_prob(x, m, v)
    )
    np.testing.assert_allclose(ratio, ratio[0], atol=1e-9)


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.1, 3))
def test_the_rule_for_a_smooth_r_is_the_product_to_first_order_in_the_step(mean, r_mean, r_var):
    grad = lambda x: (r_mean - x) / r_var  # noqa: E731
    gaps = [
        abs(posterior.perturbed(mean, h, grad) - posterior.product(mean, h, r_mean, r_var)[0])
        for h in (1e-3, 1e-4)
    ]
    assert gaps[1] <= gaps[0] / 50 + 1e-12  # the difference is of order h^2


def test_the_papers_rule_ends_at_two_thirds_where_the_truth_is_a_half():
    assert posterior.product(0.0, 1.0, 1.0, 1.0) == (0.5, 0.5)
    assert posterior.limit_on_gaussian_data(1.0, 1.0) == pytest.approx((2 / 3, 1 / 3))
    data, schedule, n = exact.Gaussian([0.0], [[1.0]]), linear(1000), 20_000
    predict_eps, rng = data.predictor(schedule), np.random.default_rng(0)
    x_T = rng.standard_normal((n, 1))
    *_, (t, x) = posterior.restrained(predict_eps, x_T, schedule, rng, 1.0, 1.0)
    assert t == 0 and abs(x.mean() - 2 / 3) < STANDARD_ERRORS * math.sqrt(1 / 3 / n) + 0.003
    assert abs(x.var() / (1 / 3) - 1) < STANDARD_ERRORS * math.sqrt(2 / n) + 0.01


@given(st.floats(-2, 2), st.floats(0.1, 3))
def test_where_the_papers_rule_ends_one_more_small_step_changes_nothing(r_mean, r_var):
    # For data N(0, 1) the reverse step is N(sqrt(1 - beta) x, beta). Times r it is linear in x too.
    m, v = posterior.limit_on_gaussian_data(r_mean, r_var)
    drift = []
    for beta in (1e-3, 1e-5):
        mean, var = posterior.product(math.sqrt(1 - beta) * m, beta, r_mean, r_var)
        moved, _ = posterior.product(math.sqrt(1 - beta) * (m + 1), beta, r_mean, r_var)
        drift.append((mean - m, (moved - mean) ** 2 * v + var - v))
    # What is left is of order beta^2.
    assert (np.abs(drift[1]) <= np.abs(drift[0]) / 1000 + 1e-12).all()


def test_every_step_of_the_papers_rule_is_the_reverse_step_times_r():
    data, schedule = exact.Gaussian([0.0], [[0.5]]), cosine(6)
    predict_eps, r_mean, r_var = Counted(data.predictor(schedule)), -0.7, 0.3
    x_t = np.random.default_rng(0).standard_normal((5, 1))
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    steps = posterior.restrained(predict_eps, x_t, schedule, rng, r_mean, r_var)
    for t, (t_prev, x_prev) in zip(range(6, 0, -1), steps, strict=True):
        eps_hat, beta, alpha = predict_eps(x_t, t), schedule.beta[t], schedule.alpha[t]
        mean = (x_t - beta / schedule.noise[t] * eps_hat) / math.sqrt(alpha)  # eq. (11), DDPM
        precision = 1 / beta + 1 / r_var
        mean = (mean / beta + r_mean / r_var) / precision
        z = standard_normal(again, x_t.shape, like=x_t)
        assert t_prev == t - 1
        np.testing.assert_allclose(x_prev, mean + z / math.sqrt(precision), rtol=1e-12)
        x_t = x_prev
    assert predict_eps.calls == 2 * 6  # 6 of them are this test's


def test_inpainting_keeps_what_is_known_and_draws_the_rest_to_go_with_it():
    rho, n, rng, schedule = 0.8, 20_000, np.random.default_rng(0), cosine(200)
    data = exact.Gaussian([0.0, 0.0], [[1.0, rho], [rho, 1.0]])
    known, mask = np.broadcast_to(np.array([1.0, 0.0]), (n, 2)), np.array([[1.0, 0.0]])
    predict_eps, x_T = data.predictor(schedule), rng.standard_normal((n, 2))
    *_, last = posterior.inpaint(predict_eps, x_T, schedule, rng, known, mask)
    assert (last.x_prev[:, 0] == 1).all()
    # The unknown coordinate follows the known one, and falls short of rho: the known one does not
    # follow it in turn.
    assert 0.3 < last.x_prev[:, 1].mean() < rho


def test_inpainting_with_nothing_known_is_ancestral_sampling_to_the_bit():
    data, schedule = exact.SwissRoll(), cosine(8)
    predict_eps, x_T = data.predictor(schedule), np.random.default_rng(0).standard_normal((6, 2))
    rng, again, mask = np.random.default_rng(1), np.random.default_rng(1), np.zeros((1, 2))
    inpainted = posterior.inpaint(predict_eps, x_T, schedule, rng, x_T, mask, noised=False)
    ancestral = ddpm(predict_eps, x_T, schedule, again)
    for step, expected in zip(inpainted, ancestral, strict=True):
        for name, value in expected._asdict().items():
            np.testing.assert_array_equal(getattr(step, name), value, err_msg=name)


@pytest.mark.parametrize("noised", [True, False])
def test_inpainting_replaces_what_is_known_and_writes_into_nothing_that_was_yielded(noised):
    # The same run, by the lines of the docstring, with the noise from a generator of the same seed.
    data, schedule = exact.SwissRoll(), cosine(8)
    predict_eps, x_T = data.predictor(schedule), np.random.default_rng(0).standard_normal((6, 2))
    known, mask = np.full((6, 2), 0.7), np.array([[1.0, 0.0]])
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    seen, x_t = [], x_T
    for step in posterior.inpaint(predict_eps, x_T, schedule, rng, known, mask, noised):
        seen.append((step, [np.copy(value) for value in step]))
        np.testing.assert_array_equal(step.x_t, x_t)
        z = standard_normal(again, x_T.shape, like=x_T) if step.t > 1 else 0 * x_T
        np.testing.assert_array_equal(step.z, z)
        known_prev = known
        if noised and step.t > 1:
            eps = standard_normal(again, known.shape, like=known)
            known_prev = q_sample(known, step.t_prev, eps, schedule)
        np.testing.assert_array_equal(step.x_prev[:, 0], known_prev[:, 0])
        np.testing.assert_array_equal(step.x_prev[:, 1], (step.mean + step.sigma * step.z)[:, 1])
        x_t = step.x_prev
    for step, copies in seen:
        for value, copy in zip(step, copies, strict=True):
            np.testing.assert_array_equal(value, copy)


def test_what_is_known_has_the_noise_of_the_level_that_the_step_reaches():
    n, rng, schedule = 20_000, np.random.default_rng(0), cosine(6)
    known, mask = np.full((n, 1), 0.7), np.ones((1, 1))
    data, x_T = exact.Gaussian([0.0], [[1.0]]), rng.standard_normal((n, 1))
    for step in posterior.inpaint(data.predictor(schedule), x_T, schedule, rng, known, mask):
        # No noise is left at t = 0, but for rounding.
        error = STANDARD_ERRORS * schedule.noise[step.t_prev] / math.sqrt(n) + 1e-12
        assert abs(step.x_prev.mean() - 0.7 * schedule.signal[step.t_prev]) <= error
        assert abs(step.x_prev.std() - schedule.noise[step.t_prev]) <= error


# 2019


@given(seeds, st.integers(2, 12))
def test_denoising_score_matching_is_half_of_l_simple_and_so_is_its_gradient(seed, L):
    rng, schedule = np.random.default_rng(seed), ncsn.ladder(L)
    out, x_0, eps = rng.standard_normal((3, 7, 2))
    t = rng.integers(1, L + 1, 7)
    loss, grad = ncsn.dsm(out, x_0, t, eps, schedule, "score")
    assert loss.shape == (7,)
    for predict, eps_hat, sign in (("eps", -out, -1), ("score", out, 1)):  # eps_hat = -sigma score
        simple, grad_simple = l_simple(eps_hat, x_0, t, eps, schedule, predict)
        np.testing.assert_allclose(loss, simple / 2, rtol=1e-12)
        np.testing.assert_allclose(grad, sign * grad_simple / 2, rtol=1e-9, atol=1e-12)


@given(seeds)
def test_the_gradient_of_score_matching(seed):
    rng, schedule = np.random.default_rng(seed), ncsn.ladder(5)
    theta, like = random_mlp(rng)
    x_0, eps, t = *rng.standard_normal((2, 6, 2)), rng.integers(1, 6, 6)

    def losses_and_gradient(theta):
        params = unflatten(theta, like)
        return train.gradient(mlp, params, x_0, t, eps, schedule, "score", ncsn.dsm)

    _, grad = losses_and_gradient(theta)
    loss = lambda theta: losses_and_gradient(theta)[0].mean()  # noqa: E731
    assert directional_error(loss, theta, grad, rng) < GRADIENT


@given(seeds)
def test_the_gradient_of_each_rows_score_matching_with_respect_to_the_output(seed):
    rng, schedule = np.random.default_rng(seed), ncsn.ladder(5)
    out, x_0, eps = rng.standard_normal((3, 6, 2))
    t, weight = rng.integers(1, 6, 6), rng.standard_normal((6, 1))
    _, grad_out = ncsn.dsm(out, x_0, t, eps, schedule)

    def weighted_loss(out):
        return (weight[:, 0] * ncsn.dsm(out, x_0, t, eps, schedule)[0]).sum()

    assert directional_error(weighted_loss, out, weight * grad_out, rng) < GRADIENT


def test_score_matching_is_for_a_network_that_predicts_the_score():
    x = np.ones((2, 1))
    with pytest.raises(ValueError, match='predict="score"'):
        ncsn.dsm(x, x, np.array([1, 2]), x, ncsn.ladder(2), "eps")


def test_ncsn_and_ddpm_learn_the_same_function():
    rng, schedule = np.random.default_rng(0), ncsn.ladder(5)
    params = unflatten(*random_mlp(rng))
    turned = sign_turned(params)
    x_t, t = rng.standard_normal((6, 2)), rng.integers(1, 6, 6)
    eps_hat = predictor(mlp, turned, schedule)(x_t, t)
    score = -eps_hat / schedule.noise[t][:, None]
    for trained in (params, train.start(params, predict="score")):
        predict_eps = ncsn.predictor(mlp, trained, schedule)
        np.testing.assert_allclose(predict_eps(x_t, t), eps_hat, rtol=1e-9)
        score_hat = ncsn.score_of(mlp, trained, schedule)(x_t, t)
        np.testing.assert_allclose(score_hat, score, rtol=1e-9)
    with pytest.raises(ValueError, match="trained to predict"):
        ncsn.score_of(mlp, train.start(params, predict="eps"), schedule)


def test_the_ladder_rises_in_equal_ratios():
    schedule = ncsn.ladder(10)
    np.testing.assert_allclose(schedule.noise[2:] / schedule.noise[1:-1], 100 ** (1 / 9), rtol=1e-9)
    assert schedule.noise[1] == pytest.approx(0.01) and schedule.noise[10] == pytest.approx(1)
    assert (schedule.signal == 1).all()
    with pytest.raises(ValueError, match="sigma"):
        ncsn.ladder(10, 1.0, 0.1)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_langevin_dynamics_end_in_their_own_variance_and_not_in_the_datas(share):
    # One level: v is the variance of x_t, and the step a share of v.
    sigma, var, n = 0.5, 0.75, 40_000
    schedule, v, rng = ncsn.ladder(1, sigma, sigma + 1), var + sigma**2, np.random.default_rng(0)
    data = exact.Gaussian([0.0], [[var]])
    score = lambda x, t: data.score(x, 1.0, sigma)  # noqa: E731
    x, steps = rng.standard_normal((n, 1)), round(40 / share)
    *_, last = ncsn.annealed_langevin(score, x, schedule, rng, epsilon=share * v, steps=steps)
    assert last.step == pytest.approx(share * v)
    assert abs(last.x_next.var() / (v / (1 - share / 4)) - 1) < STANDARD_ERRORS * math.sqrt(2 / n)


def test_algorithm_1_takes_steps_that_grow_with_the_square_of_the_level():
    schedule, rng = ncsn.ladder(3, 0.1, 1.0), np.random.default_rng(0)
    x = np.ones((2, 1))
    steps = list(ncsn.annealed_langevin(lambda x, t: -x, x, schedule, rng, epsilon=0.01, steps=2))
    assert [s.t for s in steps] == [3, 3, 2, 2, 1, 1]
    for s in steps:
        assert s.step == pytest.approx(0.01 * (schedule.noise[s.t] / 0.1) ** 2)
        np.testing.assert_allclose(s.x_next, s.x_t - s.step / 2 * s.x_t + math.sqrt(s.step) * s.z)


def test_denoised_langevin_is_annealed_langevin_level_by_level_and_one_denoising():
    schedule, data = ncsn.ladder(4, 0.1, 2.0), exact.SwissRoll()
    score = lambda x, t: data.score(x, 1.0, float(schedule.noise[t]))  # noqa: E731
    x = np.random.default_rng(0).standard_normal((5, 2))

    def run(sampler):
        return list(sampler(score, x, schedule, np.random.default_rng(1), 0.002, 3))

    annealed, steps = run(ncsn.annealed_langevin), run(ncsn.denoised_langevin)
    assert [(s.t, s.t_prev) for s in steps] == [(4, 3), (3, 2), (2, 1), (1, 0)]
    for step, last in zip(steps[:-1], annealed[2:-1:3], strict=True):
        np.testing.assert_array_equal(step.x_t, last.x_t)
        np.testing.assert_array_equal(step.x_prev, last.x_next)
    x, sigma = annealed[-1].x_next, float(schedule.noise[1])
    np.testing.assert_array_equal(steps[-1].x_t, x)
    np.testing.assert_allclose(steps[-1].x_prev, x + sigma**2 * score(x, 1), rtol=1e-12)
    for step in steps:
        sigma = float(schedule.noise[step.t])
        np.testing.assert_allclose(step.x_prev, step.mean + step.sigma * step.z, rtol=1e-12)
        np.testing.assert_allclose(step.eps_hat, -sigma * score(step.x_t, step.t), rtol=1e-12)
        np.testing.assert_allclose(step.x_0_hat, step.x_t - sigma * step.eps_hat, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_denoised_langevin_asks_for_the_score_once_a_step_and_once_more(steps):
    schedule, data = ncsn.ladder(4, 0.1, 2.0), exact.SwissRoll()
    score = Counted(lambda x, t: data.score(x, 1.0, float(schedule.noise[t])))
    x, rng = np.random.default_rng(0).standard_normal((5, 2)), np.random.default_rng(1)
    *noisy, last = ncsn.denoised_langevin(score, x, schedule, rng, 0.002, steps)
    assert score.calls == 4 * steps + 1
    assert all(step.sigma > 0 and step.z.any() for step in noisy)
    assert last.sigma == 0 and not last.z.any()
    sigmas = [step.sigma / schedule.noise[step.t] for step in noisy]
    np.testing.assert_allclose(sigmas, math.sqrt(0.002) / 0.1, rtol=1e-12)


def test_the_last_denoising_takes_out_the_noise():
    # Of data at one point m the score is (m - x) / sigma^2, and x + sigma^2 score is m itself.
    schedule, m, x = ncsn.ladder(5, 0.02, 1.0), np.full((3, 2), 0.3), np.ones((3, 2))
    score = lambda x, t: (m - x) / schedule.noise[t] ** 2  # noqa: E731
    rng = np.random.default_rng(0)
    *before, last = ncsn.denoised_langevin(score, x, schedule, rng, 0.25 * 0.02**2, steps=2)
    np.testing.assert_allclose(last.x_prev, m, atol=1e-12)
    assert (last.t, last.t_prev, len(before)) == (1, 0, 4) and np.abs(last.x_t - m).min() > 1e-6


def test_denoised_langevin_keeps_the_variance_and_ends_in_the_data():
    # On N(m, s^2) a step multiplies the deviation from m by 1 - step / 2v, v = s^2 + sigma^2, and
    # adds the variance `step`. Ladder, step and the 3 steps a level are those of the digits.
    m, s, n, steps, share = 0.7, 0.5, 50_000, 3, 0.25
    schedule, rng = ncsn.ladder(100, 0.02, 33.0), np.random.default_rng(0)
    mean, var = 0.0, schedule.noise[-1] ** 2
    for sigma in schedule.noise[:0:-1]:
        for _ in range(steps):
            step, v = share * sigma**2, s**2 + sigma**2
            mean = m + (1 - step / (2 * v)) * (mean - m)
            var = (1 - step / (2 * v)) ** 2 * var + step
    kept = s**2 / v  # of the last denoising, x_0_hat = m + kept (x - m)
    mean, var = m + kept * (mean - m), kept**2 * var
    data, x = exact.Gaussian([m], [[s**2]]), schedule.noise[-1] * rng.standard_normal((n, 1))
    score = lambda x, t: data.score(x, 1.0, float(schedule.noise[t]))  # noqa: E731
    *_, last = ncsn.denoised_langevin(score, x, schedule, rng, share * 0.02**2, steps)
    assert abs(last.x_prev.mean() - mean) < STANDARD_ERRORS * math.sqrt(var / n)
    assert abs(last.x_prev.var() / var - 1) < STANDARD_ERRORS * math.sqrt(2 / n)
    # Three steps a level leave a surplus of variance of 26%.
    assert mean == pytest.approx(m, abs=0.01) and s**2 < var < 1.3 * s**2


def test_the_largest_distance_is_that_of_all_pairs():
    x = np.random.default_rng(0).standard_normal((20, 3, 2))
    pairs = np.linalg.norm((x[:, None] - x[None]).reshape(20, 20, 6), axis=2)
    assert ncsn.largest_distance(x) == pytest.approx(pairs.max(), rel=1e-12)
    assert ncsn.largest_distance(np.ones((3, 2))) == 0


def test_the_overlap_of_two_shells_is_the_share_of_norms_within_3_deviations_of_the_next_mean():
    # The law of the norm is normal to order 1 / sqrt(dim), which adds some 0.01 at dim = 784.
    n, dim, ratio, rng = 20_000, 784, 1.08, np.random.default_rng(0)
    norm = np.sqrt(rng.chisquare(dim, n))
    share = (np.abs(norm / ratio - math.sqrt(dim)) < 3 / math.sqrt(2)).mean()
    overlap = ncsn.shell_overlap(ratio, dim)
    assert abs(share - overlap) < STANDARD_ERRORS * 0.5 / math.sqrt(n) + 0.01
    assert overlap == pytest.approx(0.5, abs=0.05)  # the ratio of the digits' ladder
    assert ncsn.shell_overlap(1.0, dim) > 0.99 and ncsn.shell_overlap(1.5, dim) < 0.01


@given(st.floats(0.01, 1.9), st.floats(1.0, 3.0), st.integers(1, 20))
def test_the_variance_that_langevin_steps_leave_of_a_point(share, ratio, steps):
    v = ratio**2
    for _ in range(steps):
        v = (1 - share / 2) ** 2 * v + share
    assert ncsn.variance_ratio(share, ratio, steps) == pytest.approx(v, rel=1e-9)


def test_a_quarter_of_sigma_2_is_the_step_that_keeps_the_variance_best_in_3_steps():
    shares = np.arange(0.05, 1.0, 0.05)
    ratio = (33.0 / 0.02) ** (1 / 99)  # of the digits' ladder
    gaps = [abs(ncsn.variance_ratio(share, ratio, 3) - 1) for share in shares]
    assert shares[np.argmin(gaps)] == pytest.approx(0.25)


# The U-Net as a score network


def score_unet(seed, spread):
    """theta of a small score network in float64, and a tree of its shapes."""
    rng = np.random.default_rng(seed)
    theta, like = pack(ncsn.init(rng, width=8))
    return theta.astype(np.float64) + spread * rng.standard_normal(theta.size), like


def test_the_score_network_starts_as_the_score_of_a_standard_normal():
    rng, schedule = np.random.default_rng(0), ncsn.ladder(5, 0.1, 5.0)
    params = unflatten(*score_unet(0, 0.0))
    x_t, t = rng.standard_normal((3, 8, 8, 1)), np.array([1, 3, 5])
    score = ncsn.score_of(ncsn, params, schedule, label=np.array([3, 0, ncsn.NO_CLASS]))(x_t, t)
    sigma = schedule.noise[t].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(score, -x_t / (1 + sigma**2), rtol=1e-9)  # of N(0, 1 + sigma^2)


def test_the_score_network_has_the_right_gradients():
    rng, schedule = np.random.default_rng(0), ncsn.ladder(5, 0.1, 5.0)
    theta, like = score_unet(0, 0.1)
    x_t, t, label = rng.standard_normal((3, 8, 8, 1)), np.array([1, 3, 5]), np.array([3, 0, 10])
    batch = x_t, t, np.ones_like(x_t), schedule, "score", ncsn.dsm

    def losses_and_gradient(theta):
        return train.gradient(ncsn, unflatten(theta, like), *batch, label=label)

    loss = lambda theta: losses_and_gradient(theta)[0].mean()  # noqa: E731
    assert directional_error(loss, theta, losses_and_gradient(theta)[1], rng) < 1e-6

    params, level = unflatten(theta, like), schedule.level[t]
    forward = lambda x: ncsn.forward(params, x, level, label)  # noqa: E731
    backward = lambda grad, cache: (ncsn.backward(params, cache, grad)[0], {})  # noqa: E731
    assert check_pair(forward, backward, x_t, rng)["x"] < 1e-6


def test_the_score_network_is_minus_eps_hat_of_a_u_net_that_predicts_v():
    # out = signal unet(x) - noise x, and eps_hat = noise x + signal v for v = -unet(x).
    rng, schedule = np.random.default_rng(0), ncsn.ladder(5, 0.1, 5.0)
    params = unflatten(*score_unet(0, 0.1))
    x_t, t = rng.standard_normal((3, 8, 8, 1)), np.array([1, 3, 5])
    by_v = predictor(unet, sign_turned(params), schedule, "v")(x_t, t)
    by_score = predictor(ncsn, params, schedule, "score")(x_t, t)
    np.testing.assert_allclose(by_score, by_v, rtol=1e-9, atol=1e-9 * np.abs(by_v).max())


# What the systems share, and what distinguishes them from a variational autoencoder and a flow


def test_the_encoder_has_no_parameters_and_x_T_has_the_datas_dimension():
    x = np.random.default_rng(0).standard_normal((5, 3))
    arguments = q_step.__code__.co_varnames[: q_step.__code__.co_argcount]
    assert arguments == ("x_prev", "t", "eps", "schedule")  # no theta among them
    assert q_step(x, 3, x, cosine(5)).shape == x.shape
    assert q_posterior(x, x, 3, cosine(5))[0].shape == x.shape


def test_the_three_train_with_one_loop():
    rng = np.random.default_rng(0)
    params = mlp.init(rng, hidden=16, layers=1)
    double = mlp.init(rng, hidden=16, layers=1, outputs=4)
    data, schedule = exact.SwissRoll(), uniform_log_snr(20, math.log(1e-2), 4.0)
    update = partial(train.update, lr=5e-3)
    runs = {
        "2015": (train.start(double), schedule, dpm2015.objective, dpm2015.after_1),
        "2019": (train.start(params, "score"), ncsn.ladder(10, 0.03, 3.0), ncsn.dsm, train.uniform),
        "2020": (train.start(params), linear(1000), l_simple, train.uniform),
    }
    for state, schedule, objective, draw_t in runs.values():
        steps = train.train(
            mlp, state, data.sample, schedule, rng, 300, 128, objective, draw_t, update
        )
        losses = [float(step.loss) for step in steps]
        assert np.mean(losses[-30:]) < np.mean(losses[:10])


def test_2015_trains_along_its_own_network_input():
    rng, data = np.random.default_rng(0), exact.SwissRoll()
    state = train.start(mlp.init(rng, hidden=16, layers=1, outputs=4))
    x_0, losses = data.sample(2000, rng), []
    before, _ = dpm2015.bound(x_0, SCHEDULE, dpm2015.reverse(mlp, state, SCHEDULE), rng)
    for _ in range(300):
        batch, t = data.sample(128, rng), dpm2015.after_1(128, T, rng)
        eps = standard_normal(rng, batch.shape, like=batch)
        kl, grad = gradient_of_K(state.params, batch, t, eps, SCHEDULE)
        train.update(state, grad, 300, lr=5e-3)
        losses.append(kl.mean())
    after, _ = dpm2015.bound(x_0, SCHEDULE, dpm2015.reverse(mlp, state, SCHEDULE), rng)
    assert np.mean(losses[-30:]) < np.mean(losses[:10]) and after > before


def test_fixed_and_learned_kernels_serve_the_same_bound():
    schedule, rng, data = cosine(10), np.random.default_rng(0), exact.Gaussian([0.0], [[1.0]])
    reverse = fixed(data.predictor(schedule), schedule, "beta")
    K, error = dpm2015.bound(data.sample(2000, rng, np.float64), schedule, reverse, rng)
    assert abs(K - dpm2015.null_model(1)) < STANDARD_ERRORS * error + 1e-9
