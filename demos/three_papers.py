"""Three answers to one question, on one swiss roll: the papers of 2015, 2019 and 2020.

    python demos/three_papers.py        about two minutes on two cores

They are the diffusion model of Sohl-Dickstein et al. 2015, the score network of Song & Ermon 2019,
and DDPM, Ho et al. 2020. Beside them the binomial process of 2015 learns the heartbeat, a sequence
of bits. Every number stands beside its exact answer.
"""

from lab import interrupt

interrupt.in_one_line(__name__)  # Ctrl-C, also while NumPy is imported

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # products this small are faster on one thread

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lab import cli, draw, files, progress
from lab.metrics import energy_distance, real_against_real
from npdiff import exact, fast, likelihood, train
from npdiff.backend import Array, select, standard_normal, to_numpy
from npdiff.nn import mlp
from npdiff.nn.params import map_leaves
from npdiff.normal import BITS
from npdiff.optim import adam
from npdiff.papers import binomial, dpm2015, ncsn, radial_basis
from npdiff.reverse import predictor
from npdiff.sampler import Predictor, ddpm
from npdiff.schedule import Schedule, Time, cosine, linear, uniform_log_snr, variance_preserving

ROLL = exact.SwissRoll(0.5)
CEILING = -BITS * ROLL.entropy()  # E log2 p(x_0), which no model exceeds
SIGMA_L, SIGMA_1 = 0.02, 3.0  # the ladder of 2019, around the width of the data

RATIOS = 1.0, 0.3, 0.1  # noise / signal, of the picture's columns
BETA_1_LEVEL = 0.5 * math.log(1e-4 / (1 - 1e-4))  # log(noise / signal) of beta_1 = 1e-4

update = partial(train.update, lr=5e-3)
gradient_2015 = partial(
    train.gradient, objective=dpm2015.objective, network_input=dpm2015.network_input
)


class Sizes(NamedTuple):
    """How much work each part is given."""

    steps: int  # of training
    batch: int
    samples: int
    bound: int  # points for a bound
    rate_steps: int  # of learning the rates of 2015
    T_2015: int
    T_2020: int
    T_bits: int
    levels: int  # of the ladder of 2019
    langevin: int  # steps at each of them


FULL = Sizes(8000, 512, 4000, 2000, 400, T_2015=40, T_2020=1000, T_bits=400, levels=30, langevin=40)
SMOKE = Sizes(3, 8, 20, 8, 2, T_2015=5, T_2020=20, T_bits=4, levels=3, langevin=2)


class Result(NamedTuple):
    """A row of the table, and what the samples were on their way."""

    name: str
    objective: str
    likelihood: str
    clouds: list[np.ndarray]  # after every step, (N, 2) each; the last one holds the samples
    level: np.ndarray  # of each cloud, log(noise / signal)
    evaluations: int
    seconds: float  # of training


# 2015: diffusion


def dpm_2015(sizes: Sizes, rng: np.random.Generator, xp: Any, metrics: dict[str, Any]) -> Result:
    """Rates uniform in log-SNR with beta_1 = 1e-4; mean and variance learned."""
    T, schedule = sizes.T_2015, uniform_log_snr(sizes.T_2015, BETA_1_LEVEL, 4.0)
    started = time.monotonic()
    state = train.start(map_leaves(xp.asarray, mlp.init(rng, outputs=4)))
    steps = train_2015(mlp, state, schedule, sizes, rng, xp)
    for _ in progress.training(steps, 0, sizes.steps, sizes.batch):
        pass
    reverse, seconds = dpm2015.reverse(mlp, state, schedule), time.monotonic() - started

    # The paper's own network; and other rates, on each of which a perfect network is known.
    x_0 = ROLL.sample(sizes.bound, rng)
    radial = train.start(map_leaves(xp.asarray, radial_basis.init(rng, T)))
    steps = train_2015(radial_basis, radial, schedule, sizes, rng, xp)
    for _ in progress.training(steps, 0, sizes.steps, sizes.batch):
        pass
    radial_reverse = dpm2015.reverse(radial_basis, radial, schedule)
    rates = {
        "perfect network, linear rates": linear(T, 1e-4, min(0.9, 20 / T)),
        "perfect network, cosine rates": cosine(T),
        "perfect network, learned rates": learned_rates(schedule, state, sizes, rng, xp),
    }

    print(
        f"2015, Gaussian, T = {T}, in bits a point: "
        f"ceiling E log2 p(x_0) {CEILING:.3f}, null model {dpm2015.null_model(2):.3f}"
    )
    best_reverse, on_device = dpm2015.best_reverse, xp.asarray(x_0)
    K = print_bound("MLP", on_device, schedule, reverse, rng, metrics)
    best_K = print_bound(
        "perfect network", x_0, schedule, best_reverse(ROLL, schedule), rng, metrics
    )
    name = "16 radial basis functions, as in the paper"
    print_bound(name, on_device, schedule, radial_reverse, rng, metrics)
    for name, other in rates.items():
        print_bound(name, x_0, other, best_reverse(ROLL, other), rng, metrics)

    x_T = xp.asarray(rng.standard_normal((sizes.samples, 2), dtype=np.float32))
    clouds = [to_numpy(step.x_prev) for step in dpm2015.sample(reverse, x_T, schedule, rng)]
    level, bits = schedule.level[-2::-1], f"K {K:.2f} of {best_K:.2f} bits"
    return Result("2015, diffusion", "K, eq. (14)", bits, clouds, level, T - 1, seconds)


def train_2015(
    net: Any,
    state: train.State,
    schedule: Schedule,
    sizes: Sizes,
    rng: np.random.Generator,
    xp: Any,
) -> Iterator[train.TrainStep]:
    """Follow the gradient of the KL of a step. The network is given t / T and not the level."""
    for step in range(1, sizes.steps + 1):
        x_0 = xp.asarray(ROLL.sample(sizes.batch, rng))
        t = dpm2015.after_1(sizes.batch, schedule.T, rng)
        eps = standard_normal(rng, x_0.shape, like=x_0)
        kl, grad = gradient_2015(net, state.params, x_0, t, eps, schedule)
        update(state, grad, sizes.steps)
        yield train.TrainStep(step, x_0, t, eps, kl, kl.mean(), grad)


def print_bound(
    name: str,
    x_0: Array,
    schedule: Schedule,
    reverse: likelihood.Reverse,
    rng: np.random.Generator,
    metrics: dict[str, Any],
) -> float:
    """Print K, the bound on E log2 p(x_0), and keep it."""
    K, error = dpm2015.bound(x_0, schedule, reverse, rng)
    metrics[f"K, {name}"] = K
    print(f"  K {K:8.3f} +- {error:.3f}   {name}", flush=True)
    return K


def learned_rates(
    schedule: Schedule, state: train.State, sizes: Sizes, rng: np.random.Generator, xp: Any
) -> Schedule:
    """beta_2..beta_T by Adam on K, with the trained network as it is. Sec. 2.4 of the paper.

    Adam moves the logits of the rates, so the rates stay in (0, 1).
    """
    beta = schedule.beta.copy()
    logit = np.log(beta[1:] / (1 - beta[1:]))
    m, v = np.zeros_like(logit), np.zeros_like(logit)
    for step in range(1, sizes.rate_steps + 1):
        x_0 = ROLL.sample(sizes.batch, rng)
        t = dpm2015.after_1(sizes.batch, schedule.T, rng)
        eps = standard_normal(rng, x_0.shape, like=x_0)
        beta[1:] = 1 / (1 + np.exp(-logit))
        rates = variance_preserving(beta[1:])
        grad = dpm2015.rates_gradient(
            mlp, state.ema_params, xp.asarray(x_0), t, xp.asarray(eps), rates
        )
        adam(logit, grad[1:] * beta[1:] * (1 - beta[1:]), m, v, step, lr=0.01)
    beta[1:] = 1 / (1 + np.exp(-logit))
    return variance_preserving(beta[1:])


# 2019: scores


def ncsn_2019(
    schedule: Schedule, sizes: Sizes, rng: np.random.Generator, xp: Any
) -> tuple[Result, Predictor]:
    """Denoising score matching on a ladder of levels, and annealed Langevin dynamics."""
    started = time.monotonic()
    state = train.start(map_leaves(xp.asarray, mlp.init(rng)), predict="score")
    n, batch = sizes.steps, sizes.batch
    steps = train.train(mlp, state, ROLL.sample, schedule, rng, n, batch, ncsn.dsm, update=update)
    for _ in progress.training(steps, 0, n, batch):
        pass
    seconds = time.monotonic() - started

    score = ncsn.score_of(mlp, state, schedule)
    x = xp.asarray(3 * rng.standard_normal((sizes.samples, 2), dtype=np.float32))
    langevin_steps = ncsn.annealed_langevin(
        score, x, schedule, rng, epsilon=0.1 * SIGMA_L**2, steps=sizes.langevin
    )
    clouds = [to_numpy(step.x_next) for step in langevin_steps]
    evaluations = sizes.levels * sizes.langevin
    level, no_bits = schedule.level[:0:-1].repeat(sizes.langevin), "none by itself"
    result = Result("2019, scores", "score matching", no_bits, clouds, level, evaluations, seconds)
    return result, score


# 2020: DDPM


def ddpm_2020(
    schedule: Schedule, sizes: Sizes, rng: np.random.Generator, xp: Any, metrics: dict[str, Any]
) -> tuple[Result, Predictor]:
    """L_simple on a chain with linear beta, and ancestral sampling."""
    started = time.monotonic()
    state = train.start(map_leaves(xp.asarray, mlp.init(rng)))
    n, batch = sizes.steps, sizes.batch
    steps = train.train(mlp, state, ROLL.sample, schedule, rng, n, batch, update=update)
    for _ in progress.training(steps, 0, n, batch):
        pass
    seconds = time.monotonic() - started

    predict_eps = predictor(mlp, state, schedule)
    x_0 = xp.asarray(ROLL.sample(sizes.bound, rng))
    reverse = likelihood.fixed(predict_eps, schedule, "beta")
    nats = sum(term.nats for term, _ in likelihood.bound(x_0, schedule, reverse, rng))
    metrics["DDPM, bound in bits"] = -BITS * nats

    x_T = xp.asarray(rng.standard_normal((sizes.samples, 2), dtype=np.float32))
    clouds = [to_numpy(step.x_prev) for step in ddpm(predict_eps, x_T, schedule, rng)]
    level, bits = schedule.level[-2::-1], f"{-BITS * nats:.2f} of {CEILING:.2f} bits"
    result = Result("2020, DDPM", "L_simple", bits, clouds, level, schedule.T, seconds)
    return result, predict_eps


# 2015, bits

PERIOD, LENGTH = 5, 20


def heartbeats(n: int, rng: np.random.Generator) -> np.ndarray:
    """A one at every fifth place, from a random start: (n, 20).

    There are five such sequences, so E log2 p(x_0) = -log2 5.
    """
    start = rng.integers(PERIOD, size=(n, 1))
    return ((np.arange(LENGTH) - start) % PERIOD == 0).astype(float)


def exact_guess(rates: binomial.Rates) -> binomial.Guess:
    """P(x_0 = 1 | x_t) for the heartbeat, by Bayes' rule over its five sequences."""
    start = np.arange(PERIOD)[:, None]
    sequences = ((np.arange(LENGTH) - start) % PERIOD == 0).astype(float)  # (5, 20)

    def guess(x_t: np.ndarray, t: Time) -> np.ndarray:
        p = binomial.q_marginal(sequences, t, rates)
        log_q = x_t @ np.log(p).T + (1 - x_t) @ np.log(1 - p).T  # (B, 5)
        weight = np.exp(log_q - log_q.max(axis=1, keepdims=True))
        p_0 = weight / weight.sum(axis=1, keepdims=True) @ sequences
        return np.clip(p_0, 1e-12, 1 - 1e-12)

    return guess


def heartbeat(
    sizes: Sizes, rng: np.random.Generator, xp: Any, metrics: dict[str, Any]
) -> np.ndarray:
    """Train on the heartbeat, and print K and how many samples are heartbeats; returns ten."""
    rates = binomial.rates(sizes.T_bits)
    state = train.start(map_leaves(xp.asarray, mlp.init(rng, dim=LENGTH)))
    steps = max(1, sizes.steps // 2)
    for _ in range(steps):
        t = rng.integers(2, rates.T + 1, size=sizes.batch)
        x_0 = xp.asarray(heartbeats(sizes.batch, rng))
        _, grad = binomial.loss_and_gradient(mlp, state.params, x_0, t, rates, rng)
        train.update(state, grad, steps, lr=3e-3, hold=0.2, ema_decay=0.99)

    guess = binomial.guess_of(mlp, state.ema_params, rates)
    x_0 = heartbeats(sizes.bound, rng)
    K, error = binomial.bound(xp.asarray(x_0), rates, guess, rng)
    best_K, _ = binomial.bound(x_0, rates, exact_guess(rates), rng)

    x_T = xp.asarray(rng.integers(0, 2, (sizes.samples, LENGTH)).astype(float))
    *_, (_, x) = binomial.sample(guess, x_T, rates, rng)
    sequences = np.unique(heartbeats(200, rng), axis=0)
    share = (to_numpy(x)[:, None] == sequences).all(axis=2).any(axis=1).mean()

    print(
        f"\n2015, binomial, the heartbeat, T = {rates.T}, in bits a sequence: "
        f"the truth is -log2 5 = {-math.log2(5):.3f}\n"
        f"  K {K:8.3f} +- {error:.3f}; a perfect network's {best_K:.3f}; "
        f"{share:.1%} of {len(x):,} samples are heartbeats"
    )
    metrics |= {"K, heartbeat": K, "K, heartbeat, perfect network": best_K}
    metrics["heartbeats"] = float(share)
    return to_numpy(x)[:10]


# What is written


def print_table(results: list[Result], rng: np.random.Generator, metrics: dict[str, Any]) -> None:
    """Each model's energy distance to fresh data, beside that of real data."""
    fresh = ROLL.sample(len(results[0].clouds[-1]), rng)
    mean, std = real_against_real([ROLL.sample(len(fresh), rng) for _ in range(8)])
    print(
        f"\n{'':<18}{'objective':<18}{'likelihood':<26}"
        f"{'energy distance':>16}{'evaluations':>13}{'seconds':>9}"
    )
    for r in results:
        distance = 1000 * energy_distance(r.clouds[-1], fresh)
        metrics[f"energy distance x 1000, {r.name}"] = distance
        print(
            f"{r.name:<18}{r.objective:<18}{r.likelihood:<26}"
            f"{distance:16.2f}{r.evaluations:13,}{r.seconds:9.0f}"
        )
    ceiling = f"{CEILING:.2f} bits"
    print(
        f"{'real data':<18}{'':<18}{ceiling:<26}"
        f"{1000 * mean:10.2f} +- {1000 * std:.2f}   (energy distance x 1000)"
    )
    metrics |= {"energy distance x 1000, real": 1000 * mean}
    metrics |= {"energy distance x 1000, real, std": 1000 * std}


MOMENTS = ["start"], *([f"noise/signal = {ratio:g}"] for ratio in RATIOS), ["samples"]
NOTE = "In 2019 the signal is 1 at every level, so noise makes the cloud wider."


def five_moments(result: Result) -> list[np.ndarray]:
    """The first cloud, the last ones whose levels are nearest to those of RATIOS, and the samples.

    The three processes pass the levels at different steps, so a column of levels compares them.
    """
    backwards = result.level[::-1]
    steps = [-1 - int(np.abs(backwards - math.log(ratio)).argmin()) for ratio in RATIOS]
    return [result.clouds[step] for step in (0, *steps, -1)]


def draw_same_function(
    path: Any,
    ladder: Schedule,
    score: Predictor,
    schedule: Schedule,
    predict_eps: Predictor,
    rng: np.random.Generator,
    xp: Any,
) -> None:
    """NCSN's score, and DDPM's -eps / noise, at one level next to 0.3: they are one function.

    DDPM's is that of x_t / signal, so that both are scores of the data plus noise of 0.3.
    """
    t = int(np.abs(ladder.noise - 0.3).argmin())
    t_2020 = int(np.abs(schedule.level - ladder.level[t]).argmin())
    signal, noise = float(schedule.signal[t_2020]), float(schedule.noise[t_2020])
    points = draw.lattice((-2.2, 2.2, -2.2, 2.2), 33).astype(np.float32)
    score_2019 = to_numpy(score(xp.asarray(points), t))
    eps_hat = to_numpy(predict_eps(xp.asarray(np.float32(signal) * points), t_2020))
    score_2020 = -eps_hat * (signal / noise)
    cloud = ROLL.sample(2000, rng)
    cloud = cloud + np.float32(ladder.noise[t]) * rng.standard_normal((2000, 2), dtype=np.float32)
    names = ("NCSN's score", "DDPM's \u2212eps/noise")
    title = f"x_{{0}} + {ladder.noise[t]:.2f} eps"
    draw.score_field(path, [[title]], [cloud], points, [score_2019], [score_2020], names=names)


def main(args: argparse.Namespace) -> None:
    started, metrics = time.monotonic(), dict[str, Any]()
    fast.keep_freed_memory()  # a setting of the C library's, which saves up to half of the time
    xp, sizes = select(args.backend), SMOKE if args.smoke else FULL
    cli.own_folder(args)
    rngs = [np.random.default_rng([args.seed, i]) for i in range(5)]
    ladder, schedule = ncsn.ladder(sizes.levels, SIGMA_L, SIGMA_1), linear(sizes.T_2020)

    result_2015 = dpm_2015(sizes, rngs[0], xp, metrics)
    result_2019, score = ncsn_2019(ladder, sizes, rngs[1], xp)
    result_2020, predict_eps = ddpm_2020(schedule, sizes, rngs[2], xp, metrics)
    beats = heartbeat(sizes, rngs[3], xp, metrics)

    results = [result_2015, result_2019, result_2020]
    print_table(results, rngs[4], metrics)
    samples = {r.name: r.clouds[-1] for r in results}
    files.write_npz(args.out / "samples.npz", x=samples["2020, DDPM"], heartbeats=beats, **samples)
    rows = {r.name: five_moments(r) for r in results}
    draw.rows_of_clouds(args.out / "three_papers.png", rows, MOMENTS, NOTE)
    draw_same_function(
        args.out / "same_function.png", ladder, score, schedule, predict_eps, rngs[4], xp
    )
    metrics = {"backend": xp.__name__, "seed": args.seed, "loss": -metrics["K, MLP"], **metrics}
    cli.write_metrics(args.out / "metrics.json", metrics)
    print(
        f"done in {progress.duration(time.monotonic() - started)}; "
        f"pictures, samples.npz and metrics.json are in {args.out}"
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    description = (__doc__ or "").split("\n")[0]
    parser = cli.Parser(description, "  python demos/three_papers.py --seed 1")
    cli.add_where_flags(parser, out="out/three_papers", seed=0, backend="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main, parse=parse)
