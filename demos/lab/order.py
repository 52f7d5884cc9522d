"""The order of a sampler, measured: how its error falls as the number of steps grows.

The samplers are given the exact predictor, so that discretisation is the only error.
"""

from collections.abc import Callable, Iterator

import numpy as np

from npdiff.sampler import Step
from npdiff.schedule import Schedule


def end(steps: Iterator[Step]) -> np.ndarray:
    """The sampler's x at t = 1, before its step to t = 0.

    That last step does not get smaller as the number of steps grows, so it has no order.
    """
    return next(step.x_prev for step in steps if step.t_prev == 1)


def errors(
    sampler: Callable[[Schedule], Iterator[Step]],
    levels: Callable[[int], Schedule],
    counts: list[int],
    best: np.ndarray,
) -> np.ndarray:
    """The root mean square distance of the sampler's points at t = 1 from `best`, for each N.

    Parameters
    ----------
    sampler : sampler(schedule) -> its steps
    levels : levels(N) -> a Schedule that cuts one fixed interval of levels, t = N to 1, into N - 1
    counts : the values of N
    best : the exact points
    """
    ends = [end(sampler(levels(N))) for N in counts]
    return np.array([np.sqrt(((x - best) ** 2).mean()) for x in ends])


def order(counts: list[int], errors: np.ndarray) -> float:
    """p, where the errors fall as (N - 1)^-p: the slope of log error against log step size."""
    slope, _ = np.polyfit(np.log(np.array(counts) - 1), np.log(errors), 1)
    return float(-slope)
