import math

import numpy as np
import pytest
import strict_array
from conftest import STANDARD_ERRORS, preserving_schedules, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiff import exact, normal, schedule
from npdiff.forward import prior_kl, q_sample
from npdiff.likelihood import (
    best_variance,
    bound,
    discretised_decoder,
    fixed,
    gaussian_decoder,
    path,
    sampled,
    step_kl,
    terms_from_loss,
    variance_table,
)

# Exact for polynomials of degree 5: every term is of degree 2.
HERMITE, HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
HERMITE_WEIGHTS = HERMITE_WEIGHTS / HERMITE_WEIGHTS.sum()


def true_variance(chain, var):
    """Of q(x_{t-1} | x_t) where x_0 ~ N(0, var): beta_t v_{t-1} / v_t, with v_t the variance of
    x_t."""
    v = chain.signal**2 * var + chain.noise**2
    table = np.zeros(chain.T + 1)
    table[1:] = chain.beta[1:] * v[:-1] / v[1:]
    return table, v


def expected_bound(chain, var, reverse):
    """The bound's expectation over x_0 ~ N(0, var) and the noise, by quadrature, without any
    sampling error."""
    x_0, eps = (a.reshape(-1, 1) for a in np.meshgrid(math.sqrt(var) * HERMITE, HERMITE))
    weights = np.outer(HERMITE_WEIGHTS, HERMITE_WEIGHTS).ravel()
    nats = prior_kl(x_0, chain)
    for t in range(2, chain.T + 1):
        nats = nats + step_kl(x_0, q_sample(x_0, t, eps, chain), t, chain, reverse)
    return weights @ (nats - gaussian_decoder(x_0, *reverse(q_sample(x_0, 1, eps, chain), 1))[:, 0])


@settings(max_examples=25)
@given(preserving_schedules(), st.floats(0.05, 4.0))
def test_with_exact_reverse_kernels_only_the_prior_is_paid_for(chain, var):
    data = exact.Gaussian([0.0], [[var]])
    table, v = true_variance(chain, var)
    gap = expected_bound(chain, var, fixed(data.predictor(chain), chain, table)) - data.entropy()
    assert gap == pytest.approx(normal.kl(0.0, float(v[-1]), 0.0, 1.0), abs=1e-8)


@pytest.mark.parametrize("variance, exact_for", [("beta", 1.0), ("beta_tilde", 0.01)])
def test_beta_is_exact_for_unit_variance_and_beta_tilde_nearly_so_for_a_point(variance, exact_for):
    chain = schedule.cosine(30)
    gaps = {}
    for var in (1.0, 0.01):
        data = exact.Gaussian([0.0], [[var]])
        gaps[var] = (
            expected_bound(chain, var, fixed(data.predictor(chain), chain, variance))
            - data.entropy()
        )
    assert min(gaps, key=gaps.get) == exact_for and all(gap > -1e-9 for gap in gaps.values())
    assert variance == "beta_tilde" or gaps[1.0] == pytest.approx(0, abs=1e-9)


@given(preserving_schedules(), st.floats(0.05, 4.0))
def test_the_best_variance_of_gaussian_data_is_the_true_one(chain, var):
    v = chain.signal**2 * var + chain.noise**2
    irreducible = chain.signal**2 * var / v
    np.testing.assert_allclose(
        best_variance(irreducible, chain), true_variance(chain, var)[0], rtol=1e-9
    )


def test_no_other_variance_gives_a_smaller_bound_than_the_best():
    chain, data = schedule.cosine(20), exact.Gaussian([0.0], [[0.3]])
    best = true_variance(chain, 0.3)[0]
    least = expected_bound(chain, 0.3, fixed(data.predictor(chain), chain, best))
    for t in (1, 2, 10, 20):
        for factor in (0.9, 1.1):
            other = best.copy()
            other[t] *= factor
            r = 1 / factor
            more = expected_bound(chain, 0.3, fixed(data.predictor(chain), chain, other)) - least
            assert more == pytest.approx(0.5 * (r - 1 - math.log(r)), abs=1e-9)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_ledger_and_a_single_path_agree_in_standard_errors(variance):
    chain, rng = schedule.cosine(20), np.random.default_rng(0)
    data = exact.Mixture([0.3, 0.7], [[-1.0, 0.0], [0.5, 0.5]], [0.1 * np.eye(2), 0.4 * np.eye(2)])
    reverse = fixed(data.predictor(chain), chain, variance)
    x_0 = data.sample(20_000, rng, np.float64)
    terms, nats = zip(*bound(x_0, chain, reverse, rng), strict=True)
    difference = path(x_0, chain, reverse, rng) - sum(nats)
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
def test_a_pixels_probability_is_nearly_the_density_times_its_width_where_the_density_hardly_changes(
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
    found = discretised_decoder(x_0, mean, np.full((2, 1, 1, 1), 0.02**2, np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    on_device = discretised_decoder(
        *(strict_array.asarray(a) for a in (x_0, mean, np.full((2, 1, 1, 1), 0.02**2, np.float32)))
    )
    np.testing.assert_array_equal(on_device.get(), found)


@given(seeds)
def test_step_kl_is_zero_for_the_posterior_itself(seed):
    from npdiff.forward import q_posterior

    rng, chain = np.random.default_rng(seed), schedule.cosine(9)
    x_0, x_t = rng.standard_normal((2, 5, 3))
    t = rng.integers(2, 10, 5)
    np.testing.assert_allclose(
        step_kl(x_0, x_t, t, chain, lambda x, t: q_posterior(x_0, x, t, chain)), 0, atol=1e-12
    )


@settings(max_examples=20)
@given(
    preserving_schedules(max_T=15), st.floats(0.05, 4.0), st.sampled_from(["beta", "beta_tilde"])
)
def test_the_terms_follow_from_the_losses(chain, var, variance):
    if chain.T == 1:
        return
    data = exact.Gaussian([0.0], [[var]])
    v = chain.signal**2 * var + chain.noise**2
    loss = chain.signal**2 * var / v  # of the perfect predictor
    total = terms_from_loss(loss, chain, variance_table(variance, chain)).sum() + float(
        prior_kl_of(chain, var)
    )
    assert total == pytest.approx(
        expected_bound(chain, var, fixed(data.predictor(chain), chain, variance)),
        rel=1e-8,
        abs=1e-8,
    )


def prior_kl_of(chain, var):
    """E KL(q(x_T | x_0) || N(0, 1)) for x_0 ~ N(0, var)."""
    signal, noise = chain.signal[-1], chain.noise[-1]
    return 0.5 * (noise**2 - 1 - math.log(noise**2) + signal**2 * var)


@pytest.mark.parametrize("T", [2, 20])
def test_terms_drawn_at_one_t_each_have_the_bound_for_their_mean(T):
    chain, rng, n = schedule.cosine(T), np.random.default_rng(0), 40_000
    data = exact.Gaussian([0.0, 0.0], 0.5 * np.eye(2))
    reverse = fixed(data.predictor(chain), chain, "beta")
    x_0 = data.sample(n, rng, np.float64)
    p = np.concatenate([[0.0, 0.0], np.linspace(2, 1, T - 1)])
    first, t, later = sampled(x_0, chain, reverse, rng, p / p.sum(), gaussian_decoder)
    assert t.min() >= 2 and len(first) == len(t) == len(later) == n
    terms = [term for term, _ in bound(x_0, chain, reverse, rng)]
    expected, error = (
        sum(term.nats for term in terms[1:]),
        math.hypot((first + later).std() / math.sqrt(n), sum(term.error for term in terms)),
    )
    assert abs((first + later).mean() - expected) < STANDARD_ERRORS * error


def test_beta_tilde_has_a_density_at_t_1_too():
    chain = schedule.cosine(5)
    table = variance_table("beta_tilde", chain)
    assert (
        table[1] == chain.beta[1]
        and (table[2:] == chain.beta_tilde[2:]).all()
        and table.shape == (6,)
    )
