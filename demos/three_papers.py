"""Three answers to one question, on one swiss roll: the diffusion model of 2015, the score network of 2019, DDPM of 2020.

    python demos/three_papers.py        about two minutes on two cores

and beside them the binomial process of 2015 on the heartbeat, a sequence of bits. Every number stands beside its exact answer.
"""

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import _cli
import _draw
from npdiff import exact, likelihood, sampler, schedule, train
from npdiff.backend import select, standard_normal, to_numpy
from npdiff.kit import files, metrics, parallel, progress
from npdiff.nn import mlp
from npdiff.nn.params import Tree, map_leaves
from npdiff.normal import BITS
from npdiff.optim import adam
from npdiff.papers import binomial, dpm2015, ncsn, radial_basis
from npdiff.reverse import predictor
from npdiff.schedule import Schedule

ROLL = exact.SwissRoll(0.5)
CEILING = -BITS * ROLL.entropy()  # E log2 p(x_0)


class Sizes(NamedTuple):
    """How much work each part gets."""

    steps: int
    batch: int
    samples: int
    bound: int  # points for a bound
    rate_steps: int
    levels: int  # of NCSN
    langevin: int  # steps at each of them


FULL, SMOKE = Sizes(8000, 512, 4000, 2000, 400, 30, 40), Sizes(3, 8, 20, 8, 2, 3, 2)


class Result(NamedTuple):
    """A row of the table, and the clouds on the way back, the noise first."""

    name: str
    objective: str
    likelihood: str
    x: np.ndarray
    evaluations: int
    seconds: float
    way_back: list[np.ndarray]


def trained(net: Any, params: Tree, chain: Schedule, sizes: Sizes, rng: np.random.Generator, xp: Any, **how: Any) -> train.State:
    state = train.start(map_leaves(xp.asarray, params))
    steps = train.train(net, state, ROLL.sample, chain, rng, sizes.steps, sizes.batch, **{"lr": 5e-3, **how})
    for _ in progress.training(steps, 0, sizes.steps, sizes.batch):
        pass
    return state


def seen(steps: Iterator[Any], field: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """The last points, and the clouds at five moments on the way, evenly spread over the steps."""
    clouds = [to_numpy(getattr(step, field)) for step in steps]
    return clouds[-1], [clouds[round(i * (len(clouds) - 1))] for i in (0, 0.5, 0.75, 0.9, 1.0)]


# 2015


def dpm_2015(sizes: Sizes, rng: np.random.Generator, xp: Any, found: dict[str, Any]) -> Result:
    """T = 40, rates uniform in log-SNR with beta_1 = 1e-4, learned mean and variance: our MLP, then the paper's network."""
    started, T = time.monotonic(), 40 if sizes is FULL else 5
    chain = schedule.uniform_log_snr(T, 0.5 * math.log(1e-4 / (1 - 1e-4)), 4.0)
    how = dict(gradient=dpm2015.gradient, draw_t=dpm2015.after_1)
    state = trained(mlp, mlp.init(rng, outputs=4), chain, sizes, rng, xp, **how)
    seconds = time.monotonic() - started
    x_0 = ROLL.sample(sizes.bound, rng)
    words = f"ceiling E log2 p(x_0) {CEILING:.3f}, null model {dpm2015.null_model(2):.3f}"
    print(f"2015, Gaussian, T = {T}, in bits a point: {words}")
    reverse = dpm2015.reverse(mlp, state.ema_params, chain)
    rows = {"MLP": (reverse, chain), "perfect network": (dpm2015.best_reverse(ROLL, chain), chain)}
    radial = trained(radial_basis, radial_basis.init(rng, T), chain, sizes, rng, xp, **how)
    rows["16 radial basis functions, as in the paper"] = dpm2015.reverse(radial_basis, radial.ema_params, chain), chain
    for name, other in {"linear": schedule.linear(T, 1e-4, min(0.9, 20 / T)), "cosine": schedule.cosine(T)}.items():
        rows[f"perfect network, {name} rates"] = dpm2015.best_reverse(ROLL, other), other
    learned = learned_rates(chain, state, sizes, rng, xp)
    rows["perfect network, learned rates"] = dpm2015.best_reverse(ROLL, learned), learned
    for name, (back, levels) in rows.items():
        K, error = dpm2015.bound(x_0 if "perfect" in name else xp.asarray(x_0), levels, back, rng)
        found[f"K, {name}"] = K
        print(f"  K {K:8.3f} +- {error:.3f}   {name}", flush=True)
    x, clouds = seen(dpm2015.sample(reverse, xp.asarray(rng.standard_normal((sizes.samples, 2), dtype=np.float32)), chain, rng), "x_prev")
    words = f"K {found['K, MLP']:.2f} of {found['K, perfect network']:.2f} bits"
    return Result("2015, diffusion", "K, eq. (14)", words, x, T - 1, seconds, clouds)


def learned_rates(chain: Schedule, state: train.State, sizes: Sizes, rng: np.random.Generator, xp: Any) -> Schedule:
    """beta_2..beta_T by Adam on K with the trained network, beta_1 fixed; rates are moved as logits, so that they stay in (0, 1)."""
    beta = chain.beta.copy()
    logit = np.log(beta[1:] / (1 - beta[1:]))
    m, v = np.zeros_like(logit), np.zeros_like(logit)
    for step in range(1, sizes.rate_steps + 1):
        x_0, t = ROLL.sample(sizes.batch, rng), dpm2015.after_1(sizes.batch, chain.T, rng)
        eps = standard_normal(rng, x_0.shape, like=x_0)
        beta[1:] = 1 / (1 + np.exp(-logit))
        rates = schedule.variance_preserving(beta[1:])
        grad = dpm2015.rates_gradient(mlp, state.ema_params, xp.asarray(x_0), t, xp.asarray(eps), rates)
        adam(logit, grad[1:] * beta[1:] * (1 - beta[1:]), m, v, step, 0.01)
    beta[1:] = 1 / (1 + np.exp(-logit))
    return schedule.variance_preserving(beta[1:])


# 2019 and 2020


def ncsn_2019(sizes: Sizes, rng: np.random.Generator, xp: Any) -> tuple[Result, Callable]:
    """Levels in equal ratios around the data's width, denoising score matching, annealed Langevin dynamics."""
    started, chain = time.monotonic(), ncsn.ladder(sizes.levels, 0.02, 3.0)
    state = trained(mlp, mlp.init(rng), chain, sizes, rng, xp, gradient=ncsn.gradient)
    seconds = time.monotonic() - started
    x = xp.asarray(3 * rng.standard_normal((sizes.samples, 2), dtype=np.float32))
    score = ncsn.score_of(mlp, state.ema_params, chain)
    steps = ncsn.annealed_langevin(score, x, chain, rng, epsilon=0.1 * 0.02**2, steps=sizes.langevin)
    x, clouds = seen(steps, "x_next")
    return Result("2019, scores", "score matching", "none by itself", x, sizes.levels * sizes.langevin, seconds, clouds), score


def ddpm_2020(sizes: Sizes, rng: np.random.Generator, xp: Any, found: dict[str, Any]) -> tuple[Result, Callable]:
    """T = 1000, beta linear, L_simple, ancestral sampling."""
    started, chain = time.monotonic(), schedule.linear(1000 if sizes is FULL else 20)
    state = trained(mlp, mlp.init(rng), chain, sizes, rng, xp)
    seconds = time.monotonic() - started
    predict_eps = predictor(mlp, state.ema_params, chain)
    x_0 = xp.asarray(ROLL.sample(sizes.bound, rng))
    nats = sum(term.nats for term, _ in likelihood.bound(x_0, chain, likelihood.fixed(predict_eps, chain, "beta"), rng))
    found["DDPM, bound in bits"] = -BITS * nats
    x_T = xp.asarray(rng.standard_normal((sizes.samples, 2), dtype=np.float32))
    x, clouds = seen(sampler.ddpm(predict_eps, x_T, chain, rng), "x_prev")
    words = f"{-BITS * nats:.2f} of {CEILING:.2f} bits"
    return Result("2020, DDPM", "L_simple", words, x, chain.T, seconds, clouds), predict_eps


# 2015, bits

PERIOD, LENGTH = 5, 20


def heartbeats(n: int, rng: np.random.Generator) -> np.ndarray:
    """A one at every fifth place, from a start drawn at random: (n, 20). There are five of them, so E log2 p(x_0) = -log2 5."""
    return ((np.arange(LENGTH) - rng.integers(PERIOD, size=(n, 1))) % PERIOD == 0).astype(float)


def exact_guess(rates: binomial.Rates) -> binomial.Guess:
    """P(x_0 = 1 | x_t) for the heartbeat, by Bayes's rule over its five sequences."""
    each = ((np.arange(LENGTH) - np.arange(PERIOD)[:, None]) % PERIOD == 0).astype(float)  # (5, 20)

    def guess(x_t: np.ndarray, t: Any) -> np.ndarray:
        p = binomial.q_marginal(each, t, rates)
        log_q = x_t @ np.log(p).T + (1 - x_t) @ np.log(1 - p).T  # (B, 5)
        weight = np.exp(log_q - log_q.max(axis=1, keepdims=True))
        return np.clip(weight / weight.sum(axis=1, keepdims=True) @ each, 1e-12, 1 - 1e-12)

    return guess


def heartbeat(sizes: Sizes, rng: np.random.Generator, xp: Any, found: dict[str, Any]) -> np.ndarray:
    """Train on the heartbeat, print K beside the truth, and count the samples that are heartbeats; returns ten of them."""
    rates = binomial.rates(400 if sizes is FULL else 4)
    state = train.start(map_leaves(xp.asarray, mlp.init(rng, dim=LENGTH)))
    steps = max(1, sizes.steps // 2)
    for _ in range(steps):
        t = rng.integers(2, rates.T + 1, size=sizes.batch)
        _, grad = binomial.gradient(mlp, state.params, xp.asarray(heartbeats(sizes.batch, rng)), t, rates, rng)
        train.update(state, grad, steps, lr=3e-3, hold=0.2, clip=1.0, beta_2=0.999, ema_decay=0.99)
    guess = binomial.guess_of(mlp, state.ema_params, rates)
    x_0 = heartbeats(sizes.bound, rng)
    K, error = binomial.bound(xp.asarray(x_0), rates, guess, rng)
    best, _ = binomial.bound(x_0, rates, exact_guess(rates), rng)
    x_T = xp.asarray(rng.integers(0, 2, (sizes.samples, LENGTH)).astype(float))
    *_, (_, x) = binomial.sample(guess, x_T, rates, rng)
    right = (to_numpy(x)[:, None] == np.unique(heartbeats(200, rng), axis=0)).all(axis=2).any(axis=1).mean()
    print(f"\n2015, binomial, the heartbeat, T = {rates.T}, in bits a sequence: the truth is -log2 5 = {-math.log2(5):.3f}")
    print(f"  K {K:8.3f} +- {error:.3f}; a perfect network's {best:.3f}; {right:.1%} of {len(x):,} samples are heartbeats")
    found |= {"K, heartbeat": K, "K, heartbeat, perfect network": best, "heartbeats": float(right)}
    return to_numpy(x)[:10]


def table(results: list[Result], rng: np.random.Generator, found: dict[str, Any]) -> None:
    fresh = ROLL.sample(len(results[0].x), rng)
    mean, std = metrics.real_against_real([ROLL.sample(len(fresh), rng) for _ in range(8)])
    print(f"\n{'':<18}{'objective':<18}{'likelihood':<26}{'energy distance':>16}{'evaluations':>13}{'seconds':>9}")
    for r in results:
        distance = 1000 * metrics.energy_distance(r.x, fresh)
        found[f"energy distance x 1000, {r.name}"] = distance
        print(f"{r.name:<18}{r.objective:<18}{r.likelihood:<26}{distance:16.2f}{r.evaluations:13,}{r.seconds:9.0f}")
    print(f"{'real data':<18}{'':<18}{f'{CEILING:.2f} bits':<26}{1000 * mean:10.2f} +- {1000 * std:.2f}   (energy distance x 1000)")
    found |= {"energy distance x 1000, real": 1000 * mean, "energy distance x 1000, real, std": 1000 * std}


def draw(args: argparse.Namespace, results: list[Result], score: Callable, predict_eps: Callable, rng: np.random.Generator) -> None:
    """Three reverse processes in three rows; and the one function that the last two have learned, each at its own level next to 0.3."""
    _draw.rows_of_clouds(args.out / "three_papers.png", {r.name: r.way_back for r in results})
    levels, chain = ncsn.ladder(SMOKE.levels if args.smoke else FULL.levels, 0.02, 3.0), schedule.linear(20 if args.smoke else 1000)
    t, s = int(np.abs(levels.noise - 0.3).argmin()), int(np.abs(np.exp(chain.level) - 0.3).argmin())
    points = _draw.lattice((-2.2, 2.2, -2.2, 2.2)).astype(np.float32)
    of_ncsn = to_numpy(score(points, t))
    of_ddpm = -to_numpy(predict_eps(np.float32(chain.signal[s]) * points, s)) * float(chain.signal[s] / chain.noise[s])
    cloud = ROLL.sample(2000, rng) + np.float32(levels.noise[t]) * rng.standard_normal((2000, 2), dtype=np.float32)
    _draw.score_field(
        args.out / "same_function.png", [t], [cloud], points, [of_ncsn], [of_ddpm], names=("NCSN's score", "DDPM's -eps/noise")
    )


def main(args: argparse.Namespace) -> None:
    started, found = time.monotonic(), dict[str, Any]()
    parallel.keep_freed_memory()
    xp, sizes = select(args.backend), SMOKE if args.smoke else FULL
    _cli.own_folder(args.out)
    rngs = [np.random.default_rng([args.seed, i]) for i in range(5)]
    of_2015 = dpm_2015(sizes, rngs[0], xp, found)
    of_2019, score = ncsn_2019(sizes, rngs[1], xp)
    of_2020, predict_eps = ddpm_2020(sizes, rngs[2], xp, found)
    results = [of_2015, of_2019, of_2020]
    beats = heartbeat(sizes, rngs[3], xp, found)
    table(results, rngs[4], found)
    files.write_npz(args.out / "samples.npz", x=of_2020.x, heartbeats=beats, **{r.name: r.x for r in results})
    draw(args, results, lambda x, t: score(xp.asarray(x), t), lambda x, t: predict_eps(xp.asarray(x), t), rngs[4])
    _cli.write_metrics(args.out / "metrics.json", {"backend": xp.__name__, "seed": args.seed, "loss": -found["K, MLP"], **found})
    print(f"done in {progress.duration(time.monotonic() - started)}; pictures, samples.npz and metrics.json are in {args.out}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _cli.Parser((__doc__ or "").split("\n")[0], "  python demos/three_papers.py --seed 1")
    _cli.add_where_flags(parser, out="out/three_papers", seed=0, backend="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    _cli.run(main, parse=parse)
