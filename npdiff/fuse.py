"""One kernel for a whole formula on CuPy, where otherwise every operator is a kernel of its own. A reader can skip this file.

    @elementwise
    def f(x, y, c): ...

f works entry by entry: arithmetic, also in place, and the functions of `get_array_module(x)`. Its first argument is an
array, and its numbers come in as finished Python floats, because a fused kernel does arithmetic between two numbers
in half precision. Where CuPy is not installed, or with NPDIFF_FUSE=0 in the environment, f stays as it is written, and
a debugger steps straight into it.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, TypeVar

from npdiff.backend import get_array_module

F = TypeVar("F", bound=Callable[..., Any])

FUSE = os.environ.get("NPDIFF_FUSE") != "0" and importlib.util.find_spec("cupy") is not None


def elementwise(f: F) -> F:
    """f, run as one kernel where its first argument is a CuPy array; `f.__wrapped__` is the plain function."""
    if not FUSE:
        return f

    @functools.wraps(f)
    def fused_on_cupy(*args: Any) -> Any:
        return _fused(f)(*args) if get_array_module(args[0]).__name__ == "cupy" else f(*args)

    return fused_on_cupy  # type: ignore[return-value]


@functools.cache
def _fused(f: Callable) -> Callable:
    import cupy

    return cupy.fuse(f)
