"""One step from noise to data: five ways to learn it, on one swiss roll.

    python demos/one_step.py        about five minutes on one core

DDIM needs some dozens of steps. Reflow, progressive distillation and consistency distillation make
of its network one that needs a single step; consistency training and MeanFlow learn such a network
from the data alone. All of them approximate one function, the exact map from noise to data, and
stand beside it.
"""

from lab import interrupt

interrupt.in_one_line(__name__)  # Ctrl-C, also while NumPy is imported

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # products this small are faster on one thread

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab import cli, draw, files, progress
from lab.metrics import distance_to_curve, energy_distance, real_against_real
from npdiff import exact, fast, train
from npdiff.backend import Array, select, standard_normal, to_numpy
from npdiff.nn import mlp
from npdiff.nn.params import map_leaves
from npdiff.papers import consistency, distillation, flow_matching, mean_flow
from npdiff.papers.flow_matching import straight
from npdiff.reverse import predictor
from npdiff.schedule import uniform_log_snr

ROLL = exact.SwissRoll()
DDIM_STEPS = 1, 4, 16, 64

Map = Callable[[Array], Array]  # from noise to samples, (N, 2) -> (N, 2)


class Sizes(NamedTuple):
    """How much work each part is given: steps of training, unless it says otherwise."""

    batch: int
    teacher: int
    pairs: int  # of noise and data, that reflow learns from
    reflow: int
    stage: int  # each stage of progressive distillation; the last two are twice as long
    halvings: int  # and their number: from 2^halvings steps to one
    distillation: int
    consistency: int
    mean_flow: int
    samples: int
    exact: int  # of these samples, whose exact end points are found
    exact_steps: int  # of the solver that finds them
    side: int  # cells along a side of the picture of errors


FULL = Sizes(
    batch=512,
    teacher=8000,
    pairs=50_000,
    reflow=5000,
    stage=1500,
    halvings=6,
    distillation=6000,
    consistency=12_000,
    mean_flow=20_000,
    samples=5000,
    exact=1000,
    exact_steps=200,
    side=40,
)
SMOKE = Sizes(8, 3, 20, 2, 2, 2, 2, 5, 2, samples=30, exact=5, exact_steps=4, side=3)


# The truth, and the teacher.


def train_teacher(sizes: Sizes, rng: np.random.Generator, xp: Any) -> tuple[train.State, float]:
    """Flow matching: the network learns v, which gives the mean velocity of the lines.

    Its state, and its last loss.
    """
    state = train.start(map_leaves(xp.asarray, mlp.init(rng)), predict="v")
    steps = train.train(
        mlp,
        state,
        ROLL.sample,
        straight(1000),
        rng,
        sizes.teacher,
        sizes.batch,
        flow_matching.flow_matching_loss,
        update=partial(train.update, lr=5e-3),
    )
    return state, follow(steps, sizes.teacher, sizes.batch)


def ddim(state: train.State, steps: int, x_T: Array) -> Array:
    """The network's samples from x_T: Euler's method, which on a straight schedule is DDIM."""
    schedule = straight(steps)
    velocity = flow_matching.predictor(mlp, state, schedule)
    *_, last = flow_matching.euler(velocity, x_T, schedule)
    return last.x_prev


# Five ways to one step. Each draws x_0, noises it, trains, and returns what it has learned.


def reflow(teacher: train.State, sizes: Sizes, rng: np.random.Generator) -> train.State:
    """Straighten the teacher's paths: learn the lines that join their two ends."""
    schedule, x_T = straight(50), standard_normal(rng, (sizes.pairs, 2), like=teacher.theta)
    velocity = flow_matching.predictor(mlp, teacher, schedule)
    *_, last = flow_matching.heun(velocity, x_T, schedule)

    state = train.start(teacher.ema_params, predict="v")
    n, update = sizes.reflow, partial(train.update, lr=5e-3)
    steps = flow_matching.reflow(
        mlp, state, last.x_prev, x_T, straight(1000), rng, n, sizes.batch, update=update
    )
    follow(steps, n, sizes.batch)
    return state


def progressive(teacher: train.State, sizes: Sizes, rng: np.random.Generator) -> Map:
    """Halve the number of DDIM's steps again and again: each student is the next one's teacher."""
    T, state = 2**sizes.halvings, teacher
    update = partial(train.update, lr=2e-3)
    while T > 1:
        predict_v = distillation.predictor(mlp, state, distillation.angular(T))
        T //= 2
        n = sizes.stage if T > 2 else 2 * sizes.stage  # the longest steps are the hardest to learn
        state = train.start(state.ema_params, predict="v")
        steps = distillation.distil(
            mlp, state, predict_v, ROLL.sample, T, rng, n, sizes.batch, update
        )
        follow(steps, n, sizes.batch)
    schedule = distillation.angular(1)
    predict_v = distillation.predictor(mlp, state, schedule)
    return lambda x_T: next(distillation.ddim(predict_v, x_T, schedule)).x_prev


def consistency_distillation(teacher: train.State, sizes: Sizes, rng: np.random.Generator) -> Map:
    """The same end point from two neighbours on one of the teacher's paths, at 32 levels."""
    schedule = uniform_log_snr(32, -4.0, 5.0)
    predict_eps = predictor(mlp, teacher, schedule)
    pair = partial(consistency.teacher_pair, predict_eps=predict_eps)

    state = train.start(teacher.ema_params, predict="v")
    n, update = sizes.distillation, partial(train.update, lr=3e-3)
    steps = consistency.learn(
        mlp, state, pair, ROLL.sample, lambda step: schedule, rng, n, sizes.batch, 0.95, update
    )
    follow(steps, n, sizes.batch)
    f = consistency.predictor(mlp, state, schedule)
    return lambda x_T: f(x_T, schedule.T)


def consistency_training(sizes: Sizes, rng: np.random.Generator, xp: Any) -> Map:
    """The same end point from one x_0 and one eps at two levels, which become ever closer."""
    n, update = sizes.consistency, partial(train.update, lr=5e-3)
    # At the first level the noise is less than the roll's; at the last the signal is a twelfth.
    schedule_at = partial(consistency.finer, steps=n, fewest=8, most=1024, ends=(-3.0, 2.5))

    state = train.start(map_leaves(xp.asarray, mlp.init(rng)), predict="v")
    steps = consistency.learn(
        mlp, state, consistency.data_pair, ROLL.sample, schedule_at, rng, n, sizes.batch, 0, update
    )
    follow(steps, n, sizes.batch)
    schedule = schedule_at(n)
    f = consistency.predictor(mlp, state, schedule)
    return lambda x_T: f(x_T, schedule.T)


def mean_velocity(sizes: Sizes, rng: np.random.Generator, xp: Any) -> Map:
    """MeanFlow: the average velocity of the whole path, by its derivative along the path."""
    state = train.start(map_leaves(xp.asarray, mlp.init(rng, dim=3, outputs=2)))
    n, batch = sizes.mean_flow, min(sizes.batch, 256)
    draw_times, update = partial(mean_flow.draw_times, equal=0.6), partial(train.update, lr=2e-3)
    steps = mean_flow.learn(mlp, state, ROLL.sample, rng, n, batch, draw_times, update)
    follow(steps, n, batch)
    u = mean_flow.predictor(mlp, state)
    return lambda z_1: next(mean_flow.sample(u, z_1)).z_r


# What is written


def timed(name: str, learn: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What `learn` returns, and the seconds that it took."""
    print(f"\n{name}", flush=True)
    started = time.monotonic()
    return learn(*args), time.monotonic() - started


def follow(steps: Iterable[Any], last: int, batch: int) -> float:
    """The last loss."""
    for step in progress.training(steps, 0, last, batch):
        loss = step.loss  # and x_0, eps, losses, grad and more: a breakpoint here sees them all
    return float(loss)


class Row(NamedTuple):
    """A row of the table."""

    name: str
    x: np.ndarray  # samples, (N, 2), from the first rows of one noise
    evaluations: int  # of a network, or of the exact velocity, for a sample
    seconds: float | None = None  # of training


Table = dict[str, dict[str, float | None]]  # by row, then by column


def measure(rows: list[Row], end: np.ndarray, rng: np.random.Generator) -> Table:
    """Each row's distance to fresh data, to the curve, and to the exact ends of its own noise."""
    n = max(len(row.x) for row in rows)
    fresh, table = ROLL.sample(n, rng), Table()
    for row in rows:
        table[row.name] = {
            "seconds": row.seconds,
            "evaluations": row.evaluations,
            "energy_distance_x_1000": 1000 * energy_distance(row.x, fresh),
            "p95_to_curve": float(np.percentile(distance_to_curve(row.x, ROLL), 95)),
            "rms_to_exact_map": float(((row.x[: len(end)] - end) ** 2).sum(axis=1).mean() ** 0.5),
        }
    mean, std = real_against_real([ROLL.sample(n, rng) for _ in range(8)])
    table["real data"] = {
        "energy_distance_x_1000": 1000 * mean,
        "std": 1000 * std,
        "p95_to_curve": float(np.percentile(distance_to_curve(fresh, ROLL), 95)),
    }
    return table


def print_table(table: Table) -> None:
    columns = {
        "seconds": "8.0f",
        "evaluations": "13.0f",
        "energy_distance_x_1000": "17.2f",
        "p95_to_curve": "14.3f",
        "rms_to_exact_map": "18.3f",
    }
    first = "seconds", "evaluations", "energy distance", "to the curve", "to the exact map"
    second = "", "", "x 1000", "95th percent.", "rms"
    widths = [int(form.split(".")[0]) for form in columns.values()]
    print()
    for titles in (first, second):
        print(f"{'':<25}" + "".join(f"{a:>{w}}" for a, w in zip(titles, widths, strict=True)))
    for name, row in table.items():
        line = f"{name:<25}"
        for (column, form), width in zip(columns.items(), widths, strict=True):
            value = row.get(column)
            line += " " * width if value is None else f"{value:{form}}"
        print(line.rstrip())
    print(f"energy distances of real data spread by {table['real data']['std']:.2f}")


PATHS = (
    "Paths from x_{T} to x_{0} by 64 steps of Euler's method, from the same noise. Straightness is "
    "the mean square of a path's velocity minus the path's mean velocity, for each coordinate. It "
    "is 0 for straight lines at even speed, which one step follows to the end."
)
CLOUDS = (
    "Samples, all from the same noise; in blue real data. One step of DDIM leads to the mean of "
    "the data from everywhere. Points between the arms of the spiral are errors."
)
ERRORS = (
    "The plane of the noise. First panel: how far along the spiral the exact map's end lies, from "
    "the inner end (white) to the outer one. The others: the distance between the sample and the "
    "exact end of the same noise, on a logarithmic scale, white at 0.01 and full orange at 1. The "
    "errors lie where neighbours part for different arms, and where noise is rare."
)


def draw_paths(out: Path, flows: dict[str, train.State], x_T: Array) -> dict[str, float]:
    """The ways of two dozen points; and the straightness of each flow, over all of x_T."""
    views, found, schedule = [], {}, straight(64)
    for name, state in flows.items():
        velocity = flow_matching.predictor(mlp, state, schedule)
        found[name] = flow_matching.straightness(velocity, x_T, schedule)
        steps = list(flow_matching.euler(velocity, x_T[:24], schedule))
        ways = np.stack([to_numpy(a) for a in (x_T[:24], *(step.x_prev for step in steps))])
        marks: list[Any] = [draw.Dots("data", ROLL.sample(2000, np.random.default_rng(0)))]
        for i in range(ways.shape[1]):
            marks.append(draw.Series("", ways[:, i, 0], ways[:, i, 1], draw.INK, 1.0))
        marks += [draw.Dots("x_{T}", ways[0], draw.INK, alpha=1, radius=3)]
        marks += [draw.Dots("x_{0}", ways[-1], draw.MODEL, alpha=1, radius=3)]
        title = f"{name}: straightness {found[name]:.4f}"
        extent = (-3.0, 3.0, -3.0, 3.0)
        views.append(draw.View(title, marks, "coordinate 1", "coordinate 2", extent=extent))
    draw.board(out / "paths.png", views, PATHS)
    return found


def draw_clouds(out: Path, clouds: dict[str, np.ndarray]) -> None:
    """Each cloud, drawn over real data."""
    real = draw.Dots("", ROLL.sample(5000, np.random.default_rng(0)), alpha=0.15)
    named: dict[str, Sequence[draw.Dots]] = {
        name.replace("_", " "): [real, draw.Dots("", x, draw.MODEL)] for name, x in clouds.items()
    }
    draw.cloud_grid(out / "clouds.png", named, CLOUDS, columns=5)


def draw_errors(out: Path, maps: dict[str, Map], sizes: Sizes, xp: Any) -> None:
    """Where each map is wrong: its distance to the exact map, over the plane of the noise."""
    extent = (-3.0, 3.0, -3.0, 3.0)
    x_T = draw.lattice(extent, sizes.side).astype(np.float32)
    end = flow_matching.exact_map(ROLL, x_T, sizes.exact_steps)
    u = np.linspace(ROLL.U_MIN, ROLL.U_MAX, 500)
    nearest = ((end[:, None] - ROLL.curve(u)) ** 2).sum(axis=2).argmin(axis=1)
    values = {"the exact map": nearest / len(u)}
    for name, to_data in maps.items():
        error = np.hypot(*(to_numpy(to_data(xp.asarray(x_T))) - end).T)
        values[name] = np.log10(error.clip(0.01, 1) / 0.01) / 2
    views = []
    for name, value in values.items():
        color = draw.MODEL if name in maps else draw.DATA
        shades = draw.Shades("", value.reshape(sizes.side, sizes.side)[::-1], color)
        views.append(draw.View(name.replace("_", " "), [shades], extent=extent))
    draw.board(out / "errors.png", views, ERRORS, columns=4)


def main(args: argparse.Namespace) -> None:
    started, sizes = time.monotonic(), SMOKE if args.smoke else FULL
    fast.keep_freed_memory()  # a setting of the C library's, which saves up to half of the time
    xp = select(args.backend)
    cli.own_folder(args)
    rngs = [np.random.default_rng([args.seed, i]) for i in range(7)]

    # Training: a teacher, three students, and two networks that need no teacher.
    (teacher, loss), of_teacher = timed(
        "the teacher, flow matching", train_teacher, sizes, rngs[0], xp
    )
    straightened, of_reflow = timed("reflow", reflow, teacher, sizes, rngs[1])
    learned: dict[str, tuple[Map, float]] = {
        "reflow": (partial(ddim, straightened, 1), of_reflow),
        "progressive": timed("progressive distillation", progressive, teacher, sizes, rngs[2]),
        "consistency": timed(
            "consistency distillation", consistency_distillation, teacher, sizes, rngs[3]
        ),
        "consistency_training": timed(
            "consistency training", consistency_training, sizes, rngs[4], xp
        ),
        "mean_flow": timed("MeanFlow", mean_velocity, sizes, rngs[5], xp),
    }

    # One step from the same noise, beside the exact map and DDIM in more steps.
    noise = rngs[6].standard_normal((sizes.samples, 2), dtype=np.float32)
    x_T = xp.asarray(noise)
    end = flow_matching.exact_map(ROLL, noise[: sizes.exact], sizes.exact_steps)
    rows = [Row("the exact map", end, 2 * sizes.exact_steps - 1)]
    for n in DDIM_STEPS:
        x_0 = to_numpy(ddim(teacher, n, x_T))
        rows.append(Row(f"teacher, DDIM, {n} step{'s' * (n > 1)}", x_0, n, of_teacher))
    maps = {name: to_data for name, (to_data, _) in learned.items()}
    samples = {name: to_numpy(to_data(x_T)) for name, to_data in maps.items()}
    rows += [Row(name, x_0, 1, learned[name][1]) for name, x_0 in samples.items()]
    table = measure(rows, end, rngs[6])
    print_table(table)

    files.write_npz(args.out / "samples.npz", noise=noise, exact=end, **samples)
    flows = {"the teacher": teacher, "after reflow": straightened}
    straightness = draw_paths(args.out, flows, x_T)
    shown = {
        "DDIM, 1 step": partial(ddim, teacher, 1),
        "DDIM, 16 steps": partial(ddim, teacher, 16),
    }
    draw_clouds(args.out, {"the exact map": end} | {row.name: row.x for row in rows[1:]})
    draw_errors(args.out, shown | maps, sizes, xp)
    metrics = {
        "backend": xp.__name__,
        "seed": args.seed,
        "loss": loss,
        "table": table,
        "straightness": straightness,
    }
    cli.write_metrics(args.out / "metrics.json", metrics)
    print(
        f"done in {progress.duration(time.monotonic() - started)}; "
        f"pictures, samples.npz and metrics.json are in {args.out}"
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    description = (__doc__ or "").split("\n")[0]
    parser = cli.Parser(description, "  python demos/one_step.py --seed 1")
    cli.add_where_flags(parser, out="out/one_step", seed=0, backend="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main, parse=parse)
