"""A run that is stopped, or killed at any moment, goes on to the same numbers, to the bit.

Everything that training changes is in the state, and every random number it will draw is in the generator's state; both
are written together between two steps, to a temporary file that then takes the old one's place in one move. No pickle.
"""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from npdiff.backend import Array, get_array_module, to_numpy
from npdiff.kit.errors import UserError
from npdiff.kit.files import write_npz
from npdiff.train import State

Item = TypeVar("Item")
VECTORS = ("theta", "ema", "m", "v")
NOTHING = np.empty(0)


def save(path: Path, state: State, rng: np.random.Generator, settings: dict[str, Any], more: np.ndarray = NOTHING) -> None:
    """Write the checkpoint, whole or not at all."""
    arrays = {name: to_numpy(getattr(state, name)) for name in VECTORS} | {"more": more}
    words = {"rng": json.dumps(rng.bit_generator.state), "settings": json.dumps(settings)}
    write_npz(path, step=np.array(state.step), **arrays, **{name: np.array(text) for name, text in words.items()})


def keep(
    steps: Iterable[Item],
    path: Path,
    state: State,
    rng: np.random.Generator,
    settings: dict[str, Any],
    seconds: float = 1.0,
    more: np.ndarray = NOTHING,
) -> Iterator[Item]:
    """The same steps, with the checkpoint written before the first, every so many seconds, and after the last.

    `more` is a further array that the training changes in place.
    """
    save(path, state, rng, settings, more)
    saved = time.monotonic()
    for step in steps:
        yield step
        if time.monotonic() - saved >= seconds:
            save(path, state, rng, settings, more)
            saved = time.monotonic()
    save(path, state, rng, settings, more)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the run that wrote this checkpoint."""
    return json.loads(str(_read(path)["settings"]))


def load(path: Path, state: State, rng: np.random.Generator, more: np.ndarray = NOTHING) -> None:
    """Put the checkpoint's numbers into a state, a generator and a further array of the same kind, in place."""
    arrays = _read(path)
    for name in VECTORS:
        vector: Array = getattr(state, name)
        if arrays[name].shape != vector.shape:
            raise UserError(f"{path}: holds {arrays[name].size} parameters and this network has {vector.size}: it is of another version")
        vector[...] = get_array_module(vector).asarray(arrays[name])
    if arrays["more"].shape != more.shape:
        raise UserError(f"{path}: is of a training of another kind")
    more[...] = arrays["more"]
    state.step = int(arrays["step"])
    rng.bit_generator.state = json.loads(str(arrays["rng"]))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UserError(f"{path}: no such file; a run without --resume makes one")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("step", "rng", "settings", "more", *VECTORS)}
        np.random.default_rng(0).bit_generator.state = json.loads(str(arrays["rng"]))
        sound = isinstance(json.loads(str(arrays["settings"])), dict) and arrays["step"].shape == () and int(arrays["step"]) >= 0
        if not sound or not all(arrays[name].dtype == np.float32 and np.isfinite(arrays[name]).all() for name in VECTORS):
            raise ValueError
    except Exception as error:  # whatever zipfile, zlib, NumPy and json make of a damaged file
        raise UserError(f"{path}: damaged, or not a checkpoint of npdiff; start again without --resume, or into another --out") from error
    return arrays
