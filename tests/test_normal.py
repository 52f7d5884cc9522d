import math
from statistics import NormalDist

import numpy as np
import pytest
from conftest import EPS, assert_within_standard_errors, dtypes, normal_values, seeds, shapes
from hypothesis import given
from hypothesis import strategies as st

from npdiff import normal

means = st.floats(-3, 3)
variances = st.floats(0.05, 20)


def integral(f, mean, var):
    """The trapezoid rule over 12 standard deviations, exact to rounding for a Gaussian times a
    polynomial."""
    x = mean + math.sqrt(var) * np.linspace(-12, 12, 481)
    return f(x).sum() * (x[1] - x[0])


@given(st.floats(-5, 5), means, variances)
def test_log_prob_is_the_log_of_the_density(x, mean, var):
    expected = (
        math.log(NormalDist(mean, math.sqrt(var)).pdf(x)) if (x - mean) ** 2 / var < 1000 else None
    )
    if expected is not None:
        assert normal.log_prob(np.array([x]), mean, var).item() == pytest.approx(
            expected, rel=1e-12, abs=1e-12
        )


@given(means, variances)
def test_entropy_is_the_mean_of_minus_log_prob(mean, var):
    def integrand(x):
        log_p = normal.log_prob(x, mean, var)
        return -np.exp(log_p) * log_p

    assert integral(integrand, mean, var) == pytest.approx(
        normal.entropy(var), rel=1e-11, abs=1e-11
    )


@given(means, variances, means, variances)
def test_kl_is_the_mean_of_the_log_ratio(mean_1, var_1, mean_2, var_2):
    def integrand(x):
        log_p = normal.log_prob(x, mean_1, var_1)
        return np.exp(log_p) * (log_p - normal.log_prob(x, mean_2, var_2))

    # The two means are at most 6 apart and var_2 at least 0.05: terms up to 800.
    assert integral(integrand, mean_1, var_1) == pytest.approx(
        normal.kl(mean_1, var_1, mean_2, var_2), rel=1e-10, abs=1e-10
    )


@given(means, variances, means, variances)
def test_kl_is_never_negative_and_0_from_itself(mean_1, var_1, mean_2, var_2):
    assert normal.kl(mean_1, var_1, mean_2, var_2) >= -8 * EPS
    assert normal.kl(mean_1, var_1, mean_1, var_1) == pytest.approx(0, abs=8 * EPS)


def test_kl_is_the_mean_log_ratio_of_samples_in_standard_errors():
    x = 0.3 + math.sqrt(0.5) * normal_values(0, 20_000)
    assert_within_standard_errors(
        normal.log_prob(x, 0.3, 0.5) - normal.log_prob(x, -0.2, 1.5), normal.kl(0.3, 0.5, -0.2, 1.5)
    )


@given(shapes, seeds, dtypes)
def test_numbers_and_arrays_give_the_same_and_the_precision_is_kept(shape, seed, dtype):
    mean_1, mean_2, log_var_1, log_var_2 = normal_values(seed, 4, *shape, dtype=dtype)
    var_1, var_2 = np.exp(log_var_1), np.exp(log_var_2)
    results = {
        "kl": (normal.kl(mean_1, var_1, mean_2, var_2), (mean_1, var_1, mean_2, var_2)),
        "log_prob": (normal.log_prob(mean_1, mean_2, var_2), (mean_1, mean_2, var_2)),
        "entropy": (normal.entropy(var_1), (var_1,)),
    }
    for name, (result, arguments) in results.items():
        assert result.dtype == dtype and result.shape == shape
        each = [
            getattr(normal, name)(*map(float, row))
            for row in zip(*(a.ravel() for a in arguments), strict=True)
        ]
        np.testing.assert_allclose(
            result.ravel(),
            each,
            rtol=1e-4 if dtype == np.float32 else 1e-12,
            atol=1e-4 if dtype == np.float32 else 1e-12,
        )


@given(seeds, st.integers(1, 6), st.floats(-1e4, 1e4))
def test_log_sum_exp_moves_with_its_terms_and_never_overflows(seed, K, shift):
    x = normal_values(seed, 5, K)
    expected = np.log(np.exp(x).sum(axis=1, keepdims=True))
    assert normal.log_sum_exp(x).shape == (5, 1)
    np.testing.assert_allclose(normal.log_sum_exp(x), expected, rtol=0, atol=32 * EPS)
    np.testing.assert_allclose(
        normal.log_sum_exp(x + shift), expected + shift, rtol=0, atol=8 * EPS * (4 + abs(shift))
    )


def test_log_cdf_is_the_log_of_the_distribution_function_and_its_tail_goes_on_smoothly():
    x = np.array([-4.0, -3.0, -0.5, 0.0, 1.0, 5.0])
    np.testing.assert_allclose(
        np.exp(normal.log_cdf(x)), [NormalDist().cdf(a) for a in x], rtol=1e-12
    )
    assert normal.log_cdf(np.array([-np.inf, np.inf])).tolist() == [-np.inf, 0.0]
    # log Phi(x) for large negative x lies between these two (Mills' ratio).
    x = -np.geomspace(15, 300, 200)
    density = normal.log_prob(x, 0.0, 1.0)
    upper = density - np.log(-x)
    assert (normal.log_cdf(x) < upper).all() and (
        normal.log_cdf(x) > upper + np.log1p(-1 / x**2)
    ).all()
    np.testing.assert_allclose(
        *(normal.log_cdf(np.array([a])) for a in (-20.0, np.nextafter(-20.0, -21.0))), rtol=1e-10
    )


# The divergence of densities that can only be sampled


def log_ratios(shift, scale, shape, seed=0):
    """log q - log p at draws of q = N(0, 1), p = N(shift, scale^2); and KL(q || p)."""
    x = normal_values(seed, *shape)
    log_ratio = normal.log_prob(x, 0.0, 1.0) - normal.log_prob(x, shift, scale**2)
    return log_ratio, normal.kl(0.0, 1.0, shift, scale**2)


@pytest.mark.parametrize(("shift", "scale"), [(0.1, 1.0), (0.5, 1.0), (0.2, 1.1), (0.0, 0.7)])
def test_mean_kl_is_unbiased_in_standard_errors(shift, scale):
    # Also from few draws: c comes from the other half of them.
    log_ratio, kl = log_ratios(shift, scale, (8000, 40))
    estimates = np.array([normal.mean_kl(run) for run in log_ratio])
    assert_within_standard_errors(estimates, kl)


@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0])
def test_mean_kl_has_a_smaller_error_than_the_mean_of_the_log_ratio(shift):
    # The best c leaves the part 1 - rho^2 of the variance, rho the correlation of log_ratio with
    # p / q. For two Gaussians of variance 1, rho^2 = shift^2 / (exp(shift^2) - 1).
    log_ratio, kl = log_ratios(shift, 1.0, (400, 2000), seed=1)
    errors = np.array([normal.mean_kl(run) for run in log_ratio]) - kl
    plain_errors = log_ratio.mean(axis=1) - kl
    left = math.sqrt(1 - shift**2 / math.expm1(shift**2))
    # Each of the two deviations has a standard error of 1 / sqrt(2 400), a part in 28.
    assert errors.std() / plain_errors.std() == pytest.approx(left, rel=5 * math.sqrt(2) / 28)
    assert left < 0.7


def test_mean_kl_of_a_density_from_itself_is_0():
    assert normal.mean_kl(np.zeros(10)) == 0
    rounding = 1e-16 * normal_values(0, 100)
    assert normal.mean_kl(rounding) == pytest.approx(0, abs=1e-15)
