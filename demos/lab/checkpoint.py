"""Checkpoints: a run that was stopped, or killed at any moment, goes on to the same numbers.

All that training changes is in the state, and every random number that it will draw follows from
the generator's state. Both are written together between two steps, so a resumed run agrees with an
uninterrupted one to the bit. No pickle is written or read.
"""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lab.errors import UserError
from lab.files import write_npz
from npdiff.backend import Array, get_array_module, to_numpy
from npdiff.train import State

Item = TypeVar("Item")
VECTORS = ("theta", "ema", "m", "v")
NOTHING = np.empty(0)


def save(
    path: Path,
    state: State,
    rng: np.random.Generator,
    settings: dict[str, Any],
    more: np.ndarray = NOTHING,
) -> None:
    """Write the checkpoint, whole or not at all; see `keep` for `more`.

    UserError, and the file stays as it is, where training has diverged.
    """
    arrays = {name: to_numpy(getattr(state, name)) for name in VECTORS}
    if not all(np.isfinite(vector).all() for vector in arrays.values()):
        raise UserError(
            f"training diverged before step {state.step}: its numbers are no longer finite; "
            f"{path} holds an earlier step; start again with a smaller --lr and --overwrite"
        )
    texts = {
        "predict": state.predict,
        "rng": json.dumps(rng.bit_generator.state),
        "settings": json.dumps(settings),
    }
    texts_as_arrays = {name: np.array(text) for name, text in texts.items()}
    write_npz(path, step=np.array(state.step), more=more, **arrays, **texts_as_arrays)


def keep(
    steps: Iterable[Item],
    path: Path,
    state: State,
    rng: np.random.Generator,
    settings: dict[str, Any],
    seconds: float = 1.0,
    more: np.ndarray = NOTHING,
) -> Iterator[Item]:
    """The same training steps; meanwhile checkpoints are written.

    One is written before the first step, one whenever `seconds` have passed, one after the last.
    UserError where training diverges; the checkpoint before that stays.

    Parameters
    ----------
    settings : the settings of the run, from which it can be resumed
    more : a further array that the training changes in place
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
    """Put the checkpoint's numbers into a state, a generator and a further array, in place.

    UserError where the checkpoint is damaged, or of a network of another size, or of one that
    predicts something else than the state says.
    """
    arrays = _read(path)
    if str(arrays["predict"]) != state.predict:
        raise UserError(
            f"{path}: its network predicts {arrays['predict']}, and this one {state.predict}; "
            "start again without --resume"
        )
    for name in VECTORS:
        vector: Array = getattr(state, name)
        if arrays[name].shape != vector.shape:
            raise UserError(
                f"{path}: holds {arrays[name].size} parameters and this network has {vector.size}; "
                "it was written by another version: start again without --resume"
            )
        vector[...] = get_array_module(vector).asarray(arrays[name])
    if arrays["more"].shape != more.shape:
        raise UserError(
            f"{path}: belongs to another kind of training; start again without --resume"
        )
    more[...] = arrays["more"]
    state.step = int(arrays["step"])
    rng.bit_generator.state = json.loads(str(arrays["rng"]))


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file, by name. UserError where it is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path}: no such file; a run without --resume makes one")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("step", "rng", "settings", "more", *VECTORS)}
            # Older files have `predict` among their settings only.
            settings = json.loads(str(arrays["settings"]))
            arrays["predict"] = file["predict"] if "predict" in file else settings["predict"]
        _check(arrays)
    except Exception as error:  # whatever zipfile, zlib, NumPy and json raise for a damaged file
        raise UserError(
            f"{path}: damaged, or not a checkpoint of npdiff; start again without --resume, or "
            "into another --out"
        ) from error
    return arrays


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Raise an error unless these arrays can be a checkpoint's."""
    np.random.default_rng(0).bit_generator.state = json.loads(str(arrays["rng"]))
    if not isinstance(json.loads(str(arrays["settings"])), dict):
        raise ValueError("settings")
    if arrays["step"].shape != () or int(arrays["step"]) < 0:
        raise ValueError("step")
    vectors = [arrays[name] for name in VECTORS]
    if not all(vector.dtype == np.float32 and np.isfinite(vector).all() for vector in vectors):
        raise ValueError("vectors")
