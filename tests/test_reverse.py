from types import SimpleNamespace

import numpy as np
import pytest
from conftest import (
    EPS,
    dtypes,
    flow_matching,
    normal_values,
    preserving_schedules,
    random_mlp,
    schedules,
    schedules_and_times,
    seeds,
    shapes,
    times,
)
from hypothesis import given
from hypothesis import strategies as st

from npdiff.exact import Gaussian
from npdiff.forward import q_sample, score_from_eps, x_0_from_eps
from npdiff.loss import target
from npdiff.nn import mlp
from npdiff.nn.params import unflatten
from npdiff.reverse import (
    eps_from_output,
    mean_slope,
    network_input,
    p_mean_from_eps,
    p_mean_from_score,
    p_mean_from_x_0,
    p_variance,
    predictor,
)
from npdiff.schedule import Schedule, linear

PREDICT = ("eps", "x_0", "v")


def true_reverse(variance, t, schedule):
    """Of N(0, variance) data: the multiplier of E[x_{t-1} | x_t] = multiplier x_t, and Var[x_{t-1} | x_t], by Bayes."""
    v_prev = schedule.signal[t - 1] ** 2 * variance + schedule.noise[t - 1] ** 2
    a, b = np.sqrt(schedule.alpha[t]), schedule.beta[t]
    if v_prev == 0:
        return 0.0, 0.0
    precision = 1 / v_prev + a**2 / b
    return a / b / precision, 1 / precision


# The mean


@given(schedules_and_times(with_signal=True), shapes, seeds)
def test_the_mean_is_the_same_by_eps_by_x_0_and_by_the_score(schedule_and_t, shape, seed):
    schedule, t = schedule_and_t
    x_t, eps_hat = normal_values(seed, 2, *shape)
    by_eps = p_mean_from_eps(x_t, t, eps_hat, schedule)
    by_x_0 = p_mean_from_x_0(x_t, t, x_0_from_eps(x_t, t, eps_hat, schedule), schedule)
    by_score = p_mean_from_score(x_t, t, score_from_eps(x_t, t, eps_hat, schedule), schedule)
    # All the terms are of the size of x_t / sqrt(alpha) or noise eps / sqrt(alpha).
    atol = 64 * EPS * (np.abs(x_t).max() + schedule.noise[t] * np.abs(eps_hat).max()) / np.sqrt(schedule.alpha[t])
    np.testing.assert_allclose(by_x_0, by_eps, rtol=0, atol=atol)
    np.testing.assert_allclose(by_score, by_eps, rtol=0, atol=atol)


@given(schedules_and_times(with_signal=True), st.floats(0.1, 3.0), seeds)
def test_the_mean_with_the_exact_predictor_is_that_of_the_true_reverse_step(schedule_and_t, s, seed):
    schedule, t = schedule_and_t
    x_t = normal_values(seed, 5, 1)
    eps_hat = Gaussian([0.0], [[s**2]]).predictor(schedule)(x_t, t)
    multiplier, _ = true_reverse(s**2, t, schedule)
    mean = p_mean_from_eps(x_t, t, eps_hat, schedule)
    np.testing.assert_allclose(
        mean,
        multiplier * x_t if t > 1 else x_t * s**2 / (s**2 + schedule.beta[1] / schedule.alpha[1]) / schedule.signal[1],
        rtol=0,
        atol=64 * EPS * np.abs(x_t).max() / np.sqrt(schedule.alpha[t]),
    )


@given(schedules(), dtypes, shapes, seeds, st.data())
def test_the_mean_of_a_batch_of_t_equals_a_loop_and_keeps_the_precision(schedule, dtype, shape, seed, data):
    x_t, guess = normal_values(seed, 2, *shape, dtype=dtype)
    t = np.array(data.draw(st.lists(times(schedule, with_signal=True), min_size=shape[0], max_size=shape[0])))
    eps = float(np.finfo(dtype).eps)
    for mean in (p_mean_from_eps, p_mean_from_x_0, p_mean_from_score):
        together = mean(x_t, t, guess, schedule)
        assert together.dtype == dtype and together.shape == shape
        rows = [mean(x_t[i : i + 1], int(t[i]), guess[i : i + 1], schedule) for i in range(shape[0])]
        largest = max(np.abs(x_t).max(), np.abs(guess).max()) * (1 + schedule.beta[t].max()) / np.sqrt(schedule.alpha[t].min())
        np.testing.assert_allclose(together, np.concatenate(rows), rtol=8 * eps, atol=16 * eps * largest)


def test_the_mean_without_any_signal_needs_x_0():
    x_t = np.ones((2, 1))
    for mean in (p_mean_from_eps, p_mean_from_score):
        with pytest.raises(ValueError, match="alpha"):
            mean(x_t, 5, x_t, flow_matching(5))
    np.testing.assert_allclose(p_mean_from_x_0(x_t, 5, 3 * x_t, flow_matching(5)), 0.2 * 3)  # signal_4 x_0: x_5 says nothing


# The variance


@given(schedules())
def test_the_variance_is_that_of_the_schedule(schedule):
    t = np.arange(1, schedule.T + 1)
    np.testing.assert_array_equal(p_variance(t, schedule, "beta"), schedule.beta[1:])
    np.testing.assert_array_equal(p_variance(t, schedule), schedule.beta_tilde[1:])
    assert p_variance(schedule.T, schedule, "beta_tilde") == schedule.beta_tilde[schedule.T]
    assert p_variance(t, schedule).dtype == np.float64


@given(preserving_schedules(), st.floats(0.01, 0.99), st.data())
def test_the_true_reverse_variance_lies_between_beta_tilde_and_beta(schedule, s, data):
    t = data.draw(st.integers(1, schedule.T))
    v_prev, v = schedule.signal[t - 1 : t + 1] ** 2 * s**2 + schedule.noise[t - 1 : t + 1] ** 2
    _, true_variance = true_reverse(s**2, t, schedule)
    assert true_variance == pytest.approx(schedule.beta[t] * v_prev / v, rel=64 * EPS)
    assert p_variance(t, schedule, "beta_tilde") < true_variance < p_variance(t, schedule, "beta")


@given(preserving_schedules(), st.data())
def test_beta_is_exact_at_unit_variance_and_beta_tilde_for_a_single_point(schedule, data):
    t = data.draw(st.integers(1, schedule.T))
    assert true_reverse(1.0, t, schedule)[1] == pytest.approx(p_variance(t, schedule, "beta"), rel=64 * EPS)
    assert true_reverse(0.0, t, schedule)[1] == pytest.approx(p_variance(t, schedule, "beta_tilde"), rel=64 * EPS, abs=0)


def test_the_variance_refuses_other_names_and_other_t():
    with pytest.raises(ValueError, match="variance must be one of beta_tilde, beta"):
        p_variance(1, linear(10), "sigma")
    for t in (0, 11, 1.0, True):
        with pytest.raises(ValueError, match="t must"):
            p_variance(t, linear(10))


# The network


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
        np.testing.assert_allclose(np.exp(level), noise / signal, rtol=16 * eps * (1 + abs(np.log(noise / signal))))


@pytest.mark.parametrize("predict", PREDICT)
@given(preserving=preserving_schedules(), data=st.data(), seed=seeds)
def test_one_network_says_the_same_on_a_schedule_that_preserves_variance_and_on_one_that_explodes(predict, preserving, data, seed):
    """At one level, log(noise/signal), x_t differs by a factor alone, the network's input not at all, and so must eps_hat."""
    exploding = Schedule(np.ones(preserving.T + 1), preserving.noise / preserving.signal)
    t = data.draw(times(preserving))
    params, x_t = unflatten(*random_mlp(np.random.default_rng(seed))), normal_values(seed, 4, 2)
    a = predictor(mlp, params, preserving, predict)(x_t, t)
    b = predictor(mlp, params, exploding, predict)(x_t / preserving.signal[t], t)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * (1 + np.abs(a).max() + 1 / preserving.noise[t]))


@pytest.mark.parametrize("predict", PREDICT)
@given(schedule_and_t=schedules_and_times(with_signal=True), dtype=dtypes, seed=seeds)
def test_a_network_that_puts_out_its_target_predicts_eps(predict, schedule_and_t, dtype, seed):
    schedule, t = schedule_and_t
    x_0, eps = normal_values(seed, 2, 4, 3, dtype=dtype)
    x_t = q_sample(x_0, t, eps, schedule)
    given_to_the_net = []

    def forward(params, x, level, shift=0.0):
        given_to_the_net.append((params, x, level))
        return target(x_0, t, eps, schedule, predict) + shift, None

    net = SimpleNamespace(forward=forward)
    eps_hat = predictor(net, {"a": 1}, schedule, predict)(x_t, t)
    assert eps_hat.dtype == dtype
    rounding = 16 * float(np.finfo(dtype).eps) * np.abs(x_t).max() / schedule.noise[t]
    rounding += (
        32 * float(np.finfo(dtype).eps) * max(1, np.abs(x_0).max(), np.abs(eps).max()) * (1 + schedule.signal[t] / schedule.noise[t])
    )
    np.testing.assert_allclose(eps_hat, eps, rtol=0, atol=rounding)

    params, x, level = given_to_the_net[0]
    assert params == {"a": 1}
    np.testing.assert_array_equal(x, network_input(x_t, t, schedule)[0])
    np.testing.assert_array_equal(level, network_input(x_t, t, schedule)[1])
    shifted = predictor(net, {}, schedule, predict, shift=np.ones_like(x_t))(x_t, t)  # further inputs reach the net
    assert np.abs(shifted - eps_hat).max() > 0


@pytest.mark.parametrize("predict", PREDICT)
def test_the_predictor_of_a_batch_of_t_equals_a_loop(predict):
    schedule, x_t = linear(20), normal_values(0, 4, 2)
    net = SimpleNamespace(forward=lambda params, x, level: (np.sin(3 * x) + level[:, None], None))
    predict_eps, t = predictor(net, {}, schedule, predict), np.array([1, 7, 20, 3])
    rows = [predict_eps(x_t[i : i + 1], int(t[i])) for i in range(4)]
    np.testing.assert_allclose(predict_eps(x_t, t), np.concatenate(rows), rtol=1e-13)


def test_the_predictor_refuses_other_targets_and_other_t():
    net = SimpleNamespace(forward=lambda params, x, level: (x, None))
    with pytest.raises(ValueError, match="predict must be one of eps, x_0, v"):
        predictor(net, {}, linear(10), "score")
    with pytest.raises(ValueError, match="predict must be one of eps, x_0, v"):
        eps_from_output(np.ones((1, 1)), 1, np.ones((1, 1)), linear(10), "score")
    for t in (0, 11, 1.0, True, np.array([0, 1])):
        with pytest.raises(ValueError, match="t must"):
            predictor(net, {}, linear(10))(np.ones((2, 1)), t)


class Told:
    """A network whose output is 3 where it is told a label and 1 where it is not."""

    @staticmethod
    def forward(params, x, level, label=None):
        return np.full_like(x, 1.0 if label is None else 3.0), None


def test_guidance_goes_beyond_what_the_label_adds():
    x, schedule = np.zeros((2, 3)), linear(10)
    label = np.array([0, 1])
    for w in (0.0, 0.5, 2.0):  # (1 + w) eps_cond - w eps_uncond
        eps_hat = predictor(Told, {}, schedule, guidance=w, label=label)(x, 4)
        np.testing.assert_allclose(eps_hat, (1 + w) * 3 - w * 1, rtol=1e-12)
    with pytest.raises(ValueError, match="guidance"):
        predictor(Told, {}, schedule, guidance=1.0)


@given(schedules(), seeds)
def test_the_slope_of_the_mean_is_how_it_moves_with_eps(schedule, seed):
    rng = np.random.default_rng(seed)
    t = int(rng.integers(1, schedule.T + 1))
    if schedule.alpha[t] == 0:
        return
    x_t, eps, h = *rng.standard_normal((2, 3, 2)), 0.5
    moved = (p_mean_from_eps(x_t, t, eps + h, schedule) - p_mean_from_eps(x_t, t, eps, schedule)) / h
    np.testing.assert_allclose(moved, mean_slope(t, schedule), rtol=1e-6, atol=1e-9)
