"""The cache: each piece of the emulated machine lives in a folder named after what was asked for.

Everything is below `${XDG_CACHE_HOME:-~/.cache}/ao_arm/arm64`, which may be deleted at any time.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tqdm import tqdm

Report = Callable[[str], None]

#: Between two lines about what takes long.
REPORT_SECONDS = 5.0


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


def meter(done: int, total: int, begun: float, unit: str) -> str:
    """How far something is that began at this `time.monotonic()`, and how long it may still take."""
    seconds = time.monotonic() - begun
    return str(tqdm.format_meter(min(done, total), total, seconds, ncols=80, unit=unit, unit_scale=unit == "B"))


@contextmanager
def _growth_reported(kind: str, megabytes: int, report: Report) -> Iterator[None]:
    """Tells now and then how much of a piece, of about this size, is there: of what is unfinished in the cache."""
    begun, ended = time.monotonic(), Event()

    def watch() -> None:
        most = 0
        while not ended.wait(REPORT_SECONDS):
            command: list[str | Path] = ["du", "-skc", *cache_folder().glob(".*")]
            sizes = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
            most = max(most, *(1024 * int(line.split()[0]) for line in sizes.splitlines()[-1:]))
            report(f"arm64: {kind}: {meter(most, megabytes << 20, begun, 'B')}")

    watching = Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def piece(
    kind: str, asked: Mapping[str, Any], fill: Callable[[Path], None], report: Report = print, megabytes: int = 0
) -> Path:
    """The folder of a piece; `fill` writes into a temporary folder, renamed when it is complete.

    `megabytes` is about how much is written meanwhile: of so much it is told now and then how much is there.
    """
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
            with _growth_reported(kind, megabytes, report) if megabytes else nullcontext():
                fill(part)
            (part / "asked.json").write_text(json.dumps(asked, indent=2, sort_keys=True) + "\n")
            part.chmod(0o755)
            part.rename(final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return final


def used(kind: str, folder: Path, seconds: float) -> None:
    """Note that a folder of a kind is used now, and remove those of its kind that were not for so many seconds."""
    os.utime(folder)
    for other in cache_folder().glob(f"{kind}-*"):
        if other.is_dir() and other.stat().st_mtime < time.time() - seconds:
            shutil.rmtree(other, ignore_errors=True)
