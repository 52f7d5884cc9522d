"""The folder of a run: one run of one demo at a time, and no run is lost to the next.

DIR/run.json names the demo and the process. The process holds a lock on that file as long as it
lives; the system releases the lock however the process ends, so that no lock is ever stale.
"""

import errno
import json
import os
import shutil
import socket
from pathlib import Path
from typing import IO, Any

from lab import files
from lab.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where two runs at once go unnoticed
    fcntl = None  # type: ignore[assignment]

MARKER, METRICS, CHECKPOINT = "run.json", "metrics.json", "checkpoint.npz"
WRITTEN = (CHECKPOINT, METRICS, "samples.npz", "weights.npz", "inpainted.npz")
PICTURES = (".png", ".gif")


def claim(folder: Path, demo: str, goes_on: bool, overwrite: bool) -> IO[str]:
    """Make `folder` the folder of this run of `demo`.

    A new run moves a finished one aside, and does not start where an unfinished one lies.

    Parameters
    ----------
    goes_on : the run uses what lies in the folder: --resume or --sample-only
    overwrite : the run replaces what lies in the folder

    Returns
    -------
    the locked file DIR/run.json, which is to be closed when the run ends

    Raises
    ------
    UserError
        Where the folder cannot be written to, or another run or another demo uses it, or it holds
        an unfinished run that `overwrite` does not give up.
    """
    marker = _locked(folder)
    try:
        owner = _read(folder / MARKER)
        if owner.get("demo", demo) != demo:
            raise UserError(f"--out {folder}: holds a run of {owner['demo']}.py; use another --out")
        if overwrite:
            for path in _written(folder, owner):
                path.unlink()
        elif not goes_on and _unfinished(folder):
            raise UserError(
                f"--out {folder}: holds an unfinished run; --resume continues it, --overwrite "
                "starts anew in its place"
            )
        elif not goes_on and (folder / METRICS).exists():
            _move_aside(folder, owner)
            marker.close()
            marker, owner = _locked(folder), {}
        files.remove_temporary(folder, older_than=0)  # who wrote them is gone: the lock was free
        _mark(marker, demo, owner)
    except BaseException:
        marker.close()
        raise
    return marker


def _mark(marker: IO[str], demo: str, owner: dict[str, Any]) -> None:
    """Write who uses the folder now; a run that goes on keeps the time of its first start."""
    started = owner.get("started", os.fstat(marker.fileno()).st_mtime)
    owner = {"demo": demo, "pid": os.getpid(), "host": socket.gethostname(), "started": started}
    marker.truncate(0)
    marker.write(json.dumps(owner) + "\n")
    marker.flush()


def _locked(folder: Path) -> IO[str]:
    """DIR/run.json, open and locked; both are made where they are missing."""
    path = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a file; use another --out")
        marker = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--out {folder}: cannot be written to ({reason}); use another one"
        ) from error
    try:
        if fcntl is not None:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # On a file system without locks, two runs at once go unnoticed.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            owner = _read(path)
            marker.close()
            by = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
            raise UserError(
                f"--out {folder}: another run uses it ({by}); wait for its end, or use another "
                "--out"
            ) from error
    return marker


def _read(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _unfinished(folder: Path) -> bool:
    """Whether the folder holds a checkpoint of a training that has not been seen to its end."""
    if not (folder / CHECKPOINT).exists():
        return False
    metrics = _read(folder / METRICS)
    trained, steps = metrics.get("trained_steps"), metrics.get("settings", {}).get("steps")
    return trained is None or trained != steps


def _written(folder: Path, owner: dict[str, Any]) -> list[Path]:
    """The files of the run, and no file of the user's: known names, and later pictures."""
    started = owner.get("started", 0.0)
    pictures = [path for path in sorted(folder.iterdir()) if path.suffix in PICTURES]
    pictures = [path for path in pictures if path.stat().st_mtime >= started]
    return [path for path in (folder / name for name in WRITTEN) if path.exists()] + pictures


def _move_aside(folder: Path, owner: dict[str, Any]) -> None:
    """Move the run to DIR.previous, or to DIR.previous-2, ... where that exists, and say so."""
    whole, number = folder.resolve(), 1
    aside = whole.with_name(f"{whole.name}.previous")
    while aside.exists():
        number += 1
        aside = whole.with_name(f"{whole.name}.previous-{number}")
    try:
        aside.mkdir()
        for path in [*_written(folder, owner), folder / MARKER]:
            shutil.move(path, aside / path.name)
    except OSError as error:
        raise UserError(
            f"--out {folder}: its finished run cannot be moved to {aside} "
            f"({error.strerror or error}); use --overwrite, or another --out"
        ) from error
    print(f"the finished run in {folder} was moved to {folder.with_name(aside.name)}")
