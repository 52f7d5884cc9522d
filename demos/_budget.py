"""How many steps fit into so many minutes: fixed before training, so that the learning rate's schedule fits and a run resumes exactly."""

import statistics
import time
from collections.abc import Iterator

from npdiff.train import TrainStep


def steps_in(minutes: float, trial: Iterator[TrainStep], warm_up: int = 5, timed: int = 30) -> int:
    """The number of steps for a budget, from the median time of a few steps of a trial whose results are thrown away."""
    seconds = []
    for _ in range(warm_up + timed):
        started = time.monotonic()
        float(next(trial).loss)  # waits for the device
        seconds.append(time.monotonic() - started)
    return max(1, int(60 * minutes / statistics.median(seconds[warm_up:])))
