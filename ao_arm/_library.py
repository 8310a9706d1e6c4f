"""Finds and loads the compiled library. Importing this module registers the ops in ``torch.ops.ao_arm``."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import torch

#: Environment variable that names the library to load, such as one that was built but not installed.
LIBRARY = "AO_ARM_LIBRARY"
_FILE = "libao_arm.dylib" if sys.platform == "darwin" else "libao_arm.so"


def _candidates() -> list[Path]:
    """The one that is named; or beside this file, then where the installed distribution has it."""
    if LIBRARY in os.environ:
        return [Path(os.environ[LIBRARY])]
    found = [Path(__file__).with_name(_FILE)]
    try:
        distribution = importlib.metadata.distribution("ao_arm")
    except importlib.metadata.PackageNotFoundError:
        return found
    return [*found, Path(str(distribution.locate_file(f"ao_arm/{_FILE}")))]


def _load() -> Path:
    for path in _candidates():
        if path.is_file():
            torch.ops.load_library(str(path))
            return path
    raise ImportError(
        f"ao_arm's compiled library {_FILE} is missing (looked for {', '.join(map(str, _candidates()))}). "
        "Build it: pip install --no-build-isolation . in the source checkout."
    )


PATH = _load()
