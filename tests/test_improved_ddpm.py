"""Improved DDPM and the network for the bound: variance, objectives, importance sampling."""

import math
from functools import partial

import numpy as np
import pytest
from conftest import STANDARD_ERRORS, preserving_schedules, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiff import exact, likelihood, normal, train
from npdiff.backend import standard_normal
from npdiff.forward import q_sample
from npdiff.gradcheck import check_pair, directional_error
from npdiff.loss import l_simple
from npdiff.nn import unet
from npdiff.nn.conv import depth_to_space, space_to_depth
from npdiff.nn.ops import linear_backward, linear_forward
from npdiff.nn.params import flatten, leaves, pack, unflatten
from npdiff.papers import improved_ddpm, vdm
from npdiff.papers.improved_ddpm import ImportanceSampler, hybrid, vlb_objective
from npdiff.schedule import cosine, uniform_log_snr

GRADIENT = 1e-6


class Linear:
    """[guess, o] = x w + b: a network of one layer, for points."""

    @staticmethod
    def init(rng, dim=2):
        return {
            "layer": {
                "w": 0.3 * rng.standard_normal((dim, 2 * dim)),
                "b": 0.3 * rng.standard_normal(2 * dim),
            }
        }

    @staticmethod
    def forward(params, x, level):
        return linear_forward(x, **params["layer"])

    @staticmethod
    def backward(params, cache, grad_out):
        grad_x, grads = linear_backward(grad_out, cache)
        return grad_x, {"layer": grads}


@given(preserving_schedules(), seeds)
def test_the_variance_lies_at_beta_tilde_for_o_minus_1_and_at_beta_for_o_1(schedule, seed):
    if schedule.T < 2:
        return
    t = np.random.default_rng(seed).integers(2, schedule.T + 1, 5)
    ends = [
        np.exp(improved_ddpm.log_variance(np.full((5, 1), o), t, schedule))[:, 0]
        for o in (-1.0, 1.0)
    ]
    np.testing.assert_allclose(ends[0], schedule.beta_tilde[t], rtol=1e-9)
    np.testing.assert_allclose(ends[1], schedule.beta[t], rtol=1e-9)


@given(seeds, st.sampled_from(["eps", "v", "x_0"]), st.booleans())
def test_the_terms_are_those_of_the_bound(seed, predict, discretised):
    rng, schedule = np.random.default_rng(seed), uniform_log_snr(6, -3, 3)
    params = Linear.init(rng)
    x_0, eps = rng.integers(0, 256, (12, 2)) / 127.5 - 1, rng.standard_normal((12, 2))
    t = 1 + np.arange(12) % 6
    # The darkest and the brightest value, where the decoder is not symmetric, at t = 1.
    x_0[0], x_0[6] = -1.0, 1.0
    objective = partial(vlb_objective, discretised=discretised)
    losses, _ = train.gradient(Linear, params, x_0, t, eps, schedule, predict, objective)
    nats = losses * 2 / schedule.T  # the loss is T L_{t-1} a coordinate
    reverse, x_t = (
        improved_ddpm.reverse(Linear, params, schedule, predict),
        q_sample(x_0, t, eps, schedule),
    )
    later = t > 1
    kl = likelihood.step_kl(x_0[later], x_t[later], t[later], schedule, reverse)
    np.testing.assert_allclose(nats[later], kl, rtol=1e-8)
    decode = likelihood.discretised_decoder if discretised else likelihood.gaussian_decoder
    log_p = decode(x_0[~later], *reverse(x_t[~later], t[~later]))
    np.testing.assert_allclose(nats[~later], -log_p.sum(axis=1), rtol=1e-8)


@settings(max_examples=20)
@given(seeds, st.sampled_from(["eps", "v", "x_0"]), st.booleans())
def test_the_gradient_of_the_bound(seed, predict, discretised):
    rng, schedule = np.random.default_rng(seed), uniform_log_snr(6, -3, 3)
    theta, like = pack(Linear.init(rng))
    x_0, eps, t = (
        rng.integers(0, 256, (12, 2)) / 127.5 - 1,
        rng.standard_normal((12, 2)),
        1 + np.arange(12) % 6,
    )
    weight = rng.uniform(0.5, 2, 12)
    objective = partial(vlb_objective, discretised=discretised)

    def losses_and_gradient(theta):
        params = unflatten(theta, like)
        return train.gradient(Linear, params, x_0, t, eps, schedule, predict, objective, weight)

    loss = lambda theta: (weight * losses_and_gradient(theta)[0]).mean()  # noqa: E731
    assert directional_error(loss, theta, losses_and_gradient(theta)[1], rng) < GRADIENT


@given(seeds, st.sampled_from(["eps", "v", "x_0"]), st.booleans())
def test_the_gradient_of_each_rows_bound_with_respect_to_the_output(seed, predict, discretised):
    rng, schedule = np.random.default_rng(seed), uniform_log_snr(6, -3, 3)
    x_0, eps, t = (
        rng.integers(0, 256, (12, 2)) / 127.5 - 1,
        rng.standard_normal((12, 2)),
        1 + np.arange(12) % 6,
    )
    out, weight = 0.5 * rng.standard_normal((12, 4)), rng.standard_normal((12, 1))
    loss, grad_out = vlb_objective(out, x_0, t, eps, schedule, predict, discretised)
    assert loss.shape == (12,) and grad_out.shape == (12, 4)

    def weighted_loss(out):  # a weight of its own for each row, so that no two rows can be mixed up
        loss, _ = vlb_objective(out, x_0, t, eps, schedule, predict, discretised)
        return (weight[:, 0] * loss).sum()

    assert directional_error(weighted_loss, out, weight * grad_out, rng) < GRADIENT


@given(seeds, st.floats(0.005, 0.5))
def test_the_decoders_gradients_are_its_slopes_at_the_end_values_too(seed, sigma):
    # At -1 and 1, where a tail belongs to the pixel, beside them, and between.
    x_0 = np.array([-1.0, -1 + 2 / 255, 0.2 / 255, 1 - 2 / 255, 1.0])
    mean = x_0 + sigma * np.random.default_rng(seed).standard_normal(5)
    nats, grad_mean, grad_log_var = improved_ddpm.discretised_decoder(
        x_0, mean, np.full(5, sigma**2)
    )

    def nats_at(shift, log_factor):  # of the mean and of the variance
        var = np.full(5, sigma**2 * math.exp(log_factor))
        return -likelihood.discretised_decoder(x_0, mean + shift, var)

    # In units of sigma every derivative is of order 1 to 100, so differences over 2 h err by h^2
    # and, by rounding, by EPS / h.
    h = 1e-5
    np.testing.assert_allclose(nats, nats_at(0.0, 0.0), rtol=1e-12)
    by_mean = (nats_at(h * sigma, 0.0) - nats_at(-h * sigma, 0.0)) / (2 * h)
    np.testing.assert_allclose(sigma * grad_mean, by_mean, rtol=1e-6, atol=1e-7)
    by_log_var = (nats_at(0.0, h) - nats_at(0.0, -h)) / (2 * h)
    np.testing.assert_allclose(grad_log_var, by_log_var, rtol=1e-6, atol=1e-7)


@given(seeds)
def test_the_hybrid_objective_moves_the_guess_by_l_simple_and_o_by_a_thousandth_of_the_bound(seed):
    rng, schedule = np.random.default_rng(seed), cosine(6)
    params = Linear.init(rng)
    x_0, eps, t = *rng.standard_normal((2, 12, 2)), 1 + np.arange(12) % 6
    simple = {"layer": {name: leaf[..., :2] for name, leaf in params["layer"].items()}}
    batch = x_0, t, eps, schedule, "eps"
    _, of_simple = train.gradient(Linear, simple, *batch)
    _, of_hybrid = train.gradient(Linear, params, *batch, hybrid)
    _, of_bound = train.gradient(Linear, params, *batch, vlb_objective)
    of_simple = unflatten(of_simple, simple)["layer"]
    of_hybrid, of_bound = (unflatten(grad, params)["layer"] for grad in (of_hybrid, of_bound))
    for name in ("w", "b"):
        np.testing.assert_allclose(of_hybrid[name][..., :2], of_simple[name], rtol=1e-12)
        o_alone = improved_ddpm.LAMBDA * of_bound[name][..., 2:]
        np.testing.assert_allclose(of_hybrid[name][..., 2:], o_alone, rtol=1e-12)


@given(seeds, st.sampled_from(["eps", "v", "x_0"]))
def test_the_hybrid_loss_is_the_sum_of_both_and_its_stated_gradient_is_not_the_losss(seed, predict):
    rng, schedule = np.random.default_rng(seed), cosine(6)
    out, t = rng.standard_normal((12, 4)), 1 + np.arange(12) % 6
    x_0, eps = rng.standard_normal((2, 12, 2))
    loss, grad_out = hybrid(out, x_0, t, eps, schedule, predict)
    simple, grad_simple = l_simple(out[:, :2], x_0, t, eps, schedule, predict)
    bound, grad_bound = vlb_objective(out, x_0, t, eps, schedule, predict)
    np.testing.assert_allclose(loss, simple + improved_ddpm.LAMBDA * bound, rtol=1e-12)
    np.testing.assert_array_equal(grad_out[:, :2], grad_simple)
    np.testing.assert_array_equal(grad_out[:, 2:], improved_ddpm.LAMBDA * grad_bound[:, 2:])
    # What is left out is the effect of the guess on L_vlb, which is not 0.
    assert np.abs(grad_bound[:, :2]).max() > 0


class ShareOfEachStep:
    """The exact guess for N(0, var), and o free for each t: it can reach the bound's optimum."""

    def __init__(self, var, schedule):
        self.var, self.schedule = var, schedule

    def forward(self, params, x, level):
        t = np.searchsorted(self.schedule.level[1:], level - 1e-9) + 1
        v = self.schedule.signal[t] ** 2 * self.var + self.schedule.noise[t] ** 2
        return np.concatenate(
            [(self.schedule.noise[t] / v)[:, None] * x, params["o"][t][:, None]], axis=1
        ), t

    def backward(self, params, t, grad_out):
        grad_o = np.zeros_like(params["o"])
        np.add.at(grad_o, t, grad_out[:, 1])
        return None, {"o": grad_o}


@pytest.mark.parametrize("objective", [hybrid, vlb_objective])
def test_on_gaussian_data_the_optimum_is_the_true_reverse_variance(objective):
    schedule, var, n = cosine(8), 0.4, 400_000
    rng, net = np.random.default_rng(0), ShareOfEachStep(0.4, schedule)
    x_0, eps, t = (
        math.sqrt(var) * rng.standard_normal((n, 1)),
        rng.standard_normal((n, 1)),
        rng.integers(2, 9, n),
    )
    v = schedule.signal**2 * var + schedule.noise**2
    o = np.zeros(9)
    true = schedule.beta[2:] * v[1:-1] / v[2:]
    log_beta, log_beta_tilde = np.log(schedule.beta[2:]), np.log(schedule.beta_tilde[2:])
    o[2:] = 2 * (np.log(true) - log_beta_tilde) / (log_beta - log_beta_tilde) - 1

    def grad_o(shift):
        params = {"o": o + shift}
        return train.gradient(net, params, x_0, t, eps, schedule, "eps", objective)[1][2:]

    assert (grad_o(-0.3) < 0).all() and (grad_o(0.3) > 0).all()  # a descent leads to the optimum
    assert (abs(grad_o(0.0)) < 0.1 * abs(grad_o(0.3))).all()


def test_importance_sampling_is_unbiased_and_of_lower_variance():
    rng, T = np.random.default_rng(0), 50
    mean = 10.0 / np.arange(1, T + 1) ** 2
    importance = ImportanceSampler(T)
    for _ in range(importance.last.shape[1]):
        t = np.arange(1, T + 1)
        importance.learn(t, mean[t - 1] * rng.uniform(0.5, 1.5, T))
    assert importance.p[0] == 0 and importance.p.sum() == pytest.approx(1)
    n = 100_000
    t, weight = importance.draw(n, T, rng)
    np.testing.assert_allclose(weight, 1 / (T * importance.p[t]), rtol=1e-12)
    weighted, plain = weight * mean[t - 1], mean[rng.integers(1, T + 1, n) - 1]
    assert abs(weighted.mean() - mean.mean()) < STANDARD_ERRORS * weighted.std() / math.sqrt(n)
    assert abs(plain.mean() - mean.mean()) < STANDARD_ERRORS * plain.std() / math.sqrt(n)
    assert weighted.std() < 0.2 * plain.std()


def test_a_steps_loss_is_the_mean_of_its_nats_over_p_a_coordinate():
    # E[nats_t / p_t] is the sum of L_{t-1} over t: the factor is 1, whatever the p_t.
    rng, T, batch = np.random.default_rng(0), 6, 64
    schedule, params, importance = uniform_log_snr(T, -3, 3), Linear.init(rng), ImportanceSampler(T)
    for _ in range(importance.last.shape[1]):
        importance.learn(np.arange(1, T + 1), 1 / np.arange(1.0, T + 1))
    p, reverse = importance.p, improved_ddpm.reverse(Linear, params, schedule)
    sample = lambda n, rng: rng.standard_normal((n, 2))  # noqa: E731
    steps = train.train(
        *(Linear, train.start(params), sample, schedule, rng, 1, batch, vlb_objective),
        draw_t=importance.draw,
    )
    for step in steps:
        x_t, later, nats = (
            q_sample(step.x_0, step.t, step.eps, schedule),
            step.t > 1,
            np.zeros(batch),
        )
        nats[later] = likelihood.step_kl(
            step.x_0[later], x_t[later], step.t[later], schedule, reverse
        )
        mean, var = reverse(x_t[~later], step.t[~later])
        nats[~later] = -normal.log_prob(step.x_0[~later], mean, var).sum(axis=1)
        assert p.max() > 2 * p[1:].min() and later.any() and not later.all()
        assert step.loss == pytest.approx((nats / p[step.t]).mean() / 2, rel=1e-9)


def test_t_is_uniform_until_every_t_has_been_seen_often_enough():
    importance = ImportanceSampler(3, keep=2)
    for t in ([1, 2, 3], [1, 2]):
        importance.learn(np.array(t), np.ones(len(t)))
        assert importance.p.tolist() == [0, 1 / 3, 1 / 3, 1 / 3]
    importance.learn(np.array([3, 3]), np.array([5.0, 5.0]))
    assert importance.p[3] > importance.p[1]


def test_p_is_proportional_to_the_root_mean_square_of_the_last_losses():
    importance = ImportanceSampler(2, keep=2)
    importance.learn(
        np.array([1, 1, 1, 2, 2]), np.array([9.0, 3.0, 4.0, 1.0, 1.0])
    )  # 9 is forgotten
    share = math.sqrt(12.5) / (math.sqrt(12.5) + 1)
    np.testing.assert_allclose(
        importance.p, [0, 0.999 * share + 0.0005, 0.999 * (1 - share) + 0.0005]
    )
    p = importance.p
    importance.last *= 7.0  # only ratios of the losses matter
    np.testing.assert_allclose(importance.p, p, rtol=1e-12)


def test_training_with_importance_sampling_gives_the_bound_in_bits_and_lowers_it():
    schedule, rng = cosine(20), np.random.default_rng(0)
    data, importance = exact.Gaussian([0.0, 0.0], [[0.5, 0.0], [0.0, 0.5]]), ImportanceSampler(20)
    layer = {name: a.astype(np.float32) for name, a in Linear.init(rng)["layer"].items()}
    state, losses = train.start({"layer": layer}), []
    options = dict(draw_t=importance.draw, update=partial(train.update, lr=0.02))
    for step in train.train(
        Linear, state, data.sample, schedule, rng, 300, 64, vlb_objective, **options
    ):
        importance.learn(step.t, step.losses)
        losses.append(normal.BITS * float(step.loss))
    assert not np.isnan(importance.last[1:]).any()  # t is no longer drawn uniformly
    assert np.mean(losses[-50:]) < np.mean(losses[:50])
    x_0, reverse = data.sample(4000, rng), improved_ddpm.reverse(Linear, state.params, schedule)
    terms = [term for term, _ in likelihood.bound(x_0, schedule, reverse, rng)]
    bits = normal.BITS / 2 * sum(term.nats for term in terms[1:])
    assert np.mean(losses[-50:]) == pytest.approx(bits, rel=0.1)


def test_samplers_take_the_guess_alone():
    rng, schedule = np.random.default_rng(0), cosine(5)
    params, x_t = Linear.init(rng), rng.standard_normal((4, 2))
    mean, _ = improved_ddpm.reverse(Linear, params, schedule)(x_t, 3)
    eps_hat = improved_ddpm.predictor(Linear, params, schedule)(x_t, 3)
    expected = x_t - schedule.beta[3] / schedule.noise[3] * eps_hat
    np.testing.assert_allclose(mean, expected / math.sqrt(schedule.alpha[3]), rtol=1e-12)


def test_a_state_brings_its_averaged_parameters_and_what_it_predicts():
    rng, schedule = np.random.default_rng(0), cosine(5)
    state, x_t = train.start(Linear.init(rng), predict="v"), rng.standard_normal((4, 2))
    state.ema[...] += 0.1
    for function in (improved_ddpm.predictor, improved_ddpm.reverse):
        of_state = function(Linear, state, schedule)(x_t, 3)
        of_params = function(Linear, state.ema_params, schedule, "v")(x_t, 3)
        np.testing.assert_array_equal(of_state, of_params)
        with pytest.raises(ValueError, match="trained to predict"):
            function(Linear, state, schedule, "eps")


def test_the_network_that_sees_waves_has_the_right_gradients():
    rng = np.random.default_rng(0)
    theta, like = pack(vdm.init(rng, width=8))
    params = unflatten(theta.astype(np.float64) + 0.1 * rng.standard_normal(theta.size), like)
    level, label = rng.standard_normal(2), np.array([3, 10])
    forward = lambda x: vdm.forward(params, x, level, label)  # noqa: E731
    backward = lambda grad, cache: (vdm.backward(params, cache, grad)[0], {})  # noqa: E731
    x = rng.uniform(-1, 1, (2, 8, 8, 1))
    out, cache = forward(x)
    assert out.shape == (2, 8, 8, 2)
    assert (
        check_pair(forward, backward, x, rng)["x"] < 1e-4
    )  # the waves' differences err by h^2 f^3
    grad_out = rng.standard_normal(out.shape)
    grads = vdm.backward(params, cache, grad_out)[1]
    assert [a.shape for a in leaves(grads)] == [a.shape for a in leaves(params)]

    def weighted_out(theta):
        return (vdm.forward(unflatten(theta, like), x, level, label)[0] * grad_out).sum()

    assert directional_error(weighted_out, flatten(params), flatten(grads), rng) < GRADIENT


def test_the_network_of_the_bound_is_the_u_net_of_an_image_of_twice_the_size():
    rng, level = np.random.default_rng(0), np.array([-3.0, 1.0])
    theta, like = pack(vdm.init(rng, width=8))
    params = unflatten(theta.astype(np.float64) + 0.1 * rng.standard_normal(theta.size), like)
    x = rng.uniform(-1, 1, (2, 8, 8, 1))
    waves = [wave(f * x) for f in vdm.FREQUENCIES for wave in (np.sin, np.cos)]
    inputs = np.concatenate([x, *waves, np.ones_like(x)], axis=3)
    twice, _ = unet.forward(params, depth_to_space(inputs), level)
    out, _ = vdm.forward(params, x, level)
    np.testing.assert_array_equal(out, space_to_depth(twice)[..., :2])


def test_odd_images_are_refused():
    params = vdm.init(np.random.default_rng(0), width=8)
    with pytest.raises(ValueError, match="even"):
        vdm.forward(params, np.zeros((1, 8, 7, 1), np.float32), np.zeros(1, np.float32))


def test_values_one_apart_are_told_apart_by_the_waves():
    f = vdm.FREQUENCIES[-1]
    assert abs(np.exp(1j * f * 2 / 255) - 1) > 1


def test_float32_in_float32_out():
    rng, schedule = np.random.default_rng(0), uniform_log_snr(6)
    params = vdm.init(rng, width=8)
    x_0 = (rng.integers(0, 256, (3, 8, 8, 1)) / 127.5 - 1).astype(np.float32)
    eps = standard_normal(rng, x_0.shape, like=x_0)
    t = np.array([1, 2, 6])
    for objective in (vlb_objective, hybrid):
        objective = partial(objective, discretised=True)
        losses, grad = train.gradient(vdm, params, x_0, t, eps, schedule, "v", objective)
        assert losses.dtype == grad.dtype == np.float32
        assert np.isfinite(grad).all() and grad.shape == flatten(params).shape
