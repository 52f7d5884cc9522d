"""DPM-Solver++. Lu et al. 2022, arXiv:2211.01095.

What the paper proposed: in lambda = log(signal / noise) the linear part of the ODE has a closed
form, so only the network's prediction of x_0 needs to be extrapolated. A line through its last two
values gives a solver of order 2 at one evaluation a step. The steps are best equal in lambda:
`schedule.uniform_log_snr`.

    paper             here
    ----------------  -------------------
    alpha_t, sigma_t  signal[t], noise[t]
    lambda_t          -level[t]
    x_theta           x_0_hat
"""

import math
from collections.abc import Iterator

from npdiff.backend import Array
from npdiff.forward import x_0_from_eps
from npdiff.sampler import Predictor, Step, check_signal
from npdiff.schedule import Schedule


def dpm_solver_pp_2m(predict_eps: Predictor, x_T: Array, schedule: Schedule) -> Iterator[Step]:
    """DPM-Solver++(2M) along all levels of a schedule.

    x_{t-1} = noise_{t-1} / noise_t x_t - signal_{t-1} (exp(-h) - 1) D
    D       = (1 + 1/(2 r)) x_0_hat - 1/(2 r) previous x_0_hat
    h       = lambda_{t-1} - lambda_t,    r = previous h / h

    Algorithm 2, Lu et al. 2022, arXiv:2211.01095. In the first step, and in the one to t = 0, where
    h is infinite, D = x_0_hat. ValueError where signal[T] is 0.
    """
    check_signal(schedule)
    x_t = x_T
    previous_x_0_hat, previous_h = None, math.inf
    for t in range(schedule.T, 0, -1):
        s = schedule.at(t, x_t)
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, schedule)
        h = float(schedule.level[t] - schedule.level[t - 1])
        D = x_0_hat
        if previous_x_0_hat is not None and t > 1:
            r = previous_h / h
            D = (1 + 1 / (2 * r)) * x_0_hat - 1 / (2 * r) * previous_x_0_hat
        x_prev = s.noise_prev / s.noise * x_t - s.signal_prev * math.expm1(-h) * D
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, x_prev, 0.0, 0 * x_t, x_prev)
        x_t, previous_x_0_hat, previous_h = x_prev, x_0_hat, h
