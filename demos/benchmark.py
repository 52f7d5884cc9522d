"""How fast is npdiff? Every row is our time, a peer's on the same work, and their ratio, from one run that takes them in turn.

    python demos/benchmark.py                  on a CPU, beside PyTorch where it is installed
    python demos/benchmark.py --backend cupy   on a GPU

The peer is PyTorch, eager, with the same networks (demos/_peer.py): before anything is timed, outputs and gradients from the same
weights are compared.
"""

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import _cli
import _digits
from npdiff import optim, sampler, schedule, train
from npdiff.backend import Array, select, to_numpy
from npdiff.kit import files, parallel
from npdiff.kit.errors import UserError
from npdiff.nn import fast, mlp, unet
from npdiff.nn.params import map_leaves, pack, unflatten
from npdiff.reverse import predictor

try:
    import _peer
except ImportError:
    _peer = None  # type: ignore[assignment]

CHAIN = schedule.cosine(1000)
DIGITS = (28, 28, 1)
LARGE = 2048  # points, for which two workers pay
WARM = 0.03  # seconds
AGREE = 1e-3  # of float32 outputs and gradients, relative: rounding gives some 1e-5


class Case:
    """A network, a batch for it, and what makes it fast, workers or a net that takes its place: for one row of the table."""

    def __init__(
        self, net: Any, xp: Any, batch: int, shape: tuple[int, ...], workers: parallel.Workers | None, run: Any = None, **sizes: int
    ) -> None:
        rng = np.random.default_rng(0)
        theta, like = pack(net.init(rng, **sizes))
        theta += 0.02 * rng.standard_normal(theta.size, dtype=np.float32)  # nothing starts at 0, so that every gradient counts
        self.net, self.xp, self.workers, self.run = net, xp, workers, run or net
        self.state = train.start(map_leaves(xp.asarray, unflatten(theta, like)))
        self.x_0, self.eps = (xp.asarray(rng.standard_normal((batch, *shape), dtype=np.float32)) for _ in range(2))
        self.t = rng.integers(1, CHAIN.T + 1, batch)
        self.inputs = {"label": rng.integers(0, 10, batch)} if net is unet else {}

    def gradient(self) -> tuple[Array, Array]:
        gradient = self.workers.gradient if self.workers else train.gradient
        return gradient(self.run, self.state.params, self.x_0, self.t, self.eps, CHAIN, "v", "target", **self.inputs)

    def step(self) -> None:
        """A step of training, without the drawing of data and noise."""
        s, (_, grad) = self.state, self.gradient()
        optim.adam(s.theta, optim.clip_norm(grad, 1.0), s.m, s.v, 100, 1e-5, beta_2=0.99)
        optim.average(s.ema, s.theta, 100)

    def predictor(self, guidance: float = 0.0) -> Callable[[Array, Any], Array]:
        make = self.workers.predictor if self.workers else predictor
        return make(self.run, self.state.params, CHAIN, "v", guidance, **self.inputs)

    def forward(self) -> Array:
        return self.predictor()(self.x_0, self.t)

    def sample(self, steps: int = 5) -> Array:
        *_, last = sampler.ddim(self.predictor(guidance=0.5), self.eps, CHAIN, steps)
        return last.x_prev


def rows(xp: Any, threads: int, plain: bool, smoke: bool) -> dict[str, tuple[Case, str]]:
    """Each row's name, its case, and what of it is timed; with workers, or on a GPU replayed, what is large enough, unless plain."""
    workers, of_points = (parallel.Workers(threads, size) if xp is np and not plain else None for size in (_digits.PIECE, LARGE // 2))
    run = unet if xp is np or plain else _digits.replayed(unet)
    width, many = (8, 8) if smoke else (_digits.PRESETS[xp.__name__]["width"], _digits.PRESETS[xp.__name__]["batch"])
    points = {n: Case(mlp, xp, n, (2,), of_points if n == LARGE else None) for n in (32, 256, LARGE)}
    digits = Case(unet, xp, many, DIGITS, workers, run, width=width)
    return {
        **{f"MLP step, batch {n}": (case, "step") for n, case in points.items()},
        f"U-Net step, batch {many}, width {width}": (digits, "step"),
        f"U-Net forward, {many} digits": (digits, "forward"),
        f"DDIM with guidance, 5 steps, {many} digits": (digits, "sample"),
    }


def compare(case: Case, twin: Any) -> None:
    """UserError where our output or gradient and the twin's differ by more than AGREE, relative."""
    for ours, peers in [(case.forward(), twin.as_ours(twin.forward())), (case.gradient()[1], twin.gradient())]:
        difference = float(np.linalg.norm(to_numpy(ours) - peers) / np.linalg.norm(peers))
        if not difference < AGREE:
            raise UserError(f"the peer's network is not ours: outputs or gradients differ by {difference:.1e}")


def in_turn(functions: list[Callable[[], Any]], wait: Callable[[], None], repeats: int) -> list[float]:
    """The median milliseconds of each function, called in turn `repeats` times.

    Each timed call follows untimed ones of its own, of WARM seconds: by then the threads of whoever was timed before sleep.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, of_function in zip(functions, times, strict=True):
            warm = time.perf_counter() + WARM
            while time.perf_counter() < warm:
                function()
                wait()
            started = time.perf_counter()
            function()
            wait()
            of_function.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(of_function) for of_function in times]


class Timed(np.ndarray):
    """An array whose products are timed, with their number of operations."""

    seconds = 0.0
    operations = 0

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, Timed) else x for x in inputs]
        if out is not None:
            kwargs["out"] = tuple(x.view(np.ndarray) if isinstance(x, Timed) else x for x in out)
        started = time.perf_counter()
        found = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Timed.seconds += time.perf_counter() - started
            Timed.operations += 2 * found.size * plain[0].shape[-1]
        if out is not None:
            return out[0]
        return found.view(Timed) if isinstance(found, np.ndarray) else found


def products(size: int, width: int, repeats: int) -> dict[str, float]:
    """Of the plain U-Net step on one piece: the share of its time in products, their GFLOP/s, and those of a large product here."""
    case = Case(unet, np, size, DIGITS, None, width=width)
    (whole,) = in_turn([case.gradient], lambda: None, repeats)
    case.state.params, case.x_0 = map_leaves(lambda a: a.view(Timed), case.state.params), case.x_0.view(Timed)
    Timed.seconds, Timed.operations = 0.0, 0
    for _ in range(repeats):
        case.gradient()
    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    (large,) = in_turn([lambda: a @ a], lambda: None, repeats)
    return {
        "share": 1e3 * Timed.seconds / repeats / whole,
        "gflops": Timed.operations / Timed.seconds / 1e9,
        "ceiling_gflops": 2 * 1024**3 / large / 1e6,
    }


def profile(size: int, width: int, repeats: int) -> dict[str, float]:
    """Milliseconds of each op of the U-Net, as its module has them now, in a step on one piece."""
    case, spent = Case(unet, np, size, DIGITS, None, width=width), dict[str, float]()
    ops = {name: f for name, f in vars(unet).items() if name.endswith(("_forward", "_backward")) and f.__module__ != unet.__name__}

    def timed(name: str, f: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            found = f(*args, **kwargs)
            spent[name] = spent.get(name, 0.0) + 1e3 * (time.perf_counter() - started) / repeats
            return found

        return call

    case.gradient()
    try:
        for name, f in ops.items():
            setattr(unet, name, timed(name, f))
        started = time.perf_counter()
        for _ in range(repeats):
            case.gradient()
        spent["all"] = 1e3 * (time.perf_counter() - started) / repeats
    finally:
        for name, f in ops.items():
            setattr(unet, name, f)
    return spent


def say_products(p: dict[str, float]) -> None:
    print(f"\nproducts take {p['share']:.0%} of the plain U-Net step on one thread, at {p['gflops']:.0f} GFLOP/s;", end=" ")
    print(f"one of two matrices of 1024 x 1024 runs at {p['ceiling_gflops']:.0f}")


def say_profile(plain: dict[str, float], quick: dict[str, float]) -> None:
    print(f"\n{'a U-Net step, 16 images, one thread, ms':<44} {'plain':>10} {'fast':>10} {'gain':>7}")
    for spent in plain, quick:
        spent["all else: sums, concatenations, Python"] = 2 * spent["all"] - sum(spent.values())
    for name, ms in sorted(plain.items(), key=lambda item: -item[1]):
        print(f"{name:<44} {ms:10.2f} {quick[name]:10.2f} {ms / quick[name]:7.1f}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser((__doc__ or "").split("\n")[0], "  python demos/benchmark.py --json rows.json --profile")
    parser.add_argument("--backend", type=_cli.one_of("numpy", "cupy"), default="numpy", metavar="NAME", help="default numpy")
    parser.add_argument("--threads", type=_cli.whole(1, 1024), default=_digits.cores(), metavar="N", help=f"default {_digits.cores()}")
    parser.add_argument("--plain", action="store_true", help="our plain code in one process: no workers, kernels or graphs")
    parser.add_argument("--tf32", action="store_true", help="on a GPU, for both sides: products in TensorFloat-32")
    parser.add_argument("--repeats", type=_cli.whole(1), metavar="N", help="timings of each row, of which the median counts; default 15")
    parser.add_argument("--profile", action="store_true", help="also where the time of a step goes, op by op, plain and fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows: name, ours_ms, peer_ms, ratio")
    parser.add_argument("--smoke", action="store_true", help="the smallest run")
    args = parser.parse_args(argv)
    args.repeats = args.repeats or (1 if args.smoke else 15)
    return args


def main(args: argparse.Namespace) -> None:
    parallel.keep_freed_memory()
    if args.tf32:
        os.environ["CUPY_TF32"] = "1"
    xp = select(args.backend)
    wait = xp.cuda.get_current_stream().synchronize if xp is not np else lambda: None
    if _peer:
        _peer.settings(args.threads, args.tf32)
    device = f"CuPy {xp.__version__}, " if xp is not np else ""
    versions = f"{device}NumPy {np.__version__}" + (
        f", PyTorch {_peer.version}" if _peer else "; PyTorch is not installed: our column alone"
    )
    kernels = os.environ.get("OPENBLAS_CORETYPE")
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} threads, {versions}"
        + (f"; OPENBLAS_CORETYPE={kernels}" if kernels else "")
    )
    print(f"\n{'':<44} {'ours, ms':>10} {'peer, ms':>10} {'ratio':>7}")
    table, twins = [], dict[int, Any]()
    for name, (case, what) in rows(xp, args.threads, args.plain, args.smoke).items():
        functions = [getattr(case, what)]
        if _peer:
            if id(case) not in twins:
                twins[id(case)] = _peer.Twin(case, CHAIN)
                compare(case, twins[id(case)])
            functions.append(getattr(twins[id(case)], what))
        ours, *peer = in_turn(functions, wait, args.repeats)
        table.append({"name": name, "ours_ms": ours, "peer_ms": peer[0] if peer else None, "ratio": ours / peer[0] if peer else None})
        print(f"{name:<44} {ours:10.2f}" + (f" {peer[0]:10.2f} {ours / peer[0]:7.2f}" if peer else ""), flush=True)
    if args.json:
        files.write_text(args.json, json.dumps(table, indent=1) + "\n")
    if xp is np:
        size, width = (4, 8) if args.smoke else (_digits.PIECE, 32)
        say_products(products(size, width, args.repeats))
        if args.profile:
            plain = profile(size, width, args.repeats)
            fast.put_into(unet)
            say_profile(plain, profile(size, width, args.repeats))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process{', the peer included' if _peer else ''}: {peak:.2f} GiB; each worker has its own")


if __name__ == "__main__":
    _cli.run(main, parse=parse)
