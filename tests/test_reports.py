"""The algorithm is seen in the demos: a report draws and prints, and neither trains nor samples."""

import ast
from pathlib import Path

import pytest

LAB = Path(__file__).parents[1] / "demos" / "lab"
REPORTS = sorted(LAB.glob("*_report.py"))

# Whatever trains or samples lies in these modules. From them only types may be imported.
ALGORITHMS = ("npdiff.train", "npdiff.sampler", "npdiff.optim", "npdiff.fast")


def algorithms_imported(source: str) -> list[str]:
    """The functions of ALGORITHMS, and these modules themselves, that a source imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [
        name
        for name in names
        if name in ALGORITHMS
        or (name.startswith(tuple(f"{module}." for module in ALGORITHMS)) and not is_type(name))
    ]


def is_type(name: str) -> bool:
    return name.rpartition(".")[2][0].isupper()


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_report_neither_trains_nor_samples(path):
    assert algorithms_imported(path.read_text(encoding="utf-8")) == []


def test_there_are_reports_of_points_of_digits_and_of_the_likelihood():
    names = {path.stem for path in REPORTS}
    assert {"points_report", "digits_report", "likelihood_report"} <= names


@pytest.mark.parametrize(
    "line, names",
    [
        ("from npdiff.train import State, gradient, train", ["gradient", "train"]),
        ("from npdiff.sampler import Predictor, Step, ddim", ["ddim"]),
        ("from npdiff import __version__, likelihood, sampler", ["sampler"]),
        ("import npdiff.train", ["train"]),
        ("def f():\n    from npdiff.fast import engine", ["engine"]),
        ("from npdiff.train import State", []),
    ],
)
def test_an_import_of_training_or_sampling_is_seen(line, names):
    assert [name.rpartition(".")[2] for name in algorithms_imported(line)] == names
