"""The algorithm is seen in the demos: a report draws and prints, and neither trains nor samples."""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lab import digits_report, draw, points, points_flags, points_report
from npdiff.papers import ncsn
from npdiff.schedule import linear

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


# What a picture shows, and what it says that it shows.


def report_of_digits(label, test_label, n):
    """A report with n drawn digits whose pixels are their numbers, and real ones from 200 on."""
    x = np.arange(n, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    digits = SimpleNamespace(test_label=np.array(test_label))
    digits.test_x = np.full((len(test_label), 28, 28), 200, np.uint8)
    digits.test_x += np.arange(len(test_label), dtype=np.uint8)[:, None, None]
    return SimpleNamespace(label=None if label is None else np.array(label), x=x, digits=digits)


def test_real_digits_stand_above_drawn_ones_of_the_same_class():
    test_label = [3, 1, 2, 1, 3, 2, 2, 1, 3, 0]
    report = report_of_digits([1, 1, 1, 2, 2, 2, 2, 3, 3, 3], test_label, 10)
    real, drawn, columns = digits_report.Report.real_and_drawn(report)
    assert columns == 3 and len(real) == 2 * columns and len(drawn) == 3 * columns
    assert (np.array(test_label)[real].reshape(-1, 3) == [1, 2, 3]).all()
    assert (report.label[drawn].reshape(-1, 3) == [1, 2, 3]).all()
    assert len({*real}) == len(real) and len({*drawn}) == len(drawn)


def test_digits_drawn_without_labels_stand_below_real_ones_too():
    report = report_of_digits(None, [0] * 30, 12)
    real, drawn, columns = digits_report.Report.real_and_drawn(report)
    assert (columns, len(real), len(drawn)) == (10, 20, 12)


@pytest.mark.parametrize("label", [[1, 1, 2, 2, 2], None])
def test_the_picture_of_digits_says_which_are_real_and_which_drawn(monkeypatch, tmp_path, label):
    report = report_of_digits(label, [2, 1, 2, 1, 0, 1], 5)
    report.args, report.digits.train_x = SimpleNamespace(out=tmp_path), report.digits.test_x
    report.real_and_drawn = lambda: digits_report.Report.real_and_drawn(report)
    pages = {}

    def look(path, images, columns, column_labels=(), row_labels=()):
        pages[path.name] = images, columns, column_labels, row_labels

    monkeypatch.setattr(draw, "grid", look)
    digits_report.Report.draw_samples(report)
    images, columns, column_labels, row_labels = pages["samples.png"]
    assert len(row_labels) == -(-len(images) // columns)
    assert list(column_labels) == ([] if label is None else ["1", "2"])
    of_row = np.repeat(row_labels, columns)[: len(images)]
    assert set(of_row) == {"real", "drawn"}
    assert ((images[:, 0, 0] >= 200) == (of_row == "real")).all()


@pytest.mark.parametrize("schedule", [linear(1000), ncsn.ladder(10, 0.01, 50.0)])
def test_the_title_of_a_column_names_t_and_the_noise(schedule):
    report = SimpleNamespace(schedule=schedule)
    assert points_report.Report.title(report, 0) == ("t = 0", "noise/signal = 0")
    for t in (1, schedule.T // 2, schedule.T):
        name, noise = points_report.Report.title(report, t)
        ratio = schedule.noise[t] / schedule.signal[t]
        assert name == f"t = {t}"
        # Two digits: rounded by less than one in twenty.
        assert float(noise.removeprefix("noise/signal = ")) == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("draw_t, words", [("uniform", "uniformly"), ("early", "small t more")])
def test_a_run_says_how_t_was_drawn_for_each_irreducible_loss(tmp_path, capsys, draw_t, words):
    flags = ["--smoke", "--no-gif", "--draw-t", draw_t, "--out", str(tmp_path / "o")]
    args, rng = points_flags.parse("", flags), np.random.default_rng(0)
    data = points.load("swiss_roll")
    report = points_report.Report(args, data, linear(args.T), rng, np)
    args.marker.close()  # as cli.run does at the end of a run
    loss = report.irreducible_loss(np.full(50, args.T))
    report.judge_losses(data.exact.predictor(report.schedule))
    lines = capsys.readouterr().out.splitlines()
    how = next(i for i, line in enumerate(lines) if line.startswith("training draws t"))
    assert words in lines[how] and f"irreducible loss is {loss:.4f}" in lines[how + 1]
    table = next(i for i, line in enumerate(lines) if "irreducible  " in line)
    assert "each t counted once" in lines[table - 1]
    assert report.metrics["irreducible_loss_in_training"] == loss
