"""Multiplying a model by a second distribution r(x_0): denoising and inpainting. Sec. 2.5, Sohl-Dickstein et al. 2015, arXiv:1503.03585.

What the paper proposed: to draw from p(x_0) r(x_0) / Z without training anew, multiply every step of the reverse chain by r, used at every
noise level as it is: p(x_{t-1} | x_t) r(x_{t-1}) / Z(x_t). Where r is Gaussian the product is; where r is smooth, it moves the step's mean.

What is wrong with it, and what later work changed: the product of the marginals p(x_t) r(x_t) is what the chain would follow if Z(x_t)
were a multiple of r(x_t), which it is not: r is then counted again at every step, and the chain forgets its start. For data N(0, 1) and
r = N(1, 1) the true posterior is N(1/2, 1/2), and the rule ends in N(2/3, 1/3): in the limit of small steps the reverse SDE gains the
drift beta (1 - x), dx = beta (1 - 3/2 x) + sqrt(beta) dw, and that is its stationary law. A test audits it. Right is r_t(x_t) =
E[r(x_0) | x_t] in r's place: the guidance of later papers.

    product      N(mean, var) N(r_mean, r_var), exactly
    perturbed    the paper's rule for a smooth r: mean + var d log r / dx
    restrained   ancestral sampling with a Gaussian r at every step
    inpaint      r a point mass on the known pixels: they are put in after every step, with the noise of that step
"""

from collections.abc import Callable, Iterator

import numpy as np

from npdiff.backend import Array, standard_normal
from npdiff.forward import q_sample
from npdiff.reverse import p_mean_from_eps
from npdiff.sampler import Predictor, Step, ddpm
from npdiff.schedule import Schedule


def product(mean: Array, var: Array, r_mean: Array, r_var: Array) -> tuple[Array, Array]:
    """Mean and variance of N(mean, var) N(r_mean, r_var) / Z: precisions add, and so do means times precisions."""
    new_var = 1 / (1 / var + 1 / r_var)
    return new_var * (mean / var + r_mean / r_var), new_var


def perturbed(mean: Array, var: Array, grad_log_r: Callable[[Array], Array]) -> Array:
    """The mean of N(mean, var) r / Z for an r that hardly changes over a step: mean + var d log r / dx at the mean. Table App.1."""
    return mean + var * grad_log_r(mean)


def restrained(
    predict_eps: Predictor, x_T: Array, schedule: Schedule, rng: np.random.Generator, r_mean: Array, r_var: Array
) -> Iterator[tuple[int, Array]]:
    """t - 1 and x_{t-1}: every step back, of variance beta_t, multiplied by r = N(r_mean, r_var)."""
    x_t = x_T
    for t in range(schedule.T, 0, -1):
        mean = p_mean_from_eps(x_t, t, predict_eps(x_t, t), schedule)
        mean, var = product(mean, float(schedule.beta[t]), r_mean, r_var)
        x_t = mean + var**0.5 * standard_normal(rng, x_t.shape, like=x_t)
        yield t - 1, x_t


def limit_on_gaussian_data(r_mean: float, r_var: float) -> tuple[float, float]:
    """Mean and variance where the rule ends for data N(0, 1) and small steps: those of dx = (b - a x) ds + dw.

    a = 1/2 + 1/r_var and b = r_mean / r_var: mean b / a, variance 1 / (2 a). The truth is `product(0, 1, r_mean, r_var)`.
    """
    a, b = 0.5 + 1 / r_var, r_mean / r_var
    return b / a, 1 / (2 * a)


def inpaint(
    predict_eps: Predictor, x_T: Array, schedule: Schedule, rng: np.random.Generator, known: Array, mask: Array, noised: bool = True
) -> Iterator[Step]:
    """Ancestral sampling in which the pixels where mask is 1 are those of `known` after every step; the others follow them.

    noised: they are put in with the noise of their level, a draw of q(x_{t-1} | x_0), as later work does. Without it they are put in clean
    at every level, which is the paper's rule for a point mass, and which the network has not been trained to see.
    """
    for step in ddpm(predict_eps, x_T, schedule, rng):
        seen = known
        if noised and step.t_prev > 0:
            seen = q_sample(known, step.t_prev, standard_normal(rng, known.shape, like=known), schedule)
        step.x_prev[...] = mask * seen + (1 - mask) * step.x_prev  # in place: the sampler goes on from it
        yield step
