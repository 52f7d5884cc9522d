import math

import numpy as np
import pytest
from conftest import EPS, dtypes, normal_values, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff.optim import adam, average, clip_norm, learning_rate


def scalar_adam(gradients, lr, decay_1, decay_2, tiny):
    """Algorithm 1 of Kingma & Ba for one number, from theta = 0; its beta_1, beta_2, epsilon."""
    theta = m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = decay_1 * m + (1 - decay_1) * g
        v = decay_2 * v + (1 - decay_2) * g**2
        m_hat, v_hat = m / (1 - decay_1**t), v / (1 - decay_2**t)
        theta -= lr * m_hat / (math.sqrt(v_hat) + tiny)
        yield theta


@given(
    seeds,
    st.floats(1e-4, 0.1),
    st.floats(0, 0.99),
    st.floats(0.5, 0.9999),
    st.sampled_from([1e-8, 1e-2]),
)
def test_adam_takes_the_steps_of_its_algorithm(seed, lr, decay_1, decay_2, tiny):
    gradients = normal_values(seed, 50, 3)
    theta, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
    expected = zip(
        *(scalar_adam(g, lr, decay_1, decay_2, tiny) for g in gradients.T.tolist()), strict=True
    )
    for step, (gradient, row) in enumerate(zip(gradients, expected, strict=True), start=1):
        adam(theta, gradient, m, v, step, lr, decay_1, decay_2, tiny)
        # 1 - beta^step is rounded to EPS / (1 - beta), at most 1e4 EPS; theta is a sum of at most
        # 50 such steps.
        np.testing.assert_allclose(theta, row, rtol=0, atol=50 * lr * 1e4 * 10 * EPS)


def test_adam_has_the_defaults_of_its_paper():
    gradients = normal_values(0, 20)
    theta, m, v = np.zeros(1), np.zeros(1), np.zeros(1)
    for step, gradient in enumerate(gradients, start=1):
        adam(theta, np.array([gradient]), m, v, step, 0.01)
    *_, expected = scalar_adam(gradients.tolist(), 0.01, 0.9, 0.999, 1e-8)
    assert theta[0] == pytest.approx(expected, rel=1e-10)


@given(seeds, st.floats(1e-4, 0.1))
def test_the_first_step_of_adam_is_lr_against_the_sign_of_the_gradient(seed, lr):
    gradient = normal_values(seed, 4)
    theta, m, v = np.zeros(4), np.zeros(4), np.zeros(4)
    adam(theta, gradient, m, v, 1, lr)
    np.testing.assert_allclose(theta, -lr * gradient / (np.abs(gradient) + 1e-8), rtol=1e-10)


@given(seeds, dtypes)
def test_adam_changes_theta_m_and_v_in_place_and_keeps_the_precision(seed, dtype):
    theta, gradient = normal_values(seed, 2, 5, dtype=dtype)
    m, v, kept = np.zeros_like(theta), np.zeros_like(theta), gradient.copy()
    assert adam(theta, gradient, m, v, 1, 0.1) is None
    assert theta.dtype == m.dtype == v.dtype == dtype
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(m, 0.1 * gradient, rtol=4 * eps)
    # 1 - 0.999 is rounded to EPS.
    np.testing.assert_allclose(v, 0.001 * gradient**2, rtol=4 * eps + 1000 * EPS)
    np.testing.assert_array_equal(gradient, kept)


@given(seeds, st.floats(0.01, 100), dtypes)
def test_clip_norm_shortens_long_gradients_and_leaves_short_ones(seed, largest, dtype):
    gradient = 3 * normal_values(seed, 6, dtype=dtype)
    kept, norm = gradient.copy(), math.sqrt(float((gradient.astype(np.float64) ** 2).sum()))
    clipped = clip_norm(gradient, largest)
    assert clipped.dtype == dtype
    np.testing.assert_allclose(
        clipped,
        gradient * min(1.0, largest / norm),
        rtol=16 * float(np.finfo(dtype).eps) + 1e-12 / norm,
    )
    np.testing.assert_array_equal(gradient, kept)
    if largest > norm * 1.01:
        np.testing.assert_array_equal(clipped, gradient)
    assert not clip_norm(np.zeros(3, dtype), largest).any()


@given(st.integers(1, 2000), st.floats(1e-5, 1), st.integers(0, 200))
def test_learning_rate_rises_then_falls_along_half_a_cosine_to_0(steps, lr, warmup):
    rates = [learning_rate(step, steps, lr, warmup) for step in range(1, steps + 1)]
    for step, rate in enumerate(rates, start=1):
        rise = step / warmup if step < warmup else 1.0
        assert rate == pytest.approx(
            lr * rise * math.cos(math.pi / 2 * step / steps) ** 2, abs=8 * EPS * lr
        )
    assert max(rates) <= lr and rates[-1] == pytest.approx(0, abs=EPS * lr)
    assert learning_rate(steps + 5, steps, lr, warmup) == pytest.approx(0, abs=EPS * lr)


def test_learning_rate_starts_small_and_peaks_after_the_warm_up():
    rates = [learning_rate(step, 1000, 1.0) for step in range(1, 1001)]
    assert rates[0] == pytest.approx(0.01, rel=1e-4) and 95 <= int(np.argmax(rates)) + 1 <= 100


@given(st.integers(1, 2000), st.floats(0, 0.9))
def test_learning_rate_is_held_at_its_peak_and_then_falls_as_fast_as_the_steps_that_are_left(
    steps, hold
):
    for step in range(1, steps + 1):
        rate = learning_rate(step, steps, 1.0, warmup=0, hold=hold)
        if step / steps <= hold:
            assert rate == 1.0
        else:
            assert rate == pytest.approx(
                learning_rate(step / steps - hold, 1 - hold, 1.0, warmup=0), abs=8 * EPS
            )
    assert rate == pytest.approx(0, abs=EPS)


@given(seeds, st.floats(0.5, 0.999), dtypes)
def test_average_is_the_weighted_sum_of_the_past(seed, decay, dtype):
    thetas = normal_values(seed, 30, 3, dtype=dtype)
    ema, expected = thetas[0].copy(), thetas[0].astype(np.float64)
    for step, theta in enumerate(thetas[1:], start=1):
        assert average(ema, theta, step, decay) is None
        d = min(decay, step / (step + 9))
        expected = d * expected + (1 - d) * theta
    assert ema.dtype == dtype
    np.testing.assert_allclose(
        ema, expected, rtol=0, atol=30 * 4 * float(np.finfo(dtype).eps) * np.abs(thetas).max()
    )


def test_average_forgets_where_it_began_and_comes_to_rest_at_a_constant():
    ema, theta = np.full(2, 100.0), np.array([1.0, -2.0])
    weight = 1.0
    for step in range(1, 200):
        average(ema, theta, step, 0.9)
        weight *= min(0.9, step / (step + 9))
    np.testing.assert_allclose(ema - theta, weight * (100 - theta), rtol=1e-6, atol=1e-13)
    assert weight < 1e-9


def test_the_average_forgets_the_theta_that_it_began_with():
    # d = step / (step + 9), a tenth at the first step, until it reaches the decay.
    for step, d in ((1, 0.1), (9, 0.5), (10**6, 0.999)):
        ema, theta = np.array([2.0]), np.array([5.0])
        average(ema, theta, step)
        np.testing.assert_allclose(ema, d * 2 + (1 - d) * 5, rtol=1e-12)
