"""What does not fit is refused at the door, in one line that says what is needed."""

import itertools
import re
import warnings
from functools import partial

import numpy as np
import pytest

from npdiff import exact, train
from npdiff.forward import (
    eps_from_score,
    eps_from_v,
    eps_from_x_0,
    q_posterior,
    q_sample,
    q_step,
    score_from_eps,
    v_from_eps,
    x_0_from_eps,
)
from npdiff.loss import l_simple, l_target
from npdiff.nn import mlp, unet
from npdiff.nn.params import flatten
from npdiff.papers import edm, improved_ddpm, ncsn
from npdiff.reverse import p_mean_from_eps, p_mean_from_score, p_mean_from_x_0, predictor
from npdiff.sampler import ddim, ddpm
from npdiff.schedule import cosine, linear

SCHEDULE = cosine(20)
X = np.ones((4, 2), np.float32)
OTHER_SHAPES = [np.ones(2), np.ones((4, 1)), np.ones((1, 2)), np.ones((4, 2, 1)), 1.0]
shapes = pytest.mark.parametrize("other", OTHER_SHAPES, ids=lambda a: str(np.shape(a)))

TWO_ARRAYS = {
    "q_step": lambda a: q_step(X, 3, a, SCHEDULE),
    "q_sample": lambda a: q_sample(X, 3, a, SCHEDULE),
    "q_sample, a batch of t": lambda a: q_sample(X, np.array([1, 2, 3, 4]), a, SCHEDULE),
    "q_posterior": lambda a: q_posterior(a, X, 3, SCHEDULE),
    "x_0_from_eps": lambda a: x_0_from_eps(X, 3, a, SCHEDULE),
    "eps_from_x_0": lambda a: eps_from_x_0(X, 3, a, SCHEDULE),
    "v_from_eps": lambda a: v_from_eps(X, 3, a, SCHEDULE),
    "eps_from_v": lambda a: eps_from_v(X, 3, a, SCHEDULE),
    "score_from_eps": lambda a: score_from_eps(X, 3, a, SCHEDULE),
    "eps_from_score": lambda a: eps_from_score(X, 3, a, SCHEDULE),
    "p_mean_from_eps": lambda a: p_mean_from_eps(X, 3, a, SCHEDULE),
    "p_mean_from_score": lambda a: p_mean_from_score(X, 3, a, SCHEDULE),
    "p_mean_from_x_0": lambda a: p_mean_from_x_0(X, 3, a, SCHEDULE),
    "l_simple": lambda a: l_simple(np.asarray(a, float), X, 3, X, SCHEDULE),
    "l_target": lambda a: l_target(np.asarray(a, float), X, 3, X, SCHEDULE, "v"),
    "dsm": lambda a: ncsn.dsm(np.asarray(a, float), X, 3, X, SCHEDULE),
    "edm.weighted_loss": lambda a: edm.weighted_loss(np.asarray(a, float), X, 3, X, SCHEDULE),
    "ddpm": lambda a: next(ddpm(lambda x, t: a, X, SCHEDULE, np.random.default_rng(0))),
    "ddim": lambda a: next(ddim(lambda x, t: a, X, SCHEDULE, 5)),
}


@shapes
@pytest.mark.parametrize("name", TWO_ARRAYS)
def test_arrays_of_different_shapes_are_refused(name, other):
    with pytest.raises(ValueError, match="shape|rows"):
        TWO_ARRAYS[name](other)


@pytest.mark.parametrize("name", TWO_ARRAYS)
def test_arrays_of_one_shape_are_taken(name):
    TWO_ARRAYS[name](X)


def test_a_network_says_which_input_does_not_fit():
    rng = np.random.default_rng(0)
    points, digits = mlp.init(rng, dim=2), unet.init(rng, width=8)
    images, level = np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"\(B, 2\) for a network of dim=2, got \(4, 3\)"):
        mlp.forward(points, np.ones((4, 3), np.float32), np.zeros(4, np.float32))
    for net, params, x in ((mlp, points, X[:2]), (unet, digits, images)):
        with pytest.raises(ValueError, match=r"level must have shape \(2,\)"):
            net.forward(params, x, level[:1])
        with pytest.raises(ValueError, match="floats, scaled to about unit variance, got uint8"):
            net.forward(params, x.astype(np.uint8), level)
    with pytest.raises(ValueError, match=r"label must have shape \(2,\)"):
        unet.forward(digits, images, level, np.array([3]))
    with pytest.raises(ValueError, match=r"in a NumPy array, got \[3, 4\]"):
        unet.forward(digits, images, level, [3, 4])


@pytest.mark.parametrize("ask", ["log_prob", "score"])
def test_exact_data_take_floats_of_their_dimension(ask):
    for data in (exact.Gaussian([0.0, 0.0], np.eye(2)), exact.SwissRoll()):
        for x in (np.ones((3, 2), int), np.ones((3, 1)), np.ones(2)):
            with pytest.raises(ValueError, match=r"x must be floats of shape \(N, 2\)"):
                getattr(data, ask)(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gaussian_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        exact.Gaussian([bad], [[1.0]])
    with pytest.raises(ValueError, match="finite"):
        exact.Gaussian([0.0], [[bad]])


def test_gradients_in_another_order_are_refused():
    params = mlp.init(np.random.default_rng(0), hidden=4, layers=1)
    reversed_order = dict(reversed(params.items()))
    inner = {**params, "first": dict(reversed(params["first"].items()))}
    for gradients in (reversed_order, inner, {"first": params["first"]}):
        with pytest.raises(ValueError, match="names in their order"):
            flatten(gradients, like=params)
    np.testing.assert_array_equal(flatten(dict(params), like=params), flatten(params))


def take(steps=1, sample=None, schedule=SCHEDULE, **settings):
    rng, state = np.random.default_rng(0), train.start(mlp.init(np.random.default_rng(0)))
    sample = sample or (lambda n, rng: rng.standard_normal((n, 2), dtype=np.float32))
    update = partial(train.update, **settings)
    return list(train.train(mlp, state, sample, schedule, rng, steps, 64, update=update))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_are_not_finite_are_refused_before_the_first_step(value):
    with pytest.raises(ValueError, match="finite"):
        take(sample=lambda n, rng: np.full((n, 2), value, np.float32))


def test_empty_batches_and_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="not empty"):
        take(sample=lambda n, rng: np.ones((0, 2), np.float32))
    with pytest.raises(ValueError, match="floats"):
        take(sample=lambda n, rng: np.ones((n, 2), np.uint8))


@pytest.mark.parametrize("name", ["lr", "clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_rate_or_a_clip_that_cannot_train_is_refused(name, value):
    with pytest.raises(ValueError, match="lr and clip must be above 0"):
        take(**{name: value})


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


def test_training_warns_of_a_schedule_that_ends_with_signal_and_of_no_other():
    # linear(20) leaves KL(q(x_T | x_0) || N(0, I)) of 0.84 nats a coordinate at unit variance.
    (message,) = warned(lambda: take(steps=3, schedule=linear(20)))
    assert re.search(r"is 0\.8\d? nats a coordinate", message)
    for schedule in (linear(1000), cosine(20), ncsn.ladder(10, 0.01, 50.0)):
        assert warned(lambda schedule=schedule: take(schedule=schedule)) == []


def test_training_warns_of_data_far_from_unit_variance():
    def scaled(scale):
        return lambda n, rng: np.float32(scale) * rng.standard_normal((n, 2), dtype=np.float32)

    for scale in (6.8, 0.05):
        (message,) = warned(lambda scale=scale: take(sample=scaled(scale)))
        assert "standard deviation" in message and "scale them to about 1" in message
    assert warned(lambda: take(sample=scaled(0.5))) == []


def test_a_prediction_of_eps_warns_where_next_to_no_signal_is_left():
    params = mlp.init(np.random.default_rng(0))
    for predict, made_by in itertools.product(
        ("eps", "score"), (predictor, improved_ddpm.predictor)
    ):
        (message,) = warned(lambda p=predict, of=made_by: of(mlp, params, cosine(1000), p))
        assert 'predict="v"' in message and "4.9e-05" in message
    for schedule, predict in ((cosine(1000), "v"), (cosine(1000), "x_0"), (linear(1000), "eps")):
        assert warned(lambda s=schedule, p=predict: predictor(mlp, params, s, p)) == []


def test_an_entropy_that_needs_too_large_a_grid_is_refused_at_once():
    narrow = exact.Mixture([0.5, 0.5], [[0.0, 0.0], [3.0, 3.0]], [1e-8 * np.eye(2)] * 2)
    for data in (narrow, exact.SwissRoll(0.01)):
        with pytest.raises(ValueError, match="grid of .* points"):
            data.entropy()
    for noise in (0.0, 1e-6, np.nan):
        with pytest.raises(ValueError, match="at least 0.01"):
            exact.SwissRoll(noise)


def test_guidance_needs_a_network_that_can_do_without_a_label():
    params = mlp.init(np.random.default_rng(0))
    with pytest.raises(ValueError, match="NO_CLASS"):
        predictor(mlp, params, linear(1000), guidance=1.0, label=np.zeros(4, int))
