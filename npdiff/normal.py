"""Log-densities, entropies and divergences of normal distributions, per coordinate, in nats."""

import math

import numpy as np

from npdiff.backend import Array, get_array_module, to_numpy

LOG_2PI = math.log(2 * math.pi)
BITS = 1 / math.log(2)  # bits in one nat


def log(x: Array) -> Array:
    """The natural logarithm of a Python float or of an array."""
    return math.log(x) if isinstance(x, (int, float)) else get_array_module(x).log(x)


def log_prob(x: Array, mean: Array, var: Array) -> Array:
    """The log-density of N(mean, var) at x, in nats, for each coordinate.

    log N(x; mean, var) = -1/2 [log(2 pi var) + (x - mean)^2 / var]
    """
    return -0.5 * (LOG_2PI + log(var) + (x - mean) ** 2 / var)


def entropy(var: Array) -> Array:
    """H[N(., var)] = 1/2 log(2 pi e var), in nats, for each coordinate."""
    return 0.5 * (LOG_2PI + 1 + log(var))


def kl(mean_1: Array, var_1: Array, mean_2: Array, var_2: Array) -> Array:
    """KL(N(mean_1, var_1) || N(mean_2, var_2)) in nats, for each coordinate.

    KL = 1/2 [r - 1 - log r + (mean_1 - mean_2)^2 / var_2],    r = var_1 / var_2
    """
    r = var_1 / var_2
    return 0.5 * (r - 1 - log(r) + (mean_1 - mean_2) ** 2 / var_2)


def log_cdf(x: Array) -> Array:
    """log Phi(x), with Phi(x) = erfc(-x / sqrt(2)) / 2, in float64 and of x's shape.

    erfc is that of Python's standard library, so this runs on the host. Far out erfc underflows;
    below -20 the asymptotic series of the tail is used instead:

    log Phi(x) = -x^2/2 - log(-x sqrt(2 pi)) + log(1 - 1/x^2 + 3/x^4 - 15/x^6)
    """
    on_host = to_numpy(x).astype(np.float64)
    near, far = np.maximum(on_host, -20.0), np.minimum(on_host, -20.0)
    tail = (
        -0.5 * (far**2 + LOG_2PI)
        - np.log(-far)
        + np.log1p((-1 + (3 - 15 / far**2) / far**2) / far**2)
    )
    body = np.log(0.5 * np.asarray(_erfc(near / -math.sqrt(2)), np.float64))
    return get_array_module(x).asarray(np.where(on_host < -20, tail, body))


_erfc = np.frompyfunc(math.erfc, 1, 1)


def log_sum_exp(x: Array) -> Array:
    """log sum_k exp(x[:, k]), without overflow: (N, K) -> (N, 1)."""
    xp = get_array_module(x)
    largest = x.max(axis=1, keepdims=True)
    return largest + xp.log(xp.exp(x - largest).sum(axis=1, keepdims=True))


def mean_kl(log_ratio: np.ndarray) -> float:
    """KL(q || p) in nats, estimated from log_ratio = log q - log p, of shape (N,), at N draws of q.

    The estimate is the mean of log_ratio + c (exp(-log_ratio) - 1). Since exp(-log_ratio) = p / q
    has mean 1 under q, the second term is a control variate: it adds no bias, whatever c is. Each
    half of the draws is given the c of smallest variance in the other half, which does not depend
    on its own draws. Where p is close to q, c is near 1 and most of the error cancels. p / q must
    have a finite variance under q.
    """
    halves = log_ratio[::2], log_ratio[1::2]
    total = 0.0
    for own, other in (halves, halves[::-1]):
        excess = np.expm1(-other)
        c = -np.cov(other, excess)[0, 1] / max(float(excess.var(ddof=1)), 1e-300)
        total += float((own + c * np.expm1(-own)).sum())
    return total / len(log_ratio)
