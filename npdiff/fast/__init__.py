"""The engine: everything that is here for speed, and nothing else.

The book never imports it. Each file here agrees with the plain one to rounding, and the tests say
so. Nothing is put into another module: the engine hands out a network and an update, and whoever
wants them passes them on.

    from npdiff import fast

    net, forward_net, update = fast.engine(unet, threads=2)
    train(net, state, sample, schedule, rng, steps, update=update)
    predict_eps = predictor(forward_net, state, schedule)

    workers.py                            a batch shared among processes
    numpy_ops.py                          the ops of a network on NumPy; made of the next three
    winograd.py, im2col.py, layout.py     convolutions, and the order of an image in memory
    cuda_ops.py, cuda_ops.cu              the ops of a network on CuPy
    graphs.py                             a network recorded as CUDA graphs
    fused.py                              SiLU, Adam and the like on CuPy, in one kernel each
    adam.py                               Adam in place, on NumPy
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from npdiff import train
from npdiff.fast.adam import adam
from npdiff.fast.workers import Workers, keep_freed_memory


class Engine(NamedTuple):
    net: Any  # the network: forward and backward
    forward_net: Any  # the network where no backward pass follows, as in sampling: forward alone
    update: Callable[..., None]  # train.update with a fast Adam


def engine(net: Any, xp: Any = np, threads: int = 1, rows: int = 16) -> Engine:
    """A fast network and a fast update, which agree with `net` and train.update to rounding.

    On NumPy the batch is shared among worker processes. They start with the first call, and import
    the script that started them, which therefore needs `if __name__ == "__main__":`. On CuPy the
    network uses kernels of its own, recorded as CUDA graphs where that can be done.

    Parameters
    ----------
    net : a module with init, forward(params, x, level, [label,] ops) and backward, such as
        npdiff.nn.unet
    xp : the array module, numpy or cupy
    threads : the number of workers, on NumPy
    rows : how many rows of a batch a worker takes at a time, on NumPy

    Returns
    -------
    net : forward and backward. A forward pass replaces the caches of those before it: backward
        raises RuntimeError for such a cache
    forward_net : forward alone
    update : train.update with another Adam bound
    """
    keep_freed_memory()
    if xp is np:
        workers = Workers(net, threads, rows)
        return Engine(
            with_passes(net, forward=workers.forward, backward=workers.backward),
            with_passes(net, forward=workers.forward_alone),
            partial(train.update, adam=adam),
        )
    from npdiff.fast import cuda_ops, fused, graphs  # these import CuPy

    fast_update = partial(train.update, adam=fused.adam)
    if hasattr(net, "NO_CLASS") and cuda_ops.recordable():  # a network of images
        replayed = graphs.Replayed(net, cuda_ops)
        return Engine(
            with_passes(net, forward=replayed.forward, backward=replayed.backward),
            with_passes(net, forward=replayed.forward),
            fast_update,
        )
    forward = partial(net.forward, ops=cuda_ops)
    return Engine(
        with_passes(net, forward=forward, backward=net.backward),
        with_passes(net, forward=forward),
        fast_update,
    )


def with_passes(net: Any, **passes: Callable) -> SimpleNamespace:
    """A network with these passes, and with whatever else `net` offers to training and sampling."""
    kept = {name: getattr(net, name) for name in ("init", "NO_CLASS") if hasattr(net, name)}
    return SimpleNamespace(**kept, **passes)
