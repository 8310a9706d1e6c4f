"""``--arm64``: the demo on the emulated machine of tests/arm64."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from .errors import DemoError


def run_emulated(args: argparse.Namespace) -> int:
    """Runs the same demo on an emulated CPU, with its output going where ours goes; returns its exit code.

    Raises:
        DemoError: if there is no such CPU, no source checkout, or no machine to be had.
    """
    sys.path.insert(0, str(emulated_machine_folder()))
    machine = importlib.import_module("machine")
    if args.cpu not in machine.CPUS:
        raise DemoError(f"--cpu must be one of {', '.join(machine.CPUS)}, not {args.cpu}")

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        with machine.Machine(report).start(args.cpu, _emulated_arguments(args), stdout=None) as process:
            report(f"arm64: starting Python on {args.cpu}; the demo takes minutes there")
            exit_code: int = process.wait()
    except (machine.Unavailable, machine.BuildError) as error:
        raise DemoError(f"the emulated machine is unavailable: {error}") from None
    return exit_code


def emulated_machine_folder() -> Path:
    """``tests/arm64`` of the source checkout that holds this package or the current folder."""
    here, current = Path(__file__).resolve().parents[2], Path.cwd()
    for checkout in (here, current, *current.parents):
        folder = checkout / "tests" / "arm64"
        if (folder / "machine.py").is_file():
            return folder
    raise DemoError(
        f"--arm64 needs a source checkout, for its tests/arm64: there is none at {here} nor around "
        f"{current}. Run the command from a checkout of ao_arm."
    )


def _emulated_arguments(args: argparse.Namespace) -> list[str]:
    words = ["-m", "ao_arm", "demo", "--model", args.model]
    if args.scheme:
        words += ["--scheme", args.scheme]
    for option in ("activations", "text", "folder", "threads", "json"):
        if value := getattr(args, option):
            words += [f"--{option}", str(value)]
    return words
