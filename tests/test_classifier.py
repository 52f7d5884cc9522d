import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import strict_array
from conftest import EPS, EPS_32, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import classifier
from lab import digit_metrics as metrics
from lab.mnist import Digits, to_model
from npdiff.gradcheck import check_pair, directional_error
from npdiff.nn.params import flatten, leaves, map_leaves, pack

# A difference along a direction of length 1 with h = 1e-5 has an error of order h^2 times the third
# derivative, and rounding of order EPS |loss| / h, some 1e-10; a wrong gradient is wrong by a tenth
# or more. A slope that happens to be small costs digits.
GRADIENT = 1e-5


def blobs(n, seed=0):
    """n images of ten classes, (n, 28, 28), and their labels.

    Class c is a spot of 5 x 5 pixels at the c-th place of a grid, on a noisy background.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, n)
    x = rng.integers(0, 40, (n, 28, 28)).astype(np.uint8)
    for image, c in zip(x, label, strict=True):
        row, column = 3 + 6 * (c // 4), 3 + 6 * (c % 4)
        image[row : row + 5, column : column + 5] = 255
    return x, label


def few_digits(n=100):
    return Digits(*blobs(n), *blobs(20, seed=1), "blobs")


def random_params(rng):
    """A narrow classifier of three classes, in float64, every leaf random."""
    params = classifier.init(rng, width=2, hidden=6, classes=3)
    return map_leaves(lambda a: a.astype(np.float64) + 0.3 * rng.standard_normal(a.shape), params)


# The network and its loss


@given(seeds, st.integers(1, 5), st.integers(1, 4))
def test_cross_entropy_gradient(seed, batch, classes):
    rng = np.random.default_rng(seed)
    z, label = rng.standard_normal((batch, classes + 1)), rng.integers(0, classes + 1, batch)
    forward = partial(classifier.cross_entropy_forward, label=label)

    def backward(grad, cache):
        return classifier.cross_entropy_backward(grad, cache), {}

    assert check_pair(forward, backward, z, rng)["x"] < GRADIENT


@given(seeds, st.integers(1, 5))
def test_cross_entropy_is_its_definition(seed, batch):
    rng = np.random.default_rng(seed)
    z, label = rng.standard_normal((batch, 4)), rng.integers(0, 4, batch)
    loss, _ = classifier.cross_entropy_forward(z, label)
    log_p = [
        math.log(math.exp(row[c]) / sum(map(math.exp, row)))
        for row, c in zip(z.tolist(), label, strict=True)
    ]
    assert loss == pytest.approx(-sum(log_p) / batch, rel=50 * EPS, abs=50 * EPS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits_overflow_nowhere(dtype):
    z = np.array([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        loss, cache = classifier.cross_entropy_forward(z, np.array([2, 1]))
        grad_z = classifier.cross_entropy_backward(1.0, cache)
    assert loss == (2e4 + 0) / 2 and loss.dtype == grad_z.dtype == dtype
    np.testing.assert_array_equal(grad_z, [[0.5, 0, -0.5], [0, 0, 0]])


def test_every_parameter_of_the_classifier_and_its_input_have_their_gradient():
    """One random direction for each leaf: in one of the whole theta a small leaf would be lost."""
    rng = np.random.default_rng(0)
    _, params = pack(random_params(rng))
    x, label = rng.standard_normal((3, 28, 28, 1)), np.array([2, 0, 1])

    def loss_at(x):
        z, cache = classifier.forward(params, x)
        return *classifier.cross_entropy_forward(z, label), cache

    _, loss_cache, cache = loss_at(x)
    grad_z = classifier.cross_entropy_backward(1.0, loss_cache)
    grad_x, grads = classifier.backward(params, cache, grad_z)
    errors = [directional_error(lambda x: loss_at(x)[0], x, grad_x, rng) for _ in range(2)]
    assert min(errors) < GRADIENT
    assert list(grads) == list(params)
    assert all(list(grads[name]) == list(params[name]) for name in params)
    for leaf, grad in zip(leaves(params), leaves(grads), strict=True):
        kept = leaf.copy()

        def loss(value, leaf=leaf):
            leaf[...] = value
            return loss_at(x)[0]

        assert min(directional_error(loss, kept, grad, rng) for _ in range(2)) < GRADIENT
        leaf[...] = kept


def test_a_device_array_is_never_waited_for_and_gives_the_same():
    rng = np.random.default_rng(0)
    params = random_params(rng)
    x, label = rng.standard_normal((2, 28, 28, 1)), np.array([1, 2])

    def gradient(params, x):
        z, cache = classifier.forward(params, x)
        loss, loss_cache = classifier.cross_entropy_forward(z, label)
        grad_z = classifier.cross_entropy_backward(1.0, loss_cache)
        return loss, classifier.backward(params, cache, grad_z)

    loss, (grad_x, grads) = gradient(params, x)
    params, x = map_leaves(strict_array.asarray, params), strict_array.asarray(x)
    with strict_array.no_sync():
        on_device, (grad_x_on_device, grads_on_device) = gradient(params, x)
    assert np.array_equal(on_device.get(), loss) and np.array_equal(grad_x_on_device.get(), grad_x)
    assert np.array_equal(flatten(grads_on_device).get(), flatten(grads))


# Training


def test_an_image_is_moved_by_at_most_two_pixels_along_each_axis_and_every_move_occurs():
    x = np.random.default_rng(0).integers(0, 256, (500, 6, 9)).astype(np.uint8)
    moves = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    seen = set()
    for image, moved in zip(x, classifier.shifted(x, np.random.default_rng(1)), strict=True):
        (move,) = [move for move in moves if np.array_equal(np.roll(image, move, (0, 1)), moved)]
        seen.add(move)
    assert seen == set(moves)  # each of 25 is missed by 500 images with probability 1.4e-9


def test_training_starts_at_log_10_and_lowers_the_loss():
    digits = few_digits(500)
    for step in classifier.train(digits, np.random.default_rng(0), steps=150):
        if step.step == 1:
            # The last layer is 0, so all classes are equally probable.
            assert step.loss == pytest.approx(math.log(10), rel=4 * EPS_32)
            assert step.loss.dtype == np.float32
    assert step.step == 150 and step.loss < math.log(10) / 2
    label = classifier.predicted(step.params, digits.test_x)
    assert label.shape == (20,) and (label == digits.test_label).mean() >= 0.5


def test_pieces_change_nothing(monkeypatch):
    digits, params = few_digits(), classifier.init(np.random.default_rng(0))
    params["last"]["w"] += np.random.default_rng(1).standard_normal((128, 10), dtype=np.float32)
    whole = classifier.features(params, digits.train_x)
    label = classifier.predicted(params, digits.train_x)
    monkeypatch.setattr(classifier, "PIECE", 33)
    assert whole.shape == (100, 128) and whole.dtype == np.float32
    # A feature is a sum of 1,024 terms that are such sums themselves. Their order depends on the
    # size of the product.
    in_pieces, rounding = classifier.features(params, digits.train_x), 1024 * EPS_32
    np.testing.assert_allclose(in_pieces, whole, rtol=0, atol=rounding * np.abs(whole).max())
    z, _ = classifier.forward(params, to_model(digits.train_x))
    assert np.array_equal(label, z.argmax(axis=1)) and len(set(label)) > 1


# The kept classifier


@pytest.fixture
def trainings(monkeypatch):
    """How many steps each training in this test was to take."""
    counted, train = [], classifier.train

    def counting(digits, rng, steps, xp):
        counted.append(steps)
        return train(digits, rng, steps, batch=8, xp=xp)

    monkeypatch.setattr(classifier, "train", counting)
    return counted


def test_a_kept_classifier_is_loaded_and_not_trained_again(tmp_path, trainings):
    digits, folder = few_digits(), tmp_path / "new" / "folder"
    params = classifier.load_or_train(digits, folder, steps=2)
    again = classifier.load_or_train(digits, folder, steps=2)
    assert trainings == [2]
    assert np.array_equal(flatten(params), flatten(again)) and again["last"]["w"].any()
    assert [path.name for path in folder.iterdir()] == ["classifier_of_100.npz"]
    np.load(folder / "classifier_of_100.npz", allow_pickle=False)["theta"]


def test_one_of_more_steps_serves_for_fewer_and_not_the_reverse(tmp_path, trainings):
    for steps in (2, 1, 3, 2):
        classifier.load_or_train(few_digits(), tmp_path, steps)
    assert trainings == [2, 3]


def test_a_damaged_file_is_replaced(tmp_path, trainings):
    digits, path = few_digits(), tmp_path / "classifier_of_100.npz"
    theta = flatten(classifier.load_or_train(digits, tmp_path, steps=1))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    damaged = [b"", whole[:100], whole[: len(whole) // 2], whole[:-1], bytes(flipped), b"no npz"]
    for content in damaged:
        path.write_bytes(content)
        assert np.array_equal(flatten(classifier.load_or_train(digits, tmp_path, steps=1)), theta)
        assert classifier.load(path, *key_and_steps(path)) is not None
    assert len(trainings) == 1 + len(damaged)


def key_and_steps(path):
    with np.load(path) as file:
        return str(file["key"]), int(file["steps"])


def test_another_version_other_labels_and_another_network_are_stale(
    tmp_path, trainings, monkeypatch
):
    digits, path = few_digits(), tmp_path / "classifier_of_100.npz"
    classifier.load_or_train(digits, tmp_path, steps=1)
    monkeypatch.setattr(classifier, "VERSION", classifier.VERSION + 1)
    classifier.load_or_train(digits, tmp_path, steps=1)
    other = dataclasses.replace(digits, train_label=digits.train_label[::-1].copy())
    classifier.load_or_train(other, tmp_path, steps=1)
    assert len(trainings) == 3
    key, steps = key_and_steps(path)
    np.savez(path, theta=np.zeros(5, np.float32), key=key, steps=steps)
    classifier.load_or_train(other, tmp_path, steps=1)
    classifier.load_or_train(other, tmp_path, steps=1)
    assert len(trainings) == 4


def test_where_it_cannot_be_kept_it_is_trained_and_a_line_says_so(tmp_path, trainings, capsys):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        params = classifier.load_or_train(few_digits(), folder, steps=1)
        assert params["last"]["w"].shape == (128, 10)
        progress, warning = capsys.readouterr().out.splitlines()
        assert progress.startswith("training the classifier 1/1")
        assert str(folder) in warning and "not kept" in warning
    assert trainings == [1, 1] and [path.name for path in tmp_path.iterdir()] == ["file"]


# The figures


def with_moments(n, mean, factor, rng):
    """n points of sample mean `mean` and sample covariance factor factor^T, to rounding."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return np.array(mean) + x @ np.array(factor).T


# Covariances have eigenvalues of at most some 100, and the sums have F = 5 terms. A root loses a
# factor sqrt(condition), some 100, of its digits.
FRECHET = 1e4 * 5 * 100 * EPS


@given(seeds, st.integers(2, 5))
def test_frechet_of_covariances_that_commute(seed, F):
    """sum of (m_a - m_b)^2 + (s_a - s_b)^2 along common axes, in whatever way these are turned."""
    rng = np.random.default_rng(seed)
    m_a, m_b = rng.standard_normal((2, F))
    s_a, s_b = rng.uniform(0.1, 3, (2, F))
    axes, _ = np.linalg.qr(rng.standard_normal((F, F)))
    a, b = with_moments(30, m_a, axes * s_a, rng), with_moments(40, m_b, axes * s_b, rng)
    expected = ((m_a - m_b) ** 2).sum() + ((s_a - s_b) ** 2).sum()
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=0, abs=FRECHET)


@given(seeds)
def test_frechet_of_covariances_that_do_not_commute(seed):
    """In two dimensions tr r = sqrt(tr r^2 + 2 det r), here for r^2 = C_a C_b."""
    rng = np.random.default_rng(seed)
    m = rng.standard_normal(2)
    L_a, L_b = (np.diag([1.0, 0.5]) + rng.uniform(-0.3, 0.3, (2, 2)) for _ in range(2))
    C_a, C_b = L_a @ L_a.T, L_b @ L_b.T
    a, b = with_moments(30, [0, 0], L_a, rng), with_moments(40, m, L_b, rng)
    det_of_root = math.sqrt(np.linalg.det(C_a) * np.linalg.det(C_b))
    trace_of_root = math.sqrt(np.trace(C_a @ C_b) + 2 * det_of_root)
    expected = m @ m + np.trace(C_a + C_b) - 2 * trace_of_root
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=0, abs=FRECHET)


@given(seeds, st.integers(2, 30), st.integers(1, 20))
def test_frechet_of_a_set_with_itself_is_0_and_of_a_shifted_one_the_shift(seed, n, F):
    """Also where fewer points than features leave the covariance singular."""
    rng = np.random.default_rng(seed)
    a, shift = rng.standard_normal((n, F)), rng.standard_normal(F)
    rounding = 100 * F * EPS * (1 + (a**2).sum())
    assert abs(metrics.frechet(a, a)) < rounding
    assert abs(metrics.frechet(a, a + shift) - shift @ shift) < rounding * (1 + shift @ shift)


def test_the_floor_of_all_training_digits_is_their_distance():
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((50, 3)), rng.standard_normal((40, 3))
    label = rng.integers(0, 3, 50)
    # Without repeats a draw is the same 50 in another order.
    mean, std = metrics.frechet_floor(train, label, test, label, rng)
    assert mean == pytest.approx(metrics.frechet(train, test), abs=FRECHET) and std < FRECHET


def test_the_floor_draws_as_many_digits_of_each_class_as_were_drawn():
    rng = np.random.default_rng(0)
    train_label, label = np.repeat([0, 1], 100), np.array([0] * 30 + [1] * 10)
    test_label = np.repeat([0, 1], [150, 50])
    train = rng.standard_normal((200, 2)) + 50 * train_label[:, None]
    test = rng.standard_normal((200, 2)) + 50 * test_label[:, None]
    mean, std = metrics.frechet_floor(train, train_label, test, label, rng)
    assert 0 < std < mean < 5
    # With two halves, as the training set has, the mean alone is off by 2 * 12.5^2.
    halves = np.array([0, 1] * 20)
    mean, _ = metrics.frechet_floor(train, train_label, test, halves, rng)
    assert mean > 2 * 12.5**2 / 1.2


def test_histogram_error_is_the_largest_difference_of_shares():
    classes, reference = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 2, 2, 2, 2, 2])
    assert metrics.histogram_error(classes, reference) == 0.625  # of class 2: 0 against 5/8
    assert metrics.histogram_error(np.array([9]), np.array([0])) == 1.0
    assert metrics.histogram_error(np.array([0, 1]), np.array([1, 0, 1, 0])) == 0.0


@settings(max_examples=15)
@given(seeds, st.integers(1, 8), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5))
def test_nearest_is_the_double_loop(seed, n, m, rows, columns):
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(0, 256, (k, 28, 28)).astype(np.uint8) for k in (n, m))
    distance, index = metrics.nearest(x, y, rows, columns)
    expected = np.array([[np.linalg.norm(a / 255 - b / 255) for b in y] for a in x])
    assert distance.shape == index.shape == (n,) and distance.dtype == np.float32
    np.testing.assert_allclose(distance, expected.min(axis=1), rtol=784 * EPS_32)
    np.testing.assert_array_equal(distance, metrics.nearest(x, y)[0])
    at_index = expected[np.arange(n), index]
    np.testing.assert_allclose(at_index, expected.min(axis=1), rtol=784 * EPS_32)


def test_a_training_image_is_nearest_to_itself_at_distance_0():
    y = np.random.default_rng(0).integers(0, 256, (50, 28, 28)).astype(np.uint8)
    distance, index = metrics.nearest(y[::-3], y, rows=4, columns=7)
    assert not distance.any() and np.array_equal(index, np.arange(50)[::-3])


@given(seeds, st.integers(0, 200), st.integers(1, 50), st.booleans())
def test_labels_in_proportion_are_n_in_order_and_less_than_one_off_their_quota(
    seed, n, size, chosen
):
    rng = np.random.default_rng(seed)
    train_label = rng.integers(0, 10, size)
    classes = np.unique(train_label)
    if chosen:
        classes = rng.permutation(classes)[: rng.integers(1, 11)]
    labels = metrics.labels_in_proportion(train_label, n, classes if chosen else None)
    assert labels.shape == (n,) and np.all(np.diff(labels) >= 0) and set(labels) <= set(classes)
    for c in classes:
        quota = n * (train_label == c).sum() / np.isin(train_label, classes).sum()
        assert abs((labels == c).sum() - quota) < 1


@pytest.mark.parametrize(
    "counts, n, expected",
    [
        ([3, 3, 1], 2, [1, 1, 0]),  # quotas 0.86, 0.86, 0.29
        ([1, 1, 1], 2, [1, 1, 0]),  # equal remainders: the smaller classes
        ([7, 5, 2], 5, [2, 2, 1]),  # quotas 2.5, 1.79, 0.71: remainders decide, not sizes
        ([1, 1, 8], 20, [2, 2, 16]),
        ([4, 0, 4], 3, [2, 0, 1]),
    ],
)
def test_labels_in_proportion_round_by_the_largest_remainder(counts, n, expected):
    labels = metrics.labels_in_proportion(np.repeat(np.arange(3), counts)[::-1], n)
    assert np.bincount(labels, minlength=3).tolist() == expected


def test_labels_in_proportion_refuse_a_class_that_is_not_there():
    for classes in ([0, 7], []):
        with pytest.raises(ValueError, match="classes"):
            metrics.labels_in_proportion(np.array([0, 1, 2]), 5, classes)
    assert metrics.labels_in_proportion(np.array([0, 1, 2]), 4, [2]).tolist() == [2] * 4
