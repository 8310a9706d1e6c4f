"""The demo's options and its run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torchao.quantization.quant_primitives import MappingType

from .. import command_line, progress
from ..system import current_system
from . import figures, language_figures, language_tables, smollm2, tables
from .emulated import run_emulated
from .encoder import MODEL_PACKAGE
from .errors import DemoError
from .language_model import LanguageModel
from .schemes import DEFAULT, SCHEMES
from .text import licence_or_manual, read


@dataclass(frozen=True)
class Demo:
    """What is shown with one model.

    Attributes:
        packages: what it needs of ao_arm[demo].
        steps: how many steps are reported, with or without timing.
        measure: all figures, a dataclass.
        show: prints them.
    """

    packages: tuple[str, ...]
    steps: Callable[[bool], int]
    measure: Callable[[argparse.Namespace, bool, Callable[[str], None]], Any]
    show: Callable[[Any], None]


def _measure_encoder(args: argparse.Namespace, timing: bool, report: Callable[[str], None]) -> figures.Figures:
    mapping = MappingType[args.activations.upper()] if args.activations else None
    return figures.measure(args.scheme or DEFAULT, mapping, timing, report)


def _measure_language_model(
    args: argparse.Namespace, timing: bool, report: Callable[[str], None]
) -> language_figures.LanguageFigures:
    def load() -> LanguageModel:
        if args.folder:
            return LanguageModel(args.folder, args.folder.name)
        return LanguageModel(smollm2.model_folder(report), smollm2.MODEL)

    text = read(args.text) if args.text else licence_or_manual()
    return language_figures.measure(load, text, timing, report)


MINILM, SMOLLM2 = "minilm", "smollm2"
DEMOS = {
    MINILM: Demo(("transformers", MODEL_PACKAGE), figures.steps, _measure_encoder, tables.show),
    SMOLLM2: Demo(("transformers", "gguf"), language_figures.steps, _measure_language_model, language_tables.show),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``demo``."""
    parser.add_argument(
        "--model",
        choices=tuple(DEMOS),
        default=MINILM,
        help="a pretrained sentence encoder, or a language model with all schemes (default: %(default)s)",
    )
    parser.add_argument("--scheme", choices=tuple(SCHEMES), help=f"of {MINILM} (default: {DEFAULT})")
    parser.add_argument(
        "--activations",
        choices=("symmetric", "asymmetric"),
        help=f"of {MINILM}, without zero points or with (default: the scheme's own; int4 always has them)",
    )
    parser.add_argument(
        "--text",
        type=command_line.file_to_read,
        metavar="FILE",
        help=f"for the perplexity of {SMOLLM2} (default: the GPL-3 of the system, or a part of Python's manual)",
    )
    parser.add_argument(
        "--folder",
        type=command_line.folder_to_read,
        metavar="FOLDER",
        help=f"of another causal language model that transformers saved, in place of {SMOLLM2}",
    )
    parser.add_argument(
        "--threads", type=command_line.positive, metavar="N", help="for torch (default: torch's own choice)"
    )
    parser.add_argument(
        "--json", type=command_line.file_to_write, metavar="FILE", help="write all figures to a file too"
    )
    parser.add_argument("--no-timing", action="store_true", help="leave out the latencies")
    parser.add_argument("--arm64", action="store_true", help="on an emulated AArch64 CPU; needs a source checkout")
    parser.add_argument("--cpu", default="neoverse-v1", help="the CPU model for --arm64 (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Shows a model's figures and returns 0; ends the program with one line if something is missing."""
    demo = DEMOS[args.model]
    if args.model != MINILM and (args.scheme or args.activations):
        raise SystemExit(
            f"ao_arm demo: --scheme and --activations are for {MINILM}: --model {args.model} shows all schemes"
        )
    if args.model != SMOLLM2 and (args.text or args.folder):
        raise SystemExit(f"ao_arm demo: --text and --folder are for --model {SMOLLM2}")
    if args.arm64:
        with _in_one_line():
            if args.model == SMOLLM2 and not args.folder:
                # Converted here, where it takes seconds.
                command_line.require("demo", "demo", *demo.packages)
                args.folder = smollm2.model_folder(lambda step: print(f"ao_arm demo: {step}", file=sys.stderr))
            return run_emulated(args)
    command_line.require(
        "demo", "demo", *(package for package in demo.packages if package != "gguf" or not args.folder)
    )
    if args.threads:
        torch.set_num_threads(args.threads)
    timing = not args.no_timing and not current_system().emulated
    with _in_one_line(), progress.steps(demo.steps(timing), "ao_arm demo") as report, command_line.quiet():
        measured = demo.measure(args, timing, report)
    demo.show(measured)
    if args.json:
        with command_line.whole_file("demo", args.json) as file:
            file.write_text(json.dumps(dataclasses.asdict(measured), indent=2) + "\n")
    return 0


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Ends the program with what a ``DemoError`` says."""
    try:
        yield
    except DemoError as error:
        raise SystemExit(f"ao_arm demo: {error}") from None
