"""All that the demo of points prints, draws and writes. It neither trains nor samples."""

import argparse
import time
from typing import Any

import numpy as np

from lab import cli, draw, files, judge, levels, likelihood_report, progress
from lab.points import Points
from npdiff import __version__
from npdiff.backend import Array, to_numpy
from npdiff.forward import q_sample, score_from_eps
from npdiff.likelihood import spread_over_t
from npdiff.papers.score_sde import EpsAndDivergence
from npdiff.reverse import p_mean_from_eps
from npdiff.sampler import Predictor
from npdiff.schedule import Schedule

DRAWN = 3000  # points in a panel
HOW_T_IS_DRAWN = {"uniform": "uniformly", "early": "early: small t more often"}


class Report:
    """Opened before training, shown every step of the sampler, written at the end."""

    def __init__(
        self,
        args: argparse.Namespace,
        data: Points,
        schedule: Schedule,
        rng: np.random.Generator,
        xp: Any,
    ) -> None:
        self.args, self.data, self.schedule, self.rng, self.xp = args, data, schedule, rng, xp
        self.started = time.monotonic()
        cli.own_folder(args)
        args.settings["digest"] = data.digest
        self.columns = levels.spaced_by_level(schedule, 3)  # the t of the pictures
        self.frames = {*self.columns, *levels.spaced_by_level(schedule, 55)}  # those of the film
        self.reverse_process: dict[int, np.ndarray] = {}  # x_t at some sixty t
        self.curve: list[dict[str, float]] = []  # the losses at some thirty t
        self.metrics: dict[str, Any] = {"npdiff": __version__, "settings": args.settings}
        self.metrics["backend"] = xp.__name__
        settings = f"predict {args.predict}, schedule {args.schedule}, T {args.T}"
        print(f"{data.name}: {settings}; {xp.__name__}, seed {args.seed}; writes to {args.out}")
        for note in data.notes:
            print(note)
        state = judge.terminal_state(data.fresh, schedule, rng)
        self.metrics |= state
        judge.say_terminal_state(state, "more steps (--T 1000) or --schedule cosine")
        if data.aside is not None and data.aside < 20:
            print(
                f"warning: {5 * data.aside} points are few: the network will memorise them, "
                "and few are left to judge it"
            )

    def irreducible_loss(self, t: np.ndarray) -> float | None:
        """Say how training draws t, and return the loss of a perfect network at these t.

        It stands beside the loss in the line of progress.
        """
        print(f"training draws t {HOW_T_IS_DRAWN[self.args.draw_t]}")
        found = judge.irreducible_loss(self.data, self.schedule, np.sort(t), self.rng)
        if found is None:
            return None
        loss, error = found
        self.metrics["irreducible_loss_in_training"] = loss
        print(f"with t drawn so, the irreducible loss is {loss:.4f} +- {error:.4f}")
        return loss

    def see(self, t: int, x_t: Array) -> None:
        """Keep x_t where t is one of the film's, or the first t after it that the sampler meets."""
        kept = self.reverse_process
        if any(t <= frame < min(kept, default=self.schedule.T + 1) for frame in self.frames):
            kept[t] = to_numpy(x_t)

    def keep_samples(self, samples: Array) -> None:
        """Write samples.npz, in the coordinates of the user's data."""
        x = to_numpy(samples)
        cli.check_samples(x)
        files.write_npz(self.args.out / "samples.npz", x=self.data.to_user(x))

    def judge_losses(self, predict_eps: Predictor) -> None:
        """The table of losses, a row for each t, and their mean over all t."""
        n, data, schedule, rng = self.args.points, self.data, self.schedule, self.rng
        ts = spread_over_t(schedule.T, 28)
        self.curve = judge.loss_table(predict_eps, data, schedule, ts, n, rng, self.xp)
        mean = judge.mean_loss(predict_eps, data, schedule, 5 * n, rng, self.xp)
        self.metrics |= mean
        self.metrics["loss_at_t"] = self.curve

        heading = f" {'irreducible':>12} {'excess':>9}" if data.exact else ""
        print(f"\nthe loss at some t, and its mean over t = 1..{schedule.T}, each t counted once")
        print(f"{'t':>6} {'loss':>9}{heading}")
        shown = {ts[round(i * (len(ts) - 1) / 9)] for i in range(10)}
        rows = {f"{row['t']}": row for row in self.curve if row["t"] in shown}
        for name, row in {**rows, "mean": mean}.items():
            beside = f" {row['irreducible_loss']:12.5f} {row['excess']:9.1e}" if data.exact else ""
            print(f"{name:>6} {row['loss']:9.5f}{beside}")

    def judge_samples(self, samples: Array) -> None:
        """The figures of the samples, each beside that of real data."""
        q = judge.sample_quality(to_numpy(samples), self.data, self.rng)
        self.metrics |= q
        args = self.args
        drawn = f"{len(samples):,} samples by {args.sampler}, {args.sampling_steps} steps"
        print(f"\n{drawn}; in brackets, what real data have in their place")
        if "energy_distance" in q:
            n = q["energy_distance_points"]
            spread = f"{q['energy_distance_real']:.5f} +- {q['energy_distance_real_std']:.5f}"
            beside = f"(real against real {spread}, {n:,} points)"
            print(f"energy distance to fresh data     {q['energy_distance']:9.5f}   {beside}")
        if "distance_to_curve_mean" in q:
            names = {"mean": "mean distance to the curve", "p95": "95th percentile of it"}
            for key, name in names.items():
                real = q[f"distance_to_curve_{key}_real"]
                print(f"{name:<33} {q[f'distance_to_curve_{key}']:9.5f}   (real data {real:.5f})")

    def judge_likelihood(
        self, predict_eps: Predictor, ode: EpsAndDivergence, ode_levels: Schedule
    ) -> None:
        """The bound, term by term, and the log-likelihood by the ODE."""
        n = min(20 if self.args.smoke else 2000, self.data.aside or 2000)
        self.metrics["likelihood"] = likelihood_report.of_points(
            predict_eps, ode, ode_levels, self.data, self.schedule, n, self.rng, self.xp
        )

    def write(self, predict_eps: Predictor) -> None:
        """Write metrics.json and the pictures."""
        self.metrics["seconds"] = round(time.monotonic() - self.started, 1)
        cli.write_metrics(self.args.out / "metrics.json", self.metrics)
        self.draw_processes(predict_eps)
        self.draw_score(predict_eps)
        self.draw_losses()
        duration = progress.duration(time.monotonic() - self.started)
        print(f"done in {duration}; pictures, samples.npz and metrics.json are in {self.args.out}")

    def draw_processes(self, predict_eps: Predictor) -> None:
        """The forward process, the reverse process and the drift between them; and the film."""
        out, kept = self.args.out, self.reverse_process
        # The nearest t that were kept: a sampler that jumps does not meet every t.
        ts = sorted({min(kept, key=lambda t: abs(t - wanted)) for wanted in self.columns})
        forward = [self.noised(t) for t in ts]
        reverse = [kept[t][:DRAWN] for t in ts]
        points = draw.lattice(draw.square_around(np.concatenate(forward)), 11)
        drifts = [(points, self.drift(predict_eps, points, t)) if t else None for t in ts]
        columns = [self.title(t) for t in ts]
        draw.reverse_process(out / "reverse_process.png", columns, forward, reverse, drifts)
        if self.args.gif:
            clouds = [x[:DRAWN] for x in kept.values()]
            draw.animation(out / "reverse_process.gif", clouds, list(kept))

    def draw_score(self, predict_eps: Predictor) -> None:
        """The learned score at a few t, beside the exact one where it is known."""
        schedule, exact = self.schedule, self.data.exact
        ts = self.columns[1:-1] or [schedule.T]
        clouds = [self.noised(t) for t in ts]
        points = draw.lattice(draw.square_around(np.concatenate(clouds)), 33)
        learned = [self.score(predict_eps, points, t) for t in ts]
        best = None
        if exact:
            best = [exact.score(points, schedule.signal[t], schedule.noise[t]) for t in ts]
        columns = [self.title(t) for t in ts]
        draw.score_field(self.args.out / "score_field.png", columns, clouds, points, learned, best)

    def title(self, t: int) -> tuple[str, str]:
        """The title of a column of a picture: t, and how noisy x_t is."""
        ratio = self.schedule.noise[t] / self.schedule.signal[t]
        return f"t = {t}", f"noise/signal = {ratio:.{3 if ratio >= 1 else 2}g}"

    def draw_losses(self) -> None:
        """The loss at each t beside the irreducible one."""
        columns = {name: np.array([row[name] for row in self.curve]) for name in self.curve[0]}
        floor, excess = columns.get("irreducible_loss"), columns.get("excess")
        path = self.args.out / "loss_over_t.png"
        draw.loss_over_t(path, columns["t"], columns["loss"], floor, excess)

    def noised(self, t: int) -> np.ndarray:
        """Fresh data after t steps of the forward process."""
        x_0 = self.data.fresh(DRAWN, self.rng)
        if t == 0:
            return x_0
        eps = self.rng.standard_normal(x_0.shape, dtype=np.float32)
        return q_sample(x_0, t, eps, self.schedule)

    def score(self, predict_eps: Predictor, x: np.ndarray, t: int) -> np.ndarray:
        """The learned score at x."""
        eps_hat = to_numpy(predict_eps(self.xp.asarray(x), t))
        return score_from_eps(x, t, eps_hat, self.schedule)

    def drift(self, predict_eps: Predictor, x: np.ndarray, t: int) -> np.ndarray:
        """Where a reverse step moves x on average: mu_theta(x, t) - x."""
        eps_hat = to_numpy(predict_eps(self.xp.asarray(x), t))
        return p_mean_from_eps(x, t, eps_hat, self.schedule) - x
