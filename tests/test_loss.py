import numpy as np
import pytest
from conftest import (
    EPS,
    dtypes,
    flow_matching,
    normal_values,
    schedules,
    schedules_and_times,
    seeds,
    shapes,
    times,
)
from hypothesis import given
from hypothesis import strategies as st

from npdiff.forward import q_sample
from npdiff.loss import l_simple, l_target, row_mean
from npdiff.output import PREDICT, eps_from_output, target
from npdiff.schedule import linear

each_predict = pytest.mark.parametrize("predict", PREDICT)
each_objective = pytest.mark.parametrize("objective", [l_simple, l_target])


def drawn_t(data, schedule, batch):
    """A t for each row, any of 1..T."""
    return np.array(data.draw(st.lists(times(schedule), min_size=batch, max_size=batch)))


@each_predict
@each_objective
@given(schedule=schedules(), shape=shapes, dtype=dtypes, seed=seeds, data=st.data())
def test_loss_and_gradient_are_0_at_the_target(
    predict, objective, schedule, shape, dtype, seed, data
):
    x_0, eps = normal_values(seed, 2, *shape, dtype=dtype)
    t = drawn_t(data, schedule, shape[0])
    at_target = target(x_0, t, eps, schedule, predict)
    loss, grad_out = objective(at_target, x_0, t, eps, schedule, predict)
    assert not loss.any() and not grad_out.any()
    assert loss.dtype == grad_out.dtype == dtype
    assert loss.shape == shape[:1] and grad_out.shape == shape


@each_predict
@given(schedule=schedules(), seed=seeds, data=st.data())
def test_l_simple_is_each_rows_mean_square_error_of_eps(predict, schedule, seed, data):
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    t = drawn_t(data, schedule, 4)
    x_t = q_sample(x_0, t, eps, schedule)
    eps_hat = eps_from_output(x_t, t, out, schedule, predict)
    loss, _ = l_simple(out, x_0, t, eps, schedule, predict)
    # x_t - signal x_0 loses up to signal/noise = 1e2
    assert loss == pytest.approx(((eps - eps_hat) ** 2).mean(axis=1), rel=1e-11)


@each_predict
@given(schedule=schedules(), seed=seeds, data=st.data())
def test_l_target_is_each_rows_mean_square_error_of_the_output(predict, schedule, seed, data):
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    t = drawn_t(data, schedule, 4)
    loss, _ = l_target(out, x_0, t, eps, schedule, predict)
    error = out - target(x_0, t, eps, schedule, predict)
    assert loss == pytest.approx((error**2).mean(axis=1), rel=64 * EPS)


@each_predict
@each_objective
@given(schedule=schedules(), shape=shapes, seed=seeds, data=st.data())
def test_grad_out_is_the_gradient_of_each_rows_loss(
    predict, objective, schedule, shape, seed, data
):
    # The loss is a parabola along any line, so a central difference with step 1 is exact but for
    # rounding. It is taken for each row: no row's gradient is divided by the size of the batch.
    x_0, eps, out, direction = normal_values(seed, 4, *shape)
    t = drawn_t(data, schedule, shape[0])
    _, grad_out = objective(out, x_0, t, eps, schedule, predict)
    ahead, behind = (
        objective(out + sign * direction, x_0, t, eps, schedule, predict)[0] for sign in (1, -1)
    )
    along = (grad_out * direction).reshape(shape[0], -1).sum(axis=1)
    assert (np.abs(along - (ahead - behind) / 2) <= 64 * EPS * (ahead + behind)).all()


@each_predict
@each_objective
@given(schedule=schedules(), seed=seeds, data=st.data())
def test_a_rows_loss_and_gradient_do_not_depend_on_the_other_rows(
    predict, objective, schedule, seed, data
):
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    t = drawn_t(data, schedule, 4)
    loss, grad_out = objective(out, x_0, t, eps, schedule, predict)
    for i in range(4):
        row = slice(i, i + 1)
        loss_i, grad_i = objective(out[row], x_0[row], t[row], eps[row], schedule, predict)
        np.testing.assert_allclose(loss[row], loss_i, rtol=16 * EPS)
        np.testing.assert_allclose(grad_out[row], grad_i, rtol=16 * EPS)


@given(schedules_and_times(), seeds)
def test_one_t_for_all_is_a_batch_of_equal_t(schedule_and_t, seed):
    schedule, t = schedule_and_t
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    for predict in PREDICT:
        for objective in (l_simple, l_target):
            one, many = (
                objective(out, x_0, time, eps, schedule, predict) for time in (t, np.full(4, t))
            )
            np.testing.assert_allclose(one[0], many[0], rtol=16 * EPS)
            np.testing.assert_allclose(one[1], many[1], rtol=16 * EPS)


@given(schedules(), seeds, st.data())
def test_the_two_objectives_are_one_for_eps_and_for_the_score(schedule, seed, data):
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    t = drawn_t(data, schedule, 4)
    for predict in ("eps", "score"):
        results = (f(out, x_0, t, eps, schedule, predict) for f in (l_simple, l_target))
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)


@given(schedules(), seeds, st.data())
def test_the_score_has_the_loss_of_eps_and_the_opposite_gradient(schedule, seed, data):
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    t = drawn_t(data, schedule, 4)
    loss, grad_out = l_simple(out, x_0, t, eps, schedule, "eps")
    loss_score, grad_score = l_simple(-out, x_0, t, eps, schedule, "score")
    np.testing.assert_array_equal(loss_score, loss)
    np.testing.assert_array_equal(grad_score, -grad_out)


def test_loss_at_T_of_a_schedule_that_ends_without_signal_is_finite():
    x_0, eps, out = normal_values(0, 3, 4, 3)
    for predict in PREDICT:
        for objective in (l_simple, l_target):
            loss, grad_out = objective(out, x_0, 5, eps, flow_matching(5), predict)
            assert np.isfinite(loss).all() and np.isfinite(grad_out).all()


@each_objective
def test_an_objective_refuses_other_names_and_other_t(objective):
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="predict must be one of eps, x_0, v, score"):
        objective(x, x, 1, x, linear(10), "noise")
    for t in (0, 11, 1.0, True, np.array([0, 1, 2]), np.ones(2, int)):
        for predict in PREDICT:
            with pytest.raises(ValueError, match="t (must|has)"):
                objective(x, x, t, x, linear(10), predict)


@given(shapes, seeds)
def test_row_mean_is_the_mean_over_all_but_the_first_axis(shape, seed):
    x = normal_values(seed, *shape)
    assert row_mean(x).shape == shape[:1]
    np.testing.assert_allclose(row_mean(x), [row.mean() for row in x], rtol=0, atol=8 * EPS * 10)
