"""The demos as a user runs them: from a shell, stopped, killed, resumed, and given bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mnist_ncsn
import samplers
import three_papers
from lab import checkpoint, draw
from npdiff.nn import mlp
from npdiff.reverse import predictor
from npdiff.sampler import ddim
from npdiff.schedule import linear, uniform_log_snr
from npdiff.train import start

ROOT = Path(__file__).parents[1]
DEMOS = ROOT / "demos"
SMALL = ["--T", 30, "--batch", 16, "--samples", 40]


def command(*flags, demo="swiss_roll"):
    return [sys.executable, str(DEMOS / f"{demo}.py"), *map(str, flags)]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **more}


def run(*flags, cwd, demo="swiss_roll", env=None):
    return subprocess.run(
        command(*flags, demo=demo),
        cwd=cwd,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def output_of(*flags, cwd, demo="swiss_roll", env=None):
    """What a run prints that ends well and prints nothing to stderr."""
    done = run(*flags, cwd=cwd, demo=demo, env=env)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def begin(*flags, cwd, demo="swiss_roll"):
    """Start a run and go on."""
    return subprocess.Popen(
        command(*flags, demo=demo),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def killed_after_its_first_checkpoint(*flags, cwd, out, demo="swiss_roll", seconds=0.0):
    """Start a run that writes to cwd/out, and kill it so long after its first checkpoint."""
    process = begin(*flags, "--out", out, cwd=cwd, demo=demo)
    wait_for((cwd / out / "checkpoint.npz").exists, process)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    assert not (cwd / out / "metrics.json").exists()


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def numbers(folder):
    """What a resumed run must reproduce: all of metrics.json but the clock, and the samples."""
    metrics = metrics_of(folder)
    del metrics["seconds"]
    return metrics, np.load(folder / "samples.npz")["x"]


def same(a, b):
    return numbers(a)[0] == numbers(b)[0] and np.array_equal(numbers(a)[1], numbers(b)[1])


# Points


def test_smoke_run_writes_everything(tmp_path):
    output = output_of("--smoke", "--out", "o", cwd=tmp_path)
    pictures = {"reverse_process.png", "reverse_process.gif", "score_field.png", "loss_over_t.png"}
    files = {path.name for path in (tmp_path / "o").iterdir()}
    assert files == {"metrics.json", "samples.npz", "checkpoint.npz", "run.json"} | pictures
    metrics, x = numbers(tmp_path / "o")
    assert x.shape == (64, 2) and x.dtype == np.float32
    losses = {"loss", "irreducible_loss", "excess", "energy_distance"}
    assert losses | {"signal_T", "prior_kl_nats_per_dimension"} <= metrics.keys()
    assert f"{metrics['loss']:.5f}" in output and "warning: x_T still holds" in output


def test_the_default_of_the_roll_is_ho_et_al_2020(tmp_path):
    output_of("--smoke", "--out", "o", cwd=tmp_path)
    ddpm = dict(predict="eps", schedule="linear", draw_t="uniform", sampler="ddpm")
    assert ddpm.items() <= metrics_of(tmp_path / "o")["settings"].items()


@pytest.mark.parametrize(
    "flags",
    [
        ["--predict", "v", "--sampler", "ddim", "--sampling-steps", 7],
        ["--predict", "x_0", "--schedule", "cosine"],
        ["--predict", "score", "--draw-t", "early"],
    ],
)
def test_every_choice_runs(tmp_path, flags):
    output_of("--smoke", *flags, "--out", "o", "--no-gif", cwd=tmp_path)


def test_a_run_killed_at_any_moment_resumes_to_the_same_numbers(tmp_path):
    flags, whole, cut = (
        [*SMALL, "--steps", 12_000, "--no-gif"],
        tmp_path / "whole",
        tmp_path / "cut",
    )
    output_of(*flags, "--out", "whole", cwd=tmp_path)
    killed_after_its_first_checkpoint(*flags, cwd=tmp_path, out="cut", seconds=0.3)
    kept = cut / "checkpoint.npz"
    written = kept.stat().st_mtime_ns
    process = begin("--resume", "--out", "cut", cwd=tmp_path)
    # The first thing that continued training does is to write its checkpoint.
    wait_for(lambda: kept.stat().st_mtime_ns != written, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130 and "Traceback" not in stderr and "--resume" in stderr
    output_of("--resume", "--out", "cut", cwd=tmp_path)
    assert same(whole, cut)
    (cut / "mine.txt").write_text("a file of the user's")
    output_of("--sample-only", "--out", "cut", cwd=tmp_path)  # the same checkpoint once more
    assert same(whole, cut) and (cut / "mine.txt").exists()


def test_settings_that_contradict_the_checkpoint_are_refused_and_others_are_not(tmp_path):
    output_of("--smoke", "--out", "o", "--no-gif", cwd=tmp_path)
    before = numbers(tmp_path / "o")[1]
    done = run("--resume", "--lr", "0.5", "--out", "o", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "--lr 0.5 contradicts" in done.stderr
    assert np.array_equal(before, numbers(tmp_path / "o")[1])
    flags = ["--samples", 17, "--sampler", "ddim"]
    output_of("--sample-only", *flags, "--out", "o", cwd=tmp_path)
    assert numbers(tmp_path / "o")[1].shape == (17, 2)


def test_a_users_file_gives_samples_in_its_coordinates_and_no_exact_columns(tmp_path):
    x = np.random.default_rng(0).standard_normal((200, 2)) * [3, 0.1] + [500, 7]
    np.savetxt(tmp_path / "mine.csv", x, delimiter=",", header="x,y", comments="")
    output = output_of("--smoke", "--data", "mine.csv", "--out", "o", cwd=tmp_path)
    metrics, samples = numbers(tmp_path / "o")
    assert "irreducible" not in output and not {"irreducible_loss", "excess"} & metrics.keys()
    assert abs(samples[:, 0].mean() - 500) < 5 * 3 and abs(samples[:, 1].mean() - 7) < 5 * 0.1
    (tmp_path / "mine.csv").write_text("1,2\n3,4\n" * 20)
    done = run("--resume", "--out", "o", cwd=tmp_path)
    assert done.returncode == 1 and "mine.csv" in done.stderr and "changed" in done.stderr


BAD = [
    *("--steps 0", "--batch -1", "--samples 0", "--lr 0", "--lr nan", "--lr -1", "--seed -1"),
    *("--seed x", "--T 0", "--T 2.5", "--T 5000", "--T 100000", "--schedule quadratic"),
    *("--predict noise", "--draw-t late", "--sampler euler", "--backend jax", "--data spiral"),
    *("--data missing.csv", "--data three.csv", "--out three.csv", "--out /proc/npdiff"),
    *("--sampling-steps 10", "--sampler ddim --sampling-steps 2000", "--resume", "--sample-only"),
    *("--unknown", "--ste 5", "extra", "--out="),
]


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_ends_in_one_line_before_anything_is_written(tmp_path, flags):
    (tmp_path / "three.csv").write_text("1,2,3\n" * 20)
    done = run(*flags.split(), cwd=tmp_path)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("swiss_roll.py: "), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["three.csv"]


def test_the_flag_predict_reaches_both_training_and_sampling(tmp_path):
    """With a mismatch the excess would be of order 1: v is not eps."""
    flags = ["--predict", "v", "--steps", 600, "--batch", 256, "--samples", 50, "--sampler", "ddim"]
    output_of(*flags, "--no-gif", "--out", "o", cwd=tmp_path)
    metrics, samples = numbers(tmp_path / "o")
    assert metrics["excess"] < 0.05

    # The samples are drawn by the averaged parameters, from the seed's second generator.
    state, schedule = start(mlp.init(np.random.default_rng(0)), "v"), linear(1000)
    checkpoint.load(tmp_path / "o" / "checkpoint.npz", state, np.random.default_rng(0))
    assert not np.allclose(state.ema, state.theta)
    x_T = np.random.default_rng([0, 1]).standard_normal((50, 2), dtype=np.float32)
    predict_eps = predictor(mlp, state.ema_params, schedule, "v")
    *_, step = ddim(predict_eps, x_T, schedule, steps=50)
    assert np.allclose(samples, step.x_prev, rtol=1e-4, atol=1e-4)


def test_an_unfinished_run_is_sampled_with_a_warning(tmp_path):
    flags = [*SMALL, "--steps", 10**8, "--no-gif"]
    killed_after_its_first_checkpoint(*flags, cwd=tmp_path, out="o")
    output = output_of("--sample-only", "--out", "o", cwd=tmp_path)
    assert "warning: " in output and "of 100,000,000 steps" in output
    assert metrics_of(tmp_path / "o")["trained_steps"] < 10**8


def test_help_is_grouped_and_ends_with_examples(tmp_path):
    output = output_of("--help", cwd=tmp_path)
    groups = ("data and process:", "training:", "sampling:", "the run:", "examples:")
    assert [group for group in groups if group not in output] == []


def test_the_likelihood_of_points_is_printed_and_kept(tmp_path):
    output = output_of("--smoke", "--likelihood", "--no-gif", "--out", "o", cwd=tmp_path)
    bound = metrics_of(tmp_path / "o")["likelihood"]
    parts = bound["entropy"] + bound["gap_prior"] + bound["gap_gaussian"]
    parts += bound["perfect_beta"] - bound["perfect_best"] + bound["network_beta"]
    assert parts == pytest.approx(bound["bound_beta"])  # the parts of the gap add up
    assert f"{bound['bound_beta']:.4f}" in output
    assert bound["perfect_best"] <= min(bound["perfect_beta"], bound["perfect_beta_tilde"])


# Digits


def test_mnist_runs_on_the_shipped_digits_resumes_and_samples_from_the_shipped_weights(tmp_path):
    offline = environment(
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        HOME=str(tmp_path),
        NPDIFF_DATA="",
        https_proxy="http://127.0.0.1:9",  # so that no mirror is reached
    )

    def mnist(*flags):
        return output_of(*flags, cwd=tmp_path, demo="mnist", env=offline)

    assert "5,000 shipped digits" in mnist("--smoke", "--out", "o")
    with np.load(tmp_path / "o" / "samples.npz") as file:
        x, label = file["x"], file["label"]
    assert x.shape == (12, 28, 28) and x.dtype == np.uint8 and len(label) == 12
    mnist("--resume", "--out", "o", "--threads", 1)
    assert np.array_equal(x, np.load(tmp_path / "o" / "samples.npz")["x"])
    flags = ["--smoke", "--samples", 4, "--digits", 37, "--sampling-steps", 2, "--no-gif"]
    assert "mnist_weights.npz" in mnist("--sample-only", *flags, "--out", "s")
    assert set(np.load(tmp_path / "s" / "samples.npz")["label"]) == {3, 7}


BAD_FOR_DIGITS = [
    *("mnist --digits 3x", "mnist --guidance -1", "mnist --minutes 0", "mnist --weights no.npz"),
    *("mnist --data-dir no", "mnist --weights no.npz --sample-only", "mnist --sampler langevin"),
    *("mnist --objective ncsn", "mnist --sample-only --weights BOUND", "mnist --predict x_0"),
    *("mnist_bound --T 1", "mnist_bound --guidance 1"),
    *("mnist_bound --sample-only --weights SIMPLE", "mnist_ncsn --predict v"),
    *("mnist_ncsn --likelihood", "mnist_ncsn --sample-only"),
]


@pytest.mark.parametrize("flags", BAD_FOR_DIGITS)
def test_the_demos_of_digits_refuse_bad_input_in_one_line(tmp_path, flags):
    flags = flags.replace("BOUND", str(DEMOS / "mnist_bound_weights.npz"))
    demo, *flags = flags.replace("SIMPLE", str(DEMOS / "mnist_weights.npz")).split()
    done = run(*flags, cwd=tmp_path, demo=demo)
    assert done.returncode in (1, 2) and done.stdout == "", done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{demo}.py: "), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("demo", ["mnist", "mnist_bound"])
def test_the_likelihood_of_digits_is_printed_term_by_term(tmp_path, demo):
    flags = ["--smoke", "--likelihood", "--no-gif", "--out", "o"]
    output = output_of(*flags, cwd=tmp_path, demo=demo)
    bounds = metrics_of(tmp_path / "o")["likelihood"]
    assert len(bounds) == (1 if demo == "mnist_bound" else 3)
    for bound in bounds.values():
        terms = sum(value for name, value in bound.items() if name.startswith("L_"))
        assert terms == pytest.approx(bound["bits_per_dim"])
        assert f"{bound['bits_per_dim']:.4f}" in output


def test_a_network_that_is_not_told_the_class_draws_digits_without_labels(tmp_path):
    output_of("--smoke", "--no-gif", "--out", "o", cwd=tmp_path, demo="mnist_bound")
    with np.load(tmp_path / "o" / "samples.npz") as file:
        assert file.files == ["x"] and file["x"].shape == (12, 28, 28)
    assert "class_agreement" not in metrics_of(tmp_path / "o")


def test_a_run_for_the_bound_resumes_to_the_same_numbers_with_what_its_sampler_of_t_learned(
    tmp_path,
):
    # 200 steps of 8 rows give each of 3 values of t its ten losses, so that t is no longer drawn
    # uniformly.
    flags = ["--smoke", "--T", 3, "--steps", 200, "--batch", 8, "--threads", 1, "--no-gif"]
    output_of(*flags, "--out", "whole", cwd=tmp_path, demo="mnist_bound")
    killed_after_its_first_checkpoint(
        *flags, cwd=tmp_path, out="cut", demo="mnist_bound", seconds=1.0
    )
    output_of("--resume", "--out", "cut", cwd=tmp_path, demo="mnist_bound")
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_the_other_half_of_digits_is_drawn(tmp_path):
    output_of("--smoke", "--out", "o", "--no-gif", cwd=tmp_path, demo="mnist")
    before = (tmp_path / "o" / "samples.npz").read_bytes()
    flags = ["--inpaint", "top", "--digits", 38, "--out", "o"]
    output_of("--sample-only", *flags, cwd=tmp_path, demo="mnist")
    x = np.load(tmp_path / "o" / "inpainted.npz")["x"]
    assert x.shape == (6, 28, 28)  # three draws for each of two digits
    assert (x[:2, :14] == x[2:4, :14]).all() and (x[:2] != x[2:4]).any()
    assert (tmp_path / "o" / "samples.npz").read_bytes() == before


def test_ncsn_learns_digits_resumes_to_the_same_numbers_and_has_every_sampler(tmp_path):
    flags = ["--smoke", "--steps", 60, "--threads", 1, "--no-gif"]
    output = output_of(*flags, "--out", "whole", cwd=tmp_path, demo="mnist_ncsn")
    assert "by langevin, 3 steps" in output
    killed_after_its_first_checkpoint(*flags, cwd=tmp_path, out="cut", demo="mnist_ncsn")
    output_of("--resume", "--out", "cut", cwd=tmp_path, demo="mnist_ncsn")
    assert same(tmp_path / "whole", tmp_path / "cut")
    for sampling in (["--sampler", "ddim", "--guidance", 1], ["--sampler", "ddpm"]):
        flags = ["--weights", "whole/weights.npz", *sampling, "--out", "o"]
        output_of("--sample-only", *flags, cwd=tmp_path, demo="mnist_ncsn")


def test_the_ladder_of_digits_is_the_one_of_which_tests_of_ncsn_show_that_it_ends_in_the_data():
    ladder = mnist_ncsn.SIGMA_L, mnist_ncsn.SIGMA_1, mnist_ncsn.DEFAULTS["T"]
    assert ladder == (0.02, 33.0, 100)
    assert (mnist_ncsn.LANGEVIN_STEPS, mnist_ncsn.LANGEVIN_STEP) == (3, 0.25)


# The others


def test_first_steps_learns_and_draws(tmp_path):
    lines = output_of(demo="first_steps", cwd=tmp_path).splitlines()
    losses = [float(line.split()[3]) for line in lines if line.startswith("step")]
    # At steps 100, 500, 1000, ... A loss of 0.236 is the best, and that of a batch of 512 may
    # stray by a tenth of it. Untrained, the loss is 1.
    assert len(losses) == 7 and max(losses[1:]) < 0.3
    # The reverse process passes through the marginals of the forward one: "t  200   0.312 from the
    # curve   (noised data: 0.316)". Means over 2,000 points, whose distances spread by less than
    # 0.25, differ by less than five standard errors, 0.04; the network's error adds some 0.01.
    rows = [line.split() for line in lines if line.startswith("t ")]
    assert [row[1] for row in rows] == ["999", "500", "200", "100", "50", "20", "1"]
    distances = [(float(row[2]), float(row[-1].rstrip(")"))) for row in rows]
    assert all(abs(reverse - forward) < 0.05 for reverse, forward in distances)
    assert distances[-1][0] < 0.1 < distances[0][0]
    assert (tmp_path / "out" / "first_steps.png").exists()


@pytest.mark.parametrize("demo, pictures", [("samplers", 7), ("three_papers", 2)])
def test_the_smaller_demos_run_and_write_what_they_print(tmp_path, demo, pictures):
    output_of("--smoke", "--out", "o", cwd=tmp_path, demo=demo)
    assert np.isfinite(metrics_of(tmp_path / "o")["loss"])
    assert len(list((tmp_path / "o").glob("*.png"))) == pictures
    assert np.isfinite(np.load(tmp_path / "o" / "samples.npz")["x"]).all()
    assert run("--backend", "abacus", cwd=tmp_path, demo=demo).returncode == 2


@pytest.mark.parametrize("schedule", [linear(1000), uniform_log_snr(40, -4.6, 4.0)])
def test_the_columns_of_three_papers_are_levels_and_the_ends(schedule):
    level = schedule.level[-2::-1]  # after the steps T, T - 1, ..., 1
    clouds = [np.full((3, 2), i) for i in range(len(level))]
    result = three_papers.Result("a", "b", "c", clouds, level, 1, 0.0)
    first, *between, last = (int(cloud[0, 0]) for cloud in three_papers.five_moments(result))
    assert first == 0 and last == schedule.T - 1
    assert len(three_papers.MOMENTS) == 2 + len(between)
    for i, ratio, title in zip(between, (1, 0.3, 0.1), three_papers.MOMENTS[1:], strict=False):
        assert title == [f"noise/signal = {ratio}"]
        # The nearest level: off by half a step of the schedule at most.
        assert abs(level[i] - np.log(ratio)) <= np.abs(np.diff(level[i - 1 : i + 2])).max() / 2


def test_of_several_steps_at_one_level_the_last_is_shown():
    level = np.log([3.0, 1.0, 0.3, 0.1]).repeat(4)
    clouds = [np.full((3, 2), i) for i in range(len(level))]
    result = three_papers.Result("a", "b", "c", clouds, level, 1, 0.0)
    shown = [int(cloud[0, 0]) for cloud in three_papers.five_moments(result)]
    assert shown == [0, 7, 11, 15, 15]


def test_the_ellipses_of_a_step_back_are_those_of_the_draws(tmp_path, monkeypatch):
    views = []
    monkeypatch.setattr(draw, "board", lambda path, shown, caption, columns: views.extend(shown))
    kl = {T: {round(T / 4) / T: 0.5} for T in (4, 10, 40)}
    samplers.draw_non_gaussianity(tmp_path, kl, np.random.default_rng(0))
    assert [view.title for view in views] == [
        f"T = {T}, t = {t}: KL 0.5 nats" for T, t in ((4, 1), (10, 2), (40, 10))
    ]
    for view in views:
        q, *ellipses, x_t = view.marks
        low, high = np.array(view.extent[::2]), np.array(view.extent[1::2])
        assert x_t.points.shape == (1, 2) and (low < x_t.points).all() and (x_t.points < high).all()
        # An ellipse lies in a box of the mean -+ so many standard deviations of each coordinate.
        # Those of the draws have these standard errors, or a tenth more, since they are resampled
        # from some thousands. In 24 comparisons six are exceeded once in a hundred thousand runs.
        n, mean, std = len(q.points), q.points.mean(axis=0), q.points.std(axis=0)
        mean_error = std / np.sqrt(n)
        std_error = ((q.points - mean) ** 2).std(axis=0) / (2 * std * np.sqrt(n))
        for ellipse, deviations in zip(ellipses, (1, 2), strict=True):
            box = np.array([[f(ellipse.x), f(ellipse.y)] for f in (np.min, np.max)])
            assert (np.abs(box.mean(axis=0) - mean) < 6 * mean_error).all()
            half = np.ptp(box, axis=0) / 2 / deviations
            assert (np.abs(half - std) < 6 * std_error + 1e-3 * std).all()  # 181 points of a line


def test_the_benchmark_prints_its_table_with_or_without_a_peer(tmp_path):
    flags = ["--smoke", "--profile", "--json", "rows.json"]
    output = output_of(*flags, cwd=tmp_path, demo="benchmark")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 6 and all(row["ours_ms"] > 0 for row in rows)
    assert all(row.keys() == {"name", "ours_ms", "peer_ms", "ratio"} for row in rows)
    assert "conv2d_backward" in output and "peak memory" in output
