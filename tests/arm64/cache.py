"""The cache: each piece of the emulated machine lives in a folder named after what was asked for.

Everything is below `${XDG_CACHE_HOME:-~/.cache}/ao_arm/arm64`, which may be deleted at any time.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Report = Callable[[str], None]


def cache_folder() -> Path:
    """The folder that holds every piece; made when missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base).resolve() / "ao_arm" / "arm64"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def key(asked: Mapping[str, Any]) -> str:
    """A short hash of what was asked for."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def locked(name: str, report: Report = print) -> Iterator[None]:
    """Hold the cache's lock `name`; a process that dies gives it back."""
    import fcntl  # not on Windows, where this folder is still collected by pytest

    with open(cache_folder() / f"{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"arm64: waiting for another process that prepares {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def piece(kind: str, asked: Mapping[str, Any], fill: Callable[[Path], None], report: Report = print) -> Path:
    """The folder of a piece; `fill` writes into a temporary folder, renamed when it is complete."""
    final = cache_folder() / f"{kind}-{key(asked)}"
    if final.is_dir():
        return final
    with locked(kind, report):
        if final.is_dir():
            return final
        # No process but the holder of the lock writes these, so the ones found were left by an interrupted run.
        for left_over in cache_folder().glob(f".{kind}-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=cache_folder()))
        try:
            fill(part)
            (part / "asked.json").write_text(json.dumps(asked, indent=2, sort_keys=True) + "\n")
            part.chmod(0o755)
            part.rename(final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return final
