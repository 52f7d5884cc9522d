"""MNIST, the handwritten digits of LeCun, Cortes and Burges.

They are read from this machine, or downloaded. If neither is possible, the 5,000 digits that are
shipped with the demos are used. A file is accepted only if the SHA-256 of its decompressed bytes is
the published one. A wrong file is refused, and left as it is.
"""

import gzip
import hashlib
import http.client
import io
import os
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab import regular
from lab.errors import UserError
from lab.files import write_bytes
from lab.progress import Line
from npdiff.backend import Array, to_numpy

SHA256 = {  # of the decompressed bytes
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# Of demos/mnist_5000.npz, whose last 50 digits of each class are kept aside as test digits.
SHIPPED_SHA256 = "1608be5e0f4d15b3d75c9a31b0f125edf28b198d644d1560b6f12ba9d85978d7"
SHIPPED_TEST = 50
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT = 20.0  # seconds in which no byte arrives


@dataclass
class Digits:
    """Images, uint8 of shape (N, 28, 28), 0 the background, 255 ink; labels, int64 of shape (N,).

    note    a line to print: where the digits come from
    """

    train_x: np.ndarray
    train_label: np.ndarray
    test_x: np.ndarray
    test_label: np.ndarray
    note: str


class DownloadError(Exception):
    """A file cannot be downloaded; the message says why."""


def to_model(x: np.ndarray) -> np.ndarray:
    """Pixels as a network takes them: x / 127.5 - 1.

    (N, H, W) uint8 -> (N, H, W, 1) float32 in [-1, 1].
    """
    return (x.astype(np.float32) / np.float32(127.5) - 1)[..., None]


def to_pixels(x: Array) -> np.ndarray:
    """The inverse of `to_model`: 127.5 (x + 1), rounded. x must be finite.

    A sampler's output may leave [-1, 1], so the pixels are clipped to 0..255.

    (N, H, W, 1) float -> (N, H, W) uint8, on the host.
    """
    return np.clip(np.rint(127.5 * (to_numpy(x)[..., 0] + 1)), 0, 255).astype(np.uint8)


def digits(data_dir: Path | None, shipped: Path) -> Digits:
    """All 70,000 digits, or the 5,000 of the file `shipped`.

    With a data_dir, all four files must be there. Without one they are looked up in the folders of
    `look_up_order`, and what is missing is downloaded. Where that fails, the shipped digits are
    used, and the note says why.

    Raises
    ------
    UserError
        For a file that is not MNIST's, and for a data_dir without the four files.
    """
    folders = look_up_order() if data_dir is None else [data_dir]
    paths = {name: path for name in SHA256 if (path := find(name, folders))}
    if data_dir is not None and len(paths) < len(SHA256):
        raise UserError(
            f"--data-dir {data_dir}: needs {', '.join(SHA256)}, with .gz or without; leave the "
            "flag out to download them"
        )
    raw = {name: read(path) for name, path in paths.items()}
    missing = [name for name in SHA256 if name not in raw]
    try:
        raw |= {name: download(name) for name in missing}
    except DownloadError as error:
        places = " or ".join(map(str, folders))
        return from_shipped(shipped, f"{missing[0]} is not in {places}, and {error}")
    sources = list(dict.fromkeys(str(path.parent) for path in paths.values()))
    if missing:
        sources.append("the mirrors")
    note = f"MNIST: 60,000 training and 10,000 test digits from {' and '.join(sources)}"
    train_x, train_label, test_x, test_label = (raw[name] for name in SHA256)
    return Digits(images(train_x), labels(train_label), images(test_x), labels(test_label), note)


def images(raw: bytes) -> np.ndarray:
    """The images of an idx file, after its 16 bytes of header."""
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)


def labels(raw: bytes) -> np.ndarray:
    """The labels of an idx file, after its 8 bytes of header."""
    return np.frombuffer(raw, np.uint8, offset=8).astype(np.int64)


# On this machine


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/npdiff, or ~/.cache/npdiff."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "npdiff"


def look_up_order() -> list[Path]:
    """The folders to look in: $NPDIFF_DATA, $XDG_CACHE_HOME/npdiff, ~/.cache/npdiff."""
    named = os.environ.get("NPDIFF_DATA")
    folders = [Path(named)] if named else []
    folders += [cache_folder(), Path(os.path.expanduser("~/.cache/npdiff"))]
    return list(dict.fromkeys(folders))


def find(name: str, folders: list[Path]) -> Path | None:
    """The first of folder/name and folder/name.gz that exists."""
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if os.path.exists(path):
                return path
    return None


def read(path: Path) -> bytes:
    """The decompressed bytes of one of the four files.

    UserError, which names the file, where they are not the published ones.
    """
    name, compressed = path.name.removesuffix(".gz"), path.suffix == ".gz"
    if problem := regular.problem(path):
        raise UserError(f"{path}: cannot be read ({problem}); move it away")
    try:
        return checked(name, path.read_bytes(), compressed)
    except ValueError as error:
        raise UserError(
            f"{path}: {error}; the file is left as it is: remove it, or replace it by a whole one"
        ) from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({reason(error)}); make it readable, or move it away"
        ) from error


def checked(name: str, data: bytes, compressed: bool) -> bytes:
    """The decompressed bytes. ValueError where they are not those of MNIST's file of that name."""
    try:
        raw = gzip.decompress(data) if compressed else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError("damaged or truncated") from error
    if hashlib.sha256(raw).hexdigest() != SHA256[name]:
        raise ValueError(f"not MNIST's {name}, or damaged or truncated")
    return raw


# From a mirror


def download(name: str) -> bytes:
    """The decompressed bytes of a file from a mirror.

    The download is kept in the cache folder; where it cannot be written there, a line says so.
    DownloadError where no mirror has the file.
    """
    data, raw = from_a_mirror(name)
    path = cache_folder() / f"{name}.gz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    except OSError as error:
        print(f"warning: {path} cannot be written ({reason(error)}), so {name} is not kept")
    return raw


def from_a_mirror(name: str) -> tuple[bytes, bytes]:
    """The file as sent, and its decompressed bytes, from the first mirror that has it.

    DownloadError, with the reason of each mirror, where none has it.
    """
    problems = []
    for mirror in MIRRORS:
        line = Line()
        try:
            data = fetch(f"{mirror}{name}.gz", line)
            return data, checked(name, data, compressed=True)
        except (OSError, ValueError, http.client.HTTPException) as error:
            problems.append(f"{mirror} {reason(error)}")
            line.show(f"{name} cannot be downloaded from {problems[-1]}", last=True)
    raise DownloadError(f"it cannot be downloaded ({'; '.join(problems)})")


def fetch(url: str, line: Line) -> bytes:
    """The bytes at this address. The line shows how many have arrived."""
    data = bytearray()
    line.show(f"downloading {url}")
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        while piece := answer.read(2**16):
            data += piece
            if line.due():
                line.show(f"downloading {url}   {len(data) / 1e6:.1f} MB")
    line.show(f"downloaded {url}   {len(data) / 1e6:.1f} MB", last=True)
    return bytes(data)


def reason(error: Exception) -> str:
    """What went wrong, in a few words on one line."""
    cause = getattr(error, "reason", error)  # of a URLError, often an OSError
    text = str(getattr(cause, "strerror", None) or cause).strip()
    return (text or type(cause).__name__).splitlines()[0]


# Shipped with the demos


def from_shipped(shipped: Path, why: str) -> Digits:
    """The digits of the file `shipped`, the last SHIPPED_TEST of each class as test digits.

    `why` is the reason for using them. UserError where the file is not the shipped one.
    """
    names = ", ".join(f"{name}.gz" for name in SHA256)
    advice = f"for all 70,000 put {names} into {cache_folder()}, or name their --data-dir"
    try:
        data = shipped.read_bytes()
    except OSError as error:
        problem = f"cannot be read ({reason(error)})"
        raise UserError(f"{shipped}: {problem}, and {why}; {advice}") from error
    if hashlib.sha256(data).hexdigest() != SHIPPED_SHA256:
        problem = "not the file that is shipped, or damaged"
        raise UserError(f"{shipped}: {problem}, and {why}; {advice}")
    with np.load(io.BytesIO(data)) as file:
        x, label = file["x"], file["label"].astype(np.int64)
    test = np.zeros(len(label), bool)
    test[np.concatenate([np.flatnonzero(label == c)[-SHIPPED_TEST:] for c in range(10)])] = True
    note = (
        f"MNIST: the {len(x):,} shipped digits, the last {SHIPPED_TEST} of each class kept aside "
        f"as test digits, since {why}; {advice}"
    )
    return Digits(x[~test], label[~test], x[test], label[test], note)
