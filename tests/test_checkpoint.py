import numpy as np
import pytest

from lab import checkpoint, files
from lab.errors import UserError
from npdiff.exact import Gaussian
from npdiff.nn import mlp
from npdiff.schedule import linear
from npdiff.train import start, train

DATA = Gaussian([0.0, 0.0], np.eye(2))


def steps_of(state, rng, steps):
    return train(mlp, state, DATA.sample, linear(100), rng, steps=steps, batch=8)


def fresh(seed=0, predict="eps"):
    params = mlp.init(np.random.default_rng(seed), hidden=8, layers=1)
    return start(params, predict), np.random.default_rng(seed + 1)


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_run_ends_with_the_same_numbers_to_the_bit(tmp_path, stop):
    state, rng = fresh()
    list(steps_of(state, rng, 12))
    half, half_rng = fresh()
    for _ in zip(range(stop), steps_of(half, half_rng, 12), strict=False):
        pass
    checkpoint.save(tmp_path / "c.npz", half, half_rng, {"lr": 0.1})
    other, other_rng = fresh(seed=9)
    checkpoint.load(tmp_path / "c.npz", other, other_rng)
    assert other.step == half.step
    list(steps_of(other, other_rng, 12))
    for name in checkpoint.VECTORS:
        assert np.array_equal(getattr(state, name), getattr(other, name))
    # The network's parameters are views of theta, not copies.
    assert np.array_equal(other.params["last"]["w"].ravel(), other.theta[-18:-2])
    assert rng.bit_generator.state == other_rng.bit_generator.state


def test_keep_writes_before_the_first_step_and_after_the_last(tmp_path):
    state, rng = fresh()
    path = tmp_path / "c.npz"
    seen = []
    for step in checkpoint.keep(steps_of(state, rng, 5), path, state, rng, {}, seconds=0):
        seen.append((step.step, int(np.load(path)["step"])))
    assert seen == [(i, i - 1) for i in range(1, 6)]
    assert int(np.load(path)["step"]) == 5 and [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_every_damage_to_a_checkpoint_is_refused(tmp_path):
    state, rng = fresh()
    path = tmp_path / "c.npz"
    checkpoint.save(path, state, rng, {"T": 5})
    assert checkpoint.read_settings(path) == {"T": 5}
    whole = path.read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(path, *fresh())
    flipped = bytearray(whole)
    flipped[whole.index(state.theta.tobytes()[:64]) + 30] ^= 1  # one bit of theta
    path.write_bytes(flipped)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, *fresh())
    np.savez(path, x=np.zeros(3))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, *fresh())


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c.npz", *fresh(), {})
    other = start(mlp.init(np.random.default_rng(0), hidden=16, layers=1))
    with pytest.raises(UserError, match="parameters"):
        checkpoint.load(tmp_path / "c.npz", other, np.random.default_rng(1))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.in_one_move(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


FORGED = [
    {"settings": "[1]"},
    {"rng": "{}"},
    {"step": [1, 2]},
    {"step": -5},
    {"step": "many"},
    {"theta": [np.nan]},
]


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file}


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_checkpoint_is_refused(tmp_path, forged):
    path = tmp_path / "c.npz"
    checkpoint.save(path, *fresh(), {})
    forged = {name: np.array(value) for name, value in forged.items()}
    np.savez(path, **(arrays_of(path) | forged))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, *fresh())


@pytest.mark.parametrize("older", [False, True])
def test_a_checkpoint_of_a_network_that_predicts_something_else_is_refused(tmp_path, older):
    """Files of an earlier version have `predict` among the settings alone."""
    path = tmp_path / "c.npz"
    checkpoint.save(path, *fresh(predict="v"), {"predict": "v"})
    if older:
        arrays = arrays_of(path)
        del arrays["predict"]
        np.savez(path, **arrays)
    with pytest.raises(UserError, match="its network predicts v, and this one eps"):
        checkpoint.load(path, *fresh())
    state, rng = fresh(seed=9, predict="v")
    checkpoint.load(path, state, rng)
    assert np.array_equal(state.theta, fresh()[0].theta)


def test_a_further_array_is_kept_and_restored_in_place(tmp_path):
    path, more = tmp_path / "c.npz", np.arange(6.0).reshape(2, 3)
    state, rng = fresh()
    for step in checkpoint.keep(steps_of(state, rng, 3), path, state, rng, {}, more=more):
        more[...] = step.step
    restored = np.zeros((2, 3))
    checkpoint.load(path, *fresh(), restored)
    assert (restored == 3).all()
    for other in (np.zeros(6), checkpoint.NOTHING):
        with pytest.raises(UserError, match="another kind of training"):
            checkpoint.load(path, *fresh(), other)
