"""The demos as a user runs them: from a shell, stopped, killed, resumed, and given what they cannot use."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mnist_ncsn
from lab import checkpoint
from npdiff import exact
from npdiff.nn import mlp
from npdiff.papers import ncsn
from npdiff.reverse import predictor
from npdiff.sampler import ddim
from npdiff.schedule import linear
from npdiff.train import start

ROOT = Path(__file__).parents[1]
SMALL = ["--T", "30", "--batch", "16", "--samples", "40"]


def command(*flags, demo="swiss_roll"):
    return [sys.executable, str(ROOT / "demos" / f"{demo}.py"), *map(str, flags)]


def run(*flags, cwd, demo="swiss_roll"):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        command(*flags, demo=demo),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def numbers(folder):
    """What must be the same after a resumption: all of metrics.json but the clock, and the samples."""
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["seconds"]
    return metrics, np.load(folder / "samples.npz")["x"]


def same(a, b):
    return numbers(a)[0] == numbers(b)[0] and np.array_equal(numbers(a)[1], numbers(b)[1])


def test_smoke_run_writes_everything(tmp_path):
    done = run("--smoke", "--out", "o", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    names = {
        "metrics.json",
        "samples.npz",
        "checkpoint.npz",
        "reverse_process.png",
        "reverse_process.gif",
        "score_field.png",
        "loss_over_t.png",
    }
    assert {p.name for p in (tmp_path / "o").iterdir()} == names
    metrics, x = numbers(tmp_path / "o")
    assert x.shape == (64, 2) and x.dtype == np.float32
    assert {
        "loss",
        "irreducible_loss",
        "excess",
        "energy_distance",
        "signal_T",
        "prior_kl_nats_per_dimension",
    } <= metrics.keys()
    assert f"{metrics['loss']:.5f}" in done.stdout and "warning: x_T still holds" in done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ["--predict", "v", "--sampler", "ddim", "--sampling-steps", 7],
        ["--predict", "x_0", "--schedule", "cosine"],
    ],
)
def test_every_choice_runs(tmp_path, flags):
    assert run("--smoke", *flags, "--out", "o", "--no-gif", cwd=tmp_path).returncode == 0


def test_a_run_killed_at_any_moment_resumes_to_the_same_numbers(tmp_path):
    flags = [*SMALL, "--steps", 12_000, "--no-gif"]
    assert run(*flags, "--out", "whole", cwd=tmp_path).returncode == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    kept = tmp_path / "cut" / "checkpoint.npz"
    process = subprocess.Popen(
        command(*flags, "--out", "cut"), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    while not kept.exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    written = kept.stat().st_mtime_ns
    process = subprocess.Popen(
        command("--resume", "--out", "cut"),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while (
        kept.stat().st_mtime_ns == written
    ):  # training goes on: the first thing that it does is to write
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130 and "Traceback" not in said and "--resume" in said
    done = run("--resume", "--out", "cut", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "mine.txt").write_text("a file of the user's")
    assert (
        run("--sample-only", "--out", "cut", cwd=tmp_path).returncode == 0
    )  # and so does a second look at the same checkpoint
    assert same(tmp_path / "whole", tmp_path / "cut") and (tmp_path / "cut" / "mine.txt").exists()


def test_settings_that_contradict_the_checkpoint_are_refused_and_others_are_not(tmp_path):
    assert run("--smoke", "--out", "o", "--no-gif", cwd=tmp_path).returncode == 0
    before = numbers(tmp_path / "o")[1]
    done = run("--resume", "--lr", "0.5", "--out", "o", cwd=tmp_path)
    assert (
        done.returncode == 1
        and "--lr 0.5 contradicts" in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert np.array_equal(before, numbers(tmp_path / "o")[1])
    assert (
        run(
            "--sample-only", "--samples", 17, "--sampler", "ddim", "--out", "o", cwd=tmp_path
        ).returncode
        == 0
    )
    assert numbers(tmp_path / "o")[1].shape == (17, 2)


def test_a_users_file_gives_samples_in_its_coordinates_and_no_exact_columns(tmp_path):
    x = np.random.default_rng(0).standard_normal((200, 2)) * [3, 0.1] + [500, 7]
    np.savetxt(tmp_path / "mine.csv", x, delimiter=",", header="x,y", comments="")
    done = run("--smoke", "--data", "mine.csv", "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics, samples = numbers(tmp_path / "o")
    assert "irreducible" not in done.stdout and not {"irreducible_loss", "excess"} & metrics.keys()
    assert abs(samples[:, 0].mean() - 500) < 5 * 3 and abs(samples[:, 1].mean() - 7) < 5 * 0.1
    (tmp_path / "mine.csv").write_text("1,2\n3,4\n" * 20)
    done = run("--resume", "--out", "o", cwd=tmp_path)
    assert done.returncode == 1 and "mine.csv" in done.stderr and "changed" in done.stderr


BAD = [
    ["--steps", "0"], ["--batch", "-1"], ["--samples", "0"], ["--T", "0"], ["--T", "2.5"], ["--lr", "0"], ["--lr", "nan"], ["--lr", "-1"],
    ["--seed", "-1"], ["--seed", "x"], ["--schedule", "quadratic"], ["--predict", "noise"], ["--sampler", "euler"], ["--backend", "jax"],
    ["--data", "spiral"], ["--data", "missing.csv"], ["--data", "three.csv"], ["--sampling-steps", "10"],
    ["--sampler", "ddim", "--sampling-steps", "2000"], ["--out", "three.csv"], ["--out", "/proc/npdiff"], ["--resume"], ["--sample-only"],
    ["--unknown"], ["--T", "5000"], ["--T", "100000"], ["--out", ""], ["--ste", "5"], ["extra"],
]  # fmt: skip


@pytest.mark.parametrize("flags", BAD, ids=" ".join)
def test_bad_input_ends_in_one_line_before_anything_is_written(tmp_path, flags):
    (tmp_path / "three.csv").write_text("1,2,3\n" * 20)
    done = run(*flags, cwd=tmp_path)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("swiss_roll.py: "), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["three.csv"]


def test_first_steps_learns_and_draws(tmp_path):
    done = run(demo="first_steps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [
        float(line.split()[3]) for line in done.stdout.splitlines() if line.startswith("step")
    ]
    assert (
        len(losses) == 6 and max(losses[1:]) < 0.3
    )  # 0.236 is the best; a batch of 512 may stray by a tenth of it; untrained 1.0
    assert (tmp_path / "out" / "first_steps.png").exists()


def test_the_flag_predict_reaches_both_training_and_sampling(tmp_path):
    """With a mismatch the excess would be of order 1: v is not eps."""
    flags = [
        "--predict",
        "v",
        "--steps",
        600,
        "--batch",
        256,
        "--samples",
        50,
        "--sampler",
        "ddim",
        "--no-gif",
    ]
    assert run(*flags, "--out", "o", cwd=tmp_path).returncode == 0
    assert numbers(tmp_path / "o")[0]["excess"] < 0.05

    # The samples are drawn by the averaged parameters, from the seed's second generator.
    state, rng, chain = (
        start(mlp.init(np.random.default_rng(0))),
        np.random.default_rng([0, 1]),
        linear(1000),
    )
    checkpoint.load(tmp_path / "o" / "checkpoint.npz", state, np.random.default_rng(0))
    assert not np.allclose(state.ema, state.theta)
    x_T = rng.standard_normal((50, 2), dtype=np.float32)
    *_, step = ddim(predictor(mlp, state.ema_params, chain, "v"), x_T, chain, steps=50)
    assert np.allclose(numbers(tmp_path / "o")[1], step.x_prev, rtol=1e-4, atol=1e-4)


def test_an_unfinished_run_is_sampled_with_a_word(tmp_path):
    flags = [*SMALL, "--steps", 10**8, "--no-gif"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(*flags, "--out", "o"), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    while not (tmp_path / "o" / "checkpoint.npz").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = run("--sample-only", "--out", "o", cwd=tmp_path)
    assert done.returncode == 0 and "of 100,000,000 steps" in done.stdout, done.stderr
    assert numbers(tmp_path / "o")[0]["trained_steps"] < 10**8


def test_help_is_grouped_and_ends_with_examples(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert [
        word
        for word in ("data and process:", "training:", "sampling:", "the run:", "examples:")
        if word not in done.stdout
    ] == []


def test_mnist_smoke_run_with_the_shipped_digits_resumes_and_samples_from_shipped_weights(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "NPDIFF_DATA": "",
    }
    environment |= {
        "https_proxy": "http://127.0.0.1:9",
        "OPENBLAS_NUM_THREADS": "1",
    }  # no mirror is reached

    def mnist(*flags):
        done = subprocess.run(
            command(*flags, demo="mnist"),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return done.stdout

    assert "5,000 shipped digits" in mnist("--smoke", "--out", "o")
    first = {name: np.load(tmp_path / "o" / "samples.npz")[name] for name in ("x", "label")}
    assert (
        first["x"].shape == (12, 28, 28)
        and first["x"].dtype == np.uint8
        and len(first["label"]) == 12
    )
    mnist("--resume", "--out", "o", "--threads", 1)
    assert np.array_equal(first["x"], np.load(tmp_path / "o" / "samples.npz")["x"])
    out = mnist(
        "--sample-only",
        "--smoke",
        "--samples",
        4,
        "--digits",
        "37",
        "--sampling-steps",
        2,
        "--out",
        "s",
        "--no-gif",
    )
    assert "mnist_weights.npz" in out and set(np.load(tmp_path / "s" / "samples.npz")["label"]) == {
        3,
        7,
    }


BAD_FOR_DIGITS = [
    *("mnist --digits 3x", "mnist --guidance -1", "mnist --minutes 0", "mnist --weights no.npz"),
    *("mnist --data-dir no", "mnist --weights no.npz --sample-only", "mnist --sampler langevin"),
    *("mnist --objective ncsn", "mnist --sample-only --weights BOUND", "mnist --predict x_0"),
    *(
        "mnist_bound --T 1",
        "mnist_bound --guidance 1",
        "mnist_bound --sample-only --weights SIMPLE",
    ),
    *("mnist_ncsn --predict v", "mnist_ncsn --likelihood", "mnist_ncsn --sample-only"),
]


@pytest.mark.parametrize("flags", BAD_FOR_DIGITS)
def test_the_demos_of_digits_refuse_bad_input_in_one_line(tmp_path, flags):
    flags = flags.replace("BOUND", str(ROOT / "demos" / "mnist_bound_weights.npz"))
    demo, *flags = flags.replace("SIMPLE", str(ROOT / "demos" / "mnist_weights.npz")).split()
    done = run(*flags, cwd=tmp_path, demo=demo)
    assert done.returncode in (1, 2) and done.stdout == "", done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{demo}.py: "), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("demo, pictures", [("samplers", 7), ("three_papers", 2)])
def test_the_smaller_demos_run_and_write_what_they_print(tmp_path, demo, pictures):
    done = run("--smoke", "--out", "o", cwd=tmp_path, demo=demo)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert np.isfinite(metrics["loss"]) and len(list((tmp_path / "o").glob("*.png"))) == pictures
    assert np.isfinite(np.load(tmp_path / "o" / "samples.npz")["x"]).all()
    assert run("--backend", "abacus", cwd=tmp_path, demo=demo).returncode == 2


def test_the_likelihood_of_points_is_printed_and_kept(tmp_path):
    done = run("--smoke", "--likelihood", "--no-gif", "--out", "o", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    ledger = json.loads((tmp_path / "o" / "metrics.json").read_text())["likelihood"]
    parts = (
        ledger["entropy"]
        + ledger["gap_prior"]
        + ledger["gap_gaussian"]
        + ledger["perfect_beta"]
        - ledger["perfect_best"]
    )
    assert parts + ledger["network_beta"] == pytest.approx(
        ledger["bound_beta"]
    )  # the gap taken apart adds up
    assert f"{ledger['bound_beta']:.4f}" in done.stdout and ledger["perfect_best"] <= min(
        ledger["perfect_beta"], ledger["perfect_beta_tilde"]
    )


@pytest.mark.parametrize("demo", ["mnist", "mnist_bound"])
def test_the_likelihood_of_digits_is_printed_term_by_term(tmp_path, demo):
    flags = ["--smoke", "--likelihood", "--no-gif", "--out", "o"]
    done = run(*flags, cwd=tmp_path, demo=demo)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    ledgers = json.loads((tmp_path / "o" / "metrics.json").read_text())["likelihood"]
    assert len(ledgers) == (1 if demo == "mnist_bound" else 3)
    for ledger in ledgers.values():
        terms = sum(value for name, value in ledger.items() if name.startswith("L_"))
        assert terms == pytest.approx(ledger["bits_per_dim"])
        assert f"{ledger['bits_per_dim']:.4f}" in done.stdout


def test_a_run_for_the_bound_resumes_to_the_same_numbers_with_what_its_sampler_of_t_learned(
    tmp_path,
):
    # 200 steps of 8 rows: enough for each of 3 values of t to have its ten losses, so t is no longer drawn uniformly.
    flags = ["--smoke", "--T", 3, "--steps", 200, "--batch", 8, "--threads", 1, "--no-gif"]
    done = run(*flags, "--out", "whole", cwd=tmp_path, demo="mnist_bound")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    process = subprocess.Popen(
        command(*flags, "--out", "cut", demo="mnist_bound"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    while not (tmp_path / "cut" / "checkpoint.npz").exists():
        time.sleep(0.01)
    time.sleep(1.0)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    done = run("--resume", "--out", "cut", cwd=tmp_path, demo="mnist_bound")
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_the_other_half_of_digits_is_drawn(tmp_path):
    assert run("--smoke", "--out", "o", "--no-gif", cwd=tmp_path, demo="mnist").returncode == 0
    before = (tmp_path / "o" / "samples.npz").read_bytes()
    done = run(
        "--sample-only",
        "--inpaint",
        "top",
        "--digits",
        "38",
        "--out",
        "o",
        cwd=tmp_path,
        demo="mnist",
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    drawn = np.load(tmp_path / "o" / "inpainted.npz")
    assert (
        drawn["x"].shape == (6, 28, 28)
        and (drawn["x"][:2, :14] == drawn["x"][2:4, :14]).all()
        and (drawn["x"][:2] != drawn["x"][2:4]).any()
    )
    assert (tmp_path / "o" / "samples.npz").read_bytes() == before


def test_ncsn_learns_digits_resumes_to_the_same_numbers_and_has_every_way_back(tmp_path):
    flags = ["--smoke", "--steps", 60, "--threads", 1, "--no-gif"]
    done = run(*flags, "--out", "whole", cwd=tmp_path, demo="mnist_ncsn")
    assert done.returncode == 0 and done.stderr == "" and "by langevin, 3 steps" in done.stdout, (
        done.stderr
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(*flags, "--out", "cut", demo="mnist_ncsn"),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    while not (tmp_path / "cut" / "checkpoint.npz").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert run("--resume", "--out", "cut", cwd=tmp_path, demo="mnist_ncsn").returncode == 0
    assert same(tmp_path / "whole", tmp_path / "cut")
    for sampling in (["--sampler", "ddim", "--guidance", 1], ["--sampler", "ddpm"]):
        done = run(
            "--sample-only",
            "--weights",
            "whole/weights.npz",
            *sampling,
            "--out",
            "o",
            cwd=tmp_path,
            demo="mnist_ncsn",
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr


def test_the_dynamics_of_digits_keep_the_variance_and_end_in_the_data():
    """On N(m, s^2) a step multiplies the deviation from m by 1 - step / 2v, v = s^2 + sigma^2, and adds the variance `step`."""
    m, s, n, steps = 0.7, 0.5, 50_000, mnist_ncsn.LANGEVIN_STEPS
    chain, rng = ncsn.ladder(100, mnist_ncsn.SIGMA_L, mnist_ncsn.SIGMA_1), np.random.default_rng(0)
    mean, var = 0.0, chain.noise[-1] ** 2
    for sigma in chain.noise[:0:-1]:
        for _ in range(steps):
            step, v = mnist_ncsn.LANGEVIN_STEP * sigma**2, s**2 + sigma**2
            mean, var = (
                m + (1 - step / (2 * v)) * (mean - m),
                (1 - step / (2 * v)) ** 2 * var + step,
            )
    share = s**2 / v  # of the last denoising, x_0_hat = m + share (x - m)
    x = chain.noise[-1] * rng.standard_normal((n, 1))
    seen = list(
        mnist_ncsn.langevin(exact.Gaussian([m], [[s**2]]).predictor(chain), x, chain, rng, steps)
    )
    assert [step.t_prev for step in seen] == list(range(99, -1, -1))
    mean, var, x_0 = m + share * (mean - m), share**2 * var, seen[-1].x_prev
    assert abs(x_0.mean() - mean) < 5 * math.sqrt(var / n) and abs(
        x_0.var() / var - 1
    ) < 5 * math.sqrt(2 / n)
    assert (
        mean == pytest.approx(m, abs=0.01) and s**2 < var < 1.3 * s**2
    )  # three steps a level leave a surplus of 26%


def test_the_benchmark_prints_its_table_with_or_without_a_peer(tmp_path):
    done = run("--smoke", "--profile", "--json", "rows.json", cwd=tmp_path, demo="benchmark")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 6 and all(
        row.keys() == {"name", "ours_ms", "peer_ms", "ratio"} and row["ours_ms"] > 0 for row in rows
    )
    assert "conv2d_backward" in done.stdout and "peak memory" in done.stdout


def test_langevin_dynamics_end_with_the_last_noise_taken_out():
    """Of data at one point m the score is (m - x) / sigma^2, and the last x + sigma^2 score is m itself."""
    chain, m = ncsn.ladder(5, mnist_ncsn.SIGMA_L, 1.0), np.full((3, 2), 0.3)
    predict_eps = lambda x, t: (x - m) / chain.noise[t]  # noqa: E731
    *before, last = mnist_ncsn.langevin(
        predict_eps, np.ones((3, 2)), chain, np.random.default_rng(0), steps=2
    )
    np.testing.assert_allclose(last.x_prev, m, atol=1e-12)
    assert (last.t, last.t_prev, len(before)) == (1, 0, 4) and np.abs(last.x_t - m).min() > 1e-6
