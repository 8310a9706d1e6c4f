"""The benchmark's options and its run."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .. import command_line, progress
from ..system import current_system
from . import comparison, layers, tables
from .candidates import BASELINE, CANDIDATES, Candidate, choose
from .measuring import measure, steps
from .results import Measurement, Results, Settings, environment
from .subject import Subject

PRESETS = {
    "quick": Settings("quick", samples=12, sample_seconds=0.002, most_seconds=0.15, budget_seconds=90.0),
    "full": Settings("full", samples=30, sample_seconds=0.01, most_seconds=2.0),
}
_SHAPES = {"quick": layers.QUICK, "full": layers.FULL}
#: A model is a few dozen layers.
_MODEL_TIMES_LAYER = 20
_MINILM = "minilm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``bench``."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--shapes", type=layers.shapes, metavar="MxKxN,...", help="layers instead of the preset's, like 64x768x3072"
    )
    what.add_argument(
        "--model",
        type=_model,
        metavar="FOLDER",
        help=f"a saved transformers model instead of layers, or {_MINILM}, the demo's; needs ao_arm[demo]",
    )
    what.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="compare what --json wrote, and that is all"
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="quick",
        help="shapes and accuracy; quick layers end within two minutes, full takes hours (default: %(default)s)",
    )
    parser.add_argument(
        "--only", type=_candidates, default=CANDIDATES, metavar="NAMES", help="candidates, like 'ao_arm*,*compiled'"
    )
    parser.add_argument("--baseline", default=BASELINE, metavar="NAME", help="of ratios (default: %(default)s)")
    parser.add_argument("--threads", type=command_line.positive, metavar="N", help="for torch (default: its choice)")
    parser.add_argument("--samples", type=command_line.positive, metavar="N", help="instead of the preset's number")
    parser.add_argument("--no-timing", action="store_true", help="verify only")
    parser.add_argument(
        "--json", type=command_line.file_to_write, metavar="FILE", help="write all results to a file too"
    )
    parser.add_argument(
        "--plot", type=command_line.file_to_write, metavar="FILE", help="draw the results (.png); needs ao_arm[bench]"
    )


def _candidates(text: str) -> tuple[Candidate, ...]:
    try:
        return choose(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _model(text: str) -> str:
    if text != _MINILM and not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text} is neither {_MINILM} nor a folder with a config.json")
    return text


def run(args: argparse.Namespace) -> int:
    """Returns 1 if a result of ao_arm's was wrong, and 130 if Ctrl-C ended it, after it has shown what it has."""
    if args.compare:
        return _compare(*args.compare)
    if args.baseline not in {candidate.name for candidate in args.only}:
        raise SystemExit(f"ao_arm bench: --baseline must be one of the candidates that are run, not {args.baseline!r}")
    if args.threads:
        torch.set_num_threads(args.threads)
    system = current_system()
    timed = not args.no_timing and not system.emulated
    if args.plot and not timed:
        raise SystemExit("ao_arm bench: --plot needs times, and with --no-timing and on emulated CPUs there are none")
    if args.plot:
        command_line.require("bench", "bench", "matplotlib")
    settings = _settings(args)
    schemes = {candidate.name: candidate.scheme for candidate in args.only}
    found: list[Measurement] = []

    def results() -> Results:
        return Results(system, environment(), settings, schemes, tuple(found))

    ended: KeyboardInterrupt | SystemExit | None = None
    with command_line.quiet():
        # Of torch 2.13, about what its own quantized layers are made of.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
        subjects = _subjects(args)
        with progress.steps(steps(subjects, args.only), "ao_arm bench") as report:
            try:
                for rows in measure(subjects, args.only, settings, timed, report):
                    found += rows
                    if args.json:
                        with command_line.whole_file("bench", args.json) as file:
                            results().write(file)
            except (KeyboardInterrupt, SystemExit) as error:  # the latter if the file cannot be written
                ended = error
    interrupted = isinstance(ended, KeyboardInterrupt)
    if interrupted and not found:
        return command_line.interrupted("bench", "no case was finished")
    for line in tables.lines(results(), args.baseline):
        print(line)
    if isinstance(ended, SystemExit):
        raise ended
    if args.plot:
        _plot(results(), args.baseline, args.plot)
    if interrupted:
        finished = len({(row.subject, row.case) for row in found})
        cases = sum(len(subject.cases) for subject in subjects)
        return command_line.interrupted("bench", f"{finished} of {cases} cases were finished")
    return int(any(row.wrong and row.candidate.startswith("ao_arm") for row in found))


def _settings(args: argparse.Namespace) -> Settings:
    settings = PRESETS[args.preset]
    return replace(
        settings,
        samples=args.samples or settings.samples,
        most_seconds=settings.most_seconds * (_MODEL_TIMES_LAYER if args.model else 1),
        budget_seconds=None if args.shapes or args.model else settings.budget_seconds,
    )


def _subjects(args: argparse.Namespace) -> Sequence[Subject]:
    if not args.model:
        return layers.subjects(args.shapes or _SHAPES[args.preset])
    from ..demo.encoder import MODEL_PACKAGE, Encoder
    from .model import ModelSubject

    minilm = args.model == _MINILM
    command_line.require("bench", "demo", "transformers", *([MODEL_PACKAGE] if minilm else []))
    return [ModelSubject(Encoder() if minilm else Encoder(Path(args.model), Path(args.model).resolve().name))]


def _compare(first: Path, second: Path) -> int:
    try:
        for line in comparison.lines(first, second):
            print(line, file=sys.stderr if line.startswith("warning: ") else sys.stdout)
    except ValueError as error:
        raise SystemExit(f"ao_arm bench: {error}") from None
    return 0


def _plot(results: Results, baseline: str, file: Path) -> None:
    from .plot import draw

    try:
        with command_line.whole_file("bench", file) as part:
            draw(results, baseline, part)
    except ValueError as error:
        raise SystemExit(f"ao_arm bench: {file}: {error}") from None
