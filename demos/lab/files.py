"""Files that are written whole or not at all.

A reader finds the old file or the new one, never a part of one, even where the run was killed.
"""

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
HOUR = 3600.0  # no file takes that long to write


@contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes the place of `path` once it is complete.

    Its name is random and the file is new (O_EXCL), so that no other process writes to it, and
    nobody can have prepared it. What killed runs have left beside `path` is removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        remove_temporary(path.parent, older_than=HOUR)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path, older_than: float) -> None:
    """Remove the temporary files in `folder` that were last written so many seconds ago."""
    latest = time.time() - older_than
    for path in folder.iterdir():
        with suppress(OSError):  # another process was faster, or the file is another user's
            if TEMPORARY.fullmatch(path.name) and path.lstat().st_mtime <= latest:
                path.unlink()


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
