"""A line that says how far long work is, what it has reached and how long it will take."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

from npdiff.backend import Array
from npdiff.sampler import Step
from npdiff.train import TrainStep


class Line:
    """One line on a terminal, written over itself five times a second; elsewhere a plain line every five seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.started = time.monotonic()
        self.shown = self.started - (0 if self.terminal else 4)  # the first plain line comes after one second

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
    steps: Iterable[TrainStep], first: int, last: int, batch: int, floor: float | None = None, unit: str = "points"
) -> Iterator[TrainStep]:
    """The same steps, with a progress line: step, mean loss since the line before, its floor where known, speed and time left.

    The loss is read, and the device waited for, only when a line is shown.
    """
    line, total, count = Line(), None, 0
    for step in steps:
        total = step.loss if total is None else total + step.loss
        count += 1
        if line.due() or step.step == last:
            speed = (step.step - first) / line.seconds()
            line.show(_training_line(step.step, last, total, count, floor, speed, batch, unit), last=step.step == last)
            total, count = None, 0
        yield step


def _training_line(step: int, last: int, total: Array, count: int, floor: float | None, speed: float, batch: int, unit: str) -> str:
    of_floor = "" if floor is None else f" (irreducible {floor:.4f})"
    done, left = f"training {step:>{len(str(last))}}/{last}", duration((last - step) / speed)
    return f"{done}   loss {float(total) / count:.4f}{of_floor}   {speed * batch:,.0f} {unit}/s   {left} left"


def sampling(steps: Iterable[Step], points: int, unit: str = "points") -> Iterator[Step]:
    """The same steps of a sampler, with a progress line: t on its way from T to 0, and the time left."""
    line, T = Line(), None
    for step in steps:
        T = T or step.t
        if line.due() or step.t_prev == 0:
            left = duration(line.seconds() * step.t_prev / (T - step.t_prev))
            line.show(f"sampling {points:,} {unit}   t {step.t_prev:>{len(str(T))}}   {left} left", last=step.t_prev == 0)
        yield step


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 8 s, 2 min 05 s, 1 h 10 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"
