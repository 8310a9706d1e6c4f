"""The other tests again, with each other version of torchao that ao_arm supports.

A version is fetched once, into `${XDG_CACHE_HOME:-~/.cache}/ao_arm/torchao-<version>`, and comes before the installed
one.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import beside
import pytest

pytestmark = pytest.mark.x86

CHECKOUT = Path(__file__).resolve().parents[1]
OTHERS = sorted({"0.16.0", "0.17.0"} - {importlib.metadata.version("torchao")})
#: These know no torchao.
ALIKE = ("arm64", "csrc", "test_int4_ops.py", "test_static_ops.py", "test_threads.py")
PYTEST = ("-m", "pytest", "tests", *(f"--ignore=tests/{name}" for name in (*ALIKE, Path(__file__).name)))
OPTIONS = ("-q", "-p", "no:cacheprovider", "--color=no", "-rfE", "-m", "not slow")


class Unavailable(RuntimeError):
    """A version of torchao cannot be had here; the message is the reason."""


def run_pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries=2", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"`pip {arguments[0]}` failed:\n{done.stderr.strip()}")


def fetch(version: str, folder: Path) -> None:
    """Unpacks torchao's wheel into an empty folder; without a wheel to download, installs into it."""
    with tempfile.TemporaryDirectory() as wheels:
        try:
            run_pip("download", "--no-deps", "--only-binary=:all:", f"--dest={wheels}", f"torchao=={version}")
            (wheel,) = Path(wheels).iterdir()
        except (Unavailable, ValueError):
            run_pip("install", "--no-deps", f"--target={folder}", f"torchao=={version}")
        else:
            with zipfile.ZipFile(wheel) as file:
                # Some of torchao's wheels bring a package `test`, which would hide Python's own.
                file.extractall(folder, [name for name in file.namelist() if name.startswith("torchao")])


def folder_of(version: str) -> Path:
    """The folder that holds torchao of that version: complete, or not there at all."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "ao_arm"
    final = cache / f"torchao-{version}"
    if not final.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".torchao-{version}-", dir=cache) as temporary:
            part = Path(temporary) / "torchao"
            part.mkdir()
            fetch(version, part)
            try:
                part.rename(final)
            except OSError:
                if not final.is_dir():  # else another process was faster
                    raise
    return final


def start(version: str, report: beside.Report) -> subprocess.Popen[str]:
    """Starts the tests with that version of torchao.

    Raises:
        Unavailable: if it cannot be had.
    """
    path = os.pathsep.join(filter(None, [str(folder_of(version)), str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", "import torchao; print(torchao.__version__)"]
    imported = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True).stdout
    assert imported.split()[-1:] == [version], f"Python imports another torchao, or none: {imported}"
    return subprocess.Popen(
        [sys.executable, *PYTEST, *OPTIONS],
        cwd=CHECKOUT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    "version", [pytest.param(name, marks=pytest.mark.beside(partial(start, name), minutes=2)) for name in OTHERS]
)
def test_all_tests_with_torchao(version: str, request: pytest.FixtureRequest) -> None:
    try:
        beside.check(request.getfixturevalue("outcome"), f"torchao {version}")
    except Unavailable as reason:
        beside.unavailable(f"torchao {version} is unavailable: {reason}")
