"""The command line: ``python -m ao_arm info | demo | bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import info
from .benchmark import command as bench
from .demo import command as demo


class Subcommand(NamedTuple):
    """A row of the command line: what it is called, what it does, its options, and the function that does it."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


SUBCOMMANDS = (
    Subcommand("info", "show this CPU, the versions and all kernels", info.add_arguments, info.run),
    Subcommand(
        "demo", "quantize a real encoder or language model: accuracy, size, speed", demo.add_arguments, demo.run
    ),
    Subcommand("bench", "time layers or a model: ours, torch's and torchao's", bench.add_arguments, bench.run),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m ao_arm", description="Int8 linear layers for PyTorch on Arm CPUs.")
    choices = parser.add_subparsers(required=True, metavar=" | ".join(row.name for row in SUBCOMMANDS))
    for row in SUBCOMMANDS:
        subparser = choices.add_parser(row.name, help=row.summary, description=f"{row.summary.capitalize()}.")
        row.add_arguments(subparser)
        subparser.set_defaults(run=row.run)
    args = parser.parse_args(arguments)
    exit_code: int = args.run(args)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
