"""The package obeys CuPy's rules.

On an array that enforces them its numbers are NumPy's, and training never waits for the device.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from strict_array import (
    FUNCTIONS,
    METHODS,
    StrictArray,
    SyncError,
    asarray,
    counts,
    no_sync,
    strict,
)

from npdiff import (
    exact,
    forward,
    likelihood,
    loss,
    normal,
    optim,
    output,
    reverse,
    sampler,
    schedule,
    train,
)
from npdiff.backend import get_array_module, standard_normal, to_numpy
from npdiff.nn import conv, mlp, ops, params, unet
from npdiff.output import PREDICT

SCHEDULE = schedule.cosine(T=20)
TIMES = [7, np.array([1, 20, 5, 7])]  # an int for the whole batch, and one t a row


def values(seed: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def moved(tree: Any) -> Any:
    """A tree of NumPy arrays as strict ones; whatever else it holds stays."""
    if isinstance(tree, dict):
        return {name: moved(value) for name, value in tree.items()}
    return asarray(tree) if isinstance(tree, np.ndarray) else tree


def arrays_in(result: Any) -> list:
    if isinstance(result, dict):
        result = list(result.values())
    return (
        [a for item in result for a in arrays_in(item)]
        if isinstance(result, (list, tuple))
        else [result]
    )


def assert_same(result: Any, expected: Any) -> None:
    for a, b in zip(arrays_in(result), arrays_in(expected), strict=True):
        assert isinstance(a, StrictArray) == isinstance(b, (np.ndarray, np.generic)), (
            type(a),
            type(b),
        )
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        np.testing.assert_allclose(to_numpy(a), b, rtol=1e-6, atol=1e-7)


def assert_as_numpy(f: Callable, *arrays: Any) -> None:
    """f gives on strict arrays what it gives on NumPy's, in the same precision."""
    expected = f(*arrays)
    assert_same(f(*map(moved, arrays)), expected)


# The strict array itself: each mistake is planted once.


@pytest.fixture
def x() -> StrictArray:
    return asarray(values(0, 3, 4))


@pytest.mark.parametrize(
    "mistake",
    [lambda x: x * np.float64(2), lambda x: np.float64(2) * x, lambda x: np.float32(2) < x],
)
def test_a_numpy_scalar_is_refused(x, mistake):
    with pytest.raises(TypeError, match="Python number"):
        mistake(x)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4)])
def test_a_numpy_array_of_any_shape_is_refused(x, shape):
    for mistake in (
        lambda a: x + a,
        lambda a: a + x,
        lambda a: strict.concatenate([x, a]),
        lambda a: x.__setitem__(0, a),
    ):
        with pytest.raises(TypeError):
            mistake(np.ones(shape, np.float32))


@pytest.mark.parametrize("f", [np.asarray, np.array, np.exp, np.sum, lambda x: np.stack([x, x])])
def test_numpy_functions_are_refused(x, f):
    with pytest.raises(TypeError):
        f(x)


@pytest.mark.parametrize(
    "wait",
    [
        bool,
        float,
        int,
        "{:.2f}".format,
        str,
        lambda x: x.item(),
        lambda x: x.get(),
        lambda x: x.tolist(),
    ],
)
def test_a_wait_for_the_device_is_counted_and_can_be_forbidden(x, wait):
    before = counts["sync"]
    wait(x[0, 0])
    assert counts["sync"] == before + 1
    with no_sync(), pytest.raises(SyncError):
        wait(x[0, 0])


def test_an_array_as_a_condition_is_a_wait(x):
    with no_sync(), pytest.raises(SyncError):
        1 if (x > 0).all() else 0


def test_a_broadcast_view_cannot_be_written_to(x):
    view = strict.broadcast_to(x[0], (2, 4))
    with pytest.raises(ValueError, match="read-only"):
        view += 1
    with pytest.raises(ValueError, match="read-only"):
        view[...] = 1.0


def test_overlapping_windows_cannot_be_written_to(x):
    with pytest.raises(ValueError, match="read-only"):
        strict.lib.stride_tricks.as_strided(x, (3, 2, 3), (16, 4, 4))[...] = 0.0


def test_an_index_out_of_range_is_refused(x):
    with pytest.raises(IndexError):
        x[asarray(np.array([3]))]


def test_writing_twice_to_an_entry_is_refused_and_add_at_sums(x):
    twice = asarray(np.array([0, -3]))
    with pytest.raises(ValueError, match="twice"):
        x[twice] += 1.0
    strict.add.at(x, twice, strict.ones_like(x[:2]))
    np.testing.assert_array_equal(x.get()[0], values(0, 3, 4)[0] + 2)


def test_an_index_on_the_host_is_refused(x):
    with pytest.raises(TypeError, match="index"):
        x[np.array([0])]


def test_what_is_not_listed_is_missing(x):
    for missing in (
        lambda: strict.fft,
        lambda: strict.random,
        lambda: x.tobytes,
        lambda: strict.lib.format,
    ):
        with pytest.raises(AttributeError):
            missing()


@pytest.mark.parametrize(
    "mistake",
    [lambda x: x.sum(where=x > 0), lambda x: x.max(initial=0.0), lambda x: strict.exp(x, out=x)],
)
def test_a_keyword_that_is_not_listed_is_refused(x, mistake):
    with pytest.raises(TypeError, match="keyword"):
        mistake(x)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x * x.astype("float64"),
        lambda x: strict.zeros(3) + x,
        lambda x: strict.arange(3) * 0.5,
        lambda x: strict.arange(3).mean(),
        lambda x: strict.asarray([0.5]),
    ],
)
def test_a_float64_that_nobody_asked_for_is_refused(x, mistake):
    with pytest.raises(TypeError, match="float64"):
        mistake(x)


def test_float64_is_given_where_it_is_asked_for(x):
    assert (
        x.astype("float64").sum().dtype
        == strict.zeros(3, np.float64).dtype
        == asarray(values(0, 2, dtype=np.float64)).dtype
        == "float64"
    )


def test_python_numbers_keep_the_precision(x):
    assert (
        (2 * x + 1.5 - x / 3).dtype
        == (x**2).dtype
        == strict.minimum(x.sum(), 1.0).dtype
        == "float32"
    )


def test_a_move_is_counted(x):
    before = counts["copy"]
    assert strict.asarray(x) is x and counts["copy"] == before
    host = values(1, 2)
    device = strict.asarray(host)
    host[:] = 0
    assert counts["copy"] == before + 1 and (device.get() != 0).all()


def test_the_listed_functions_methods_and_keywords_are_cupys():
    cupy = pytest.importorskip("cupy")
    for name, keywords in FUNCTIONS.items():
        function = operator.attrgetter(name)(cupy)
        if keywords:  # a ufunc has no signature, and is listed without keywords
            parameters = inspect.signature(function).parameters.values()
            takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
            assert takes_any or {p.name for p in parameters}.issuperset(keywords), name
    for name, keywords in METHODS.items():
        signature = inspect.getdoc(getattr(cupy.ndarray, name)).splitlines()[0]
        assert all(f"{keyword}=" in signature for keyword in keywords), signature


# The package on it.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 3, 1)])
@pytest.mark.parametrize("t", TIMES)
def test_at(t, shape, dtype):
    assert_as_numpy(lambda x: tuple(SCHEDULE.at(t, x)), values(0, *shape, dtype=dtype))


def test_at_moves_its_numbers_to_the_device_in_one_copy_and_without_a_wait():
    x, before = asarray(values(0, 4, 2)), counts["copy"]
    with no_sync():
        numbers = SCHEDULE.at(7, x)
        assert counts["copy"] == before and all(type(number) is float for number in numbers)
        SCHEDULE.at(TIMES[1], x)
        assert counts["copy"] == before + 1


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(
    "f",
    [
        lambda x, y, t: forward.q_step(x, t, y, SCHEDULE),
        lambda x, y, t: forward.q_marginal(x, t, SCHEDULE),
        lambda x, y, t: forward.q_sample(x, t, y, SCHEDULE),
        lambda x, y, t: forward.q_posterior(x, y, t, SCHEDULE),
        lambda x, y, t: forward.prior_kl(x, SCHEDULE),
        lambda x, y, t: forward.x_0_from_eps(x, t, y, SCHEDULE),
        lambda x, y, t: forward.eps_from_x_0(x, t, y, SCHEDULE),
        lambda x, y, t: forward.v_from_eps(x, t, y, SCHEDULE),
        lambda x, y, t: forward.eps_from_v(x, t, y, SCHEDULE),
        lambda x, y, t: forward.score_from_eps(x, t, y, SCHEDULE),
        lambda x, y, t: forward.eps_from_score(x, t, y, SCHEDULE),
        lambda x, y, t: reverse.p_mean_from_eps(x, t, y, SCHEDULE),
        lambda x, y, t: reverse.p_mean_from_x_0(x, t, y, SCHEDULE),
        lambda x, y, t: reverse.p_mean_from_score(x, t, y, SCHEDULE),
        lambda x, y, t: output.network_input(x, t, SCHEDULE),
        *[lambda x, y, t, p=p: output.eps_from_output(x, t, y, SCHEDULE, p) for p in PREDICT],
        *[lambda x, y, t, p=p: output.target(x, t, y, SCHEDULE, p) for p in PREDICT],
        *[lambda x, y, t, p=p: output.eps_per_output(x, t, SCHEDULE, p) for p in PREDICT],
        *[lambda x, y, t, p=p: loss.l_simple(x - y, x, t, y, SCHEDULE, p) for p in PREDICT],
        *[lambda x, y, t, p=p: loss.l_target(x - y, x, t, y, SCHEDULE, p) for p in PREDICT],
    ],
)
def test_the_fixed_and_the_learned_process_and_the_loss(f, t):
    with no_sync():
        f(moved(values(0, 4, 3, 2)), moved(values(1, 4, 3, 2)), t)
    assert_as_numpy(lambda x, y: f(x, y, t), values(0, 4, 3, 2), values(1, 4, 3, 2))


@pytest.mark.parametrize(
    "f",
    [
        normal.log_sum_exp,
        lambda x: normal.log_prob(x, 0.5, 2.0),
        lambda x: normal.kl(x, x**2 + 1, 0.0, 1.0),
    ],
)
def test_normal(f):
    assert_as_numpy(f, values(0, 4, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "forward_pass, backward_pass, arguments",
    [
        (ops.linear_forward, ops.linear_backward, [(4, 3), (3, 5), (5,)]),
        (ops.silu_forward, ops.silu_backward, [(4, 3)]),
        (ops.embed_forward, ops.embed_backward, [(4, 3), (3, 5)]),
        (
            lambda x, w, b: mlp.residual_forward(x, {"w": w, "b": b}, ops),
            lambda grad_y, cache: mlp.residual_backward(grad_y, cache, ops),
            [(4, 3), (3, 3), (3,)],
        ),
    ],
)
def test_ops(forward_pass, backward_pass, arguments, dtype):
    def both(*inputs):
        y, cache = forward_pass(*inputs)
        return y, backward_pass(y * y + 1, cache)

    assert_as_numpy(both, *[values(i, *shape, dtype=dtype) for i, shape in enumerate(arguments)])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_conv2d_as_shifted_images_without_a_wait(kernel, stride):
    def both(x, w, b):
        with no_sync():
            y, cache = conv.conv2d_forward(x, w, b, stride)
            return y, conv.conv2d_backward(y * y + 1, cache)

    assert_as_numpy(both, values(0, 2, 5, 4, 3), values(1, kernel, kernel, 3, 2), values(2, 2))


def random_mlp() -> params.Tree:
    """Without the zeros that training starts from."""
    theta, tree = params.pack(mlp.init(np.random.default_rng(0), hidden=8, layers=2))
    theta += 0.3 * values(1, theta.size)
    return tree


def test_mlp():
    def both(tree, x, level):
        out, cache = mlp.forward(tree, x, level)
        return out, mlp.backward(tree, cache, out * out + 1)

    assert_as_numpy(both, random_mlp(), values(2, 4, 2), 5 * values(3, 4))


def test_unet():
    def both(x, level):
        tree = unet.init(np.random.default_rng(0))
        tree = tree if isinstance(x, np.ndarray) else moved(tree)
        theta, tree = params.pack(tree)
        theta += 0.01
        with no_sync():
            out, cache = unet.forward(tree, x, level)
            return out, unet.backward(tree, cache, out * out + 1)

    assert_as_numpy(both, values(0, 2, 8, 8, 1), values(1, 2))


def test_params():
    def packed(tree):
        theta, views = params.pack(tree)
        theta *= 2.0  # seen by the views
        return theta, views, params.unflatten(theta, tree)

    assert_as_numpy(packed, random_mlp())


def test_optim():
    def two_steps(theta, grad):
        m, v, ema = theta * 0, theta * 0, theta.copy()
        for step in 1, 2:
            optim.adam(theta, optim.clip_norm(grad * step, 1.0), m, v, step, lr=0.1)
            optim.average(ema, theta, step)
        return theta, m, v, ema

    assert_as_numpy(lambda theta, grad: two_steps(theta * 1, grad), values(0, 9), values(1, 9))


MIXTURE = exact.Mixture([0.3, 0.7], values(0, 2, 2), [np.eye(2), [[2, 0.5], [0.5, 1]]])


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "data",
    [MIXTURE, exact.Gaussian([1.0, 2.0], np.eye(2)), exact.SwissRoll()],
    ids=["mixture", "gaussian", "roll"],
)
def test_exact(data, t, dtype):
    def all_answers(x):
        s = SCHEDULE.at(t, x)
        signal, noise = s.signal, s.noise
        predict_eps, irreducible = data.predictor(SCHEDULE), data.irreducible_loss
        return (
            data.score(x, signal, noise),
            data.log_prob(x, signal, noise),
            predict_eps(x, t),
            irreducible(x, t, SCHEDULE),
        )

    assert_as_numpy(all_answers, values(0, 4, 2, dtype=dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("data", [MIXTURE, exact.SwissRoll()], ids=["mixture", "roll"])
def test_reverse_step(data, dtype):
    assert_as_numpy(lambda x: data.reverse_step(x, 7, SCHEDULE), values(0, 4, 2, dtype=dtype))


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_bound(variance):
    def terms(x_0):
        reverse_step = likelihood.fixed(MIXTURE.predictor(SCHEDULE), SCHEDULE, variance)
        rng = np.random.default_rng(0)
        nats = [values for _, values in likelihood.bound(x_0, SCHEDULE, reverse_step, rng)]
        p = likelihood.importance(x_0, SCHEDULE, reverse_step, rng, count=5)
        decoder = likelihood.gaussian_decoder
        one_t = likelihood.one_t_bound(x_0, SCHEDULE, reverse_step, rng, p, decoder)
        # What is on the host in both runs is compared as floats.
        return [list(map(float, [*np.concatenate(nats), *p, *one_t[1]])), one_t[0], one_t[2]]

    expected, result = terms(values(0, 6, 2)), terms(asarray(values(0, 6, 2)))
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-6, atol=1e-7)
    assert_same(result[1:], expected[1:])


def samplers(predict_eps: Callable, x_T: Any) -> list:
    """Every quantity of the last step of each sampler."""
    s, rng = SCHEDULE, np.random.default_rng
    runs = [
        sampler.ddpm(predict_eps, x_T, s, rng(0)),
        sampler.ddpm(predict_eps, x_T, s, rng(0), variance="beta"),
        sampler.ddim(predict_eps, x_T, s, steps=7),
        sampler.ddim(predict_eps, x_T, s, steps=7, eta=1.0, rng=rng(0)),
    ]
    return [list(run)[-1] for run in runs]


def test_samplers_with_the_exact_predictor():
    assert_as_numpy(
        lambda x_T: samplers(exact.SwissRoll().predictor(SCHEDULE), x_T), values(0, 4, 2)
    )


@pytest.mark.parametrize("predict", PREDICT)
def test_samplers_with_a_network_and_without_a_wait(predict):
    def run(tree, x_T):
        with no_sync():
            return samplers(reverse.predictor(mlp, tree, SCHEDULE, predict), x_T)

    assert_as_numpy(run, random_mlp(), values(0, 4, 2))


def random_unet(x: Any) -> params.Tree:
    """A small U-Net for arrays of x's kind, without the zeros that training starts from."""
    theta, tree = params.pack(unet.init(np.random.default_rng(0), classes=3, width=8))
    theta += 0.2 * values(1, theta.size)
    return tree if isinstance(x, np.ndarray) else moved(tree)


@pytest.mark.parametrize("predict", PREDICT)
@pytest.mark.parametrize("t", [7, np.array([1, 20])], ids=["one t", "a batch of t"])
def test_guidance_without_a_wait(predict, t):
    label = np.array([2, unet.NO_CLASS])

    def run(x_t):
        tree = random_unet(x_t)
        with no_sync():
            return reverse.predictor(unet, tree, SCHEDULE, predict, 1.5, label=label)(x_t, t)

    assert_as_numpy(run, values(2, 2, 8, 8, 1))


def early_with_weight(batch, T, rng):
    t = train.early(batch, T, rng)
    return t, 2 * np.sqrt(t / T)


@pytest.mark.parametrize("objective", [loss.l_simple, loss.l_target])
@pytest.mark.parametrize("weight", [None, np.array([0.5, 2.0])])
def test_gradient_of_a_unet_without_a_wait(objective, weight):
    t, label = np.array([1, 20]), np.array([2, unet.NO_CLASS])

    def run(x_0, eps):
        tree, before = random_unet(x_0), counts["sync"]
        with no_sync():
            result = train.gradient(
                unet, tree, x_0, t, eps, SCHEDULE, "v", objective, weight, label=label
            )
        assert counts["sync"] == before
        return result

    x_0, eps = values(2, 2, 8, 8, 1), values(3, 2, 8, 8, 1)
    losses, grad = run(x_0, eps)
    losses_there, grad_there = run(asarray(x_0), asarray(eps))
    assert grad_there.dtype == losses_there.dtype == np.float32
    # Sums over images and channels may be taken in another order.
    np.testing.assert_allclose(losses_there.get(), losses, rtol=1e-5)
    largest = np.abs(grad).max()
    np.testing.assert_allclose(grad_there.get(), grad, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("draw_t", [train.uniform, early_with_weight])
@pytest.mark.parametrize("predict", PREDICT)
def test_training_gives_numpys_numbers_and_never_waits(predict, draw_t):
    def sample(n, rng):
        return rng.standard_normal((n, 2), dtype=np.float32)

    def run(tree):
        state = train.start(tree, predict)
        before, rng = counts["sync"], np.random.default_rng(0)
        with no_sync():
            steps = list(
                train.train(mlp, state, sample, SCHEDULE, rng, steps=5, batch=8, draw_t=draw_t)
            )
        assert counts["sync"] == before
        return (
            [step.loss for step in steps],
            [step.losses for step in steps],
            steps[-1].grad,
            state.theta,
            state.ema,
            state.m,
            state.v,
            state.params,
            state.ema_params,
        )

    assert_as_numpy(run, random_mlp())


def test_noise_is_drawn_on_the_host_and_moved():
    z = standard_normal(np.random.default_rng(0), (3, 2), like=asarray(values(0, 1)))
    np.testing.assert_array_equal(
        z.get(), np.random.default_rng(0).standard_normal((3, 2), dtype=np.float32)
    )
    assert get_array_module(z) is strict
