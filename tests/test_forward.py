from decimal import Decimal, localcontext

import numpy as np
import pytest
from conftest import (
    EPS,
    EPS_32,
    STANDARD_ERRORS,
    dtypes,
    flow_matching,
    normal_values,
    random_rates,
    schedules,
    schedules_and_times,
    seeds,
    shapes,
    times,
    variance_exploding,
)
from hypothesis import given
from hypothesis import strategies as st

from npdiff.forward import (
    eps_from_score,
    eps_from_v,
    eps_from_x_0,
    prior_kl,
    q_marginal,
    q_posterior,
    q_sample,
    q_step,
    score_from_eps,
    v_from_eps,
    x_0_from_eps,
)
from npdiff.schedule import cosine, linear

CONVERSIONS = (x_0_from_eps, eps_from_x_0, v_from_eps, eps_from_v, score_from_eps, eps_from_score)


def one_step(t, schedule):
    """What q_step does to a mean and to a standard deviation: x_t = a x_prev + b eps."""
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    return q_step(one, t, zero, schedule).item(), q_step(zero, t, one, schedule).item()


# One step, marginal, posterior


@given(schedules_and_times(), shapes, seeds, dtypes)
def test_q_step_composed_t_times_is_the_marginal(schedule_and_t, shape, seed, dtype):
    schedule, t = schedule_and_t
    x_0 = normal_values(seed, *shape, dtype=dtype)
    mean, var = x_0, 0.0
    for s in range(1, t + 1):
        a, b = one_step(s, schedule)
        mean, var = q_step(mean, s, np.zeros_like(x_0), schedule), a**2 * var + b**2
    expected_mean, expected_var = q_marginal(x_0, t, schedule)
    # Each step rounds once or twice in x's precision, and the variance's terms are all positive.
    eps = EPS if dtype == np.float64 else EPS_32
    np.testing.assert_allclose(mean, expected_mean, rtol=4 * t * eps, atol=1e-30)
    assert var == pytest.approx(expected_var, rel=8 * t * EPS)


@given(schedules(), seeds, st.data())
def test_q_step_composed_from_s_to_t_carries_one_marginal_to_the_other(schedule, seed, data):
    s, t = sorted((data.draw(times(schedule)), data.draw(times(schedule))))
    x_0 = normal_values(seed, 3, 2)
    mean, var = q_marginal(x_0, s, schedule)
    for u in range(s + 1, t + 1):
        a, b = one_step(u, schedule)
        mean, var = a * mean, a**2 * var + b**2
    expected_mean, expected_var = q_marginal(x_0, t, schedule)
    np.testing.assert_allclose(mean, expected_mean, rtol=4 * (t - s + 1) * EPS, atol=1e-30)
    assert var == pytest.approx(expected_var, rel=8 * (t - s + 1) * EPS)


@pytest.mark.parametrize(
    "schedule",
    [linear(40), cosine(40), random_rates(20, 0), variance_exploding(20), flow_matching(20)],
)
def test_q_step_walks_to_the_marginal_in_standard_errors(schedule):
    # Mean and variance of 40,000 chains each lie within 5 standard errors: a false alarm in 1.7
    # million, ten times.
    n, rng = 40_000, np.random.default_rng(1)
    x_t = np.full((n, 1), 1.5)
    for t in range(1, schedule.T + 1):
        x_t = q_step(x_t, t, rng.standard_normal(x_t.shape), schedule)
    mean, var = q_marginal(np.full((1, 1), 1.5), schedule.T, schedule)
    assert abs(x_t.mean() - mean.item()) < STANDARD_ERRORS * np.sqrt(var / n)
    assert abs(x_t.var() - var) < STANDARD_ERRORS * var * np.sqrt(2 / n)


@given(schedules_and_times(), shapes, seeds)
def test_q_sample_is_the_marginal_mean_plus_its_deviation_times_eps(schedule_and_t, shape, seed):
    schedule, t = schedule_and_t
    x_0, eps = normal_values(seed, 2, *shape)
    mean, var = q_marginal(x_0, t, schedule)
    np.testing.assert_allclose(
        q_sample(x_0, t, eps, schedule),
        mean + np.sqrt(var) * eps,
        rtol=0,
        atol=16 * EPS * (1 + np.sqrt(var)) * 5,
    )


@given(schedules_and_times(), shapes, seeds)
def test_q_posterior_is_the_product_of_prior_and_likelihood(schedule_and_t, shape, seed):
    schedule, t = schedule_and_t
    # Of one sign, so that the mean is a sum without cancellation.
    x_0, x_t = np.abs(normal_values(seed, 2, *shape))
    mean, var = q_posterior(x_0, x_t, t, schedule)
    if t == 1:
        np.testing.assert_allclose(mean, x_0, rtol=16 * EPS)
        assert var == 0
        return
    # Bayes: N(x_{t-1}; m, v) N(x_t; a x_{t-1}, b^2), precisions and precision-weighted means add.
    (m, v), (a, b) = q_marginal(x_0, t - 1, schedule), one_step(t, schedule)
    precision = 1 / v + a**2 / b**2
    assert var == pytest.approx(1 / precision, rel=64 * EPS)
    np.testing.assert_allclose(mean, (m / v + a * x_t / b**2) / precision, rtol=64 * EPS)


@given(schedules(), dtypes, seeds)
def test_q_posterior_at_the_first_step_is_x_0_without_variance(schedule, dtype, seed):
    x_0, x_t = normal_values(seed, 2, 3, 2, dtype=dtype)
    for t in (1, np.ones(3, int)):
        mean, var = q_posterior(x_0, x_t, t, schedule)
        np.testing.assert_allclose(mean, x_0, rtol=8 * (EPS if dtype == np.float64 else EPS_32))
        assert np.all(var == 0)


@given(schedules_and_times(with_signal=True), seeds)
def test_q_posterior_averaged_over_x_t_is_the_marginal_before(schedule_and_t, seed):
    # E over x_t ~ q(x_t | x_0) of a Gaussian whose mean is w_0 x_0 + w_t x_t: its mean and variance
    # are linear in those of x_t.
    schedule, t = schedule_and_t
    x_0 = np.abs(normal_values(seed, 4, 1))
    mean_t, var_t = q_marginal(x_0, t, schedule)
    mean, var = q_posterior(x_0, mean_t, t, schedule)
    w_t = q_posterior(np.zeros((1, 1)), np.ones((1, 1)), t, schedule)[0].item()
    mean_prev, var_prev = q_marginal(x_0, t - 1, schedule) if t > 1 else (x_0, 0.0)
    np.testing.assert_allclose(mean, mean_prev, rtol=64 * EPS)
    assert w_t**2 * var_t + var == pytest.approx(var_prev, rel=64 * EPS, abs=0)


# Prior


@given(schedules(), shapes, seeds)
def test_prior_kl_is_the_closed_form_summed_over_the_coordinates(schedule, shape, seed):
    x_0 = normal_values(seed, *shape)
    signal, noise = schedule.signal[-1], schedule.noise[-1]
    expected = [
        sum(0.5 * (noise**2 + (signal * x) ** 2 - 1 - 2 * np.log(noise)) for x in row.ravel())
        for row in x_0
    ]
    kl = prior_kl(x_0, schedule)
    assert kl.shape == (shape[0],)
    np.testing.assert_allclose(
        kl, expected, rtol=64 * EPS, atol=64 * EPS * (1 + noise**2) * x_0.size
    )


def test_prior_kl_of_linear_with_50_steps_is_half_a_nat_a_dimension():
    x_0 = np.ones((1, 1))  # of unit mean square
    assert prior_kl(x_0, linear(50)).item() == pytest.approx(0.46, abs=0.005)
    assert prior_kl(x_0, linear(50)).item() == pytest.approx(
        -0.5 * np.log(1 - linear(50).alpha_bar[50]), rel=1e-12
    )
    assert prior_kl(x_0, linear(1000)).item() < 1e-4


# Conversions


@given(schedules_and_times(with_signal=True), shapes, seeds)
def test_conversions_recover_what_x_t_was_made_of(schedule_and_t, shape, seed):
    schedule, t = schedule_and_t
    x_0, eps = normal_values(seed, 2, *shape)
    x_t = q_sample(x_0, t, eps, schedule)
    signal, noise = schedule.signal[t], schedule.noise[t]
    v, score = signal * eps - noise * x_0, -eps / noise
    # The rounding of x_t.
    largest = 8 * EPS * (signal * np.abs(x_0).max() + noise * np.abs(eps).max())
    np.testing.assert_allclose(
        x_0_from_eps(x_t, t, eps, schedule), x_0, rtol=0, atol=largest / signal
    )
    np.testing.assert_allclose(
        eps_from_x_0(x_t, t, x_0, schedule), eps, rtol=0, atol=largest / noise
    )
    np.testing.assert_allclose(
        v_from_eps(x_t, t, eps, schedule),
        v,
        rtol=0,
        atol=2 * largest * (1 + noise / signal) / min(1, noise),
    )
    np.testing.assert_allclose(
        eps_from_v(x_t, t, v, schedule),
        eps,
        rtol=0,
        atol=4 * largest * max(1, noise) / (signal**2 + noise**2) + 16 * EPS * np.abs(eps).max(),
    )
    np.testing.assert_allclose(score_from_eps(x_t, t, eps, schedule), score, rtol=4 * EPS)
    np.testing.assert_allclose(eps_from_score(x_t, t, score, schedule), eps, rtol=4 * EPS)


@pytest.mark.parametrize(
    ("there", "back"),
    [(x_0_from_eps, eps_from_x_0), (v_from_eps, eps_from_v), (score_from_eps, eps_from_score)],
)
@given(schedule_and_t=schedules_and_times(with_signal=True), shape=shapes, seed=seeds)
def test_conversions_are_inverse_to_one_another(there, back, schedule_and_t, shape, seed):
    # For any x_t and value, not only for those that belong together. The way there may divide by
    # signal, the way back by noise.
    schedule, t = schedule_and_t
    x_t, value = normal_values(seed, 2, *shape)
    ratio = schedule.signal[t] / schedule.noise[t]
    atol = (
        32
        * EPS
        * (1 + max(ratio, 1 / ratio))
        * (1 + 1 / schedule.noise[t])
        * max(1, np.abs(x_t).max(), np.abs(value).max())
    )
    np.testing.assert_allclose(
        back(x_t, t, there(x_t, t, value, schedule), schedule), value, rtol=0, atol=atol
    )
    np.testing.assert_allclose(
        there(x_t, t, back(x_t, t, value, schedule), schedule),
        value,
        rtol=0,
        atol=atol * (1 + 1 / ratio),
    )


@given(schedules_and_times(with_signal=True), seeds)
def test_v_is_signal_eps_minus_noise_x_0(schedule_and_t, seed):
    schedule, t = schedule_and_t
    x_t, eps = normal_values(seed, 2, 3, 2)
    x_0 = x_0_from_eps(x_t, t, eps, schedule)
    v = v_from_eps(x_t, t, eps, schedule)
    np.testing.assert_allclose(
        v,
        schedule.signal[t] * eps - schedule.noise[t] * x_0,
        rtol=0,
        atol=4 * EPS * (np.abs(eps) + schedule.noise[t] * np.abs(x_0)).max(),
    )


@given(schedules(), st.data(), seeds)
def test_score_of_the_marginal_is_that_of_its_gaussian(schedule, data, seed):
    t = data.draw(times(schedule))
    x_0, eps = normal_values(seed, 2, 3, 2)
    x_t = q_sample(x_0, t, eps, schedule)
    mean, var = q_marginal(x_0, t, schedule)
    atol = 16 * EPS * (np.abs(x_t).max() + np.abs(x_0).max()) / var
    np.testing.assert_allclose(
        score_from_eps(x_t, t, eps, schedule), -(x_t - mean) / var, rtol=8 * EPS, atol=atol
    )


def test_x_0_is_not_to_be_had_where_no_signal_is_left():
    x_t = np.ones((2, 1))
    for t in (5, np.array([1, 5])):
        for convert in (x_0_from_eps, v_from_eps):
            with pytest.raises(ValueError, match="signal"):
                convert(x_t, t, x_t, flow_matching(5))
    assert np.isfinite(x_0_from_eps(x_t, 4, x_t, flow_matching(5))).all()


# Batches, precision, refusals


def calls(x, other, t, schedule):
    """Every function of the module at the same t, as (name, arrays)."""
    yield "q_step", (q_step(x, t, other, schedule),)
    yield "q_sample", (q_sample(x, t, other, schedule),)
    yield "q_marginal", q_marginal(x, t, schedule)
    yield "q_posterior", q_posterior(other, x, t, schedule)
    for convert in CONVERSIONS:
        yield convert.__name__, (convert(x, t, other, schedule),)


@given(schedules(), shapes, dtypes, seeds, st.data())
def test_a_batch_of_t_equals_a_loop_over_its_rows(schedule, shape, dtype, seed, data):
    x, other = normal_values(seed, 2, *shape, dtype=dtype)
    t = np.array(
        data.draw(st.lists(times(schedule, with_signal=True), min_size=shape[0], max_size=shape[0]))
    )
    rows = [
        dict(calls(x[i : i + 1], other[i : i + 1], int(t[i]), schedule)) for i in range(shape[0])
    ]
    # One t is a Python float, a batch is rounded to x's precision; a difference of two terms keeps
    # that error. noise is at most 50.
    eps = EPS if dtype == np.float64 else EPS_32
    lowest = min(schedule.signal[t].min(), schedule.noise[t].min(), 1.0)
    atol = (
        16
        * eps
        * max(1, np.abs(x).max(), np.abs(other).max())
        * max(1, schedule.noise[t].max()) ** 2
        / lowest
    )
    for name, results in calls(x, other, t, schedule):
        for k, result in enumerate(results):
            together = [
                np.broadcast_to(row[name][k], result[i : i + 1].shape) for i, row in enumerate(rows)
            ]
            np.testing.assert_allclose(
                result, np.concatenate(together), rtol=8 * eps, atol=atol, err_msg=name
            )


@given(schedules(), shapes, dtypes, st.data(), seeds)
def test_the_precision_and_the_shape_of_x_are_kept(schedule, shape, dtype, data, seed):
    x, other = normal_values(seed, 2, *shape, dtype=dtype)
    t = data.draw(times(schedule, with_signal=True))
    for name, (result, *rest) in calls(x, other, t, schedule):
        assert result.dtype == dtype and result.shape == shape, name
        assert all(type(var) is float for var in rest), name
    for name, (result, *rest) in calls(x, other, np.full(shape[0], t), schedule):
        assert result.dtype == dtype and result.shape == shape, name
        assert all(
            var.dtype == dtype and var.shape == (shape[0], *[1] * (len(shape) - 1)) for var in rest
        ), name
    assert prior_kl(x, schedule).dtype == dtype


def each_function():
    yield lambda x, t, s: q_marginal(x, t, s)
    yield lambda x, t, s: q_posterior(x, x, t, s)
    for f in (q_step, q_sample, *CONVERSIONS):
        yield lambda x, t, s, f=f: f(x, t, x, s)


@pytest.mark.parametrize(
    "t",
    [
        0,
        -1,
        11,
        1.0,
        True,
        None,
        "1",
        [1, 2, 3],
        np.array([1.0, 2.0, 3.0]),
        np.array([True] * 3),
        np.array([0, 1, 2]),
        np.array([1, 2, 11]),
    ],
)
def test_every_function_refuses_a_t_that_is_no_step(t):
    for function in each_function():
        with pytest.raises(ValueError, match="t must"):
            function(np.ones((3, 2)), t, linear(10))


@pytest.mark.parametrize("length", [1, 2, 4])
def test_every_function_refuses_a_t_of_another_length_than_the_batch(length):
    for function in each_function():
        with pytest.raises(ValueError, match=f"t has {length} entries"):
            function(np.ones((3, 2)), np.ones(length, int), linear(10))


def test_every_function_refuses_integers_for_x():
    for function in each_function():
        for t in (1, np.ones(3, int)):
            with pytest.raises(ValueError, match="floats"):
                function(np.ones((3, 2), int), t, linear(10))
    with pytest.raises(ValueError, match="floats"):
        prior_kl(np.ones((3, 2), int), linear(10))


# 40 digits


@pytest.mark.parametrize(
    "schedule",
    [linear(1000), linear(50), cosine(1000), variance_exploding(100), flow_matching(100)],
)
def test_every_closed_form_agrees_with_40_digit_arithmetic(schedule):
    # The tables are taken as they are (test_schedule holds them against 40 digits). What is left is
    # the rounding of a few operations: 16 EPS of the terms that are added up.
    x_0, x_t, eps = 0.7, 1.3, 0.4
    one = np.ones((1, 1))
    with localcontext() as context:
        context.prec = 40
        d_x_0, d_x_t, d_eps = (Decimal(value) for value in (x_0, x_t, eps))
        for t in {1, 2, 3, schedule.T // 2, schedule.T - 1}:
            table = {
                name: Decimal(float(getattr(schedule, name)[t]))
                for name in ("signal", "noise", "alpha", "beta")
            }
            signal, noise, alpha, beta = table.values()
            signal_prev, noise_prev = (
                Decimal(float(schedule.signal[t - 1])),
                Decimal(float(schedule.noise[t - 1])),
            )
            posterior = q_posterior(x_0 * one, x_t * one, t, schedule)
            total = signal**2 + noise**2
            # name: the result, the expected number, and the size of the terms that are summed
            results = {
                "step": (
                    q_step(x_0 * one, t, eps * one, schedule),
                    alpha.sqrt() * d_x_0 + beta.sqrt() * d_eps,
                    0,
                ),
                "sample": (
                    q_sample(x_0 * one, t, eps * one, schedule),
                    signal * d_x_0 + noise * d_eps,
                    0,
                ),
                "mean": (q_marginal(x_0 * one, t, schedule)[0], signal * d_x_0, 0),
                "var": (q_marginal(one, t, schedule)[1], noise**2, 0),
                "posterior mean": (
                    posterior[0],
                    signal_prev * beta / noise**2 * d_x_0
                    + alpha.sqrt() * noise_prev**2 / noise**2 * d_x_t,
                    0,
                ),
                "posterior var": (posterior[1], noise_prev**2 / noise**2 * beta, 0),
                "x_0": (
                    x_0_from_eps(x_t * one, t, eps * one, schedule),
                    (d_x_t - noise * d_eps) / signal,
                    (d_x_t + noise * d_eps) / signal,
                ),
                "eps": (
                    eps_from_x_0(x_t * one, t, x_0 * one, schedule),
                    (d_x_t - signal * d_x_0) / noise,
                    (d_x_t + d_x_0) / noise,
                ),
                "v": (
                    v_from_eps(x_t * one, t, eps * one, schedule),
                    signal * d_eps - noise * (d_x_t - noise * d_eps) / signal,
                    signal * d_eps + noise * (d_x_t + noise * d_eps) / signal,
                ),
                "eps of v": (
                    eps_from_v(x_t * one, t, x_0 * one, schedule),
                    (noise * d_x_t + signal * d_x_0) / total,
                    0,
                ),
                "score": (score_from_eps(x_t * one, t, eps * one, schedule), -d_eps / noise, 0),
                "eps of score": (
                    eps_from_score(x_t * one, t, eps * one, schedule),
                    -noise * d_eps,
                    0,
                ),
            }
            for name, (result, expected, terms) in results.items():
                error = abs(Decimal(float(np.asarray(result).item())) - expected)
                assert error <= Decimal(16 * EPS) * max(abs(expected), terms), (name, t)
        signal, noise = Decimal(float(schedule.signal[-1])), Decimal(float(schedule.noise[-1]))
        kl = (noise**2 + (signal * d_x_0) ** 2 - 1 - (noise**2).ln()) / 2
        error = abs(Decimal(prior_kl(x_0 * one, schedule).item()) - kl)
        assert error <= Decimal(16 * EPS) * (noise**2 + 1)


def test_prior_kl_of_float32_data_keeps_its_digits_where_next_to_no_signal_is_left():
    x_0 = np.random.default_rng(0).standard_normal((5, 3))
    schedule = cosine(1000)
    np.testing.assert_allclose(
        prior_kl(x_0.astype(np.float32), schedule), prior_kl(x_0, schedule), rtol=1e-5
    )
    assert (prior_kl(x_0.astype(np.float32), schedule) > 0).all()
