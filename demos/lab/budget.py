"""How many training steps fit into a number of minutes.

The number is fixed before training starts, since the learning rate depends on it, and so that a run
that is resumed goes on to the same end.
"""

import statistics
import time
from collections.abc import Iterator

from npdiff.train import TrainStep


def steps_in(
    minutes: float, trial: Iterator[TrainStep], warm_up: int = 5, rounds: int = 7, steps: int = 5
) -> int:
    """The number of steps for a budget of minutes, from the median time of a few rounds of steps.

    `trial` is a training whose results are thrown away.
    """
    float([next(trial).loss for _ in range(warm_up)][-1])  # reading a loss waits for the device
    seconds = []
    for _ in range(rounds):
        started = time.monotonic()
        float([next(trial).loss for _ in range(steps)][-1])
        seconds.append((time.monotonic() - started) / steps)
    return max(1, int(60 * minutes / statistics.median(seconds)))
