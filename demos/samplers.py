"""Every sampler on the swiss roll: how its error falls with the work that it is given.

    python demos/samplers.py        about a minute on two cores

With the exact predictor only the sampler errs; with a trained network both do. Where the two curves
meet, more steps would not help.
"""

from lab import interrupt

interrupt.in_one_line(__name__)  # Ctrl-C, also while NumPy is imported

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # products this small are faster on one thread

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab import cli, draw, files, order, progress
from lab.metrics import energy_distance, real_against_real
from npdiff import exact, fast, train
from npdiff.backend import select, to_numpy
from npdiff.forward import q_sample
from npdiff.loss import l_target
from npdiff.nn import mlp
from npdiff.nn.params import map_leaves
from npdiff.papers import dpm_solver, edm, score_sde
from npdiff.reverse import predictor
from npdiff.sampler import Predictor, Step, ddim, ddpm
from npdiff.schedule import Schedule, cosine, uniform_log_snr

ROLL = exact.SwissRoll()
# log(noise/signal) of the first and the last level: from a hundredth of the data's width to thirty
# times it.
LEVELS = -4.5, 3.5
BUDGETS = (5, 10, 20, 50, 100)  # evaluations of the predictor
COLORS = ("#1f4e79", "#d5600f", "#3a8f5c", "#8e5ea2", "#b8860b", "#666666")

STEP_BACK = (
    "The true reverse step from one x_{t} of the roll, on the cosine schedule. With few steps T it "
    "takes the shape of the data, here of the spiral; with many it is a Gaussian. KL is the "
    "divergence of q from its best Gaussian, averaged over x_{t}. Each panel has its own scale."
)

Distances = dict[str, dict[str, list[float]]]  # by model, then by method, for each budget
Clouds = dict[tuple[str, int], np.ndarray]  # by method and budget, (N, 2) each


def uniform(T: int) -> Schedule:
    return uniform_log_snr(T, *LEVELS)


def karras(T: int) -> Schedule:
    return edm.levels(T, *(math.exp(level) for level in LEVELS))


class Method(NamedTuple):
    """A sampler, and the schedule that it is used with."""

    schedule: Callable[[int], Schedule]  # of T steps
    run: Callable[..., Iterator[Step]]  # run(predict_eps, x_T, schedule, rng)
    evaluations: int = 1  # of the predictor, a step


METHODS = {
    "DDPM": Method(cosine, ddpm),
    "DDIM": Method(uniform, lambda predict_eps, x_T, s, rng: ddim(predict_eps, x_T, s, s.T)),
    "Euler-Maruyama": Method(uniform, score_sde.euler_maruyama),
    "predictor-corrector": Method(uniform, score_sde.predictor_corrector, 2),
    "Heun": Method(karras, lambda predict_eps, x_T, s, rng: edm.heun(predict_eps, x_T, s), 2),
    "DPM-Solver++(2M)": Method(
        uniform, lambda predict_eps, x_T, s, rng: dpm_solver.dpm_solver_pp_2m(predict_eps, x_T, s)
    ),
}


class Model(NamedTuple):
    """What a sampler and the likelihood need of a model, on any schedule."""

    predictor: Callable[[Schedule], Predictor]
    divergence: Callable[[Schedule], score_sde.EpsAndDivergence]


def train_network(smoke: bool, xp: Any, rng: np.random.Generator) -> tuple[Model, float]:
    """An MLP that predicts v, and its last loss.

    It is given the level and not the step, so it serves every sampler on its own levels.
    """
    schedule = uniform(20 if smoke else 1000)
    steps, batch = (3, 16) if smoke else (8000, 1024)
    state = train.start(map_leaves(xp.asarray, mlp.init(rng)), predict="v")
    update = partial(train.update, lr=5e-3)
    training = train.train(
        mlp, state, ROLL.sample, schedule, rng, steps, batch, l_target, update=update
    )
    for step in progress.training(training, 0, steps, batch):
        loss = step.loss
    model = Model(
        predictor=lambda schedule: predictor(mlp, state, schedule),
        divergence=lambda schedule: score_sde.exact_divergence(mlp, state, schedule),
    )
    return model, float(loss)


def sample(
    method: Method, model: Model, evaluations: int, z: np.ndarray, rng: np.random.Generator, xp: Any
) -> np.ndarray:
    """Points from the noise z, by about so many evaluations of the predictor."""
    schedule = method.schedule(max(2, math.ceil(evaluations / method.evaluations)))
    x_T = xp.asarray(np.float32(schedule.std[-1]) * z)
    *_, last = method.run(model.predictor(schedule), x_T, schedule, rng)
    return to_numpy(last.x_prev)


def measure_distances(
    models: dict[str, Model], n: int, budgets: Sequence[int], rng: np.random.Generator, xp: Any
) -> tuple[Distances, Clouds]:
    """The energy distance x 1000 of each method to fresh data; and the clouds of the last model."""
    z, fresh = rng.standard_normal((n, 2), dtype=np.float32), ROLL.sample(n, rng)
    distances: Distances = {}
    clouds: Clouds = {}
    for model_name, model in models.items():
        print(f"\nenergy distance x 1000 to fresh data, {n:,} points: {model_name}")
        print(f"{'evaluations':<22}" + "".join(f"{budget:>9}" for budget in budgets))
        distances[model_name] = {}
        for name, method in METHODS.items():
            row = distances[model_name][name] = []
            for budget in budgets:
                clouds[name, budget] = sample(method, model, budget, z, rng, xp)
                row.append(1000 * energy_distance(clouds[name, budget], fresh))
            print(f"{name:<22}" + "".join(f"{value:9.2f}" for value in row), flush=True)
    mean, std = real_against_real([ROLL.sample(n, rng) for _ in range(8)])
    print(f"{'real data':<22}{1000 * mean:9.2f} +- {1000 * std:.2f}")
    distances["real data"] = {"mean": [1000 * mean], "std": [1000 * std]}
    return distances, clouds


def measure_orders(
    model: Model, counts: list[int], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """How far each deterministic sampler's points are from the ODE's, at the first level.

    With the exact predictor, in float64. The ODE's are Heun's with eight times as many levels.
    """
    z = rng.standard_normal((200, 2))
    errors = {}
    print(f"\n{'distance to the ODE':<22}" + "".join(f"{T:>10}" for T in counts) + "     order")
    for name in ("DDIM", "Heun", "DPM-Solver++(2M)"):
        method = METHODS[name]
        finest = method.schedule(8 * counts[-1])
        x_T = float(finest.std[-1]) * z
        ode = order.end(edm.heun(model.predictor(finest), x_T, finest))

        def steps(schedule: Schedule, method: Method = method, x_T: np.ndarray = x_T) -> Iterator:
            return method.run(model.predictor(schedule), x_T, schedule, rng)

        errors[name] = order.errors(steps, method.schedule, counts, ode)
        row = "".join(f"{error:10.2e}" for error in errors[name])
        print(f"{name:<22}{row}{order.order(counts, errors[name]):10.2f}", flush=True)
    return errors


def measure_ode_likelihood(
    models: dict[str, Model], counts: list[int], n: int, rng: np.random.Generator, xp: Any
) -> dict[str, list[float]]:
    """mean[log p by the ODE - true log p] in nats a point, for few and many levels.

    Above 0 the model looks better than the truth.
    """
    gaps: dict[str, list[float]] = {}
    x_0 = ROLL.sample(n, rng)
    true_log_p = ROLL.log_prob(x_0.astype(np.float64))
    title = "log-likelihood by the ODE, minus the true one"
    print(f"\n{title:<46}" + "".join(f"{T:>9}" for T in counts) + "  levels")
    for name, model in models.items():
        gaps[name] = []
        for schedule in map(karras, counts):
            log_p = score_sde.ode_log_prob(model.divergence(schedule), xp.asarray(x_0), schedule)
            gaps[name].append(float((to_numpy(log_p).astype(float) - true_log_p).mean()))
        print(f"{name:<46}" + "".join(f"{gap:9.4f}" for gap in gaps[name]), flush=True)
    return gaps


def measure_non_gaussianity(smoke: bool, rng: np.random.Generator) -> dict[int, dict[float, float]]:
    """KL of the true reverse step from its best Gaussian at t/T, for few and many steps T.

    The first number of each row is that of the step to the data.
    """
    kl: dict[int, dict[float, float]] = {}
    print("\nthe true q(x_{t-1} | x_t) against its best Gaussian, KL in nats, cosine schedule")
    for T in (4, 10, 40):
        shares = (0.0, 0.05, 0.1, 0.2, 0.25, 0.35, 0.5, 0.75, 0.9)
        kl[T] = {}
        for t in sorted({max(1, round(T * share)) for share in shares}):
            n = 200 if smoke else 4000
            kl[T][t / T] = exact.non_gaussianity(ROLL, t, cosine(T), n, rng)
        row = "".join(f"   t = {round(share * T)}: {nats:.4f}" for share, nats in kl[T].items())
        print(f"T = {T:<3}{row}", flush=True)
    return kl


def draw_non_gaussianity(
    out: Path, kl: dict[int, dict[float, float]], rng: np.random.Generator
) -> None:
    """The divergences over t/T; and for one x_t, draws of q beside the best Gaussian."""
    series = [
        draw.Series(f"T = {T}", np.array([*row]), np.array([*row.values()]), color)
        for (T, row), color in zip(kl.items(), COLORS, strict=False)
    ]
    title = "KL of the true reverse step from its best Gaussian, nats"
    draw.curves(out / "gaussian_steps.png", series, "t / T", title, log_y=True)
    views = []
    for T, row in kl.items():
        t, schedule = round(T / 4), cosine(T)
        x_0 = ROLL.curve(np.array([10.0]))
        x_t = q_sample(x_0, t, np.array([[0.3, -0.3]]), schedule)
        q, _ = exact.reverse_draws(ROLL, x_t[0], t, schedule, 1500, rng)
        mean, cov = ROLL.reverse_step(x_t, t, schedule)
        marks: list[draw.Dots | draw.Series] = [
            draw.Dots(f"draws of q(x_{{{t - 1}}} | x_{{{t}}})", q),
            draw.ellipse("best Gaussian, 1 and 2 deviations", mean[0], cov[0]),
            draw.ellipse("", mean[0], cov[0], deviations=2),
            draw.Dots(f"x_{{{t}}}", x_t, draw.INK, alpha=1, radius=4),
        ]
        extent = draw.square_around(np.concatenate([q, x_t]), margin=0.15)
        title = f"T = {T}, t = {t}: KL {row[t / T]:.2g} nats"
        views.append(draw.View(title, marks, "coordinate 1", "coordinate 2", extent=extent))
    draw.board(out / "step_back.png", views, STEP_BACK, columns=3)


def series_of(rows: dict[str, Any], x: Sequence[int], floor: float = -math.inf) -> list:
    """A line for each row, in a colour of its own; values below the floor are drawn on it."""
    return [
        draw.Series(name, np.array(x, float), np.maximum(row, floor), color)
        for (name, row), color in zip(rows.items(), COLORS, strict=False)
    ]


def draw_distances(out: Path, distances: Distances, clouds: Clouds, budgets: Sequence[int]) -> None:
    """The energy distances and the clouds.

    A distance below the spread of real data says no more than that, and is drawn at it.
    """
    floor = distances["real data"]["std"][0]
    for model, path in (("the exact predictor", "exact"), ("the network", "network")):
        title = f"energy distance x 1000, down to the spread of real data: {model}"
        series, log = series_of(distances[model], budgets, floor), dict(log_x=True, log_y=True)
        draw.curves(
            out / f"errors_{path}.png", series, "evaluations of the predictor", title, **log
        )
    shown = [budget for budget in budgets if budget <= 50]
    draw.cloud_table(out / "clouds.png", clouds, list(METHODS), shown, "{} evaluations")


def main(args: argparse.Namespace) -> None:
    started, smoke, out = time.monotonic(), args.smoke, args.out
    fast.keep_freed_memory()  # a setting of the C library's, which saves up to half of the time
    xp = select(args.backend)
    cli.own_folder(args)
    training_rng, rng = (np.random.default_rng([args.seed, i]) for i in range(2))

    network, loss = train_network(smoke, xp, training_rng)
    perfect = Model(ROLL.predictor, lambda schedule: score_sde.perfect(ROLL, schedule))
    models = {"the exact predictor": perfect, "the network": network}

    budgets = BUDGETS[:2] if smoke else BUDGETS
    distances, clouds = measure_distances(models, args.samples, budgets, rng, xp)
    counts = [10, 20] if smoke else [20, 40, 80, 160, 320]
    errors = measure_orders(perfect, counts, rng)
    kl = measure_non_gaussianity(smoke, rng)
    gap_counts = [5, 10] if smoke else [10, 20, 40, 80, 160, 320]
    gaps = measure_ode_likelihood(models, gap_counts, 5 if smoke else 300, rng, xp)

    samples = {f"{name}, {budget}": cloud for (name, budget), cloud in clouds.items()}
    files.write_npz(out / "samples.npz", x=clouds["DDIM", budgets[-1]], **samples)
    draw_distances(out, distances, clouds, budgets)
    series, title = series_of(errors, counts), "distance to the ODE's point"
    draw.curves(out / "orders.png", series, "levels", title, log_x=True, log_y=True)
    series, title = series_of(gaps, gap_counts), "log-likelihood by the ODE minus true, nats"
    draw.curves(out / "flattery.png", series, "levels", title, log_x=True)
    draw_non_gaussianity(out, kl, rng)

    metrics: dict[str, Any] = {
        "backend": xp.__name__,
        "seed": args.seed,
        "loss": loss,
        "non_gaussianity": {str(T): row for T, row in kl.items()},
        "evaluations": budgets,
        "energy_distance_x_1000": distances,
        "levels": counts,
        "gap_levels": gap_counts,
        "log_likelihood_gap": gaps,
        "distance_to_ode": {name: list(row) for name, row in errors.items()},
        "order": {name: order.order(counts, row) for name, row in errors.items()},
    }
    cli.write_metrics(out / "metrics.json", metrics)
    print(
        f"done in {progress.duration(time.monotonic() - started)}; "
        f"pictures, samples.npz and metrics.json are in {out}"
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    description = (__doc__ or "").split("\n")[0]
    parser = cli.Parser(description, "  python demos/samplers.py --samples 10000")
    words = "points of each sampler; default 4000"
    parser.add_argument("--samples", type=cli.whole(2, 10**5), metavar="N", help=words)
    cli.add_where_flags(parser, out="out/samplers", seed=0, backend="auto")
    args = parser.parse_args(argv)
    args.samples = args.samples or (20 if args.smoke else 4000)
    return args


if __name__ == "__main__":
    cli.run(main, parse=parse)
