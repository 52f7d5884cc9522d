import errno
import gzip
import hashlib
import io
import os
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from lab import mnist
from lab.errors import UserError

SHIPPED = Path(__file__).parents[1] / "demos" / "mnist_5000.npz"
NAMES = list(mnist.SHA256)
IMAGES = NAMES[0]


def idx(magic: int, values: np.ndarray) -> bytes:
    """The format of the four files: a magic number, the sizes and the values."""
    return np.array([magic, *values.shape], ">u4").tobytes() + values.tobytes()


RNG = np.random.default_rng(0)
TRAIN_X, TEST_X = (RNG.integers(256, size=(n, 28, 28), dtype=np.uint8) for n in (6, 3))
TRAIN_LABEL, TEST_LABEL = (RNG.integers(10, size=n, dtype=np.uint8) for n in (6, 3))
RAW = {
    "train-images-idx3-ubyte": idx(2051, TRAIN_X),
    "train-labels-idx1-ubyte": idx(2049, TRAIN_LABEL),
    "t10k-images-idx3-ubyte": idx(2051, TEST_X),
    "t10k-labels-idx1-ubyte": idx(2049, TEST_LABEL),
}
GZ = {name: gzip.compress(raw) for name, raw in RAW.items()}


class Mirrors:
    """Takes the place of urlopen.

    An address answers with the bytes, or raises the error, that it was given. Any other address
    cannot be reached.
    """

    def __init__(self) -> None:
        self.answers: dict[str, bytes | BaseException | io.BytesIO] = {}
        self.asked: list[str] = []

    def put(self, mirror: int, contents: dict[str, bytes]) -> None:
        address = mnist.MIRRORS[mirror]
        self.answers |= {f"{address}{name}.gz": data for name, data in contents.items()}

    def urlopen(self, url: str, timeout: float) -> io.BytesIO:
        assert timeout == 20
        self.asked.append(url)
        offline = urllib.error.URLError(OSError(errno.ENETUNREACH, "Network is unreachable"))
        answer = self.answers.get(url, offline)
        if isinstance(answer, BaseException):
            raise answer
        return io.BytesIO(answer) if isinstance(answer, bytes) else answer


@pytest.fixture(autouse=True)
def mirrors(tmp_path, monkeypatch):
    """An empty home folder, the hashes of the small files, and mirrors that a test can fill."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NPDIFF_DATA", raising=False)
    hashes = {name: hashlib.sha256(raw).hexdigest() for name, raw in RAW.items()}
    monkeypatch.setattr(mnist, "SHA256", hashes)
    mirrors = Mirrors()
    monkeypatch.setattr(mnist.urllib.request, "urlopen", mirrors.urlopen)
    return mirrors


def place(folder: Path, compressed: bool = True, names: list[str] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if compressed:
            (folder / f"{name}.gz").write_bytes(GZ[name])
        else:
            (folder / name).write_bytes(RAW[name])
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_all(digits: mnist.Digits) -> None:
    assert np.array_equal(digits.train_x, TRAIN_X) and np.array_equal(digits.test_x, TEST_X)
    assert np.array_equal(digits.train_label, TRAIN_LABEL)
    assert np.array_equal(digits.test_label, TEST_LABEL)
    assert digits.train_x.dtype == np.uint8
    assert digits.train_label.dtype == digits.test_label.dtype == np.int64


def assert_shipped(digits: mnist.Digits, *reasons: str) -> None:
    """The shipped digits, and a note of one line with the reasons and with what to do."""
    assert digits.train_x.shape == (4500, 28, 28) and digits.test_x.shape == (500, 28, 28)
    advice = (*NAMES, str(mnist.cache_folder()), "--data-dir")
    for text in ("5,000 shipped digits", "last 50 of each class", *reasons, *advice):
        assert text in digits.note
    assert "\n" not in digits.note


def refusal(data_dir: Path | None) -> str:
    with pytest.raises(UserError) as refused:
        mnist.digits(data_dir, SHIPPED)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("where", ["data_dir", "$NPDIFF_DATA", "$XDG_CACHE_HOME", "~/.cache"])
def test_the_files_are_found_in_each_place_compressed_or_not(
    tmp_path, monkeypatch, mirrors, where, compressed
):
    places = {
        "$XDG_CACHE_HOME": tmp_path / "cache/npdiff",
        "~/.cache": tmp_path / "home/.cache/npdiff",
    }
    folder = place(places.get(where, tmp_path / "own"), compressed)
    if where == "$NPDIFF_DATA":
        monkeypatch.setenv("NPDIFF_DATA", str(folder))
    digits = mnist.digits(folder if where == "data_dir" else None, SHIPPED)
    assert_all(digits)
    assert digits.note.endswith(f"from {folder}") and not mirrors.asked


def test_an_earlier_place_is_taken_before_a_later_one(tmp_path, monkeypatch):
    given, named, cache, home = (
        place(tmp_path / name) for name in ("given", "named", "cache/npdiff", "home/.cache/npdiff")
    )
    monkeypatch.setenv("NPDIFF_DATA", str(named))
    assert mnist.digits(given, SHIPPED).note.endswith(str(given))
    for folder in (named, cache, home):
        assert mnist.digits(None, SHIPPED).note.endswith(str(folder))
        for name in NAMES:
            (folder / f"{name}.gz").unlink()
    assert_shipped(mnist.digits(None, SHIPPED), str(named), str(cache), str(home))


def test_without_xdg_cache_home_the_cache_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert mnist.look_up_order() == [tmp_path / "home/.cache/npdiff"] == [mnist.cache_folder()]


def flipped(data: bytes, at: int, bits: int = 1) -> bytes:
    """The data with some bits of one byte flipped."""
    return bytes(byte ^ (bits if i == at else 0) for i, byte in enumerate(data))


SIZE = len(GZ[IMAGES])
WRONG_GZ = [
    *(GZ[IMAGES][:length] for length in (0, 1, 5, 12, SIZE // 2, SIZE - 1)),
    *(flipped(GZ[IMAGES], at) for at in (0, 2, 500, SIZE - 6)),
    GZ[NAMES[2]],
    GZ[IMAGES] + b"more",
    b"<html>404</html>",
]
WRONG = [
    flipped(RAW[IMAGES], len(RAW[IMAGES]) // 2),  # a pixel
    flipped(RAW[IMAGES], 0),  # the magic number
    flipped(RAW[IMAGES], 3, bits=2),
    b"",
    RAW[IMAGES][:-1],
]


@pytest.mark.parametrize(
    "name, data",
    [*((f"{IMAGES}.gz", data) for data in WRONG_GZ), *((IMAGES, data) for data in WRONG)],
)
@pytest.mark.parametrize("given", [True, False])
def test_a_wrong_file_is_refused_by_name_and_left_as_it_is(tmp_path, mirrors, name, data, given):
    folder = place(tmp_path / "cache/npdiff", names=NAMES[1:])
    (folder / name).write_bytes(data)
    before = files(folder)
    message = refusal(folder if given else None)
    assert str(folder / name) in message and "remove it" in message
    assert (folder / name).read_bytes() == data and files(folder) == before and not mirrors.asked


def test_a_wrong_file_is_refused_before_the_missing_ones_are_downloaded(tmp_path, mirrors):
    (place(tmp_path / "cache/npdiff", names=[]) / IMAGES).write_bytes(b"wrong")
    assert IMAGES in refusal(None) and not mirrors.asked


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (place(tmp_path / "own", names=NAMES[1:]) / IMAGES).mkdir()
    assert str(tmp_path / "own" / IMAGES) in refusal(tmp_path / "own")


@pytest.mark.parametrize("present", [0, 3])
def test_a_data_dir_that_lacks_files_is_refused_with_the_four_names(tmp_path, mirrors, present):
    place(tmp_path / "cache/npdiff")  # not taken: the user named another folder
    place(tmp_path / "own", names=NAMES[:present])
    message = refusal(tmp_path / "own")
    assert all(text in message for text in (str(tmp_path / "own"), *NAMES)) and not mirrors.asked
    assert "no_such" in refusal(tmp_path / "no_such")


def test_a_download_is_kept_and_found_the_next_time(tmp_path, mirrors, capsys):
    mirrors.put(0, GZ)
    digits = mnist.digits(None, SHIPPED)
    assert_all(digits)
    assert digits.note.endswith("from the mirrors")
    assert files(tmp_path / "cache/npdiff") == sorted(f"{name}.gz" for name in NAMES)
    assert len(mirrors.asked) == 4
    assert capsys.readouterr().out.count("downloaded ") == 4
    assert_all(mnist.digits(None, SHIPPED))
    assert len(mirrors.asked) == 4


def test_only_what_is_missing_is_downloaded(tmp_path, mirrors):
    place(tmp_path / "cache/npdiff", names=NAMES[:2])
    mirrors.put(0, GZ)
    assert_all(mnist.digits(None, SHIPPED))
    assert mirrors.asked == [f"{mnist.MIRRORS[0]}{name}.gz" for name in NAMES[2:]]


@pytest.mark.parametrize(
    "first",
    [
        TimeoutError("timed out"),
        urllib.error.URLError(TimeoutError("timed out")),
        urllib.error.HTTPError(mnist.MIRRORS[0], 403, "Forbidden", None, None),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        mnist.http.client.IncompleteRead(b"", 5),
        GZ[IMAGES][:-9],
        b"<html>sign in</html>",
    ],
    ids=lambda first: type(first).__name__,
)
def test_where_the_first_mirror_fails_the_second_is_asked(mirrors, first):
    mirrors.put(0, {IMAGES: first})
    mirrors.put(1, GZ)
    assert_all(mnist.digits(None, SHIPPED))
    assert mirrors.asked[:2] == [f"{mirror}{IMAGES}.gz" for mirror in mnist.MIRRORS]


def test_offline_the_shipped_digits_are_used_and_nothing_is_left_behind(tmp_path, mirrors, capsys):
    mirror_names = ("ossci-datasets.s3.amazonaws.com", "storage.googleapis.com")
    assert_shipped(mnist.digits(None, SHIPPED), "Network is unreachable", *mirror_names, IMAGES)
    assert len(mirrors.asked) == 2 and files(tmp_path / "cache/npdiff") == []
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("downloaded")] == []


FAILURES = [
    (TimeoutError("timed out"), "timed out"),
    (b"", "not MNIST's"),
    (GZ[IMAGES][:-9], "truncated"),
]


@pytest.mark.parametrize("answer, reason", FAILURES)
def test_mirrors_that_fail_leave_the_shipped_digits(tmp_path, mirrors, answer, reason):
    for mirror in (0, 1):
        mirrors.put(mirror, {IMAGES: answer})
    assert_shipped(mnist.digits(None, SHIPPED), reason)
    assert files(tmp_path / "cache/npdiff") == []


class Breaks(io.BytesIO):
    """An answer that ends in the middle, by an error or by the user's Ctrl-C."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(GZ[IMAGES][:100])
        self.error = error

    def read(self, size: int = -1) -> bytes:
        piece = super().read(size)
        if not piece:
            raise self.error
        return piece


def test_an_interrupted_download_leaves_only_whole_files_behind(tmp_path, mirrors):
    mirrors.put(0, {**GZ, NAMES[2]: Breaks(KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        mnist.digits(None, SHIPPED)
    assert files(tmp_path / "cache/npdiff") == sorted(f"{name}.gz" for name in NAMES[:2])
    mirrors.put(0, GZ)
    assert_all(mnist.digits(None, SHIPPED))
    assert len(mirrors.asked) == 5  # the first two are not asked for again


def test_a_connection_that_breaks_in_the_middle_counts_as_a_failure(mirrors):
    mirrors.put(0, {IMAGES: Breaks(TimeoutError("The read operation timed out"))})
    mirrors.put(1, GZ)
    assert_all(mnist.digits(None, SHIPPED))


def failing_write(monkeypatch, error: OSError, on: str) -> None:
    """From now on files cannot be opened, or cannot be written whole.

    Permissions would not do: the tests may run as a user whom these do not stop.
    """

    def write_bytes(path, data):
        if on == "write":
            with open(path, "wb") as file:
                file.write(b"the first piece")
        raise error

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


READ_ONLY = [(errno.EROFS, "open"), (errno.EACCES, "open")]
FULL = [(errno.ENOSPC, "write"), (errno.EDQUOT, "write")]


@pytest.mark.parametrize("number, on", READ_ONLY + FULL)
def test_where_the_cache_cannot_be_written_to_a_download_is_used_and_a_line_says_so(
    tmp_path, monkeypatch, mirrors, capsys, number, on
):
    folder = place(tmp_path / "cache/npdiff", names=NAMES[:3])
    mirrors.put(0, GZ)
    failing_write(monkeypatch, OSError(number, os.strerror(number)), on)
    assert_all(mnist.digits(None, SHIPPED))
    assert files(folder) == sorted(f"{name}.gz" for name in NAMES[:3]) and len(mirrors.asked) == 1
    path, reason = folder / f"{NAMES[3]}.gz", os.strerror(number)
    warning = f"warning: {path} cannot be written ({reason}), so {NAMES[3]} is not kept"
    assert capsys.readouterr().out.splitlines()[-1] == warning


def test_a_cache_that_cannot_be_made_is_no_error(tmp_path, mirrors, capsys):
    (tmp_path / "cache").write_text("a file in the way")
    mirrors.put(0, GZ)
    assert_all(mnist.digits(None, SHIPPED))
    assert capsys.readouterr().out.count("not kept") == 4
    assert (tmp_path / "cache").read_text() == "a file in the way"


def test_the_shipped_file_holds_500_of_each_class_and_has_its_hash():
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == mnist.SHIPPED_SHA256
    with np.load(SHIPPED) as file:
        x, label = file["x"], file["label"]
    assert x.shape == (5000, 28, 28) and label.shape == (5000,)
    assert x.dtype == label.dtype == np.uint8
    assert (np.bincount(label) == 500).all() and x.min() == 0 and x.max() == 255


def test_of_the_shipped_digits_the_last_50_of_each_class_are_the_test_set_and_no_other():
    digits = mnist.digits(None, SHIPPED)
    with np.load(SHIPPED) as file:
        x, label = file["x"], file["label"]
    assert digits.train_label.dtype == digits.test_label.dtype == np.int64
    for c in range(10):
        of_class = x[label == c]
        assert np.array_equal(digits.train_x[digits.train_label == c], of_class[:450])
        assert np.array_equal(digits.test_x[digits.test_label == c], of_class[450:])
    assert list(digits.train_label[:10]) == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # the order of the file


@pytest.mark.parametrize("damage", ["missing", "flipped", "truncated"])
def test_a_damaged_shipped_file_is_refused_with_what_to_do(tmp_path, damage):
    data = bytearray(SHIPPED.read_bytes())
    data[len(data) // 2] ^= damage == "flipped"
    if damage != "missing":
        (tmp_path / "shipped.npz").write_bytes(data[:-1] if damage == "truncated" else data)
    with pytest.raises(UserError) as refused:
        mnist.digits(None, tmp_path / "shipped.npz")
    message = str(refused.value)
    for text in (str(tmp_path / "shipped.npz"), "Network is unreachable", *NAMES):
        assert text in message
    assert "\n" not in message


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_pixels_inverts_to_model_for_every_value(dtype):
    x = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    y = mnist.to_model(x)
    assert y.shape == (4, 8, 8, 1) and y.dtype == np.float32 and y.min() == -1 and y.max() == 1
    back = mnist.to_pixels(y.astype(dtype))
    assert back.dtype == np.uint8 and np.array_equal(back, x)


def test_to_pixels_rounds_to_the_nearest_pixel_and_clips():
    y = np.array([-7.0, -1.01, 1.01, 7.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1]).reshape(1, 6, 1, 1)
    assert mnist.to_pixels(y).ravel().tolist() == [0, 0, 255, 255, 100, 101]
