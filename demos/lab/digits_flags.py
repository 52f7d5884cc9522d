"""The flags of the demos of digits, the settings of a run, and the weights that it keeps."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lab import cli, regular, settings
from lab.errors import UserError
from npdiff.backend import get_array_module
from npdiff.nn import unet
from npdiff.train import State

DEMOS = Path(__file__).parents[1]
SHIPPED_DIGITS = DEMOS / "mnist_5000.npz"
DEMO_OF = {"simple": "mnist.py", "bound": "mnist_bound.py", "ncsn": "mnist_ncsn.py"}

DEFAULTS: dict[str, Any] = dict(
    objective="simple",
    T=1000,
    predict="v",
    minutes=None,
    steps=None,
    batch=None,
    lr=4e-3,
    width=None,
    label_dropout=0.1,
    digits="0123456789",
    sampler="ddim",
    sampling_steps=None,
    guidance=0.35,
    samples=1000,
    seed=0,
    backend="auto",
    gif=True,
    smoke=False,
)
SMOKE: dict[str, Any] = dict(
    T=20, steps=3, batch=4, width=8, samples=12, sampling_steps=3, smoke=True
)
# What depends on the backend. The minutes count unless steps are given.
PRESETS: dict[str, dict[str, Any]] = {
    "numpy": dict(width=32, batch=64, minutes=12.0),
    "cupy": dict(width=64, batch=256, minutes=5.0),
}
# These may differ from a checkpoint's, since they do not affect training.
FREE = (
    *("digits", "sampler", "sampling_steps", "guidance", "samples"),
    *("seed", "gif", "backend", "smoke"),
)


def classes(text: str) -> str:
    """A type of flag: one or more of the ten digits."""
    if not text or set(text) - set("0123456789"):
        raise argparse.ArgumentTypeError(f"must be one or more of 0123456789, got {text!r}")
    return text


def width(text: str) -> int:
    """A type of setting: the width of the U-Net, which its group norms divide."""
    value = cli.whole(unet.GROUPS, 512)(text)
    if value % unet.GROUPS:
        raise argparse.ArgumentTypeError(f"must be a multiple of {unet.GROUPS}, got {text!r}")
    return value


GUIDANCE = cli.number(-1e-9, 100)
# The types of the settings that have no flag in one demo or another.
OTHERS: settings.Types = dict(
    objective=cli.one_of(*DEMO_OF),
    width=width,
    label_dropout=cli.number(-1e-9, 1),
    guidance=GUIDANCE,
    digits=classes,
)


def parser(
    description: str | None, examples: str, name: str, samplers: tuple[str, ...] = ("ddpm", "ddim")
) -> cli.Parser:
    """The flags that all demos of digits share; the last of `samplers` is the default."""
    flags = cli.Parser((description or "").split("\n")[0], examples)
    group = flags.add_argument_group("data and process")
    text = "folder of MNIST's four files; by default see $NPDIFF_DATA in README.md"
    group.add_argument("--data-dir", type=Path, metavar="DIR", help=text)
    group.add_argument("--T", type=cli.whole(1, 100_000), metavar="N", help="steps of the schedule")
    group = flags.add_argument_group("training")
    text = "train for about so long; default 12, on a GPU 5"
    group.add_argument("--minutes", type=cli.number(0, 10_000), metavar="X", help=text)
    group.add_argument(
        "--steps", type=cli.whole(1), metavar="N", help="steps of Adam; replaces --minutes"
    )
    text = "images a step; default 64, on a GPU 256; mnist_bound.py 32"
    group.add_argument("--batch", type=cli.whole(1, 65_535), metavar="N", help=text)
    text = "peak of the learning rate; default 0.004"
    group.add_argument("--lr", type=cli.number(0, 1), metavar="X", help=text)
    group = cli.add_sampling_flags(flags, sampler=samplers[-1], samplers=samplers)
    text = "digits to draw; default 1000"
    group.add_argument("--samples", type=cli.whole(1, 10**6), metavar="N", help=text)
    text = "a run's weights.npz to sample from; default: the run in DIR, else the shipped weights"
    group.add_argument("--weights", type=Path, metavar="FILE", help=text)
    cli.add_run_flags(flags, out=f"out/{name}")
    text = f"processes that share the work on a CPU; default {cli.cores()}"
    flags.add_argument("--threads", type=cli.processes, default=cli.cores(), metavar="N", help=text)
    text = "on a GPU: products in TensorFloat-32, with three digits and faster"
    flags.add_argument("--tf32", action="store_true", help=text)
    text = "the plain code in this one process: slower, for stepping through"
    flags.add_argument("--plain", action="store_true", help=text)
    return flags


def add_class_flags(flags: cli.Parser) -> None:
    """The flags of a network that is told the class."""
    group = flags.add_argument_group("classes")
    text = "(1 + W) eps_cond - W eps_uncond; default 0.35"
    group.add_argument("--guidance", type=GUIDANCE, metavar="W", help=text)
    text = "the classes to draw; default all ten"
    group.add_argument("--digits", type=classes, metavar="0123", help=text)


def parse(
    flags: cli.Parser, defaults: dict[str, Any], shipped: Path | None, argv: list[str] | None = None
) -> argparse.Namespace:
    """The run's settings from the command line, filled in and checked.

    UserError, or exit status 2, for anything wrong. `shipped` are the weights that --sample-only
    takes where DIR holds no run.
    """
    args = flags.parse_args(argv)
    args.checkpoint = args.out / "checkpoint.npz"
    if args.tf32:
        os.environ["CUPY_TF32"] = "1"  # read by CuPy when it computes its first product
    if args.weights and not args.sample_only:
        raise UserError(
            "--weights: needs --sample-only; training starts anew, or continues with --resume"
        )
    kept = kept_settings(args, shipped)
    if kept is not None:
        others = {**OTHERS, "predict": cli.one_of(defaults["predict"])}
        types = settings.types_of(flags, others)
        kept = checked(args.weights or args.checkpoint, kept, defaults, types)
    args.settings = settings.choose(args, defaults, SMOKE, FREE, kept)
    for name, value in args.settings.items():
        setattr(args, name, value)
    if args.sampler != "langevin":
        cli.check_sampling(args)
    return args


def checked(
    path: Path, kept: dict[str, Any], defaults: dict[str, Any], types: settings.Types
) -> dict[str, Any]:
    """The settings that the file holds, checked. UserError for a file of another demo."""
    objective = kept.get("objective", defaults["objective"])
    if objective != defaults["objective"] and not settings.problem(objective, OTHERS["objective"]):
        raise UserError(f"{path}: made by demos/{DEMO_OF[objective]}, which can sample from it")
    return settings.checked(path, kept, defaults, types)


def kept_settings(args: argparse.Namespace, shipped: Path | None) -> dict[str, Any] | None:
    """The settings of the run to continue or to sample from; None for a new run.

    Sets args.weights to the file to sample from, or to None for the checkpoint in DIR.
    """
    if args.resume or (args.sample_only and not args.weights and args.checkpoint.exists()):
        return settings.of_checkpoint(args.checkpoint)
    if not args.sample_only:
        return None
    args.weights = args.weights or shipped
    if args.weights is None:
        return settings.of_checkpoint(args.checkpoint)  # says that there is none
    return read_weights(args.weights)[1]


def fill_preset(args: argparse.Namespace, xp: Any) -> None:
    """Fill in what depends on the backend."""
    for name, value in PRESETS[xp.__name__].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
            args.settings[name] = value


def read_weights(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """theta, and the settings of the run that made it; of a checkpoint, the averaged parameters.

    UserError for a missing or damaged file.
    """
    if problem := regular.problem(path):
        raise UserError(f"{path}: {problem}; --weights takes a run's weights.npz")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            theta = file["ema" if "ema" in file else "theta"].astype(
                np.float32, casting="same_kind"
            )
            kept = json.loads(str(file["settings"]))
        if theta.ndim != 1 or not np.isfinite(theta).all() or not isinstance(kept, dict):
            raise ValueError
    except Exception as error:  # whatever zipfile, zlib, NumPy and json make of a damaged file
        raise UserError(f"{path}: damaged, or not the weights of a demo of digits") from error
    return theta, kept


def load_weights(path: Path, state: State) -> None:
    """Put a file's weights into the state's averaged parameters."""
    theta, _ = read_weights(path)
    if theta.shape != state.ema.shape:
        size = state.ema.size
        raise UserError(f"{path}: holds {theta.size} parameters and this network has {size}")
    state.ema[...] = get_array_module(state.ema).asarray(theta)
    print(f"weights from {path}")
