"""What README.md says holds: equations, reading order, commands, first breakpoint, example."""

import functools
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
INDEX = re.findall(r"^\| (.*), (arXiv:\S+) \| (.*) \| `([\w.]+)` \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("authors, arxiv, equation, function", INDEX, ids=lambda cell: cell)
def test_the_index_leads_to_a_docstring_with_the_paper_and_the_equation(
    authors, arxiv, equation, function
):
    module, name = function.rsplit(".", 1)
    cited = " ".join(getattr(importlib.import_module(f"npdiff.{module}"), name).__doc__.split())
    assert authors in cited and arxiv in cited
    where = f"Eq. {equation}" if equation.startswith("(") else equation
    assert where.lower() in cited.lower()


def test_the_index_is_not_empty():
    assert len(INDEX) >= 17


def test_every_file_and_folder_that_is_named_exists():
    named = re.findall(r"`((?:npdiff|demos|nn|tests)/[\w/.]*|\w+\.py)`|\]\((demos/[\w/.]+)\)", TEXT)
    assert len(named) > 12
    for path in (a or b for a, b in named):
        folders = (ROOT, ROOT / "npdiff", ROOT / "npdiff" / "nn", ROOT / "demos")
        assert any((folder / path).exists() for folder in folders), path


def test_the_first_breakpoint_is_a_line_of_first_steps():
    line = re.search(r"```python\n(    x_t = .*)\n```", TEXT).group(1)
    number = int(re.search(r"`b (\d+), step == 100`", TEXT).group(1))
    lines = (ROOT / "demos" / "first_steps.py").read_text().splitlines()
    assert lines[number - 1].startswith(line)
    assert len(lines) <= 66


def test_first_steps_prints_what_the_readme_says():
    printed = re.search(r"```\n(step +100 .*)\n```", TEXT).group(1)
    lines = (ROOT / "demos" / "first_steps.py").read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("data = "))
    short = "\n".join(lines[:end]).replace("range(1, steps + 1)", "range(1, 101)")
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "demos")}
    done = subprocess.run(
        [sys.executable, "-c", short], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # The same draws; another processor may round the hundred steps another way.
    words, numbers = (re.compile(pattern) for pattern in (r"[a-z ]+", r"0\.\d+"))
    assert words.findall(printed) == words.findall(done.stdout.strip())
    expected, found = (list(map(float, numbers.findall(t))) for t in (printed, done.stdout))
    assert found == pytest.approx(expected, abs=2e-3)


def test_the_library_example_runs():
    example = re.search(r"```python\n(import numpy.*?)```", TEXT, re.DOTALL).group(1)
    example = example.replace("steps=2000", "steps=20")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "nats; of data -1.35" in done.stdout, done.stderr


def test_the_readme_stays_short():
    assert len(TEXT.splitlines()) <= 180


def test_the_equations_that_are_named_twice_lead_to_different_functions():
    functions = [function for *_, function in INDEX]
    assert len(set(functions)) == len(functions)


@pytest.mark.parametrize("path", ["README.md", "demos/RESULTS.md"])
def test_the_demos_and_flags_of_every_printed_command_exist(path):
    text = (ROOT / path).read_text()
    commands = re.findall(r"python (demos/\w+\.py)((?: --[\w-]+(?: [^\s`|,;)]+)?)*)", text)
    assert len(commands) >= 3
    for demo, flags in commands:
        help_text = flags_of(demo)
        for flag in re.findall(r"--[\w-]+", flags):
            assert flag in help_text, f"{demo} {flag}"


@functools.cache
def flags_of(demo):
    done = subprocess.run([sys.executable, ROOT / demo, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
