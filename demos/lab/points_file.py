"""Points in the plane from a file of the user's, .npy or .csv, read and checked."""

import re
from pathlib import Path

import numpy as np

from lab import regular
from lab.errors import UserError


def read(path: Path) -> np.ndarray:
    """The file's points, float64 of shape (N, 2).

    UserError for anything else. It names the file, and the line of a .csv file.
    """
    if problem := regular.problem(path):
        raise UserError(f"{path}: {problem}; a .npy or .csv file of 2-D points is needed")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; two numbers a line are needed")
    try:
        x = read_npy(path) if path.suffix.lower() == ".npy" else read_csv(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
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
    """The array of a .npy file. UserError for a damaged file, and for one of Python objects."""
    try:
        with open(path, "rb") as file:
            return np.load(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # whatever NumPy and Python's parser make of a damaged header
        raise UserError(
            f"{path}: cannot be read as a .npy file of numbers: damaged, or made of Python objects"
        ) from error


def read_csv(path: Path) -> np.ndarray:
    """Two numbers a line, separated by a semicolon, a comma, tabs or blanks: (N, 2).

    Between semicolons a number may have a decimal comma. Blank lines and lines that start with #
    are skipped. A first line without any numbers is taken for a header.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file; two numbers a line are needed") from error
    rows: list[list[float]] = []
    may_be_header = True
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = fields_of(line)
        header = may_be_header and not any(starts_like_a_number(field) for field in fields)
        may_be_header = False
        if not header:
            rows.append(point(f"{path}, line {number}", line, fields))
    if not rows:
        raise UserError(f"{path}: no points in it; two numbers a line are needed")
    return np.array(rows)


def fields_of(line: str) -> list[str]:
    """The fields of a line, with a point for the decimal comma."""
    if ";" in line:
        return [field.replace(",", ".") for field in line.split(";")]
    return line.split("," if "," in line else None)  # None: at any blanks


def starts_like_a_number(field: str) -> bool:
    return re.match(r"[\s\"'+-]*[.,]?\d", field) is not None


def point(where: str, line: str, fields: list[str]) -> list[float]:
    """The two numbers of a line. UserError for anything else."""
    try:
        # Python reads 1_0 as a number; here it is none.
        numbers = [float(field.replace("_", "x")) for field in fields]
    except ValueError:
        raise UserError(f"{where}: {line.strip()[:40]!r} is not two numbers") from None
    if len(numbers) != 2:
        raise UserError(f"{where}: {len(numbers)} numbers; two are needed, a point's x and y")
    return numbers
