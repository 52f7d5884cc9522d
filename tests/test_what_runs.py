"""What one reads is what runs: no demo, and no worker, puts anything into a module of the book.

Each demo runs in its smallest form in an interpreter of its own. After it every name of every
module of the book must be bound to the object of before, and every function must be the one that
its file defines. A parser alone (tests/test_house.py) would miss what goes in through a parameter.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import probe_net
import pytest

from npdiff import fast, reverse, schedule
from npdiff.nn import conv, mlp
from npdiff.nn.params import pack

TESTS = Path(__file__).parent
DEMOS = TESTS.parent / "demos"

# The smallest form of each demo, and the lessons, which have no flags.
RUNS = {path: ["--smoke"] for path in sorted(DEMOS.glob("*.py"))} | {
    path: [] for path in [DEMOS / "first_steps.py", *sorted(DEMOS.glob("lessons/*.py"))]
}

# argv: a demo and its flags.
PROGRAM = """
import runpy, sys
import probe_net

def names():
    return {
        (module.__name__, name): value
        for module in probe_net.book()
        for name, value in vars(module).items()
        if not name.startswith("__")
    }

sys.argv = sys.argv[1:]
sys.path.insert(0, demos)
def insides(bound):
    return {key: (f.__code__, f.__defaults__) for key, f in bound.items() if hasattr(f, "__code__")}

before = names()
insides_before = insides(before)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
after = names()
changed = [key for key in {*before, *after} if before.get(key) is not after.get(key)]
changed += [key for key, kept in insides(before).items() if kept != insides_before[key]]
wrong, count = probe_net.look()
assert not changed and not wrong, (changed, wrong)
print(f"{len(before)} names are bound as before, {count} as their files say")
"""


def run(path: Path, flags: list[str], folder: Path) -> subprocess.CompletedProcess:
    """A demo, in an interpreter that looks at the book before it and after it."""
    program = f"demos = {str(DEMOS)!r}\n{PROGRAM}"
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(path), *flags]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_after_a_demo_every_name_of_the_book_is_what_it_was(path, tmp_path):
    done = run(path, RUNS[path], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "names are bound as before" in done.stdout


@pytest.mark.parametrize(
    "swap",
    [
        "conv.conv2d_forward = print",
        "conv.conv2d_forward.__code__ = (lambda *arguments: None).__code__",
        "conv.group_norm_forward.__defaults__ = (0.1,)",
        "conv.new_name = print",
        "del conv.conv2d_forward",
    ],
)
def test_a_demo_that_swaps_is_seen(swap, tmp_path):
    demo = tmp_path / "swapping.py"
    demo.write_text(f"from npdiff.nn import conv\n{swap}\n")
    done = run(demo, [], tmp_path)
    assert done.returncode == 1 and "AssertionError" in done.stderr


def small_unet():
    """A U-Net's parameters, and a batch of 5 for two workers in pieces of 2."""
    rng = np.random.default_rng(0)
    theta, params = pack(probe_net.init(rng, classes=3, width=8))
    theta += 0.1 * rng.standard_normal(theta.size, dtype=np.float32)
    x, level = rng.standard_normal((5, 8, 8, 1), dtype=np.float32), np.zeros(5, np.float32)
    return params, x, level, np.array([0, 1, 2, probe_net.NO_CLASS, 0])


def look_in_workers():
    """How many names of the book are wrong, and how many were looked at, for each row of a batch.

    Once after a forward pass, and once more after a backward pass, a pass without a cache, and a
    prediction with guidance.
    """
    params, x, level, label = small_unet()
    engine = fast.engine(probe_net, threads=2, rows=2)
    out, cache = engine.net.forward(params, x, level, label)
    engine.net.backward(params, cache, out)
    engine.forward_net.forward(params, x, level, label)
    predict_eps = reverse.predictor(
        engine.forward_net, params, schedule.linear(10), guidance=1.0, label=label
    )
    predict_eps(x, 5)
    again, _ = engine.net.forward(params, x, level, label)
    return np.concatenate([out, again])[:, 0, :2, 0].T


def test_in_the_workers_every_name_of_the_book_is_what_its_file_says():
    wrong, count = look_in_workers()
    assert (wrong == 0).all() and (count == probe_net.look()[1]).all()
    assert probe_net.look() == ([], count[0])  # and here


def test_a_swap_in_the_workers_is_seen(monkeypatch):
    monkeypatch.setenv("PROBE_SWAPS", "1")
    wrong, _ = look_in_workers()
    assert (wrong >= 1).all()


def test_a_swap_here_is_seen(monkeypatch):
    monkeypatch.setattr(conv, "conv2d_forward", lambda *arguments: None)
    monkeypatch.setattr(mlp, "residual_forward", conv.conv2d_backward)
    wrong, count = probe_net.look()
    assert wrong == ["npdiff.nn.conv.conv2d_forward", "npdiff.nn.mlp.residual_forward"]
    assert count > 300
