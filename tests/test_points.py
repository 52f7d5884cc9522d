import _data as data
import numpy as np
import pytest

from lab.errors import UserError


@pytest.mark.parametrize("name", data.NAMES)
def test_a_named_set_has_zero_mean_and_unit_variance_within_its_standard_errors(name):
    n = 40_000
    x = data.points(name).sample(n, np.random.default_rng(0)).astype(np.float64)
    assert x.shape == (n, 2)
    assert (np.abs(x.mean(axis=0)) < 5 / np.sqrt(n)).all()  # a false alarm in a million
    assert abs((x**2).mean() - 1) < 5 * (x**2).sum(axis=1).std() / 2 / np.sqrt(n)


@pytest.mark.parametrize("name", ["moons", "circles", "8gaussians"])
def test_the_closed_form_of_a_set_is_the_law_of_its_points(name):
    """The entropy integrated over the plane is the mean of -log p over the points, and a curve's nodes are dense enough."""
    points = data.points(name)
    log_p = points.exact.log_prob(points.sample(4000, np.random.default_rng(1)).astype(np.float64))
    assert abs(points.exact.entropy() + log_p.mean()) < 5 * log_p.std() / np.sqrt(4000)


def test_more_nodes_along_the_moons_change_nothing(monkeypatch):
    x = data.moons().sample(200, np.random.default_rng(2)).astype(np.float64)
    coarse, fine = data.moons().exact, None
    on_interval = data.on_interval
    monkeypatch.setattr(data, "on_interval", lambda low, high: on_interval(low, high, panels=64))
    fine = data.moons().exact
    assert np.allclose(coarse.score(x), fine.score(x), rtol=1e-9, atol=1e-9)


def test_checkerboard_claims_no_closed_form_and_fills_only_the_dark_squares():
    points = data.points("checkerboard")
    x = points.sample(1000, np.random.default_rng(3)) * np.sqrt(4 / 3)
    assert points.exact is None
    assert (np.floor(x).sum(axis=1) % 2 == 0).all() and np.abs(x).max() <= 2


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n3,5\n",
        "x,y\n1,2\n3,5\n",
        "# remark\n1 2\n3\t5\n",
        "1;2\r\n3;5\r\n\r\n",
        "\ufeffx y\n1 2\n3 5",
    ],
)
def test_a_csv_is_read_with_or_without_a_header_and_with_any_usual_separator(tmp_path, text):
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    assert np.array_equal(data.read(tmp_path / "p.csv"), [[1, 2], [3, 5]])


def test_a_file_keeps_a_fifth_aside_and_gives_samples_back_in_its_own_coordinates(tmp_path):
    x = np.random.default_rng(4).standard_normal((100, 2)) * [5, 0.01] + [1000, -3]
    np.save(tmp_path / "p.npy", x)
    points = data.points(str(tmp_path / "p.npy"))
    rng = np.random.default_rng(5)
    trained, aside = points.sample(5000, rng), points.fresh(20, rng)
    assert (
        len(np.unique(trained, axis=0)) == 80
        and len(np.unique(aside, axis=0)) == 20 == points.aside
    )
    assert not set(map(tuple, trained)) & set(map(tuple, aside))
    everything = np.concatenate([np.unique(trained, axis=0), aside])
    back = points.to_user(everything)
    assert np.allclose(np.sort(back, axis=0), np.sort(x, axis=0), rtol=1e-5)
    sets = np.concatenate(points.sets(20, rng))
    assert len(np.unique(sets, axis=0)) == 100 and np.array_equal(
        np.sort(points.sets(20, rng)[0], axis=0), np.sort(aside, axis=0)
    )


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
        data.points(str(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((20, 3)),
        np.zeros(20),
        np.full((20, 2), "a"),
        np.full((20, 2), np.inf),
        np.zeros((0, 2)),
    ],
)
def test_a_bad_array_is_refused(tmp_path, x):
    np.save(tmp_path / "p.npy", x)
    with pytest.raises(UserError, match="p.npy"):
        data.points(str(tmp_path / "p.npy"))


def test_a_pickle_is_not_opened(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        data.points(str(tmp_path / "p.npy"))


def test_a_missing_file_a_folder_and_an_unknown_name_are_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("folder.csv", "missing.csv", "spiral"):
        with pytest.raises(UserError, match=name):
            data.points(str(tmp_path / name) if "." in name else name)


def test_far_away_points_keep_their_digits(tmp_path):
    x = np.random.default_rng(6).random((50, 2)) * 100 + [1.7e9, 0]
    np.save(tmp_path / "p.npy", x)
    points = data.points(str(tmp_path / "p.npy"))
    back = points.to_user(points.sample(500, np.random.default_rng(7)))
    assert back.dtype == np.float64 and len(np.unique(back[:, 0])) == 40
