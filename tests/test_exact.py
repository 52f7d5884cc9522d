import math

import numpy as np
import pytest
from conftest import (
    EPS,
    STANDARD_ERRORS,
    assert_within_standard_errors,
    normal_values,
    seeds,
    variance_exploding,
)
from hypothesis import given
from hypothesis import strategies as st

from npdiff import normal
from npdiff.exact import Gaussian, Mixture, SwissRoll, non_gaussianity, reverse_draws
from npdiff.forward import q_sample
from npdiff.reverse import mean_per_eps, p_mean_from_eps
from npdiff.schedule import cosine, linear

LEVELS = [(1.0, 0.0), (0.9, 0.3), (0.6, 0.8), (0.01, 1.0), (1.0, 5.0)]  # signal, noise


def random_cov(rng, d):
    a = rng.standard_normal((d, d))
    return a @ a.T / d + 0.1 * np.eye(d)


def random_mixture(seed, K=3, d=2):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1, K)
    covs = np.stack([random_cov(rng, d) for _ in range(K)])
    return Mixture(weights / weights.sum(), 2 * rng.standard_normal((K, d)), covs)


def direct_log_prob(x, weights, means, covs, signal, noise):
    """log sum_k w_k N(x; signal m_k, signal^2 C_k + noise^2 I), point by point, by inverse and
    determinant."""
    result = []
    for point in x:
        terms = []
        for weight, mean, cov in zip(weights, means, covs, strict=True):
            cov = signal**2 * cov + noise**2 * np.eye(len(mean))
            offset = point - signal * mean
            density = math.exp(-0.5 * offset @ np.linalg.inv(cov) @ offset) / math.sqrt(
                np.linalg.det(2 * np.pi * cov)
            )
            terms.append(weight * density)
        result.append(math.log(sum(terms)))
    return np.array(result)


def paired_losses(data, t, schedule, n, seed):
    """x_t, eps, |eps - eps*|^2 / d and the irreducible loss at x_t, for n points at the time t."""
    rng = np.random.default_rng(seed)
    x_0 = data.sample(n, rng, np.float64)
    eps = rng.standard_normal(x_0.shape)
    x_t = q_sample(x_0, t, eps, schedule)
    eps_star = data.predictor(schedule)(x_t, t)
    return x_t, eps, ((eps - eps_star) ** 2).mean(axis=1), data.irreducible_loss(x_t, t, schedule)


DATA = {
    "Gaussian": Gaussian([0.3, -0.2], [[0.5, 0.2], [0.2, 0.3]]),
    "Mixture": random_mixture(0),
    "Mixture in one dimension": Mixture([0.3, 0.7], [[-1.0], [0.8]], [[[0.04]], [[0.25]]]),
    "SwissRoll": SwissRoll(0.5),
}
every_data = pytest.mark.parametrize("data", DATA.values(), ids=DATA)


# Density


@given(seeds, st.integers(1, 4), st.integers(1, 3), st.sampled_from(LEVELS))
def test_mixture_log_prob_is_the_direct_formula(seed, K, d, level):
    rng = np.random.default_rng(seed)
    weights, means = rng.uniform(0.5, 1, K), rng.standard_normal((K, d))
    weights, covs = weights / weights.sum(), np.stack([random_cov(rng, d) for _ in range(K)])
    x = 2 * rng.standard_normal((5, d))
    expected = direct_log_prob(x, weights, means, covs, *level)
    # np.linalg.inv loses some digits.
    np.testing.assert_allclose(
        Mixture(weights, means, covs).log_prob(x, *level), expected, rtol=1e-10, atol=1e-10
    )


@given(seeds, st.sampled_from(LEVELS))
def test_gaussian_is_a_mixture_of_one(seed, level):
    rng = np.random.default_rng(seed)
    mean, cov, x = rng.standard_normal(2), random_cov(rng, 2), rng.standard_normal((5, 2))
    gaussian = Gaussian(mean, cov)
    np.testing.assert_allclose(
        gaussian.log_prob(x, *level),
        direct_log_prob(x, [1.0], [mean], [cov], *level),
        rtol=1e-10,
        atol=1e-10,
    )
    signal, noise = level
    inverse = np.linalg.inv(signal**2 * cov + noise**2 * np.eye(2))
    np.testing.assert_allclose(
        gaussian.score(x, *level), -(x - signal * mean) @ inverse, rtol=1e-10, atol=1e-10
    )


@every_data
@pytest.mark.parametrize("level", [(1.0, 0.0), (0.6, 0.8)])
def test_density_integrates_to_1(data, level):
    # The trapezoid rule with half a width between points is off by exp(-2 pi^2 2^2) = 1e-34 for a
    # Gaussian; the rest is rounding.
    signal, noise = level
    width = np.sqrt(signal**2 * data.variances.min() + noise**2)
    reach = np.abs(signal * data.means).max() + 10 * np.sqrt(
        signal**2 * data.variances.max() + noise**2
    )
    side = np.arange(-reach, reach, width / 2)
    grid = np.stack(np.meshgrid(*[side] * data.dim, indexing="ij"), axis=-1).reshape(-1, data.dim)
    total = sum(
        np.exp(data.log_prob(part, *level)).sum()
        for part in np.array_split(grid, 1 + len(grid) // 2000)
    )
    assert total * (width / 2) ** data.dim == pytest.approx(1, abs=1e-9)


@every_data
@given(seed=seeds, level=st.sampled_from(LEVELS))
def test_score_is_the_gradient_of_log_prob(data, seed, level):
    # Central differences of step h err by h^2 / 6 times a third derivative of order 1/width^3, and
    # by EPS |log p| / h.
    signal, noise = level
    rng = np.random.default_rng(seed)
    x = signal * data.sample(4, rng, np.float64) + noise * rng.standard_normal((4, data.dim))
    width = np.sqrt(signal**2 * data.variances.min() + noise**2)
    h = 1e-4 * width
    numeric = np.stack(
        [
            (data.log_prob(x + h * e, *level) - data.log_prob(x - h * e, *level)) / (2 * h)
            for e in np.eye(data.dim)
        ],
        axis=1,
    )
    np.testing.assert_allclose(data.score(x, *level), numeric, rtol=0, atol=1e-6 / width)


@every_data
@given(seed=seeds)
def test_a_level_for_each_row_equals_a_loop_and_the_precision_is_kept(data, seed):
    rng = np.random.default_rng(seed)
    x, t = rng.standard_normal((6, data.dim)), rng.integers(1, 21, 6)
    schedule = linear(20, 1e-3, 0.5)
    signal, noise = schedule.signal[t, None], schedule.noise[t, None]
    predict_eps = data.predictor(schedule)
    for i in range(6):
        row, at_t = x[i : i + 1], (float(signal[i, 0]), float(noise[i, 0]))
        np.testing.assert_allclose(
            data.log_prob(x, signal, noise)[i], data.log_prob(row, *at_t)[0], rtol=1e-11, atol=1e-11
        )
        np.testing.assert_allclose(
            data.score(x, signal, noise)[i], data.score(row, *at_t)[0], rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(
            predict_eps(x, t)[i], predict_eps(row, int(t[i]))[0], rtol=1e-9, atol=1e-9
        )
        loss = data.irreducible_loss(row, int(t[i]), schedule)[0]
        np.testing.assert_allclose(
            data.irreducible_loss(x, t, schedule)[i], loss, rtol=1e-9, atol=1e-9
        )
    low = x.astype(np.float32)
    for result in (
        data.log_prob(low),
        data.score(low),
        predict_eps(low, t),
        data.irreducible_loss(low, t, schedule),
    ):
        assert result.dtype == np.float32
    assert data.sample(2, rng).dtype == np.float32 and data.sample(2, rng, np.float64).shape == (
        2,
        data.dim,
    )


@every_data
def test_log_prob_and_score_stay_finite_far_away(data):
    far = np.full((2, data.dim), 1e3)
    for level in LEVELS:
        assert (
            np.isfinite(data.log_prob(far, *level)).all()
            and np.isfinite(data.score(far, *level)).all()
        )


# Entropy


@given(seeds, st.integers(1, 3))
def test_gaussian_entropy_is_half_the_log_determinant(seed, d):
    rng = np.random.default_rng(seed)
    cov = random_cov(rng, d)
    expected = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov)[1]
    assert Gaussian(rng.standard_normal(d), cov).entropy() == pytest.approx(
        expected, rel=1e-12, abs=1e-12
    )


@pytest.mark.parametrize("d", [1, 2])
def test_mixture_entropy_of_one_component_is_that_of_its_gaussian(d):
    rng = np.random.default_rng(d)
    mean, cov = rng.standard_normal(d), random_cov(rng, d)
    assert Mixture([1.0], mean[None], cov[None]).entropy() == pytest.approx(
        Gaussian(mean, cov).entropy(), abs=1e-10
    )


def test_mixture_entropy_of_far_components_adds_that_of_the_choice():
    # 40 widths apart: the overlap is exp(-200).
    weights, variances = np.array([0.2, 0.8]), np.array([0.25, 1.0])
    mixture = Mixture(weights, [[-20.0], [20.0]], variances[:, None, None])
    expected = (weights * (0.5 * np.log(2 * np.pi * np.e * variances) - np.log(weights))).sum()
    assert mixture.entropy() == pytest.approx(expected, abs=1e-10)


def test_mixture_entropy_is_refused_above_two_dimensions():
    with pytest.raises(ValueError, match="d = 3"):
        random_mixture(0, d=3).entropy()


@pytest.mark.parametrize(("noise", "raw"), [(0.5, 5.186966), (1.0, 5.888522)])
def test_swiss_roll_entropy_is_the_tabulated_one(noise, raw):
    roll = SwissRoll(noise)
    assert roll.entropy() + 2 * np.log(roll.scale) == pytest.approx(raw, abs=1e-6)


def test_swiss_roll_entropy_is_the_mean_of_minus_log_prob():
    # In standard errors: a false alarm in 1.7 million.
    roll = SwissRoll(0.5)
    assert_within_standard_errors(
        -roll.log_prob(roll.sample(4000, np.random.default_rng(0), np.float64)), 1.35092
    )
    assert roll.entropy() == pytest.approx(1.35092, abs=1e-5)


# Predictor and irreducible loss


@every_data
@pytest.mark.parametrize("t", [1, 8, 20])
def test_irreducible_loss_is_the_error_of_the_exact_predictor_in_standard_errors(data, t):
    _, _, loss, irreducible = paired_losses(data, t, linear(20, 1e-3, 0.5), 5000, seed=t)
    assert_within_standard_errors(loss - irreducible, 0.0)
    assert (irreducible > 0).all()


@given(seeds, st.integers(1, 20))
def test_irreducible_loss_of_a_gaussian_is_its_closed_form(seed, t):
    rng = np.random.default_rng(seed)
    cov, x_t = random_cov(rng, 2), rng.standard_normal((3, 2))
    for schedule in (cosine(20), variance_exploding(20)):
        signal, noise = schedule.signal[t], schedule.noise[t]
        # signal^2 s^2 / v, averaged over the axes of cov. It comes as 1 - noise^2 / v: EPS
        # absolute, and a cov of condition 100.
        s_2 = np.linalg.eigvalsh(cov)
        expected = (signal**2 * s_2 / (signal**2 * s_2 + noise**2)).mean()
        rounding = (
            64
            * EPS
            * (
                1
                + noise**2 * (np.abs(x_t).max() + 3) ** 2 / (signal**2 * s_2.min() + noise**2) ** 2
            )
        )
        np.testing.assert_allclose(
            Gaussian([1.0, 0.0], cov).irreducible_loss(x_t, t, schedule),
            expected,
            rtol=0,
            atol=rounding,
        )


@every_data
@given(seed=seeds)
def test_irreducible_loss_is_the_divergence_of_the_predictor(data, seed):
    # tr Cov[eps | x_t] / d = 1 - noise_t div eps* / d, by differences of eps* (error h^2 and EPS/h,
    # in widths).
    t, schedule = 8, linear(20, 1e-3, 0.5)
    x_t, predict_eps, h = normal_values(seed, 4, data.dim), data.predictor(schedule), 1e-5
    divergence = sum(
        (predict_eps(x_t + h * e, t)[:, i] - predict_eps(x_t - h * e, t)[:, i]) / (2 * h)
        for i, e in enumerate(np.eye(data.dim))
    )
    expected = 1 - schedule.noise[t] * divergence / data.dim
    np.testing.assert_allclose(data.irreducible_loss(x_t, t, schedule), expected, rtol=0, atol=1e-6)


@every_data
@pytest.mark.parametrize("t", [2, 10])
def test_no_perturbed_predictor_is_better_in_mean_square(data, t):
    # eps - eps* is uncorrelated with every function of x_t, so eps* + delta(x_t) is worse by
    # |delta|^2: in standard errors.
    x_t, eps, loss, _ = paired_losses(data, t, linear(20, 1e-3, 0.5), 5000, seed=10 + t)
    eps_star = data.predictor(linear(20, 1e-3, 0.5))(x_t, t)
    for delta in (
        0.1 + 0 * x_t,
        0.1 * x_t,
        0.3 * np.sin(2 * x_t),
        0.3 * np.cos(x_t[:, ::-1]),
        0.1 * eps_star,
    ):
        worse = ((eps - eps_star - delta) ** 2).mean(axis=1) - loss
        assert_within_standard_errors(worse - (delta**2).mean(axis=1), 0.0)
        assert (delta**2).mean() > 0


def test_predictor_of_a_gaussian_is_its_closed_form():
    s, schedule, x_t = 0.5, cosine(20), normal_values(0, 7, 1)
    for t in range(1, 21):
        v = schedule.alpha_bar[t] * s**2 + 1 - schedule.alpha_bar[t]
        expected = np.sqrt(1 - schedule.alpha_bar[t]) * x_t / v
        np.testing.assert_allclose(
            Gaussian([0.0], [[s**2]]).predictor(schedule)(x_t, t), expected, rtol=1e-12
        )


@pytest.mark.parametrize("t", [0, 21, 1.0, True, np.array([0, 1]), np.array([1, 2, 3])])
def test_predictor_and_irreducible_loss_refuse_a_t_that_is_no_step(t):
    data = DATA["Gaussian"]
    for function in (
        data.predictor(linear(20)),
        lambda x, t: data.irreducible_loss(x, t, linear(20)),
    ):
        with pytest.raises(ValueError, match="t (must|has)"):
            function(np.ones((2, 2)), t)


# The true reverse step, q(x_{t-1} | x_t)


def jacobian(f, x, h):
    """d f_i / d x_j by central differences: (N, d) -> (N, d, d)."""
    return np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(x.shape[1])], axis=2)


@every_data
@pytest.mark.parametrize("t", [1, 2, 8, 20])
@given(seed=seeds)
def test_reverse_step_follows_from_the_exact_predictor_and_its_slope(data, t, seed):
    # Cov[eps | x_t] = I - noise d eps*/dx. Differences of step h err by h^2 times a third
    # derivative, 1/width^3 with a width of 0.07 or more, and by EPS / h.
    schedule, predict_eps = linear(20, 1e-3, 0.5), data.predictor(linear(20, 1e-3, 0.5))
    x_0, eps = (
        data.sample(4, np.random.default_rng(seed), np.float64),
        normal_values(seed, 4, data.dim),
    )
    x_t = q_sample(x_0, t, eps, schedule)
    mean, cov = data.reverse_step(x_t, t, schedule)
    assert mean.dtype == cov.dtype == np.float64 and cov.shape == (4, data.dim, data.dim)
    identity, w = np.eye(data.dim), float(mean_per_eps(t, schedule))
    cov_eps = identity - schedule.noise[t] * jacobian(lambda x: predict_eps(x, t), x_t, h=1e-5)
    expected = schedule.beta_tilde[t] * identity + w**2 * cov_eps
    np.testing.assert_allclose(cov, expected, rtol=0, atol=1e-6 * w**2)
    expected_mean = p_mean_from_eps(x_t, t, predict_eps(x_t, t), schedule)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(data.reverse_step(x_t.astype("f"), t, schedule)[0].dtype, "d")
    trace = (cov_eps.trace(axis1=1, axis2=2) / data.dim, data.irreducible_loss(x_t, t, schedule))
    np.testing.assert_allclose(*trace, rtol=0, atol=1e-6)


@given(seeds, st.integers(1, 20))
def test_reverse_step_of_a_gaussian_is_bayes_rule(seed, t):
    # N(x_{t-1}; m, C) N(x_t; a x_{t-1}, b I): precisions and precision-weighted means add.
    rng = np.random.default_rng(seed)
    cov, centre, x_t = random_cov(rng, 2), rng.standard_normal(2), rng.standard_normal((3, 2))
    for schedule in (cosine(20), variance_exploding(20)):
        signal, noise = schedule.signal[t - 1], schedule.noise[t - 1]
        a, b = np.sqrt(schedule.alpha[t]), schedule.beta[t]
        precision_prev = np.linalg.inv(signal**2 * cov + noise**2 * np.eye(2))
        expected_cov = np.linalg.inv(precision_prev + a**2 / b * np.eye(2))
        expected = (precision_prev @ (signal * centre) + a / b * x_t) @ expected_cov
        mean, cov_t = Gaussian(centre, cov).reverse_step(x_t, t, schedule)
        # The condition of cov is some 100; w^2 Cov[eps] comes as w^2 (1 - noise^2 / v) and loses
        # EPS w^2, the mean EPS times x_t / a.
        w = float(mean_per_eps(t, schedule))
        np.testing.assert_allclose(
            cov_t, np.broadcast_to(expected_cov, cov_t.shape), rtol=1e-9, atol=1e4 * EPS * w**2
        )
        np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e4 * EPS / a)


ONE_D = DATA["Mixture in one dimension"]
GRID = np.linspace(-9, 9, 6001)[:, None]
CELL = GRID[1, 0] - GRID[0, 0]


def reverse_density(x_t, t, schedule):
    """q(x_{t-1} | x_t) of ONE_D on GRID, by Bayes' rule, for each x_t (N,): (N, 6001).

    The trapezoid rule is exact to rounding: the narrowest width is many cells.
    """
    q_prev = ONE_D.log_prob(GRID, float(schedule.signal[t - 1]), float(schedule.noise[t - 1]))
    mean = np.sqrt(schedule.alpha[t]) * GRID[:, 0]
    q_step = normal.log_prob(x_t[:, None], mean, float(schedule.beta[t]))
    density = np.exp(q_prev + q_step)
    return density / (density.sum(axis=1, keepdims=True) * CELL)


@pytest.mark.parametrize("t", [1, 2, 5])
def test_reverse_step_of_a_mixture_has_the_moments_of_bayes_rule(t):
    schedule, x_t = cosine(5), np.linspace(-2, 2, 9)
    density = reverse_density(x_t, t, schedule)
    expected = density @ GRID[:, 0] * CELL
    expected_var = ((GRID[:, 0] - expected[:, None]) ** 2 * density).sum(axis=1) * CELL
    mean, cov = ONE_D.reverse_step(x_t[:, None], t, schedule)
    # alpha is 1e-3 at the last t: the mean is a difference of terms of size x_t / sqrt(alpha).
    rounding = 1e4 * EPS / schedule.alpha[t]
    np.testing.assert_allclose(mean[:, 0], expected, rtol=1e-10, atol=rounding)
    np.testing.assert_allclose(cov[:, 0, 0], expected_var, rtol=1e-10, atol=rounding)


@pytest.mark.parametrize("t", [1, 3, 5])
def test_non_gaussianity_of_a_gaussian_is_0(t):
    # Every log-ratio is 0 up to the rounding of log-densities of size 10 and a covariance of
    # condition 5, and so is the estimate.
    result = non_gaussianity(DATA["Gaussian"], t, cosine(5), 2000, np.random.default_rng(0))
    assert result == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("t", [1, 2])
def test_non_gaussianity_of_a_mixture_is_the_mean_divergence_in_standard_errors(t):
    schedule, rng, n = cosine(4), np.random.default_rng(t), 20_000
    x_t = GRID[::10, 0]
    density = reverse_density(x_t, t, schedule)
    mean, cov = ONE_D.reverse_step(x_t[:, None], t, schedule)
    log_gaussian = normal.log_prob(GRID[:, 0], mean, cov[:, :, 0])
    with np.errstate(divide="ignore"):
        log_ratio = np.where(density > 0, np.log(density) - log_gaussian, 0.0)
    q_t = np.exp(ONE_D.log_prob(x_t[:, None], float(schedule.signal[t]), float(schedule.noise[t])))
    expected = (q_t[:, None] * density * log_ratio).sum() * CELL * 10 * CELL
    second_moment = (q_t[:, None] * density * log_ratio**2).sum() * CELL * 10 * CELL
    # The estimate is no worse than the plain mean of the log-ratio.
    error = np.sqrt((second_moment - expected**2) / n)
    result = non_gaussianity(ONE_D, t, schedule, n, rng)
    assert abs(result - expected) < STANDARD_ERRORS * error
    assert expected > 2 * STANDARD_ERRORS * error  # so that 0 would not pass


def test_the_reverse_step_comes_nearer_to_a_gaussian_with_more_steps():
    result = [
        non_gaussianity(ONE_D, T // 2, cosine(T), 4000, np.random.default_rng(0))
        for T in (4, 20, 200)
    ]
    assert result[0] > 3 * result[1] > 9 * result[2] > -1e-9


@pytest.mark.parametrize("t", [1, 2, 4])
def test_reverse_draws_have_the_moments_of_the_reverse_step_in_standard_errors(t):
    # Four moments each. The pool of 200 n draws is thinned by the weights to some 20 n or more, so
    # the standard error is a fortieth larger than that of independent draws: 4.9 of them remain.
    schedule, x_t, n = cosine(4), np.array([0.3]), 2000
    drawn, gaussian = reverse_draws(ONE_D, x_t, t, schedule, n, np.random.default_rng(t))
    assert drawn.shape == gaussian.shape == (n, 1)
    mean, cov = ONE_D.reverse_step(x_t[None], t, schedule)
    density = reverse_density(x_t, t, schedule)[0]
    powers = np.arange(1, 5)
    moments = (density @ GRID**powers) * CELL
    assert_within_standard_errors(drawn**powers, moments)
    m, v = mean.item(), cov.item()
    normal_moments = np.array([m, m**2 + v, m**3 + 3 * m * v, m**4 + 6 * m**2 * v + 3 * v**2])
    assert_within_standard_errors(gaussian**powers, normal_moments)


# Samples


@every_data
def test_samples_have_the_moments_of_the_density_in_standard_errors(data):
    x = data.sample(20_000, np.random.default_rng(5), np.float64)
    weights = data.weights[:, None]
    mean = (weights * data.means).sum(axis=0)
    covs = np.einsum("jk,jkd,jke->kde", data.variances, data.axes, data.axes)
    second = np.einsum("k,kde->de", data.weights, covs) + (weights * data.means).T @ data.means
    assert_within_standard_errors(x, mean)
    assert_within_standard_errors(
        (x[:, :, None] * x[:, None, :]).reshape(len(x), -1), second.ravel()
    )


@every_data
def test_samples_belong_to_the_density_by_the_mean_of_the_score(data):
    # E score = 0 and E[x_i score_j] = -delta_ij for samples of p, in standard errors: this ties
    # sample to score.
    x = data.sample(5000, np.random.default_rng(6), np.float64)
    score = data.score(x)
    assert_within_standard_errors(score, 0.0)
    assert_within_standard_errors(
        (x[:, :, None] * score[:, None, :]).reshape(len(x), -1), -np.eye(data.dim).ravel()
    )


def test_samples_of_a_gaussian_are_normal_by_their_fourth_moments():
    gaussian = DATA["Gaussian"]
    offset = gaussian.sample(20_000, np.random.default_rng(7), np.float64) - [0.3, -0.2]
    whitened = offset @ np.linalg.inv(np.linalg.cholesky(np.array([[0.5, 0.2], [0.2, 0.3]]))).T
    assert_within_standard_errors(whitened**4, 3.0)
    assert_within_standard_errors(np.prod(whitened, axis=1) ** 2, 1.0)


def test_a_seed_repeats_the_samples():
    for data in DATA.values():
        one, two = (data.sample(10, np.random.default_rng(3)) for _ in range(2))
        np.testing.assert_array_equal(one, two)


# Swiss roll


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_swiss_roll_is_standardised_by_one_scalar(noise):
    # E[c] and E[c c^T] by Simpson's rule in u; the mean of the two variances is 1.
    roll = SwissRoll(noise)
    u = np.linspace(1.5 * np.pi, 4.5 * np.pi, 20_001)
    simpson = np.where(np.arange(len(u)) % 2, 4, 2.0)
    simpson[[0, -1]] = 1
    simpson /= simpson.sum()
    curve = np.stack([u * np.cos(u), u * np.sin(u)], axis=1)
    mean = simpson @ curve
    variance = simpson @ (curve - mean) ** 2 + noise**2
    np.testing.assert_allclose(mean, [2.0, 0.2122], atol=5e-5)
    np.testing.assert_allclose(roll.curve(u), (curve - mean) / np.sqrt(variance.mean()), atol=1e-10)
    assert roll.scale == pytest.approx(np.sqrt(variance.mean()), rel=1e-10)
    assert roll.noise == pytest.approx(noise / roll.scale)
    np.testing.assert_allclose(roll.weights @ roll.means, 0, atol=1e-10)
    if noise == 0.5:
        assert roll.scale == pytest.approx(6.8075, abs=5e-5)
        np.testing.assert_allclose(np.sqrt(variance), [6.6419, 6.9692], atol=1e-4)


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("level", LEVELS)
def test_swiss_roll_quadrature_agrees_with_a_much_finer_one(noise, level):
    # Simpson's rule with 40,001 nodes: an error of (14 du / (scale width))^4 / 180 < 1e-8, even for
    # the bare roll at noise 0.1.
    roll, (signal, extra) = SwissRoll(noise), level
    rng = np.random.default_rng(0)
    x = signal * roll.sample(30, rng, np.float64) + extra * rng.standard_normal((30, 2))
    u = np.linspace(roll.U_MIN, roll.U_MAX, 40_001)
    simpson = np.where(np.arange(len(u)) % 2, 4, 2.0)
    simpson[[0, -1]] = 1
    simpson /= simpson.sum()
    var = (signal * roll.noise) ** 2 + extra**2
    offset = signal * roll.curve(u) - x[:, None, :]  # (30, nodes, 2)
    terms = simpson * np.exp(-0.5 * (offset**2).sum(axis=2) / var)
    density = terms.sum(axis=1) / (2 * np.pi * var)
    score = (terms[:, :, None] * offset).sum(axis=1) / terms.sum(axis=1, keepdims=True) / var
    np.testing.assert_allclose(roll.log_prob(x, *level), np.log(density), rtol=0, atol=1e-7)
    np.testing.assert_allclose(roll.score(x, *level), score, rtol=0, atol=1e-6 / np.sqrt(var))


def test_swiss_roll_samples_lie_about_the_curve_at_the_distance_of_the_noise():
    # The distance is the noise across the curve, up to its curvature: E d^2 = noise^2 (1 +
    # (noise/u)^2), u > 4.7, here 5e-4. That is a fiftieth of the standard error of 2.2%.
    roll, n = SwissRoll(0.1), 4000
    x = roll.sample(n, np.random.default_rng(0), np.float64)
    curve = roll.curve(np.linspace(roll.U_MIN, roll.U_MAX, 3000))
    nearest = np.array([((curve - point) ** 2).sum(axis=1).min() for point in x])
    assert_within_standard_errors(nearest / roll.noise**2, 1.0)
    # E d^4 of a normal; of a uniform of this variance 1.8.
    assert_within_standard_errors((nearest / roll.noise**2) ** 2, 3.0)


def test_swiss_roll_samples_fill_the_angle_evenly():
    # u uniform: the angle of a point, unrolled along the curve, in tenths of the range, each a
    # tenth of the points.
    roll, n = SwissRoll(0.1), 4000
    x = roll.sample(n, np.random.default_rng(1), np.float64)
    u = np.linspace(roll.U_MIN, roll.U_MAX, 3000)
    curve = roll.curve(u)
    nearest = np.array([u[((curve - point) ** 2).sum(axis=1).argmin()] for point in x])
    counts, _ = np.histogram(nearest, bins=10, range=(roll.U_MIN, roll.U_MAX))
    assert (np.abs(counts - n / 10) < STANDARD_ERRORS * np.sqrt(n * 0.1 * 0.9)).all()


@pytest.mark.parametrize(
    ("schedule", "floor"),
    [
        (linear(200, 5e-4, 0.1), 0.23408),
        (linear(1000), 0.23597),
        (cosine(200), 0.41581),
        (cosine(1000), 0.41780),
    ],
    ids=["linear 200", "linear 1000", "cosine 200", "cosine 1000"],
)
def test_swiss_roll_floor_of_the_loss_is_the_tabulated_one_in_standard_errors(schedule, floor):
    # As many points at every t, so that the variance between the t does not count: standard error
    # about 0.0015.
    roll, rng, each = SwissRoll(0.5), np.random.default_rng(0), 20_000 // schedule.T
    by_t = []
    for t in range(1, schedule.T + 1):
        x_0 = roll.sample(each, rng, np.float64)
        x_t = q_sample(x_0, t, rng.standard_normal(x_0.shape), schedule)
        by_t.append(roll.irreducible_loss(x_t, t, schedule))
    by_t = np.stack(by_t)
    standard_error = np.sqrt((by_t.var(axis=1, ddof=1) / each).sum()) / schedule.T
    assert standard_error < 0.002
    assert abs(by_t.mean() - floor) < STANDARD_ERRORS * standard_error


@pytest.mark.parametrize(
    ("t", "floor"), [(1, 0.991), (50, 0.610), (100, 0.705), (300, 0.389), (500, 0.079)]
)
def test_swiss_roll_floor_is_not_monotone_in_t(t, floor):
    _, _, _, irreducible = paired_losses(SwissRoll(0.5), t, linear(1000), 2000, seed=t)
    standard_error = irreducible.std() / np.sqrt(2000)
    # Tabulated to three digits.
    assert abs(irreducible.mean() - floor) < STANDARD_ERRORS * standard_error + 5e-4


# Refusals


@pytest.mark.parametrize("noise", [0.0, -0.5, math.inf, math.nan])
def test_swiss_roll_refuses_a_noise_without_a_density(noise):
    with pytest.raises(ValueError, match="noise"):
        SwissRoll(noise)


@pytest.mark.parametrize(
    ("weights", "means", "covs", "message"),
    [
        ([1.0], [0.0], [[[1.0]]], "means"),
        ([0.5, 0.5], [[0.0]], [[[1.0]]], "weights"),
        ([1.0], [[0.0]], [[1.0]], "covs"),
        ([0.5, 0.4], [[0.0], [1.0]], [[[1.0]], [[1.0]]], "sum to 1"),
        ([1.5, -0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]], "positive"),
        ([1.0], [[0.0]], [[[-1.0]]], "positive definite"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]], "symmetric"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]], "positive definite"),
    ],
)
def test_mixture_refuses_what_is_no_density(weights, means, covs, message):
    with pytest.raises(ValueError, match=message):
        Mixture(weights, means, covs)
