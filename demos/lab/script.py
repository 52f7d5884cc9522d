"""The door of a script without flags: what goes wrong before the work ends in one line."""

import os
import signal
import sys
from pathlib import Path

from lab import interrupt


def begin(description: str | None, folder: str) -> None:
    """--help, Ctrl-C, a pipe that nobody reads any more, and a folder that cannot be written to."""
    interrupt.in_one_line("__main__")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end silently, as other programs do
    program = Path(sys.argv[0]).name
    if sys.stdout is None:
        sys.exit(f"{program}: stdout is closed; redirect it to a file or to {os.devnull}")
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((description or "").strip())
        sys.exit()
    if sys.argv[1:]:
        sys.exit(f"{program}: takes no flags, got {' '.join(sys.argv[1:])}")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        sys.exit(f"{program}: {folder}: {error.strerror}; it must be a folder to write to")
    if not os.access(folder, os.W_OK | os.X_OK):
        sys.exit(f"{program}: {folder}: cannot be written to")
