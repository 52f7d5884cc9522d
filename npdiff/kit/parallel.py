"""Speed from outside the mathematics: a batch cut into pieces that stay in cache, given to threads. A reader can skip this file.

NumPy lets other threads run while it computes, and layers keep no state, so the pieces need no locks. Each product runs
on one thread (the demos set OPENBLAS_NUM_THREADS=1 before NumPy is imported). The pieces, and the order in which their
gradients are summed, depend on the batch alone: the result is the same to the bit for any number of threads, and equal
to the plain one to rounding.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from npdiff import train
from npdiff.backend import Array, get_array_module
from npdiff.forward import Time
from npdiff.nn.params import Tree
from npdiff.sampler import Predictor
from npdiff.schedule import Schedule


class Pieces:
    """Cuts batches into pieces of at most `size` rows, on `threads` threads.

    `Pieces(8, 2).gradient` takes the place of `train.gradient`, and `Pieces(8, 2).predictor(make, label=label)` that of the
    predict_eps which make(label=label) gives.
    """

    def __init__(self, size: int, threads: int) -> None:
        self.size = size
        self.pool = ThreadPoolExecutor(threads)

    def cut(self, n: int) -> Iterator[slice]:
        return (slice(i, min(i + self.size, n)) for i in range(0, n, self.size))

    def gradient(
        self,
        net: Any,
        params: Tree,
        x_0: Array,
        t: np.ndarray,
        eps: Array,
        schedule: Schedule,
        predict: str = "eps",
        weight: str = "eps",
        **inputs: Any,
    ) -> tuple[Array, Array]:
        """As `train.gradient`: the pieces' losses and gradients, which are means over a piece, weighed by its share of the batch."""

        def of_piece(rows: slice) -> tuple[Array, Array]:
            own = {name: value[rows] for name, value in inputs.items()}
            loss, grad = train.gradient(net, params, x_0[rows], t[rows], eps[rows], schedule, predict, weight, **own)
            share = (rows.stop - rows.start) / len(x_0)
            return share * loss, share * grad

        losses, grads = zip(*self.pool.map(of_piece, self.cut(len(x_0))), strict=True)
        return sum(losses), sum(grads)

    def predictor(self, make: Callable[..., Predictor], **inputs: Any) -> Predictor:
        """predict_eps(x_t, t) = make(**inputs)(x_t, t), piece by piece, each with its own rows of the inputs."""

        def predict_eps(x_t: Array, t: Time) -> Array:
            def of_piece(rows: slice) -> Array:
                own = {name: value[rows] for name, value in inputs.items()}
                return make(**own)(x_t[rows], t if np.ndim(t) == 0 else t[rows])  # type: ignore[index]

            return get_array_module(x_t).concatenate(list(self.pool.map(of_piece, self.cut(len(x_t)))))

        return predict_eps


def keep_freed_memory() -> None:
    """Let NumPy use freed memory again, where the C library is glibc; elsewhere this does nothing.

    glibc gives an array above a threshold, at first 128 KiB, back to the kernel as soon as it is freed, and the kernel clears every page
    of the next one. Freeing one large array moves the threshold up to its size (mallopt(3), M_MMAP_THRESHOLD).
    """
    large = np.empty(31 << 20, np.uint8)
    del large
