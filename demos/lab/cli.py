"""The edge of the demos: arguments, their checks, the folder that a run owns, and errors in one line."""

import argparse
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from npdiff.backend import BackendError
from npdiff.kit import files
from npdiff.kit.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse with its errors in one line. Every default is None; `settings` fills them in, so an explicit flag is known as one."""

    def __init__(self, description: str, examples: str) -> None:
        super().__init__(
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def whole(low: int, high: int = 10**9) -> Callable[[str], int]:
    """A type for argparse: a whole number in low..high."""

    def parse(text: str) -> int:
        try:
            value = int(text.replace("_", ""))
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"a whole number in {low}..{high} is needed, got {text!r}")
        return value

    return parse


def number(above: float, high: float) -> Callable[[str], float]:
    """A type for argparse: a number above `above`, at most `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not above < value <= high:
            raise argparse.ArgumentTypeError(f"a number above {above:g} and at most {high:g} is needed, got {text!r}")
        return value

    return parse


def one_of(*names: str) -> Callable[[str], str]:
    """A type for argparse: one of these names."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is not known; take one of {', '.join(names)}")
        return text

    return parse


def folder(text: str) -> Path:
    """A type for argparse: a folder's name."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of a folder is needed, got nothing")
    return Path(text)


def say_trained(metrics: dict[str, Any], step: int, steps: int) -> None:
    """Keep how far training went, and say so where that is not to its end."""
    metrics["trained_steps"] = step
    if step < steps:
        print(f"warning: this network was trained {step:,} of {steps:,} steps; --resume goes on")


def add_where_flags(parser: Parser, out: str, **default: Any) -> Any:
    """The flags that every demo has: its seed, where to compute and where to write; with defaults where no settings fill them in."""
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=default.get("seed"), metavar="N", help="of every random number; default 0"
    )
    words = "auto, numpy or cupy; default auto: CuPy where it works, else NumPy"
    group.add_argument("--backend", type=one_of("auto", "numpy", "cupy"), default=default.get("backend"), help=words)
    group.add_argument("--out", type=folder, default=Path(out), metavar="DIR", help=f"folder for all that is written; default {out}")
    group.add_argument("--smoke", action="store_true", default=None, help="the smallest run that passes through everything, in seconds")
    return group


def add_run_flags(parser: Parser, out: str) -> None:
    """Those, and how to go on."""
    group = add_where_flags(parser, out)
    group.add_argument("--resume", action="store_true", help="go on with the run whose checkpoint is in DIR, with its settings")
    group.add_argument("--sample-only", action="store_true", help="no training: sample, judge and draw from the checkpoint in DIR")


def add_sampling_flags(parser: Parser, sampler: str, samplers: tuple[str, ...] = ("ddpm", "ddim")) -> Any:
    """The flags of the way back; `sampler` is the default."""
    group = parser.add_argument_group("sampling")
    words = f"{' or '.join(samplers)}, of which ddpm takes all T steps; default {sampler}"
    group.add_argument("--sampler", type=one_of(*samplers), metavar="NAME", help=words)
    words = "steps of ddim, at most T; default 50" + ("; of langevin, at each level; default 3" if "langevin" in samplers else "")
    group.add_argument("--sampling-steps", type=whole(1, 100_000), metavar="N", help=words)
    group.add_argument("--likelihood", action="store_true", help="also how likely the data are under the model, term by term")
    group.add_argument("--no-gif", dest="gif", action="store_false", default=None, help="no animation")
    return group


def check_sampling(args: argparse.Namespace) -> None:
    """Fill in --sampling-steps, which the sampler and T decide together."""
    if args.sampler == "ddpm" and args.sampling_steps not in (None, args.T):
        raise UserError(f"--sampling-steps {args.sampling_steps}: ddpm takes all T = {args.T} steps; for fewer take --sampler ddim")
    if args.sampling_steps is None:
        args.sampling_steps = args.T if args.sampler == "ddpm" else min(50, args.T)
    if args.sampling_steps > args.T:
        raise UserError(f"--sampling-steps {args.sampling_steps}: ddim takes at most T = {args.T} steps")


def settings(
    args: argparse.Namespace, defaults: dict[str, Any], smoke: dict[str, Any], free: tuple[str, ...], kept: dict[str, Any] | None
) -> dict[str, Any]:
    """The settings of the run: the explicit flags; then those `kept` by the run that it goes on with; without one the defaults.

    `free` names those that may differ from the kept ones: they change what follows training. UserError for any other.
    """
    explicit = {name: value for name, value in vars(args).items() if name in defaults and value is not None}
    if kept is None:
        return {**defaults, **(smoke if args.smoke else {}), **explicit}
    kept = {**defaults, **kept}  # a setting that is younger than the run had its default
    for name, value in explicit.items():
        if name not in free and value != kept[name]:
            flag = "--" + name.replace("_", "-")
            made = f"{flag} {value} contradicts the run in {args.out}, made with {flag} {kept[name]}"
            raise UserError(f"{made}; leave {flag} out, or start anew without --resume")
    return {**kept, **explicit}


def own_folder(path: Path) -> None:
    """Make the folder, and make sure that it can be written to. UserError where it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written to ({error.strerror or error}); give another folder") from error


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Everything that the run printed, as JSON, in one move."""
    files.write_text(path, json.dumps(metrics, indent=2) + "\n")


def run(main: Callable[[argparse.Namespace], None], parse: Callable[[], argparse.Namespace]) -> None:
    """Call main(parse()); what a user can mend ends in one line on stderr and exit status 1, Ctrl-C in how to go on and 130."""
    program, args = Path(sys.argv[0]), None
    try:
        args = parse()
        main(args)
    except KeyboardInterrupt:
        checkpoint = getattr(args, "checkpoint", None)
        kept = args is not None and checkpoint is not None and checkpoint.exists()
        go_on = f"; to go on: python {program} --resume --out {shlex.quote(str(args.out))}" if kept and args else ""
        print(f"\nstopped{go_on}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        print(f"{program.name}: out of memory; ask for less with --samples or --batch", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program.name}: {where}{error.strerror or error}; make room, or give another --out; --resume goes on", file=sys.stderr)
        sys.exit(1)
    except (UserError, BackendError) as error:
        print(f"{program.name}: {error}", file=sys.stderr)
        sys.exit(1)
