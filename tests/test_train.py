import copy
import inspect
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import EPS_32, normal_values

from npdiff import optim
from npdiff.exact import Gaussian
from npdiff.forward import q_sample, v_from_eps, x_0_from_eps
from npdiff.gradcheck import directional_error
from npdiff.loss import l_simple, l_target
from npdiff.nn import mlp
from npdiff.nn.params import flatten, leaves, unflatten
from npdiff.output import PREDICT, network_input
from npdiff.schedule import linear
from npdiff.train import TrainStep, early, gradient, start, train, uniform, update

SCHEDULE = linear(50, 2e-3, 0.25)
DATA = Gaussian([0.0, 0.0], [[0.25, 0.0], [0.0, 0.25]])

each_predict = pytest.mark.parametrize("predict", PREDICT)
each_objective = pytest.mark.parametrize("objective", [l_simple, l_target])


def new_state(seed=0, hidden=16, layers=1, predict="eps"):
    return start(mlp.init(np.random.default_rng(seed), hidden=hidden, layers=layers), predict)


def run(state, rng, until, net=mlp, **options):
    """The steps up to `until` of a run of 30."""
    options = {"steps": 30, "batch": 16, **options}
    taken = []
    for step in train(net, state, DATA.sample, SCHEDULE, rng, **options):
        taken.append(step)
        if step.step == until:
            break
    return taken


def copied(state):
    """A state like the one given, as a checkpoint would bring it back."""
    fresh = start(state.params, state.predict)
    for name in ("theta", "ema", "m", "v"):
        getattr(fresh, name)[:] = getattr(state, name)
    fresh.step = state.step
    return fresh


def assert_states_equal(one, two):
    for name in ("theta", "ema", "m", "v"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert one.step == two.step and one.predict == two.predict


def test_start_copies_the_parameters_and_shares_theta_with_the_tree():
    params = mlp.init(np.random.default_rng(0), hidden=4, layers=1)
    state = start(params)
    for theta, tree in ((state.theta, state.params), (state.ema, state.ema_params)):
        np.testing.assert_array_equal(theta, flatten(params))
        assert all(np.shares_memory(leaf, theta) for leaf in leaves(tree))
    assert not any(np.shares_memory(leaf, state.theta) for leaf in [*leaves(params), state.ema])
    assert not state.m.any() and not state.v.any() and state.step == 0


def test_start_records_what_the_network_predicts_and_refuses_another_name():
    params = mlp.init(np.random.default_rng(0), hidden=4, layers=1)
    assert start(params).predict == "eps"
    assert [start(params, predict).predict for predict in PREDICT] == list(PREDICT)
    with pytest.raises(ValueError, match="predict must be one of eps, x_0, v, score"):
        start(params, "noise")


def weighted(batch, T, rng):
    """A t for each row, and a weight as importance sampling would give it."""
    t = early(batch, T, rng)
    return t, 2 * np.sqrt(t / T)


# A step of training


@each_predict
@each_objective
@pytest.mark.parametrize("draw_t", [uniform, early, weighted])
def test_a_step_is_algorithm_1(predict, objective, draw_t):
    # The whole step, written out a second time: what is yielded belongs together, and theta
    # follows from it by Adam.
    state, rng, steps = new_state(predict=predict), np.random.default_rng(1), 5
    theta, ema, m, v = (getattr(state, name).copy() for name in ("theta", "ema", "m", "v"))
    settings = {"lr": 0.01, "hold": 0.4, "clip": 0.2, "decay_2": 0.9, "ema_decay": 0.2}
    options = {"objective": objective, "draw_t": draw_t, "update": partial(update, **settings)}
    run = train(mlp, state, DATA.sample, SCHEDULE, rng, steps, batch=8, **options)
    for number, step in enumerate(run, start=1):
        assert step.step == state.step == number
        assert step.x_0.shape == step.eps.shape == (8, 2) and step.t.shape == (8,)
        weight = 2 * np.sqrt(step.t / SCHEDULE.T) if draw_t is weighted else np.ones(8)
        weight = (weight / 8).astype(np.float32)  # 8 divides without rounding
        params = unflatten(theta, state.params)  # theta of before the step
        x_t = q_sample(step.x_0, step.t, step.eps, SCHEDULE)
        out, cache = mlp.forward(params, *network_input(x_t, step.t, SCHEDULE))
        losses, grad_out = objective(out, step.x_0, step.t, step.eps, SCHEDULE, predict)
        np.testing.assert_array_equal(step.losses, losses)
        assert step.loss == (weight * losses).sum()
        _, grads = mlp.backward(params, cache, grad_out * weight[:, None])
        np.testing.assert_array_equal(step.grad, flatten(grads))
        rate = optim.learning_rate(number, steps, 0.01, hold=0.4)
        optim.adam(theta, optim.clip_norm(step.grad, 0.2), m, v, number, rate, decay_2=0.9)
        optim.average(ema, theta, number, 0.2)
        for name, expected in (("theta", theta), ("ema", ema), ("m", m), ("v", v)):
            np.testing.assert_array_equal(getattr(state, name), expected, err_msg=name)
    assert number == 5


def float64_case(seed=5, batch=7):
    """A network in float64 with random parameters, as theta and a tree; and a batch."""
    rng, like = np.random.default_rng(seed), mlp.init(np.random.default_rng(0), hidden=6, layers=2)
    theta = 0.5 * rng.standard_normal(flatten(like).size)
    x_0, eps = rng.standard_normal((2, batch, 2))
    return theta, like, (x_0, rng.integers(1, SCHEDULE.T + 1, batch), eps, SCHEDULE), rng


@each_predict
@each_objective
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_the_slope_of_the_weighted_mean_of_the_losses(predict, objective, weighted):
    # Central differences of step 1e-5 in float64: see test_ops.
    theta, like, batch, rng = float64_case()
    weight = rng.uniform(0.2, 3, 7) if weighted else None

    def of(theta):
        losses, grad = gradient(
            mlp, unflatten(theta, like), *batch, predict, objective=objective, weight=weight
        )
        return (losses if weight is None else weight * losses).mean(), grad

    assert directional_error(lambda theta: of(theta)[0], theta, of(theta)[1], rng) < 1e-5


@each_predict
@each_objective
def test_the_gradient_of_a_batch_is_the_weighted_mean_of_its_rows_gradients(predict, objective):
    theta, like, (x_0, t, eps, _), rng = float64_case()
    params, weight = unflatten(theta, like), rng.uniform(0.2, 3, 7)
    losses, grad = gradient(mlp, params, x_0, t, eps, SCHEDULE, predict, objective, weight)
    expected = np.zeros_like(grad)
    for i in range(7):
        row = slice(i, i + 1)
        loss, grad_i = gradient(
            mlp, params, x_0[row], t[row], eps[row], SCHEDULE, predict, objective
        )
        assert losses[i] == pytest.approx(loss.item(), rel=1e-12)
        expected += weight[i] / 7 * grad_i
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-13 * np.abs(grad).max())


def test_importance_sampling_with_its_weight_has_the_gradient_of_uniform_t_for_its_mean():
    # All t at once, each with its probability: the mean over what draw_t may draw is a sum.
    theta, like, _, rng = float64_case()
    params, T = unflatten(theta, like), SCHEDULE.T
    t, p = np.arange(1, T + 1), rng.dirichlet(np.ones(T) * 3)
    x_0, eps = rng.standard_normal((2, T, 2))
    _, expected = gradient(mlp, params, x_0, t, eps, SCHEDULE)
    mean = np.zeros_like(expected)
    for i in range(T):
        row, weight = slice(i, i + 1), np.array([1 / (T * p[i])])
        _, grad = gradient(mlp, params, x_0[row], t[row], eps[row], SCHEDULE, weight=weight)
        mean += p[i] * grad
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_an_objective_is_given_the_output_and_its_gradient_is_divided_by_the_batch_once():
    theta, like, batch, rng = float64_case()
    params, (x_0, t, eps, _), seen = unflatten(theta, like), batch, []
    loss, grad_out = rng.standard_normal(7), rng.standard_normal((7, 2))

    def objective(*arguments):
        seen.append(arguments)
        return loss, grad_out

    losses, grad = gradient(mlp, params, *batch, "v", objective)
    x, level = network_input(q_sample(x_0, t, eps, SCHEDULE), t, SCHEDULE)
    out, cache = mlp.forward(params, x, level)
    ((seen_out, *rest),) = seen
    np.testing.assert_array_equal(seen_out, out)
    assert all(a is b for a, b in zip(rest, (*batch[:3], SCHEDULE, "v"), strict=True))
    assert losses is loss
    expected = flatten(mlp.backward(params, cache, grad_out / 7)[1])
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-14 * np.abs(expected).max())


def test_the_network_may_be_given_something_else_than_the_level():
    # As in 2015, when a network was told t / T and x_t itself.
    theta, like, batch, _ = float64_case()
    seen = []

    def forward(params, x, level):
        seen.append((x, level))
        return mlp.forward(params, x, level)

    def t_over_T(x_t, t, schedule):
        return x_t, t / schedule.T

    net, (x_0, t, eps, _) = SimpleNamespace(forward=forward, backward=mlp.backward), batch
    gradient(net, unflatten(theta, like), *batch, network_input=t_over_T)
    ((x, level),) = seen
    np.testing.assert_array_equal(x, q_sample(x_0, t, eps, SCHEDULE))
    np.testing.assert_array_equal(level, t / 50)


def test_what_is_drawn_beside_the_data_reaches_the_network():
    heard = []

    def forward(params, x, level, label):
        heard.append(label)
        return mlp.forward(params, x, level)

    def sample(n, rng):
        return DATA.sample(n, rng), {"label": np.arange(n)}

    net = SimpleNamespace(forward=forward, backward=mlp.backward)
    for _ in train(net, new_state(), sample, SCHEDULE, np.random.default_rng(0), steps=2, batch=4):
        np.testing.assert_array_equal(heard.pop(), np.arange(4))


def in_halves():
    """The MLP as a network that takes a batch in two halves, as one shared among processes does."""

    def forward(params, x, level):
        half = len(x) // 2
        (one, cache), (two, other) = (
            mlp.forward(params, x[rows], level[rows]) for rows in (slice(half), slice(half, None))
        )
        return np.concatenate([one, two]), (cache, other)

    def backward(params, cache, grad_out):
        half = len(grad_out) // 2
        (one, grads), (two, more) = (
            mlp.backward(params, part, grad_out[rows])
            for part, rows in zip(cache, (slice(half), slice(half, None)), strict=True)
        )
        return np.concatenate([one, two]), unflatten(flatten(grads) + flatten(more), params)

    return SimpleNamespace(forward=forward, backward=backward)


def test_a_network_that_shares_out_its_batch_trains_as_the_whole_one():
    # The sum of the halves' gradients is that of the whole, up to the rounding of float32.
    whole = run(new_state(), np.random.default_rng(1), 1)[0]
    halves = run(new_state(), np.random.default_rng(1), 1, net=in_halves())[0]
    np.testing.assert_array_equal(halves.x_0, whole.x_0)
    assert halves.loss == pytest.approx(whole.loss, rel=16 * EPS_32)
    np.testing.assert_allclose(
        halves.grad, whole.grad, rtol=0, atol=64 * EPS_32 * np.abs(whole.grad).max()
    )


def test_the_mean_of_the_gradients_of_two_halves_is_that_of_the_whole():
    theta, like, (x_0, t, eps, _), _ = float64_case(batch=16)
    params = unflatten(theta, like)
    losses, grad = gradient(mlp, params, x_0, t, eps, SCHEDULE)
    parts = [
        gradient(mlp, params, x_0[half], t[half], eps[half], SCHEDULE)
        for half in (slice(0, 8), slice(8, 16))
    ]
    mean = (parts[0][1] + parts[1][1]) / 2
    both = np.concatenate([part[0] for part in parts])
    np.testing.assert_allclose(both, losses, rtol=1e-12)
    np.testing.assert_allclose(mean, grad, rtol=0, atol=1e-13 * np.abs(grad).max())


def test_another_update_may_be_given_and_is_asked_with_state_gradient_and_steps():
    asked = []

    def descend(state, grad, steps):
        asked.append((state, grad, steps))
        state.step += 1
        state.theta -= 0.1 * grad

    state = new_state()
    before = state.theta.copy()
    (step,) = run(state, np.random.default_rng(1), 1, update=descend)
    assert asked == [(state, step.grad, 30)]
    np.testing.assert_array_equal(state.theta, before - np.float32(0.1) * step.grad)


def test_update_takes_another_adam_with_its_arguments():
    asked = {}

    def other_adam(theta, grad, m, v, step, lr, decay_1=0.9, decay_2=0.999, tiny=1e-8):
        asked.update(step=step, lr=lr, decay_1=decay_1, decay_2=decay_2, tiny=tiny)
        optim.adam(theta, grad, m, v, step, lr, decay_1, decay_2, tiny)

    one, two, grad = new_state(), new_state(), normal_values(0, new_state().theta.size, dtype="f")
    update(one, grad, 30, lr=0.01, decay_2=0.9)
    update(two, grad, 30, lr=0.01, decay_2=0.9, adam=other_adam)
    assert_states_equal(one, two)
    rate = optim.learning_rate(1, 30, 0.01)
    assert asked == {"step": 1, "lr": rate, "decay_1": 0.9, "decay_2": 0.9, "tiny": 1e-8}


def test_every_t_is_trained_and_no_other():
    # 50 levels, 10,000 draws: each is drawn 200 times, give or take 5 standard errors of 14.
    state, rng = new_state(hidden=2, layers=0), np.random.default_rng(0)
    t = np.concatenate([step.t for step in run(state, rng, 10, steps=10, batch=1000)])
    counts = np.bincount(t, minlength=51)
    assert counts[0] == 0 and len(counts) == 51
    assert (np.abs(counts[1:] - 200) < 5 * np.sqrt(200)).all()


def test_eps_is_standard_normal_and_independent_of_the_data():
    steps = run(new_state(hidden=2, layers=0), np.random.default_rng(0), 10, steps=10, batch=1000)
    eps, x_0 = (
        np.concatenate([getattr(step, name) for step in steps]).astype(np.float64)
        for name in ("eps", "x_0")
    )
    n = eps.size
    assert abs(eps.mean()) < 5 / np.sqrt(n)
    assert abs(eps.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((eps * x_0).mean()) < 5 * 0.5 / np.sqrt(n)


def test_all_stays_in_float32():
    state = new_state()
    for step in run(state, np.random.default_rng(0), 3):
        arrays = (step.x_0, step.eps, step.losses, step.loss, step.grad)
        assert {a.dtype for a in arrays} == {np.dtype(np.float32)}
    assert {a.dtype for a in (state.theta, state.ema, state.m, state.v)} == {np.dtype(np.float32)}


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    one, two, other = new_state(), new_state(), new_state()
    for state, seed in ((one, 1), (two, 1), (other, 2)):
        run(state, np.random.default_rng(seed), 30)
    assert_states_equal(one, two)
    assert np.abs(one.theta - other.theta).max() > 0


def test_a_run_that_is_resumed_gives_the_same_numbers_to_the_bit():
    whole, rng = new_state(), np.random.default_rng(1)
    expected = run(whole, rng, 30)

    half, rng = new_state(), np.random.default_rng(1)
    run(half, rng, 12)
    kept, kept_rng = copied(half), copy.deepcopy(rng.bit_generator.state)
    run(half, rng, 15)  # goes on, and is then lost

    rng = np.random.default_rng()
    rng.bit_generator.state = kept_rng
    resumed = run(kept, rng, 30)
    assert [step.step for step in resumed] == list(range(13, 31))
    assert_states_equal(kept, whole)
    for one, two in zip(resumed, expected[12:], strict=True):
        for name in TrainStep._fields:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def test_training_stops_at_steps_and_takes_none_beyond():
    state = new_state()
    assert len(run(state, np.random.default_rng(0), 30)) == 30
    assert run(state, np.random.default_rng(0), 30) == []


def test_train_is_a_generator_that_takes_no_step_before_it_is_asked():
    state = new_state()
    before = state.theta.copy()
    steps = train(mlp, state, DATA.sample, SCHEDULE, np.random.default_rng(0), steps=3)
    assert inspect.isgenerator(steps) and state.step == 0
    next(steps)
    assert state.step == 1
    assert np.abs(state.theta - before).max() > 0


@each_predict
def test_300_steps_on_a_gaussian_come_near_the_irreducible_loss(predict):
    # The excess over a perfect network is E|out - out*|^2 a dimension. out* is a line in x whose
    # slope depends on the level, so a network that hears the level has less than half the excess of
    # the best single line.
    state = new_state(hidden=32, layers=1, predict=predict)
    options = {"objective": l_target, "update": partial(update, lr=0.01, ema_decay=0.95)}
    rng = np.random.default_rng(1)
    for _ in train(mlp, state, DATA.sample, SCHEDULE, rng, 300, batch=256, **options):
        pass

    n = 4000
    t = np.random.default_rng(2).integers(1, SCHEDULE.T + 1, n)
    x_t = q_sample(0.5 * normal_values(3, n, 2), t, normal_values(4, n, 2), SCHEDULE)
    x_t = x_t.astype(np.float32)
    eps_star = DATA.predictor(SCHEDULE)(x_t, t)
    convert = {
        "eps": lambda x_t, t, eps, schedule: eps,
        "x_0": x_0_from_eps,
        "v": v_from_eps,
        "score": lambda x_t, t, eps, schedule: -eps,
    }
    out_star = convert[predict](x_t, t, eps_star, SCHEDULE)
    x, level = network_input(x_t, t, SCHEDULE)
    best_line = ((out_star - (out_star * x).sum() / (x * x).sum() * x) ** 2).mean()
    for params in (state.params, state.ema_params):
        excess = ((mlp.forward(params, x, level)[0] - out_star) ** 2).mean()
        assert excess < best_line / 2, (excess, best_line)


@pytest.mark.parametrize("T", [1, 7, 1000])
def test_early_draws_t_up_to_k_with_the_probability_sqrt_k_over_T(T):
    n = 100_000
    t = early(n, T, np.random.default_rng(0))
    assert t.dtype.kind == "i" and t.min() >= 1 and t.max() <= T
    for k in sorted({1, (T + 3) // 4, (T + 1) // 2, T}):
        p = np.sqrt(k / T)
        # 5 standard errors: false alarm 6e-7 a check.
        assert abs((t <= k).mean() - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-12
