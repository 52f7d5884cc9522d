"""A progress line for long work: how far it is, what it has reached, and the time that is left."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

from lab.errors import UserError
from npdiff.backend import Array
from npdiff.sampler import Step
from npdiff.train import TrainStep


class Line:
    """A progress line.

    On a terminal one line is rewritten five times a second. Elsewhere, in a file for instance, a
    new line is printed every five seconds.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.started = time.monotonic()
        # In a file the first line comes after one second.
        self.shown = self.started - (0 if self.terminal else 4)

    def due(self) -> bool:
        return time.monotonic() - self.shown >= (0.2 if self.terminal else 5.0)

    def show(self, text: str, last: bool = False) -> None:
        self.shown = time.monotonic()
        end = "\n" if last or not self.terminal else ""
        self.stream.write(f"\r{text}\x1b[K{end}" if self.terminal else text + end)
        self.stream.flush()

    def seconds(self) -> float:
        return time.monotonic() - self.started


def training(
    steps: Iterable[TrainStep],
    first: int,
    last: int,
    batch: int,
    floor: float | None = None,
    unit: str = "points",
) -> Iterator[TrainStep]:
    """The same training steps, with a progress line.

    The line shows the step, the mean loss since the line before, the speed and the time left. The
    loss is read, which waits for the device, only when a line is shown. UserError where it is not
    finite: training has diverged.

    Parameters
    ----------
    first, last : the number of steps before these, and at their end
    floor : the loss of a perfect network, shown beside the loss
    """
    line, total, count = Line(), None, 0
    for step in steps:
        total = step.loss if total is None else total + step.loss
        count += 1
        if line.due() or step.step == last:
            speed = (step.step - first) / line.seconds()
            if not math.isfinite(float(total)):
                raise UserError(
                    f"training diverged before step {step.step}: the loss is not finite; start "
                    "again with a smaller --lr and --overwrite"
                )
            text = _training_line(step.step, last, total, count, floor, speed, batch, unit)
            line.show(text, last=step.step == last)
            total, count = None, 0
        yield step


def _training_line(
    step: int,
    last: int,
    total: Array,
    count: int,
    floor: float | None,
    speed: float,
    batch: int,
    unit: str,
) -> str:
    done = f"training {step:>{len(str(last))}}/{last}"
    beside = "" if floor is None else f" (irreducible {floor:.4f})"
    left = duration((last - step) / speed)
    loss = f"loss {float(total) / count:.4f}{beside}"
    return f"{done}   {loss}   {speed * batch:,.0f} {unit}/s   {left} left"


def sampling(steps: Iterable[Step], points: int, unit: str = "points") -> Iterator[Step]:
    """The same steps of a sampler, with a progress line: t, from T to 0, and the time left."""
    line, T = Line(), None
    for step in steps:
        T = T or step.t
        if line.due() or step.t_prev == 0:
            left = duration(line.seconds() * step.t_prev / (T - step.t_prev))
            text = f"sampling {points:,} {unit}   t {step.t_prev:>{len(str(T))}}   {left} left"
            line.show(text, last=step.t_prev == 0)
        yield step


def duration(seconds: float) -> str:
    """Seconds in the usual units: 8 s, 2 min 05 s, 1 h 10 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"
