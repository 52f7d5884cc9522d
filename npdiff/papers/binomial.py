"""The binomial process, diffusion of bits. Sohl-Dickstein et al. 2015, arXiv:1503.03585.

Sec. 2 and app. B (table App.1). What the paper proposed: the same construction with a fixed chain
that, with probability beta_t, replaces a bit by the toss of a fair coin. What later work changed:
Hoogeboom et al. 2021 and Austin et al. 2021 extend it to many classes; their network predicts x_0,
as here, and the reverse step follows by Bayes' rule.

    q_step        B(x_t; x_{t-1} (1 - beta_t) + beta_t / 2)
    q_marginal    B(x_t; x_0 A_t + (1 - A_t) / 2),   A_t = product of 1 - beta_s over s <= t
    q_posterior   of x_{t-1} given x_t and x_0, by Bayes' rule
    bound         K as in the Gaussian process, in bits a sequence

B(x; p) is the Bernoulli distribution of a bit that is 1 with probability p. All bits are
independent under q. x has shape (B, n), of 0 and 1 in float64, since a step may flip a bit with a
probability of 1e-10; the network computes in the precision of its parameters.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from npdiff.backend import Array, get_array_module, per_row, sigmoid, to_numpy
from npdiff.likelihood import mean_and_error
from npdiff.nn.params import Tree, flatten, leaves
from npdiff.normal import BITS
from npdiff.schedule import Time

Guess = Callable[[Array, Time], Array]  # (x_t, t) -> the probability that each bit of x_0 is 1

# The forward process.


class Rates(NamedTuple):
    """beta and A of shape (T+1,), with beta[0] = 0 and A[0] = 1."""

    beta: np.ndarray
    A: np.ndarray

    @property
    def T(self) -> int:
        return len(self.A) - 1


def rates(T: int, first: float = 1e-4, last: float = 1e-2) -> Rates:
    """A from 1 - first down to `last`, in equal steps of log(A / (1 - A)).

    The paper erases 1/T of the data at each of its 2,000 steps.
    """
    logit = np.linspace(math.log((1 - first) / first), math.log(last / (1 - last)), T)
    A = np.concatenate([[1.0], 1 / (1 + np.exp(-logit))])
    return Rates(np.concatenate([[0.0], 1 - A[1:] / A[:-1]]), A)


def q_step(x_prev: Array, t: Time, rates: Rates) -> Array:
    """The probability that x_t is 1, given x_{t-1}:  x_{t-1} (1 - beta_t) + beta_t / 2."""
    beta_t = per_row(rates.beta[t], x_prev)
    return x_prev * (1 - beta_t) + beta_t / 2


def q_marginal(x_0: Array, t: Time, rates: Rates) -> Array:
    """The probability that x_t is 1, given x_0:  x_0 A_t + (1 - A_t) / 2."""
    A_t = per_row(rates.A[t], x_0)
    return x_0 * A_t + (1 - A_t) / 2


def q_posterior(x_0: Array, x_t: Array, t: Time, rates: Rates) -> Array:
    """The probability that x_{t-1} is 1, given x_t and x_0, by Bayes' rule.

    q(x_t | x_{t-1} = 1) q(x_{t-1} = 1 | x_0) / the same, summed over x_{t-1} = 0 and 1
    """
    beta_t = per_row(rates.beta[t], x_t)
    prior = q_marginal(x_0, np.asarray(t) - 1, rates)
    likelihood = x_t * (1 - beta_t / 2) + (1 - x_t) * beta_t / 2  # q(x_t | x_{t-1} = 1)
    one, zero = likelihood * prior, (1 - likelihood) * (1 - prior)
    return one / (one + zero)


def toss(p: Array, rng: np.random.Generator) -> Array:
    """Bits that are 1 with probability p."""
    return (get_array_module(p).asarray(rng.random(p.shape).astype(p.dtype)) < p).astype(p.dtype)


# The learned process.


def p_step(p_0: Array, x_t: Array, t: Time, rates: Rates) -> Array:
    """The probability that x_{t-1} is 1: the posterior, averaged over x_0 ~ B(p_0)."""
    if_1, if_0 = q_posterior(0 * x_t + 1, x_t, t, rates), q_posterior(0 * x_t, x_t, t, rates)
    return p_0 * if_1 + (1 - p_0) * if_0


def guess_and_cache(net: Any, params: Tree, x_t: Array, t: Time, rates: Rates) -> tuple[Array, Any]:
    """p_0 = sigmoid(net(2 x_t - 1, level)),  level = log((1 - A_t) / A_t) / 2; and net's cache."""
    dtype = leaves(params)[0].dtype
    level = np.broadcast_to(0.5 * np.log((1 - rates.A[t]) / rates.A[t]), len(x_t)).astype(dtype)
    level = get_array_module(x_t).asarray(level)
    out, cache = net.forward(params, (2 * x_t - 1).astype(dtype), level)
    return sigmoid(out.astype(x_t.dtype)), cache


def guess_of(net: Any, params: Tree, rates: Rates) -> Guess:
    """The network as a guess of x_0."""

    def guess(x_t: Array, t: Time) -> Array:
        p_0, _ = guess_and_cache(net, params, x_t, t, rates)
        return p_0

    return guess


def sample(
    guess: Guess, x_T: Array, rates: Rates, rng: np.random.Generator
) -> Iterator[tuple[int, Array]]:
    """t - 1 and x_{t-1}, for t = T..1, from fair coins x_T.

    The last step is that of the forward process.
    """
    x_t = x_T
    for t in range(rates.T, 0, -1):
        p = p_step(guess(x_t, t), x_t, t, rates) if t > 1 else q_step(x_t, 1, rates)
        x_t = toss(p, rng)
        yield t - 1, x_t


# The bound, and training.


def kl(q: Array, p: Array) -> Array:
    """KL(B(q) || B(p)) in nats, for each bit, with 0 log 0 = 0."""
    xp, tiny = get_array_module(p), 1e-30
    one = q * xp.log(xp.maximum(q, tiny) / p)
    zero = (1 - q) * xp.log(xp.maximum(1 - q, tiny) / (1 - p))
    return one + zero


def entropy(p: float) -> float:
    """H[B(p)] = -p log p - (1 - p) log(1 - p), in nats."""
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def bound(x_0: Array, rates: Rates, guess: Guess, rng: np.random.Generator) -> tuple[float, float]:
    """K, with E log2 p(x_0) >= K, and its standard error, in bits a sequence.

    K = -sum_{t=2}^{T} E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
        + H_q(X_T | X_0) - H_q(X_1 | X_0) - H_p(X_T)

    Eq. (14), Sohl-Dickstein et al. 2015, arXiv:1503.03585. The step from x_1 to x_0 is that of the
    forward process.
    """
    nats = np.zeros(len(x_0))
    for t in range(2, rates.T + 1):
        x_t = toss(q_marginal(x_0, t, rates), rng)
        step_kl = kl(q_posterior(x_0, x_t, t, rates), p_step(guess(x_t, t), x_t, t, rates))
        nats += to_numpy(step_kl).sum(axis=1)
    n = x_0.shape[1]
    H_T, H_1, H_p = entropy((1 - rates.A[-1]) / 2), entropy(rates.beta[1] / 2), entropy(0.5)
    return mean_and_error(BITS * (n * (H_T - H_1 - H_p) - nats))


def loss_and_gradient(
    net: Any, params: Tree, x_0: Array, t: np.ndarray, rates: Rates, rng: np.random.Generator
) -> tuple[Array, Array]:
    """The mean KL of a step in nats a sequence, (), and its gradient in theta, (P,); t in 2..T.

    dKL/dp = (p - q) / (p (1 - p));    p is linear in p_0, with the slope if_1 - if_0;
    dp_0/d out = p_0 (1 - p_0)

    The process is not the Gaussian one of train.gradient, so it has this function of its own.
    """
    x_t = toss(q_marginal(x_0, t, rates), rng)
    p_0, cache = guess_and_cache(net, params, x_t, t, rates)
    if_1, if_0 = q_posterior(0 * x_t + 1, x_t, t, rates), q_posterior(0 * x_t, x_t, t, rates)
    q, p = q_posterior(x_0, x_t, t, rates), p_step(p_0, x_t, t, rates)
    grad_p = (p - q) / (p * (1 - p))
    grad_out = grad_p * (if_1 - if_0) * p_0 * (1 - p_0)
    _, grads = net.backward(params, cache, (grad_out / len(x_0)).astype(leaves(params)[0].dtype))
    return kl(q, p).sum(axis=1).mean(), flatten(grads)
