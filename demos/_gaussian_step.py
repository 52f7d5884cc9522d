"""Why a Gaussian step is enough: how far the true step back, q(x_{t-1} | x_t), is from the best Gaussian, on data in closed form.

We cannot calculate it for images; on the roll we can. In few steps it has the shape of the data, in many it is a Gaussian to all digits.
"""

import math

import numpy as np

import _judge
from npdiff import normal
from npdiff.exact import Mixture
from npdiff.forward import q_sample, q_step
from npdiff.papers.dpm2015 import moments
from npdiff.schedule import Schedule


def non_gaussianity(data: Mixture, t: int, schedule: Schedule, n: int, rng: np.random.Generator) -> float:
    """E KL(q(x_{t-1} | x_t) || the best Gaussian) in nats, by n points, with q(x_{t-1} | x_t) = q(x_t | x_{t-1}) q(x_{t-1}) / q(x_t)."""
    s, x_0 = schedule, data.sample(n, rng, np.float64)
    x_prev = q_sample(x_0, t - 1, rng.standard_normal(x_0.shape), s) if t > 1 else x_0
    eps = rng.standard_normal(x_0.shape)
    x_t = q_step(x_prev, t, eps, s)
    log_q = normal.log_prob(eps, 0.0, 1.0).sum(axis=1) - data.dim / 2 * math.log(s.beta[t])  # of x_t given x_{t-1}
    log_q += data.log_prob(x_prev, float(s.signal[t - 1]), float(s.noise[t - 1])) - data.log_prob(
        x_t, float(s.signal[t]), float(s.noise[t])
    )
    mean, cov = moments(data, x_t, t, s)
    d = x_prev - mean
    squares = (d * np.linalg.solve(cov, d[..., None])[..., 0]).sum(axis=1)
    log_gaussian = -0.5 * (data.dim * normal.LOG_2PI + np.linalg.slogdet(cov)[1] + squares)
    return _judge.mean_kl(log_q - log_gaussian)


def clouds(data: Mixture, x_t: np.ndarray, t: int, schedule: Schedule, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n draws of q(x_{t-1} | x_t) for one x_t (d,), and n of its best Gaussian.

    Those of q are draws of q(x_{t-1}), drawn again in proportion to q(x_t | x_{t-1}).
    """
    x_0 = data.sample(200 * n, rng, np.float64)
    x_prev = q_sample(x_0, t - 1, rng.standard_normal(x_0.shape), schedule) if t > 1 else x_0
    log_w = normal.log_prob(x_t, math.sqrt(schedule.alpha[t]) * x_prev, float(schedule.beta[t])).sum(axis=1)
    w = np.exp(log_w - log_w.max())
    mean, cov = moments(data, x_t[None], t, schedule)
    return x_prev[rng.choice(len(w), size=n, p=w / w.sum())], rng.multivariate_normal(mean[0], cov[0], size=n)
