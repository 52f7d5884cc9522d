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
from npdiff.nn import mlp, unet
from npdiff.nn.params import pack, unflatten
from npdiff.output import PREDICT, network_input, target
from npdiff.reverse import (
    mean_per_eps,
    p_mean_from_eps,
    p_mean_from_score,
    p_mean_from_x_0,
    p_variance,
    predictor,
)
from npdiff.schedule import Schedule, linear
from npdiff.train import start

each_predict = pytest.mark.parametrize("predict", PREDICT)


def true_reverse(variance, t, schedule):
    """For N(0, variance) data, by Bayes: m in E[x_{t-1} | x_t] = m x_t, and Var[x_{t-1} | x_t]."""
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
    atol = (
        64
        * EPS
        * (np.abs(x_t).max() + schedule.noise[t] * np.abs(eps_hat).max())
        / np.sqrt(schedule.alpha[t])
    )
    np.testing.assert_allclose(by_x_0, by_eps, rtol=0, atol=atol)
    np.testing.assert_allclose(by_score, by_eps, rtol=0, atol=atol)


@given(schedules_and_times(with_signal=True), st.floats(0.1, 3.0), seeds)
def test_the_mean_with_the_exact_predictor_is_that_of_the_true_reverse_step(
    schedule_and_t, s, seed
):
    schedule, t = schedule_and_t
    x_t = normal_values(seed, 5, 1)
    eps_hat = Gaussian([0.0], [[s**2]]).predictor(schedule)(x_t, t)
    multiplier, _ = true_reverse(s**2, t, schedule)
    mean = p_mean_from_eps(x_t, t, eps_hat, schedule)
    np.testing.assert_allclose(
        mean,
        multiplier * x_t
        if t > 1
        else x_t * s**2 / (s**2 + schedule.beta[1] / schedule.alpha[1]) / schedule.signal[1],
        rtol=0,
        atol=64 * EPS * np.abs(x_t).max() / np.sqrt(schedule.alpha[t]),
    )


@given(schedules(), dtypes, shapes, seeds, st.data())
def test_the_mean_of_a_batch_of_t_equals_a_loop_and_keeps_the_precision(
    schedule, dtype, shape, seed, data
):
    x_t, guess = normal_values(seed, 2, *shape, dtype=dtype)
    t = np.array(
        data.draw(st.lists(times(schedule, with_signal=True), min_size=shape[0], max_size=shape[0]))
    )
    eps = float(np.finfo(dtype).eps)
    for mean in (p_mean_from_eps, p_mean_from_x_0, p_mean_from_score):
        together = mean(x_t, t, guess, schedule)
        assert together.dtype == dtype and together.shape == shape
        rows = [
            mean(x_t[i : i + 1], int(t[i]), guess[i : i + 1], schedule) for i in range(shape[0])
        ]
        largest = (
            max(np.abs(x_t).max(), np.abs(guess).max())
            * (1 + schedule.beta[t].max())
            / np.sqrt(schedule.alpha[t].min())
        )
        np.testing.assert_allclose(
            together, np.concatenate(rows), rtol=8 * eps, atol=16 * eps * largest
        )


def test_the_mean_without_any_signal_needs_x_0():
    x_t = np.ones((2, 1))
    for mean in (p_mean_from_eps, p_mean_from_score):
        with pytest.raises(ValueError, match="alpha"):
            mean(x_t, 5, x_t, flow_matching(5))
    # signal_4 x_0: x_5 says nothing.
    np.testing.assert_allclose(p_mean_from_x_0(x_t, 5, 3 * x_t, flow_matching(5)), 0.2 * 3)


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
    assert true_reverse(1.0, t, schedule)[1] == pytest.approx(
        p_variance(t, schedule, "beta"), rel=64 * EPS
    )
    assert true_reverse(0.0, t, schedule)[1] == pytest.approx(
        p_variance(t, schedule, "beta_tilde"), rel=64 * EPS, abs=0
    )


def test_the_variance_refuses_other_names_and_other_t():
    with pytest.raises(ValueError, match="variance must be one of beta_tilde, beta"):
        p_variance(1, linear(10), "sigma")
    for t in (0, 11, 1.0, True):
        with pytest.raises(ValueError, match="t must"):
            p_variance(t, linear(10))


@given(schedules(), seeds)
def test_mean_per_eps_is_how_the_mean_moves_with_eps(schedule, seed):
    rng = np.random.default_rng(seed)
    t = int(rng.integers(1, schedule.T + 1))
    if schedule.alpha[t] == 0:
        return
    x_t, eps, h = *rng.standard_normal((2, 3, 2)), 0.5
    moved = (
        p_mean_from_eps(x_t, t, eps + h, schedule) - p_mean_from_eps(x_t, t, eps, schedule)
    ) / h
    np.testing.assert_allclose(moved, mean_per_eps(t, schedule), rtol=1e-6, atol=1e-9)


# The predictor


@each_predict
@given(preserving=preserving_schedules(), data=st.data(), seed=seeds)
def test_one_network_says_the_same_on_a_schedule_that_preserves_variance_and_on_one_that_explodes(
    predict, preserving, data, seed
):
    """At one level, log(noise/signal), x_t differs by a factor alone and the network's input not at
    all. So eps_hat must be the same."""
    exploding = Schedule(np.ones(preserving.T + 1), preserving.noise / preserving.signal)
    t = data.draw(times(preserving))
    params, x_t = unflatten(*random_mlp(np.random.default_rng(seed))), normal_values(seed, 4, 2)
    a = predictor(mlp, params, preserving, predict)(x_t, t)
    b = predictor(mlp, params, exploding, predict)(x_t / preserving.signal[t], t)
    np.testing.assert_allclose(
        a, b, rtol=0, atol=1e-9 * (1 + np.abs(a).max() + 1 / preserving.noise[t])
    )


@each_predict
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
        32
        * float(np.finfo(dtype).eps)
        * max(1, np.abs(x_0).max(), np.abs(eps).max())
        * (1 + schedule.signal[t] / schedule.noise[t])
    )
    np.testing.assert_allclose(eps_hat, eps, rtol=0, atol=rounding)

    params, x, level = given_to_the_net[0]
    assert params == {"a": 1}
    np.testing.assert_array_equal(x, network_input(x_t, t, schedule)[0])
    np.testing.assert_array_equal(level, network_input(x_t, t, schedule)[1])
    # Further inputs reach the network.
    shifted = predictor(net, {}, schedule, predict, shift=np.ones_like(x_t))(x_t, t)
    assert np.abs(shifted - eps_hat).max() > 0


@each_predict
def test_the_predictor_of_a_batch_of_t_equals_a_loop(predict):
    schedule, x_t = linear(20), normal_values(0, 4, 2)
    net = SimpleNamespace(forward=lambda params, x, level: (np.sin(3 * x) + level[:, None], None))
    predict_eps, t = predictor(net, {}, schedule, predict), np.array([1, 7, 20, 3])
    rows = [predict_eps(x_t[i : i + 1], int(t[i])) for i in range(4)]
    np.testing.assert_allclose(predict_eps(x_t, t), np.concatenate(rows), rtol=1e-13)


def test_the_predictor_refuses_other_targets_and_other_t():
    net = SimpleNamespace(forward=lambda params, x, level: (x, None))
    with pytest.raises(ValueError, match="predict must be one of eps, x_0, v, score"):
        predictor(net, {}, linear(10), "noise")
    for t in (0, 11, 1.0, True, np.array([0, 1])):
        with pytest.raises(ValueError, match="t must"):
            predictor(net, {}, linear(10))(np.ones((2, 1)), t)


class Labelled:
    """A network whose output is 3 for a row with a label and 1 for a row without."""

    NO_CLASS = -1

    @staticmethod
    def forward(params, x, level, label):
        return np.where(label == -1, 1.0, 3.0)[:, None] + 0 * x, None


def test_guidance_goes_beyond_what_the_label_adds():
    x, schedule = np.zeros((2, 3)), linear(10)
    label = np.array([0, 1])
    for w in (0.0, 0.5, 2.0):  # (1 + w) eps_cond - w eps_uncond
        eps_hat = predictor(Labelled, {}, schedule, guidance=w, label=label)(x, 4)
        np.testing.assert_allclose(eps_hat, (1 + w) * 3 - w * 1, rtol=1e-12)


def test_guidance_needs_a_label_and_takes_no_other_input():
    for inputs in ({}, {"shift": 1.0}, {"label": np.zeros(2, int), "shift": 1.0}):
        with pytest.raises(ValueError, match="guidance needs a label"):
            predictor(Labelled, {}, linear(10), guidance=1.0, **inputs)


def test_guidance_asks_the_network_once_with_every_row_twice():
    asked = []

    def forward(params, x, level, label):
        asked.append((x, level, label))
        return x, None

    net, schedule = SimpleNamespace(forward=forward, NO_CLASS=-1), linear(10)
    x_t, t, label = normal_values(0, 3, 2), np.array([1, 5, 10]), np.array([4, 0, 2])
    predictor(net, {}, schedule, guidance=2.0, label=label)(x_t, t)
    (x, level, both), x_once, level_once = *asked, *network_input(x_t, t, schedule)
    assert both.tolist() == [4, 0, 2, -1, -1, -1]
    np.testing.assert_array_equal(x, np.concatenate([x_once, x_once]))
    np.testing.assert_array_equal(level, np.concatenate([level_once, level_once]))


def random_unet(seed, classes):
    """A small U-Net in float64, every leaf random."""
    rng = np.random.default_rng(seed)
    theta, like = pack(unet.init(rng, classes=classes, width=8))
    return unflatten(theta + 0.2 * rng.standard_normal(theta.size), like)


@each_predict
@pytest.mark.parametrize("t", [7, np.array([1, 20, 5])], ids=["one t", "a batch of t"])
def test_guidance_in_one_call_equals_two_calls_to_rounding(predict, t):
    params, schedule, w = random_unet(0, classes=3), linear(20), 1.5
    x_t, label = normal_values(1, 3, 8, 8, 1), np.array([0, 2, 1])
    guided = predictor(unet, params, schedule, predict, guidance=w, label=label)(x_t, t)
    eps_cond = predictor(unet, params, schedule, predict, label=label)(x_t, t)
    eps_uncond = predictor(unet, params, schedule, predict)(x_t, t)
    assert np.abs(eps_cond - eps_uncond).max() > 0.01
    # A product of matrices with more rows may be summed in another order. The sums have some
    # hundred terms, and some ten layers add up their rounding.
    largest = (1 + 2 * w) * max(np.abs(eps_cond).max(), np.abs(eps_uncond).max())
    expected = (1 + w) * eps_cond - w * eps_uncond
    np.testing.assert_allclose(guided, expected, rtol=0, atol=1000 * EPS * largest)


def test_guidance_of_a_row_without_a_class_adds_nothing_and_both_its_labels_are_one():
    params, schedule, classes, w = random_unet(0, classes=3), linear(20), 3, 3.0
    x_t, t = normal_values(1, 2, 8, 8, 1), np.array([4, 11])
    plain = predictor(unet, params, schedule)(x_t, t)
    one, other = (
        predictor(unet, params, schedule, guidance=w, label=np.array([1, label]))(x_t, t)
        for label in (unet.NO_CLASS, classes)  # classes is the last row of the lookup table
    )
    np.testing.assert_array_equal(one, other)
    rounding = 1000 * EPS * (1 + 2 * w) * np.abs(plain).max()  # as above
    np.testing.assert_allclose(one[1], plain[1], rtol=0, atol=rounding)
    assert np.abs(one[0] - plain[0]).max() > 0.01  # the row with a class is guided


@each_predict
def test_a_state_brings_its_averaged_parameters_and_what_they_predict(predict):
    theta, like = random_mlp(np.random.default_rng(0))
    state = start(unflatten(theta, like), predict)
    state.theta += 1.0  # not these
    x_t, schedule = normal_values(1, 4, 2), linear(20)
    expected = predictor(mlp, unflatten(theta, like), schedule, predict)(x_t, 7)
    for named in (None, predict):
        np.testing.assert_array_equal(predictor(mlp, state, schedule, named)(x_t, 7), expected)
    for other in {*PREDICT, "noise"} - {predict}:
        with pytest.raises(ValueError, match=f"trained to predict '{predict}', got '{other}'"):
            predictor(mlp, state, schedule, other)


def test_parameters_alone_predict_eps_unless_it_is_said_otherwise():
    params, x_t = unflatten(*random_mlp(np.random.default_rng(0))), normal_values(1, 4, 2)
    default, eps = (predictor(mlp, params, linear(20), *p)(x_t, 7) for p in ((), ("eps",)))
    np.testing.assert_array_equal(default, eps)
