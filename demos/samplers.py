"""Every sampler on the swiss roll: how its error falls with the work it is given, with the exact predictor and with a trained network.

    python demos/samplers.py        about a minute on two cores

With the exact predictor only the sampler errs; with the network both do, and where the two curves meet more steps are in vain.
"""

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import _cli
import _draw
import _gaussian_step
from npdiff import exact, sampler, schedule, train
from npdiff.backend import select, to_numpy
from npdiff.forward import q_sample
from npdiff.kit import files, metrics, order, parallel, progress
from npdiff.nn import mlp
from npdiff.nn.params import map_leaves
from npdiff.papers import dpm_solver, edm, score_sde
from npdiff.reverse import predictor
from npdiff.sampler import Step
from npdiff.schedule import Schedule

ROLL = exact.SwissRoll()
LEVELS = -4.5, 3.5  # log(noise/signal) of the first and of the last level: from a hundredth of the data's width to thirty times it
EVALUATIONS = (5, 10, 20, 50, 100)
COLORS = ("#1f4e79", "#d5600f", "#3a8f5c", "#8e5ea2", "#b8860b", "#666666")


def uniform(N: int) -> Schedule:
    return schedule.uniform_log_snr(N, *LEVELS)


def karras(N: int) -> Schedule:
    return edm.levels(N, *(math.exp(level) for level in LEVELS))


class Method(NamedTuple):
    """A sampler, levels(n) for it, and run(predict_eps, x_T, levels, rng) -> steps. `a_step` evaluations make a step, one the last."""

    levels: Callable[[int], Schedule]
    run: Callable[..., Iterator[Step]]
    a_step: int = 1


METHODS = {
    "DDPM": Method(schedule.cosine, lambda f, x, s, rng: sampler.ddpm(f, x, s, rng)),
    "DDIM": Method(uniform, lambda f, x, s, rng: sampler.ddim(f, x, s, s.T)),
    "Euler-Maruyama": Method(uniform, score_sde.euler_maruyama),
    "predictor-corrector": Method(uniform, score_sde.predictor_corrector, 2),
    "Heun": Method(karras, lambda f, x, s, rng: edm.heun(f, x, s), 2),
    "DPM-Solver++(2M)": Method(uniform, lambda f, x, s, rng: dpm_solver.dpm_solver_pp_2m(f, x, s)),
}


class Model(NamedTuple):
    """The exact predictor, or the trained network: predict_eps on any levels, and with its divergence for the likelihood."""

    predictor: Callable[[Schedule], sampler.Predictor]
    ode: Callable[[Schedule], score_sde.EpsAndDivergence]


def trained(args: argparse.Namespace, xp: Any, rng: np.random.Generator) -> tuple[Model, float]:
    """An MLP that predicts v on all levels, for every sampler, since it is told the level and not the step; and its last loss."""
    state, chain = train.start(map_leaves(xp.asarray, mlp.init(rng))), uniform(20 if args.smoke else 1000)
    steps = 3 if args.smoke else 8000
    batch = 16 if args.smoke else 1024
    training = train.train(mlp, state, ROLL.sample, chain, rng, steps, batch, "v", "target", lr=5e-3)
    for step in progress.training(training, 0, steps, batch):
        loss = step.loss
    params = state.ema_params
    model = Model(lambda s: predictor(mlp, params, s, "v"), lambda s: score_sde.exact_divergence(mlp, params, s, "v"))
    return model, float(loss)


def samples(method: Method, model: Model, evaluations: int, z: np.ndarray, rng: np.random.Generator, xp: Any) -> np.ndarray:
    """Points by about so many evaluations of the predictor, from the noise z."""
    levels = method.levels(max(2, -(-evaluations // method.a_step)))
    x_T = xp.asarray(np.float32(levels.std[-1]) * z)
    *_, last = method.run(model.predictor(levels), x_T, levels, rng)
    return to_numpy(last.x_prev)


def measure(
    models: dict[str, Model], n: int, evaluations: tuple[int, ...], rng: np.random.Generator, xp: Any
) -> tuple[dict[str, dict[str, list[float]]], dict[tuple[str, int], np.ndarray]]:
    """The energy distance x 1000 to fresh data of each method, for each model and number of evaluations; and the network's clouds."""
    z, fresh = rng.standard_normal((n, 2), dtype=np.float32), ROLL.sample(n, rng)
    found, clouds = {}, {}
    for of, model in models.items():
        print(f"\nenergy distance x 1000 to fresh data, {n:,} points: {of}")
        print(f"{'evaluations':<22}" + "".join(f"{count:>9}" for count in evaluations))
        found[of] = dict[str, list[float]]()
        for name, method in METHODS.items():
            row = found[of][name] = []
            for count in evaluations:
                clouds[name, count] = samples(method, model, count, z, rng, xp)
                row.append(1000 * metrics.energy_distance(clouds[name, count], fresh))
            print(f"{name:<22}" + "".join(f"{value:9.2f}" for value in row), flush=True)
    mean, std = metrics.real_against_real([ROLL.sample(n, rng) for _ in range(8)])
    print(f"{'real data':<22}{1000 * mean:9.2f} +- {1000 * std:.2f}")
    found["real data"] = {"mean": [1000 * mean], "std": [1000 * std]}
    return found, clouds


def orders(model: Model, counts: list[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """How far each deterministic sampler's points are from the ODE's, at the first level: by the exact predictor, in float64."""
    z, found = rng.standard_normal((200, 2)), {}
    print(f"\n{'distance to the ODE':<22}" + "".join(f"{count:>10}" for count in counts) + "     order")
    for name in ("DDIM", "Heun", "DPM-Solver++(2M)"):
        levels, run, _ = METHODS[name]
        wide = levels(2)
        x_T = float(wide.std[-1]) * z
        best = order.end(edm.heun(model.predictor(levels(8 * counts[-1])), x_T, levels(8 * counts[-1])))
        steps = lambda s, run=run, x_T=x_T: run(model.predictor(s), x_T, s, rng)  # noqa: E731
        found[name] = order.errors(steps, levels, counts, best)
        print(f"{name:<22}" + "".join(f"{error:10.2e}" for error in found[name]) + f"{order.order(counts, found[name]):10.2f}", flush=True)
    return found


def flattery(models: dict[str, Model], counts: list[int], n: int, rng: np.random.Generator, xp: Any) -> dict[str, list[float]]:
    """mean[log p found by the ODE - log p true], nats a point, for few and many levels: above 0 the model looks better than the truth."""
    x_0, found = ROLL.sample(n, rng), {}
    true = ROLL.log_prob(x_0.astype(np.float64))
    print(f"\n{'log-likelihood by the ODE, minus the true one':<46}" + "".join(f"{count:>9}" for count in counts) + "  levels")
    for of, model in models.items():
        gaps = [to_numpy(score_sde.ode_log_prob(model.ode(karras(N)), xp.asarray(x_0), karras(N))).astype(float) - true for N in counts]
        found[of] = [float(gap.mean()) for gap in gaps]
        print(f"{of:<46}" + "".join(f"{gap:9.4f}" for gap in found[of]), flush=True)
    return found


def gaussian_steps(smoke: bool, rng: np.random.Generator) -> dict[int, dict[float, float]]:
    """KL of the true step back from its best Gaussian at t/T, for few and many steps T: the first number is the step to the data."""
    n, found = 200 if smoke else 4000, {}
    print("\nthe true q(x_{t-1} | x_t) against its best Gaussian, KL in nats, cosine schedule")
    for T in (4, 10, 40):
        chain = schedule.cosine(T)
        ts = sorted({max(1, round(T * share)) for share in (0.0, 0.05, 0.1, 0.2, 0.25, 0.35, 0.5, 0.75, 0.9)})
        found[T] = {t / T: _gaussian_step.non_gaussianity(ROLL, t, chain, n, rng) for t in ts}
        print(f"T = {T:<3}" + "".join(f"   t = {round(share * T)}: {kl:.4f}" for share, kl in found[T].items()), flush=True)
    return found


def draw_gaussian_steps(out: Path, found: dict[int, dict[float, float]], rng: np.random.Generator) -> None:
    """The divergences over t/T; and at t/T about a quarter, for one x_t, what q draws and what its best Gaussian draws."""
    named = zip(found.items(), COLORS, strict=False)
    series = [_draw.Series(f"T = {T}", np.array([*kl]), np.array([*kl.values()]), color) for (T, kl), color in named]
    _draw.curves(out / "gaussian_steps.png", series, "t / T", "KL of the true step back from its best Gaussian, nats", log_y=True)
    clouds = {}
    for T in found:
        t, chain = max(1, T // 4), schedule.cosine(T)
        x_t = q_sample(ROLL.curve(np.array([10.0])), t, np.array([[0.3, -0.3]]), chain)[0]
        clouds["q", T], clouds["Gaussian", T] = _gaussian_step.clouds(ROLL, x_t, t, chain, 1500, rng)
    _draw.cloud_table(out / "step_back.png", clouds, ["q", "Gaussian"], list(found), "T = {}")


def lines(rows: dict[str, Any], at: Sequence[int], floor: float = -math.inf) -> list[_draw.Series]:
    """A line for each row, in colours of their own; what lies below the floor is drawn on it."""
    x = np.array(at, float)
    return [_draw.Series(name, x, np.maximum(row, floor), color) for (name, row), color in zip(rows.items(), COLORS, strict=False)]


def draw(
    out: Path, evaluations: tuple[int, ...], errors: Any, clouds: Any, distances: Any, counts: Any, gaps: Any, gap_counts: Any
) -> None:
    """The charts and the clouds. An energy distance below the spread of real data says no more than that, and is drawn at it."""
    floor = errors["real data"]["std"][0]
    for of in (of for of in errors if of != "real data"):
        words = f"energy distance x 1000, down to the spread of real data: {of}"
        path = out / f"errors_{of.removeprefix('the ').split()[0]}.png"
        _draw.curves(path, lines(errors[of], evaluations, floor), "evaluations of the predictor", words, log_x=True, log_y=True)
    _draw.curves(out / "orders.png", lines(distances, counts), "levels", "distance to the ODE's point", log_x=True, log_y=True)
    _draw.curves(out / "flattery.png", lines(gaps, gap_counts), "levels", "log-likelihood found minus true, nats", log_x=True)
    _draw.cloud_table(out / "clouds.png", clouds, list(METHODS), [e for e in evaluations if e <= 50], "{} evaluations")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser((__doc__ or "").split("\n")[0], "  python demos/samplers.py --samples 10000")
    parser.add_argument("--samples", type=_cli.whole(2, 10**5), metavar="N", help="points of each sampler; default 4000")
    _cli.add_where_flags(parser, out="out/samplers", seed=0, backend="auto")
    args = parser.parse_args(argv)
    args.samples = args.samples or (20 if args.smoke else 4000)
    return args


def main(args: argparse.Namespace) -> None:
    started = time.monotonic()
    parallel.keep_freed_memory()
    xp = select(args.backend)
    _cli.own_folder(args.out)
    training_rng, rng = (np.random.default_rng([args.seed, i]) for i in range(2))
    network, loss = trained(args, xp, training_rng)
    models = {"the exact predictor": Model(ROLL.predictor, lambda s: score_sde.perfect(ROLL, s)), "the network": network}
    evaluations = EVALUATIONS[:2] if args.smoke else EVALUATIONS
    counts, gap_counts = ([10, 20], [5, 10]) if args.smoke else ([20, 40, 80, 160, 320], [10, 20, 40, 80, 160, 320])
    errors, clouds = measure(models, args.samples, evaluations, rng, xp)
    distances = orders(models["the exact predictor"], counts, rng)
    gaussian = gaussian_steps(args.smoke, rng)
    gaps = flattery(models, gap_counts, 5 if args.smoke else 300, rng, xp)
    x = clouds["DDIM", evaluations[-1]]
    files.write_npz(args.out / "samples.npz", x=x, **{f"{name}, {count}": x for (name, count), x in clouds.items()})
    draw(args.out, evaluations, errors, clouds, distances, counts, gaps, gap_counts)
    draw_gaussian_steps(args.out, gaussian, rng)
    found: dict[str, Any] = {
        "non_gaussianity": {str(T): kl for T, kl in gaussian.items()},
        "evaluations": evaluations,
        "energy_distance_x_1000": errors,
        "levels": counts,
        "gap_levels": gap_counts,
        "log_likelihood_gap": gaps,
    }
    found |= {"distance_to_ode": {name: list(row) for name, row in distances.items()}}
    found |= {"order": {name: order.order(counts, row) for name, row in distances.items()}}
    _cli.write_metrics(args.out / "metrics.json", {"backend": xp.__name__, "seed": args.seed, "loss": loss, **found})
    print(f"done in {progress.duration(time.monotonic() - started)}; pictures, samples.npz and metrics.json are in {args.out}")


if __name__ == "__main__":
    _cli.run(main, parse=parse)
