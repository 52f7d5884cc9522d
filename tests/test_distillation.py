"""Progressive distillation: DDIM as a rotation, and a student that takes two steps in one."""

from functools import partial

import numpy as np
import pytest
from conftest import EPS, assert_a_walk, random_mlp, seeds
from hypothesis import given
from hypothesis import strategies as st

from npdiff import exact, train
from npdiff.forward import q_sample, v_from_eps
from npdiff.gradcheck import directional_error
from npdiff.nn import mlp
from npdiff.nn.params import unflatten
from npdiff.output import network_input
from npdiff.papers import distillation as pd
from npdiff.reverse import predictor

MIXTURE = exact.Mixture(
    [0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.1 * np.eye(2), [[0.3, 0.1], [0.1, 0.2]]]
)
RNG = np.random.default_rng(0)


def end(steps):
    *_, last = steps
    return last.x_prev


@given(st.integers(1, 100))
def test_the_angular_schedule_keeps_the_variance_and_ends_in_pure_noise(T):
    schedule = pd.angular(T)
    np.testing.assert_allclose(schedule.std, 1, rtol=4 * EPS)
    assert schedule.signal[T] == 0 and schedule.noise[T] == 1
    angle = np.arctan2(schedule.noise, schedule.signal)
    np.testing.assert_allclose(np.diff(angle), np.pi / 2 / T, atol=4 * EPS)


@given(st.integers(2, 20), seeds)
def test_a_step_of_ddim_is_a_rotation(T, seed):
    # x_{t-1} = signal_{t-1} x_0_hat + noise_{t-1} eps_hat, eq. (12) of Song et al. 2021
    schedule, x_T = pd.angular(T), np.random.default_rng(seed).standard_normal((5, 2))
    steps = list(pd.ddim(pd.exact_v(MIXTURE, schedule), x_T, schedule))
    for step in steps:
        s = schedule.at(step.t, step.x_t)
        expected = s.signal_prev * step.x_0_hat + s.noise_prev * step.eps_hat
        np.testing.assert_allclose(step.x_prev, expected, atol=100 * EPS)
    assert_a_walk(steps, x_T, schedule)


def test_the_best_v_is_that_of_the_best_eps_and_at_pure_noise_minus_the_mean():
    schedule, x_t = pd.angular(10), RNG.standard_normal((6, 2))
    predict_v, predict_eps = pd.exact_v(MIXTURE, schedule), MIXTURE.predictor(schedule)
    for t in (1, 5, 9):
        by_eps = v_from_eps(x_t, t, predict_eps(x_t, t), schedule)
        np.testing.assert_allclose(predict_v(x_t, t), by_eps, atol=1e-12)
    mean = MIXTURE.weights @ MIXTURE.means
    np.testing.assert_allclose(predict_v(x_t, 10), -mean + 0 * x_t, atol=20 * EPS)


def test_a_networks_v_is_that_of_its_eps_hat():
    theta, like = random_mlp(RNG)
    schedule, x_t, params = pd.angular(10), RNG.standard_normal((6, 2)), unflatten(theta, like)
    predict_v = pd.predictor(mlp, params, schedule)
    for t in (1, 5, 9):
        eps_hat = predictor(mlp, params, schedule, "v")(x_t, t)
        by_eps = v_from_eps(x_t, t, eps_hat, schedule)
        np.testing.assert_allclose(predict_v(x_t, t), by_eps, atol=1e-12)
    assert np.isfinite(predict_v(x_t, 10)).all()
    with pytest.raises(ValueError, match="trained to predict 'eps'"):
        pd.predictor(mlp, train.start(params, "eps"), schedule)


@given(st.integers(1, 12), seeds)
def test_the_target_leads_where_two_steps_of_the_teacher_lead(T, seed):
    rng = np.random.default_rng(seed)
    coarse, fine, x_t = pd.angular(T), pd.angular(2 * T), rng.standard_normal((T, 2))
    teacher, t = pd.exact_v(MIXTURE, fine), np.arange(1, T + 1)
    v = pd.two_steps_in_one(teacher, x_t, t, T)
    for i in range(T):
        x = x_t[[i]]
        for k in (2 * (i + 1), 2 * (i + 1) - 1):
            s = fine.at(k, x)
            eps_hat = s.noise * x + s.signal * teacher(x, k)
            x = s.signal_prev * (s.signal * x - s.noise * teacher(x, k)) + s.noise_prev * eps_hat
        one_step = pd.rotate(x_t[[i]], v[[i]], np.pi / 2 / T)
        np.testing.assert_allclose(one_step, x, atol=200 * EPS * max(1, np.abs(v[i]).max()))
        # The paper's target, as an x_0: (x'' - n''/n x_t) / (s'' - n''/n s)
        s = coarse.at(i + 1, x)
        ratio = s.noise_prev / s.noise
        x_0 = (x - ratio * x_t[[i]]) / (s.signal_prev - ratio * s.signal)
        by_v = s.signal * x_t[[i]] - s.noise * v[[i]]
        np.testing.assert_allclose(by_v, x_0, atol=2000 * EPS * T * max(1, np.abs(v[i]).max()))


def test_a_perfect_student_of_three_stages_takes_eight_steps_in_one():
    x_T = RNG.standard_normal((30, 2))
    teacher = pd.exact_v(MIXTURE, pd.angular(8))
    expected = end(pd.ddim(teacher, x_T, pd.angular(8)))
    for T in (4, 2, 1):
        teacher = partial(
            lambda teacher, T, x, t: pd.two_steps_in_one(teacher, x, t, T), teacher, T
        )
        found = end(pd.ddim(teacher, x_T, pd.angular(T)))
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_in_many_steps_ddim_is_the_flow_map_of_a_gaussian():
    m, s, x_T = 0.5, 0.6, np.linspace(-2, 2, 9)[:, None]
    data, errors = exact.Gaussian([m], [[s**2]]), []
    for T in (100, 200):
        schedule = pd.angular(T)
        errors.append(np.abs(end(pd.ddim(pd.exact_v(data, schedule), x_T, schedule)) - m - s * x_T))
    assert errors[1].max() < 0.02 and errors[0].max() / errors[1].max() == pytest.approx(2, abs=0.1)


def test_the_gradient_of_a_stage():
    theta, like = random_mlp(RNG)
    T, x_0, eps, v = 6, *RNG.standard_normal((3, 9, 2))
    schedule, t = pd.angular(T), RNG.integers(1, T + 1, size=9)

    def loss(theta):
        x, level = network_input(q_sample(x_0, t, eps, schedule), t, schedule)
        out, _ = mlp.forward(unflatten(theta, like), x, level)
        return ((out - v) ** 2).mean()

    objective = partial(pd.squared_error, target=v)
    losses, grad = train.gradient(
        mlp, unflatten(theta, like), x_0, t, eps, schedule, "v", objective
    )
    assert losses.mean() == pytest.approx(loss(theta), rel=1e-12)
    assert directional_error(loss, theta, grad, RNG) < 1e-5


def test_a_student_learns_its_teachers_two_steps():
    rng, data = np.random.default_rng(0), exact.Gaussian([0.0, 0.0], [[0.09, 0.0], [0.0, 1.44]])
    state = train.start(mlp.init(rng, hidden=32, layers=2), predict="v")
    teacher = pd.exact_v(data, pd.angular(2))
    update = partial(train.update, lr=1e-2)
    steps = list(pd.distil(mlp, state, teacher, data.sample, 1, rng, 300, 128, update))
    assert state.step == 300 and steps[-1].loss < 0.01 * steps[0].loss
    x_T = rng.standard_normal((500, 2))
    expected = end(pd.ddim(teacher, x_T, pd.angular(2)))
    one = pd.angular(1)
    found = end(pd.ddim(pd.predictor(mlp, state, one), x_T.astype(np.float32), one))
    assert ((found - expected) ** 2).mean() < 0.01 * (expected**2).mean()
    assert all(set(step.t) == {1} for step in steps)
