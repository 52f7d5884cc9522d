"""What the demo of points prints and draws, checked with the exact predictor as the network."""

from types import SimpleNamespace

import numpy as np
import pytest

from lab import draw, judge, levels, points, points_flags
from lab.errors import UserError
from lab.points_report import Report
from npdiff.exact import Gaussian, SwissRoll
from npdiff.forward import score_from_eps
from npdiff.schedule import linear

ROLL = points.load("swiss_roll")
SCHEDULE = linear(1000)

# The irreducible loss of the roll on this schedule, averaged over t. The irreducible loss given x_t
# has a standard deviation below 0.35 over x_t and t.
IRREDUCIBLE = pytest.approx(0.23597, abs=5 * 0.35 / np.sqrt(20_000))


def test_t_is_spread_evenly_and_from_end_to_end():
    t = judge.evenly(10, 25)
    assert t[0] == 1 and t[-1] == 10 and (np.diff(t) >= 0).all()
    assert set(np.bincount(t)[1:]) == {2, 3}


def test_the_mean_of_the_irreducible_loss_is_that_of_all_t():
    t = judge.evenly(SCHEDULE.T, 20_000)
    loss, error = judge.irreducible_loss(ROLL, SCHEDULE, t, np.random.default_rng(0))
    assert loss == IRREDUCIBLE and 0 < error < 0.35 / np.sqrt(20_000)


def test_the_exact_predictor_has_no_excess_and_the_irreducible_loss():
    best, rng = ROLL.exact.predictor(SCHEDULE), np.random.default_rng(1)
    mean = judge.mean_loss(best, ROLL, SCHEDULE, 20_000, rng)
    assert mean["excess"] == 0
    assert mean["irreducible_loss"] == IRREDUCIBLE
    # Given x_t, eps* is distributed as eps is. So the loss has a variance of at most
    # E|eps - eps*|^4, below 3 for eps of unit variance.
    assert mean["loss"] == pytest.approx(0.23597, abs=5 * np.sqrt(3 / 20_000))


def test_excess_is_the_square_of_what_the_predictor_is_off_by():
    best, rng = ROLL.exact.predictor(SCHEDULE), np.random.default_rng(2)

    def predict_eps(x_t, t):
        return best(x_t, t) + np.float32(0.1)

    (row,) = judge.loss_table(predict_eps, ROLL, SCHEDULE, [200], 1000, rng)
    assert row["t"] == 200 and row["excess"] == pytest.approx(0.01, rel=1e-4)


def test_drift_is_the_mean_of_a_reverse_step_less_x():
    # For x_0 ~ N(0, I), eps* = noise_t x_t, so mu = sqrt(alpha_t) x_t, and the drift is
    # (sqrt(alpha_t) - 1) x_t.
    predict_eps = Gaussian([0.0, 0.0], np.eye(2)).predictor(SCHEDULE)
    x = np.random.default_rng(3).standard_normal((5, 2))
    report = SimpleNamespace(schedule=SCHEDULE, xp=np)
    drift = Report.drift(report, predict_eps, x, 300)
    np.testing.assert_allclose(drift, (np.sqrt(SCHEDULE.alpha[300]) - 1) * x, rtol=1e-9)


def report_of(folder, seed):
    args = points_flags.parse("", ["--smoke", "--no-gif", "--out", str(folder / "o")])
    report = Report(args, ROLL, linear(args.T), np.random.default_rng(seed), np)
    args.marker.close()  # as cli.run does at the end of a run
    return report


def test_the_score_field_shows_scores(tmp_path, monkeypatch):
    report, shown = report_of(tmp_path, seed=4), {}
    schedule, lattice = report.schedule, draw.lattice((-1.0, 1.0, -1.0, 1.0))

    def look(path, columns, clouds, points, learned, exact):
        assert points is lattice
        ts = [int(title.removeprefix("t = ")) for title, _ in columns]
        shown.update(zip(ts, zip(learned, exact, strict=True), strict=True))

    monkeypatch.setattr(draw, "score_field", look)
    monkeypatch.setattr(draw, "lattice", lambda extent, n: lattice)
    report.draw_score(ROLL.exact.predictor(schedule))
    assert len(shown) == 3
    for t, (learned, exact) in shown.items():
        score = SwissRoll(0.5).score(lattice, schedule.signal[t], schedule.noise[t])
        np.testing.assert_allclose(learned, score, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(exact, score, rtol=1e-9, atol=1e-12)
        assert not np.allclose(score, score_from_eps(lattice, t, score, schedule))


@pytest.mark.parametrize("steps", [1, 50, 1000])
def test_a_report_keeps_both_ends_of_the_reverse_process_and_about_sixty_clouds(steps):
    report = SimpleNamespace(reverse_process={}, schedule=SCHEDULE)
    report.frames = levels.spaced_by_level(SCHEDULE, 58)
    met = np.linspace(1000, 0, steps + 1).round().astype(int)
    for t in met:
        Report.see(report, t, np.full((3, 2), t, np.float32))
    ts = list(report.reverse_process)
    assert ts[0] == 1000 and ts[-1] == 0 and ts == sorted(ts, reverse=True)
    assert all((x_t == t).all() for t, x_t in report.reverse_process.items())
    # Of each frame the first t that the sampler meets at it or after it.
    assert set(ts) == {max(t for t in met if t <= frame) for frame in report.frames}
    assert len(ts) == 60 or steps < 1000


def test_the_roll_is_seen_in_more_than_half_of_the_film():
    """At noise/signal = 1 the noise is as wide as the roll, at 1/5 narrower than its windings."""
    film = levels.spaced_by_level(SCHEDULE, 58)
    ratio = SCHEDULE.noise[film] / SCHEDULE.signal[film]
    assert np.mean(ratio < 1) > 0.75 and np.mean(ratio < 0.2) > 0.3


def test_samples_that_are_not_finite_are_refused_before_the_last_ones_are_replaced(tmp_path):
    report = report_of(tmp_path, seed=6)
    (tmp_path / "o" / "samples.npz").write_text("the last run's")
    with pytest.raises(UserError, match="diverged"):
        report.keep_samples(np.full((4, 2), np.nan, np.float32))
    assert (tmp_path / "o" / "samples.npz").read_text() == "the last run's"


def test_the_eight_gaussians_stand_at_the_multiples_of_45_degrees():
    means = points.load("8gaussians").exact.means
    angle = np.degrees(np.arctan2(means[:, 1], means[:, 0])) % 360
    np.testing.assert_allclose(angle % 360, 45.0 * np.arange(8), atol=1e-9)
