"""The likelihood of data under a model, term by term: what --likelihood prints.

For points the entropy is known, so the gap between it and the bound is taken apart.
"""

from typing import Any

import numpy as np

from lab import judge
from lab.points import Points
from npdiff import exact, likelihood, normal
from npdiff.backend import to_numpy
from npdiff.forward import prior_kl, q_sample
from npdiff.likelihood import spread_over_t
from npdiff.normal import BITS
from npdiff.papers import score_sde
from npdiff.sampler import Predictor
from npdiff.schedule import Schedule

# Points: the bound from the loss at every t, and the probability-flow ODE


def losses(
    predict_eps: Predictor,
    data: Points,
    schedule: Schedule,
    n: int,
    rng: np.random.Generator,
    xp: Any,
) -> dict[str, np.ndarray]:
    """`judge.losses` at every t, by n points each, as tables of shape (T+1,)."""
    every_t = list(range(1, schedule.T + 1))
    rows = judge.loss_table(predict_eps, data, schedule, every_t, n, rng, xp)
    names = [name for name in rows[0] if name != "t"]
    return {name: np.array([0.0, *(row[name] for row in rows)]) for name in names}


def prior_part(data: exact.Mixture, schedule: Schedule, n: int, rng: np.random.Generator) -> float:
    """KL(q(x_T) || N(0, I)) in nats, of the marginal, by n points."""
    x_0, eps = data.sample(n, rng, np.float64), rng.standard_normal((n, data.dim))
    x_T = q_sample(x_0, schedule.T, eps, schedule)
    log_q = data.log_prob(x_T, float(schedule.signal[-1]), float(schedule.noise[-1]))
    return normal.mean_kl(log_q - normal.log_prob(x_T, 0.0, 1.0).sum(axis=1))


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
    """Print and return the bound for each variance, its gap, and the ODE's log-likelihood.

    All in nats a point, by n fresh points.
    """
    x_0 = data.fresh(n, rng)
    L_T, dim = float(prior_kl(x_0, schedule).mean()), x_0.shape[1]
    tables = losses(predict_eps, data, schedule, n, rng, xp)
    floor = tables.get("irreducible_loss")
    # On data in closed form the loss is estimated by paired points, with a smaller error.
    loss = tables["loss"] if floor is None else floor + tables["excess"]

    def bound(loss: np.ndarray, variance: np.ndarray) -> float:
        return L_T + dim * float(likelihood.terms_from_loss(loss, schedule, variance).sum())

    print(f"\nthe bound on -log p, nats a point, T = {schedule.T}, by {n:,} points at every t")
    print(f"{'variance':>12} {'bound':>9}" + (f" {'perfect network':>16}" if data.exact else ""))
    metrics: dict[str, float] = {}
    for name in ("beta_tilde", "beta", "best"):
        if name == "best":
            variance = likelihood.best_variance(loss if floor is None else floor, schedule)
        else:
            variance = likelihood.variance_table(name, schedule)
        metrics[f"bound_{name}"] = bound(loss, variance)
        line = f"{name:>12} {metrics[f'bound_{name}']:9.4f}"
        if floor is not None:
            metrics[f"perfect_{name}"] = bound(floor, variance)
            metrics[f"network_{name}"] = metrics[f"bound_{name}"] - metrics[f"perfect_{name}"]
            line += f" {metrics[f'perfect_{name}']:16.4f}"
        print(line)
    if data.exact:
        metrics |= say_gap(metrics, data.exact, schedule, rng)
    return metrics | of_ode(ode, ode_levels, data, x_0, xp)


def of_ode(
    ode: score_sde.EpsAndDivergence, levels: Schedule, data: Points, x_0: np.ndarray, xp: Any
) -> dict[str, float]:
    """Print and return -log p(x_0) by the ODE, in nats a point.

    Where the data have a closed form, its distance from the truth on the same points stands beside.
    """
    log_p = to_numpy(score_sde.ode_log_prob(ode, xp.asarray(x_0), levels)).astype(np.float64)
    nll, error = likelihood.mean_and_error(-log_p)
    metrics = {"ode_nll": nll, "ode_nll_error": error}
    print(f"{f'by the ODE, {levels.T} levels':<30} {nll:9.4f} +- {error:.4f}")
    if data.exact:
        gaps = data.exact.log_prob(x_0.astype(np.float64)) - log_p
        gap, error = likelihood.mean_and_error(gaps)
        metrics |= {"ode_gap": gap, "ode_gap_error": error}
        print(f"{'exact minus ODE, same points':<30} {gap:9.4f} +- {error:.4f}")
    return metrics


def say_gap(
    metrics: dict[str, float], data: exact.Mixture, schedule: Schedule, rng: np.random.Generator
) -> dict[str, float]:
    """What lies between the entropy and the bound with variance beta."""
    entropy, prior = data.entropy(), prior_part(data, schedule, 20_000, rng)
    gaussian = metrics["perfect_best"] - entropy - prior
    parts = {
        "entropy of the data": entropy,
        "+ the prior: x_T is not quite N(0, I)": prior,
        "+ the cost of one Gaussian per step, at the best variance": gaussian,
        "+ the variance is beta, not the best": metrics["perfect_beta"] - metrics["perfect_best"],
        "+ the network": metrics["network_beta"],
        "= the bound": metrics["bound_beta"],
    }
    for name, nats in parts.items():
        print(f"  {name:<58} {nats:9.5f}")
    return {"entropy": entropy, "gap_prior": prior, "gap_gaussian": gaussian}


# Digits: the discretised decoder, and t drawn where the terms are large


def of_digits(
    x_0: np.ndarray,
    pilot: np.ndarray,
    schedule: Schedule,
    reverse: likelihood.Reverse,
    rng: np.random.Generator,
    xp: Any = np,
    draws: int = 4,
    piece: int = 250,
) -> dict[str, Any]:
    """The bound for images (N, H, W, 1) in bits a pixel, with its terms in ranges of t.

    For each image t is drawn `draws` times, `piece` images at a time. `pilot` holds other images,
    by which the probabilities of t are chosen.
    """
    p = likelihood.importance(xp.asarray(pilot), schedule, reverse, rng)
    decoder, pieces = likelihood.discretised_decoder, []
    for _ in range(draws):
        for i in range(0, len(x_0), piece):
            x = xp.asarray(x_0[i : i + piece])
            terms = likelihood.one_t_bound(x, schedule, reverse, rng, p, decoder)
            pieces.append([to_numpy(values) for values in terms])
    L_0, t, later = (np.concatenate(c).astype(np.float64) for c in zip(*pieces, strict=True))

    unit = BITS / x_0[0].size  # from nats an image to bits a pixel
    L_T = float(prior_kl(x_0, schedule).mean()) * unit
    of_each_image = unit * (L_0 + later).reshape(draws, -1).mean(axis=0)
    mean, error = likelihood.mean_and_error(of_each_image)
    edges = {2, *(max(3, round(schedule.T * share) + 1) for share in (0.02, 0.1, 0.3, 1.0))}
    starts = sorted(edges)
    ranges = {}
    for low, above in zip(starts[:-1], starts[1:], strict=True):
        nats = np.where((t >= low) & (t < above), later, 0.0).mean()
        ranges[f"L_t-1, t = {low}..{above - 1}"] = float(nats) * unit
    return {
        "bits_per_dim": mean + L_T,
        "bits_per_dim_error": error,
        "L_T": L_T,
        "L_0": float(L_0.mean()) * unit,
        **ranges,
    }


def say_digits(name: str, bound: dict[str, Any], images: int) -> None:
    """Print what `of_digits` returned."""
    total = f"{bound['bits_per_dim']:.4f} +- {bound['bits_per_dim_error']:.4f} bits a pixel"
    print(f"\n{name}: {total}, an upper bound, on {images:,} images")
    terms = {term: bits for term, bits in bound.items() if term.startswith("L_")}
    for term, bits in sorted(terms.items(), key=lambda item: item[0] == "L_0"):  # L_0 last
        print(f"  {term:<24} {bits:8.4f}")


def loss_over_t(
    predict_eps: Predictor, x_0: np.ndarray, schedule: Schedule, rng: np.random.Generator, xp: Any
) -> np.ndarray:
    """The mean loss at every t, measured at about forty and interpolated between: (T+1,)."""
    ts, measured = spread_over_t(schedule.T, 40), []
    for t in ts:
        eps = rng.standard_normal(x_0.shape, dtype=np.float32)
        eps_hat = to_numpy(predict_eps(xp.asarray(q_sample(x_0, t, eps, schedule)), t))
        measured.append(((eps_hat - eps) ** 2).mean())
    return np.concatenate([[0.0], np.interp(np.arange(1, schedule.T + 1), ts, measured)])


def variances(loss: np.ndarray, schedule: Schedule) -> dict[str, str | np.ndarray]:
    """The fixed variances to compare: DDPM's two, and the best for a predictor with this loss."""
    best = likelihood.best_variance(loss, schedule)
    return {"beta": "beta", "beta_tilde": "beta_tilde", "the best variance of each t": best}
