import numpy as np
import pytest
from conftest import EPS, dtypes, flow_matching, normal_values, schedules, schedules_and_times, seeds, shapes, times
from hypothesis import given
from hypothesis import strategies as st

from npdiff.forward import q_sample
from npdiff.loss import l_simple, slope, target
from npdiff.reverse import eps_from_output
from npdiff.schedule import linear

each_predict = pytest.mark.parametrize("predict", ["eps", "x_0", "v"])
each_weight = pytest.mark.parametrize("weight", ["eps", "target"])


@each_predict
@each_weight
@given(schedule=schedules(), shape=shapes, dtype=dtypes, seed=seeds, data=st.data())
def test_loss_and_gradient_are_0_at_the_target(predict, weight, schedule, shape, dtype, seed, data):
    x_0, eps = normal_values(seed, 2, *shape, dtype=dtype)
    t = np.array(data.draw(st.lists(times(schedule), min_size=shape[0], max_size=shape[0])))
    loss, grad_out = l_simple(target(x_0, t, eps, schedule, predict), x_0, t, eps, schedule, predict, weight)
    assert loss == 0 and not grad_out.any()
    assert loss.dtype == grad_out.dtype == dtype and loss.shape == () and grad_out.shape == shape


@given(schedules_and_times(), shapes, seeds)
def test_target_is_eps_or_x_0_or_v(schedule_and_t, shape, seed):
    schedule, t = schedule_and_t
    x_0, eps = normal_values(seed, 2, *shape)
    assert target(x_0, t, eps, schedule) is eps and target(x_0, t, eps, schedule, "x_0") is x_0
    v = (schedule.signal[t] * eps - schedule.noise[t] * x_0) / np.hypot(schedule.signal[t], schedule.noise[t])
    np.testing.assert_allclose(
        target(x_0, t, eps, schedule, "v"), v, rtol=0, atol=4 * EPS * (np.abs(eps).max() + schedule.noise[t] * np.abs(x_0).max())
    )


@each_predict
@given(schedule=schedules(), seed=seeds, data=st.data())
def test_l_simple_is_the_mean_square_error_of_eps(predict, schedule, seed, data):
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    t = np.array(data.draw(st.lists(times(schedule), min_size=4, max_size=4)))
    x_t = q_sample(x_0, t, eps, schedule)
    eps_hat = eps_from_output(x_t, t, out, schedule, predict)
    loss, _ = l_simple(out, x_0, t, eps, schedule, predict)
    assert loss == pytest.approx(((eps - eps_hat) ** 2).mean(), rel=1e-11)  # x_t - signal x_0 loses up to signal/noise = 1e2


@each_predict
@given(schedule=schedules(), seed=seeds, data=st.data())
def test_loss_weighted_by_target_is_the_mean_square_error_of_the_output(predict, schedule, seed, data):
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    t = np.array(data.draw(st.lists(times(schedule), min_size=4, max_size=4)))
    loss, _ = l_simple(out, x_0, t, eps, schedule, predict, weight="target")
    assert loss == pytest.approx(((out - target(x_0, t, eps, schedule, predict)) ** 2).mean(), rel=64 * EPS)


@each_predict
@each_weight
@given(schedule=schedules(), shape=shapes, seed=seeds, data=st.data())
def test_gradient_of_the_loss_is_its_slope_along_any_direction(predict, weight, schedule, shape, seed, data):
    # The loss is a parabola along any line, so the central difference with step 1 is exact but for rounding.
    x_0, eps, out, direction = normal_values(seed, 4, *shape)
    t = np.array(data.draw(st.lists(times(schedule), min_size=shape[0], max_size=shape[0])))
    _, grad_out = l_simple(out, x_0, t, eps, schedule, predict, weight)
    ahead, behind = (l_simple(out + sign * direction, x_0, t, eps, schedule, predict, weight)[0] for sign in (1, -1))
    assert (grad_out * direction).sum() == pytest.approx((ahead - behind) / 2, abs=64 * EPS * (ahead + behind))


@given(schedules(), st.data(), seeds)
def test_slope_is_how_eps_hat_follows_the_output(schedule, data, seed):
    # eps_hat is a line in the output, so a step of 1 shows the slope.
    t, x_t = data.draw(times(schedule)), normal_values(seed, 1, 1)
    for predict in ("x_0", "v"):
        rise = np.subtract(*(eps_from_output(x_t, t, np.full((1, 1), out), schedule, predict) for out in (1.0, 0.0)))
        atol = 16 * EPS * (1 + np.abs(x_t).max()) / schedule.noise[t]
        assert slope(t, schedule, predict) == pytest.approx(rise.item(), rel=16 * EPS, abs=atol)
    assert slope(t, schedule) == 1
    assert slope(np.full(3, t), schedule).shape == (3,)


@given(schedules_and_times(), seeds)
def test_one_t_for_all_is_a_batch_of_equal_t(schedule_and_t, seed):
    schedule, t = schedule_and_t
    x_0, eps, out = normal_values(seed, 3, 4, 3)
    for predict in ("eps", "x_0", "v"):
        one, many = (l_simple(out, x_0, time, eps, schedule, predict) for time in (t, np.full(4, t)))
        assert one[0] == pytest.approx(many[0], rel=16 * EPS)
        np.testing.assert_allclose(one[1], many[1], rtol=16 * EPS)


def test_loss_at_T_of_a_schedule_that_ends_without_signal_is_finite():
    x_0, eps, out = normal_values(0, 3, 4, 3)
    for predict in ("eps", "x_0", "v"):
        loss, grad_out = l_simple(out, x_0, 5, eps, flow_matching(5), predict)
        assert np.isfinite(loss) and np.isfinite(grad_out).all()


def test_loss_refuses_other_names_and_other_t():
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="predict must be one of eps, x_0, v"):
        l_simple(x, x, 1, x, linear(10), "score")
    with pytest.raises(ValueError, match='weight must be "eps" or "target"'):
        l_simple(x, x, 1, x, linear(10), "eps", "snr")
    for t in (0, 11, 1.0, True, np.array([0, 1, 2]), np.ones(2, int)):
        for predict in ("eps", "x_0", "v"):
            with pytest.raises(ValueError, match="t (must|has)"):
                l_simple(x, x, t, x, linear(10), predict)
