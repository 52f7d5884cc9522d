"""The lessons: each runs once, the two sides of every "=" agree, and its numbers are derived again.

A lesson's variables are what a reader sees in a debugger, and what these tests look at.
"""

import ast
import contextlib
import functools
import io
import itertools
import math
import os
import runpy
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from lab import lesson
from lab.metrics import distance_to_curve, energy_distance
from npdiff import likelihood

LESSONS = Path(__file__).parents[1] / "demos" / "lessons"
FILES = sorted(LESSONS.glob("*.py"))
EPS = np.finfo(np.float64).eps
KINDS = ("(rounding)", "(at most", "std errors")  # how a line says by how much two sides differ


@functools.cache
def run(number):
    """The variables of a lesson, what it printed, and the size of its picture."""
    (path,) = LESSONS.glob(f"{number}_*.py")
    here, handlers = Path.cwd(), {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGPIPE)}
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(sys, "argv", [str(path)]):
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                variables = runpy.run_path(str(path))
            with Image.open(f"out/lessons/{number}.png") as picture:
                size = picture.size
        finally:
            os.chdir(here)
            for s, handler in handlers.items():
                signal.signal(s, handler)
    return variables, printed.getvalue(), size


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_printed_equation_agrees_and_a_picture_is_drawn(path):
    _, printed, size = run(path.stem[:2])
    equations = [line for line in printed.splitlines() if any(kind in line for kind in KINDS)]
    assert len(equations) >= 5
    assert "DISAGREES" not in printed and "nan" not in printed.lower().split()
    assert size[0] == 980 and size[1] > 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_lesson_is_flat_and_asks_one_question(path):
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.Try))]
    question, blank, *answer = ast.get_docstring(tree).splitlines()
    assert question.endswith("?") and blank == "" and 2 <= len(answer) <= 5
    assert "# Change this, and see:" in source
    assert len(source.splitlines()) <= (210 if path.stem.startswith("15") else 160)


def test_the_readmes_name_each_lesson_with_its_question_and_the_pictures_are_there():
    root = (LESSONS.parents[1] / "README.md").read_text("utf-8")
    own = (LESSONS / "README.md").read_text("utf-8")
    for path in FILES:
        question = ast.get_docstring(ast.parse(path.read_text("utf-8"))).splitlines()[0]
        cell = question.replace("|", "\\|")
        assert f"| [{path.stem}](demos/lessons/{path.name}) | {cell} |" in root
        assert f"## {path.stem[:2]} {question}\n\n`{path.name}`" in own
        with Image.open(LESSONS / "pictures" / f"{path.stem[:2]}.png") as picture:
            assert picture.size == run(path.stem[:2])[2]
    assert len(FILES) == own.count("\n## ") == root.count("](demos/lessons/")


def test_an_equation_with_two_sides_prints_where_they_differ_and_whether_they_agree(capsys):
    lesson.equal("a", np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-9]))
    lesson.equal("b", 1.0, 1.0 + 4 * EPS)
    lesson.equal("c", 1.0, 1.2, error=0.1)
    lesson.equal("d", 1.0, 1.7, error=0.1)
    lesson.equal("e", 1.0, 1.1, within=0.2)
    lesson.equal("f", 1.0, 1.3, within=0.2)
    lesson.equal("g", np.nan, 1.0)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert [name for name, line in lines.items() if "DISAGREES" in line] == ["a", "d", "f", "g"]
    assert "2.0 std errors" in lines["c"] and "1.0e-09 (rounding)" in lines["a"]
    assert "0.2" in lines["e"] and lines["a"].split()[:2] == ["2", "2"]


# 01 noise


def test_01_the_chain_of_t_steps_has_the_closed_form():
    lesson_01, _, _ = run("01")
    alpha_bar = np.cumprod(np.concatenate([[1.0], 1 - np.linspace(1e-4, 0.02, 1000)]))
    # Each of 1,000 steps rounds a product of factors below 1 a few times.
    np.testing.assert_allclose(lesson_01["mean"], 1.5 * np.sqrt(alpha_bar), atol=5000 * EPS)
    np.testing.assert_allclose(lesson_01["var"], 1 - alpha_bar, atol=5000 * EPS)
    assert lesson_01["without_root"] < 0.02
    assert lesson_01["kls"][0] > 0.5 and lesson_01["kls"][-1] < 1e-4
    assert lesson_01["n"] * lesson_01["shown"][-1] <= 2e7 and lesson_01["T"] == 1000


# 02 posterior


def test_02_the_posterior_is_the_conditional_of_two_gaussian_variables():
    lesson_02, _, _ = run("02")
    f = np.cos(np.pi / 2 * (np.arange(21) / 20 + 0.008) / 1.008) ** 2
    beta = np.concatenate([[0.0], np.minimum(1 - f[1:] / f[:-1], 0.999)])
    v = 1 - np.cumprod(1 - beta)
    # Given x_0, x_{t-1} has the variance v[t - 1], x_t the variance v[t], and their covariance is
    # a v[t - 1]. The regression of the one on the other leaves v[t - 1] - (a v[t - 1])^2 / v[t].
    left = v[:-1] - (1 - beta[1:]) * v[:-1] ** 2 / v[1:]
    np.testing.assert_allclose(lesson_02["part"], (left / beta[1:])[[1, 9, 17]], rtol=1000 * EPS)
    np.testing.assert_allclose(lesson_02["var_q"], left[9], rtol=1000 * EPS)  # of the chains
    # sqrt(v) loses a few digits of a small v; w = -beta / (a sqrt(v)) is eq. (11).
    w = -beta[1:] / np.sqrt((1 - beta[1:]) * v[1:])
    np.testing.assert_allclose(lesson_02["of_eps"].ravel(), w, rtol=1000 * EPS)
    sigma = np.geomspace(0.01, 10.0, 20)  # variances exploding: 1/sigma_prev^2 - 1/sigma^2 is left
    precision = 1 / sigma[:-1] ** 2 + 1 / (sigma[1:] ** 2 - sigma[:-1] ** 2)
    np.testing.assert_allclose(lesson_02["precision"].ravel(), precision, rtol=1000 * EPS)
    assert lesson_02["n"] <= 1e5 and lesson_02["from_x_t"].size <= 3e4


# 03 gaussian_step


def test_03_the_true_step_of_a_mixture_is_a_mixture():
    lesson_03, _, _ = run("03")
    # Component k of q(x_{t-1}), N(m_k, c_k), times q(x_t | x_{t-1}) is a Gaussian in x_{t-1}: its
    # precision is the sum of the two, and its weight is the density that it gives to x_t = 0.1.
    alpha_bar = np.cos(np.pi / 2 * (np.array([9, 10]) / 20 + 0.008) / 1.008) ** 2
    alpha_bar /= np.cos(np.pi / 2 * 0.008 / 1.008) ** 2
    alpha, signal = alpha_bar[1] / alpha_bar[0], np.sqrt(alpha_bar[0])
    m, c = signal * np.array([-1.0, 1.0]), alpha_bar[0] * np.array([0.05, 0.2]) + 1 - alpha_bar[0]
    total = alpha * c + 1 - alpha
    r = np.array([0.3, 0.7]) * np.exp(-((0.1 - np.sqrt(alpha) * m) ** 2) / total / 2) / total**0.5
    r /= r.sum()
    var_k = 1 / (alpha / (1 - alpha) + 1 / c)
    mean_k = var_k * (np.sqrt(alpha) * 0.1 / (1 - alpha) + m / c)
    mean = (r * mean_k).sum()
    var = (r * (var_k + mean_k**2)).sum() - mean**2
    # The lesson's sums are over a grid of 800 steps to a deviation, so only rounding differs.
    np.testing.assert_allclose(lesson_03["mean"][-1], mean, rtol=1e5 * EPS)
    np.testing.assert_allclose(lesson_03["var"][-1], var, rtol=1e5 * EPS)
    x, weight = np.polynomial.legendre.leggauss(200)  # from -4 to 4, beyond ten deviations
    x = 4 * x[:, None]
    q = (r * np.exp(-((x - mean_k) ** 2) / var_k / 2) / np.sqrt(2 * np.pi * var_k)).sum(axis=1)
    entropy = -4 * (weight * q * np.log(np.maximum(q, 1e-300))).sum()
    kl = 0.5 * np.log(2 * np.pi * np.e * var) - entropy
    np.testing.assert_allclose(lesson_03["kl"][-1], kl, atol=1e5 * EPS)


def test_03_the_roll_needs_many_steps():
    lesson_03, printed, _ = run("03")
    lines = [line.split() for line in printed.splitlines() if line.endswith("averaged over x_t")]
    kl, error = np.array([(float(words[1]), float(words[3])) for words in lines]).T
    # Over 4,000 x_t, another seed and a coarser grid: 0.899, 0.1016 and 0.00067, to a part in 30.
    # The lesson has 99 and prints four decimals; five standard errors err in 1.7 of a million.
    reference = np.array([0.899, 0.1016, 0.00067])
    assert (np.abs(kl - reference) < 5 * np.maximum(error, 1e-4) + reference / 30 + 5e-5).all()
    assert lesson_03["x"].shape[0] * lesson_03["m"] <= 2e6 and lesson_03["m"] == 100


# 04 bound


def test_04_the_bound_of_gaussian_data_by_expectations_alone():
    lesson_04, _, _ = run("04")
    level = np.linspace(-4.0, 3.0, 25)
    alpha_bar = np.concatenate([[1.0], 1 / (1 + np.exp(2 * level))])
    alpha = alpha_bar[1:] / alpha_bar[:-1]
    beta, v = 1 - alpha, 0.25 * alpha_bar + 1 - alpha_bar
    # q(x_{t-1} | x_t) is a regression: x_{t-1} and x_t have the covariance sqrt(alpha) v[t - 1].
    slope, left = np.sqrt(alpha) * v[:-1] / v[1:], v[:-1] * (1 - alpha * v[:-1] / v[1:])
    # Of -log w, eq. (3) of Ho et al., the mean: each Gaussian's log-density, at its true spread.
    start = 0.5 * (np.log(2 * np.pi) + v[-1] + alpha_bar[-1])
    for i, var in enumerate((left, beta)):
        back = 0.5 * (np.log(2 * np.pi * var) + left / var)
        forward = 0.5 * (np.log(2 * np.pi * beta) + 1)
        bound = start + (back - forward).sum()
        np.testing.assert_allclose(lesson_04["bounds"][i, -1], bound, atol=1e5 * EPS)
    # The model's own density: the regression lines, followed from N(0, 1) to x_0.
    mean_p, var_p = 0.0, 1.0
    for t in range(25, 0, -1):
        mean_p = np.sqrt(alpha_bar[t - 1]) + slope[t - 1] * (mean_p - np.sqrt(alpha_bar[t]))
        var_p = slope[t - 1] ** 2 * var_p + beta[t - 1]
    model = lesson_04["mean_p"], lesson_04["var_p"]
    np.testing.assert_allclose(model, (mean_p, var_p), rtol=1e-12)
    assert lesson_04["log_w"].mean() < lesson_04["log_p"]
    assert lesson_04["H"] < lesson_04["cross"] < lesson_04["bounds"][1, -1]


def test_04_the_weights_are_those_of_equation_12():
    lesson_04, _, _ = run("04")
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    tilde = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta[1:]
    weight = beta[1:] ** 2 / (2 * tilde * (1 - beta[1:]) * (1 - alpha_bar[1:]))
    # 1 - alpha_bar is 2e-4 at t = 2, from which both sides lose four digits.
    np.testing.assert_allclose(lesson_04["weight"], weight, rtol=1e-10)
    assert 118 <= weight[0] / weight[298] < 119  # said in the picture
    assert lesson_04["n"] * lesson_04["x"].shape[0] <= 6e5


# 05 four_names


def test_05_an_error_of_eps_is_divided_by_the_signal_and_one_of_v_turned_by_a_small_angle():
    lesson_05, _, _ = run("05")
    f = np.cos(np.pi / 2 * (np.arange(1001) / 1000 + 0.008) / 1.008) ** 2
    alpha_bar = np.cumprod(np.maximum(f[1:] / f[:-1], 0.001))
    noise_over_signal = np.sqrt(1 / alpha_bar - 1)
    # A product of 1000 factors is rounded 1000 times.
    np.testing.assert_allclose(lesson_05["of_eps"], 0.01 * noise_over_signal, rtol=4000 * EPS)
    assert 200 < lesson_05["of_eps"][-1] < 206 and lesson_05["of_v"].max() <= 0.01
    # A jump turns (x_T, v) back by the angle between T and 980: x_s = cos(turn) x_T - sin(turn) v.
    turn = np.arctan(noise_over_signal[999]) - np.arctan(noise_over_signal[979])
    none, eps, v = (lesson_05["jumps"][name][0].x_prev for name in ("none", "eps", "v"))
    rounding = 100 * EPS * noise_over_signal[-1]
    np.testing.assert_allclose(v - none, -np.sin(turn) * 0.01, atol=rounding)
    of_eps = -np.sin(turn) * 0.01 / np.sqrt(alpha_bar[-1])
    np.testing.assert_allclose(eps - none, of_eps, atol=rounding)


def test_05_the_perfect_predictor_of_v_still_draws_the_roll_when_it_is_wrong_by_a_hundredth():
    lesson_05, _, _ = run("05")
    away = {
        name: lesson_05["distance_to_curve"](steps[-1].x_prev, lesson_05["roll"]).mean()
        for name, steps in lesson_05["jumps"].items()
    }
    # Real points lie a deviation of 0.073 from the curve, on average 0.073 sqrt(2 / pi) = 0.059.
    assert abs(away["v"] - away["none"]) < 0.01 < 0.4 < away["eps"]
    assert lesson_05["n"] * 3 * 50 <= 1e5 and lesson_05["T"] == 1000


# 06 irreducible


def test_06_the_mean_and_the_spread_of_eps_are_derivatives_of_log_q():
    lesson_06, _, _ = run("06")
    roll, signal, noise, p = (lesson_06[name] for name in ("roll", "signal", "noise", "p"))
    x_t, h = lesson_06["x_t"][0], 1e-3
    moves = h * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    log_q = roll.log_prob(x_t + moves, signal, noise)
    slope = (log_q[[1, 3]] - log_q[[2, 4]]) / (2 * h)
    laplacian = (log_q[1:].sum() - 4 * log_q[0]) / h**2
    mean, spread = lesson_06["mean"], p @ lesson_06["spread"]
    # Five standard errors of means with the weights p; the differences are off by parts of h^2.
    error = np.sqrt(p**2 @ (lesson_06["eps"] - mean) ** 2)
    assert (np.abs(mean + noise * slope) < 5 * error).all() and error.max() < 0.01
    error = np.sqrt(p**2 @ (lesson_06["spread"] - spread) ** 2)
    assert abs(spread - (1 + noise**2 * laplacian / 2)) < 5 * error < 0.05


def test_06_rows_compared_in_pairs_show_what_the_training_loss_hides():
    lesson_06, _, _ = run("06")
    held, excess, losses = (lesson_06[name] for name in ("held", "excess", "losses"))
    m = lesson_06["m"]
    pair = np.diff(held, axis=0)
    # From the second checkpoint on, a pair is at least five times as sharp as each loss alone.
    assert pair.std(axis=1).max() < 0.2 * held.std(axis=1).min()
    assert excess[-1].mean() < 0.25 * excess[0].mean()
    fall, error = held[0].mean() - held[-1].mean(), (held[0] - held[-1]).std() / np.sqrt(m)
    assert fall > 5 * error and abs(fall - (excess[0] - excess[-1]).mean()) < 5 * error
    assert losses.size * lesson_06["batch"] <= 4e5 and m * len(held) <= 1e5


# 07 variance


def test_07_the_best_variance_is_what_x_t_leaves_unknown_of_x_prev():
    lesson_07, _, _ = run("07")
    s, best, T = lesson_07["s"], lesson_07["best"], lesson_07["T"]
    f = np.cos(np.pi / 2 * (np.arange(T + 1) / T + 0.008) / 1.008) ** 2
    beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
    alpha_bar = np.cumprod(np.append(1.0, 1 - beta))[:, None]
    v = alpha_bar * s**2 + 1 - alpha_bar
    # Var[x_{t-1}] - Cov[x_{t-1}, x_t]^2 / Var[x_t], of numbers up to 2.25, each rounded a few times
    left = v[:-1] - (np.sqrt(1 - beta)[:, None] * v[:-1]) ** 2 / v[1:]
    np.testing.assert_allclose(best, left, atol=100 * EPS)
    above, spread, half, one = (lesson_07[name] for name in ("above", "spread", "half", "one"))
    for choice in ("beta_tilde", "beta"):
        assert (above[choice] > above["best"] - 1e-12).all()
    assert abs(above["beta"][one - 1]) < 1e-12 and above["beta"].argmin() == one - 1
    assert abs(spread["beta"][one] - 1) < 1e-12 and abs(spread["beta_tilde"][0] - 1) < 1e-12
    assert spread["beta_tilde"][half] < 0.8 and spread["beta"][0] > 3


def test_07_the_bound_of_the_roll_from_its_loss_is_that_of_draws():
    lesson_07, _, _ = run("07")
    roll, schedule, loss, T = (lesson_07[name] for name in ("roll", "schedule", "loss", "T"))
    rng, n, beta = np.random.default_rng(0), 1000, schedule.beta
    reverse = likelihood.fixed(roll.predictor(schedule), schedule, "beta")
    x_0 = roll.sample(n, rng, np.float64)
    nats = sum(values for _, values in likelihood.bound(x_0, schedule, reverse, rng)) / 2
    terms = likelihood.terms_from_loss(loss, schedule, beta)
    var = nats.var() / n
    for t in range(1, T + 1):  # each term is linear in its loss, which is a mean over 2,000 points
        x_t = schedule.signal[t] * x_0 + schedule.noise[t] * rng.standard_normal(x_0.shape)
        slope = beta[t] / (2 * schedule.alpha[t] * schedule.noise[t] ** 2)
        var += slope**2 * roll.irreducible_loss(x_t, t, schedule).var() / 2000
    assert abs(nats.mean() - lesson_07["roll_L_T"] - terms.sum()) < 5 * np.sqrt(var) < 0.2
    rms = lesson_07["rms"]  # of 2,000 draws each: its relative error is 1 / sqrt(2 n), or less
    assert rms["beta_tilde"] < (1 - 5 * np.sqrt(2 / 4000)) * rms["data"]
    assert lesson_07["x_T"].size * T <= 2e7


# 08 schedule


def test_08_what_a_step_destroys_is_the_information_of_draws():
    lesson_08, _, _ = run("08")
    data, s, info = (lesson_08[name] for name in ("data", "s", "info"))  # cosine, T = 25
    rng, n = np.random.default_rng(0), 50_000
    for t in (2, 8, 16):
        signal, noise = float(s.signal[t]), float(s.noise[t])
        eps = rng.standard_normal((n, 1))
        x_t = signal * data.sample(n, rng, np.float64) + noise * eps
        log_q_given_x_0 = -0.5 * (eps[:, 0] ** 2 + np.log(2 * np.pi * noise**2))
        values = log_q_given_x_0 - data.log_prob(x_t, signal, noise)
        assert abs(values.mean() - info[t - 1]) < 5 * values.std() / np.sqrt(n) < 0.05


def test_08_the_gap_of_the_bound_falls_as_1_over_T_and_half_as_far_up_with_cosine():
    lesson_08, _, _ = run("08")
    names, gap, kl_T = list(lesson_08["families"]), lesson_08["gap"], lesson_08["kl_T"]
    linear, unscaled, cosine = (gap[names.index(k)] for k in ("linear", "unscaled", "cosine"))
    for falls in (linear, cosine):  # gap = c / T (1 + d / T + ...): twice T, and d / T is halved
        excess = falls[1:] / falls[:-1] - 2  # at T = 100, 50, 25 over 200, 100, 50
        assert (excess > 0).all() and (excess[:-1] < 0.75 * excess[1:]).all()
    assert (cosine < 0.55 * linear).all()
    assert (gap > kl_T).all()  # the other costs are divergences, none below 0
    assert (lesson_08["kl_pixels"] > kl_T[1]).all()
    assert abs(lesson_08["a"][2] - np.prod(1 - np.linspace(1e-4, 0.02, 50))) < 100 * EPS
    assert abs(lesson_08["signal_T"] - 4.93e-5) < 1e-7
    assert len(lesson_08["x"]) * len(names) * lesson_08["Ts"].sum() <= 2e6


# 09 sampling


def test_09_n_jumps_multiply_a_gaussian_by_the_product_of_the_jumps():
    lesson_09, _, _ = run("09")
    for N, x in zip(lesson_09["Ns"], lesson_09["euler"], strict=True):
        c, d = np.cos(np.linspace(0, 1.3, N + 1)), np.sin(np.linspace(0, 1.3, N + 1))
        for s, found in zip((0.5, 1.0), x, strict=True):
            jump = (c[:-1] * c[1:] * s**2 + d[:-1] * d[1:]) / (c[1:] ** 2 * s**2 + d[1:] ** 2)
            assert abs(found - jump.prod()) < 10 * N * EPS
    assert len(lesson_09["x_T"]) * sum((1, 5, 10, 50, 5, 10)) <= 2e5
    assert lesson_09["n"] * 30 <= 2e6


def test_09_one_jump_ends_at_the_mean_of_the_data_and_more_jumps_nearer_the_curve():
    lesson_09, _, _ = run("09")
    roll, clouds, signal_T = lesson_09["roll"], lesson_09["clouds"], lesson_09["signal"][-1]
    # E[x_0 | x_T] = mean + signal_T Cov[x_0] x_T + O(signal_T^2), where the mean is 0
    cov = np.cov(roll.sample(100_000, np.random.default_rng(0), np.float64).T)
    first_order = signal_T * lesson_09["x_T"] @ cov
    third = np.abs(roll.means).max() ** 3 * (1 + np.abs(lesson_09["x_T"]).max() ** 2)
    np.testing.assert_allclose(clouds["DDIM in 1 steps"], first_order, atol=signal_T**2 * third)
    far = [
        distance_to_curve(clouds[f"DDIM in {steps} steps"], roll).mean() for steps in (1, 5, 10, 50)
    ]
    assert (np.diff(far) < -0.05).all()


def test_09_in_few_steps_the_ode_ends_nearer_to_the_data_than_with_new_noise():
    lesson_09, _, _ = run("09")
    others = lesson_09["others"].reshape(20, 100, 2)
    for steps in (5, 10):
        clouds = [lesson_09["clouds"][f"{k} in {steps} steps"] for k in ("DDIM", "eta = 1")]
        ode, noisy = (cloud.reshape(20, 100, 2) for cloud in clouds)
        parts = zip(ode, noisy, others, strict=True)  # 20 independent estimates without bias
        nearer = [energy_distance(y, z) - energy_distance(x, z) for x, y, z in parts]
        # above 0 by 3 standard errors: by chance, with 19 degrees of freedom, once in 270 times
        assert np.mean(nearer) > 3 * np.std(nearer, ddof=1) / np.sqrt(20)


# 10 backprop


def test_10_the_derivatives_by_hand_are_those_of_a_complex_step():
    lesson_10, _, _ = run("10")
    h = 1e-30  # f(x + ih) = f(x) + ih f'(x), up to h^2: nothing is subtracted, and nothing cancels
    x = np.array([-2.0, 0.0, 1.5, 3.0]) + 1j * h
    np.testing.assert_allclose((x / (1 + np.exp(-x))).imag / h, lesson_10["dy"], atol=32 * EPS)
    moved = lesson_10["d"] + 1j * h * np.eye(4)  # in row j, x_j is moved
    moved = moved - moved.mean(axis=1, keepdims=True)
    n = moved / np.sqrt((moved**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(n.imag.T / h, lesson_10["dn"], atol=64 * EPS * lesson_10["rstd"])


def test_10_the_error_of_a_central_difference_is_truncation_plus_rounding():
    lesson_10, _, _ = run("10")
    h, off, third = lesson_10["hs"], np.abs(lesson_10["off"]), lesson_10["third"]
    # |y^(5)| < 1; and y(x + h) and y(x - h), below 3, each with some four roundings of 2^-53
    bound = h**2 / 6 * abs(third) + h**4 / 120 + 4 * 2**-53 * 3 / h
    assert (off <= bound)[h < 0.1].all()
    assert 1e-6 < h[off.argmin()] < 1e-4 and len(h) <= 100


def test_10_the_convolution_is_linear_in_the_image_and_in_the_weights():
    lesson_10, _, _ = run("10")
    x, w, y, g = (lesson_10[name] for name in "xwyg")
    at = dict(np.ndenumerate(x[0, ..., 0]))
    for i, j in np.ndindex(4, 4):
        products = [at.get((i + k - 1, j + l - 1), 0) * w[k, l, 0, 0] for k, l in np.ndindex(3, 3)]
        assert y[0, i, j, 0] == sum(products)  # whole numbers
    # A linear function is its gradient times its argument. Some 300 products are added up.
    loss, rounding = (g * y).sum(), 300 * EPS * (np.abs(g) * y).sum()
    assert abs((x * lesson_10["grad_x"]).sum() - loss) <= rounding
    assert abs((w * lesson_10["grad_w"]).sum() - loss) <= rounding


# 11 score


def test_11_the_score_of_two_modes_has_the_closed_form():
    lesson_11, _, _ = run("11")
    x, v = lesson_11["x_t"], 0.15**2 + lesson_11["schedule"].noise[5] ** 2
    right = 0.2 / (0.2 + 0.8 * np.exp(-2 * x / v))  # Bayes: the share of the mode at 1, given x
    closed = -(x + 1) / v + right * 2 / v
    np.testing.assert_allclose(lesson_11["from_eps"], closed, atol=100 * EPS * 6 / v)


def test_11_langevin_dynamics_have_the_variance_of_the_map_and_find_the_weights_by_annealing():
    lesson_11, _, _ = run("11")
    for share, variance in lesson_11["measured"].items():
        fixed, a = 1 / (1 - share / 4), 1 - share / 2
        after_60 = fixed + a**120 * (4 - fixed)
        # five standard errors of 20,000 independent chains: by chance once in 1.7 million times
        assert abs(variance - after_60) < 5 * after_60 * np.sqrt(2 / 20_000)
    # At the widest level the grid ends 5.7 deviations out, which loses 1.2e-8 in each of 30 steps.
    assert abs(lesson_11["q"].sum() * lesson_11["dx"] - 1) < 4e-7
    assert 0.2 < lesson_11["mass"] < 0.25 and 0.4 < lesson_11["moved"] < 0.6
    alone = float(lesson_11["views"][3].title.split()[-1])
    # The border of the modes is at v/2 log 4 = 0.03, which moves 0.005 of N(0, 2.4^2) to the left,
    # and the title has two decimals.
    assert abs(alone - 0.5) < 5 * np.sqrt(0.25 / 6000) + 0.005 + 0.005
    assert lesson_11["n"] * (270 + 9 * 30) * 2 <= 1e7 and lesson_11["grid"].size <= 700


# 12 training


def test_12_an_average_of_theta_has_the_variance_of_its_closed_form():
    lesson_12, _, _ = run("12")
    r, d = lesson_12["r"], lesson_12["d"]
    # Cov = V (1 - r)^lag, summed over both steps with the weights (1 - d) d^age, is two geometric
    # series. d^n = 5e-23 is left out.
    closed = r / (2 - r) * (1 - d) / (1 + d) * (1 + d * (1 - r)) / (1 - d * (1 - r))
    assert abs(lesson_12["V_ema"] / closed - 1) < 1000 * EPS * lesson_12["n"]
    assert lesson_12["V_ema"] < lesson_12["V"] / 3


def test_12_each_change_to_the_training_costs_what_the_lesson_says():
    lesson_12, _, _ = run("12")
    curves, by_level = lesson_12["curves"], lesson_12["by_level"]
    excess = {name: ema[-1] for name, (_, ema) in curves.items()}
    by_theta, by_ema = curves["the book"]
    # On five seeds: 0.028 to 0.033, then 0.101 to 0.115 and 0.059 to 0.062.
    assert excess["data times 40"] > 2 * excess["the book"]
    assert excess["inputs unscaled"] > 1.2 * excess["the book"]
    assert by_theta[12:].mean() > 1.1 * by_ema[12:].mean()
    # The bad row: 0.22 to 0.30 without clipping. With it, the excess goes on falling.
    assert curves["no clipping"][1][16:].max() > 3 * by_ema[15] and by_ema[-1] < by_ema[15]
    # On another schedule: 0.058 to 0.067, and told t 0.13 to 0.16.
    assert by_level["t for the level"].mean() > 1.5 * by_level["the book"].mean()
    assert len(lesson_12["runs"]) * lesson_12["steps"] * lesson_12["batch"] <= 2e5
    assert lesson_12["n"] * lesson_12["chains"] <= 4e6


# 13 bits


def test_13_the_masses_of_a_pixel_are_a_code_and_dequantised_costs_the_variance_of_u():
    lesson_13, _, _ = run("13")
    gaussian = statistics.NormalDist(40.3, 1.7)
    cdf = np.array([0.0, *(gaussian.cdf(k + 0.5) for k in range(255)), 1.0])
    near, bits = lesson_13["near"], lesson_13["bits"]
    # The masses near the middle are above 1e-3, and a cdf is rounded to an EPS.
    np.testing.assert_allclose(2.0 ** -bits[near], np.diff(cdf)[near], rtol=1e4 * EPS)
    assert abs((2.0**-bits).sum() - 1) < 256 * EPS
    # E_u -log2 density by 20,000 midpoints, whose error is 1e-10 of the second derivative.
    u = (np.arange(20_000) + 0.5) / 20_000 - 0.5
    levels = np.flatnonzero(near)[:, None] + u
    density = np.exp(-((levels - 40.3) ** 2) / (2 * 1.7**2)) / (1.7 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(lesson_13["dequantised"], -np.log2(density).mean(axis=1), atol=1e-8)
    assert (lesson_13["gap"] > 0).all()


def test_13_a_step_costs_the_loss_of_snr_times_the_error_of_x_0():
    lesson_13, _, _ = run("13")
    t, x_t, digit, schedule = (lesson_13[name] for name in ("t", "x_300", "digit", "schedule"))
    mean, var, var_q = lesson_13["mean"], lesson_13["var"], lesson_13["var_q"]
    # Eq. (13), Kingma et al. 2021, arXiv:2107.00630, and what the learned variance adds.
    snr = (schedule.signal[t - 1 : t + 1] / schedule.noise[t - 1 : t + 1]) ** 2
    of_x_t = np.sqrt(schedule.alpha[t]) * (schedule.noise[t - 1] / schedule.noise[t]) ** 2
    of_x_0 = schedule.signal[t - 1] * schedule.beta[t] / schedule.noise[t] ** 2
    error = digit - (mean - of_x_t * x_t) / of_x_0
    r = var_q / var
    nats = 0.5 * ((snr[0] - snr[1]) * error**2 * r + r - 1 - np.log(r))
    # SNR falls by a hundredth in a step, so the difference loses two digits; 784 terms are added.
    assert abs(nats.sum() / lesson_13["kl"].sum() - 1) < 1e5 * EPS


def test_13_ten_t_of_each_digit_agree_with_every_t_in_each_part():
    lesson_13, _, _ = run("13")
    width, terms, every, part = (lesson_13[name] for name in ("width", "terms", "every", "part"))
    sums = np.array([every[part == j].sum() for j in range(10)])
    errors = np.sqrt(width[:, 0] ** 2 * lesson_13["spread"].sum(axis=1))
    assert (np.abs((width * terms).sum(axis=1) - sums) < 5 * errors).all()
    assert abs(lesson_13["whole"] - 0.988) < 0.001 and lesson_13["few_error"] < 0.03
    assert terms.size + len(lesson_13["x_0"]) <= 150  # passes of an image through the network
    assert (LESSONS / "13_digits.npz").stat().st_size < 25_000


# 14 family


def test_14_the_game_and_the_bounds_have_their_closed_forms():
    lesson_14, _, _ = run("14")
    # Of x ~ p, log p(x) / q(x) = w x + b is N(D2 / 2, D2), with D2 = (m_1 - m_0) C^-1 (m_1 - m_0),
    # and by symmetry the game is twice E log sigmoid of it. Both grids leave tails of 1e-12.
    d2 = (lesson_14["means"][1] - lesson_14["means"][0]) @ lesson_14["w"]
    u = np.linspace(d2 / 2 - 9 * np.sqrt(d2), d2 / 2 + 9 * np.sqrt(d2), 4001)
    weights = np.exp(-((u - d2 / 2) ** 2) / (2 * d2))
    game = 2 * (weights @ -np.log1p(np.exp(-u))) / weights.sum()
    assert abs(lesson_14["value"] - game) < 1e-9
    # An encoder with a tenth of the posterior's variance costs 1/2 (1/10 - 1 + log 10) nats.
    gap = lesson_14["vae"].log_prob(lesson_14["test"]) - lesson_14["elbo"]
    np.testing.assert_allclose(gap, 0.5 * (0.1 - 1 + np.log(10)), atol=1e-12)
    cov = np.cov(lesson_14["data"].T, bias=True)
    np.testing.assert_allclose(lesson_14["cov_x"], cov, atol=1e-12)


def test_14_a_diffusion_bounds_the_roll_more_closely_than_a_gaussian_can():
    lesson_14, printed, _ = run("14")
    n, along, test = lesson_14["n"], lesson_14["along"], lesson_14["test"]
    excess = along + lesson_14["roll"].log_prob(test)  # of the bound, at the same points
    assert excess.mean() > -5 * excess.std() / np.sqrt(n)  # no model is better than the truth
    # On five seeds the bound is 1.67 to 1.77, and the roll's Gaussian 2.84.
    assert along.mean() < lesson_14["vae"].entropy() - 0.5
    assert lesson_14["nats"].mean() < along.mean()  # the value by the ODE, below its bound
    assert lesson_14["log_far"][0] < lesson_14["learned"].log_prob(lesson_14["x"]).min() - 10
    assert lesson_14["p_far"][0] > 0.99 and "1.35092" in printed
    assert n <= 1000 and lesson_14["state"].step * 128 <= 2e5 and lesson_14["schedule"].T <= 60


# 15 mistakes


def measured(lesson_15, k, name):
    """Number k in the run of this name: its mean, its right value, its rows' standard error."""
    _, value, measure = lesson_15["clue"][list(lesson_15["slip"])[k]]
    gap = np.atleast_2d(measure(lesson_15["runs"][name]) - value).mean(axis=1)
    return np.mean(value) + gap.mean(), np.mean(value), gap.std() / np.sqrt(len(gap))


def test_15_each_number_is_right_without_its_slip_and_wrong_with_it():
    lesson_15, _, _ = run("15")
    assert list(lesson_15["slip"]) == list(lesson_15["clue"]) and len(lesson_15["slip"]) == 20
    for k, (name, case) in enumerate(lesson_15["slip"].items()):
        own, right, error = measured(lesson_15, k, case["like"])
        # 5 standard errors: by chance once in 1.7 million. Where nothing is drawn, rounding.
        assert abs(own - right) <= 5 * error + 1000 * EPS
        found, _, error = measured(lesson_15, k, name)
        assert abs(found - right) > 5 * error + 1e-4


def test_15_right_and_wrong_values_are_those_of_the_closed_forms():
    lesson_15, _, _ = run("15")
    u = (np.arange(51) / 50 + 0.008) / 1.008 * np.pi / 2
    ab = np.cos(u) ** 2 / np.cos(u[0]) ** 2
    alpha = np.concatenate([[1.0], np.maximum(ab[1:] / ab[:-1], 0.001)])  # beta is clipped at 0.999
    ab, beta = np.cumprod(alpha), 1 - alpha
    beta_tilde = beta[1:] * (1 - ab[:-1]) / (1 - ab[1:])  # of t = 1, 2, ...
    means, var = lesson_15["means"], lesson_15["roll"].noise ** 2
    x_0 = (means**2).mean() + var
    inside = [
        [0.5 * math.erf((e - m) / math.sqrt(2 * var)) for m in means.ravel()] for e in (1, -1)
    ]
    linear = np.prod(1 - np.linspace(1e-4, 0.02, 50))
    right_and_wrong = {  # the wrong value from x_T ~ N(0, I), for which eps* is x_T at t = T
        0: (0, beta[1]),
        1: (beta[25], beta[25] ** 2),
        4: (np.sqrt(alpha[50]), (1 + beta[50]) / np.sqrt(alpha[50])),
        5: (1, 1 - ab[49] + beta_tilde[49]),
        7: (np.sqrt(ab[50]), np.sqrt(ab[40])),
        8: (0, 1),
        9: (0, 0.5),
        10: (np.sqrt(ab[50]) * x_0, np.sqrt(linear) * x_0),
        11: (1 - np.mean(np.subtract(*inside)), 0),
        13: (ab[25] * x_0 + 1 - ab[25], ab[25] ** 2 * x_0 + (1 - ab[25]) ** 2),
        18: (x_0, 1600 * x_0),
    }
    for k, (right, wrong) in right_and_wrong.items():
        name = list(lesson_15["slip"])[k]
        found, value, error = measured(lesson_15, k, name)
        assert abs(value - right) < 1e-5  # x_T and x_49 have signal left: 1e-6 of a variance
        assert abs(found - wrong) <= 5 * error + 1e-5 * abs(wrong)
    # What the label saves of the loss at t = 25, by other draws, as E (eps_y - eps_star)^2.
    schedule, rng = lesson_15["schedule"], np.random.default_rng(15)
    x_0, eps = lesson_15["left"].sample(20_000, rng, float), rng.standard_normal((20_000, 2))
    x_t = schedule.signal[25] * x_0 + schedule.noise[25] * eps
    saved = ((lesson_15["eps_y"](x_t, 25) - lesson_15["eps_star"](x_t, 25)) ** 2).mean(axis=1)
    for k, right, wrong in ((16, 1.5, 0.5), (17, 1, 0)):  # w = 1/2; labels that tell nothing
        name = list(lesson_15["slip"])[k]
        _, value, measure = lesson_15["clue"][name]
        for rows, factor in ((value, right), (measure(lesson_15["runs"][name]), wrong)):
            found, expected = rows.mean(axis=1), factor * saved
            error = np.hypot(found.std() / len(found) ** 0.5, expected.std() / len(saved) ** 0.5)
            assert abs(found.mean() - expected.mean()) <= 5 * error


def test_15_no_two_slips_give_the_same_numbers():
    """Of the slips in DDPM on the data without labels, by the numbers that all of them have."""
    lesson_15, _, _ = run("15")
    slips = [name for name, case in lesson_15["slip"].items() if case["like"] == "DDPM"]
    numbers = [k for k in range(20) if k not in (16, 17, 19)]  # not those of labels and networks
    found = {name: [measured(lesson_15, k, name) for k in numbers] for name in [*slips, "DDPM"]}
    assert len(slips) == 14
    for one, other in itertools.combinations(found, 2):
        pairs = zip(found[one], found[other], strict=True)
        # Equal numbers differ by 5 standard errors once in 1.7 million times.
        assert any(abs(x - y) > 5 * np.hypot(e, f) + 1e-9 for (x, _, e), (y, _, f) in pairs)


def test_15_two_slips_look_right_and_the_work_is_small():
    lesson_15, printed, _ = run("15")
    runs, metrics = lesson_15["runs"], lesson_15["metrics"]
    _, spread = metrics.real_against_real(lesson_15["sets"])
    for name in ("DDPM", "1 noise in the last step", "13 t off by one"):
        data, samples = (cloud.points for cloud in runs[name].clouds)
        assert abs(metrics.energy_distance(samples, data)) < 3 * spread
    # The bound cannot see noise in the last step, without which there would be no density.
    rows = [line.split() for line in printed.splitlines() if line[2:28].strip() in runs]
    assert rows[0][0] == "DDPM" and rows[5][0] == "1" and rows[0][-1] == rows[5][-1]
    assert lesson_15["n"] * lesson_15["T"] * len(runs) * len(lesson_15["means"]) <= 7e7
    assert len(lesson_15["steps"]) * 128 <= 2e5 and lesson_15["m"] <= 4000


# 16 flow_matching


def test_16_the_mean_velocity_of_the_lines_is_that_of_two_regressions():
    lesson_16, _, _ = run("16")
    # At u = 1/2 a bump N(m, v) gives x_t = (x_0 + eps) / 2 the mean m/2 and the variance (v + 1)/4,
    # and eps - x_0 = 2 x_t - 2 x_0. Given the bump, x_0 is a regression on x_t.
    m, v, x = np.array([-1.2, 0.8]), np.array([0.05, 0.1]), 0.4
    var = (v + 1) / 4
    r = np.array([0.35, 0.65]) * np.exp(-((x - m / 2) ** 2) / var / 2) / np.sqrt(var)
    x_0 = m + v / 2 / var * (x - m / 2)
    expected = 2 * x - 2 * (r * x_0).sum() / r.sum()
    # The lesson's sums have 400 points to a deviation of the posterior, so only rounding differs.
    assert abs(lesson_16["velocity"][24, 0] - expected) < 20_001 * EPS
    assert lesson_16["w"].size <= 2e6 and lesson_16["N"] * 40 <= 2e5


def test_16_flow_matching_and_v_on_the_cosine_schedule_count_levels_alike():
    lesson_16, _, _ = run("16")
    counts, h = lesson_16["counts"], 1e-30  # f(level + ih) = f + ih f', up to h^2
    below = {  # the part of all t whose level is lower
        "flow matching": lambda level: 1 / (1 + np.exp(-level)),
        "v, cosine": lambda level: 2 / np.pi * np.arctan(np.exp(level)),
        "eps, cosine": lambda level: 2 / np.pi * np.arctan(np.exp(level)),
    }
    for name, f in below.items():
        level, count = counts[name]
        odds = np.exp(level)
        # An error of eps is signal times that of the velocity, and signal times that of v.
        weight = {"flow matching": (1 + odds) ** 2, "v, cosine": 1 + odds**2, "eps, cosine": 1.0}
        share = f(level + 1j * h).imag / h
        np.testing.assert_allclose(count, share * weight[name], rtol=1000 * EPS)


# 17 one_step


def test_17_the_flow_map_keeps_the_quantile():
    lesson_17, _, _ = run("17")
    for x_0, x_T in zip(lesson_17["x_0"][:, 0], lesson_17["x_T"][:, 0], strict=True):
        below = 0.35 * statistics.NormalDist(-1.2, math.sqrt(0.05)).cdf(x_0)
        below += 0.65 * statistics.NormalDist(0.8, math.sqrt(0.1)).cdf(x_0)
        assert abs(statistics.NormalDist().cdf(x_T) - below) < 100 * EPS
    # One step along the velocity at T is off by the data's deviation, 1: see the lesson.
    assert lesson_17["off"] < 0.2
    assert lesson_17["n"] * 600 + 1500 * 128 <= 5e5 and lesson_17["m"] <= 1e5


def test_17_n_steps_of_euler_fall_short_by_the_product_of_its_slopes():
    lesson_17, _, _ = run("17")
    for N, short in zip(lesson_17["Ns"], lesson_17["short"], strict=True):
        u = np.arange(1, N + 1) / N
        slope = (u - (1 - u) * 0.09) / ((1 - u) ** 2 * 0.09 + u**2)  # velocity / x_t
        assert abs(short - (1 - np.prod(1 - slope / N) / 0.3)) < 100 * N * EPS
    assert lesson_17["short"][0] == 1 and lesson_17["short"][5] == pytest.approx(0.0585, abs=1e-4)
