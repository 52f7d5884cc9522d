"""What the demo of points prints and draws is what it says: checked with the exact predictor in the network's place."""

from types import SimpleNamespace

import _data as data
import _draw
import _judge
import _points
import numpy as np
import pytest

from npdiff.exact import Gaussian, SwissRoll
from npdiff.forward import score_from_eps
from npdiff.sampler import ddim
from npdiff.schedule import linear

ROLL = data.points("swiss_roll")
CHAIN = linear(1000)


def test_t_is_spread_evenly_and_from_end_to_end():
    t = _judge.evenly(10, 25)
    assert t[0] == 1 and t[-1] == 10 and (np.diff(t) >= 0).all()
    assert set(np.bincount(t)[1:]) == {2, 3}


def test_the_mean_of_the_irreducible_loss_is_that_of_all_t():
    # 0.23597 for the roll and the linear schedule. The loss given x_t has a standard deviation below 0.35 over x_t and t.
    error = 5 * 0.35 / np.sqrt(20_000)
    t = _judge.evenly(CHAIN.T, 20_000)
    assert _judge.irreducible_loss(ROLL, CHAIN, t, np.random.default_rng(0)) == pytest.approx(
        0.23597, abs=error
    )


def test_the_exact_predictor_has_no_excess_and_the_irreducible_loss():
    mean = _judge.mean_loss(
        ROLL.exact.predictor(CHAIN), ROLL, CHAIN, 20_000, np.random.default_rng(1)
    )
    assert mean["excess"] == 0
    # Of the same law, the loss has a variance of at most E|eps - eps*|^4, below 3 for eps of unit variance.
    assert mean["irreducible_loss"] == pytest.approx(0.23597, abs=5 * 0.35 / np.sqrt(20_000))
    assert mean["loss"] == pytest.approx(0.23597, abs=5 * np.sqrt(3 / 20_000))


def test_excess_is_the_square_of_what_the_predictor_is_off_by():
    best = ROLL.exact.predictor(CHAIN)
    row = _judge.loss_table(
        lambda x_t, t: best(x_t, t) + np.float32(0.1),
        ROLL,
        CHAIN,
        [200],
        1000,
        np.random.default_rng(2),
    )[0]
    assert row["t"] == 200 and row["excess"] == pytest.approx(0.01, rel=1e-4)


def test_drift_is_the_mean_of_a_step_back_less_x():
    # For x_0 ~ N(0, I), eps* = noise_t x_t, so mu = sqrt(alpha_t) x_t and the drift is (sqrt(alpha_t) - 1) x_t.
    predict_eps = Gaussian([0.0, 0.0], np.eye(2)).predictor(CHAIN)
    x = np.random.default_rng(3).standard_normal((5, 2))
    report = SimpleNamespace(schedule=CHAIN, _on_device=lambda predict_eps, x, t: predict_eps(x, t))
    at, drift = _points.Report._drift(report, predict_eps, x, 300)
    assert at is x
    np.testing.assert_allclose(drift, (np.sqrt(CHAIN.alpha[300]) - 1) * x, rtol=1e-9)


def test_the_score_field_shows_scores(tmp_path, monkeypatch):
    args = _points.parse(
        "",
        [
            "--smoke",
            "--sampler",
            "ddim",
            "--sampling-steps",
            "4",
            "--no-gif",
            "--out",
            str(tmp_path / "o"),
        ],
    )
    chain, seen = linear(args.T), {}
    report = _points.Report(args, ROLL, chain, np.random.default_rng(4), np)
    predict_eps = ROLL.exact.predictor(chain)
    for step in ddim(
        predict_eps,
        np.random.default_rng(5).standard_normal((20, 2), dtype=np.float32),
        chain,
        steps=4,
    ):
        report.see(step)
    monkeypatch.setattr(
        _draw,
        "score_field",
        lambda path, ts, clouds, points, learned, exact: seen.update(zip(ts, zip(learned, exact))),
    )  # noqa: B905
    points = _draw.lattice((-1.0, 1.0, -1.0, 1.0))
    monkeypatch.setattr(_draw, "lattice", lambda extent: points)
    report._draw(predict_eps, [{"t": 1, "loss": 1.0}, {"t": 20, "loss": 1.0}])
    assert len(seen) == 3
    for t, (learned, exact) in seen.items():
        score = SwissRoll(0.5).score(points, chain.signal[t], chain.noise[t])
        np.testing.assert_allclose(learned, score, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(exact, score, rtol=1e-9, atol=1e-12)
        assert not np.allclose(score, score_from_eps(points, t, score, chain))


def test_samples_that_are_not_finite_are_refused_before_the_last_ones_are_replaced(tmp_path):
    args = _points.parse("", ["--smoke", "--out", str(tmp_path / "o")])
    report = _points.Report(args, ROLL, linear(args.T), np.random.default_rng(6), np)
    (tmp_path / "o" / "samples.npz").write_text("the last run's")
    with pytest.raises(data.UserError, match="diverged"):
        report.write(ROLL.exact.predictor(linear(args.T)), np.full((4, 2), np.nan, np.float32), {})
    assert (tmp_path / "o" / "samples.npz").read_text() == "the last run's"


def test_the_eight_gaussians_stand_at_the_multiples_of_45_degrees():
    means = data.points("8gaussians").exact.means
    angle = np.degrees(np.arctan2(means[:, 1], means[:, 0])) % 360
    np.testing.assert_allclose(angle % 360, 45.0 * np.arange(8), atol=1e-9)
