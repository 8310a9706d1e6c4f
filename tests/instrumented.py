"""Builds of `csrc/` for this machine with other compilers and flags, as sanitizers want them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from cache import Report
from machine import CHECKOUT, clean_environment
from project import build

#: Memory that is not the program's own and behaviour that C++ does not define; the first finding ends the program.
MEMORY = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer -g1"
RACES = "-fsanitize=thread -fno-omit-frame-pointer -g1"


def build_here(
    targets: Sequence[str],
    flags: str,
    report: Report,
    settings: Mapping[str, str | Path] | None = None,
    env: Mapping[str, str] | None = None,
) -> Path:
    """Build targets for this machine with these compiler flags; returns the build folder."""
    asked = {"AO_ARM_TORCH_DIR": Path(torch.__file__).parent, "CMAKE_CXX_FLAGS": flags, **(settings or {})}
    what = f"building {', '.join(targets)} with {flags.split()[0]}"
    environment = {**clean_environment(), **(env or {})}
    return build(CHECKOUT, settings=asked, targets=targets, env=environment, report=report, what=what)
