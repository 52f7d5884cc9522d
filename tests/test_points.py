import os

import numpy as np
import pytest
from conftest import seeds
from hypothesis import given
from hypothesis import strategies as st

from lab import points, points_file, points_flags, points_shape
from lab.errors import UserError


@pytest.mark.parametrize("name", points.NAMES)
def test_a_named_set_has_zero_mean_and_unit_variance_within_its_standard_errors(name):
    n = 40_000
    x = points.load(name).sample(n, np.random.default_rng(0)).astype(np.float64)
    assert x.shape == (n, 2)
    assert (np.abs(x.mean(axis=0)) < 5 / np.sqrt(n)).all()  # a false alarm in a million
    assert abs((x**2).mean() - 1) < 5 * (x**2).sum(axis=1).std() / 2 / np.sqrt(n)


@pytest.mark.parametrize("name", ["moons", "circles", "8gaussians"])
def test_the_closed_form_of_a_set_is_the_law_of_its_points(name):
    """The entropy, integrated over the plane, is the mean of -log p over points of the set."""
    data = points.load(name)
    log_p = data.exact.log_prob(data.sample(4000, np.random.default_rng(1)).astype(np.float64))
    assert abs(data.exact.entropy() + log_p.mean()) < 5 * log_p.std() / np.sqrt(4000)


def test_more_nodes_along_the_moons_change_nothing(monkeypatch):
    x = points.moons().sample(200, np.random.default_rng(2)).astype(np.float64)
    coarse, on_interval = points.moons().exact, points.on_interval
    monkeypatch.setattr(points, "on_interval", lambda low, high: on_interval(low, high, panels=64))
    fine = points.moons().exact
    assert np.allclose(coarse.score(x), fine.score(x), rtol=1e-9, atol=1e-9)


def test_checkerboard_claims_no_closed_form_and_fills_only_the_dark_squares():
    data = points.load("checkerboard")
    x = data.sample(1000, np.random.default_rng(3)) * np.sqrt(4 / 3)
    assert data.exact is None
    assert (np.floor(x).sum(axis=1) % 2 == 0).all() and np.abs(x).max() <= 2


TEXTS = [
    "1,2\n3,5\n",
    "x,y\n1,2\n3,5\n",
    "# remark\n1 2\n3\t5\n",
    "1;2\r\n3;5\r\n\r\n",
    "\ufeffx y\n1 2\n3 5",
    "# remark\nx,y\n1,2\n3,5\n",
    "x;y\n1,0;2,00\n3,0e0;5",
    "1,0;+2.0\n3;5,\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_csv_is_read_with_or_without_a_header_and_with_any_usual_separator(tmp_path, text):
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    assert np.array_equal(points_file.read(tmp_path / "p.csv"), [[1, 2], [3, 5]])


def test_a_file_keeps_a_fifth_aside_and_gives_samples_back_in_its_own_coordinates(tmp_path):
    x = np.random.default_rng(4).standard_normal((100, 2)) * [5, 0.01] + [1000, -3]
    np.save(tmp_path / "p.npy", x)
    data = points.load(str(tmp_path / "p.npy"))
    rng = np.random.default_rng(5)
    trained, aside = data.sample(5000, rng), data.fresh(20, rng)
    assert len(np.unique(trained, axis=0)) == 80
    assert len(np.unique(aside, axis=0)) == 20 == data.aside
    assert not set(map(tuple, trained)) & set(map(tuple, aside))
    everything = np.concatenate([np.unique(trained, axis=0), aside])
    back = data.to_user(everything)
    assert np.allclose(np.sort(back, axis=0), np.sort(x, axis=0), rtol=1e-5)
    sets = np.concatenate(data.sets(20, rng))
    first = data.sets(20, rng)[0]
    assert len(np.unique(sets, axis=0)) == 100
    assert np.array_equal(np.sort(first, axis=0), np.sort(aside, axis=0))


BAD = {
    "nan.csv": b"1,2\nnan,3\n" + b"1,2\n" * 20,
    "text.csv": b"1,2\nhello,3\n",
    "three.csv": b"1,2,3\n" * 20,
    "ragged.csv": b"1,2\n3\n" * 20,
    "empty.csv": b"",
    "header.csv": b"x,y\n",
    "junk.csv": bytes(range(256)) * 4,
    "junk.npy": bytes(range(256)) * 4,
    "line.csv": b"1,2\n1,3\n" * 20,
    "gap.csv": b"1,,2\n" * 20,
    "underscore.csv": b"1_0,2\n" * 20,
    "huge.csv": b"1e200,2\n1,3\n" * 20,
    "few.csv": b"1,2\n3,5\n",
    "decimal.csv": b"1,5 2,5\n" * 20,
    "thousands.csv": b"1.000,5;2\n" * 20,
    "magic.npy": b"\x93NUMPY\x01\x00",
    "header.npy": b"\x93NUMPY\x01\x00\x06\x00{'a':(",
    "recursive.npy": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000,
    "shape.npy": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2)}".ljust(117)
    + b"\n",
    "words.txt": b"1,2\n",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(UserError) as error:
        points.load(str(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)


BAD_ARRAYS = [
    np.zeros((20, 3)),
    np.zeros(20),
    np.full((20, 2), "a"),
    np.full((20, 2), np.inf),
    np.zeros((0, 2)),
]


@pytest.mark.parametrize("x", BAD_ARRAYS)
def test_a_bad_array_is_refused(tmp_path, x):
    np.save(tmp_path / "p.npy", x)
    with pytest.raises(UserError, match="p.npy"):
        points.load(str(tmp_path / "p.npy"))


def test_a_pickle_is_not_opened(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        points.load(str(tmp_path / "p.npy"))


def test_a_missing_file_a_folder_and_an_unknown_name_are_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("folder.csv", "missing.csv", "spiral"):
        with pytest.raises(UserError, match=name):
            points.load(str(tmp_path / name) if "." in name else name)


def test_far_away_points_keep_their_digits(tmp_path):
    x = np.random.default_rng(6).random((50, 2)) * 100 + [1.7e9, 0]
    np.save(tmp_path / "p.npy", x)
    data = points.load(str(tmp_path / "p.npy"))
    back = data.to_user(data.sample(500, np.random.default_rng(7)))
    assert back.dtype == np.float64 and len(np.unique(back[:, 0])) == 40


BROKEN_FIRST_LINES = [
    "1,2x",
    "1.5,,2",
    "1.2.3,4.5.6",
    "-1e,3",
    "x,1",
    "1_0,2",
    "2024-01-01,x",
    ".5.,y",
]


@pytest.mark.parametrize("first", BROKEN_FIRST_LINES)
def test_a_broken_first_line_of_numbers_is_not_taken_for_a_header(tmp_path, first):
    path = tmp_path / "p.csv"
    path.write_text(f"# remark\n{first}\n" + "1,2\n3,5\n" * 10)
    with pytest.raises(UserError, match="p.csv, line 2: "):
        points_file.read(path)


def test_a_header_stands_before_all_points(tmp_path):
    (tmp_path / "p.csv").write_text("x,y\nx,y\n1,2\n")
    with pytest.raises(UserError, match="line 2"):
        points_file.read(tmp_path / "p.csv")


def test_no_message_names_what_a_user_of_a_demo_does_not_have(tmp_path):
    path = tmp_path / "p.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError) as error:
        points_file.read(path)
    assert "allow_pickle" not in str(error.value) and "p.npy" in str(error.value)


def test_a_file_that_is_no_regular_file_is_not_opened(tmp_path):
    pipe, circle, device = (tmp_path / f"{name}.csv" for name in ("pipe", "circle", "device"))
    os.mkfifo(pipe)
    circle.symlink_to(circle)
    device.symlink_to("/dev/zero")
    for path in (pipe, circle, device):
        with pytest.raises(UserError, match=path.name):
            points.load(str(path))
        data = points_flags.parse("", ["--data", str(path)]).data  # the flag does not look there
        assert data == str(path)


def test_a_link_is_read_by_its_own_ending(tmp_path, monkeypatch):
    (tmp_path / "table.txt").write_text("1,2\n3,5\n" * 10)
    (tmp_path / "p.csv").symlink_to(tmp_path / "table.txt")
    monkeypatch.chdir(tmp_path)
    name = points_flags.parse("", ["--data", "p.csv"]).data
    assert name == str(tmp_path / "p.csv") and points.load(name).aside == 4


# What keeps a network from learning the points of a file


def warned(x, scale="std"):
    figures, *warnings = points_shape.notes(points_shape.of(x), scale)
    assert figures.startswith("standard deviation (") and "\n" not in "".join(warnings)
    return " ".join(warnings)


@given(seeds, st.integers(10, 3000))
def test_normal_points_are_not_warned_of_however_few(seed, n):
    """The largest of 1,000 sets of ten came to 9 interquartile ranges; the limit is 30."""
    assert not warned(np.random.default_rng(seed).standard_normal((n, 2)) * [1e-3, 1e5] + [7, -1])


@pytest.mark.parametrize("name", points.NAMES)
def test_the_built_in_sets_are_not_warned_of(name):
    assert not warned(points.load(name).sample(2000, np.random.default_rng(8)).astype(np.float64))


def test_discrete_values_and_curves_are_not_warned_of():
    rng = np.random.default_rng(9)
    u, normal = 6 * rng.random(2000), rng.standard_normal((2000, 2))
    yes_or_no = np.stack([u > 3, normal[:, 1]], axis=1).astype(np.float64)
    mostly_zero = np.stack([u > 5.4, normal[:, 1]], axis=1).astype(np.float64)
    for x in (np.round(2 * normal), yes_or_no, mostly_zero, np.stack([u, np.sin(u)], axis=1)):
        assert not warned(x)


@pytest.mark.parametrize("axes", [[1, 1], [1, 0], [0, 1]])
def test_an_outlier_is_warned_of_with_what_helps(axes):
    x = np.random.default_rng(10).standard_normal((2000, 2))
    x[7] = 1e4 * np.array(axes)
    assert "outliers" in warned(x) and "--scale robust" in warned(x)
    assert "few samples will reach" in warned(x, "robust") and "--scale" not in warned(x, "robust")


def test_heavy_tails_are_warned_of():
    assert "outliers" in warned(np.random.default_rng(11).standard_cauchy((2000, 2)))


@pytest.mark.parametrize("second, third", [([1, 0], [0, 1]), ([1, 0], [2, 0]), ([1, 1], [2, 2])])
def test_clusters_a_thousand_widths_apart_are_warned_of_and_ten_are_not(second, third):
    rng = np.random.default_rng(12)
    centres = np.array([[0, 0], second, third])[rng.integers(3, size=2000)]
    normal = rng.standard_normal((2000, 2))
    assert "far apart" in warned(normal + 1000 * centres)
    assert not warned(normal + 10 * centres)


def test_robust_scaling_is_not_changed_by_an_outlier_and_is_undone_in_the_samples(tmp_path):
    x = np.random.default_rng(13).standard_normal((2000, 2)) * [5, 0.01] + [1000, -3]
    x[0] = [1e6, 1e3]
    np.save(tmp_path / "p.npy", x)
    data = points.load(str(tmp_path / "p.npy"), scale="robust")
    y = data.sample(20_000, np.random.default_rng(14))
    low, middle, high = np.percentile(y, [25, 50, 75], axis=0)
    # Of 1,600 points: a quartile's standard error is 0.034, and that of 2,000 beside it 0.03.
    assert (np.abs(middle) < 0.2).all() and (np.abs(high - low - 1.349) < 0.3).all()
    assert np.allclose(data.centre, [1000, -3], atol=[0.7, 1.4e-3])
    back = data.to_user(y)
    apart = np.abs(back[:200, None, 0] - x[None, :, 0]).min(axis=1)
    # float32 keeps 24 bits of a coordinate in either system.
    assert (apart <= 2.0**-22 * (np.abs(back[:200, 0]) + 1000)).all()


def test_robust_scaling_needs_a_file_and_an_interquartile_range(tmp_path):
    with pytest.raises(UserError, match="--scale robust: is for files"):
        points_flags.parse("", ["--scale", "robust"])
    x = np.random.default_rng(15).standard_normal((100, 2))
    x[:80, 0] = 3
    np.save(tmp_path / "p.npy", x)
    assert points.load(str(tmp_path / "p.npy")).notes
    with pytest.raises(UserError, match="use --scale std"):
        points.load(str(tmp_path / "p.npy"), scale="robust")
