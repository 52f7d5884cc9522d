"""Multiplying a model by a second distribution r(x_0): denoising and inpainting.

Sec. 2.5, Sohl-Dickstein et al. 2015, arXiv:1503.03585.

What the paper proposed: to sample p(x_0) r(x_0) / Z without training anew, multiply every step of
the reverse chain by r, unchanged at every noise level: p(x_{t-1} | x_t) r(x_{t-1}) / Z(x_t). For a
Gaussian r the product is Gaussian; a smooth r shifts the mean of the step.

What is wrong with it, and what later work changed: the chain would follow the product of the
marginals p(x_t) r(x_t) if Z(x_t) were a multiple of r(x_t), which it is not. So r is counted again
at every step, and the chain forgets its start. For data N(0, 1) and r = N(1, 1) the true posterior
is N(1/2, 1/2), and the rule ends in N(2/3, 1/3): in the limit of small steps the reverse SDE gains
the drift beta (1 - x), dx = beta (1 - 3/2 x) + sqrt(beta) dw, and that is its stationary
distribution. A test checks it. The correct factor at level t is r_t(x_t) = E[r(x_0) | x_t], the
guidance of later papers.

    product      N(mean, var) N(r_mean, r_var), exactly
    perturbed    the paper's rule for a smooth r: mean + var d log r / dx
    restrained   ancestral sampling with a Gaussian r at every step
    inpaint      r a point mass on the known pixels, which replace the drawn ones after every step
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from npdiff.backend import Array, standard_normal
from npdiff.forward import q_sample, x_0_from_eps
from npdiff.reverse import p_mean_from_eps, p_variance
from npdiff.sampler import Predictor, Step
from npdiff.schedule import Schedule


def product(mean: Array, var: Array, r_mean: Array, r_var: Array) -> tuple[Array, Array]:
    """Mean and variance of N(mean, var) N(r_mean, r_var) / Z.

    Precisions add, and so do means times precisions.
    """
    new_var = 1 / (1 / var + 1 / r_var)
    return new_var * (mean / var + r_mean / r_var), new_var


def perturbed(mean: Array, var: Array, grad_log_r: Callable[[Array], Array]) -> Array:
    """The mean of N(mean, var) r / Z, for an r that hardly changes over a step.

    mean + var d log r / dx, taken at the mean. Table App.1, Sohl-Dickstein et al. 2015.
    """
    return mean + var * grad_log_r(mean)


def restrained(
    predict_eps: Predictor,
    x_T: Array,
    schedule: Schedule,
    rng: np.random.Generator,
    r_mean: Array,
    r_var: Array,
) -> Iterator[tuple[int, Array]]:
    """t - 1 and x_{t-1}: each reverse step, of variance beta_t, multiplied by r = N(r_mean, r_var).

    The paper's rule, with its error: see above.
    """
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x_t)
        mean = p_mean_from_eps(x_t, t, predict_eps(x_t, t), schedule)
        mean, var = product(mean, s.beta, r_mean, r_var)
        x_t = mean + var**0.5 * standard_normal(rng, x_t.shape, like=x_t)
        yield t - 1, x_t


def limit_on_gaussian_data(r_mean: float, r_var: float) -> tuple[float, float]:
    """Mean and variance in which `restrained` ends for data N(0, 1), in the limit of small steps.

    The stationary distribution of dx = (b - a x) ds + dw, a = 1/2 + 1/r_var and b = r_mean / r_var:
    mean b / a, variance 1 / (2 a). The true posterior is `product(0, 1, r_mean, r_var)`.
    """
    a, b = 0.5 + 1 / r_var, r_mean / r_var
    return b / a, 1 / (2 * a)


def inpaint(
    predict_eps: Predictor,
    x_T: Array,
    schedule: Schedule,
    rng: np.random.Generator,
    known: Array,
    mask: Array,
    noised: bool = True,
) -> Iterator[Step]:
    """Ancestral sampling in which the known pixels replace the drawn ones after every step.

    x_{t-1} = mask known_{t-1} + (1 - mask) (mean + sigma z)
    known_{t-1} ~ q(x_{t-1} | x_0 = known)

    Sec. 2.5, Sohl-Dickstein et al. 2015, arXiv:1503.03585, with the noise of later work.

    Parameters
    ----------
    predict_eps, x_T, schedule, rng : as in `sampler.ddpm`
    known : array of x_T's shape, an x_0 whose pixels are used where mask is 1
    mask : array that can be broadcast against x_T: 1 where the pixel is known, else 0
    noised : the known pixels have the noise of their level. Without it they are used as they are
        at every level, the paper's rule for a point mass, which no network was trained to see

    Yields
    ------
    Step : as of `sampler.ddpm`; x_prev = mean + sigma z holds where mask is 0
    """
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        mean = p_mean_from_eps(x_t, t, eps_hat, schedule)
        sigma = math.sqrt(p_variance(t, schedule)) if t > 1 else 0.0
        z = standard_normal(rng, x_t.shape, like=x_t) if t > 1 else 0 * x_t
        known_prev = known
        if noised and t > 1:
            eps = standard_normal(rng, known.shape, like=known)
            known_prev = q_sample(known, t - 1, eps, schedule)
        x_prev = mask * known_prev + (1 - mask) * (mean + sigma * z)
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, mean, sigma, z, x_prev)
        x_t = x_prev
