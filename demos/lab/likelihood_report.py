"""--likelihood: how likely the data are under the model, term by term, beside the entropy where it is known."""

import math
from typing import Any

import numpy as np

import _judge
from _data import Points
from npdiff import exact, likelihood, normal
from npdiff.backend import to_numpy
from npdiff.forward import prior_kl, q_sample
from npdiff.kit.parallel import cut
from npdiff.normal import BITS
from npdiff.papers import score_sde
from npdiff.sampler import Predictor
from npdiff.schedule import Schedule

# Points: the ledger from the losses at every t, and the ODE


def losses(predict_eps: Predictor, data: Points, schedule: Schedule, n: int, rng: np.random.Generator, xp: Any) -> dict[str, np.ndarray]:
    """The loss at every t, by n points each: (T+1,). Also the irreducible loss and the excess where the data have a closed form."""
    rows = _judge.loss_table(predict_eps, data, schedule, list(range(1, schedule.T + 1)), n, rng, xp)
    return {name: np.array([0.0, *(row[name] for row in rows)]) for name in rows[0] if name != "t"}


def prior_part(data: exact.Mixture, schedule: Schedule, n: int, rng: np.random.Generator) -> float:
    """KL(q(x_T) || N(0, I)) in nats, of the marginal, by n points."""
    x_T = q_sample(data.sample(n, rng, np.float64), schedule.T, rng.standard_normal((n, data.dim)), schedule)
    log_q = data.log_prob(x_T, float(schedule.signal[-1]), float(schedule.noise[-1]))
    return _judge.mean_kl(log_q - normal.log_prob(x_T, 0.0, 1.0).sum(axis=1))


def of_points(
    predict_eps: Predictor,
    ode: score_sde.EpsAndDivergence,
    ode_levels: Schedule,
    data: Points,
    schedule: Schedule,
    n: int,
    rng: np.random.Generator,
    xp: Any = np,
) -> dict[str, float]:
    """Print and return the bound for each variance, its gap taken apart, and the ODE's log-likelihood, in nats a point."""
    x_0 = data.fresh(n, rng)
    L_T = float(prior_kl(x_0, schedule).mean())
    found, dim = losses(predict_eps, data, schedule, n, rng, xp), x_0.shape[1]
    print(f"\nthe bound on -log p, nats a point, T = {schedule.T}, by {n:,} points at every t")
    print(f"{'variance':>12} {'bound':>9}" + (f" {'perfect network':>16}" if data.exact else ""))
    metrics: dict[str, float] = {}
    floor = found.get("irreducible_loss")
    loss = found["loss"] if floor is None else floor + found["excess"]  # by paired points: of a smaller error
    for name in ("beta_tilde", "beta", "best"):
        best = likelihood.best_variance(loss if floor is None else floor, schedule)
        variance = best if name == "best" else likelihood.variance_table(name, schedule)
        bound = metrics[f"bound_{name}"] = L_T + dim * float(likelihood.terms_from_loss(loss, schedule, variance).sum())
        line = f"{name:>12} {bound:9.4f}"
        if floor is not None:
            perfect = metrics[f"perfect_{name}"] = L_T + dim * float(likelihood.terms_from_loss(floor, schedule, variance).sum())
            metrics[f"network_{name}"] = bound - perfect
            line += f" {perfect:16.4f}"
        print(line)
    if data.exact:
        metrics |= say_gap(metrics, data.exact, schedule, rng)
    return metrics | of_ode(ode, ode_levels, data, x_0, xp)


def of_ode(ode: score_sde.EpsAndDivergence, levels: Schedule, data: Points, x_0: np.ndarray, xp: Any) -> dict[str, float]:
    """Print and return -log p(x_0) by the ODE and, for data in closed form, how far it is from the truth on the same points; nats."""
    log_p = to_numpy(score_sde.ode_log_prob(ode, xp.asarray(x_0), levels)).astype(np.float64)
    metrics = dict(zip(("ode_nll", "ode_nll_error"), likelihood.mean_and_error(-log_p), strict=True))
    print(f"by the ODE, {levels.T} levels    {metrics['ode_nll']:9.4f} +- {metrics['ode_nll_error']:.4f}")
    if data.exact:
        gap = data.exact.log_prob(x_0.astype(np.float64)) - log_p
        metrics |= zip(("ode_gap", "ode_gap_error"), likelihood.mean_and_error(gap), strict=True)
        print(f"  true minus found, same points {metrics['ode_gap']:9.4f} +- {metrics['ode_gap_error']:.4f}")
    return metrics


def say_gap(metrics: dict[str, float], data: exact.Mixture, schedule: Schedule, rng: np.random.Generator) -> dict[str, float]:
    """What lies between the entropy and the bound with variance beta."""
    entropy, prior = data.entropy(), prior_part(data, schedule, 20_000, rng)
    lines = {
        "entropy of the data": entropy,
        "+ the prior: x_T is not quite N(0, I)": prior,
        "+ each step is one Gaussian, its variance the best": metrics["perfect_best"] - entropy - prior,
        "+ the variance is beta, not the best": metrics["perfect_beta"] - metrics["perfect_best"],
        "+ the network": metrics["network_beta"],
        "= the bound": metrics["bound_beta"],
    }
    for words, nats in lines.items():
        print(f"  {words:<52} {nats:9.5f}")
    return {"entropy": entropy, "gap_prior": prior, "gap_gaussian": lines["+ each step is one Gaussian, its variance the best"]}


# Digits: the discretised decoder, and t drawn where the terms are large


def digits_p(x_0: np.ndarray, schedule: Schedule, reverse: likelihood.Reverse, rng: np.random.Generator, xp: Any) -> np.ndarray:
    """p[t] proportional to the root mean square of L_{t-1}, from x_0 at about forty t and by interpolation between them."""
    ts = [t for t in _judge.spread_over_t(schedule.T, 40) if t > 1]
    x_0, root = xp.asarray(x_0), []
    for t in ts:
        eps = xp.asarray(rng.standard_normal(x_0.shape, dtype=np.float32))
        nats = to_numpy(likelihood.step_kl(x_0, q_sample(x_0, t, eps, schedule), t, schedule, reverse))
        root.append(math.sqrt((nats.astype(np.float64) ** 2).mean()))
    p = np.exp(np.interp(np.log(np.arange(2, schedule.T + 1)), np.log(ts), np.log(root)))
    return np.concatenate([[0.0, 0.0], p / p.sum()])


def of_digits(
    x_0: np.ndarray,
    pilot: np.ndarray,
    schedule: Schedule,
    reverse: likelihood.Reverse,
    rng: np.random.Generator,
    xp: Any = np,
    draws: int = 4,
) -> dict[str, Any]:
    """The bound for images (N, H, W, 1) in bits a pixel, with the ledger by ranges of t. `pilot` are others, for p."""
    p, pieces = digits_p(pilot, schedule, reverse, rng, xp), []
    for _ in range(draws):
        for rows in cut(len(x_0), 250):
            found = likelihood.sampled(xp.asarray(x_0[rows]), schedule, reverse, rng, p, likelihood.discretised_decoder)
            pieces.append([to_numpy(values) for values in found])
    first, t, later = (np.concatenate(column).astype(np.float64) for column in zip(*pieces, strict=True))
    unit = BITS / x_0[0].size
    L_T = float(prior_kl(x_0, schedule).mean()) * unit
    mean, error = likelihood.mean_and_error(unit * (first + later).reshape(draws, -1).mean(axis=0))
    edges = sorted({2, *(max(3, round(schedule.T * share) + 1) for share in (0.02, 0.1, 0.3, 1.0))})
    ranges = [(low, high - 1) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    return {
        "bits_per_dim": mean + L_T,
        "bits_per_dim_error": error,
        "L_T": L_T,
        "L_0": float(first.mean()) * unit,
        **{f"L_t-1, t = {low}..{high}": float(np.where((t >= low) & (t <= high), later, 0.0).mean()) * unit for low, high in ranges},
    }


def say_digits(name: str, ledger: dict[str, Any], images: int) -> None:
    terms = {words: value for words, value in ledger.items() if words.startswith("L_")}
    bits = f"{ledger['bits_per_dim']:.4f} +- {ledger['bits_per_dim_error']:.4f} bits a pixel"
    print(f"\n{name}: {bits}, an upper bound, by {images:,} images")
    for words, bits in sorted(terms.items(), key=lambda item: item[0] == "L_0"):
        print(f"  {words:<24} {bits:8.4f}")


def loss_over_t(predict_eps: Predictor, x_0: np.ndarray, schedule: Schedule, rng: np.random.Generator, xp: Any) -> np.ndarray:
    """The mean loss at every t, from about forty t and by interpolation between them: (T+1,)."""
    ts, found = _judge.spread_over_t(schedule.T, 40), []
    for t in ts:
        eps = rng.standard_normal(x_0.shape, dtype=np.float32)
        eps_hat = to_numpy(predict_eps(xp.asarray(q_sample(x_0, t, eps, schedule)), t))
        found.append(((eps_hat - eps) ** 2).mean())
    return np.concatenate([[0.0], np.interp(np.arange(1, schedule.T + 1), ts, found)])


def variances(loss: np.ndarray, schedule: Schedule) -> dict[str, str | np.ndarray]:
    """The fixed variances to compare: the two of DDPM, and the best for a predictor with this loss."""
    return {"beta": "beta", "beta_tilde": "beta_tilde", "the best variance of each t": likelihood.best_variance(loss, schedule)}
