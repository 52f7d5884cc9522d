"""Judging a model of points in the plane: its loss at each t and its samples, each beside the exact answer where there is one."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from _data import Draw, Points
from npdiff.backend import to_numpy
from npdiff.exact import SwissRoll
from npdiff.forward import prior_kl, q_sample
from npdiff.kit.metrics import distance_to_curve, energy_distance, real_against_real
from npdiff.sampler import Predictor
from npdiff.schedule import Schedule

PIECE = 512  # rows in one call of the exact predictor, whose arrays then stay in cache


def terminal_state(draw: Draw, schedule: Schedule, rng: np.random.Generator) -> dict[str, float]:
    """signal[T], and the mean of KL(q(x_T | x_0) || N(0, I)) over the data, in nats a dimension."""
    x_0 = draw(2000, rng)
    kl = prior_kl(x_0, schedule)
    return {"signal_T": float(schedule.signal[-1]), "prior_kl_nats_per_dimension": float(kl.mean()) / x_0[0].size}


def say_terminal_state(state: dict[str, float]) -> None:
    signal, kl = state["signal_T"], state["prior_kl_nats_per_dimension"]
    print(f"the chain ends at signal[T] = {signal:.2g}, KL(q(x_T | x_0) || N(0, I)) = {kl:.2g} nats a dimension")
    if kl > 0.01:
        print("warning: x_T still holds much of x_0, but sampling starts from pure noise; take more steps (--T 1000) or --schedule cosine")


def losses(
    predict_eps: Predictor, data: Points, schedule: Schedule, t: np.ndarray, rng: np.random.Generator, xp: Any = np
) -> Iterator[dict[str, float]]:
    """For pieces of t, the means over fresh points of

    loss               |eps - eps_hat|^2, the network's
    irreducible_loss   E[|eps - eps*|^2 | x_t], a perfect network's
    excess             |eps_hat - eps*|^2, how far the network is from the perfect one: in expectation, loss - irreducible_loss

    all a dimension, the last two where the data have a closed form. t has shape (B,); one dict for each piece of it.
    """
    best = data.exact.predictor(schedule) if data.exact else None
    for i in range(0, len(t), PIECE):
        piece = t[i : i + PIECE]
        x_0 = data.fresh(len(piece), rng)
        eps = rng.standard_normal(x_0.shape, dtype=np.float32)
        x_t = q_sample(x_0, piece, eps, schedule)
        eps_hat = to_numpy(predict_eps(xp.asarray(x_t), piece))
        means = {"points": len(piece), "loss": float(((eps - eps_hat) ** 2).mean())}
        if best is not None and data.exact is not None:
            means["irreducible_loss"] = float(data.exact.irreducible_loss(x_t, piece, schedule).mean())
            means["excess"] = float(((eps_hat - best(x_t, piece)) ** 2).mean())
        yield means


def mean_loss(predict_eps: Predictor, data: Points, schedule: Schedule, n: int, rng: np.random.Generator, xp: Any = np) -> dict[str, float]:
    """`losses` averaged over t = 1..T, by n points whose t are spread evenly, in rising order."""
    return average(list(losses(predict_eps, data, schedule, evenly(schedule.T, n), rng, xp)))


def irreducible_loss(data: Points, schedule: Schedule, t: np.ndarray, rng: np.random.Generator) -> float | None:
    """The loss of a perfect network averaged over t (n,), in rising order, a point each; None where the data have no closed form."""
    if data.exact is None:
        return None
    n, x_0 = len(t), data.fresh(len(t), rng)
    x_t = q_sample(x_0, t, rng.standard_normal(x_0.shape, dtype=np.float32), schedule)
    pieces = [data.exact.irreducible_loss(x_t[i : i + PIECE], t[i : i + PIECE], schedule) for i in range(0, n, PIECE)]
    return float(np.concatenate(pieces).mean())


def loss_table(
    predict_eps: Predictor, data: Points, schedule: Schedule, ts: list[int], n: int, rng: np.random.Generator, xp: Any = np
) -> list[dict[str, float]]:
    """`losses` at each of ts, over n points: a row a t."""
    return [{"t": t, **average(list(losses(predict_eps, data, schedule, np.full(n, t), rng, xp)))} for t in ts]


def mean_kl(d: np.ndarray) -> float:
    """KL(q || p) from d = log q - log p at draws of q: the mean of d + c (exp(-d) - 1), with the c that makes its error smallest.

    exp(-d) = p/q has the mean 1. Where p is close to q that c is near 1 and takes nearly all of the error away.
    """
    e = np.expm1(-d)
    c = -np.cov(d, e)[0, 1] / max(float(e.var(ddof=1)), 1e-300)
    return float((d + c * e).mean())


def average(pieces: list[dict[str, float]]) -> dict[str, float]:
    """The mean of the pieces, each weighed by its points."""
    points = sum(piece["points"] for piece in pieces)
    return {name: sum(piece[name] * piece["points"] for piece in pieces) / points for name in pieces[0] if name != "points"}


def evenly(T: int, n: int) -> np.ndarray:
    """n times t from 1 to T in rising order, each as often as the others to within one: (n,)."""
    return 1 + np.arange(n) * T // n


def spread_over_t(T: int, count: int) -> list[int]:
    """About `count` different t from 1 to T, denser at the small t, where most of the structure is."""
    return sorted({max(1, round(T ** (i / (count - 1)))) for i in range(count)} | {1, T})


def sample_quality(x: np.ndarray, data: Points, rng: np.random.Generator) -> dict[str, float]:
    """How close samples are to fresh data, with what real data reach in their place.

    energy_distance, with the mean and the standard deviation of real against real on as many points; for the swiss roll
    the mean and the 95th percentile of the distance to its curve.
    """
    quality: dict[str, float] = {}
    n = min(len(x), data.aside or 10_000, 10_000)
    if n >= 2:
        fresh, *others = data.sets(n, rng)
        mean, std = real_against_real([fresh, *others])
        quality |= {"energy_distance": energy_distance(x[:n], fresh), "energy_distance_points": n}
        quality |= {"energy_distance_real": mean, "energy_distance_real_std": std}
    if isinstance(data.exact, SwissRoll):
        for name, points in (("", x), ("_real", data.fresh(50_000, rng))):
            distance = distance_to_curve(points, data.exact)
            quality[f"distance_to_curve_mean{name}"] = float(distance.mean())
            quality[f"distance_to_curve_p95{name}"] = float(np.percentile(distance, 95))
    return quality
