"""Points in the plane from a file of the user's, .npy or .csv, read and checked."""

from pathlib import Path

import numpy as np

from lab.errors import UserError


def read(path: Path) -> np.ndarray:
    """The file's points, float64 of shape (N, 2).

    UserError for anything else. It names the file, and the line of a .csv file.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; a .npy or .csv file of 2-D points is needed")
    if not path.is_file():
        raise UserError(f"{path}: no such file; a .npy or .csv file of 2-D points is needed")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; two numbers a line are needed")
    try:
        x = read_npy(path) if path.suffix.lower() == ".npy" else read_csv(path)
    except UserError:
        raise
    except (ValueError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as points ({reason})") from error
    return checked(path, x)


def checked(path: Path, x: np.ndarray) -> np.ndarray:
    """x in float64. UserError unless it is finite numbers of shape (N, 2)."""
    if not isinstance(x, np.ndarray):
        raise UserError(f"{path}: holds several arrays; one of shape (N, 2) is needed")
    if x.ndim != 2 or x.shape[1] != 2 or x.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: holds {x.dtype} of shape {x.shape}; numbers of shape (N, 2) are needed"
        )
    x = x.astype(np.float64)
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite)) + 1
        raise UserError(f"{path}: point {first} is not finite; remove NaN and infinities")
    if np.abs(x).max(initial=0) > 1e30:
        raise UserError(f"{path}: holds {np.abs(x).max():g}; numbers may be as large as 1e30")
    return x


def read_npy(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        return np.load(file, allow_pickle=False)


def read_csv(path: Path) -> np.ndarray:
    """Two numbers a line, separated by a comma, a semicolon, tabs or blanks: (N, 2).

    Blank lines and lines that start with # are skipped. A first line that does not hold numbers is
    taken for a header.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file; two numbers a line are needed") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        separator = next((mark for mark in ",;" if mark in line), None)  # None: any blanks
        try:
            # Python reads 1_0 as a number; here it is none.
            row = [float(field.replace("_", "x")) for field in line.split(separator)]
        except ValueError:
            if not rows and number == 1:
                continue
            text = line.strip()[:40]
            raise UserError(f"{path}, line {number}: {text!r} is not two numbers") from None
        if len(row) != 2:
            raise UserError(
                f"{path}, line {number}: {len(row)} numbers; two are needed, a point's x and y"
            )
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no points in it; two numbers a line are needed")
    return np.array(rows)
