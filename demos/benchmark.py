"""How fast is npdiff? Each row is our time, a peer's on the same work, and their ratio.

    python demos/benchmark.py                  on a CPU, beside PyTorch where it is installed
    python demos/benchmark.py --backend cupy   on a GPU

One run times the two in turn. The peer is PyTorch, eager, with the same networks (lab/peer.py).
Before anything is timed, outputs and gradients from the same weights are compared.
"""

from lab import interrupt

interrupt.in_one_line(__name__)  # Ctrl-C, also while NumPy is imported

import argparse
import os

# The engine shares the batch among processes, so each product runs on one thread.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from lab import cli, files
from lab.errors import UserError
from npdiff import fast, sampler, train
from npdiff.backend import Array, select, to_numpy
from npdiff.fast import numpy_ops
from npdiff.loss import l_target
from npdiff.nn import conv, mlp, unet
from npdiff.nn.params import map_leaves, pack, unflatten
from npdiff.reverse import predictor
from npdiff.schedule import cosine

try:
    from lab import peer
except ImportError:
    peer = None  # type: ignore[assignment]

SCHEDULE = cosine(1000)
DIGITS = (28, 28, 1)
SIZES = {"numpy": (32, 64), "cupy": (64, 256)}  # width of the U-Net and images in a batch
SMOKE_SIZES = (8, 8)
ROWS = 16  # images that a worker takes at a time
LARGE = 2048  # points, for which two workers pay
WARM = 0.03  # seconds
AGREE = 1e-3  # relative, for float32 outputs and gradients: rounding gives some 1e-5


@dataclass
class Case:
    """A network with a batch: what a row of the table is measured on."""

    state: train.State
    x_0: Array
    t: np.ndarray
    eps: Array
    inputs: dict[str, Any]  # the labels, where the network takes them
    net: Any  # the network, or the engine's
    forward_net: Any
    update: Callable[..., None]

    def gradient(self) -> Array:
        batch = self.x_0, self.t, self.eps
        _, grad = train.gradient(
            self.net, self.state.params, *batch, SCHEDULE, "v", l_target, **self.inputs
        )
        return grad

    def step(self) -> None:
        """A step of training, without the draws of data and noise."""
        self.update(self.state, self.gradient(), steps=10**9, lr=1e-5, decay_2=0.99)

    def forward(self) -> Array:
        predict_eps = predictor(self.forward_net, self.state.params, SCHEDULE, "v", **self.inputs)
        return predict_eps(self.x_0, self.t)

    def sample(self) -> Array:
        predict_eps = predictor(
            self.forward_net, self.state.params, SCHEDULE, "v", guidance=0.5, **self.inputs
        )
        *_, last = sampler.ddim(predict_eps, self.eps, SCHEDULE, steps=5)
        return last.x_prev


def case(
    book_net: Any, engine: fast.Engine, xp: Any, batch: int, shape: tuple[int, ...], **sizes: int
) -> Case:
    """A random batch and random parameters, of which none is 0, so every gradient counts."""
    rng = np.random.default_rng(0)
    theta, like = pack(book_net.init(rng, **sizes))
    theta += 0.02 * rng.standard_normal(theta.size, dtype=np.float32)
    state = train.start(map_leaves(xp.asarray, unflatten(theta, like)), predict="v")
    x_0, eps = rng.standard_normal((2, batch, *shape), dtype=np.float32)
    t = rng.integers(1, SCHEDULE.T + 1, batch)
    inputs = {"label": rng.integers(0, 10, batch)} if book_net is unet else {}
    return Case(state, xp.asarray(x_0), t, xp.asarray(eps), inputs, *engine)


def rows(args: argparse.Namespace, xp: Any) -> dict[str, tuple[Case, str]]:
    """Each row's name, its case, and the method of it that is timed."""
    points = large = fast.Engine(mlp, mlp, train.update)
    digits = fast.Engine(unet, unet, train.update)
    if not args.plain:
        digits = fast.engine(unet, xp, args.threads, ROWS)
        large = fast.engine(mlp, xp, args.threads, LARGE // 2)
        # On NumPy a small batch of points is not worth sending to workers.
        points = large if xp is not np else fast.Engine(mlp, mlp, large.update)
    width, many = SMOKE_SIZES if args.smoke else SIZES[xp.__name__]
    of_points = {
        n: case(mlp, large if n == LARGE else points, xp, n, (2,)) for n in (32, 256, LARGE)
    }
    of_digits = case(unet, digits, xp, many, DIGITS, width=width)
    return {
        **{f"MLP step, batch {n}": (each, "step") for n, each in of_points.items()},
        f"U-Net step, batch {many}, width {width}": (of_digits, "step"),
        f"U-Net forward, {many} digits": (of_digits, "forward"),
        f"DDIM with guidance, 5 steps, {many} digits": (of_digits, "sample"),
    }


def compare(case: Case, twin: Any) -> None:
    """UserError where our output or gradient and the twin's differ by more than AGREE, relative."""
    pairs = (case.forward(), twin.as_ours(twin.forward())), (case.gradient(), twin.gradient())
    for ours, peers in pairs:
        difference = float(np.linalg.norm(to_numpy(ours) - peers) / np.linalg.norm(peers))
        if not difference < AGREE:
            raise UserError(
                f"the peer's network is not ours: outputs or gradients differ by {difference:.1e}"
            )


def in_turn(
    functions: list[Callable[[], Any]], wait: Callable[[], None], repeats: int
) -> list[float]:
    """The median milliseconds of each function, called in turn `repeats` times.

    Untimed calls of the same function for WARM seconds precede each timed one: by then the threads
    of the function before it sleep.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, its_times in zip(functions, times, strict=True):
            warm = time.perf_counter() + WARM
            while time.perf_counter() < warm:
                function()
                wait()
            started = time.perf_counter()
            function()
            wait()
            its_times.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(its_times) for its_times in times]


# Where the time of a U-Net step goes, on one piece of a batch and one thread


def one_piece(smoke: bool, ops: Any) -> Case:
    """The case of a U-Net made of these ops."""
    rows, width = (4, 8) if smoke else (ROWS, 32)
    net = SimpleNamespace(forward=partial(unet.forward, ops=ops), backward=unet.backward)
    return case(unet, fast.Engine(net, net, train.update), np, rows, DIGITS, width=width)


def profile(ops: Any, smoke: bool, repeats: int) -> dict[str, float]:
    """Milliseconds of each op, and of all else, in a gradient."""
    spent: dict[str, float] = {}

    def timed(name: str, op: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = op(*args, **kwargs)
            spent[name] = spent.get(name, 0.0) + 1e3 * (time.perf_counter() - started) / repeats
            return result

        return call

    pairs = {name: op for name, op in vars(ops).items() if name.endswith(("_forward", "_backward"))}
    timed_ops = {name: timed(name, op) for name, op in pairs.items()}
    piece = one_piece(smoke, SimpleNamespace(level_waves=ops.level_waves, **timed_ops))
    piece.gradient()
    spent.clear()
    started = time.perf_counter()
    for _ in range(repeats):
        piece.gradient()
    whole = 1e3 * (time.perf_counter() - started) / repeats
    return {**spent, "all else: sums, concatenations, Python": whole - sum(spent.values())}


class Timed(np.ndarray):
    """An array whose products are timed, with their number of operations."""

    seconds = 0.0
    operations = 0

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if kwargs.get("out") is not None:
            kwargs["out"] = tuple(map(untimed, kwargs["out"]))
        run = partial(getattr(ufunc, method), *map(untimed, inputs), **kwargs)
        if ufunc is np.matmul:
            return product(run, inputs[0].shape[-1])
        return as_timed(run())

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.tensordot:  # of two images, over all pixels
            a, b = map(untimed, args)
            return product(partial(function, a, b, **kwargs), a[..., 0].size)
        return super().__array_function__(function, types, args, kwargs)


def untimed(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, Timed) else x


def as_timed(x: Any) -> Any:
    return x.view(Timed) if isinstance(x, np.ndarray) else x


def product(run: Callable[[], np.ndarray], terms: int) -> Any:
    """The result of run(), each of whose numbers is a sum of so many terms."""
    started = time.perf_counter()
    result = run()
    Timed.seconds += time.perf_counter() - started
    Timed.operations += 2 * result.size * terms
    return as_timed(result)


def say_products(smoke: bool, repeats: int) -> None:
    """The products' share of the plain step and their speed, beside that of one large product."""
    piece = one_piece(smoke, conv)
    (whole,) = in_turn([piece.gradient], lambda: None, repeats)
    piece.state.params = map_leaves(as_timed, piece.state.params)
    piece.x_0 = as_timed(piece.x_0)
    for _ in range(repeats):
        piece.gradient()
    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    (large,) = in_turn([lambda: a @ a], lambda: None, repeats)
    print(
        f"\nproducts take {1e3 * Timed.seconds / repeats / whole:.0%} of the plain U-Net step "
        f"on one thread, at {Timed.operations / Timed.seconds / 1e9:.0f} GFLOP/s; "
        f"one of two matrices of 1024 x 1024 runs at {2 * 1024**3 / large / 1e6:.0f}"
    )


def say_profile(plain: dict[str, float], quick: dict[str, float]) -> None:
    title = "a U-Net step, 16 images, one thread, ms"
    print(f"\n{title:<44} {'plain':>10} {'fast':>10} {'gain':>7}")
    for name, ms in sorted(plain.items(), key=lambda item: -item[1]):
        print(f"{name:<44} {ms:10.2f} {quick[name]:10.2f} {ms / quick[name]:7.1f}")


# The run


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    examples = "  python demos/benchmark.py --json rows.json --profile"
    parser = cli.Parser((__doc__ or "").split("\n")[0], examples)
    text = "numpy or cupy; default numpy"
    backend = cli.one_of("numpy", "cupy")
    parser.add_argument("--backend", type=backend, default="numpy", metavar="NAME", help=text)
    text = f"worker processes, and the peer's threads; default {cli.cores()}"
    parser.add_argument(
        "--threads", type=cli.processes, default=cli.cores(), metavar="N", help=text
    )
    text = "the book's code in one process, without the engine"
    parser.add_argument("--plain", action="store_true", help=text)
    text = "on a GPU, for both sides: products in TensorFloat-32"
    parser.add_argument("--tf32", action="store_true", help=text)
    text = "timings of each row, of which the median counts; default 15"
    parser.add_argument("--repeats", type=cli.whole(1), metavar="N", help=text)
    text = "also where the time of a step goes, op by op, plain and fast"
    parser.add_argument("--profile", action="store_true", help=text)
    text = "write the rows: name, ours_ms, peer_ms, ratio"
    parser.add_argument("--json", type=cli.new_file, metavar="FILE", help=text)
    parser.add_argument("--smoke", action="store_true", help="the smallest run")
    args = parser.parse_args(argv)
    args.repeats = args.repeats or (1 if args.smoke else 15)
    return args


def say_versions(xp: Any, threads: int) -> None:
    versions = [f"{platform.processor() or platform.machine()}, {threads} threads"]
    if xp is not np:
        versions.append(f"CuPy {xp.__version__}")
    versions.append(f"NumPy {np.__version__}")
    if peer:
        versions.append(f"PyTorch {peer.version}")
    print(", ".join(versions) + ("" if peer else "; PyTorch is not installed: our column alone"))
    kernels = os.environ.get("OPENBLAS_CORETYPE")
    if kernels:
        print(f"OPENBLAS_CORETYPE={kernels}")


def main(args: argparse.Namespace) -> None:
    fast.keep_freed_memory()  # for --plain and for the peer too
    if args.tf32:
        os.environ["CUPY_TF32"] = "1"
    xp = select(args.backend)
    wait = xp.cuda.get_current_stream().synchronize if xp is not np else lambda: None
    if peer:
        peer.settings(args.threads, args.tf32)
    say_versions(xp, args.threads)

    print(f"\n{'':<44} {'ours, ms':>10} {'peer, ms':>10} {'ratio':>7}")
    table = []
    for name, (case, method) in rows(args, xp).items():
        functions = [getattr(case, method)]
        if peer:
            twin = peer.Twin(case, SCHEDULE)
            compare(case, twin)
            functions.append(getattr(twin, method))
        ours, *peers = in_turn(functions, wait, args.repeats)
        row = {"name": name, "ours_ms": ours, "peer_ms": None, "ratio": None}
        if peers:
            row |= {"peer_ms": peers[0], "ratio": ours / peers[0]}
        table.append(row)
        beside = f" {peers[0]:10.2f} {ours / peers[0]:7.2f}" if peers else ""
        print(f"{name:<44} {ours:10.2f}{beside}", flush=True)
    if args.json:
        files.write_text(args.json, json.dumps(table, indent=1) + "\n")

    if xp is np:
        say_products(args.smoke, args.repeats)
        if args.profile:
            say_profile(*(profile(ops, args.smoke, args.repeats) for ops in (conv, numpy_ops)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    of_whom = ", the peer included" if peer else ""
    print(f"peak memory of this process{of_whom}: {peak:.2f} GiB; each worker has its own")


if __name__ == "__main__":  # the engine's workers import this file
    cli.run(main, parse)
