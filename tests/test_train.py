import copy
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import EPS_32, normal_values

from npdiff import optim
from npdiff.exact import Gaussian
from npdiff.forward import q_sample, v_from_eps, x_0_from_eps
from npdiff.kit.gradcheck import directional_error
from npdiff.loss import l_simple
from npdiff.nn import mlp
from npdiff.nn.params import flatten, leaves, unflatten
from npdiff.reverse import network_input
from npdiff.schedule import linear
from npdiff.train import TrainStep, early, gradient, start, train

SCHEDULE = linear(50, 2e-3, 0.25)
DATA = Gaussian([0.0, 0.0], [[0.25, 0.0], [0.0, 0.25]])


def new_state(seed=0, hidden=16, layers=1):
    return start(mlp.init(np.random.default_rng(seed), hidden=hidden, layers=layers))


def run(state, rng, until, **options):
    """The steps up to `until` of a run of 30."""
    options = {"steps": 30, "batch": 16, **options}
    taken = []
    for step in train(mlp, state, DATA.sample, SCHEDULE, rng, **options):
        taken.append(step)
        if step.step == until:
            break
    return taken


def copied(state):
    """A state like the one given, as a checkpoint would bring it back."""
    fresh = start(state.params)
    for name in ("theta", "ema", "m", "v"):
        getattr(fresh, name)[:] = getattr(state, name)
    fresh.step = state.step
    return fresh


def assert_states_equal(one, two):
    for name in ("theta", "ema", "m", "v"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert one.step == two.step


def test_start_copies_the_parameters_and_shares_theta_with_the_tree():
    params = mlp.init(np.random.default_rng(0), hidden=4, layers=1)
    state = start(params)
    for theta, tree in ((state.theta, state.params), (state.ema, state.ema_params)):
        np.testing.assert_array_equal(theta, flatten(params))
        assert all(np.shares_memory(leaf, theta) for leaf in leaves(tree))
    assert not any(np.shares_memory(leaf, state.theta) for leaf in [*leaves(params), state.ema])
    assert not state.m.any() and not state.v.any() and state.step == 0


@pytest.mark.parametrize("predict", ["eps", "x_0", "v"])
@pytest.mark.parametrize("weight", ["eps", "target"])
def test_a_step_is_algorithm_1(predict, weight):
    # What is yielded holds together, and theta follows from it by Adam: the whole step, written out
    # a second time.
    state, rng = new_state(), np.random.default_rng(1)
    theta, ema, m, v = (getattr(state, name).copy() for name in ("theta", "ema", "m", "v"))
    options = {
        "predict": predict,
        "weight": weight,
        "lr": 0.01,
        "clip": 0.2,
        "beta_2": 0.9,
        "ema_decay": 0.2,
    }
    for number, step in enumerate(
        train(mlp, state, DATA.sample, SCHEDULE, rng, steps=5, batch=8, **options), start=1
    ):
        assert step.step == state.step == number
        assert step.x_0.shape == step.eps.shape == (8, 2) and step.t.shape == (8,)
        params = unflatten(theta, state.params)  # theta of before the step
        x_t = q_sample(step.x_0, step.t, step.eps, SCHEDULE)
        out, cache = mlp.forward(params, *network_input(x_t, step.t, SCHEDULE))
        loss, grad_out = l_simple(out, step.x_0, step.t, step.eps, SCHEDULE, predict, weight)
        assert step.loss == loss
        np.testing.assert_array_equal(step.grad, flatten(mlp.backward(params, cache, grad_out)[1]))
        optim.adam(
            theta,
            optim.clip_norm(step.grad, 0.2),
            m,
            v,
            number,
            optim.learning_rate(number, 5, 0.01),
            beta_2=0.9,
        )
        optim.average(ema, theta, number, 0.2)
        for name, expected in (("theta", theta), ("ema", ema), ("m", m), ("v", v)):
            np.testing.assert_array_equal(getattr(state, name), expected, err_msg=name)
    assert number == 5


@pytest.mark.parametrize("predict", ["eps", "x_0", "v"])
@pytest.mark.parametrize("weight", ["eps", "target"])
def test_gradient_is_the_slope_of_the_loss_in_theta(predict, weight):
    # Central differences of step 1e-5 in float64: see test_ops.
    rng, like = np.random.default_rng(5), mlp.init(np.random.default_rng(0), hidden=6, layers=2)
    theta = 0.5 * rng.standard_normal(flatten(like).size)
    x_0, eps, t = (
        rng.standard_normal((7, 2)),
        rng.standard_normal((7, 2)),
        rng.integers(1, SCHEDULE.T + 1, 7),
    )

    def of(theta):
        return gradient(mlp, unflatten(theta, like), x_0, t, eps, SCHEDULE, predict, weight)

    assert directional_error(lambda theta: of(theta)[0], theta, of(theta)[1], rng) < 1e-5


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


def test_another_way_to_the_gradient_may_be_given():
    # In two halves: the sum of their gradients is that of the whole, up to the rounding of float32.
    calls = []

    def in_halves(net, params, x_0, t, eps, *options):
        calls.append(len(t))
        parts = [
            gradient(net, params, x_0[half], t[half], eps[half], *options)
            for half in (slice(0, 8), slice(8, 16))
        ]
        return sum(loss for loss, _ in parts) / 2, sum(grad for _, grad in parts) / 2

    whole = run(new_state(), np.random.default_rng(1), 1)[0]
    halves = run(new_state(), np.random.default_rng(1), 1, gradient=in_halves)[0]
    assert calls == [16]
    np.testing.assert_array_equal(halves.x_0, whole.x_0)
    assert halves.loss == pytest.approx(whole.loss, rel=16 * EPS_32)
    np.testing.assert_allclose(
        halves.grad, whole.grad, rtol=0, atol=64 * EPS_32 * np.abs(whole.grad).max()
    )


def test_every_t_is_trained_and_no_other():
    # 50 levels, 10,000 draws: each is drawn 200 times, give or take 5 standard errors of 14.
    t = np.concatenate(
        [
            step.t
            for step in run(
                new_state(hidden=2, layers=0), np.random.default_rng(0), 10, steps=10, batch=1000
            )
        ]
    )
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
        assert {a.dtype for a in (step.x_0, step.eps, step.loss, step.grad)} == {
            np.dtype(np.float32)
        }
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


@pytest.mark.parametrize("predict", ["eps", "x_0", "v"])
def test_300_steps_on_a_gaussian_come_near_the_irreducible_loss(predict):
    # The excess over a perfect network is E|out - out*|^2 a dimension. out* is a line in x whose
    # slope depends on the level, so a network that hears the level has less than half the excess of
    # the best single line.
    state = new_state(hidden=32, layers=1)
    options = {
        "steps": 300,
        "batch": 256,
        "lr": 0.01,
        "ema_decay": 0.95,
        "predict": predict,
        "weight": "target",
    }
    for _ in train(mlp, state, DATA.sample, SCHEDULE, np.random.default_rng(1), **options):
        pass

    n = 4000
    t = np.random.default_rng(2).integers(1, SCHEDULE.T + 1, n)
    x_t = q_sample(0.5 * normal_values(3, n, 2), t, normal_values(4, n, 2), SCHEDULE).astype(
        np.float32
    )
    eps_star = DATA.predictor(SCHEDULE)(x_t, t)
    convert = {"eps": lambda x_t, t, eps, schedule: eps, "x_0": x_0_from_eps, "v": v_from_eps}
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
