"""The lessons: each runs once, the two sides of every "=" agree, and its numbers are derived again.

A lesson's variables are what a reader sees in a debugger, and what these tests look at.
"""

import ast
import contextlib
import functools
import io
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from lab import lesson

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
    assert len(source.splitlines()) <= (170 if path.stem.startswith("15") else 135)


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


# 03 gaussian_step


# 04 bound


# 05 four_names


# 06 irreducible


# 07 variance


# 08 schedule


# 09 sampling


# 10 backprop


# 11 score


# 12 training


# 13 bits


# 14 family


# 15 mistakes
