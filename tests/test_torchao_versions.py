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
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from pytest_runs import Outcome

pytestmark = pytest.mark.x86

VERSIONS = ("0.16.0", "0.17.0")
CHECKOUT = Path(__file__).resolve().parents[1]
INSTALLED = importlib.metadata.version("torchao")
#: These know no torchao.
ALIKE = ("arm64", "csrc", "test_int4_ops.py", "test_static_ops.py", "test_threads.py")
PYTEST = ("-m", "pytest", "tests", *(f"--ignore=tests/{name}" for name in (*ALIKE, Path(__file__).name)))
OPTIONS = ("-q", "-p", "no:cacheprovider", "--color=no", "-rfE", "-m", "not slow_compile")
TIMEOUT_SECONDS = 1800


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


def run_tests(version: str) -> Outcome:
    """Runs the tests with that version of torchao.

    Raises:
        Unavailable: if it cannot be had.
    """
    path = os.pathsep.join(filter(None, [str(folder_of(version)), str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )

    imported = run("-c", "import torchao; print(torchao.__version__)").stdout
    assert imported.split()[-1:] == [version], f"Python imports another torchao, or none: {imported}"
    done = run(*PYTEST, *OPTIONS)
    return Outcome(done.returncode, done.stdout)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """The runs that the chosen tests ask for, side by side; all are started when the first test is."""
    asked = [version for version in VERSIONS if any(f"[{version}]" in item.name for item in request.session.items)]
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        yield {version: pool.submit(run_tests, version) for version in asked if version != INSTALLED}


@pytest.mark.parametrize("version", VERSIONS)
def test_all_tests_with_torchao(version: str, runs: dict[str, Future[Outcome]]) -> None:
    if version == INSTALLED:
        pytest.skip(f"torchao {version} is the installed one, with which all tests run anyway")
    try:
        outcome = runs[version].result()
    except Unavailable as reason:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"torchao {version} is unavailable: {reason}", pytrace=False)
        pytest.skip(f"torchao {version} is unavailable: {reason}")
    if outcome.exit_code or not outcome.passed:
        pytest.fail(
            f"with torchao {version} pytest ended with exit code {outcome.exit_code}\n{outcome.failures}", pytrace=False
        )
    print(f"torchao {version}: {outcome.summary}")
