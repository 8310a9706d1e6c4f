"""What the subcommands of ``python -m ao_arm`` share: types of options, files, quiet, Ctrl-C, what is not installed."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


def positive(text: str) -> int:
    """An option's whole number, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it must be at least 1, not {number}")
    return number


def file_to_write(text: str) -> Path:
    """An option's file, in a folder that exists."""
    path = Path(text).absolute()
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def file_to_read(text: str) -> Path:
    """An option's file that exists."""
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return path


def folder_to_read(text: str) -> Path:
    """An option's folder that exists."""
    path = Path(text).absolute()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path}")
    return path


@contextmanager
def whole_file(command: str, file: Path) -> Iterator[Path]:
    """Lets a file be written beside its place, which it takes in the end: there it is whole, or as it was before.

    Yields the path to write to. If that fails, as on a full disk, the program ends with one line.
    """
    file = file.resolve()
    special = file.exists() and not file.is_file()  # /dev/stdout, a pipe
    part = file if special else file.with_name(f".{os.getpid()}-{file.name}")  # the suffix stays: it tells the format
    try:
        yield part
        if not special:
            os.replace(part, file)
    except OSError as error:
        state = "written to" if special else "written, and is as it was"
        raise SystemExit(f"ao_arm {command}: {file} was not {state}: {error.strerror or error}") from None
    finally:
        if not special:
            part.unlink(missing_ok=True)


def is_full(error: OSError) -> bool:
    """Whether there is no room left to write to."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what other packages log and warn of, which the user of a command can do nothing about; ours is shown."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torchao|transformers|torch)\b")
            yield
    finally:
        logging.disable(disabled)


def interrupted(command: str, what_is_left: str = "") -> int:
    """Says in one line that Ctrl-C ended a command, and what there is of it; returns the exit code of that."""
    print(f"ao_arm {command}: interrupted{what_is_left and f': {what_is_left}'}", file=sys.stderr)
    return 128 + signal.SIGINT


def require(command: str, extra: str, *packages: str) -> None:
    """Ends the program with one line if packages of one of ao_arm's extras are not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise not_installed(command, extra, *missing)


def not_installed(command: str, extra: str, *packages: str) -> SystemExit:
    """The end of the program with one line that names what is not installed and the extra that brings it."""
    return SystemExit(f"ao_arm {command}: not installed: {', '.join(packages)}. Run: pip install 'ao_arm[{extra}]'")
