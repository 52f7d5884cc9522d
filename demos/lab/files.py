"""Files that are written whole or not at all.

A reader finds the old file or the new one, never a part of one, even where the run was killed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes the place of `path` once it is complete.

    Its name holds the number of this process, so that no other process writes to it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz file in one move."""
    with in_one_move(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file in one move."""
    with in_one_move(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move."""
    with in_one_move(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
