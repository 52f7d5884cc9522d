import math

import numpy as np
import pytest
import strict_array
from conftest import STANDARD_ERRORS, preserving_schedules, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiff import exact, normal
from npdiff.forward import prior_kl, q_posterior, q_sample
from npdiff.likelihood import (
    best_variance,
    bound,
    discretised_decoder,
    fixed,
    gaussian_decoder,
    importance,
    one_t_bound,
    path,
    spread_over_t,
    step_kl,
    terms_from_loss,
    variance_table,
)
from npdiff.schedule import cosine, linear

# Exact for polynomials of degree 5: every term is of degree 2.
HERMITE, HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
HERMITE_WEIGHTS = HERMITE_WEIGHTS / HERMITE_WEIGHTS.sum()


def true_variance(schedule, var):
    """Of q(x_{t-1} | x_t) where x_0 ~ N(0, var): beta_t v_{t-1} / v_t.   v_t = Var[x_t]."""
    v = schedule.signal**2 * var + schedule.noise**2
    table = np.zeros(schedule.T + 1)
    table[1:] = schedule.beta[1:] * v[:-1] / v[1:]
    return table, v


def expected_bound(schedule, var, reverse):
    """The bound's expectation over x_0 ~ N(0, var) and the noise, by quadrature."""
    x_0, eps = (a.reshape(-1, 1) for a in np.meshgrid(math.sqrt(var) * HERMITE, HERMITE))
    weights = np.outer(HERMITE_WEIGHTS, HERMITE_WEIGHTS).ravel()
    nats = prior_kl(x_0, schedule)
    for t in range(2, schedule.T + 1):
        nats = nats + step_kl(x_0, q_sample(x_0, t, eps, schedule), t, schedule, reverse)
    return weights @ (
        nats - gaussian_decoder(x_0, *reverse(q_sample(x_0, 1, eps, schedule), 1))[:, 0]
    )


@settings(max_examples=25)
@given(preserving_schedules(), st.floats(0.05, 4.0))
def test_with_exact_reverse_kernels_only_the_prior_is_paid_for(schedule, var):
    data = exact.Gaussian([0.0], [[var]])
    table, v = true_variance(schedule, var)
    gap = (
        expected_bound(schedule, var, fixed(data.predictor(schedule), schedule, table))
        - data.entropy()
    )
    assert gap == pytest.approx(normal.kl(0.0, float(v[-1]), 0.0, 1.0), abs=1e-8)


@pytest.mark.parametrize("variance, exact_for", [("beta", 1.0), ("beta_tilde", 0.01)])
def test_beta_is_exact_for_unit_variance_and_beta_tilde_nearly_so_for_a_point(variance, exact_for):
    schedule = cosine(30)
    gaps = {}
    for var in (1.0, 0.01):
        data = exact.Gaussian([0.0], [[var]])
        gaps[var] = (
            expected_bound(schedule, var, fixed(data.predictor(schedule), schedule, variance))
            - data.entropy()
        )
    assert min(gaps, key=gaps.get) == exact_for and all(gap > -1e-9 for gap in gaps.values())
    assert variance == "beta_tilde" or gaps[1.0] == pytest.approx(0, abs=1e-9)


@given(preserving_schedules(), st.floats(0.05, 4.0))
def test_the_best_variance_of_gaussian_data_is_the_true_one(schedule, var):
    v = schedule.signal**2 * var + schedule.noise**2
    irreducible = schedule.signal**2 * var / v
    np.testing.assert_allclose(
        best_variance(irreducible, schedule), true_variance(schedule, var)[0], rtol=1e-9
    )


def test_no_other_variance_gives_a_smaller_bound_than_the_best():
    schedule, data = cosine(20), exact.Gaussian([0.0], [[0.3]])
    best = true_variance(schedule, 0.3)[0]
    least = expected_bound(schedule, 0.3, fixed(data.predictor(schedule), schedule, best))
    for t in (1, 2, 10, 20):
        for factor in (0.9, 1.1):
            other = best.copy()
            other[t] *= factor
            r = 1 / factor
            more = (
                expected_bound(schedule, 0.3, fixed(data.predictor(schedule), schedule, other))
                - least
            )
            assert more == pytest.approx(0.5 * (r - 1 - math.log(r)), abs=1e-9)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_ledger_and_a_single_path_agree_in_standard_errors(variance):
    schedule, rng = cosine(20), np.random.default_rng(0)
    data = exact.Mixture([0.3, 0.7], [[-1.0, 0.0], [0.5, 0.5]], [0.1 * np.eye(2), 0.4 * np.eye(2)])
    reverse = fixed(data.predictor(schedule), schedule, variance)
    x_0 = data.sample(20_000, rng, np.float64)
    terms, nats = zip(*bound(x_0, schedule, reverse, rng), strict=True)
    difference = path(x_0, schedule, reverse, rng) - sum(nats)
    assert abs(difference.mean()) < STANDARD_ERRORS * difference.std() / math.sqrt(len(x_0))
    assert [(term.name, term.t) for term in terms] == [
        ("L_T", 20),
        *(("L_t-1", t) for t in range(20, 1, -1)),
        ("L_0", 1),
    ]
    for term, values in zip(terms, nats, strict=True):
        assert term.nats == pytest.approx(values.mean()) and term.error == pytest.approx(
            values.std(ddof=1) / math.sqrt(len(x_0))
        )
    entropy = -data.log_prob(data.sample(100_000, rng, np.float64)).mean()
    assert sum(term.nats for term in terms) > entropy  # it is a bound


@given(st.floats(-1.5, 1.5), st.floats(1e-3, 10))
def test_the_256_probabilities_of_a_pixel_sum_to_1(mean, sigma):
    pixels = np.arange(256) / 127.5 - 1
    log_p = discretised_decoder(pixels, np.float64(mean), np.full(1, sigma**2))
    assert np.isfinite(log_p).all() and np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)


@given(st.floats(-1, 1), st.floats(0.5, 5))
def test_a_pixels_probability_is_nearly_the_density_times_its_width_where_that_is_smooth(
    mean, sigma
):
    pixels = np.arange(1, 255) / 127.5 - 1
    log_p = discretised_decoder(pixels, np.float64(mean), np.full(1, sigma**2))
    density = normal.log_prob(pixels, mean, sigma**2) + math.log(2 / 255)
    np.testing.assert_allclose(
        log_p, density, atol=2 * (1 / 255 / sigma) ** 2 * (1 + (2 / sigma) ** 2)
    )


def test_the_decoder_takes_float32_and_arrays_of_a_device():
    x_0 = (np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1)) / 127.5 - 1).astype(np.float32)
    mean = x_0 + np.float32(0.01)
    expected = discretised_decoder(
        x_0.astype(np.float64), mean.astype(np.float64), np.full((2, 1, 1, 1), 0.02**2)
    )
    arguments = (x_0, mean, np.full((2, 1, 1, 1), 0.02**2, np.float32))
    result = discretised_decoder(*arguments)
    np.testing.assert_allclose(result, expected, atol=1e-3)
    on_device = discretised_decoder(*map(strict_array.asarray, arguments))
    np.testing.assert_array_equal(on_device.get(), result)


@given(seeds)
def test_step_kl_is_zero_for_the_posterior_itself(seed):
    rng, schedule = np.random.default_rng(seed), cosine(9)
    x_0, x_t = rng.standard_normal((2, 5, 3))
    t = rng.integers(2, 10, 5)
    np.testing.assert_allclose(
        step_kl(x_0, x_t, t, schedule, lambda x, t: q_posterior(x_0, x, t, schedule)), 0, atol=1e-12
    )


@settings(max_examples=20)
@given(
    preserving_schedules(max_T=15), st.floats(0.05, 4.0), st.sampled_from(["beta", "beta_tilde"])
)
def test_the_terms_follow_from_the_losses(schedule, var, variance):
    if schedule.T == 1:
        return
    data = exact.Gaussian([0.0], [[var]])
    v = schedule.signal**2 * var + schedule.noise**2
    loss = schedule.signal**2 * var / v  # of the perfect predictor
    total = terms_from_loss(loss, schedule, variance_table(variance, schedule)).sum() + float(
        prior_kl_of(schedule, var)
    )
    assert total == pytest.approx(
        expected_bound(schedule, var, fixed(data.predictor(schedule), schedule, variance)),
        rel=1e-8,
        abs=1e-8,
    )


def prior_kl_of(schedule, var):
    """E KL(q(x_T | x_0) || N(0, 1)) for x_0 ~ N(0, var)."""
    signal, noise = schedule.signal[-1], schedule.noise[-1]
    return 0.5 * (noise**2 - 1 - math.log(noise**2) + signal**2 * var)


# One t for each data point


def mean_squares(schedule, var, reverse):
    """E L_{t-1}^2 over x_0 ~ N(0, var) and the noise, for t = 2..T, by quadrature.

    L_{t-1} is of degree 2, so its square is within the degree 5 of the rule.
    """
    x_0, eps = (a.reshape(-1, 1) for a in np.meshgrid(math.sqrt(var) * HERMITE, HERMITE))
    weights = np.outer(HERMITE_WEIGHTS, HERMITE_WEIGHTS).ravel()
    squares = [
        step_kl(x_0, q_sample(x_0, t, eps, schedule), t, schedule, reverse) ** 2
        for t in range(2, schedule.T + 1)
    ]
    return np.array([weights @ square for square in squares])


@pytest.mark.parametrize("T", [2, 20])
@pytest.mark.parametrize("drawn_with", ["any p", "importance"])
def test_terms_drawn_at_one_t_each_have_the_bound_for_their_mean(T, drawn_with):
    schedule, rng, n = cosine(T), np.random.default_rng(0), 40_000
    data = exact.Gaussian([0.0, 0.0], 0.5 * np.eye(2))
    reverse = fixed(data.predictor(schedule), schedule, "beta")
    x_0 = data.sample(n, rng, np.float64)
    p = np.concatenate([[0.0, 0.0], np.linspace(2, 1, T - 1)])
    p = p / p.sum() if drawn_with == "any p" else importance(x_0[:500], schedule, reverse, rng)
    first, t, later = one_t_bound(x_0, schedule, reverse, rng, p, gaussian_decoder)
    assert t.min() >= 2 and len(first) == len(t) == len(later) == n
    terms = [term for term, _ in bound(x_0, schedule, reverse, rng)]
    expected, error = (
        sum(term.nats for term in terms[1:]),
        math.hypot((first + later).std() / math.sqrt(n), sum(term.error for term in terms)),
    )
    assert abs((first + later).mean() - expected) < STANDARD_ERRORS * error


@settings(max_examples=20)
@given(preserving_schedules(), seeds, st.integers(2, 60))
def test_importance_is_a_distribution_over_t_from_2_to_T(schedule, seed, count):
    if schedule.T == 1:
        return
    data, rng = exact.Gaussian([0.0], [[0.5]]), np.random.default_rng(seed)
    reverse = fixed(data.predictor(schedule), schedule, "beta")
    p = importance(data.sample(50, rng), schedule, reverse, rng, count)
    assert p.shape == (schedule.T + 1,) and p[0] == p[1] == 0 and (p[2:] > 0).all()
    assert p.sum() == pytest.approx(1, rel=1e-12)


def test_importance_gives_the_least_variance():
    # The variance of L_{t-1} / p[t] is sum_t E L_{t-1}^2 / p[t] but for a constant. It is least,
    # (sum_t sqrt(E L_{t-1}^2))^2, where p[t] is proportional to the root mean square.
    schedule, var, rng = linear(20, 1e-3, 0.5), 0.3, np.random.default_rng(0)
    data = exact.Gaussian([0.0], [[var]])
    reverse = fixed(data.predictor(schedule), schedule, "beta")
    squares = mean_squares(schedule, var, reverse)
    least = np.sqrt(squares).sum() ** 2
    x_0 = data.sample(20_000, rng, np.float64)
    p = importance(x_0, schedule, reverse, rng, count=200)[2:]  # every t is measured
    # 20,000 points give a root mean square to a part in a hundred or so; its effect is of second
    # order.
    np.testing.assert_allclose(p, np.sqrt(squares) / np.sqrt(squares).sum(), rtol=0.05)
    assert least <= (squares / p).sum() < 1.001 * least
    coarse = importance(x_0, schedule, reverse, rng, count=6)[2:]  # interpolated
    uniform = (squares * 19).sum()
    assert (squares / coarse).sum() < 1.1 * least < 0.9 * uniform


@given(st.integers(2, 2000), st.integers(2, 60))
def test_spread_over_t_goes_from_1_to_T_and_is_denser_at_small_t(T, count):
    ts = spread_over_t(T, count)
    assert ts[0] == 1 and ts[-1] == T and ts == sorted(set(ts)) and len(ts) <= count
    assert all(isinstance(t, int) for t in ts)
    gaps = np.diff(ts)
    assert (np.diff(gaps) >= -1).all()  # they grow, up to the rounding to whole numbers


def test_beta_tilde_has_a_density_at_t_1_too():
    schedule = cosine(5)
    table = variance_table("beta_tilde", schedule)
    assert (
        table[1] == schedule.beta[1]
        and (table[2:] == schedule.beta_tilde[2:]).all()
        and table.shape == (6,)
    )
