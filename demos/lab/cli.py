"""The command line of the demos: flags and their checks, a run's settings, errors in one line."""

import argparse
import json
import math
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lab import files
from lab.errors import UserError
from npdiff.backend import BackendError


class Parser(argparse.ArgumentParser):
    """argparse with its errors in one line.

    The default of a setting is None; `settings` fills it in. So a flag that the user gave can be
    told from one that was left out.
    """

    def __init__(self, description: str, examples: str) -> None:
        super().__init__(
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


# Types of flags, for argparse


def whole(low: int, high: int = 10**9) -> Callable[[str], int]:
    """A type of flag: a whole number in low..high."""

    def parse(text: str) -> int:
        try:
            value = int(text.replace("_", ""))
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"must be a whole number in {low}..{high}, got {text!r}"
            )
        return value

    return parse


def number(above: float, high: float) -> Callable[[str], float]:
    """A type of flag: a number above `above` and at most `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not above < value <= high:
            raise argparse.ArgumentTypeError(
                f"must be a number above {above:g} and at most {high:g}, got {text!r}"
            )
        return value

    return parse


def one_of(*names: str) -> Callable[[str], str]:
    """A type of flag: one of these names."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, got {text!r}")
        return text

    return parse


def folder(text: str) -> Path:
    """A type of flag: the name of a folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be the name of a folder, got an empty one")
    return Path(text)


# Flags that demos share


def add_where_flags(parser: Parser, out: str, **default: Any) -> Any:
    """The flags of every demo: the seed, where to compute, where to write, how large a run.

    `default` gives the defaults of seed and backend for a demo that does not use `settings`.
    """
    group = parser.add_argument_group("the run")
    text = "seed of all random numbers; default 0"
    group.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=default.get("seed"), metavar="N", help=text
    )
    text = "auto, numpy or cupy; default auto: CuPy where it works, else NumPy"
    backend = one_of("auto", "numpy", "cupy")
    group.add_argument("--backend", type=backend, default=default.get("backend"), help=text)
    text = f"folder for all that is written; default {out}"
    group.add_argument("--out", type=folder, default=Path(out), metavar="DIR", help=text)
    text = "the smallest run that does everything once, in seconds"
    group.add_argument("--smoke", action="store_true", default=None, help=text)
    return group


def add_run_flags(parser: Parser, out: str) -> None:
    """The flags of `add_where_flags`, and those that continue or reuse a run."""
    group = add_where_flags(parser, out)
    text = "continue the run whose checkpoint is in DIR, with its settings"
    group.add_argument("--resume", action="store_true", help=text)
    text = "do not train: sample, judge and draw from the checkpoint in DIR"
    group.add_argument("--sample-only", action="store_true", help=text)


def add_sampling_flags(
    parser: Parser, sampler: str, samplers: tuple[str, ...] = ("ddpm", "ddim")
) -> Any:
    """The flags of the reverse process; `sampler` is the default."""
    group = parser.add_argument_group("sampling")
    text = f"{' or '.join(samplers)}; ddpm takes all T steps; default {sampler}"
    group.add_argument("--sampler", type=one_of(*samplers), metavar="NAME", help=text)
    text = "steps of ddim, at most T; default 50"
    if "langevin" in samplers:
        text += "; steps of langevin at each level, default 3"
    group.add_argument("--sampling-steps", type=whole(1, 100_000), metavar="N", help=text)
    text = "also print the bound on the likelihood of the data, term by term"
    group.add_argument("--likelihood", action="store_true", help=text)
    text = "draw no animation"
    group.add_argument("--no-gif", dest="gif", action="store_false", default=None, help=text)
    return group


def check_sampling(args: argparse.Namespace) -> None:
    """Fill in --sampling-steps, whose default depends on the sampler and on T, and check it."""
    steps, T = args.sampling_steps, args.T
    if args.sampler == "ddpm" and steps not in (None, T):
        raise UserError(
            f"--sampling-steps {steps}: ddpm takes all T = {T} steps; for fewer use --sampler ddim"
        )
    if steps is None:
        args.sampling_steps = T if args.sampler == "ddpm" else min(50, T)
    elif steps > T:
        raise UserError(f"--sampling-steps {steps}: ddim takes at most T = {T} steps")


# The settings of a run


def settings(
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
    kept : the checkpoint's settings, or None for a new run

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


# What a run writes and says


def own_folder(path: Path) -> None:
    """Make the folder. UserError where that fails, or where no file can be written to it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--out {path}: cannot be written to ({reason}); use another one"
        ) from error


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write all that the run printed as JSON."""
    files.write_text(path, json.dumps(metrics, indent=2) + "\n")


def say_trained(metrics: dict[str, Any], step: int, steps: int) -> None:
    """Record the number of training steps, and warn where training did not reach its end."""
    metrics["trained_steps"] = step
    if step < steps:
        print(f"warning: this network was trained {step:,} of {steps:,} steps; --resume continues")


def run(
    main: Callable[[argparse.Namespace], None], parse: Callable[[], argparse.Namespace]
) -> None:
    """Call main(parse()), and end in one line on stderr where that fails.

    The exit status is 1 for an error that the user can correct. It is 130 after Ctrl-C, and the
    line then says how to continue.
    """
    program, args = Path(sys.argv[0]), None
    warnings.simplefilter(
        "ignore", UserWarning
    )  # the demos say themselves what the library warns of
    try:
        args = parse()
        main(args)
    except KeyboardInterrupt:
        print(f"\nstopped{how_to_continue(program, args)}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # nobody reads stdout any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        fail(program, "out of memory; use a smaller --samples or --batch")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = "free some space, or use another --out; --resume continues"
        fail(program, f"{where}{error.strerror or error}; {advice}")
    except (UserError, BackendError) as error:
        fail(program, str(error))


def how_to_continue(program: Path, args: argparse.Namespace | None) -> str:
    """The command that continues the run, where it has a checkpoint; else nothing."""
    checkpoint = getattr(args, "checkpoint", None)
    if args is None or checkpoint is None or not checkpoint.exists():
        return ""
    return f"; to continue: python {program} --resume --out {shlex.quote(str(args.out))}"


def fail(program: Path, message: str) -> NoReturn:
    print(f"{program.name}: {message}", file=sys.stderr)
    sys.exit(1)
