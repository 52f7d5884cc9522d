"""The ops of a network on CuPy, in few and large kernels.

Each agrees to rounding with its plain one.

This module is a complete namespace of ops: a network takes it as `forward(..., ops=cuda_ops)`. To
start a kernel takes the host of a GPU longer than most of these take the device, and an array of
six axes is copied slowly. So a neighbourhood, a group norm and the way back through a scale and
shift are one kernel each, in CUDA C (cuda_ops.cu). `product` can be recorded in a graph
(graphs.py), where CuPy's own @ refuses; and nothing here comes from the host once it has been
called.
"""

import ctypes
import functools
import math
import os
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from npdiff.backend import Array
from npdiff.fast.fused import scale_shift_forward as scale_shift_forward
from npdiff.fast.fused import silu_backward as silu_backward
from npdiff.fast.fused import silu_forward as silu_forward
from npdiff.fast.im2col import flipped, output_size, spread
from npdiff.nn import conv
from npdiff.nn.conv import upsample_backward as upsample_backward
from npdiff.nn.ops import LEVEL_MAX, LEVEL_MIN, Cache, Grads

REAL = {"f": "float", "d": "double"}
CODE = Path(__file__).with_name("cuda_ops.cu").read_text()
THREADS = 256  # of a block, about


@functools.cache
def kernel(name: str, dtype: Any, numbers: str | None = None) -> Any:
    real = REAL[dtype.char]
    return cupy.RawKernel(CODE.replace("numbers", numbers or real).replace("real", real), name)


def integers(arguments: tuple) -> tuple:
    """The arguments as a kernel takes them: Python's ints as int, its floats as double.

    Arrays go as they lie in memory. They must be contiguous, and of one dtype, else TypeError.
    """
    if len({a.dtype for a in arguments if isinstance(a, cupy.ndarray)}) > 1:
        raise TypeError("a kernel takes arrays of one dtype")
    return tuple(np.int32(a) if isinstance(a, int) else a for a in arguments)


def over_pixels(name: str, x: Array, together: int, *arguments: Any) -> None:
    """Run a kernel with a block of threads for each `together` neighbouring channels of an image.

    x (B, H, W, C).
    """
    batch, height, width, channels = x.shape
    lanes = max(1, min(THREADS // together, height * width))
    kernel(name, x.dtype)(
        (channels // together, batch),
        (together, lanes),
        integers((*arguments, height * width, channels)),
    )


def columns(x: Array, size: int, stride: int = 1) -> Array:
    """As im2col.columns.   x (B, H, W, C) -> (B H' W', K K C)."""
    batch, height, width, channels = x.shape
    if size == stride == 1:
        return x.reshape(-1, channels)
    down, across = output_size(height, stride), output_size(width, stride)
    y = cupy.empty((batch * down * across, size * size * channels), x.dtype)
    at_once = 4 if channels % 4 == 0 and x.dtype.char == "f" else 1
    run = kernel("columns", x.dtype, "four_floats" if at_once == 4 else None)
    threads = min(THREADS, -(-size * channels // at_once // 32) * 32)
    shape = height, width, channels // at_once
    arguments = cupy.ascontiguousarray(x), y, *shape, size, stride
    run((across, down, batch), (threads,), integers(arguments))
    return y


@functools.cache
def ones(n: int, dtype: Any) -> Array:  # -> (1, n)
    return cupy.ones((1, n), dtype)


def conv2d_forward(x: Array, w: Array, b: Array, stride: int = 1) -> tuple[Array, Cache]:
    """As conv.conv2d_forward."""
    x_columns = columns(x, len(w), stride)
    y = product(x_columns, w.reshape(-1, w.shape[3]))
    y += b
    batch, height, width, _ = x.shape
    shape = batch, output_size(height, stride), output_size(width, stride), -1
    return y.reshape(shape), (x_columns, x.shape, w, stride)


def conv2d_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As conv.conv2d_backward."""
    x_columns, shape, w, stride = cache
    flat = grad_y.reshape(-1, w.shape[3])
    grad_w, grad_b = product(x_columns.T, flat), product(ones(len(flat), flat.dtype), flat)[0]
    grad_columns = columns(spread(grad_y, shape, stride), len(w))
    grad_x = product(grad_columns, flipped(w).reshape(-1, w.shape[2])).reshape(shape)
    return grad_x, {"w": grad_w.reshape(w.shape), "b": grad_b}


def group_norm_forward(
    x: Array, gain: Array, bias: Array, groups: int, tiny: float = 1e-5
) -> tuple[Array, Cache]:
    """As conv.group_norm_forward."""
    x = cupy.ascontiguousarray(x)
    y, n, rstd = cupy.empty_like(x), cupy.empty_like(x), cupy.empty((len(x), groups), x.dtype)
    over_pixels("group_norm", x, x.shape[3] // groups, x, gain, bias, y, n, rstd, tiny)
    return y, (n, rstd, gain, groups)


def group_norm_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As conv.group_norm_backward."""
    n, rstd, gain, groups = cache
    grad_x, sums = cupy.empty_like(n), cupy.empty((2, len(n), n.shape[3]), n.dtype)
    arrays = cupy.ascontiguousarray(grad_y), n, rstd, gain, grad_x, sums
    over_pixels("group_norm_backward", n, n.shape[3] // groups, *arrays)
    grad_gain, grad_bias = sums.sum(axis=1)
    return grad_x, {"gain": grad_gain, "bias": grad_bias}


def scale_shift_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As conv.scale_shift_backward."""
    grad_y, x, scale = (cupy.ascontiguousarray(a) for a in (grad_y, *cache))
    grad_x, sums = cupy.empty_like(x), cupy.empty((2, len(x), x.shape[3]), x.dtype)
    over_pixels("scale_shift_backward", x, math.gcd(x.shape[3], 32), grad_y, x, scale, grad_x, sums)
    return grad_x, {"scale": sums[0], "shift": sums[1]}


def linear_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """As ops.linear_forward."""
    y = product(x, w)
    y += b
    return y, (x, w)


def linear_backward(grad_y: Array, cache: Cache) -> tuple[Array, Grads]:
    """As ops.linear_backward."""
    x, w = cache
    grad_b = product(ones(len(grad_y), grad_y.dtype), grad_y)[0]
    return product(grad_y, w.T), {"w": product(x.T, grad_y), "b": grad_b}


def upsample_forward(x: Array) -> tuple[Array, Cache]:
    """As conv.upsample_forward."""
    batch, height, width, channels = x.shape
    shape = batch, height, 2, width, 2, channels
    y = cupy.broadcast_to(x[:, :, None, :, None], shape)
    return y.reshape(batch, 2 * height, 2 * width, channels), ()


def level_waves(level: Array, frequencies: np.ndarray) -> Array:
    """As ops.level_waves, with the frequencies kept on the device."""
    level = cupy.clip(level, LEVEL_MIN, LEVEL_MAX)[:, None]  # (B, 1)
    angle = level * on_device(tuple(frequencies), level.dtype)  # (B, F)
    return cupy.concatenate([cupy.sin(angle), cupy.cos(angle)], axis=1)


@functools.cache
def on_device(numbers: tuple[float, ...], dtype: Any) -> Array:
    return cupy.asarray(np.array(numbers), dtype)


def lookup_forward(label: Array, table: Array) -> tuple[Array, Cache]:
    """As conv.lookup_forward. A label on the host is checked; one on the device is not."""
    if isinstance(label, np.ndarray):
        return conv.lookup_forward(label, table)
    rows = cupy.arange(len(table))
    one_hot = (label[:, None] % len(table) == rows).astype(table.dtype)  # -1 is the last row
    return product(one_hot, table), (one_hot,)


def lookup_backward(grad_y: Array, cache: Cache) -> tuple[None, Grads]:
    """As conv.lookup_backward."""
    return None, {"table": product(cache[0].T, grad_y)}


# A product that can be recorded


def product(a: Array, b: Array) -> Array:
    """a @ b; while a graph is recorded cuBLAS is called by its own name.   a (M, K), b (K, N)."""
    return gemm(a, b) if cupy.cuda.get_current_stream().is_capturing() else a @ b


def recordable() -> bool:
    """Whether graphs can be recorded here: there is a GPU, and cuBLAS is found by its name."""
    try:
        cupy.cuda.runtime.getDeviceProperties(0)
        cublas()
    except (OSError, cupy.cuda.runtime.CUDARuntimeError):
        return False
    return True


@functools.cache
def cublas() -> tuple[Any, Array]:
    """The library that CuPy has loaded, and 32 MiB for it to work in.

    OSError where it is not found by this name.
    """
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    return ctypes.CDLL(f"libcublas.so.{major}"), cupy.empty(32 << 20, cupy.uint8)


def operand(x: Array) -> tuple[Array, int, int]:
    """x, or a copy that cuBLAS can take; whether it lies transposed; the distance of its rows.

    If it lies transposed, the distance is that of its columns.
    """
    across, down = (stride // x.itemsize for stride in (x.strides[1], x.strides[0]))
    if across == 1 and down >= x.shape[1]:
        return x, 0, down
    if down == 1 and across >= x.shape[0]:
        return x, 1, across
    x = cupy.ascontiguousarray(x)
    return x, 0, x.shape[1]


def gemm(a: Array, b: Array) -> Array:
    """a @ b by cublasGemmEx, on the current stream.

    cuBLAS counts along columns first, so it is asked for y^T = b^T a^T.
    """
    if a.dtype != b.dtype:
        raise TypeError(f"a product is of one dtype, got {a.dtype} and {b.dtype}")
    library, memory = cublas()
    handle = ctypes.c_void_p(cupy.cuda.device.get_cublas_handle())
    stream = ctypes.c_void_p(cupy.cuda.get_current_stream().ptr)
    (a, transposed_a, lead_a), (b, transposed_b, lead_b) = operand(a), operand(b)
    (m, k), n = a.shape, b.shape[1]
    y = cupy.empty((m, n), a.dtype)
    number, kind, compute = numbers_of(a.dtype)
    one, zero = ctypes.byref(number(1)), ctypes.byref(number(0))
    at_a, at_b, at_y, at_memory = (ctypes.c_void_p(x.data.ptr) for x in (a, b, y, memory))
    from_b, from_a, to_y = (at_b, kind, lead_b), (at_a, kind, lead_a), (at_y, kind, n)
    shape = transposed_b, transposed_a, n, m, k
    for status in (
        library.cublasSetStream_v2(handle, stream),
        library.cublasSetWorkspace_v2(handle, at_memory, ctypes.c_size_t(memory.nbytes)),
        library.cublasGemmEx(handle, *shape, one, *from_b, *from_a, zero, *to_y, compute, -1),
    ):
        if status:
            raise RuntimeError(f"cuBLAS answers with status {status}")
    return y


def numbers_of(dtype: Any) -> tuple[Any, int, int]:
    """C's type of a number, and cuBLAS's codes for it and for how it is computed."""
    if dtype == np.float64:
        return ctypes.c_double, 1, 70  # CUDA_R_64F, CUBLAS_COMPUTE_64F
    if os.environ.get("CUPY_TF32") == "1":
        return ctypes.c_float, 0, 77  # CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32
    return ctypes.c_float, 0, 68  # CUDA_R_32F, CUBLAS_COMPUTE_32F
