"""The command line of the demos: flags and their checks, errors in one line."""

import argparse
import json
import math
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lab import files, interrupt, run_folder
from lab.errors import UserError
from npdiff.backend import BackendError
from npdiff.fast.workers import WorkerEnded


class Parser(argparse.ArgumentParser):
    """argparse with its errors in one line.

    The default of a setting is None; settings.choose fills it in. So a flag that the user gave can
    be told from one that was left out.
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


def new_file(text: str) -> Path:
    """A type of flag: the name of a file that can be written."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be the name of a file in a folder, got {text!r}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot be written to, got {text!r}")
    return path


def processes(text: str) -> int:
    """A type of flag: a number of processes; more than there are cores would not help."""
    return min(whole(1)(text), cores())


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Flags that demos share


def add_where_flags(parser: Parser, out: str, **default: Any) -> Any:
    """The flags of every demo: the seed, where to compute, where to write, how large a run.

    `default` gives the defaults of seed and backend for a demo that does not use settings.py.
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
    text = "replace the run in DIR, which is otherwise kept"
    group.add_argument("--overwrite", action="store_true", help=text)
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
    if args.likelihood and T < 2:
        raise UserError(f"--T {T}: --likelihood needs at least 2 steps")
    if args.sampler == "ddpm" and steps not in (None, T):
        raise UserError(
            f"--sampling-steps {steps}: ddpm takes all T = {T} steps; for fewer use --sampler ddim"
        )
    if steps is None:
        args.sampling_steps = T if args.sampler == "ddpm" else min(50, T)
    elif steps > T:
        raise UserError(f"--sampling-steps {steps}: ddim takes at most T = {T} steps")


# What a run writes and says


def own_folder(args: argparse.Namespace) -> None:
    """Make args.out the folder of this run. UserError where that fails; see `run_folder.claim`."""
    goes_on = getattr(args, "resume", False) or getattr(args, "sample_only", False)
    overwrite = getattr(args, "overwrite", False)
    if goes_on and overwrite:
        raise UserError("--overwrite: starts anew; leave out --resume and --sample-only")
    demo = Path(sys.argv[0]).stem
    args.marker = run_folder.claim(args.out, demo, goes_on, overwrite)  # `run` closes it


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write all that the run printed as JSON; what is not finite, which JSON lacks, as null."""
    files.write_text(path, json.dumps(_finite(metrics), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say_trained(metrics: dict[str, Any], step: int, steps: int) -> None:
    """Record the number of training steps, and warn where training did not reach its end."""
    metrics["trained_steps"] = step
    if step < steps:
        print(f"warning: this network was trained {step:,} of {steps:,} steps; --resume continues")


def check_samples(x: np.ndarray) -> None:
    """UserError for samples that no data of about unit variance can have."""
    if not (np.abs(x) < 1e6).all():
        raise UserError(
            "the samples are not finite, or beyond 1e6: training diverged; start again with a "
            "smaller --lr and --overwrite"
        )


def run(
    main: Callable[[argparse.Namespace], None], parse: Callable[[], argparse.Namespace]
) -> None:
    """Call main(parse()), and end in one line on stderr where that fails.

    The exit status is 1 for an error that the user can correct. It is 130 after Ctrl-C, and the
    line then says how to continue.
    """
    program, args = Path(sys.argv[0]), None
    # The demos say themselves what the library warns of.
    warnings.simplefilter("ignore", UserWarning)
    prepare_stdout(program)
    before = signal.signal(signal.SIGINT, interrupt.as_an_error)
    try:
        try:
            args = parse()
            main(args)
        finally:
            sys.stdout.flush()  # so that a pipe that nobody reads is seen here
    except KeyboardInterrupt:
        interrupt.say(how_to_continue(program, args))
        sys.exit(130)
    except BrokenPipeError:  # nobody reads stdout any more
        discard_stdout()
        sys.exit(1)
    except MemoryError:
        large = [f"--{name}" for name in ("samples", "batch") if hasattr(args, name)]
        advice = f"; use a smaller {' or '.join(large)}" if large else ""
        fail(program, f"out of memory{advice}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = f"free some space, or use another --out{how_to_continue(program, args)}"
        fail(program, f"{where}{error.strerror or error}; {advice}")
    except WorkerEnded as error:
        fail(program, f"{error}{how_to_continue(program, args)}")
    except (UserError, BackendError) as error:
        fail(program, str(error))
    finally:
        if args is not None and hasattr(args, "marker"):
            args.marker.close()
        signal.signal(signal.SIGINT, before)


def prepare_stdout(program: Path) -> None:
    """Let stdout take names in any script. One line, and the end, where it is closed."""
    if sys.stdout is None:
        fail(program, f"stdout is closed; redirect it to a file or to {os.devnull}")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """Let what is still to be written to stdout go nowhere, and fail nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def how_to_continue(program: Path, args: argparse.Namespace | None) -> str:
    """The command that continues the run, where it has a checkpoint; else nothing."""
    checkpoint = getattr(args, "checkpoint", None)
    if args is None or checkpoint is None or not checkpoint.exists():
        return ""
    return f"; to continue: python {program} --resume --out {shlex.quote(str(args.out))}"


def fail(program: Path, message: str) -> NoReturn:
    print(f"{program.name}: {message}", file=sys.stderr)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # stdout is what failed
        discard_stdout()
    sys.exit(1)
