"""The order of a sampler, measured: how its error falls with the number of steps, where the exact predictor leaves no other error."""

from collections.abc import Callable, Iterator

import numpy as np

from npdiff.sampler import Step
from npdiff.schedule import Schedule


def end(steps: Iterator[Step]) -> np.ndarray:
    """x at t = 1: a sampler's last point before the step to t = 0, where no level is left to be of any order in."""
    return next(step.x_prev for step in steps if step.t_prev == 1)


def errors(
    sampler: Callable[[Schedule], Iterator[Step]], levels: Callable[[int], Schedule], counts: list[int], best: np.ndarray
) -> np.ndarray:
    """The root mean square distance from `best` of the points that sampler(levels(N)) reaches at t = 1, for each N of `counts`.

    levels(N) cuts one fixed interval of levels, from t = N to 1, into N - 1 steps.
    """
    return np.array([np.sqrt(((end(sampler(levels(N))) - best) ** 2).mean()) for N in counts])


def order(counts: list[int], errors: np.ndarray) -> float:
    """p, where the errors fall as (N - 1)^-p: the slope of a line through log error against log step."""
    return float(-np.polyfit(np.log(np.array(counts) - 1), np.log(errors), 1)[0])
