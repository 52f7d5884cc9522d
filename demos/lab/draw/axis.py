"""Ranges of values on a linear or a logarithmic scale, their ticks, and the labels of the ticks."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """A range of values, on a linear or a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: np.ndarray, log: bool = False, margin: float = 0.05) -> "Axis":
        """An axis that holds every value that the scale can show.

        A linear one starts at 0 where that leaves less than half of it empty.
        """
        values = values[np.isfinite(values) & ((values > 0) | (not log))]
        low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
        if log:
            factor = (high / low) ** margin if high > low else 2.0
            return cls(low / factor, high * factor, log)
        room = margin * (high - low) if high > low else 0.5
        return cls(0.0 if 0 <= low < high / 2 else low - room, high + room)

    @np.errstate(all="ignore")
    def place(self, values: np.ndarray) -> np.ndarray:
        """0 at the low end, 1 at the high end.

        Not finite where the value is not finite, or has no logarithm.
        """
        low, high, at = np.float64(self.low), np.float64(self.high), np.asarray(values, np.float64)
        if self.log:
            low, high, at = np.log(low), np.log(high), np.log(at)
        return (at - low) / (high - low)

    def ticks(self, most: int = 6) -> list[float]:
        """At most some `most` round numbers on the axis."""
        ticks = self.powers_of_ten(most) if self.log else []
        return ticks if len(ticks) > 1 else self.equal_steps(most)

    def powers_of_ten(self, most: int) -> list[float]:
        """Powers of ten; where they are few, also 2 and 5 times each of them."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        every = math.ceil(len(decades) / most)
        multiples = (1, 2, 5) if len(decades) <= 3 else (1,)
        ticks = [m * 10.0**k for k in decades if k % every == 0 for m in multiples]
        return [tick for tick in ticks if self.low <= tick <= self.high]

    def equal_steps(self, most: int) -> list[float]:
        """Equal steps of 1, 2 or 5 times a power of ten."""
        length = self.high - self.low
        power = 10.0 ** math.floor(math.log10(length / most))
        step = next(m * power for m in (1, 2, 5, 10, 20) if length / (m * power) <= most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, in one notation, with a true minus.

    Equal steps have equally many decimals: 0.5, 1.0, 1.5. Others do not: 0.1, 1, 10. Where a tick
    is tiny or huge, all are written with powers of ten.
    """
    if all(tick == 0 or 1e-3 <= abs(tick) < 1e6 for tick in ticks):
        even = len(ticks) > 2 and np.ptp(np.diff(ticks)) < 1e-9 * np.ptp(ticks)
        decimals = max((len(f"{tick:g}".partition(".")[2]) for tick in ticks), default=0)
        labels = [f"{tick:.{decimals}f}" if even else f"{tick:g}" for tick in ticks]
    else:
        parts = [f"{tick:e}".split("e") for tick in ticks]
        labels = [
            f"{float(digits):g} \u00d7 10^{{{int(power)}}}" if float(digits) else "0"
            for digits, power in parts
        ]
    return [re.sub("^1 \u00d7 ", "", label).replace("-", "\u2212") for label in labels]
