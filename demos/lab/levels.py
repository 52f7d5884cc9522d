"""Which t a picture shows.

Most of the steps of a chain look alike: at small t only data are seen, and at large t only noise.
So the t of a picture are spaced by their level, log(noise / signal), and not evenly.
"""

import math

import numpy as np

from npdiff.schedule import Schedule

# Data of unit variance are seen to dissolve while noise / signal rises from 1/24 to 2.
SEEN = math.log(1 / 24), math.log(2)


def spaced_by_level(schedule: Schedule, n: int) -> list[int]:
    """t = 0 and T, and between them n steps with their levels in equal steps, in rising order.

    The levels are those that cut `SEEN`, as far as the schedule covers it, into n + 1 equal parts.
    Where several of them have the same nearest t, there are fewer than n.
    """
    low, high = np.clip(SEEN, schedule.level[1], schedule.level[-1])
    levels = np.linspace(low, high, n + 2)[1:-1]
    return sorted({0, schedule.T, *(nearest(schedule, level) for level in levels)})


def nearest(schedule: Schedule, level: float) -> int:
    """The t in 1..T whose level is nearest to this one."""
    return 1 + int(np.abs(schedule.level[1:] - level).argmin())
