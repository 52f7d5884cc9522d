"""How many steps fit into so many minutes: fixed before training, so that the learning rate's schedule fits and a run resumes exactly."""

import statistics
import time
from collections.abc import Iterator

from npdiff.train import TrainStep


def steps_in(minutes: float, trial: Iterator[TrainStep], warm_up: int = 5, rounds: int = 7, steps: int = 5) -> int:
    """The number of steps for a budget, from the median time of a few rounds of steps of a trial whose results are thrown away."""
    float([next(trial).loss for _ in range(warm_up)][-1])  # waits for the device, as below
    seconds = []
    for _ in range(rounds):
        started = time.monotonic()
        float([next(trial).loss for _ in range(steps)][-1])
        seconds.append((time.monotonic() - started) / steps)
    return max(1, int(60 * minutes / statistics.median(seconds)))
