"""Judging a model of points in the plane: its loss at each t, and its samples.

Where the data have a closed form, the exact figure stands beside each.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lab.metrics import distance_to_curve, energy_distance, real_against_real
from lab.points import Draw, Points
from npdiff.backend import to_numpy
from npdiff.exact import SwissRoll
from npdiff.forward import prior_kl, q_sample
from npdiff.likelihood import mean_and_error
from npdiff.sampler import Predictor
from npdiff.schedule import Schedule

PIECE = 512  # rows in one call of the exact predictor, whose arrays then stay in the cache


# The end of the forward process


def terminal_state(draw: Draw, schedule: Schedule, rng: np.random.Generator) -> dict[str, float]:
    """signal[T], and KL(q(x_T | x_0) || N(0, I)), averaged over the data, in nats a coordinate."""
    x_0 = draw(2000, rng)
    kl = float(prior_kl(x_0, schedule).mean()) / x_0[0].size
    return {"signal_T": float(schedule.signal[-1]), "prior_kl_nats_per_dimension": kl}


def say_terminal_state(state: dict[str, float], remedy: str) -> None:
    """Print the terminal state, and a warning with a remedy where it is far from pure noise."""
    signal, kl = state["signal_T"], state["prior_kl_nats_per_dimension"]
    print(
        f"the forward process ends at signal[T] = {signal:.2g}, "
        f"KL(q(x_T | x_0) || N(0, I)) = {kl:.2g} nats a coordinate"
    )
    if kl > 0.01:
        print(
            "warning: x_T still holds much of x_0, but sampling starts from pure noise; use "
            f"{remedy}"
        )


# The loss


def losses(
    predict_eps: Predictor,
    data: Points,
    schedule: Schedule,
    t: np.ndarray,
    rng: np.random.Generator,
    xp: Any = np,
) -> Iterator[dict[str, float]]:
    """The loss of the network at t, (B,), by one fresh point for each.

    The points are taken in pieces, and the means over each piece are yielded:

    points             the number of points of the piece
    loss               |eps - eps_hat|^2, the network's
    irreducible_loss   E[|eps - eps*|^2 | x_t], a perfect network's
    excess             |eps_hat - eps*|^2, whose expectation is loss - irreducible_loss

    Losses are averaged over coordinates. The last two are there where the data have a closed form.
    """
    best = data.exact.predictor(schedule) if data.exact else None
    for i in range(0, len(t), PIECE):
        piece = t[i : i + PIECE]
        x_0 = data.fresh(len(piece), rng)
        eps = rng.standard_normal(x_0.shape, dtype=np.float32)
        x_t = q_sample(x_0, piece, eps, schedule)
        eps_hat = to_numpy(predict_eps(xp.asarray(x_t), piece))
        means = {"points": len(piece), "loss": float(((eps - eps_hat) ** 2).mean())}
        if data.exact and best:
            irreducible = data.exact.irreducible_loss(x_t, piece, schedule)
            means["irreducible_loss"] = float(irreducible.mean())
            means["excess"] = float(((eps_hat - best(x_t, piece)) ** 2).mean())
        yield means


def mean_loss(
    predict_eps: Predictor,
    data: Points,
    schedule: Schedule,
    n: int,
    rng: np.random.Generator,
    xp: Any = np,
) -> dict[str, float]:
    """`losses` averaged over t = 1..T, by n points."""
    t = evenly(schedule.T, n)
    return average(list(losses(predict_eps, data, schedule, t, rng, xp)))


def loss_table(
    predict_eps: Predictor,
    data: Points,
    schedule: Schedule,
    ts: list[int],
    n: int,
    rng: np.random.Generator,
    xp: Any = np,
) -> list[dict[str, float]]:
    """`losses` at each of ts, by n points: a row for each t."""
    rows = []
    for t in ts:
        pieces = losses(predict_eps, data, schedule, np.full(n, t), rng, xp)
        rows.append({"t": t, **average(list(pieces))})
    return rows


def irreducible_loss(
    data: Points, schedule: Schedule, t: np.ndarray, rng: np.random.Generator
) -> tuple[float, float] | None:
    """The loss of a perfect network averaged over t, (B,), by one fresh point for each.

    Returned with its standard error; None where the data have no closed form. Sorted t are faster:
    a piece of large t needs fewer components.
    """
    if data.exact is None:
        return None
    x_0 = data.fresh(len(t), rng)
    x_t = q_sample(x_0, t, rng.standard_normal(x_0.shape, dtype=np.float32), schedule)
    pieces = [slice(i, i + PIECE) for i in range(0, len(t), PIECE)]
    loss = [data.exact.irreducible_loss(x_t[piece], t[piece], schedule) for piece in pieces]
    return mean_and_error(np.concatenate(loss).astype(np.float64))


def average(pieces: list[dict[str, float]]) -> dict[str, float]:
    """The mean of the pieces, each weighted by its number of points."""
    points = sum(piece["points"] for piece in pieces)
    names = [name for name in pieces[0] if name != "points"]
    return {name: sum(piece[name] * piece["points"] for piece in pieces) / points for name in names}


def evenly(T: int, n: int) -> np.ndarray:
    """n times t in rising order, from 1 to T, each t as often as any other to within one: (n,)."""
    return 1 + np.arange(n) * T // n


# The samples


def sample_quality(x: np.ndarray, data: Points, rng: np.random.Generator) -> dict[str, float]:
    """How close samples are to fresh data, and the same figures for real data in their place.

    The energy distance stands beside its mean and standard deviation between real sets of as many
    points. For the swiss roll there are also the mean and the 95th percentile of the distance to
    its curve, with those of real points.
    """
    quality: dict[str, float] = {}
    n = min(len(x), data.aside or 10_000, 10_000)
    if n >= 2:
        fresh, *others = data.sets(n, rng)
        mean, std = real_against_real([fresh, *others])
        quality["energy_distance"] = energy_distance(x[:n], fresh)
        quality["energy_distance_points"] = n
        quality["energy_distance_real"] = mean
        quality["energy_distance_real_std"] = std
    if isinstance(data.exact, SwissRoll):
        for name, points in (("", x), ("_real", data.fresh(50_000, rng))):
            distance = distance_to_curve(points, data.exact)
            quality[f"distance_to_curve_mean{name}"] = float(distance.mean())
            quality[f"distance_to_curve_p95{name}"] = float(np.percentile(distance, 95))
    return quality
