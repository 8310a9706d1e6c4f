"""The command line: ``python -m ao_arm info | selftest | demo | bench``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import command_line, info
from ._version import __version__
from .benchmark import command as bench
from .demo import command as demo
from .selftest import command as selftest


class Subcommand(NamedTuple):
    """A row of the command line: what it is called, what it does, its options, and the function that does it."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


SUBCOMMANDS = (
    Subcommand("info", "show this CPU, the versions and all kernels", info.add_arguments, info.run),
    Subcommand(
        "selftest",
        "run every kernel that this CPU can run beside the reference, for bug reports",
        selftest.add_arguments,
        selftest.run,
    ),
    Subcommand(
        "demo", "quantize a real encoder or language model: accuracy, size, speed", demo.add_arguments, demo.run
    ),
    Subcommand("bench", "time layers or a model: ours, torch's and torchao's", bench.add_arguments, bench.run),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code, which is 130 if Ctrl-C ended it."""
    description = "Int8 and 4-bit linear layers for PyTorch on Arm CPUs."
    parser = argparse.ArgumentParser(prog="python -m ao_arm", description=description)
    parser.add_argument("--version", action="version", version=f"ao_arm {__version__}")
    choices = parser.add_subparsers(required=True, metavar=" | ".join(row.name for row in SUBCOMMANDS))
    for row in SUBCOMMANDS:
        subparser = choices.add_parser(row.name, help=row.summary, description=f"{row.summary.capitalize()}.")
        row.add_arguments(subparser)
        subparser.set_defaults(run=row.run, command=row.name)
    args = parser.parse_args(arguments)
    try:
        exit_code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return command_line.interrupted(args.command)
    except OSError as error:  # as of `info | head` or `info > /dev/full`
        if not isinstance(error, BrokenPipeError) and not command_line.is_full(error):
            raise
        # What Python still holds must not be written when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        print(f"ao_arm {args.command}: {error.strerror}", file=sys.stderr)
        return 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
