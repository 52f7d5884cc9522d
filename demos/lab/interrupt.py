"""Ctrl-C in one line, from the first import of a demo to its end, and also twice in a row."""

import os
import signal
import sys
from types import FrameType

SAID: list[str] = []  # the line, once it is said


def in_one_line(name: str) -> None:
    """From here on, where `name` is "__main__": Ctrl-C prints one line and ends the program.

    A demo calls this before it imports NumPy; `lab.cli.run` takes over from there.
    """
    if name == "__main__":
        signal.signal(signal.SIGINT, at_once)


def at_once(signum: int, frame: FrameType | None) -> None:
    say("")
    os._exit(130)


def as_an_error(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; whoever does not want to wait for what that does presses again."""
    signal.signal(signal.SIGINT, at_once)
    raise KeyboardInterrupt


def say(more: str) -> None:
    """Print that the program was stopped, once."""
    if not SAID:
        SAID.append(f"stopped{more}\n")
        after_progress = "\n" if sys.stdout is not None and sys.stdout.isatty() else ""
        os.write(2, (after_progress + SAID[0]).encode(errors="backslashreplace"))
