"""DPM-Solver++. Lu et al. 2022, arXiv:2211.01095.

What the paper proposed: in lambda = log(signal / noise) the ODE's linear part has a closed form, so that only the network's guess of x_0
need be extrapolated; a line through its last two values makes an order of 2 at one evaluation a step. Steps are best equal in lambda:
`schedule.uniform_log_snr`.

| paper | here |
|---|---|
| alpha_t, sigma_t | signal[t], noise[t] |
| lambda_t | -level[t] |
| x_theta | x_0_hat |
"""

import math
from collections.abc import Iterator

from npdiff.backend import Array, get_array_module
from npdiff.forward import x_0_from_eps
from npdiff.sampler import Predictor, Step
from npdiff.schedule import Schedule


def dpm_solver_pp_2m(predict_eps: Predictor, x_T: Array, schedule: Schedule) -> Iterator[Step]:
    """DPM-Solver++(2M), Algorithm 2, Lu et al. 2022, arXiv:2211.01095, along all levels of a schedule.

    x_{t-1} = noise_{t-1} / noise_t x_t - signal_{t-1} (exp(-h) - 1) D,      h = lambda_{t-1} - lambda_t
    D = (1 + 1/(2 r)) x_0_hat - 1/(2 r) (the x_0_hat before),                r = (the h before) / h
    The first step and the one to t = 0, where h is infinite, have D = x_0_hat.
    """
    s, x_t = schedule, x_T
    x_0_before, h_before = None, math.inf
    for t in range(s.T, 0, -1):
        eps_hat = predict_eps(x_t, t)
        x_0_hat = x_0_from_eps(x_t, t, eps_hat, s)
        h = float(s.level[t] - s.level[t - 1])
        D = x_0_hat
        if x_0_before is not None and t > 1:
            r = h_before / h
            D = (1 + 1 / (2 * r)) * x_0_hat - 1 / (2 * r) * x_0_before
        x_prev = float(s.noise[t - 1] / s.noise[t]) * x_t - float(s.signal[t - 1]) * math.expm1(-h) * D
        yield Step(t, t - 1, x_t, eps_hat, x_0_hat, x_prev, 0.0, get_array_module(x_t).zeros_like(x_t), x_prev)
        x_t, x_0_before, h_before = x_prev, x_0_hat, h
