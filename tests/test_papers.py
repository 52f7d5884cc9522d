"""The papers of 2015 and 2019: identities, enumerations, gradients by differences, and the laws that their samplers reach."""

import itertools
import math

import numpy as np
import pytest
from conftest import STANDARD_ERRORS, preserving_schedules, random_mlp, seeds, sign_turned
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiff import exact, normal, schedule, train
from npdiff.forward import q_posterior, q_step
from npdiff.kit.gradcheck import check_pair, directional_error
from npdiff.likelihood import fixed
from npdiff.loss import l_simple
from npdiff.nn import mlp
from npdiff.nn.params import leaves, pack, unflatten
from npdiff.papers import binomial, dpm2015, ncsn, posterior, radial_basis
from npdiff.reverse import predictor
from npdiff.schedule import variance_preserving

GRADIENT = 1e-5
T = 12
CHAIN = schedule.uniform_log_snr(T, math.log(1e-2), 3.0)


# 2015, Gaussian


@given(preserving_schedules(max_T=20), st.integers(1, 3), seeds)
def test_a_model_that_undoes_the_noise_of_pi_has_the_bound_of_the_null_model(chain, dim, seed):
    # p(x_{t-1} | x_t) = T_pi(x_{t-1} | x_t; beta_t) has pi for its data; for any data with E|x_0|^2 = d, K = E log pi(x_0).
    rng = np.random.default_rng(seed)
    x_0 = rng.standard_normal((4000, dim))
    x_0 *= math.sqrt(dim / (x_0**2).sum(axis=1).mean())
    isotropic = lambda x_t, t: (math.sqrt(chain.alpha[t]) * x_t, float(chain.beta[t]))  # noqa: E731
    K, error = dpm2015.bound(x_0, chain, isotropic, rng)
    assert abs(K - dpm2015.null_model(dim)) <= STANDARD_ERRORS * error + 1e-9


def test_the_null_model_of_the_roll_is_that_of_the_paper():
    assert dpm2015.null_model(2) == pytest.approx(-4.094, abs=1e-3)


def test_K_lies_below_the_ceiling_and_reaches_it_for_gaussian_data_in_many_steps():
    rng, data = np.random.default_rng(0), exact.Gaussian([0.0, 0.0], [[1.0, 0.6], [0.6, 1.0]])
    ceiling, gaps = -data.entropy() / math.log(2), []
    for steps in (10, 40, 160):
        chain = schedule.uniform_log_snr(steps, math.log(1e-2), 4.0)
        K, error = dpm2015.bound(data.sample(4000, rng, np.float64), chain, dpm2015.best_reverse(data, chain), rng)
        gaps.append(ceiling - K)
        assert ceiling + STANDARD_ERRORS * error > K
    assert gaps[2] < gaps[1] < gaps[0]


def test_no_variance_beside_the_best_gives_a_larger_K():
    rng, data = np.random.default_rng(0), exact.SwissRoll()
    x_0, best, chain = data.sample(500, rng, np.float64), dpm2015.best_reverse(data, CHAIN), CHAIN
    scaled = [lambda x, t, f=f: (best(x, t)[0], f * best(x, t)[1]) for f in (0.8, 1.0, 1.25)]
    K = [dpm2015.bound(x_0, chain, reverse, np.random.default_rng(1))[0] for reverse in scaled]
    assert K[1] > K[0] and K[1] > K[2]


def test_the_best_step_back_of_gaussian_data_is_q_itself():
    data = exact.Gaussian([0.0, 0.0], [[0.5, 0.0], [0.0, 2.0]])
    x_t = np.random.default_rng(0).standard_normal((5, 2))
    mean, var = dpm2015.best_reverse(data, CHAIN)(x_t, 6)
    v = [CHAIN.signal[t] ** 2 * np.array([0.5, 2.0]) + CHAIN.noise[t] ** 2 for t in (5, 6)]
    np.testing.assert_allclose(var, np.broadcast_to(CHAIN.beta[6] * v[0] / v[1], (5, 2)), rtol=1e-6)
    np.testing.assert_allclose(mean, math.sqrt(CHAIN.alpha[6]) * v[0] / v[1] * x_t, rtol=1e-9)


@given(preserving_schedules(max_T=20), st.floats(0.05, 1.0))
def test_the_entropy_of_a_step_back_lies_between_the_bounds_of_eq_24_for_data_no_wider_than_pi(chain, var):
    v = chain.signal**2 * var + chain.noise**2
    for t in range(2, chain.T + 1):
        low, high = dpm2015.entropy_bounds(t, chain, 1)
        assert low - 1e-9 <= normal.entropy(float(chain.beta[t] * v[t - 1] / v[t])) <= high + 1e-9


def test_for_wider_data_the_upper_bound_of_eq_24_fails_and_the_lower_holds():
    chain, var = schedule.cosine(10), 4.0
    v = chain.signal**2 * var + chain.noise**2
    for t in range(2, 10):
        low, high = dpm2015.entropy_bounds(t, chain, 1)
        assert (
            low < normal.entropy(float(chain.beta[t] * v[t - 1] / v[t])) and normal.entropy(float(chain.beta[t] * v[t - 1] / v[t])) > high
        )


@settings(max_examples=20)
@given(seeds)
def test_the_gradient_of_K(seed):
    rng = np.random.default_rng(seed)
    theta, like = random_mlp(rng, outputs=4)
    x_0, eps, t = *rng.standard_normal((2, 9, 2)), rng.integers(2, T + 1, 9)
    f = lambda theta: dpm2015.gradient(mlp, unflatten(theta, like), x_0, t, eps, CHAIN)[0]  # noqa: E731
    assert directional_error(f, theta, dpm2015.gradient(mlp, unflatten(theta, like), x_0, t, eps, CHAIN)[1], rng) < GRADIENT


@settings(max_examples=20)
@given(seeds)
def test_the_gradient_of_K_in_the_rates(seed):
    rng = np.random.default_rng(seed)
    theta, like = random_mlp(rng, outputs=4)
    params, n = unflatten(theta, like), 9
    x_0, eps, t = *rng.standard_normal((2, n, 2)), rng.integers(2, T + 1, n)

    def minus_K(beta):
        chain = variance_preserving(beta[1:])
        return (T - 1) * dpm2015.gradient(mlp, params, x_0, t, eps, chain)[0] - dpm2015.ends(chain, 2)

    beta = np.concatenate([[0.0], rng.uniform(0.05, 0.4, T)])
    grad = dpm2015.rates_gradient(mlp, params, x_0, t, eps, variance_preserving(beta[1:]))
    assert grad.shape == (T + 1,) and (grad[:2] == 0).all()
    for k in range(2, T + 1):
        h = np.zeros(T + 1)
        h[k] = 1e-6
        assert grad[k] == pytest.approx((minus_K(beta + h) - minus_K(beta - h)) / 2e-6, rel=1e-4, abs=1e-4)


def test_the_terms_of_training_are_those_of_the_bound():
    rng = np.random.default_rng(0)
    theta, like = random_mlp(rng, outputs=4)
    params, x_0 = unflatten(theta, like), rng.standard_normal((40_000, 2))
    K, error = dpm2015.bound(x_0, CHAIN, dpm2015.reverse(mlp, params, CHAIN), rng)
    t, eps = dpm2015.after_1(len(x_0), T, rng), rng.standard_normal(x_0.shape)
    assert t.min() == 2 and t.max() == T
    kl = dpm2015.terms(mlp, params, x_0, t, eps, CHAIN)[0]
    estimate = (dpm2015.ends(CHAIN, 2) - (T - 1) * kl.mean()) / math.log(2)
    assert abs(estimate - K) < STANDARD_ERRORS * math.hypot(error, (T - 1) * kl.std() / math.log(2) / math.sqrt(len(x_0)))


def test_sampling_with_the_best_steps_of_gaussian_data_gives_the_data_back():
    rng, var = np.random.default_rng(0), 0.5
    data, chain, n = exact.Gaussian([0.0], [[var]]), schedule.uniform_log_snr(40, math.log(1e-2), 4.0), 40_000
    *_, last = dpm2015.sample(dpm2015.best_reverse(data, chain), rng.standard_normal((n, 1)), chain, rng)
    # The last step, the forward process's, takes the variance v_1 of x_1 to (1 - beta_1) v_1 + beta_1.
    v_1 = chain.signal[1] ** 2 * var + chain.noise[1] ** 2
    expected = (1 - chain.beta[1]) * v_1 + chain.beta[1]
    assert abs(last.x_prev.var() / expected - 1) < STANDARD_ERRORS * math.sqrt(2 / n) + 0.005 and last.t_prev == 0


@settings(max_examples=20)
@given(seeds)
def test_the_radial_basis_network_and_its_gradients(seed):
    rng = np.random.default_rng(seed)
    theta, like = pack(radial_basis.init(rng, T=6, units=5))
    params = unflatten(theta.astype(np.float64) + 0.3 * rng.standard_normal(theta.size), like)
    x, t = rng.standard_normal((7, 2)), rng.integers(1, 7, 7)
    told = 10 * t / 6 - 5.0
    forward = lambda x, **p: radial_basis.forward(p, x, told)  # noqa: E731
    assert max(check_pair(forward, lambda g, c: radial_basis.backward(params, c, g), x, rng, **params).values()) < GRADIENT
    phi = np.exp(-0.5 * ((x[:, None] - params["centre"]) ** 2).sum(axis=2) / np.exp(params["s"]) ** 2)
    out = np.stack([p / p.sum() @ params["w"][k] + params["b"][k] for p, k in zip(phi, t, strict=True)])
    np.testing.assert_allclose(radial_basis.forward(params, x, told)[0], out, rtol=1e-9)
    assert [a.shape for a in leaves(radial_basis.backward(params, radial_basis.forward(params, x, told)[1], out)[1])] == [
        a.shape for a in leaves(params)
    ]


# 2015, binomial

RATES = binomial.rates(6, first=0.02, last=0.05)


def test_the_binomial_marginal_is_the_chain_summed_over_all_paths():
    for x_0 in (0.0, 1.0):
        p = np.array([1 - x_0, x_0])  # of x = 0 and 1
        for t in range(1, RATES.T + 1):
            step = [binomial.q_step(np.array([x]), t, RATES)[0] for x in (0.0, 1.0)]
            p = sum(p[k] * np.array([1 - step[k], step[k]]) for k in (0, 1))
            assert binomial.q_marginal(np.array([[x_0]]), t, RATES).item() == pytest.approx(p[1], rel=1e-12)


def test_the_binomial_posterior_is_bayes_by_enumeration():
    for t, x_0, x_t in itertools.product(range(2, RATES.T + 1), (0.0, 1.0), (0.0, 1.0)):
        joint = []
        for x_prev in (0.0, 1.0):
            before = binomial.q_marginal(np.array([x_0]), t - 1, RATES)[0]
            step = binomial.q_step(np.array([x_prev]), t, RATES)[0]
            joint.append((before if x_prev else 1 - before) * (step if x_t else 1 - step))
        found = binomial.q_posterior(np.array([[x_0]]), np.array([[x_t]]), np.array([t]), RATES).item()
        assert found == pytest.approx(joint[1] / sum(joint), rel=1e-12)


@given(seeds)
def test_the_step_back_with_the_right_x_0_is_the_posterior(seed):
    rng = np.random.default_rng(seed)
    x_0, x_t = rng.integers(0, 2, (2, 5, 4)).astype(float)
    t = rng.integers(2, RATES.T + 1, 5)
    np.testing.assert_allclose(binomial.p_step(x_0, x_t, t, RATES), binomial.q_posterior(x_0, x_t, t, RATES), rtol=1e-12)


def test_fair_coins_have_K_of_minus_one_bit_each_by_a_model_that_knows_nothing():
    rng = np.random.default_rng(0)
    x_0 = rng.integers(0, 2, (4000, 3)).astype(float)
    nothing = lambda x_t, t: binomial.q_marginal(x_t, t, RATES)  # noqa: E731  p(x_0 | x_t) for fair coins is the marginal, reversed
    K, error = binomial.bound(x_0, RATES, nothing, rng)
    assert abs(K + 3) < STANDARD_ERRORS * error + 1e-9


def test_K_of_independent_coins_comes_near_their_entropy_from_below():
    rng, p, n = np.random.default_rng(0), 0.2, 4000
    rates = binomial.rates(60, first=1e-3, last=1e-3)
    x_0 = (rng.random((n, 2)) < p).astype(float)

    def exact_guess(x_t, t):  # Bayes for each bit
        one, zero = binomial.q_marginal(np.ones_like(x_t), t, rates), binomial.q_marginal(np.zeros_like(x_t), t, rates)
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
    f = lambda theta: binomial.gradient(mlp, unflatten(theta, like), x_0, t, RATES, np.random.default_rng(seed))[0]  # noqa: E731
    grad = binomial.gradient(mlp, unflatten(theta, like), x_0, t, RATES, np.random.default_rng(seed))[1]
    assert directional_error(f, theta, grad, rng) < GRADIENT


def test_the_levels_of_the_binomial_process_are_uniform():
    rates = binomial.rates(11)
    logit = np.log(rates.A[1:] / (1 - rates.A[1:]))
    np.testing.assert_allclose(np.diff(logit), np.diff(logit)[0], rtol=1e-9)
    np.testing.assert_allclose(np.cumprod(1 - rates.beta[1:]), rates.A[1:], rtol=1e-12)


# 2015, multiplying by a second distribution


@given(st.floats(-2, 2), st.floats(0.1, 3), st.floats(-2, 2), st.floats(0.1, 3))
def test_the_product_of_normals_is_their_product(mean, var, r_mean, r_var):
    m, v = posterior.product(mean, var, r_mean, r_var)
    x = np.linspace(-1, 1, 5)
    ratio = normal.log_prob(x, mean, var) + normal.log_prob(x, r_mean, r_var) - normal.log_prob(x, m, v)
    np.testing.assert_allclose(ratio, ratio[0], atol=1e-9)


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.1, 3))
def test_the_rule_for_a_smooth_r_is_the_product_to_first_order_in_the_step(mean, r_mean, r_var):
    grad = lambda x: (r_mean - x) / r_var  # noqa: E731
    gaps = [abs(posterior.perturbed(mean, h, grad) - posterior.product(mean, h, r_mean, r_var)[0]) for h in (1e-3, 1e-4)]
    assert gaps[1] <= gaps[0] / 50 + 1e-12  # the difference is of order h^2


def test_the_papers_rule_ends_at_two_thirds_where_the_truth_is_a_half():
    assert posterior.product(0.0, 1.0, 1.0, 1.0) == (0.5, 0.5)
    assert posterior.limit_on_gaussian_data(1.0, 1.0) == pytest.approx((2 / 3, 1 / 3))
    data, chain, n, rng = exact.Gaussian([0.0], [[1.0]]), schedule.linear(1000), 20_000, np.random.default_rng(0)
    *_, (t, x) = posterior.restrained(data.predictor(chain), rng.standard_normal((n, 1)), chain, rng, 1.0, 1.0)
    assert t == 0 and abs(x.mean() - 2 / 3) < STANDARD_ERRORS * math.sqrt(1 / 3 / n) + 0.003
    assert abs(x.var() / (1 / 3) - 1) < STANDARD_ERRORS * math.sqrt(2 / n) + 0.01


def test_inpainting_keeps_what_is_known_and_draws_the_rest_as_it_goes_with_it():
    rho, n, rng, chain = 0.8, 20_000, np.random.default_rng(0), schedule.cosine(200)
    data = exact.Gaussian([0.0, 0.0], [[1.0, rho], [rho, 1.0]])
    known, mask = np.broadcast_to(np.array([1.0, 0.0]), (n, 2)), np.array([[1.0, 0.0]])
    *_, last = posterior.inpaint(data.predictor(chain), rng.standard_normal((n, 2)), chain, rng, known, mask)
    assert (last.x_prev[:, 0] == 1).all()
    assert 0.3 < last.x_prev[:, 1].mean() < rho  # it follows the known one, and falls short of rho: only one way round is the truth told


def test_what_is_known_is_put_in_with_the_noise_of_the_level_that_the_step_reaches():
    n, rng, chain = 20_000, np.random.default_rng(0), schedule.cosine(6)
    known, mask = np.full((n, 1), 0.7), np.ones((1, 1))
    data = exact.Gaussian([0.0], [[1.0]])
    for step in posterior.inpaint(data.predictor(chain), rng.standard_normal((n, 1)), chain, rng, known, mask):
        error = STANDARD_ERRORS * chain.noise[step.t_prev] / math.sqrt(n) + 1e-12  # none is left at t = 0, but for rounding
        assert abs(step.x_prev.mean() - 0.7 * chain.signal[step.t_prev]) <= error
        assert abs(step.x_prev.std() - chain.noise[step.t_prev]) <= error


# 2019


@given(seeds, st.integers(2, 12))
def test_denoising_score_matching_is_half_of_l_simple_and_so_is_its_gradient(seed, L):
    rng, chain = np.random.default_rng(seed), ncsn.ladder(L)
    out, x_0, eps = rng.standard_normal((3, 7, 2))
    t = rng.integers(1, L + 1, 7)
    loss, grad = ncsn.dsm(out, t, eps, chain)
    simple, grad_simple = l_simple(-out, x_0, t, eps, chain)  # eps_hat = -sigma score_hat = -out
    assert loss == pytest.approx(simple / 2) and np.allclose(grad, -grad_simple / 2, rtol=1e-9)


@given(seeds)
def test_the_gradient_of_score_matching(seed):
    rng, chain = np.random.default_rng(seed), ncsn.ladder(5)
    theta, like = random_mlp(rng)
    x_0, eps, t = *rng.standard_normal((2, 6, 2)), rng.integers(1, 6, 6)
    f = lambda theta: ncsn.gradient(mlp, unflatten(theta, like), x_0, t, eps, chain)[0]  # noqa: E731
    assert directional_error(f, theta, ncsn.gradient(mlp, unflatten(theta, like), x_0, t, eps, chain)[1], rng) < GRADIENT


def test_ncsn_and_ddpm_learn_the_same_function():
    rng, chain = np.random.default_rng(0), ncsn.ladder(5)
    params = unflatten(*random_mlp(rng))
    turned = sign_turned(params)
    x_t, t = rng.standard_normal((6, 2)), rng.integers(1, 6, 6)
    eps_hat = predictor(mlp, turned, chain)(x_t, t)
    np.testing.assert_allclose(ncsn.predictor(mlp, params, chain)(x_t, t), eps_hat, rtol=1e-9)
    np.testing.assert_allclose(ncsn.score_of(mlp, params, chain)(x_t, t), -eps_hat / chain.noise[t][:, None], rtol=1e-9)


def test_the_ladder_rises_in_equal_ratios():
    chain = ncsn.ladder(10)
    np.testing.assert_allclose(chain.noise[2:] / chain.noise[1:-1], 100 ** (1 / 9), rtol=1e-9)
    assert chain.noise[1] == pytest.approx(0.01) and chain.noise[10] == pytest.approx(1) and (chain.signal == 1).all()
    with pytest.raises(ValueError, match="sigma"):
        ncsn.ladder(10, 1.0, 0.1)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_langevin_dynamics_end_in_their_own_variance_and_not_in_the_datas(share):
    # One level: v is the variance of x_t, and the step a share of v.
    sigma, var, n = 0.5, 0.75, 40_000
    chain, v, rng = ncsn.ladder(1, sigma, sigma + 1), var + sigma**2, np.random.default_rng(0)
    data = exact.Gaussian([0.0], [[var]])
    score = lambda x, t: data.score(x, 1.0, sigma)  # noqa: E731
    *_, last = ncsn.annealed_langevin(score, rng.standard_normal((n, 1)), chain, rng, epsilon=share * v, steps=round(40 / share))
    assert last.step == pytest.approx(share * v)
    assert abs(last.x_next.var() / (v / (1 - share / 4)) - 1) < STANDARD_ERRORS * math.sqrt(2 / n)


def test_algorithm_1_takes_steps_that_grow_with_the_square_of_the_level():
    chain, rng = ncsn.ladder(3, 0.1, 1.0), np.random.default_rng(0)
    steps = list(ncsn.annealed_langevin(lambda x, t: -x, np.ones((2, 1)), chain, rng, epsilon=0.01, steps=2))
    assert [s.t for s in steps] == [3, 3, 2, 2, 1, 1]
    for s in steps:
        assert s.step == pytest.approx(0.01 * (chain.noise[s.t] / 0.1) ** 2)
        np.testing.assert_allclose(s.x_next, s.x_t - s.step / 2 * s.x_t + math.sqrt(s.step) * s.z)


# What the systems share, and what sets them apart from a variational autoencoder and a flow


def test_the_encoder_has_no_parameters_and_x_T_has_the_datas_dimension():
    x = np.random.default_rng(0).standard_normal((5, 3))
    assert q_step.__code__.co_varnames[: q_step.__code__.co_argcount] == ("x_prev", "t", "eps", "schedule")  # no theta among them
    assert q_step(x, 3, x, schedule.cosine(5)).shape == x.shape
    assert q_posterior(x, x, 3, schedule.cosine(5))[0].shape == x.shape


def test_the_three_train_with_one_loop():
    rng = np.random.default_rng(0)
    params = mlp.init(rng, hidden=16, layers=1)
    double = mlp.init(rng, hidden=16, layers=1, outputs=4)
    data, chain = exact.SwissRoll(), schedule.uniform_log_snr(20, math.log(1e-2), 4.0)
    runs = {
        "2015": (double, chain, dict(gradient=dpm2015.gradient, draw_t=dpm2015.after_1)),
        "2019": (params, ncsn.ladder(10, 0.03, 3.0), dict(gradient=ncsn.gradient)),
        "2020": (params, schedule.linear(1000), {}),
    }
    for start, levels, how in runs.values():
        losses = [float(s.loss) for s in train.train(mlp, train.start(start), data.sample, levels, rng, 300, 128, lr=5e-3, **how)]
        assert np.mean(losses[-30:]) < np.mean(losses[:10])


def test_fixed_and_learned_kernels_serve_the_same_bound():
    chain, rng, data = schedule.cosine(10), np.random.default_rng(0), exact.Gaussian([0.0], [[1.0]])
    K, error = dpm2015.bound(data.sample(2000, rng, np.float64), chain, fixed(data.predictor(chain), chain, "beta"), rng)
    assert abs(K - dpm2015.null_model(1)) < STANDARD_ERRORS * error + 1e-9
