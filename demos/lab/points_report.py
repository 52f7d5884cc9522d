"""What surrounds the mathematics in the demo of points in the plane: its flags, its tables, its pictures."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import _cli
import _draw
import _judge
import _likelihood
from _data import NAMES, Points
from npdiff import __version__
from npdiff.backend import to_numpy
from npdiff.forward import q_sample, score_from_eps
from npdiff.kit import checkpoint, files, progress
from npdiff.kit.errors import UserError
from npdiff.nn import mlp
from npdiff.nn.params import Tree
from npdiff.papers import edm, score_sde
from npdiff.reverse import PREDICT, p_mean_from_eps
from npdiff.sampler import Predictor, Step
from npdiff.schedule import Schedule
from npdiff.train import early, uniform

DEFAULTS: dict[str, Any] = dict(
    data="swiss_roll", schedule="linear", T=1000, predict="eps", draw_t="early", steps=12_000, batch=1024, lr=8e-3,
    sampler="ddpm", sampling_steps=None, samples=5000, seed=0, backend="auto", gif=True, points=4000, digest="",
)  # fmt: skip
SMOKE: dict[str, Any] = dict(T=20, steps=20, batch=32, samples=64, points=64)
FREE = ("sampler", "sampling_steps", "samples", "gif", "backend")  # may differ from a checkpoint's: they change nothing of training

DRAW_T = {"early": early, "uniform": uniform}
DRAWN = 3000  # points in a panel

EXAMPLES = """\
  python demos/swiss_roll.py                                      DDPM on the roll, the small t drawn more often
  python demos/swiss_roll.py --draw-t uniform                     with t as published
  python demos/swiss_roll.py --schedule cosine --predict v        another schedule, another output
  python demos/swiss_roll.py --data points.csv --out out/mine     points of your own, two numbers a line
  python demos/swiss_roll.py --resume                             go on with a run that was stopped
  python demos/swiss_roll.py --sample-only --sampler ddim --sampling-steps 20 --samples 20000"""


def flags(description: str | None) -> _cli.Parser:
    parser = _cli.Parser((description or "").split("\n")[0], EXAMPLES)
    group = parser.add_argument_group("data and process")
    group.add_argument("--data", metavar="SET|FILE", help=f"{', '.join(NAMES)}, or a .npy or .csv file of 2-D points; default swiss_roll")
    group.add_argument("--schedule", type=_cli.one_of("linear", "cosine"), help="linear or cosine; default linear")
    group.add_argument("--T", type=_cli.whole(1, 100_000), metavar="N", help="steps of the chain; default 1000")
    group = parser.add_argument_group("training")
    group.add_argument("--predict", type=_cli.one_of(*PREDICT), help="what the network puts out: eps, x_0 or v; default eps")
    group.add_argument("--draw-t", type=_cli.one_of(*DRAW_T), help="t of training: early (small t more often) or uniform; default early")
    group.add_argument("--steps", type=_cli.whole(1), metavar="N", help="steps of Adam; default 12000")
    group.add_argument("--batch", type=_cli.whole(1, 10**5), metavar="N", help="points a step; default 1024")
    group.add_argument("--lr", type=_cli.number(0, 1), metavar="X", help="peak of the learning rate; default 0.008")
    group = _cli.add_sampling_flags(parser, sampler="ddpm")
    group.add_argument("--samples", type=_cli.whole(1, 10**6), metavar="N", help="points to draw; default 5000")
    _cli.add_run_flags(parser, out="out/swiss_roll")
    return parser


def parse(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """The run's settings from the command line, filled in and checked. UserError, or exit status 2, for anything wrong."""
    args = flags(description).parse_args(argv)
    args.checkpoint = args.out / "checkpoint.npz"
    if args.data is not None and args.data.lower().endswith((".npy", ".csv")):
        args.data = str(Path(args.data).resolve())  # so that a run resumes from any folder
    kept = checkpoint.read_settings(args.checkpoint) if args.resume or args.sample_only else None
    if kept:
        kept = {"draw_t": "uniform", **kept}  # as it was in a run that is older than this setting
    args.settings = _cli.settings(args, DEFAULTS, SMOKE, FREE, kept)
    for name, value in args.settings.items():
        setattr(args, name, value)
    if args.schedule == "linear" and args.T > 3000:
        raise UserError(
            f"--T {args.T}: the linear rates are meant for T = 1000, and leave nothing of x_0 so late; at most 3000, or --schedule cosine"
        )
    _cli.check_sampling(args)
    return args


class Report:
    """All that a run prints, draws and writes: opened before training, shown every step of the sampler, written at the end."""

    def __init__(self, args: argparse.Namespace, data: Points, schedule: Schedule, rng: np.random.Generator, xp: Any) -> None:
        self.args, self.data, self.schedule, self.rng, self.xp = args, data, schedule, rng, xp
        self.started = time.monotonic()
        _cli.own_folder(args.out)
        args.settings["digest"] = data.digest
        self.way_back: dict[int, np.ndarray] = {}  # x_t at about sixty t on the sampler's way
        self.metrics: dict[str, Any] = {"npdiff": __version__, "settings": args.settings, "backend": xp.__name__}
        words = f"predict {args.predict}, schedule {args.schedule}, T {args.T}; {xp.__name__}, seed {args.seed}"
        print(f"{data.name}: {words}; writes to {args.out}")
        self._terminal_state()
        self.draw_t = DRAW_T[args.draw_t]
        self.floor = _judge.irreducible_loss(data, schedule, np.sort(self.draw_t(5 * args.points, schedule.T, rng)), rng)

    def _terminal_state(self) -> None:
        state = _judge.terminal_state(self.data.fresh, self.schedule, self.rng)
        self.metrics |= state
        _judge.say_terminal_state(state)
        if self.data.aside is not None and self.data.aside < 20:
            print(f"warning: {5 * self.data.aside} points are few: the network will learn them by heart, and little is left to judge it")

    def see(self, step: Step) -> None:
        """Keep about sixty of the clouds on the way back, for the pictures."""
        if not self.way_back:
            self.way_back[step.t] = to_numpy(step.x_t)
        if step.t_prev <= min(self.way_back) - self.schedule.T / 60 or step.t_prev == 0:
            self.way_back[step.t_prev] = to_numpy(step.x_prev)

    def write(self, predict_eps: Predictor, samples: Any, params: Tree) -> None:
        """Judge the network and its samples, print the tables, draw the pictures, write metrics.json and samples.npz."""
        x = to_numpy(samples)
        if not np.isfinite(x).all():
            raise UserError("the samples are not finite: training diverged; try a smaller --lr")
        files.write_npz(self.args.out / "samples.npz", x=self.data.to_user(x))
        curve = self._judge_losses(predict_eps)
        self._judge_samples(x)
        if self.args.likelihood:
            self._judge_likelihood(predict_eps, params)
        self.metrics["seconds"] = round(time.monotonic() - self.started, 1)
        _cli.write_metrics(self.args.out / "metrics.json", self.metrics)
        self._draw(predict_eps, curve)
        print(
            f"done in {progress.duration(time.monotonic() - self.started)}; pictures, samples.npz and metrics.json are in {self.args.out}"
        )

    def _judge_losses(self, predict_eps: Predictor) -> list[dict[str, float]]:
        """The table of losses, a row a t, and their mean over all t; returns a finer table for the picture."""
        args, T = self.args, self.schedule.T
        fine = _judge.spread_over_t(T, 28)
        curve = _judge.loss_table(predict_eps, self.data, self.schedule, fine, args.points, self.rng, self.xp)
        mean = _judge.mean_loss(predict_eps, self.data, self.schedule, 5 * args.points, self.rng, self.xp)
        self.metrics |= mean
        self.metrics["loss_at_t"] = curve
        rows = [row for row in curve if row["t"] in {fine[round(i * (len(fine) - 1) / 9)] for i in range(10)}]
        print(f"\n{'t':>6} {'loss':>9}" + (f" {'irreducible':>12} {'excess':>9}" if self.data.exact else ""))
        for name, row in [*((f"{row['t']}", row) for row in rows), ("mean", mean)]:
            exact = f" {row['irreducible_loss']:12.5f} {row['excess']:9.1e}" if self.data.exact else ""
            print(f"{name:>6} {row['loss']:9.5f}{exact}")
        return curve

    def _judge_samples(self, x: np.ndarray) -> None:
        q = _judge.sample_quality(x, self.data, self.rng)
        self.metrics |= q
        print(f"\n{len(x):,} samples by {self.args.sampler}, {self.args.sampling_steps} steps")
        if "energy_distance" in q:
            n = q["energy_distance_points"]
            real = f"{q['energy_distance_real']:.5f} +- {q['energy_distance_real_std']:.5f}"
            print(f"energy distance to fresh data     {q['energy_distance']:9.5f}   (real against real {real}, {n:,} points)")
        if "distance_to_curve_mean" in q:
            for name, words in (("mean", "mean distance to the curve"), ("p95", "95th percentile of it")):
                print(f"{words:<33} {q[f'distance_to_curve_{name}']:9.5f}   (real data {q[f'distance_to_curve_{name}_real']:.5f})")

    def _judge_likelihood(self, predict_eps: Predictor, params: Tree) -> None:
        ratio = self.schedule.noise[1:] / self.schedule.signal[1:]
        levels = edm.levels(10 if self.args.smoke else 200, ratio[0], min(ratio[-1], 150.0))
        ode = score_sde.exact_divergence(mlp, params, levels, self.args.predict)
        n = min(20 if self.args.smoke else 2000, self.data.aside or 2000)
        self.metrics["likelihood"] = _likelihood.of_points(predict_eps, ode, levels, self.data, self.schedule, n, self.rng, self.xp)

    def _draw(self, predict_eps: Predictor, curve: list[dict[str, float]]) -> None:
        out, T = self.args.out, self.schedule.T
        ts = [min(self.way_back, key=lambda kept: abs(kept - t)) for t in (0, T / 20, T / 4, T / 2, T)]
        forward = [self._noised(t) for t in ts]
        points = _draw.lattice(_draw.square_around(np.concatenate(forward)))
        drifts = [self._drift(predict_eps, points, t) if t else None for t in ts]
        _draw.reverse_process(out / "reverse_process.png", ts, forward, [self.way_back[t][:DRAWN] for t in ts], drifts)

        ts = [max(1, T // 50), max(1, T // 10), max(1, 3 * T // 10)]
        learned = [to_numpy(score_from_eps(points, t, self._on_device(predict_eps, points, t), self.schedule)) for t in ts]
        best = self.data.exact.predictor(self.schedule) if self.data.exact else None
        exact = [score_from_eps(points, t, best(points, t), self.schedule) for t in ts] if best else None
        _draw.score_field(out / "score_field.png", ts, [self._noised(t) for t in ts], points, learned, exact)

        columns = {name: np.array([row[name] for row in curve]) for name in curve[0]}
        _draw.loss_over_t(out / "loss_over_t.png", columns["t"], columns["loss"], columns.get("irreducible_loss"), columns.get("excess"))
        if self.args.gif:
            _draw.animation(out / "reverse_process.gif", [x[:DRAWN] for x in self.way_back.values()], list(self.way_back))

    def _noised(self, t: int) -> np.ndarray:
        """Fresh data after t steps of the forward process."""
        x_0 = self.data.fresh(DRAWN, self.rng)
        return q_sample(x_0, t, self.rng.standard_normal(x_0.shape, dtype=np.float32), self.schedule) if t else x_0

    def _on_device(self, predict_eps: Predictor, x: np.ndarray, t: int) -> np.ndarray:
        return to_numpy(predict_eps(self.xp.asarray(x), t))

    def _drift(self, predict_eps: Predictor, x: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Where a step back moves a point on average: mu_theta(x, t) - x."""
        return x, p_mean_from_eps(x, t, self._on_device(predict_eps, x, t), self.schedule) - x
