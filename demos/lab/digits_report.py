"""What surrounds the mathematics in the demo of digits: its flags, its figures, its pictures."""

import argparse
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import _classifier
import _cli
import _digit_metrics
import _draw
import _judge
import _likelihood
import _score_unet
from npdiff import __version__, likelihood, train
from npdiff.backend import Array, to_numpy
from npdiff.forward import Time, q_sample, score_from_eps, x_0_from_eps
from npdiff.kit import checkpoint, files, mnist, progress
from npdiff.kit.errors import UserError
from npdiff.kit.parallel import Workers, cut, rows_of
from npdiff.nn import unet
from npdiff.nn.params import Tree, flatten
from npdiff.papers import improved_ddpm, ncsn, posterior, vdm
from npdiff.reverse import predictor
from npdiff.sampler import Predictor, Step
from npdiff.schedule import Schedule, cosine, uniform_log_snr

DEFAULTS: dict[str, Any] = dict(
    objective="simple", T=1000, predict="v", minutes=None, steps=None, batch=None, lr=4e-3, width=None, label_dropout=0.1,
    digits="0123456789",
    sampler="ddim", sampling_steps=None, guidance=0.35, samples=1000, seed=0, backend="auto", gif=True, smoke=False,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(T=20, steps=3, batch=4, width=8, samples=12, sampling_steps=3, smoke=True)
PRESETS: dict[str, dict[str, Any]] = {  # by backend; minutes where neither they nor the steps are given
    "numpy": dict(width=32, batch=64, minutes=12.0),
    "cupy": dict(width=64, batch=256, minutes=5.0),
}
OBJECTIVES: dict[str, dict[str, Any]] = {  # where their defaults are others
    "simple": {},
    "bound": dict(batch=32, width=32, label_dropout=1.0),  # the network is told no class
    "ncsn": dict(T=100, predict="score", sampler="langevin"),
}
# NCSN's ladder by the rules of Song & Ermon 2020, arXiv:2006.09011: sigma_1 is the largest distance between two digits; the ratio of 100
# levels, 1.08, that at which half of a level's shell in 784 dimensions lies in the next's; the step, a share of sigma^2, the one that keeps
# the variance of a point best in 3 steps a level (at 5 steps half or thrice its rule drew worse). sigma_L is 2019's 0.01 of the range of x.
SIGMA_L, SIGMA_1, LANGEVIN_STEPS, LANGEVIN_STEP = 0.02, 33.0, 3, 0.25
FREE = ("digits", "sampler", "sampling_steps", "guidance", "samples", "seed", "gif", "backend", "smoke")

DEMOS = Path(__file__).parent
SHIPPED_DIGITS, SHIPPED_WEIGHTS = DEMOS / "mnist_5000.npz", DEMOS / "mnist_weights.npz"
HALVES = {"top": np.s_[:, :14], "bottom": np.s_[:, 14:], "left": np.s_[:, :, :14], "right": np.s_[:, :, 14:]}  # of (B, 28, 28, 1)
PIECE = 16  # images that a worker takes at a time; they stay in cache
LARGEST_PIECE = 250  # digits in one call of the network without workers

EXAMPLES = """\
  python demos/mnist.py --sample-only                             digits at once, with the shipped weights
  python demos/mnist.py --sample-only --digits 37 --guidance 2    threes and sevens, more like their class
  python demos/mnist.py --minutes 12                              a network of your own
  python demos/mnist.py --resume                                  go on with a run that was stopped
  python demos/mnist.py --backend cupy --minutes 5                on a GPU"""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def flags(description: str | None) -> _cli.Parser:
    parser = _cli.Parser((description or "").split("\n")[0], EXAMPLES)
    group = parser.add_argument_group("data and process")
    group.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of MNIST's four files; default: see $NPDIFF_DATA in README.md")
    group.add_argument("--T", type=_cli.whole(1, 100_000), metavar="N", help="steps of the chain; default 1000, of NCSN's ladder 100")
    group = parser.add_argument_group("training")
    words = "simple: for looks; bound: for the likelihood, with a learned variance; ncsn: the score, on a ladder of levels; default simple"
    group.add_argument("--objective", type=_cli.one_of(*OBJECTIVES), metavar="NAME", help=words)
    group.add_argument("--predict", type=_cli.one_of("eps", "v"), help="what the network puts out: eps or v; default v")
    group.add_argument("--minutes", type=_cli.number(0, 10_000), metavar="X", help="train for about so long; default 12, on a GPU 5")
    group.add_argument("--steps", type=_cli.whole(1), metavar="N", help="steps of Adam, in the place of minutes")
    group.add_argument("--batch", type=_cli.whole(1, 65_535), metavar="N", help="images a step; default 64, on a GPU 256; for bound 32")
    group.add_argument("--lr", type=_cli.number(0, 1), metavar="X", help="peak of the learning rate; default 0.004")
    group = _cli.add_sampling_flags(parser, sampler="ddim", samplers=("ddpm", "ddim", "langevin"))
    group.add_argument("--guidance", type=_cli.number(-1e-9, 100), metavar="W", help="(1 + W) eps_cond - W eps_uncond; default 0.35")
    group.add_argument("--digits", metavar="0123", help="the classes to draw; default all ten")
    group.add_argument("--samples", type=_cli.whole(1, 10**6), metavar="N", help="digits to draw; default 1000")
    words = "draw the other half of test digits of which this half is known: left, right, top or bottom; nothing else is sampled"
    group.add_argument("--inpaint", type=_cli.one_of(*HALVES), metavar="HALF", help=words)
    group.add_argument("--weights", type=Path, metavar="FILE", help="a run's weights.npz to sample from; default: DIR's, else the shipped")
    _cli.add_run_flags(parser, out="out/mnist")
    words = f"processes that share the work on a CPU; default {cores()}"
    parser.add_argument("--threads", type=_cli.whole(1, 1024), default=cores(), metavar="N", help=words)
    parser.add_argument("--tf32", action="store_true", help="on a GPU: products in TensorFloat-32, three digits and faster")
    parser.add_argument("--plain", action="store_true", help="all in this process and by the plain code: slower, for stepping through")
    return parser


def parse(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """The run's settings from the command line, filled in and checked. UserError, or exit status 2, for anything wrong."""
    args = flags(description).parse_args(argv)
    args.checkpoint = args.out / "checkpoint.npz"
    if args.tf32:
        os.environ["CUPY_TF32"] = "1"  # read by CuPy when its first product is computed
    if args.weights and not args.sample_only:
        raise UserError("--weights: these are for --sample-only; training starts anew, or goes on with --resume")
    defaults = {**DEFAULTS, **OBJECTIVES[args.objective or "simple"]}
    args.settings = _cli.settings(args, defaults, SMOKE, FREE, kept_settings(args))
    for name, value in args.settings.items():
        setattr(args, name, value)
    if args.objective == "bound" and args.T < 2:
        raise UserError(f"--T {args.T}: with --objective bound at least 2, since beta_tilde_2 stands for beta_tilde_1")
    if not args.digits or set(args.digits) - set("0123456789"):
        raise UserError(f"--digits {args.digits}: one or more of 0123456789 are needed")
    check_ncsn(args)
    if args.sampler == "langevin":
        args.sampling_steps = args.sampling_steps or LANGEVIN_STEPS
    else:
        _cli.check_sampling(args)
    return args


def check_ncsn(args: argparse.Namespace) -> None:
    """UserError for what needs NCSN and has another objective, or the other way round."""
    if args.sampler == "langevin" and args.objective != "ncsn":
        raise UserError("--sampler langevin: needs --objective ncsn; this network's chain has ddpm and ddim")
    if args.objective == "ncsn" and args.predict != "score":
        raise UserError(f"--predict {args.predict}: with --objective ncsn the network puts out the score; leave --predict out")
    if args.objective == "ncsn" and args.likelihood:
        raise UserError("--likelihood: Langevin dynamics have none; take --objective simple or bound")


def kept_settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """The settings of the run to go on with, or to sample from; also sets args.weights, None for the checkpoint in DIR."""
    if args.resume or (args.sample_only and not args.weights and args.checkpoint.exists()):
        return checkpoint.read_settings(args.checkpoint)
    if not args.sample_only:
        return None
    args.weights = args.weights or SHIPPED_WEIGHTS
    return read_weights(args.weights)[1]


def read_weights(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """theta, and the settings of the run that made it. UserError where the file is missing or damaged."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return file["theta"].astype(np.float32), json.loads(str(file["settings"]))
    except Exception as error:  # whatever zipfile, zlib, NumPy and json make of a damaged file
        raise UserError(f"{path}: missing, or not the weights of a run of demos/mnist.py") from error


def network(args: argparse.Namespace, xp: Any) -> tuple[Any, Schedule]:
    """The network, and the levels that it is trained on: for the bound down to almost no noise, where the last bits are decided."""
    if args.objective == "ncsn":
        net, chain = _score_unet, ncsn.ladder(args.T, SIGMA_L, SIGMA_1)
    else:
        net, chain = (vdm, uniform_log_snr(args.T)) if args.objective == "bound" else (unet, cosine(args.T))
    return net if xp is np or args.plain else replayed(net), chain


def replayed(net: Any) -> Any:
    """The network with its ops in few kernels and, where they can be, recorded as graphs: on a GPU."""
    from npdiff.kit import replay  # these two import CuPy
    from npdiff.nn import cuda

    cuda.put_into(unet)
    return replay.Replayed(net) if cuda.recordable() else net


def preset(args: argparse.Namespace, xp: Any) -> None:
    """Fill in what depends on the backend."""
    for name, value in PRESETS[xp.__name__].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
            args.settings[name] = value


def draw_digits(digits: mnist.Digits, label_dropout: float) -> Callable[[int, np.random.Generator], tuple[np.ndarray, dict[str, Any]]]:
    """sample(n, rng) -> x_0, {"label": ...}: training digits, a part of them without their label, so that both can be predicted."""
    no_class = 10

    def sample(n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        rows = rng.integers(len(digits.train_x), size=n)
        label = np.where(rng.random(n) < label_dropout, no_class, digits.train_label[rows].astype(np.int64))
        return mnist.to_model(digits.train_x[rows]), {"label": label}

    return sample


def in_pieces(make: Callable[..., Predictor], size: int, **inputs: Array) -> Predictor:
    """predict_eps(x_t, t) = make(**inputs)(x_t, t), each piece with its own rows of the inputs, in this process: for the memory's sake."""

    def predict_eps(x_t: Array, t: Time) -> Array:
        eps_hat = x_t * 0
        for rows in cut(len(x_t), size):
            eps_hat[rows] = make(**rows_of(inputs, rows))(x_t[rows], rows_of(t, rows))
        return eps_hat

    return predict_eps


def langevin(predict_eps: Predictor, x: Array, schedule: Schedule, rng: np.random.Generator, steps: int) -> Iterator[Any]:
    """Annealed Langevin dynamics, one item a level as the other samplers have it; at the end the last noise is taken out.

    That x + sigma^2 score is Algorithm 1, Song & Ermon 2020, arXiv:2006.09011; the paper of 2019 ends without it.
    """

    def score(x_t: Array, t: Any) -> Array:
        return score_from_eps(x_t, t, predict_eps(x_t, t), schedule)

    moves = ncsn.annealed_langevin(score, x, schedule, rng, LANGEVIN_STEP * SIGMA_L**2, steps)
    for last in itertools.islice(moves, steps - 1, None, steps):  # of each level
        x = last.x_next if last.t > 1 else x_0_from_eps(last.x_next, 1, predict_eps(last.x_next, 1), schedule)
        yield SimpleNamespace(t=last.t, t_prev=last.t - 1, x_t=last.x_t, x_prev=x)


class Report:
    """All that a run prints, draws and writes: opened before training, shown every step of the sampler, written at the end."""

    def __init__(
        self, args: argparse.Namespace, digits: mnist.Digits, net: Any, schedule: Schedule, rng: np.random.Generator, xp: Any
    ) -> None:
        self.args, self.digits, self.net, self.schedule, self.rng, self.xp = args, digits, net, schedule, rng, xp
        self.started = time.monotonic()
        self.way_back: dict[int, np.ndarray] = {}  # ten digits at about forty t on the sampler's way
        self.metrics: dict[str, Any] = {"npdiff": __version__, "settings": args.settings, "backend": xp.__name__}
        of: Callable = functools.partial(improved_ddpm.gradient, discretised=True) if args.objective == "bound" else train.gradient
        of = ncsn.gradient if args.objective == "ncsn" else of
        self.workers = Workers(args.threads, PIECE, of) if xp is np and not args.plain else None
        self.gradient = self.workers.gradient if self.workers else of
        self.importance = improved_ddpm.ImportanceSampler(args.T if args.objective == "bound" else 0)
        _cli.own_folder(args.out)
        print(digits.note)
        state = _judge.terminal_state(
            lambda n, rng: mnist.to_model(digits.train_x[rng.integers(len(digits.train_x), size=n)]),
            Schedule(schedule.signal / schedule.std, schedule.noise / schedule.std),
            rng,
        )
        self.metrics |= state
        words = f"predict {args.predict}, T {args.T}, width {args.width}, batch {args.batch}"
        print(f"objective {args.objective}, {words}; {xp.__name__}, seed {args.seed}; writes to {args.out}")
        _judge.say_terminal_state(state)
        if args.steps is not None and not args.sample_only:
            print(f"{args.steps} steps")

    def load(self, state: train.State, rng: np.random.Generator) -> None:
        """The checkpoint in DIR, or the weights of a file, into the state."""
        if self.args.weights is None:
            return checkpoint.load(self.args.checkpoint, state, rng, self.importance.last)
        theta, _ = read_weights(self.args.weights)
        if theta.shape != state.ema.shape:
            raise UserError(f"{self.args.weights}: holds {theta.size} parameters and this network has {state.ema.size}")
        state.ema[...] = self.xp.asarray(theta)
        print(f"weights from {self.args.weights}")

    def recipe(self, trial: bool = False) -> dict[str, Any]:
        """How the network is trained. A trial leaves no trace."""
        how = dict(predict=self.args.predict, lr=self.args.lr, hold=0.2, beta_2=0.99)
        if self.args.objective != "bound":
            return dict(how, weight="target", gradient=self.gradient)
        importance = improved_ddpm.ImportanceSampler(self.args.T) if trial else self.importance
        if trial:  # as later in training, t = 1 is drawn often: its decoder takes time
            importance.last[1:] = 1 / np.arange(1, self.args.T + 1)[:, None]
        return dict(how, weight="vlb", draw_t=importance.draw, gradient=importance.gradient(self.gradient))

    def say_steps(self) -> None:
        """Keep the number of steps that the budget allows among the settings, so that a resumed run has the same."""
        self.args.settings["steps"] = self.args.steps
        getattr(self.net, "recordings", {}).clear()  # of the trial, on a GPU
        print(f"{self.args.steps} steps fit into {self.args.minutes:g} minutes")

    def labels(self) -> np.ndarray:
        """The classes to draw, in the training set's proportions."""
        return _digit_metrics.labels_in_proportion(self.digits.train_label, self.args.samples, map(int, self.args.digits))

    def predictor(self, params: Tree, label: np.ndarray, guidance: float | None = None) -> Predictor:
        """predict_eps(x_t, t) for digits of these labels, in pieces: for the workers, or for the memory."""
        w = self.args.guidance if guidance is None else guidance
        turned = self.args.objective == "ncsn"  # the network puts out sigma score = -eps_hat
        how = params, self.schedule, "eps" if turned else self.args.predict
        if self.args.objective == "bound":
            return in_pieces(lambda label: improved_ddpm.predictor(self.forward_net(), *how), LARGEST_PIECE, label=label)
        if self.workers:
            predict = self.workers.predictor(self.net, *how, w, label=label)
        else:
            predict = in_pieces(lambda label: predictor(self.net, *how, w, label=label), LARGEST_PIECE, label=label)
        return (lambda x_t, t: -predict(x_t, t)) if turned else predict

    def forward_net(self) -> Any:
        """The network for forward passes alone, shared among the workers where there are any."""
        return self.workers.forward(self.net) if self.workers else self.net

    def see(self, step: Step) -> None:
        """Keep ten digits, one a class where all ten are drawn, at about forty t on the way back, for the pictures."""
        rows = np.linspace(0, len(step.x_t) - 1, 10).round().astype(int)
        if not self.way_back:
            self.way_back[step.t] = self.pixels(step.x_t[rows], step.t)
        if step.t_prev <= min(self.way_back) - self.schedule.T / 40 or step.t_prev == 0:
            self.way_back[step.t_prev] = self.pixels(step.x_prev[rows], step.t_prev)

    def pixels(self, x_t: Array, t: int) -> np.ndarray:
        """x_t as the network is shown it, of about unit variance, in pixels."""
        return mnist.to_pixels(x_t / float(self.schedule.std[t]))

    def start(self, n: int, rng: np.random.Generator) -> Array:
        """n draws of x_T, which is noise: (n, 28, 28, 1)."""
        return float(self.schedule.std[-1]) * self.xp.asarray(rng.standard_normal((n, 28, 28, 1), dtype=np.float32))

    def inpaint(self, params: Tree, rng: np.random.Generator) -> None:
        """A test digit of each class, half of it known, and three draws of the other half: papers/posterior.py."""
        first = [int(np.flatnonzero(self.digits.test_label == int(c))[0]) for c in self.args.digits]
        x_0, label = mnist.to_model(self.digits.test_x[first]), self.digits.test_label[first].astype(np.int64)
        mask = np.zeros((1, 28, 28, 1), np.float32)
        mask[HALVES[self.args.inpaint]] = 1
        times, rows = 3, len(first)
        known, x_T = self.xp.asarray(np.tile(x_0, (times, 1, 1, 1))), self.start(times * rows, rng)
        predict_eps = self.predictor(params, np.tile(label, times))
        steps = posterior.inpaint(predict_eps, x_T, self.schedule, rng, known, self.xp.asarray(mask))
        for step in progress.sampling(steps, times * rows, unit="digits"):
            drawn = step.x_prev
        pictures = [mnist.to_pixels(x_0), mnist.to_pixels(x_0 * mask - (1 - mask)), *np.split(mnist.to_pixels(drawn), times)]
        words = ["test digit", f"known: {self.args.inpaint}", *["drawn"] * times]
        _draw.grid(self.args.out / "inpainted.png", np.concatenate(pictures), rows, row_labels=words)
        files.write_npz(self.args.out / "inpainted.npz", x=mnist.to_pixels(drawn), label=np.tile(label, times))
        print(f"inpainted.png and inpainted.npz are in {self.args.out}")

    def write(self, params: Tree, samples: Any, labels: np.ndarray) -> None:
        """Judge the network and its digits, print the figures, draw the pictures, write weights, metrics and samples."""
        out = self.args.out
        if not np.isfinite(to_numpy(samples)).all():
            raise UserError("the samples are not finite: training diverged; try a smaller --lr")
        x = mnist.to_pixels(samples)
        files.write_npz(out / "samples.npz", x=x, label=labels)
        if self.args.weights is None:
            theta = to_numpy(flatten(params)).astype(np.float16)
            files.write_npz(out / "weights.npz", theta=theta, settings=np.array(json.dumps(self.args.settings)))
        curve = self._judge_losses(params)
        self._judge_samples(x, labels)
        if self.args.likelihood:
            self._judge_likelihood(params)
        self.metrics["seconds"] = round(time.monotonic() - self.started, 1)
        _cli.write_metrics(out / "metrics.json", self.metrics)
        self._draw(x, labels, curve)
        print(f"done in {progress.duration(time.monotonic() - self.started)}; pictures, samples.npz and metrics.json are in {out}")

    def _judge_losses(self, params: Tree) -> list[dict[str, float]]:
        """L_simple, a pixel, of test digits with their labels: at about a dozen t, and averaged over all t."""
        n = 12 if self.args.smoke else 256
        rows = self.rng.integers(len(self.digits.test_x), size=n)
        x_0, label = mnist.to_model(self.digits.test_x[rows]), self.digits.test_label[rows].astype(np.int64)
        predict_eps = self.predictor(params, label, guidance=0.0)

        def loss(t: int | np.ndarray) -> float:
            eps = self.rng.standard_normal(x_0.shape, dtype=np.float32)
            eps_hat = to_numpy(predict_eps(self.xp.asarray(q_sample(x_0, t, eps, self.schedule)), t))
            return float(((eps_hat - eps) ** 2).mean())

        curve = [{"t": t, "loss": loss(t)} for t in _judge.spread_over_t(self.schedule.T, 14)]
        over_t = _judge.evenly(self.schedule.T, n)
        self.metrics |= {"loss": float(np.mean([loss(over_t) for _ in range(4)])), "loss_at_t": curve}
        print(f"loss on test digits, a pixel, averaged over t: {self.metrics['loss']:.5f}")
        return curve

    def _judge_samples(self, x: np.ndarray, labels: np.ndarray) -> None:
        if len(x) < 2:
            return
        judging = _classifier.load_or_train(self.digits, mnist.cache_folder(), 5 if self.args.smoke else _classifier.STEPS, xp=self.xp)
        q = quality(x, labels, judging, self.digits, self.rng)
        self.metrics |= q
        print(f"the classifier that judges finds {q['class_agreement_real']:.2%} of the test digits")
        print(f"\n{len(x):,} digits by {self.args.sampler}, {self.args.sampling_steps} steps, guidance {self.args.guidance:g}")
        real = f"{q['frechet_distance_real']:.3f} +- {q['frechet_distance_real_std']:.3f}"
        print(f"Frechet distance to the test set   {q['frechet_distance']:8.3f}   (as many training digits {real})")
        print(f"agreement of class and label       {q['class_agreement']:8.4f}   (test digits {q['class_agreement_real']:.4f})")
        print(f"largest error of the class shares  {q['class_histogram_error']:8.4f}")
        real = f"test digits {q['nearest_distance_real']:.3f}, ratio {q['nearest_distance'] / q['nearest_distance_real']:.3f}"
        print(f"distance to the nearest training digit {q['nearest_distance']:.3f}   ({real})")

    def _judge_likelihood(self, params: Tree) -> None:
        """The bound for the test digits, of which nothing tells the class, in bits a pixel."""
        n, smoke = len(self.digits.test_x), self.args.smoke
        x_0 = mnist.to_model(self.digits.test_x[: 20 if smoke else n])
        pilot = mnist.to_model(self.digits.train_x[self.rng.integers(len(self.digits.train_x), size=4 if smoke else 50)])
        how = params, self.schedule, self.args.predict
        if self.args.objective == "bound":
            reverses = {"the learned variance": improved_ddpm.reverse(self.forward_net(), *how)}
        else:
            predict_eps = self.workers.predictor(self.net, *how) if self.workers else predictor(self.net, *how)
            fixed = _likelihood.variances(_likelihood.loss_over_t(predict_eps, pilot, self.schedule, self.rng, self.xp), self.schedule)
            reverses = {name: likelihood.fixed(predict_eps, self.schedule, variance) for name, variance in fixed.items()}
        self.metrics["likelihood"] = {}
        for name, reverse in reverses.items():
            ledger = _likelihood.of_digits(x_0, pilot, self.schedule, reverse, self.rng, self.xp)
            _likelihood.say_digits(name, ledger, len(x_0))
            self.metrics["likelihood"][name] = ledger

    def _draw(self, x: np.ndarray, labels: np.ndarray, curve: list[dict[str, float]]) -> None:
        out, T = self.args.out, self.schedule.T
        ts = [0, *(max(1, round(T * share)) for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0))]
        x_0 = mnist.to_model(self.digits.test_x[:1])
        noised = [q_sample(x_0, t, self.rng.standard_normal(x_0.shape, dtype=np.float32), self.schedule) if t else x_0 for t in ts]
        pictures = [self.pixels(x_t, t) for x_t, t in zip(noised, ts, strict=True)]
        _draw.strip(out / "dissolving.png", np.concatenate(pictures), [f"t={t}" for t in ts])

        kept = list(self.way_back)
        rows = [min(kept, key=lambda t: abs(t - T * share)) for share in (1, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0)]
        _draw.grid(out / "appearing.png", np.concatenate([self.way_back[t] for t in rows]), 10, row_labels=[f"t = {t}" for t in rows])
        if self.args.gif:
            _draw.animation_images(out / "appearing.gif", list(self.way_back.values()), kept, columns=5)

        shown = [np.flatnonzero(labels == c)[:10] for c in np.unique(labels)]
        fewest = min(map(len, shown))
        _draw.grid(out / "samples.png", x[np.concatenate([rows[:fewest] for rows in shown])], fewest)
        some = np.linspace(0, len(x) - 1, min(10, len(x))).round().astype(int)
        nearest = self.digits.train_x[_digit_metrics.nearest(x[some], self.digits.train_x)[1]]
        _draw.grid(out / "nearest.png", np.concatenate([x[some], nearest]), len(some), row_labels=["drawn", "nearest in training"])
        _draw.loss_over_t(out / "loss_over_t.png", np.array([r["t"] for r in curve]), np.array([r["loss"] for r in curve]))


def quality(x: np.ndarray, label: np.ndarray, judging: Tree, digits: mnist.Digits, rng: np.random.Generator) -> dict[str, float]:
    """Drawn digits (N, 28, 28), uint8, with the labels (N,) that they were drawn for, each figure beside that of real digits.

    frechet_distance         to the test set, in the classifier's features, in units of their mean variance over the training set;
                             _real: of training digits, as many of each class, mean and _std
    class_agreement          share of them that the classifier takes for their label; _real: of the test digits, its accuracy
    class_histogram_error    largest difference between the shares of the classes found and those of the training set
    nearest_distance         mean distance to the nearest training digit; _real: of as many test digits
    """
    of_train, of_test = np.isin(digits.train_label, label), np.isin(digits.test_label, label)
    train_x, test_x, train_label = digits.train_x[of_train], digits.test_x[of_test], digits.train_label[of_train]
    features = [_classifier.features(judging, images) for images in (train_x, test_x, x)]
    unit = np.sqrt(features[0].var(axis=0).mean())
    of_training, of_test_set, of_drawn = (of_images / unit for of_images in features)
    floor, floor_std = _digit_metrics.frechet_floor(of_training, train_label, of_test_set, label, rng)
    found, some = _classifier.predicted(judging, x), rng.permutation(len(test_x))[: len(x)]
    return {
        "frechet_distance": _digit_metrics.frechet(of_drawn, of_test_set),
        "frechet_distance_real": floor,
        "frechet_distance_real_std": floor_std,
        "class_agreement": float((found == label).mean()),
        "class_agreement_real": float((_classifier.predicted(judging, test_x) == digits.test_label[of_test]).mean()),
        "class_histogram_error": _digit_metrics.histogram_error(found, train_label),
        "nearest_distance": float(_digit_metrics.nearest(x, train_x)[0].mean()),
        "nearest_distance_real": float(_digit_metrics.nearest(test_x[some], train_x)[0].mean()),
    }
