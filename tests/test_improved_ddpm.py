import math

import numpy as np
import pytest
from conftest import STANDARD_ERRORS, preserving_schedules, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from npdiff import exact, likelihood, schedule, train
from npdiff.backend import standard_normal
from npdiff.forward import q_sample
from npdiff.kit.gradcheck import check_pair, directional_error
from npdiff.nn.ops import linear_backward, linear_forward
from npdiff.nn.params import flatten, leaves, pack, unflatten
from npdiff.papers import improved_ddpm, vdm
from npdiff.papers.improved_ddpm import ImportanceSampler

GRADIENT = 1e-6


class Linear:
    """[guess, o] = x w + b: a network of one layer, for points."""

    @staticmethod
    def init(rng, dim=2):
        return {"layer": {"w": 0.3 * rng.standard_normal((dim, 2 * dim)), "b": 0.3 * rng.standard_normal(2 * dim)}}

    @staticmethod
    def forward(params, x, level):
        return linear_forward(x, **params["layer"])

    @staticmethod
    def backward(params, cache, grad_out):
        grad_x, grads = linear_backward(grad_out, cache)
        return grad_x, {"layer": grads}


@given(preserving_schedules(), seeds)
def test_the_variance_lies_at_beta_tilde_for_o_minus_1_and_at_beta_for_o_1(chain, seed):
    if chain.T < 2:
        return
    t = np.random.default_rng(seed).integers(2, chain.T + 1, 5)
    ends = [np.exp(improved_ddpm.log_variance(np.full((5, 1), o), t, chain))[:, 0] for o in (-1.0, 1.0)]
    np.testing.assert_allclose(ends[0], chain.beta_tilde[t], rtol=1e-9)
    np.testing.assert_allclose(ends[1], chain.beta[t], rtol=1e-9)


@given(seeds, st.sampled_from(["eps", "v", "x_0"]), st.booleans())
def test_the_terms_are_those_of_the_ledger(seed, predict, discretised):
    rng, chain = np.random.default_rng(seed), schedule.uniform_log_snr(6, -3, 3)
    params = Linear.init(rng)
    x_0, eps = rng.integers(0, 256, (12, 2)) / 127.5 - 1, rng.standard_normal((12, 2))
    t = 1 + np.arange(12) % 6
    x_0[0], x_0[6] = -1.0, 1.0  # the darkest and the brightest value, where the decoder is lopsided, at t = 1
    nats, _ = improved_ddpm.gradient(Linear, params, x_0, t, eps, chain, predict, "vlb", discretised=discretised)
    reverse, x_t = improved_ddpm.reverse(Linear, params, chain, predict), q_sample(x_0, t, eps, chain)
    later = t > 1
    np.testing.assert_allclose(nats[later], likelihood.step_kl(x_0[later], x_t[later], t[later], chain, reverse), rtol=1e-8)
    decode = likelihood.discretised_decoder if discretised else likelihood.gaussian_decoder
    np.testing.assert_allclose(nats[~later], -decode(x_0[~later], *reverse(x_t[~later], t[~later])).sum(axis=1), rtol=1e-8)


@settings(max_examples=20)
@given(seeds, st.sampled_from(["eps", "v", "x_0"]), st.booleans())
def test_the_gradient_of_the_bound(seed, predict, discretised):
    rng, chain = np.random.default_rng(seed), schedule.uniform_log_snr(6, -3, 3)
    theta, like = pack(Linear.init(rng))
    x_0, eps, t = rng.integers(0, 256, (12, 2)) / 127.5 - 1, rng.standard_normal((12, 2)), 1 + np.arange(12) % 6
    importance = rng.uniform(0.5, 2, 12)

    def objective(theta):
        nats, _ = improved_ddpm.gradient(Linear, unflatten(theta, like), x_0, t, eps, chain, predict, "vlb", importance, discretised)
        return (importance * nats).mean() * chain.T / 2

    _, grad = improved_ddpm.gradient(Linear, unflatten(theta, like), x_0, t, eps, chain, predict, "vlb", importance, discretised)
    assert directional_error(objective, theta, grad, rng) < GRADIENT


@given(seeds)
def test_the_hybrid_objective_moves_the_guess_by_l_simple_and_o_by_a_thousandth_of_the_bound(seed):
    rng, chain = np.random.default_rng(seed), schedule.cosine(6)
    params = Linear.init(rng)
    x_0, eps, t = *rng.standard_normal((2, 12, 2)), 1 + np.arange(12) % 6
    simple = {"layer": {name: leaf[..., :2] for name, leaf in params["layer"].items()}}
    _, expected = train.gradient(Linear, simple, x_0, t, eps, chain)
    _, hybrid = improved_ddpm.gradient(Linear, params, x_0, t, eps, chain)
    _, bound = improved_ddpm.gradient(Linear, params, x_0, t, eps, chain, weight="vlb")
    hybrid, bound, expected = unflatten(hybrid, params)["layer"], unflatten(bound, params)["layer"], unflatten(expected, simple)["layer"]
    for name in ("w", "b"):
        np.testing.assert_allclose(hybrid[name][..., :2], expected[name], rtol=1e-12)
        np.testing.assert_allclose(hybrid[name][..., 2:], improved_ddpm.LAMBDA * bound[name][..., 2:], rtol=1e-12)


class ShareOfEachStep:
    """The exact guess for N(0, var), and o free for each t: what the bound's optimum is, without a network's limits."""

    def __init__(self, var, chain):
        self.var, self.chain = var, chain

    def forward(self, params, x, level):
        t = np.searchsorted(self.chain.level[1:], level - 1e-9) + 1
        v = self.chain.signal[t] ** 2 * self.var + self.chain.noise[t] ** 2
        return np.concatenate([(self.chain.noise[t] / v)[:, None] * x, params["o"][t][:, None]], axis=1), t

    def backward(self, params, t, grad_out):
        grad_o = np.zeros_like(params["o"])
        np.add.at(grad_o, t, grad_out[:, 1])
        return None, {"o": grad_o}


@pytest.mark.parametrize("weight", ["hybrid", "vlb"])
def test_on_gaussian_data_the_optimum_is_the_true_reverse_variance(weight):
    chain, var, n = schedule.cosine(8), 0.4, 400_000
    rng, net = np.random.default_rng(0), ShareOfEachStep(0.4, chain)
    x_0, eps, t = math.sqrt(var) * rng.standard_normal((n, 1)), rng.standard_normal((n, 1)), rng.integers(2, 9, n)
    v = chain.signal**2 * var + chain.noise**2
    o = np.zeros(9)
    true = chain.beta[2:] * v[1:-1] / v[2:]
    o[2:] = 2 * (np.log(true) - np.log(chain.beta_tilde[2:])) / (np.log(chain.beta[2:]) - np.log(chain.beta_tilde[2:])) - 1
    at_optimum = improved_ddpm.gradient(net, {"o": o}, x_0, t, eps, chain, weight=weight)[1]
    beside = [improved_ddpm.gradient(net, {"o": o + shift}, x_0, t, eps, chain, weight=weight)[1] for shift in (-0.3, 0.3)]
    assert (beside[0][2:] < 0).all() and (beside[1][2:] > 0).all()  # below it the gradient leads up, above it down
    assert (abs(at_optimum[2:]) < 0.1 * abs(beside[1][2:])).all()


def test_importance_sampling_is_unbiased_and_of_lower_variance():
    rng, T = np.random.default_rng(0), 50
    mean = 10.0 / np.arange(1, T + 1) ** 2
    importance = ImportanceSampler(T)
    for _ in range(importance.last.shape[1]):
        t = np.arange(1, T + 1)
        importance.learn(t, mean[t - 1] * rng.uniform(0.5, 1.5, T))
    assert importance.p[0] == 0 and importance.p.sum() == pytest.approx(1)
    n = 100_000
    t = importance.draw(n, T, rng)
    weighted, plain = importance.importance(t) * mean[t - 1], mean[rng.integers(1, T + 1, n) - 1]
    assert abs(weighted.mean() - mean.mean()) < STANDARD_ERRORS * weighted.std() / math.sqrt(n)
    assert abs(plain.mean() - mean.mean()) < STANDARD_ERRORS * plain.std() / math.sqrt(n)
    assert weighted.std() < 0.2 * plain.std()


def test_t_is_uniform_until_every_t_has_been_seen_often_enough():
    importance = ImportanceSampler(3, keep=2)
    for t in ([1, 2, 3], [1, 2]):
        importance.learn(np.array(t), np.ones(len(t)))
        assert importance.p.tolist() == [0, 1 / 3, 1 / 3, 1 / 3]
    importance.learn(np.array([3, 3]), np.array([5.0, 5.0]))
    assert importance.p[3] > importance.p[1]


def test_training_with_importance_sampling_gives_the_bound_in_bits_and_lowers_it():
    chain, rng = schedule.cosine(20), np.random.default_rng(0)
    data, importance = exact.Gaussian([0.0, 0.0], [[0.5, 0.0], [0.0, 0.5]]), ImportanceSampler(20)
    state = train.start({"layer": {name: a.astype(np.float32) for name, a in Linear.init(rng)["layer"].items()}})
    how = dict(weight="vlb", lr=0.02, draw_t=importance.draw, gradient=importance.gradient())
    losses = [float(step.loss) for step in train.train(Linear, state, data.sample, chain, rng, 300, 64, **how)]
    assert np.mean(losses[-50:]) < np.mean(losses[:50])
    x_0 = data.sample(4000, rng)
    terms = [term for term, _ in likelihood.bound(x_0, chain, improved_ddpm.reverse(Linear, state.params, chain), rng)]
    assert np.mean(losses[-50:]) == pytest.approx(sum(term.nats for term in terms[1:]) / (2 * math.log(2)), rel=0.1)


def test_samplers_take_the_guess_alone():
    rng, chain = np.random.default_rng(0), schedule.cosine(5)
    params, x_t = Linear.init(rng), rng.standard_normal((4, 2))
    mean, _ = improved_ddpm.reverse(Linear, params, chain)(x_t, 3)
    eps_hat = improved_ddpm.predictor(Linear, params, chain)(x_t, 3)
    np.testing.assert_allclose(mean, (x_t - chain.beta[3] / chain.noise[3] * eps_hat) / math.sqrt(chain.alpha[3]), rtol=1e-12)


def test_the_network_that_sees_waves_has_the_right_gradients():
    rng = np.random.default_rng(0)
    theta, like = pack(vdm.init(rng, width=8))
    params = unflatten(theta.astype(np.float64) + 0.1 * rng.standard_normal(theta.size), like)
    level, label = rng.standard_normal(2), np.array([3, 10])
    forward = lambda x: vdm.forward(params, x, level, label)  # noqa: E731
    x = rng.uniform(-1, 1, (2, 8, 8, 1))
    out, cache = forward(x)
    assert out.shape == (2, 8, 8, 2)
    assert check_pair(forward, lambda grad, cache: (vdm.backward(params, cache, grad)[0], {}), x, rng)["x"] < 1e-4  # waves: h^2 f^3
    grads = vdm.backward(params, cache, rng.standard_normal(out.shape))[1]
    assert [a.shape for a in leaves(grads)] == [a.shape for a in leaves(params)]


def test_values_one_apart_are_told_apart_by_the_waves():
    f = vdm.FREQUENCIES[-1]
    assert abs(np.exp(1j * f * 2 / 255) - 1) > 1


def test_float32_in_float32_out():
    rng, chain = np.random.default_rng(0), schedule.uniform_log_snr(6)
    params = vdm.init(rng, width=8)
    x_0 = (rng.integers(0, 256, (3, 8, 8, 1)) / 127.5 - 1).astype(np.float32)
    eps = standard_normal(rng, x_0.shape, like=x_0)
    nats, grad = improved_ddpm.gradient(vdm, params, x_0, np.array([1, 2, 6]), eps, chain, "v", "vlb", discretised=True)
    assert nats.dtype == grad.dtype == np.float32 and np.isfinite(grad).all() and grad.shape == flatten(params).shape
