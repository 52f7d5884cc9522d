"""What a network is given, and what its output stands for: the table of output.py, row by row."""

import numpy as np
import pytest
from conftest import (
    EPS,
    dtypes,
    flow_matching,
    normal_values,
    preserving_schedules,
    schedules,
    schedules_and_times,
    seeds,
    shapes,
    times,
)
from hypothesis import given
from hypothesis import strategies as st

from npdiff.forward import eps_from_score, eps_from_v, eps_from_x_0, q_sample, v_from_eps
from npdiff.output import PREDICT, eps_from_output, eps_per_output, network_input, target
from npdiff.schedule import linear

each_predict = pytest.mark.parametrize("predict", PREDICT)


def drawn_t(data, schedule, batch):
    """A t for each row, any of 1..T."""
    return np.array(data.draw(st.lists(times(schedule), min_size=batch, max_size=batch)))


# What a network is given


@given(schedules_and_times(with_signal=True), shapes, dtypes, seeds)
def test_the_network_is_given_x_of_unit_variance_and_the_level(schedule_and_t, shape, dtype, seed):
    schedule, t = schedule_and_t
    x_t = normal_values(seed, *shape, dtype=dtype)
    eps = float(np.finfo(dtype).eps)
    signal, noise = schedule.signal[t], schedule.noise[t]
    for time in (t, np.full(shape[0], t)):
        x, level = network_input(x_t, time, schedule)
        assert x.dtype == level.dtype == dtype and level.shape == (shape[0],)
        np.testing.assert_allclose(x, x_t / np.hypot(signal, noise), rtol=8 * eps)
        np.testing.assert_allclose(
            np.exp(level), noise / signal, rtol=16 * eps * (1 + abs(np.log(noise / signal)))
        )


@given(schedules(), shapes, seeds, st.data())
def test_each_row_is_given_its_own_level(schedule, shape, seed, data):
    x_t, t = normal_values(seed, *shape), drawn_t(data, schedule, shape[0])
    x, level = network_input(x_t, t, schedule)
    for i in range(shape[0]):
        x_i, level_i = network_input(x_t[i : i + 1], int(t[i]), schedule)
        np.testing.assert_array_equal(x[i : i + 1], x_i)
        np.testing.assert_array_equal(level[i : i + 1], level_i)


# What its output stands for


@given(schedules_and_times(), shapes, seeds)
def test_target_is_eps_or_x_0_or_v_or_noise_times_the_score(schedule_and_t, shape, seed):
    schedule, t = schedule_and_t
    x_0, eps = normal_values(seed, 2, *shape)
    assert target(x_0, t, eps, schedule) is eps and target(x_0, t, eps, schedule, "x_0") is x_0
    signal, noise = schedule.signal[t], schedule.noise[t]
    v = (signal * eps - noise * x_0) / np.hypot(signal, noise)
    rounding = 4 * EPS * (np.abs(eps).max() + noise * np.abs(x_0).max())
    np.testing.assert_allclose(target(x_0, t, eps, schedule, "v"), v, rtol=0, atol=rounding)
    score = -eps / noise  # of q(x_t | x_0)
    np.testing.assert_allclose(target(x_0, t, eps, schedule, "score"), noise * score, rtol=4 * EPS)


@given(preserving_schedules(), seeds, st.data())
def test_v_is_that_of_salimans_and_ho_where_the_variance_is_preserved(schedule, seed, data):
    t = data.draw(times(schedule))
    x_0, eps = normal_values(seed, 2, 4, 3)
    x_t = q_sample(x_0, t, eps, schedule)
    # v_from_eps divides by signal, which is 1e-2 or more on these schedules but for their last t.
    rounding = 64 * EPS * (1 + np.abs(x_t).max() + np.abs(eps).max()) / schedule.signal[t]
    np.testing.assert_allclose(
        target(x_0, t, eps, schedule, "v"), v_from_eps(x_t, t, eps, schedule), rtol=0, atol=rounding
    )


@each_predict
@given(schedule=schedules(), seed=seeds, data=st.data())
def test_the_target_as_output_gives_eps(predict, schedule, seed, data):
    x_0, eps = normal_values(seed, 2, 4, 3)
    t = drawn_t(data, schedule, 4)
    x_t = q_sample(x_0, t, eps, schedule)
    eps_hat = eps_from_output(x_t, t, target(x_0, t, eps, schedule, predict), schedule, predict)
    # x_t is a sum of signal x_0 and noise eps, and eps_hat a sum of x_t / noise or less and of the
    # target times eps_per_output: a few roundings of terms of this size.
    size = (
        1 + np.abs(x_0).max() * (schedule.signal[t] / schedule.noise[t]).max() + np.abs(eps).max()
    )
    np.testing.assert_allclose(eps_hat, eps, rtol=0, atol=32 * EPS * size)


@each_predict
@given(schedule=schedules(), seed=seeds, data=st.data())
def test_an_error_of_the_output_is_eps_per_output_times_as_large_in_eps(
    predict, schedule, seed, data
):
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    t = drawn_t(data, schedule, 4)
    x_t = q_sample(x_0, t, eps, schedule)
    eps_hat = eps_from_output(x_t, t, out, schedule, predict)
    error = out - target(x_0, t, eps, schedule, predict)
    slope = eps_per_output(x_t, t, schedule, predict)
    size = np.abs([x_0, eps, out]).max() * (1 + schedule.signal[t] / schedule.noise[t]).max()
    np.testing.assert_allclose(eps_hat - eps, slope * error, rtol=0, atol=64 * EPS * (1 + size))


@given(schedules_and_times(), seeds)
def test_eps_from_output_is_the_conversion_of_forward(schedule_and_t, seed):
    # v is that of the network's input x_t / std: of x_t it is std times as large.
    schedule, t = schedule_and_t
    x_t, out = normal_values(seed, 2, 4, 3)
    noise, std = schedule.noise[t], schedule.std[t]
    expected = {
        "eps": out,
        "x_0": eps_from_x_0(x_t, t, out, schedule),
        "v": eps_from_v(x_t, t, std * out, schedule),
        "score": eps_from_score(x_t, t, out / noise, schedule),
    }
    for predict in PREDICT:
        eps_hat = eps_from_output(x_t, t, out, schedule, predict)
        size = max(np.abs(x_t).max(), np.abs(out).max()) * (1 + 1 / noise)
        np.testing.assert_allclose(eps_hat, expected[predict], rtol=8 * EPS, atol=8 * EPS * size)


@given(schedules(), st.data(), seeds)
def test_eps_per_output_is_how_eps_hat_follows_the_output(schedule, data, seed):
    # eps_hat is a line in the output, so a step of 1 shows its slope.
    t, x_t = data.draw(times(schedule)), normal_values(seed, 1, 1)
    for predict in PREDICT:
        at_1, at_0 = (
            eps_from_output(x_t, t, np.full((1, 1), out), schedule, predict) for out in (1.0, 0.0)
        )
        atol = 16 * EPS * (1 + np.abs(x_t).max()) / schedule.noise[t]
        slope = eps_per_output(x_t, t, schedule, predict)
        assert slope == pytest.approx((at_1 - at_0).item(), rel=16 * EPS, abs=atol)
    assert eps_per_output(x_t, t, schedule) == 1


@each_predict
@given(schedule=schedules(), shape=shapes, dtype=dtypes, seed=seeds, data=st.data())
def test_a_batch_of_t_equals_a_loop_over_its_rows_and_keeps_the_precision(
    predict, schedule, shape, dtype, seed, data
):
    x, other = normal_values(seed, 2, *shape, dtype=dtype)
    t, eps = drawn_t(data, schedule, shape[0]), float(np.finfo(dtype).eps)

    def results(x, other, t):
        return (
            target(x, t, other, schedule, predict),
            eps_from_output(x, t, other, schedule, predict),
            eps_per_output(x, t, schedule, predict) * np.ones_like(x),
        )

    together = results(x, other, t)
    rows = [results(x[i : i + 1], other[i : i + 1], int(t[i])) for i in range(shape[0])]
    # Sums of two terms, each a product of a few numbers of the table, which a batch rounds.
    size = max(1, np.abs(x).max(), np.abs(other).max()) * (1 + 1 / schedule.noise[t].min())
    for result, *by_row in zip(together, *rows, strict=True):
        assert result.dtype == dtype and result.shape == shape
        np.testing.assert_allclose(
            result, np.concatenate(by_row), rtol=8 * eps, atol=16 * eps * size
        )


@each_predict
def test_nothing_is_infinite_where_no_signal_is_left(predict):
    x_0, eps, out = normal_values(0, 3, 4, 3)
    t, schedule = np.array([5, 5, 4, 1]), flow_matching(5)
    assert np.isfinite(target(x_0, t, eps, schedule, predict)).all()
    assert np.isfinite(eps_from_output(x_0, t, out, schedule, predict)).all()
    assert np.isfinite(eps_per_output(x_0, t, schedule, predict)).all()


# Refusals


def each_function(predict):
    yield lambda x, t: target(x, t, x, linear(10), predict)
    yield lambda x, t: eps_from_output(x, t, x, linear(10), predict)
    yield lambda x, t: eps_per_output(x, t, linear(10), predict)


def test_another_name_is_refused():
    for function in each_function("noise"):
        with pytest.raises(
            ValueError, match="predict must be one of eps, x_0, v, score, got 'noise'"
        ):
            function(np.ones((3, 2)), 1)


@each_predict
@pytest.mark.parametrize("t", [0, 11, 1.0, True, np.array([0, 1, 2]), np.ones(2, int)])
def test_a_t_that_is_no_step_is_refused_whatever_is_predicted(predict, t):
    for function in (*each_function(predict), lambda x, t: network_input(x, t, linear(10))):
        with pytest.raises(ValueError, match="t (must|has)"):
            function(np.ones((3, 2)), t)
