"""The settings of a run: from its flags, from defaults, or from the file of an earlier run.

A file can come from anyone. So its settings go through the types of the flags, as if they were
typed, and those that have no flag through types that the demo gives.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lab import checkpoint, regular
from lab.cli import Parser
from lab.errors import UserError
from npdiff.schedule import Schedule

# A type of a setting makes a value of its text, or raises ArgumentTypeError; bool is a switch's.
Types = dict[str, Callable[[str], Any]]

# Settings of files that were published, which newer versions no longer have: read, and left out.
RETIRED: tuple[str, ...] = ()

SIGNAL_FOR_EPS = 1e-3  # the least signal[T] from which DDIM can jump by way of eps


def choose(
    args: argparse.Namespace,
    defaults: dict[str, Any],
    smoke: dict[str, Any],
    free: tuple[str, ...],
    kept: dict[str, Any] | None,
) -> dict[str, Any]:
    """The settings of the run, by name.

    A new run has the flags that the user gave, and defaults for the rest. A run that is continued
    has the settings of its checkpoint. With another --sampler the number of sampling steps is that
    sampler's default.

    Parameters
    ----------
    args : the parsed flags, None where the user gave none
    defaults : the default of each setting
    smoke : the defaults that --smoke replaces
    free : settings that may differ from the checkpoint's, since they do not affect training
    kept : the checkpoint's settings, checked, or None for a new run

    Raises
    ------
    UserError
        For a flag that contradicts the checkpoint and is not free.
    """
    given = {k: value for k, value in vars(args).items() if k in defaults and value is not None}
    if kept is None:
        base = {**defaults, **(smoke if args.smoke else {})}
    else:
        base = {**defaults, **kept}  # a setting that did not exist yet had today's default
        for name, value in given.items():
            if name not in free and value != base[name]:
                flag = "--" + name.replace("_", "-")
                raise UserError(
                    f"{flag} {value} contradicts the run in {args.out}, made with {flag} "
                    f"{base[name]}; leave {flag} out, or start again without --resume"
                )
    if given.get("sampler", base["sampler"]) != base["sampler"]:
        base["sampling_steps"] = None  # it was meant for the other sampler
    return {**base, **given}


# What a file holds


def of_checkpoint(path: Path) -> dict[str, Any]:
    """The settings in a checkpoint, not yet `checked`. UserError for one that cannot be resumed."""
    if (message := regular.problem(path)) and os.path.lexists(path):
        raise UserError(f"{path}: {message}; start again without --resume, or into another --out")
    kept = checkpoint.read_settings(path)
    with np.load(path, allow_pickle=False) as file:
        step, steps = int(file["step"]), kept.get("steps")
    if isinstance(steps, int) and step > steps:
        raise UserError(f"{path}: its step, {step:,}, is beyond its setting steps, {steps:,}")
    return kept


def types_of(flags: Parser, others: Types) -> Types:
    """The type of each setting: its flag's, or one of `others` if it has no flag."""
    of_flags = {flag.dest: bool if flag.nargs == 0 else flag.type or str for flag in flags._actions}
    return {**others, **of_flags}  # type: ignore[dict-item]


def checked(
    path: Path, kept: dict[str, Any], defaults: dict[str, Any], types: Types
) -> dict[str, Any]:
    """The settings that the file holds.

    UserError, which names the file and the setting, for a setting that this demo does not have, and
    for a value that its flag would refuse. None is a value where it is the default.
    """
    kept = {name: value for name, value in kept.items() if name not in RETIRED}
    for name, value in kept.items():
        if name not in defaults:
            raise UserError(f"{path}: holds {short(name)}, which is no setting of this demo")
        if value is None and defaults[name] is None:
            continue
        if message := problem(value, types[name]):
            raise UserError(f"{path}: its setting {name} {message}")
    return kept


def problem(value: Any, type_: Callable[[str], Any]) -> str | None:
    """What is wrong with the value of a setting; None if it is one that `type_` makes."""
    if type_ is bool:
        return None if isinstance(value, bool) else f"must be true or false, got {short(value)}"
    try:
        made = type_(str(value))
    except argparse.ArgumentTypeError as error:
        return str(error)[:200]
    if made != value or isinstance(value, bool):
        return f"must be {made!r:.40} or the like, got {short(value)}"
    return None


def short(value: Any) -> str:
    """The value in one short line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Which settings go together


def check_jumps(args: argparse.Namespace, schedule: Schedule) -> None:
    """UserError for DDIM with a prediction of eps from almost no signal.

    x_0_hat = (x_T - noise_T eps_hat) / signal_T multiplies the error of eps_hat by 1 / signal_T,
    and the first jump goes by way of x_0_hat. Ancestral sampling passes such t in small steps, and
    later steps correct the errors of earlier ones: measured on the swiss roll, its samples are as
    good on a schedule that ends at signal[T] = 5e-5 as on one that ends at 6e-3.
    """
    signal_T = schedule.signal[-1]
    if args.predict in ("eps", "score") and args.sampler == "ddim" and signal_T < SIGNAL_FOR_EPS:
        raise UserError(
            f"--predict {args.predict} with --sampler ddim: this schedule ends at signal[T] = "
            f"{signal_T:.2g}, where an error of 0.01 in eps is one of {0.01 / signal_T:.0f} in "
            "x_0; train with --predict v, or use --sampler ddpm"
        )
