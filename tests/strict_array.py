"""An array on the host that obeys the rules of CuPy 14, or stricter ones where CuPy errs silently.

    x = asarray(numpy_array)          an explicit move, counted in counts["copy"]
    x.get(), float(x), if x: ...      a wait for the device, counted in counts["sync"]; it is an
                                      error inside `with no_sync():`

Refused with a TypeError: a NumPy array or scalar beside a strict one, conversion without .get(),
float32 beside float64, a float64 that nobody asked for, every function, method and keyword that is
not listed below. Refused as by NumPy, where CuPy says nothing: writing to a broadcast view
(ValueError), an index array out of range (IndexError), and here also writing through an index array
that names an entry twice (ValueError).
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def _table(keywords_of: dict[str, str]) -> dict[str, list[str]]:
    """{name: its keywords}, from names that share their keywords, divided by spaces."""
    return {
        name: keywords.split() for names, keywords in keywords_of.items() for name in names.split()
    }


# What the package may call, and the keywords that it may give. All of it is in CuPy 14; add what
# you need and CuPy has.
FUNCTIONS = _table(
    {
        "exp log log1p expm1 sqrt square sin cos tanh abs sign isfinite minimum maximum": "",
        "matmul add.at clip where broadcast_to ascontiguousarray moveaxis swapaxes expand_dims": "",
        "zeros ones empty full arange zeros_like ones_like empty_like full_like asarray": "dtype",
        "eye": "dtype",
        "einsum": "optimize",
        "tensordot": "axes",
        "concatenate stack repeat take argmax": "axis",
        "sum mean max min": "axis keepdims",
        "pad": "mode constant_values",
        "lib.stride_tricks.as_strided": "shape strides",
    }
)
METHODS = _table(
    {
        "sum mean var std max min prod any all": "axis keepdims",
        "argmax argmin cumsum take repeat squeeze": "axis",
        "reshape ravel transpose swapaxes copy dot clip": "",
        "astype": "copy",
    }
)

counts: Counter[str] = Counter()
_sync_allowed = True


class SyncError(AssertionError):
    """The code waited for the device inside `with no_sync():`."""


@contextmanager
def no_sync() -> Iterator[None]:
    global _sync_allowed
    _sync_allowed = False
    try:
        yield
    finally:
        _sync_allowed = True


def _wait(cause: str) -> None:
    counts["sync"] += 1
    if not _sync_allowed:
        raise SyncError(f"{cause} waits for the device")


class StrictArray:
    __slots__ = ("_a",)
    # So NumPy's arrays and scalars leave operators to this class, and NumPy's functions refuse it.
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, a: np.ndarray) -> None:
        self._a = a

    def __array_namespace__(self, api_version: str | None = None) -> "Namespace":
        return strict

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed: use .get()")

    def __getattr__(self, name: str) -> Callable:
        if name not in METHODS:
            raise AttributeError(
                f"the strict array has no {name}: see METHODS in tests/strict_array.py"
            )

        def method(*args: Any, **kwargs: Any) -> Any:
            _check_keywords(name, kwargs, METHODS[name])
            return _call(getattr(type(self._a), name), self, *args, **kwargs)

        return method

    @property
    def T(self) -> "StrictArray":
        return StrictArray(self._a.T)

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator["StrictArray"]:
        return iter([self[i] for i in range(len(self))])

    def get(self) -> np.ndarray:
        _wait(".get()")
        return self._a.copy()

    def item(self) -> Any:
        _wait(".item()")
        return self._a.item()

    def tolist(self) -> Any:
        _wait(".tolist()")
        return self._a.tolist()

    def __bool__(self) -> bool:
        _wait("bool(), or an array as a condition,")
        return bool(self._a)

    def __int__(self) -> int:
        _wait("int()")
        return int(self._a)

    def __float__(self) -> float:
        _wait("float()")
        return float(self._a)

    def __format__(self, spec: str) -> str:
        _wait("formatting")
        return format(self._a[()], spec)

    def __repr__(self) -> str:
        _wait("repr()")
        return f"strict {self._a!r}"

    def __getitem__(self, index: Any) -> "StrictArray":
        index = _open_index(index)
        if any(isinstance(i, np.ndarray) and i.dtype == bool for i in index):
            _wait("reading through a mask")
        return StrictArray(self._a[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        index = _open_index(index)
        for i in index:
            if (
                isinstance(i, np.ndarray)
                and i.dtype != bool
                and len(index) <= 2
                and len(np.unique(i % self._a.shape[0])) < i.size
            ):
                raise ValueError(
                    "an entry is named twice: which of the writes stays is left to chance on a "
                    "GPU; use add.at"
                )
        _call(operator.setitem, self, index, value)


def _operator(f: Callable, swapped: bool = False) -> Callable:
    return lambda *args: _call(f, *(args[::-1] if swapped else args))


for _name in "shape", "ndim", "size", "dtype", "itemsize", "nbytes", "strides":
    setattr(StrictArray, _name, property(operator.attrgetter(f"_a.{_name}")))
for _name in "neg", "pos", "abs", "invert", "lt", "le", "eq", "ne", "ge", "gt":
    setattr(StrictArray, f"__{_name}__", _operator(getattr(operator, _name)))
for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and_",
    "or_",
    "xor",
):
    setattr(StrictArray, f"__{_name.strip('_')}__", _operator(getattr(operator, _name)))
    setattr(
        StrictArray, f"__r{_name.strip('_')}__", _operator(getattr(operator, _name), swapped=True)
    )
for _name in "add", "sub", "mul", "truediv", "pow":
    setattr(StrictArray, f"__i{_name}__", _operator(getattr(operator, f"i{_name}")))


def _call(f: Callable, *args: Any, **kwargs: Any) -> Any:
    """f of the NumPy arrays inside, and its result outside again, if no rule is broken."""
    opened, keywords = [_open(a) for a in args], {name: _open(a) for name, a in kwargs.items()}
    inputs = {a.dtype for a in _flat([*opened, *keywords.values()]) if isinstance(a, np.ndarray)}
    if np.dtype("float32") in inputs and np.dtype("float64") in inputs:
        raise TypeError(
            "float32 meets float64: the result would be float64, and all that follows from it"
        )
    result = f(*opened, **keywords)
    if result is None:
        return None
    if args and isinstance(args[0], StrictArray) and result is args[0]._a:
        return args[0]  # in place
    asked = np.dtype("float64") in inputs or any(
        _is_float64(a) for a in [*opened, *keywords.values()]
    )
    if np.asarray(result).dtype == "float64" and not asked:
        raise TypeError("the result is float64, and neither an input nor a dtype asked for it")
    return StrictArray(np.asarray(result))


def _open(value: Any) -> Any:
    if isinstance(value, StrictArray):
        return value._a
    # Arrays to join, or a shape, which may hold NumPy's integers.
    if isinstance(value, (list, tuple)):
        return type(value)(int(v) if isinstance(v, np.integer) else _open(v) for v in value)
    if isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(
            f"unsupported type {type(value).__name__} beside a strict array: move it, or make it a "
            "Python number"
        )
    return value


def _open_index(index: Any) -> tuple:
    """The index as a tuple with an ellipsis.

    So NumPy answers with a view even where the index names every axis.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, (np.ndarray, list)) for i in parts):
        raise TypeError("an index array must be moved to the device explicitly")
    opened = tuple(i._a if isinstance(i, StrictArray) else i for i in parts)
    return opened if any(i is ... for i in opened) else (*opened, ...)


def _flat(values: list) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(list(value))
        else:
            yield value


def _is_float64(value: Any) -> bool:
    return (
        value is float
        or value is np.float64
        or (isinstance(value, (np.dtype, str)) and value == "float64")
    )


def _check_keywords(name: str, kwargs: dict, allowed: list[str]) -> None:
    for keyword in kwargs:
        if keyword not in allowed:
            raise TypeError(
                f"{name}() got an unexpected keyword argument {keyword!r}: "
                "see tests/strict_array.py"
            )


class Namespace:
    """Like the module cupy, but with nothing in it that is not listed in FUNCTIONS."""

    float32, float64, int64, newaxis = np.float32, np.float64, np.int64, None

    def __init__(self, path: str = "") -> None:
        self.__name__ = f"strict{path}"
        self._path = path

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}".strip(".")
        if path in FUNCTIONS:
            return lambda *args, **kwargs: _call_function(path, args, kwargs)
        if any(listed.startswith(f"{path}.") for listed in FUNCTIONS):
            return Namespace(path)
        raise AttributeError(
            f"the strict array's module has no {path}: see FUNCTIONS in tests/strict_array.py"
        )


def _call_function(path: str, args: tuple, kwargs: dict) -> Any:
    _check_keywords(path, kwargs, FUNCTIONS[path])
    if path in SPECIAL:
        return SPECIAL[path](*args, **kwargs)
    return _call(operator.attrgetter(path)(np), *args, **kwargs)


def asarray(a: Any, dtype: Any = None) -> StrictArray:
    """A strict array stays as it is; anything of the host is copied, and the copy counted."""
    if isinstance(a, StrictArray):
        return a if dtype in (None, a._a.dtype) else a.astype(dtype)
    if (
        not isinstance(a, (np.ndarray, np.generic))
        and dtype is None
        and np.asarray(a).dtype == "float64"
    ):
        raise TypeError("Python floats become float64: give a dtype")
    counts["copy"] += 1
    return StrictArray(np.array(a, dtype))


def _as_strided(x: StrictArray, shape: tuple, strides: tuple) -> StrictArray:
    """Overlapping windows may not be written to."""
    return StrictArray(np.lib.stride_tricks.as_strided(x._a, shape, strides, writeable=False))


SPECIAL: dict[str, Callable] = {"asarray": asarray, "lib.stride_tricks.as_strided": _as_strided}
strict = Namespace()
