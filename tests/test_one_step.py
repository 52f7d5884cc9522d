"""demos/one_step.py: what it writes, and the exact map that its rows stand beside."""

import json

import numpy as np
import pytest
from conftest import seeds
from hypothesis import given, settings
from test_demos import output_of, run

import one_step
from npdiff import exact
from npdiff.papers import flow_matching

LEARNED = ["reflow", "progressive", "consistency", "consistency_training", "mean_flow"]


def test_it_runs_and_writes_one_step_samples_from_one_noise(tmp_path):
    printed = output_of("--smoke", "--out", "o", cwd=tmp_path, demo="one_step")
    samples = dict(np.load(tmp_path / "o" / "samples.npz"))
    n = one_step.SMOKE.samples
    assert set(samples) == {"noise", "exact", *LEARNED}
    for name in ("noise", *LEARNED):
        assert samples[name].shape == (n, 2) and np.isfinite(samples[name]).all()
    m, steps = one_step.SMOKE.exact, one_step.SMOKE.exact_steps
    assert samples["exact"].shape == (m, 2) and samples["exact"].dtype == np.float64
    end = flow_matching.exact_map(one_step.ROLL, samples["noise"][:m], steps)
    np.testing.assert_array_equal(samples["exact"], end)

    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert np.isfinite(metrics["loss"])  # of the teacher
    table = metrics["table"]
    ddim = [f"teacher, DDIM, {k} steps" for k in (4, 16, 64)]
    assert [*table] == ["the exact map", "teacher, DDIM, 1 step", *ddim, *LEARNED, "real data"]
    assert table["the exact map"]["rms_to_exact_map"] == 0.0
    assert [table[name]["evaluations"] for name in LEARNED] == [1] * 5
    assert [table[name]["evaluations"] for name in ddim] == [4, 16, 64]
    for name in LEARNED:  # the columns, from the samples alone
        off = np.linalg.norm(samples[name][:m] - end, axis=1)
        assert table[name]["rms_to_exact_map"] == pytest.approx(np.sqrt((off**2).mean()), rel=1e-5)
        assert f"\n{name} " in printed
    assert set(metrics["straightness"]) == {"the teacher", "after reflow"}
    assert len(list((tmp_path / "o").glob("*.png"))) == 3
    assert run("--backend", "abacus", cwd=tmp_path, demo="one_step").returncode == 2


@given(seeds)
@settings(max_examples=10)
def test_the_exact_map_of_a_gaussian_is_linear(seed):
    rng = np.random.default_rng(seed)
    mean, deviations = rng.normal(size=2), rng.uniform(0.3, 2.0, size=2)
    data = exact.Gaussian(mean, np.diag(deviations**2))
    x_T = rng.standard_normal((20, 2))
    # The velocity is linear, so each path keeps its number of deviations from the mean.
    ends = mean + deviations * x_T
    coarse, fine = (flow_matching.exact_map(data, x_T, steps) for steps in (100, 200))
    error, finer = np.abs(coarse - ends), np.abs(fine - ends)
    # Heun's method is of order 2: its error at 200 steps is a third of how far it moved from 100,
    # up to terms of order 3, which are smaller by about 1/200 over the shortest deviation squared.
    np.testing.assert_allclose(fine, ends, atol=np.abs(fine - coarse).max() / 2)
    assert error.max() < 5e-3 and finer.max() < error.max() / 3


def test_the_exact_map_of_the_roll_has_converged():
    x_T = np.random.default_rng(0).standard_normal((100, 2), dtype=np.float32)
    coarse, fine = (flow_matching.exact_map(one_step.ROLL, x_T, T) for T in (100, 200))
    # Of order 2, so what is left at 200 steps is about a third of the change.
    assert np.linalg.norm(fine - coarse, axis=1).max() / 3 < 1e-3
