"""Settings from files that anyone may have written, and which settings go together."""

import json
import os

import numpy as np
import pytest

import mnist
import mnist_bound
import mnist_ncsn
from lab import checkpoint, digits_flags, points_flags, regular, settings
from lab.errors import UserError
from npdiff.nn import mlp
from npdiff.schedule import cosine, linear
from npdiff.train import start

THETA = np.zeros(3, np.float16)


def points_run(folder, step=0, **forged):
    """A checkpoint of swiss_roll.py in the folder, with some of its settings changed."""
    state = start(mlp.init(np.random.default_rng(0), hidden=8, layers=1))
    state.step = step
    held = {**points_flags.DEFAULTS, **forged}
    checkpoint.save(folder / "checkpoint.npz", state, np.random.default_rng(0), held)


def resumed(folder, *flags, how="--resume"):
    return points_flags.parse("", [how, "--out", str(folder), *flags])


def weights(folder, defaults=digits_flags.DEFAULTS, theta=THETA, **forged):
    path = folder / "weights.npz"
    np.savez(path, theta=theta, settings=np.array(json.dumps({**defaults, **forged})))
    return path


def sampled(path, demo=mnist, *flags):
    return demo.parse(["--sample-only", "--weights", str(path), *flags])


def refusal(function, *args):
    with pytest.raises(UserError) as error:
        function(*args)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


def test_settings_of_a_run_of_this_version_are_read_as_they_were_written(tmp_path):
    points_run(tmp_path, schedule="cosine", T=77, lr=0.5, gif=False, sampling_steps=77)
    args = resumed(tmp_path)
    assert (args.schedule, args.T, args.lr, args.gif) == ("cosine", 77, 0.5, False)
    args = resumed(tmp_path, "--samples", "9")  # the command line goes before the file
    assert args.samples == 9
    assert "--T 9 contradicts" in refusal(resumed, tmp_path, "--T", "9")


FORGED = [
    *({"schedule": "evil"}, {"schedule": None}, {"schedule": ["linear"]}, {"T": 10**8}, {"T": 0}),
    *({"T": 1e8}, {"T": "1000"}, {"T": 1000.0}, {"T": True}, {"T": None}, {"T": [1000]}),
    *({"steps": -1}, {"steps": "many"}, {"steps": 1e3}, {"batch": 0}, {"lr": -1.0}, {"lr": "0.1"}),
    *({"lr": float("nan")}, {"lr": float("inf")}, {"lr": True}, {"gif": "no"}, {"gif": 1}),
    *({"seed": -1}, {"samples": 10**30}, {"points": 10**9}, {"points": 0}, {"digest": 5}),
    *({"data": 7}, {"data": None}, {"predict": "noise"}, {"predict": {"eps": 1}}),
    *({"sampler": "euler\n" * 1000}, {"draw_t": ""}, {"sampling_steps": 0}, {"backend": "jax"}),
    *({"threads": 4}, {"out": "elsewhere"}, {"weights": "path"}, {"resume": True}, {"help": True}),
    {"x" * 10_000: 1},
]


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_setting_of_a_checkpoint_is_refused_by_name(tmp_path, forged):
    path = tmp_path / "checkpoint.npz"
    points_run(tmp_path, **forged)
    message = refusal(resumed, tmp_path)
    (name,) = forged
    assert message.startswith(f"{path}: ") and name[:50] in message


def test_a_checkpoint_beyond_its_last_step_is_refused(tmp_path):
    points_run(tmp_path, step=11, steps=10)
    assert "its step, 11, is beyond its setting steps, 10" in refusal(resumed, tmp_path)
    points_run(tmp_path, step=10, steps=10)
    assert resumed(tmp_path, how="--sample-only").steps == 10


def test_a_retired_setting_is_read_and_left_out(tmp_path, monkeypatch):
    points_run(tmp_path, fuse=True)
    assert "'fuse', which is no setting" in refusal(resumed, tmp_path)
    monkeypatch.setattr(settings, "RETIRED", ("fuse",))
    assert "fuse" not in resumed(tmp_path).settings


FORGED_WEIGHTS = [
    *({"width": 0}, {"width": 20}, {"width": 8.0}, {"width": 1 << 20}, {"T": 1e8}, {"steps": -1}),
    *({"objective": "evil"}, {"objective": ["simple"]}, {"predict": "x_0"}, {"digits": ""}),
    *({"digits": "3x"}, {"digits": 3}, {"label_dropout": 2.0}, {"guidance": -1.0}, {"lr": None}),
    *({"minutes": 0.0}, {"smoke": 1}, {"threads": 99}, {"inpaint": "left"}, {"weights": "/etc"}),
]


@pytest.mark.parametrize("forged", FORGED_WEIGHTS)
def test_a_forged_setting_of_weights_is_refused_by_name(tmp_path, forged):
    path = weights(tmp_path, **forged)
    message = refusal(sampled, path)
    (name,) = forged
    assert message.startswith(f"{path}: ") and name in message


@pytest.mark.parametrize("demo", [mnist, mnist_bound])
def test_all_settings_of_the_shipped_weights_are_known(demo):
    _, held = digits_flags.read_weights(demo.SHIPPED_WEIGHTS)
    args = demo.parse(["--sample-only", "--out", "no such folder"])
    assert held.items() <= args.settings.items()


def test_weights_of_another_demo_are_refused_with_its_name(tmp_path):
    bound = sampled, mnist_bound.SHIPPED_WEIGHTS, mnist
    assert "made by demos/mnist_bound.py" in refusal(*bound)
    ncsn = weights(tmp_path, mnist_ncsn.DEFAULTS)
    assert "made by demos/mnist_ncsn.py" in refusal(sampled, ncsn, mnist_bound)
    assert "predict" in refusal(
        sampled, weights(tmp_path, mnist_ncsn.DEFAULTS, predict="v"), mnist_ncsn
    )


@pytest.mark.parametrize(
    "theta", [np.zeros((3, 2)), np.array([np.nan]), np.array(["a"]), 1j * np.ones(3)]
)
def test_weights_that_are_no_vector_of_numbers_are_refused(tmp_path, theta):
    assert "damaged" in refusal(sampled, weights(tmp_path, theta=theta))


def test_settings_that_are_no_table_are_refused(tmp_path):
    for text in ("[1]", "null", "{", "[" * 100_000):
        np.savez(tmp_path / "w.npz", theta=np.zeros(3), settings=np.array(text))
        assert "w.npz: damaged" in refusal(sampled, tmp_path / "w.npz")


def test_a_checkpoint_given_as_weights_is_read_as_the_average_that_it_holds(tmp_path):
    state = start(mlp.init(np.random.default_rng(0), hidden=8, layers=1), "v")
    state.ema[...] = np.arange(state.ema.size)
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, state, np.random.default_rng(0), digits_flags.DEFAULTS)
    assert sampled(path).predict == "v"
    theta, _ = digits_flags.read_weights(path)
    assert np.array_equal(theta, state.ema)


# Files that are no regular files


def test_a_pipe_a_device_and_a_circle_of_links_are_not_opened(tmp_path):
    pipe, circle, lost = tmp_path / "pipe", tmp_path / "circle", tmp_path / "lost"
    os.mkfifo(pipe)
    circle.symlink_to(circle)
    lost.symlink_to(tmp_path / "nowhere")
    for path in (pipe, circle, lost, tmp_path, tmp_path / "none", tmp_path / "a\0b"):
        assert regular.problem(path)
        assert f"{path}: " in refusal(sampled, path)
    (tmp_path / "file").touch()
    assert regular.problem(tmp_path / "file") is None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_a_checkpoint_that_is_no_regular_file_is_refused(tmp_path, make):
    make(tmp_path / "checkpoint.npz")
    assert "checkpoint.npz: " in refusal(resumed, tmp_path)
    assert "checkpoint.npz: " in refusal(mnist.parse, ["--resume", "--out", str(tmp_path)])


# Which settings go together


@pytest.mark.parametrize("predict", ["eps", "score"])
def test_ddim_by_way_of_eps_from_almost_no_signal_is_refused_with_what_works(tmp_path, predict):
    def parse(*flags):
        return points_flags.parse("", ["--predict", predict, *flags])

    message = refusal(parse, "--schedule", "cosine", "--sampler", "ddim")
    assert "--predict v" in message and predict in message
    assert "--predict v" in refusal(parse, "--T", "3000", "--sampler", "ddim")  # the linear one
    for flags in (["--schedule", "cosine"], ["--sampler", "ddim"]):  # DDPM's steps; more signal
        assert parse(*flags).predict == predict
    points_run(tmp_path, predict=predict, schedule="cosine")
    again = ["--sampler", "ddim"]
    with pytest.raises(UserError, match="--predict v"):
        resumed(tmp_path, *again, how="--sample-only")


@pytest.mark.parametrize("predict", ["v", "x_0"])
def test_ddim_on_the_cosine_schedule_takes_predictions_that_determine_x_0(predict):
    flags = ["--predict", predict, "--schedule", "cosine", "--sampler", "ddim"]
    assert points_flags.parse("", flags).sampler == "ddim"


def test_ddim_on_digits_takes_eps_only_for_inpainting_which_is_ancestral():
    assert "--predict v" in refusal(mnist.parse, ["--predict", "eps"])
    assert mnist.parse(["--predict", "eps", "--sampler", "ddpm"]).predict == "eps"
    assert mnist.parse(["--predict", "eps", "--inpaint", "left"]).predict == "eps"
    assert mnist.parse([]).predict == "v"


def test_the_threshold_lies_between_the_schedules_of_the_demos():
    assert cosine(1000).signal[-1] < settings.SIGNAL_FOR_EPS < linear(1000).signal[-1]
