"""The pictures: they have the right size, and survive what a bad network can put into them."""

import warnings

import numpy as np
import pytest
from PIL import Image

from lab import draw
from lab.draw import plane

BAD = np.array(
    [[np.nan, 0.0], [np.inf, 1.0], [0.0, -np.inf], [1e30, 1e30], [-50.0, 0.0], [0.3, -3e38]]
)


@pytest.fixture(autouse=True)
def no_warning_escapes():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.fixture
def points():
    """300 points, and among them some that no panel can show."""
    return np.concatenate([np.random.default_rng(0).standard_normal((300, 2)), BAD])


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 6, 5), dtype=np.uint8)


def drift_at(points):
    drift = -points
    drift[:6] = BAD
    return drift


def size_of(path):
    with Image.open(path) as image:
        return image.size


def make_reverse_process(path, points):
    lattice = draw.lattice((-3, 3, -3, 3), 10)
    drift = lattice, drift_at(lattice)
    forward, reverse = [points] * 3, [points.astype(np.float32)] * 3
    columns = [(f"t = {t}", "noise/signal = 1") for t in (0, 5, 10)]
    draw.reverse_process(path, columns, forward, reverse, [None, drift, drift])


def test_reverse_process_has_a_column_for_each_t_and_three_rows(tmp_path, points):
    make_reverse_process(tmp_path / "a.png", points)
    width, height = size_of(tmp_path / "a.png")
    assert 3 * 190 < width < 3 * 210 + 220 and 3 * 190 < height < 3 * 210 + 120


def test_the_longest_arrows_are_those_that_half_of_the_vectors_exceed():
    """The picture says of which length they are, and leaves out what is not a number."""
    vectors = np.array([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [np.nan, 0.0], [np.inf, 1.0]])
    assert plane.unit_of(vectors) == 5.0
    assert plane.in_words(plane.unit_of(vectors)) == "longest arrows: 5 or more"
    assert plane.unit_of(np.zeros((4, 2))) == plane.unit_of(BAD[:3]) == 1.0  # none to draw


@pytest.mark.parametrize("n", [2, 8, 11, 16, 33])
def test_arrows_stand_on_a_centred_lattice_so_coarse_that_they_can_be_read(n):
    points = draw.lattice((-1, 1, -1, 1), n)
    shown = points[plane.every_few(points)]
    side = round(np.sqrt(len(shown)))
    assert n / 3 <= side <= 11 and len(shown) == side**2
    x, y = np.unique(shown[:, 0]), np.unique(shown[:, 1])
    assert len(x) == len(y) == side and np.ptp(np.diff(x)) < 1e-9
    # Even or odd, the arrows leave as much room at both sides, to within a cell of the lattice.
    assert abs(x[0] + x[-1]) <= 2 / n + 1e-9


def test_the_text_around_a_table_makes_room_for_itself(tmp_path, points):
    lattice = draw.lattice((-3, 3, -3, 3), 8)
    for name, column in (("a", ["t = 1"]), ("b", ["t = 1", "noise/signal = 0.1"])):
        draw.score_field(tmp_path / f"{name}.png", [column], [points], lattice, [-lattice])
    (width, one), (same, two) = (size_of(tmp_path / f"{name}.png") for name in "ab")
    assert two == one + plane.LINE and width == same


def test_every_row_of_clouds_has_all_columns(tmp_path, points):
    columns = [["start"], ["samples"]]
    for rows in (1, 2):
        named = {f"{i}": [points, points / 2] for i in range(rows)}
        draw.rows_of_clouds(tmp_path / f"{rows}.png", named, columns, "A note.")
    (width, one), (same, two) = (size_of(tmp_path / f"{rows}.png") for rows in (1, 2))
    assert two == one + 190 + 12 and width == same > 2 * 190


def test_the_same_input_gives_the_same_bytes(tmp_path, points):
    for name in ("a", "b"):
        make_reverse_process(tmp_path / f"{name}.png", points)
        draw.animation(tmp_path / f"{name}.gif", [points, points / 2], [1, 0])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_score_field_shows_the_error_only_where_the_exact_score_is_known(tmp_path, points):
    lattice = draw.lattice((-3, 3, -3, 3), 8)
    learned, exact = [drift_at(lattice), lattice * np.nan], [-lattice, -lattice]
    columns = [["t = 1"], ["t = 2"]]
    draw.score_field(tmp_path / "one.png", columns, [points] * 2, lattice, learned)
    draw.score_field(tmp_path / "two.png", columns, [points] * 2, lattice, learned, exact)
    assert size_of(tmp_path / "two.png")[1] == size_of(tmp_path / "one.png")[1] + 290 + 12


def test_error_map_is_white_below_a_hundredth_and_full_from_one_and_where_there_is_no_number():
    learned = np.array([[0.0, 0.02], [0.0, 0.0], [2.0, 0.0], [np.nan, 0.0]])
    panel = draw.error_map((0, 1, 0, 1), np.zeros((0, 2)), learned, np.zeros((4, 2)), unit=2.0)
    across, down = panel.image.size
    # From the lower left, as in a lattice.
    corners = [panel.image.getpixel((x, y)) for y in (down - 1, 0) for x in (0, across - 1)]
    white, full = (255, 255, 255), (0xD5, 0x60, 0x0F)
    assert corners == [white, white, full, full]


def test_loss_over_t_survives_gaps_and_needs_neither_floor_nor_excess(tmp_path):
    t = np.arange(0, 101)
    loss = 1 / (1 + t)
    loss[3] = np.nan
    draw.loss_over_t(tmp_path / "a.png", t, loss)
    draw.loss_over_t(tmp_path / "b.png", t, loss, loss - 0.001, np.where(t % 2, -1.0, 1e-3))
    draw.loss_over_t(tmp_path / "c.png", t, loss, excess=np.full(101, np.nan))
    sizes = [size_of(tmp_path / f"{name}.png") for name in "abc"]
    assert sizes == [(760, 420), (760, 680), (760, 680)]


VALUES = [
    [0.0, 1.0, 2.0],
    [1.0, 1.0, 1.0],
    [0.0, 0.0, 0.0],
    [np.nan, np.inf, -np.inf],
    [-1e-7, 3e5, 1e12],
]


@pytest.mark.parametrize("y", VALUES)
@pytest.mark.parametrize("log", [False, True])
def test_curves_draw_any_values(tmp_path, y, log):
    series = [draw.Series("a", np.arange(3), np.array(y))]
    draw.curves(tmp_path / "a.png", series, "x_{t}", "10^{3}", log_x=log, log_y=log)
    assert size_of(tmp_path / "a.png") == (760, 420)


TINY = "10^{\u22125}"
LABELS = [
    (draw.Axis(0.0, 1.04), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    (draw.Axis(-2.6, 2.6), ["\u22122", "\u22121", "0", "1", "2"]),
    (draw.Axis(0.0, 5.5e-5), ["0", TINY, *(f"{k} \u00d7 {TINY}" for k in (2, 3, 4, 5))]),
    (draw.Axis(1.0, 1000.0, log=True), ["1", "10", "100", "1000"]),
    (draw.Axis(0.9, 6.0, log=True), ["1", "2", "5"]),
    (draw.Axis(1e-5, 0.1, log=True), [f"10^{{\u2212{k}}}" for k in (5, 4, 3, 2, 1)]),
    (draw.Axis(3.1, 4.6, log=True), ["3.5", "4.0", "4.5"]),
]


@pytest.mark.parametrize("axis, labels", LABELS)
def test_ticks_are_round_numbers_in_one_notation(axis, labels):
    assert draw.tick_labels(axis.ticks()) == labels


def test_axis_places_its_ends_at_0_and_1():
    for axis in (draw.Axis(2.0, 32.0), draw.Axis(2.0, 32.0, log=True)):
        np.testing.assert_allclose(axis.place(np.array([axis.low, axis.high])), [0, 1])
    np.testing.assert_allclose(draw.Axis(2.0, 32.0, log=True).place(np.array([8.0])), 0.5)


def test_dots_lie_at_their_coordinates_and_are_clipped():
    panel = draw.view((-1, 1, -1, 1), 100)
    panel.dots(np.concatenate([BAD, [[0.5, -0.5]]]), "#000000", alpha=1)
    down, across = np.nonzero(np.asarray(panel.image.convert("L")) == 0)
    assert abs(across.mean() - 0.75 * 300) <= 1 and abs(down.mean() - 0.75 * 300) <= 1
    assert np.ptp(across) < 10


def test_dots_at_the_edge_are_cut_and_do_not_come_back_on_the_other_side():
    panel = draw.view((-1, 1, -1, 1), 100)
    panel.dots(np.array([[1.0, 0.0]]), "#000000", alpha=1)
    _, across = np.nonzero(np.asarray(panel.image.convert("L")) == 0)
    assert across.min() > 290


def test_square_around_is_square_and_ignores_the_few_and_the_infinite(points):
    x_low, x_high, y_low, y_high = draw.square_around(points, cut=2)
    assert x_high - x_low == pytest.approx(y_high - y_low) and 4 < x_high - x_low < 8
    assert draw.square_around(np.full((3, 2), np.nan)) == pytest.approx((-1.16, 1.16, -1.16, 1.16))


def test_lattice_is_the_centres_of_equal_cells():
    centres = [[1, 0.5], [3, 0.5], [1, 1.5], [3, 1.5]]
    np.testing.assert_allclose(draw.lattice((0, 4, 0, 2), 2), centres)


def test_grid_keeps_every_pixel_of_the_images(tmp_path, images):
    draw.grid(tmp_path / "a.png", images, columns=4, zoom=3)
    with Image.open(tmp_path / "a.png") as image:
        page = np.asarray(image.convert("RGB"))
    assert page.shape == (20 + 18 + 2 + 18 + 20, 20 + 4 * 15 + 3 * 2 + 20, 3)
    np.testing.assert_array_equal(page[41:58:3, 38:52:3, 0], images[5])  # the second row's second


def test_labels_make_room_for_themselves(tmp_path, images):
    draw.strip(tmp_path / "bare.png", images)
    draw.strip(tmp_path / "labelled.png", images, list("abcdefg"))
    draw.grid(tmp_path / "rows.png", images, 7, row_labels=["guidance 0"])
    names = ("bare", "labelled", "rows")
    bare, labelled, rows = (size_of(tmp_path / f"{name}.png") for name in names)
    assert labelled == (bare[0], bare[1] + 26) and rows[0] > bare[0] + 60 and rows[1] == bare[1]


def test_images_must_be_uint8(tmp_path, images):
    with pytest.raises(ValueError, match="uint8"):
        draw.grid(tmp_path / "a.png", images / 255, 4)


def test_animation_has_a_frame_for_each_cloud_and_holds_the_last(tmp_path, points):
    draw.animation(tmp_path / "a.gif", [points * k for k in (3, 2, 1)], [20, 10, 0])
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 3 and film.size == (360, 384) and film.info["loop"] == 0
        durations = []
        for k in range(3):
            film.seek(k)
            durations.append(film.info["duration"])
    assert durations == [60, 60, 2000]


def test_the_line_below_a_film_grows_by_the_frame_and_not_by_t(tmp_path, points):
    draw.animation(tmp_path / "a.gif", [points] * 5, [1000, 300, 30, 3, 0])
    with Image.open(tmp_path / "a.gif") as film:
        for k in range(5):
            film.seek(k)
            line = np.asarray(film.convert("RGB"), int)[-16, 92:-12]  # (width, 3)
            orange = (line[:, 0] - line[:, 2] > 100).mean()
            assert orange == pytest.approx(k / 4, abs=0.02)


def test_animation_of_images_has_a_frame_for_each_batch(tmp_path, images):
    draw.animation_images(tmp_path / "a.gif", [images, 255 - images], [1, 0], columns=4, zoom=4)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 2


def test_a_grid_of_clouds_has_rows_of_panels_on_the_scale_of_the_first_cloud(tmp_path, points):
    clouds = [draw.Dots("", points, draw.CLOUD), draw.Dots("", 100 + BAD, draw.MODEL)]
    for n in (1, 7, 8):
        named = {f"cloud {k}\nits number": clouds for k in range(n)}
        draw.cloud_grid(tmp_path / f"{n}.png", named, "A caption.")
    (width, one), (same, seven), (_, eight) = (size_of(tmp_path / f"{n}.png") for n in (1, 7, 8))
    assert width == same == 980 and one == seven and 120 < eight - seven < 200
    with Image.open(tmp_path / "1.png") as picture:  # points that lie beyond the panel are left out
        pixels = np.asarray(picture.convert("RGB"), int)
    assert not (pixels[..., 0] - pixels[..., 2] > 100).any()  # orange


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, images):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(self, name, **options):
        name.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        draw.strip(path, images)
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]
