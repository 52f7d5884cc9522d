"""Speed from outside the mathematics: a batch cut into pieces that stay in cache, given to processes. A reader can skip this file.

Processes, and not threads: a network is some hundred short operations, and threads that hand the interpreter's lock to each other between
them lose a third of the time. theta, and the gradient of each piece, lie in memory that all processes share. In a worker the convolutions
are those of npdiff/nn/fast.py, and each product runs on one thread (the demos set OPENBLAS_NUM_THREADS=1 before NumPy is imported).

The pieces, and the order in which their gradients are summed, depend on the batch alone: the result is the same to the bit for any number
of workers, and equal to the plain one to rounding.
"""

import contextlib
import importlib
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import numpy as np

from npdiff import reverse, train
from npdiff.backend import Array
from npdiff.forward import Time
from npdiff.nn import fast, unet
from npdiff.nn.params import Tree, flatten, unflatten
from npdiff.sampler import Predictor
from npdiff.schedule import Schedule


def cut(n: int, size: int) -> list[slice]:
    """0..n-1 in pieces of at most `size`."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def rows_of(value: Any, rows: slice) -> Any:
    """These rows of an array, or of each array of a tuple or a dict; what has no rows, a number or a schedule, is the same for all."""
    if isinstance(value, dict):
        return {name: rows_of(each, rows) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(rows_of(each, rows) for each in value)
    return value[rows] if np.ndim(value) else value


class Workers:
    """`count` processes that share theta and take a batch's pieces of `size` rows in turn. They end with this process.

    `Workers(2, 16).gradient` takes the place of `train.gradient`, or of another function of that kind that is given,
    `Workers(2, 16).predictor` that of `reverse.predictor`, and `Workers(2, 16).forward(net)` that of a network that only goes forward.
    A script that makes one needs `if __name__ == "__main__":`, since every worker imports it.
    """

    def __init__(self, count: int, size: int, of: Callable[..., tuple[Array, Array]] = train.gradient) -> None:
        self.count, self.size, self.of = count, size, of
        self.theta, self.grads = np.empty(0), np.empty((0, 0))
        self.pipes: list[Connection] = []

    def gradient(
        self, net: Any, params: Tree, x_0: Array, t: np.ndarray, eps: Array, schedule: Schedule, *how: str, **inputs: Array
    ) -> tuple[Array, Array]:
        """As `train.gradient`: the pieces' losses and gradients, which are means over a piece, weighed by its share of the batch.

        Where the function gives a loss for each row, (B,), these are laid end to end.
        """
        calls = self.pieces((x_0, t, eps, schedule, *how), inputs)
        share = np.array([len(arguments[0]) for arguments, _ in calls], x_0.dtype) / np.asarray(len(x_0), x_0.dtype)
        losses = self.map(self.of, net, params, calls, len(calls))
        loss = np.concatenate(losses) if losses[0].ndim else (share * np.stack(losses)).sum()
        return loss, share @ self.grads[: len(calls)]

    def predictor(
        self, net: Any, params: Tree, schedule: Schedule, predict: str = "eps", guidance: float = 0.0, **inputs: Array
    ) -> Predictor:
        """As `reverse.predictor`."""

        def predict_eps(x_t: Array, t: Time) -> Array:
            calls = self.pieces((x_t, t, schedule, predict, guidance), inputs)
            return np.concatenate(self.map(predict_piece, net, params, calls, 0))

        return predict_eps

    def forward(self, net: Any) -> Any:
        """`net` for whatever only goes forward, as `improved_ddpm.reverse` does: a forward pass shared, whose cache is None."""

        def forward(params: Tree, *arguments: Array, **inputs: Array) -> tuple[Array, None]:
            return np.concatenate(self.map(forward_piece, net, params, self.pieces(arguments, inputs), 0)), None

        return SimpleNamespace(forward=forward)

    def pieces(self, arguments: tuple, inputs: dict) -> list[tuple[tuple, dict]]:
        """A function's arguments, of which the first is the batch, and its named inputs, piece by piece."""
        return [(rows_of(arguments, rows), rows_of(inputs, rows)) for rows in cut(len(arguments[0]), self.size)]

    def map(self, function: Callable, net: Any, params: Tree, calls: list[tuple], grads: int) -> list[Any]:
        """What the workers answer to function(net, params, *arguments, **inputs), call by call; the gradients are put into self.grads."""
        theta = flatten(params)
        if self.theta.shape != theta.shape or self.theta.dtype != theta.dtype or len(self.grads) < grads:
            self.stop()
            self.start(theta, params, max(1, grads))
        self.theta[...] = theta
        try:
            for first, pipe in enumerate(self.pipes):
                pipe.send((function, net.__name__, grads > 0, list(enumerate(calls))[first :: self.count]))
            answers = dict(answer for pipe in self.pipes for answer in pipe.recv())
        except BaseException:  # Ctrl-C among them: whatever the workers still have to say is not for the next call
            self.stop()
            raise
        for answer in answers.values():
            if isinstance(answer, Exception):
                raise answer
        return [answers[i] for i in range(len(calls))]

    def start(self, theta: np.ndarray, like: Tree, pieces: int) -> None:
        context = multiprocessing.get_context("spawn")
        raw = [context.RawArray("b", theta.nbytes * n) for n in (1, pieces)]
        self.theta, self.grads = views(raw, theta)
        for _ in range(self.count):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(theirs, raw, like), daemon=True).start()
            theirs.close()
            self.pipes.append(ours)

    def stop(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        self.pipes, self.theta = [], np.empty(0)


def views(raw: list[Any], theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shared memory as theta (P,) and as the gradients of the pieces (pieces, P)."""
    shared, grads = (np.frombuffer(memory, theta.dtype) for memory in raw)
    return shared, grads.reshape(-1, len(theta))


def work(pipe: Connection, raw: list[Any], like: Tree) -> None:
    """A worker: answers calls until the process that started it ends. Ctrl-C is for that one to deal with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    theta, grads = views(raw, flatten(like))
    params = unflatten(theta, like)
    fast.put_into(unet)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            function, name, fast.backward_follows, calls = pipe.recv()
            net = importlib.import_module(name)
            pipe.send([(i, answer(function, net, params, grads[i:], *call)) for i, call in calls])


def answer(function: Callable, net: Any, params: Tree, grads: np.ndarray, arguments: tuple, inputs: dict) -> Any:
    """function's answer, or the error that it raised; a gradient goes into the shared memory."""
    try:
        found = function(net, params, *arguments, **inputs)
    except Exception as error:
        return error
    if isinstance(found, tuple):
        found, grads[0] = found
    return found


def predict_piece(net: Any, params: Tree, x_t: Array, t: Time, *how: Any, **inputs: Array) -> Array:
    return reverse.predictor(net, params, *how, **inputs)(x_t, t)


def forward_piece(net: Any, params: Tree, *arguments: Any, **inputs: Any) -> Array:
    return net.forward(params, *arguments, **inputs)[0]


def keep_freed_memory() -> None:
    """Let NumPy use freed memory again, where the C library is glibc; elsewhere this does nothing.

    glibc gives an array above a threshold, at first 128 KiB, back to the kernel as soon as it is freed, and the kernel clears every page
    of the next one. Freeing one large array moves the threshold up to its size (mallopt(3), M_MMAP_THRESHOLD).
    """
    large = np.empty(31 << 20, np.uint8)
    del large
