import numpy as np
import pytest

from lab import points, points_file
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
