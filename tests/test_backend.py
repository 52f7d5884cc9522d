"""Which array module is chosen, and what is said in one line where CuPy cannot be used."""

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from strict_array import asarray, strict

from npdiff import backend
from npdiff.backend import (
    BackendError,
    get_array_module,
    per_row,
    select,
    standard_normal,
    to_numpy,
)


def fake_cupy(device_count: Callable = lambda: 1, get: Callable = lambda: None) -> ModuleType:
    """As much of CuPy as `select` touches: it counts devices, and reads a kernel's result."""

    class Array:
        def __mul__(self, other):
            return SimpleNamespace(get=get)

    cupy: Any = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=device_count))
    cupy.arange = lambda *args, **kwargs: Array()
    return cupy


def failing(error: Exception) -> Callable:
    def f(*args: Any, **kwargs: Any) -> None:
        raise error

    return f


class ImportFailure:
    """A finder that lets the import of cupy fail with `error`."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "cupy":
            raise self.error


def without_cupy(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [ImportFailure(error), *sys.meta_path])


NOT_INSTALLED = ModuleNotFoundError("No module named 'cupy'", name="cupy")
BROKEN_IMPORTS = [
    ImportError("libcuda.so.1: cannot open shared object file\nand a second line"),
    ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"),
]
BROKEN_MODULES = {
    "reaches no GPU": fake_cupy(
        device_count=failing(RuntimeError("cudaErrorInsufficientDriver: driver too old\nmore"))
    ),
    "CUDA_VISIBLE_DEVICES": fake_cupy(device_count=lambda: 0),
    "cannot run a kernel": fake_cupy(get=failing(RuntimeError("cannot find cuda_fp16.h\nmore"))),
}


def assert_unusable(match: str) -> None:
    with pytest.raises(BackendError, match=match) as caught:
        select("cupy")
    message = str(caught.value)
    assert "\n" not in message and "more" not in message and "second line" not in message
    assert select("auto") is np and select("numpy") is np


def test_select_numpy_is_numpy_and_leaves_cupy_alone(monkeypatch):
    without_cupy(monkeypatch, AssertionError("cupy was imported"))
    assert select("numpy") is np


def test_select_gives_cupy_where_it_works(monkeypatch):
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert select("cupy") is cupy and select("auto") is cupy and select() is cupy


def test_select_refuses_another_name():
    with pytest.raises(ValueError, match="torch"):
        select("torch")


def test_select_says_that_cupy_is_not_installed(monkeypatch):
    without_cupy(monkeypatch, NOT_INSTALLED)
    assert_unusable(r"not installed: pip install")


@pytest.mark.parametrize("error", BROKEN_IMPORTS)
def test_select_says_that_cupy_cannot_be_imported(monkeypatch, error):
    without_cupy(monkeypatch, error)
    assert_unusable(f"cannot be imported.*{str(error).splitlines()[0]}")


@pytest.mark.parametrize("match", BROKEN_MODULES)
def test_select_says_what_keeps_cupy_from_running(monkeypatch, match):
    monkeypatch.setitem(sys.modules, "cupy", BROKEN_MODULES[match])
    assert_unusable(match)


def test_an_error_without_a_text_is_named():
    assert backend.first_line(MemoryError()) == "MemoryError"


def test_importing_the_package_does_not_import_cupy():
    """But for the files of the engine that are for CuPy alone and imported where it was chosen."""
    on_a_gpu = tuple(f"npdiff.fast.{name}" for name in ("cuda_ops", "fused", "graphs"))
    code = (
        "import pkgutil, sys, npdiff\n"
        "for module in pkgutil.walk_packages(npdiff.__path__, 'npdiff.'):\n"
        f"    if module.name not in {on_a_gpu}:\n"
        "        __import__(module.name)\n"
        "assert 'cupy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_get_array_module_follows_the_array():
    assert get_array_module(np.ones(2)) is np
    assert get_array_module(asarray(np.ones(2))) is strict
    for number in 1.5, 2, True, np.float32(1), np.int64(3):
        assert get_array_module(number) is np


def test_get_array_module_finds_cupy_by_the_arrays_type(monkeypatch):
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert get_array_module(type("ndarray", (), {"__module__": "cupy"})()) is cupy
    assert get_array_module(type("ndarray", (), {"__module__": "cupyx_of_another_kind"})()) is np


def test_to_numpy_of_arrays_numbers_and_lists():
    host = np.arange(3.0)
    assert to_numpy(host) is host
    np.testing.assert_array_equal(to_numpy(asarray(host)), host)
    assert isinstance(to_numpy(asarray(host)), np.ndarray)
    assert to_numpy(2.0).shape == () and to_numpy([1, 2]).tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standard_normal_has_the_dtype_of_like_and_the_numbers_of_the_seed(dtype):
    like = np.ones(1, dtype)
    z = standard_normal(np.random.default_rng(5), (4, 3), like)
    assert z.dtype == dtype
    np.testing.assert_array_equal(z, np.random.default_rng(5).standard_normal((4, 3), dtype=dtype))
    np.testing.assert_array_equal(
        standard_normal(np.random.default_rng(5), (4, 3), asarray(like)).get(), z
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 4, 4, 1)])
def test_per_row_gives_each_row_its_number_in_xs_precision_on_its_device(shape, dtype):
    x, values = np.ones(shape, dtype), np.array([0.1, 2.0, -3.0])
    column = per_row(values, x)
    assert column.shape == (3, *[1] * (len(shape) - 1)) and column.dtype == dtype
    np.testing.assert_array_equal((column * x).reshape(3, -1)[:, 0], values.astype(dtype))
    np.testing.assert_array_equal(per_row(values, asarray(x)).get(), column)
    for number in (0.5, np.float64(0.5), np.array(0.5)):
        assert type(per_row(number, x)) is float and per_row(number, x) == 0.5
