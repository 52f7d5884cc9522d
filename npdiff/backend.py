"""NumPy or CuPy: the array decides.

A function that needs more than operators and methods asks the array that it was given:
`xp = get_array_module(x)`. There is no global switch. A program calls `select` once and moves its
parameters and its data to that module; whatever is computed from them stays there. Importing npdiff
never imports CuPy.
"""

from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray, cupy.ndarray, or the strict array of the tests


class BackendError(RuntimeError):
    """CuPy was asked for and cannot be used; the message says what to install or to check."""


def get_array_module(x: Array) -> Any:
    """The module whose functions take and make arrays of x's kind."""
    if type(x).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return x.__array_namespace__() if hasattr(x, "__array_namespace__") else np


def to_numpy(x: Array) -> np.ndarray:
    """x as a NumPy array on the host. For a device array this waits for the device."""
    return x.get() if hasattr(x, "get") else np.asarray(x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), computed as (1 + tanh(x / 2)) / 2, which never overflows."""
    return 0.5 * get_array_module(x).tanh(0.5 * x) + 0.5


def standard_normal(rng: np.random.Generator, shape: tuple[int, ...], like: Array) -> Array:
    """z ~ N(0, I) of like's dtype, drawn on the host and moved to like's device.

    The same seed therefore gives the same noise on every backend.
    """
    return get_array_module(like).asarray(rng.standard_normal(shape, dtype=like.dtype))


def per_row(value: np.ndarray | float, x: Array) -> Array:
    """A number of the host for each row of x, ready to multiply it: (B,) -> (B, 1, ..., 1).

    The result has x's precision and device. One number for all rows becomes a Python float.
    """
    if np.ndim(value) == 0:
        return float(value)
    value = np.asarray(value).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return get_array_module(x).asarray(value)


def select(name: str = "auto") -> ModuleType:
    """The array module called `name`: "numpy", "cupy", or "auto" (CuPy where it works, else NumPy).

    Raises
    ------
    ValueError
        For another name.
    BackendError
        Where "cupy" cannot be used. The message says why and what to do, in one line.
    """
    if name not in ("auto", "numpy", "cupy"):
        raise ValueError(f'backend must be "auto", "numpy" or "cupy", got {name!r}')
    if name == "numpy":
        return np
    problem = cupy_problem()
    if problem is None:
        import cupy

        return cupy
    if name == "auto":
        return np
    raise BackendError(problem)


def cupy_problem() -> str | None:
    """Why CuPy cannot be used here, in one line; None where it compiled and ran a small kernel."""
    try:
        import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return (
                'CuPy is not installed: pip install "npdiff[cuda13]" (or [cuda12]; nvidia-smi says '
                "which), or use --backend numpy"
            )
        return (
            f"CuPy is installed but cannot be imported ({first_line(error)}): install exactly one "
            "wheel, cupy-cuda12x or cupy-cuda13x"
        )
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return (
            f"CuPy reaches no GPU ({first_line(error)}): check that nvidia-smi works and that its "
            "CUDA version fits the wheel"
        )
    if count == 0:
        return (
            "CuPy reaches no GPU: check that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES "
            "does not hide it"
        )
    try:
        (cupy.arange(3, dtype="f") * 2).get()
    except Exception as error:
        return (
            f"CuPy cannot run a kernel ({first_line(error)}): install the CUDA headers with "
            'pip install "npdiff[cuda13]" (or [cuda12])'
        )
    return None


def first_line(error: Exception) -> str:
    """The first line of the error's message, or the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
