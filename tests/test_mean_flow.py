"""MeanFlow, beside average velocities that are known: of a Gaussian, and of a mixture on a line."""

from functools import partial

import numpy as np
import pytest
from conftest import (
    EPS,
    STANDARD_ERRORS,
    Counted,
    assert_within_standard_errors,
    normal_values,
    random_mlp,
    seeds,
)
from hypothesis import given
from hypothesis import strategies as st
from strict_array import asarray, no_sync

from npdiff import exact, train
from npdiff.gradcheck import directional_error
from npdiff.nn import mlp, ops
from npdiff.nn.params import flatten, map_leaves, unflatten
from npdiff.papers import flow_matching, mean_flow
from npdiff.schedule import Schedule

T = 400
STRAIGHT = Schedule(1 - np.arange(T + 1) / T, np.arange(T + 1) / T)
GAUSSIAN_STD = 0.4


def path_std(t):
    """sigma_t, of z_t = (1 - t) x_0 + t eps with x_0 ~ N(0, s^2): z_r = z_t sigma_r / sigma_t."""
    return ((1 - t) ** 2 * GAUSSIAN_STD**2 + t**2) ** 0.5


def gaussian_u(z, r, t):
    """(1 - sigma_r / sigma_t) / (t - r) z, with t - r divided out, so that it holds at r = t."""
    slope = (t + r) - (2 - t - r) * GAUSSIAN_STD**2  # (sigma_t^2 - sigma_r^2) / (t - r)
    return slope / (path_std(t) * (path_std(t) + path_std(r))) * z


class GaussianNet:
    """The average velocity of a Gaussian, as a network with the same inputs."""

    @staticmethod
    def forward(params, x, level):
        z, gap, t = x[:, :-1], x[:, -1:] / 4, (level[:, None] + 5) / 10
        return gaussian_u(z, t - gap, t), None

    @classmethod
    def jvp(cls, params, x, level, d_x, d_level):
        """By a step along the imaginary axis, where nothing cancels: right to rounding."""
        h = 1e-30
        out, _ = cls.forward(params, x + 1j * h * d_x, level + 1j * h * d_level)
        return out.real, out.imag / h, None


def times(seed, n):
    """r < t in steps of 1 / T, as integers."""
    return np.sort(np.random.default_rng(seed).choice(T + 1, (n, 2)), axis=1).T


# The identity


@given(seeds)
def test_the_average_velocity_of_a_gaussian_satisfies_the_identity(seed):
    r, t = times(seed, 8)
    r, t = r[t > 0] / T, t[t > 0]
    z = normal_values(seed, len(t), 3)
    data = exact.Gaussian(np.zeros(3), GAUSSIAN_STD**2 * np.eye(3))
    velocity = data.velocity(STRAIGHT)(z, t)
    u, du_dt, _ = mean_flow.total_derivative(GaussianNet, None, z, velocity, r, t / T)
    np.testing.assert_allclose(u, gaussian_u(z, r[:, None], t[:, None] / T), rtol=0, atol=1e-12)
    u_target = mean_flow.target(velocity, du_dt, r, t / T)
    # Rounding of numbers of size |z| / sigma_t^2, at most some 6 / 0.14.
    np.testing.assert_allclose(u_target, u, rtol=0, atol=256 * EPS * 50)


MIXTURE = exact.Mixture([0.3, 0.7], [[-1.0], [0.8]], [[[0.09]], [[0.16]]])


def mixture_flow(z, t, r):
    """z_r from z_t, integers of one row: Runge-Kutta of order 4 on the exact velocity."""
    velocity = MIXTURE.velocity(STRAIGHT)
    for k in range(t, r, -2):
        h = -1 / T
        slope_1 = velocity(z, k)
        slope_2 = velocity(z + h * slope_1, k - 1)
        slope_3 = velocity(z + h * slope_2, k - 1)
        slope_4 = velocity(z + 2 * h * slope_3, k - 2)
        z = z + h / 3 * (slope_1 + 2 * slope_2 + 2 * slope_3 + slope_4)
    return z


def mixture_u(z, r, t):
    """1/(t - r) int_r^t v dtau along the path, which is the displacement over the time."""
    return (z - mixture_flow(z, t, r)) / ((t - r) / T)


@pytest.mark.parametrize(("r", "t"), [(2, 360), (80, 280), (200, 384), (120, 136)])
def test_the_average_velocity_of_a_mixture_satisfies_the_identity(r, t):
    # du/dt by central differences, which err by h^2 times a third derivative: twice the step, four
    # times the residual, and so none in the limit.
    z = np.linspace(-2, 2, 21)[:, None] * STRAIGHT.std[t]
    velocity = MIXTURE.velocity(STRAIGHT)(z, t)
    u, residuals = mixture_u(z, r, t), []
    for steps in (2, 4, 8):
        h = steps / T
        ahead = mixture_u(z + h * velocity, r, t + steps)
        behind = mixture_u(z - h * velocity, r, t - steps)
        u_target = mean_flow.target(
            velocity, (ahead - behind) / (2 * h), np.full(21, r / T), np.full(21, t / T)
        )
        residuals.append(np.abs(u_target - u).mean())
    orders = np.log2(np.divide(residuals[1:], residuals[:-1]))
    assert residuals[0] < 1e-4 and np.all(np.abs(orders - 2) < 0.1)


def gaussian_batch(seed, n, r, t):
    """eps and z_t for x_0 ~ N(0, s^2), at the same r and t in each row."""
    x_0, eps = GAUSSIAN_STD * normal_values(seed, n, 1), normal_values(seed + 1, n, 1)
    r, t = np.full(n, r), np.full(n, t)
    return r, t, *mean_flow.line(x_0, eps, t)


@pytest.mark.parametrize(("r", "t"), [(0.0, 1.0), (0.1, 0.6), (0.5, 0.9), (0.4, 0.4)])
def test_the_target_from_one_x_0_and_one_eps_is_u_on_average(r, t):
    # Given z_t, u_target has the mean u: so their difference has the mean 0, times z_t too.
    r, t, z_t, velocity = gaussian_batch(0, 100_000, r, t)
    u, du_dt, _ = mean_flow.total_derivative(GaussianNet, None, z_t, velocity, r, t)
    error = u - mean_flow.target(velocity, du_dt, r, t)
    assert_within_standard_errors(error, 0.0)
    assert_within_standard_errors(error * z_t, 0.0)


@pytest.mark.parametrize(("r", "t"), [(0.0, 1.0), (0.1, 0.6)])
def test_the_velocity_at_z_t_is_not_the_average_and_the_target_says_so(r, t):
    class Instantaneous(GaussianNet):
        @staticmethod
        def forward(params, x, level):
            z, time = x[:, :-1], (level[:, None] + 5) / 10
            return gaussian_u(z, time, time), None

    r, t, z_t, velocity = gaussian_batch(0, 100_000, r, t)
    u, du_dt, _ = mean_flow.total_derivative(Instantaneous, None, z_t, velocity, r, t)
    product = (u - mean_flow.target(velocity, du_dt, r, t)) * z_t
    standard_error = product.std() / np.sqrt(len(product))
    assert abs(product.mean()) > 10 * STANDARD_ERRORS * standard_error


# Training


def learner(seed, dim=2, dtype=np.float64, draw_times=mean_flow.draw_times, steps=5, batch=16):
    """A State of random parameters, and `learn` on points of a normal distribution."""
    theta, like = random_mlp(np.random.default_rng(seed), dim=dim + 1, outputs=dim)
    state = train.start(unflatten(theta.astype(dtype), like))

    def sample(n, rng):
        return 0.5 * rng.standard_normal((n, dim)).astype(dtype)

    rng = np.random.default_rng([seed, 1])
    return state, mean_flow.learn(mlp, state, sample, rng, steps, batch, draw_times)


def first_step(seed, **settings):
    """The parameters before the first step, as theta and as a tree, and the step."""
    state, steps = learner(seed, **settings)
    theta, params = state.theta.copy(), map_leaves(np.copy, state.params)
    return theta, params, next(steps)


@given(seeds)
def test_the_gradient_is_that_of_the_loss_with_the_target_held_fixed(seed):
    theta, params, step = first_step(seed)
    z_t, velocity = mean_flow.line(step.x_0, step.eps, step.t)

    def loss(theta):
        u = mean_flow.predictor(mlp, unflatten(theta, params))(z_t, step.r, step.t)
        return ((u - step.u_target) ** 2).mean()

    rng = np.random.default_rng([seed, 2])
    assert step.loss == pytest.approx(loss(theta), rel=1e-12)
    assert directional_error(loss, theta, step.grad, rng) < 1e-5  # as in test_mlp


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_target_that_moves_along_would_be_another(seed):
    theta, params, step = first_step(seed)
    z_t, velocity = mean_flow.line(step.x_0, step.eps, step.t)
    r, t = step.r, step.t

    def loss(theta):
        tree = unflatten(theta, params)
        u, du_dt, _ = mean_flow.total_derivative(mlp, tree, z_t, velocity, r, t)
        return ((u - mean_flow.target(velocity, du_dt, r, t)) ** 2).mean()

    rng = np.random.default_rng([seed, 2])
    assert directional_error(loss, theta, step.grad, rng) > 1e-2


@given(seeds)
def test_the_target_of_training_holds_the_derivative_along_the_line_to_eps(seed):
    _, params, step = first_step(seed)
    u, h = mean_flow.predictor(mlp, params), 1e-5
    inner = (step.t > h) & (step.t < 1 - h) & (step.r < step.t - h)
    z_t, velocity = mean_flow.line(step.x_0, step.eps, step.t)
    np.testing.assert_array_equal(velocity, step.eps - step.x_0)
    ahead, behind = (
        u(z_t[inner] + k * velocity[inner], step.r[inner], step.t[inner] + k) for k in (h, -h)
    )
    gap = (step.t - step.r)[inner, None]
    expected = velocity[inner] - gap * (ahead - behind) / (2 * h)
    # The difference errs by h^2 = 1e-10 times a third derivative: in t, whose waves have the
    # frequencies 10 f <= 16, up to some 4096 times the size of u.
    np.testing.assert_allclose(step.u_target[inner], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(step.u_target[step.r == step.t], velocity[step.r == step.t])


@given(seeds)
def test_where_r_is_t_the_loss_is_that_of_flow_matching(seed):
    def same(batch, rng):
        t = rng.integers(1, T + 1, size=batch) / T
        return t, t

    _, params, step = first_step(seed, draw_times=same)
    t = np.rint(step.t * T).astype(int)
    z_t, velocity = mean_flow.line(step.x_0, step.eps, step.t)
    s = STRAIGHT.at(t, z_t)
    v = s.std * (step.u + (s.signal - s.noise) / s.std**2 * z_t)  # the v whose velocity is u
    losses, _ = flow_matching.flow_matching_loss(v, step.x_0, t, step.eps, STRAIGHT)
    np.testing.assert_allclose(step.losses, losses, rtol=1e-10)
    np.testing.assert_allclose(losses, ((step.u - velocity) ** 2).mean(axis=1), rtol=1e-10)
    out, cache = mlp.forward(params, *mean_flow.network_input(z_t, step.t, step.t))
    _, grads = mlp.backward(params, cache, 2 / out.size * (out - velocity))
    np.testing.assert_array_equal(step.grad, flatten(grads))


def test_draw_times_gives_the_smaller_and_the_larger_of_two_uniform_numbers():
    n, equal = 100_000, 0.3
    r, t = mean_flow.draw_times(n, np.random.default_rng(0), equal)
    assert np.all((r >= 0) & (r <= t) & (t < 1))
    assert_within_standard_errors((r == t).astype(float), equal)
    apart = r < t
    for a in (0.2, 0.5, 0.8):
        assert_within_standard_errors((t <= a).astype(float), a**2)
        assert_within_standard_errors((r[apart] > a).astype(float), (1 - a) ** 2)
    together = mean_flow.draw_times(100, np.random.default_rng(0), 1.0)
    np.testing.assert_array_equal(*together)


def test_learn_takes_the_steps_that_are_left_and_repeats_itself():
    runs = []
    for _ in range(2):
        state, steps = learner(3)
        runs.append([next(steps), next(steps)])
        assert state.step == 2  # left here, and taken up by another loop
        more = mean_flow.learn(
            mlp, state, lambda n, rng: rng.standard_normal((n, 2)), np.random.default_rng(9), 5
        )
        runs[-1] += more
        assert [step.step for step in runs[-1]] == [1, 2, 3, 4, 5] and state.step == 5
    for one, two in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.grad, two.grad)


def test_learn_keeps_precision_and_does_not_wait_for_the_device():
    _, _, step = first_step(0, dtype=np.float32)
    for name in ("x_0", "eps", "u", "u_target", "losses", "grad"):
        assert getattr(step, name).dtype == np.float32, name

    theta, like = random_mlp(np.random.default_rng(0), dim=3, outputs=2)
    state = train.start(map_leaves(asarray, unflatten(theta.astype(np.float32), like)))
    sample = lambda n, rng: 0.5 * rng.standard_normal((n, 2)).astype(np.float32)  # noqa: E731
    with no_sync():
        moved = next(mean_flow.learn(mlp, state, sample, np.random.default_rng([0, 1]), 5, 16))
    np.testing.assert_array_equal(moved.grad.get(), step.grad)


def test_one_step_follows_the_flow_map_and_one_step_of_the_velocity_falls_to_the_mean():
    # On N(0, 0.4^2) the exact map is z -> 0.4 z, and the velocity at t = 1 is z - E[x_0] = z, so
    # its step errs by 0.4. Training is short: over three seeds the root mean square errors were
    # 0.16 to 0.17, and 0.43 to 0.45.
    rng = np.random.default_rng(0)
    state = train.start(mlp.init(rng, dim=2, hidden=16, layers=1, outputs=1))
    data = exact.Gaussian(np.zeros(1), GAUSSIAN_STD**2 * np.eye(1))
    update = partial(train.update, lr=1e-2)
    for _ in mean_flow.learn(mlp, state, data.sample, rng, 1000, 256, update=update):
        pass
    u, z_1 = mean_flow.predictor(mlp, state), normal_values(1, 2000, 1, dtype=np.float32)
    (jump,) = mean_flow.sample(u, z_1)
    euler = z_1 - u(z_1, 1.0, 1.0)
    off = np.sqrt(((jump.z_r - GAUSSIAN_STD * z_1) ** 2).mean())
    off_euler = np.sqrt(((euler - GAUSSIAN_STD * z_1) ** 2).mean())
    assert off < off_euler / 2


# Sampling


@given(seeds, st.lists(st.floats(0.01, 0.99), max_size=5, unique=True))
def test_with_the_true_u_all_choices_of_times_lead_to_the_same_end(seed, between):
    z_1 = normal_values(seed, 6, 2)
    u = mean_flow.predictor(GaussianNet, {})
    *_, last = mean_flow.sample(u, z_1, (1.0, *sorted(between, reverse=True), 0.0))
    # z_0 = s z_1; a step errs by the rounding of |z| / sigma, at most |z_1| / 0.14.
    atol = 64 * EPS * 6 / 0.14 * np.abs(z_1).max()
    np.testing.assert_allclose(last.z_r, GAUSSIAN_STD * z_1, rtol=0, atol=atol)


def test_sample_yields_every_step_and_takes_one_by_default():
    u, z_1 = Counted(mean_flow.predictor(GaussianNet, {})), normal_values(0, 4, 2)
    assert [(jump.t, jump.r) for jump in mean_flow.sample(u, z_1)] == [(1.0, 0.0)]
    assert u.calls == 1
    z = z_1
    for jump, (t, r) in zip(
        mean_flow.sample(u, z_1, (1.0, 0.7, 0.2, 0.0)),
        [(1, 0.7), (0.7, 0.2), (0.2, 0)],
        strict=True,
    ):
        assert (jump.t, jump.r) == (t, r)
        np.testing.assert_array_equal(jump.z_t, z)
        np.testing.assert_array_equal(jump.z_r, jump.z_t - (t - r) * jump.u)
        z = jump.z_r
    assert u.calls == 4


def test_a_network_is_shown_its_inputs_within_the_range_of_its_level():
    z = normal_values(0, 3, 2)
    x, level = mean_flow.network_input(z, np.array([0.0, 0.0, 0.25]), np.array([0.0, 1.0, 0.5]))
    np.testing.assert_array_equal(x, np.c_[z, [0, 4, 1]])
    np.testing.assert_array_equal(level, [-5, 5, 0])
    assert level.min() > ops.LEVEL_MIN and level.max() < ops.LEVEL_MAX
    u = mean_flow.predictor(mlp, mlp.init(np.random.default_rng(0), dim=3, outputs=2))
    one = u(z.astype(np.float32), 0.25, 0.5)
    assert one.dtype == np.float32 and one.shape == (3, 2)


def test_a_state_brings_its_averaged_parameters():
    state, steps = learner(0)
    for _ in steps:
        pass
    z = normal_values(0, 3, 2)
    of_state = mean_flow.predictor(mlp, state)(z, 0.0, 1.0)
    np.testing.assert_array_equal(of_state, mean_flow.predictor(mlp, state.ema_params)(z, 0.0, 1.0))
    assert (of_state != mean_flow.predictor(mlp, state.params)(z, 0.0, 1.0)).any()


@pytest.mark.parametrize(("r", "t"), [(0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (np.nan, 0.5)])
def test_times_out_of_order_or_out_of_range_are_refused(r, t):
    z = np.zeros((3, 2))
    with pytest.raises(ValueError, match="0 <= r <= t <= 1"):
        mean_flow.network_input(z, r, t)
    with pytest.raises(ValueError, match="0 <= r <= t <= 1"):
        mean_flow.network_input(z, np.full(3, r), np.full(3, t))
