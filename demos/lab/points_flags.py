"""The flags of demos/swiss_roll.py, and the settings of a run."""

import argparse
import os
from typing import Any

from lab import cli, settings
from lab.errors import UserError
from lab.points import NAMES
from npdiff.output import PREDICT
from npdiff.schedule import cosine, linear

DEFAULTS: dict[str, Any] = dict(
    data="swiss_roll",
    scale="std",
    schedule="linear",
    T=1000,
    predict="eps",
    draw_t="uniform",
    steps=12_000,
    batch=1024,
    lr=8e-3,
    sampler="ddpm",
    sampling_steps=None,
    samples=5000,
    seed=0,
    backend="auto",
    gif=True,
    points=4000,  # to judge by
    digest="",
)
SMOKE: dict[str, Any] = dict(T=20, steps=20, batch=32, samples=64, points=64)
# These may differ from a checkpoint's, since they do not affect training.
FREE = ("sampler", "sampling_steps", "samples", "gif", "backend")
# The types of the settings that have no flag.
OTHERS: settings.Types = dict(points=cli.whole(1, 10**6), digest=str)

EXAMPLES = """\
  python demos/swiss_roll.py                                     DDPM on the roll
  python demos/swiss_roll.py --draw-t early                      small t drawn more often
  python demos/swiss_roll.py --schedule cosine --predict v       another schedule, another output
  python demos/swiss_roll.py --data points.csv --out out/mine    your own points, two numbers a line
  python demos/swiss_roll.py --resume                            continue a run that was stopped
  python demos/swiss_roll.py --sample-only --sampler ddim --sampling-steps 20 --samples 20000"""


def parser(description: str | None) -> cli.Parser:
    """All flags of the demo; the description is the first line of its docstring."""
    flags = cli.Parser((description or "").split("\n")[0], EXAMPLES)

    group = flags.add_argument_group("data and process")
    text = f"{', '.join(NAMES)}, or a .npy or .csv file of 2-D points; default swiss_roll"
    group.add_argument("--data", metavar="SET|FILE", help=text)
    text = "how a file's axes are scaled: std, or robust: by the interquartile range; default std"
    group.add_argument("--scale", type=cli.one_of("std", "robust"), help=text)
    text = "linear or cosine; default linear"
    group.add_argument("--schedule", type=cli.one_of("linear", "cosine"), help=text)
    text = "steps of the forward process; default 1000"
    group.add_argument("--T", type=cli.whole(1, 100_000), metavar="N", help=text)

    group = flags.add_argument_group("training")
    text = f"what the network predicts: {', '.join(PREDICT)}; default eps"
    group.add_argument("--predict", type=cli.one_of(*PREDICT), help=text)
    text = "how t is drawn: uniform, or early: small t more often; default uniform"
    group.add_argument("--draw-t", type=cli.one_of("uniform", "early"), help=text)
    text = "steps of Adam; default 12000"
    group.add_argument("--steps", type=cli.whole(1), metavar="N", help=text)
    text = "points a step; default 1024"
    group.add_argument("--batch", type=cli.whole(1, 10**5), metavar="N", help=text)
    text = "peak of the learning rate; default 0.008"
    group.add_argument("--lr", type=cli.number(0, 1), metavar="X", help=text)

    group = cli.add_sampling_flags(flags, sampler="ddpm")
    text = "points to draw; default 5000"
    group.add_argument("--samples", type=cli.whole(1, 10**6), metavar="N", help=text)

    cli.add_run_flags(flags, out="out/swiss_roll")
    return flags


def parse(description: str | None, argv: list[str] | None = None) -> argparse.Namespace:
    """The run's settings from the command line, filled in and checked.

    UserError, or exit status 2, for anything wrong.
    """
    flags = parser(description)
    args = flags.parse_args(argv)
    args.checkpoint = args.out / "checkpoint.npz"
    if args.data is not None and args.data.lower().endswith((".npy", ".csv")):
        args.data = os.path.abspath(args.data)  # so that a run resumes from any folder
    kept = None
    if args.resume or args.sample_only:
        kept = settings.of_checkpoint(args.checkpoint)
        types = settings.types_of(flags, OTHERS)
        kept = settings.checked(args.checkpoint, kept, DEFAULTS, types)
    args.settings = settings.choose(args, DEFAULTS, SMOKE, FREE, kept)
    for name, value in args.settings.items():
        setattr(args, name, value)
    if args.scale == "robust" and args.data in NAMES:
        raise UserError(f"--scale robust: is for files; {args.data} has unit variance")
    if args.schedule == "linear" and args.T > 3000:
        raise UserError(
            f"--T {args.T}: the linear schedule is meant for T = 1000, and with more than 3000 "
            "steps nothing of x_0 is left long before the last; use --schedule cosine"
        )
    cli.check_sampling(args)
    settings.check_jumps(args, (linear if args.schedule == "linear" else cosine)(args.T))
    return args
