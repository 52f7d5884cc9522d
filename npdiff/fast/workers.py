"""A network whose batch is shared among processes.

The batch is cut into pieces that fit into a processor's cache, and each process takes some of them.
Processes, and not threads: a network is some hundred short operations, and threads that pass the
interpreter's lock to each other between them lose a third of the time. Each process uses the ops of
npdiff/fast/numpy_ops.py, and one thread for each product.

theta, and the gradient of each piece, lie in memory that all processes share. A process keeps what
the forward passes of its pieces saved for the backward pass; this process keeps only the number of
the call. The pieces, and the order in which their gradients are summed, depend on the batch alone.
So the result is the same to the bit for any number of workers, and equal to the plain one to
rounding.
"""

import contextlib
import importlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from npdiff.backend import Array
from npdiff.fast import numpy_ops
from npdiff.nn.ops import Cache
from npdiff.nn.params import Tree, flatten, leaves, names, unflatten

ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")


class WorkerEnded(RuntimeError):
    """A worker process has ended before its time."""


class Workers:
    """`net` on `count` processes, which take the pieces of `rows` rows in turn.

    The processes start with the first call, and end with this object or with this process. A script
    that makes one needs `if __name__ == "__main__":`, since every worker imports it. No more
    processes start than there are pieces. Where one has not answered after `patience` seconds, a
    line on stderr says so.
    """

    patience = 10.0

    def __init__(self, net: Any, count: int, rows: int) -> None:
        if not hasattr(net, "__name__"):
            raise ValueError(f"net must be a module, which workers can import by name, got {net!r}")
        self.name, self.count, self.rows = net.__name__, count, rows
        self.layout: tuple = ()  # of theta: names and shapes, in their order
        self.theta, self.grads = np.empty(0), np.empty((0, 0))
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self.answered: list[BaseProcess] = []  # of these, in the call that is under way
        self.asked_at = math.inf  # when that call began
        self.watcher: threading.Thread | None = None
        self.memory: list = []  # shared: theta, and the gradients of the pieces
        self.like: Tree = {}
        self.call = 0  # the number of the forward pass whose caches the workers hold

    def forward(
        self, params: Tree, x: Array, level: Array, label: np.ndarray | None = None
    ) -> tuple[Array, Cache]:
        """As net.forward. The cache is this object, the number of the call and that of its rows."""
        pieces = self.cut(x, level, label)
        self.share(params, len(pieces))
        self.call += 1
        return np.concatenate(self.ask("forward", pieces)), (self, self.call, len(x))

    def forward_alone(
        self, params: Tree, x: Array, level: Array, label: np.ndarray | None = None
    ) -> tuple[Array, None]:
        """As net.forward, where no backward pass follows: nothing is kept for it."""
        self.share(params, 0)
        return np.concatenate(self.ask("forward_alone", self.cut(x, level, label))), None

    def backward(self, params: Tree, cache: Cache, grad_out: Array) -> tuple[Array, Tree]:
        """As net.backward. RuntimeError for a cache that a later forward pass has replaced."""
        workers, call, rows = cache
        if workers is not self or call != self.call:
            raise RuntimeError("this cache is gone: a later forward pass has replaced it")
        if len(grad_out) != rows:
            raise ValueError(f"grad_out must have {rows} rows, got {len(grad_out)}")
        self.theta[...] = vector_behind(params)  # forward_alone may have shown the workers another
        pieces = self.cut(grad_out)
        grad_x = np.concatenate(self.ask("backward", pieces))
        return grad_x, unflatten(self.grads[: len(pieces)].sum(axis=0), params)

    def cut(self, *arrays: Array | None) -> list[tuple[Array, ...]]:
        """The rows of these arrays in pieces of at most self.rows; what is None is left out."""
        given = [a for a in arrays if a is not None]
        counts = [len(a) for a in given]
        if len({*counts}) > 1:
            raise ValueError(f"x, level and label must have equally many rows, got {counts}")
        starts = range(0, len(given[0]), self.rows)
        return [tuple(a[start : start + self.rows] for a in given) for start in starts]

    def share(self, params: Tree, pieces: int) -> None:
        """Show the workers theta, and make room for the gradients of so many pieces."""
        layout = names(params), [a.shape for a in leaves(params)]
        theta = vector_behind(params)
        if layout != self.layout or theta.dtype != self.theta.dtype or len(self.grads) < pieces:
            self.stop()
            self.allot(theta, params, max(1, pieces))
            self.layout = layout
        self.theta[...] = theta

    def ask(self, method: str, pieces: list[tuple[Array, ...]]) -> list[Array]:
        """What the workers answer to method(piece), piece by piece."""
        answers: dict[int, Array] = {}
        self.answered, self.asked_at = [], time.monotonic()
        try:
            if len(self.pipes) < min(self.count, len(pieces)):
                self.start(min(self.count, len(pieces)))
            for first, pipe in enumerate(self.pipes):
                pipe.send((method, list(enumerate(pieces))[first :: self.count]))
            for pipe, process in zip(self.pipes, self.processes, strict=True):
                answers.update(pipe.recv())
                self.answered.append(process)
        except (EOFError, ConnectionError) as error:
            message = how_they_ended(self.processes)
            self.stop()
            raise WorkerEnded(message) from error
        except BaseException:  # Ctrl-C too
            self.stop()  # or the next call would take late answers for its own
            raise
        finally:
            self.asked_at = math.inf
        for answer in answers.values():
            if isinstance(answer, Exception):
                raise answer
        return [answers[i] for i in range(len(pieces))]

    def allot(self, theta: np.ndarray, like: Tree, pieces: int) -> None:
        """Make the memory that all workers share."""
        context = multiprocessing.get_context("spawn")
        self.memory = [context.RawArray("b", theta.nbytes * n) for n in (1, pieces)]
        self.theta, self.grads = views(self.memory, theta)
        self.like = like

    def start(self, count: int) -> None:
        """Start workers until there are `count`, and with the first of them the watcher."""
        context, there = multiprocessing.get_context("spawn"), len(self.pipes)
        if there >= count:
            return
        # BLAS reads the environment once, when a worker imports NumPy.
        with environment(ONE_THREAD), without_interrupts():
            if self.watcher is None:
                self.watcher = threading.Thread(target=watch, args=[weakref.ref(self)], daemon=True)
                self.watcher.start()
            for _ in range(count - there):
                ours, theirs = context.Pipe()
                arguments = theirs, self.memory, self.name
                process = context.Process(target=work, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self.pipes.append(ours)
                self.processes.append(process)
        # Not among the arguments: start() would wait for ever for a worker that ends before it has
        # read more of them than a pipe holds.
        for pipe in self.pipes[there:]:
            pipe.send(self.like)

    def stop(self) -> None:
        """End the workers, and with them all caches; the next call starts others."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.kill()  # one that is stopped would not see that its pipe is closed
        self.pipes.clear()
        self.processes.clear()
        self.layout = ()
        self.call += 1


class Pieces:
    """A worker's side: the network on one piece at a time."""

    def __init__(self, net: Any, params: Tree, grads: np.ndarray) -> None:
        self.net, self.params, self.grads = net, params, grads
        self.lean_ops = numpy_ops.without_cache(numpy_ops)
        self.caches: dict[int, Cache] = {}  # of the pieces of the last forward pass

    def answers(self, method: str, pieces: list[tuple[int, tuple]]) -> list[tuple[int, Any]]:
        """method(i, *piece), or the error that it raised, for each of these pieces."""
        if method == "forward":
            self.caches.clear()
        return [(i, self.answer(getattr(self, method), i, piece)) for i, piece in pieces]

    def answer(self, method: Callable, i: int, piece: tuple) -> Any:
        try:
            return method(i, *piece)
        except Exception as error:
            return error

    def forward(self, i: int, *piece: Array) -> Array:
        out, self.caches[i] = self.net.forward(self.params, *piece, ops=numpy_ops)
        return out

    def forward_alone(self, i: int, *piece: Array) -> Array:
        return self.net.forward(self.params, *piece, ops=self.lean_ops)[0]

    def backward(self, i: int, grad_out: Array) -> Array:
        grad_x, grads = self.net.backward(self.params, self.caches[i], grad_out)
        self.grads[i] = flatten(grads, like=self.params)
        return grad_x


def work(pipe: Connection, memory: list[Any], name: str) -> None:
    """A worker: it answers until the process that started it ends.

    Ctrl-C reaches every process; a worker leaves it to that one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    net = importlib.import_module(name)
    with contextlib.suppress(EOFError, ConnectionError):
        like = pipe.recv()
        theta, grads = views(memory, flatten(like))
        pieces = Pieces(net, unflatten(theta, like), grads)
        while True:
            pipe.send(pieces.answers(*pipe.recv()))


def watch(reference: weakref.ref) -> None:
    """Say on stderr, once a call, which workers have not answered within the patience.

    This thread looks at the clock 20 times a second. Starting a timer with each call instead would
    add a tenth to a step of a small network.
    """
    named = math.inf
    while (workers := reference()) is not None:
        if time.monotonic() > workers.asked_at + workers.patience and named != workers.asked_at:
            named = workers.asked_at
            late = ", ".join(str(p.pid) for p in workers.processes if p not in workers.answered)
            seconds = f"{workers.patience:g} s"
            print(f"waiting for worker process {late}: no answer for {seconds}", file=sys.stderr)
        del workers  # so that this thread does not keep them alive
        time.sleep(0.05)


def how_they_ended(processes: list[BaseProcess]) -> str:
    """What has ended the first of these processes that has ended."""
    for process in processes:
        process.join(0.2)
    codes = [process.exitcode for process in processes if process.exitcode is not None]
    if codes and codes[0] < 0:
        reason = f"signal {-codes[0]} killed it, perhaps for lack of memory"
    else:
        reason = 'a script that uses the engine needs `if __name__ == "__main__":`'
    return f"a worker process has ended: {reason}"


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C waits for the end of a block; what the block starts never sees it."""
    if os.name != "posix":
        yield
        return
    resource_tracker.ensure_running()  # its start would let Ctrl-C in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def views(memory: list[Any], theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shared memory as theta (P,) and as the gradients of the pieces (pieces, P)."""
    shared, grads = (np.frombuffer(raw, theta.dtype) for raw in memory)
    return shared, grads.reshape(-1, len(theta))


def vector_behind(params: Tree) -> Array:
    """The vector whose views these arrays are, in its order; a copy where there is none."""
    arrays = leaves(params)
    theta, at = arrays[0].base, address(arrays[0])
    for a in arrays:
        if a.base is not theta or address(a) != at or not a.flags.c_contiguous:
            return flatten(params)
        at += a.nbytes
    whole = isinstance(theta, np.ndarray) and theta.ndim == 1 and theta.flags.c_contiguous
    if whole and address(theta) == address(arrays[0]) and theta.nbytes == at - address(theta):
        return theta
    return flatten(params)


def address(x: np.ndarray) -> int:
    """Where x begins in memory."""
    return x.__array_interface__["data"][0]


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """These environment variables, for the time of a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def keep_freed_memory() -> None:
    """Let NumPy reuse freed memory where the C library is glibc; elsewhere this does nothing.

    glibc returns an array above a threshold, at first 128 KiB, to the kernel as soon as it is
    freed, and the kernel clears every page of the next one. Freeing one large array raises the
    threshold to its size (mallopt(3), M_MMAP_THRESHOLD).
    """
    large = np.empty(31 << 20, np.uint8)
    del large
