"""What a lesson needs beside the mathematics: its door, and an equation printed with both sides."""

import numpy as np

from lab import script

FOLDER = "out/lessons"
ROUNDINGS = 4096  # what rounding may add up to: a few roundings in each of a thousand steps
ERRORS = 5.0  # standard errors; by chance a difference is larger once in 1.7 million times


def begin(question: str | None) -> None:
    """--help and refusals as in every script; then the lesson's question and the table's head."""
    script.begin(question, FOLDER)
    print((question or "").splitlines()[0])
    print(f"\n{'arrays: where they differ most':50}{'left side':>13}{'right side':>13}  difference")


def equal(
    what: str,
    left: np.ndarray | float,
    right: np.ndarray | float,
    error: np.ndarray | float | None = None,
    within: float | None = None,
) -> None:
    """Print the two sides of an equation, where they differ most, and by how much.

    By default the sides should be equal up to rounding. The line ends with DISAGREES where they
    are not.

    Parameters
    ----------
    what : the equation, in the symbols of the code
    left, right : numbers or arrays of one shape; the reader sees the entries that differ most
    error : where a side is an average over draws, the standard error of left - right; the
        difference is then given in standard errors, of which ERRORS are allowed
    within : the largest difference, where the sides are equal up to an error of another kind, such
        as that of a grid
    """
    x, y = np.broadcast_arrays(np.asarray(left), np.asarray(right))
    if error is None:
        gap = np.abs(x - y)
        rounding = np.finfo(np.result_type(x, y, np.float32)).eps * max(np.abs(x).max(), 1e-300)
        allowed = ROUNDINGS * rounding if within is None else within
        kind = "(rounding)" if within is None else f"(at most {within:.1g})"
    else:
        gap, allowed, kind = np.abs(x - y) / error, ERRORS, "std errors"
    gap = np.where(np.isfinite(gap), gap, np.inf)
    at = np.unravel_index(gap.argmax(), gap.shape)
    size = f"{gap[at]:.1f}" if error is not None else f"{gap[at]:.1e}"
    verdict = "" if gap[at] <= allowed else "   DISAGREES"
    print(f"  {what:48}{x[at]:13.6g}{y[at]:13.6g}  {size} {kind}{verdict}")
