"""The other tests again, with each other version of torchao that ao_arm supports.

A version is fetched once, into the cache of `tests/arm64`, and comes before the installed one.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import beside
import pytest
from cache import piece
from commands import Unavailable, call

pytestmark = pytest.mark.x86

CHECKOUT = Path(__file__).resolve().parents[1]
OTHERS = sorted({"0.16.0", "0.17.0"} - {importlib.metadata.version("torchao")})
#: These know no torchao.
ALIKE = (
    *("arm64", "csrc", "test_activation_ops.py", "test_benchmark_results.py", "test_benchmark_timing.py"),
    *("test_ci.py", "test_directions.py", "test_documentation.py", "test_dynamic_ops.py", "test_fuzzed.py"),
    *("test_hostile_arguments.py", "test_int4_op_calls.py", "test_int4_ops.py", "test_int4_packing.py"),
    *("test_int8_op_calls.py", "test_kernel_choice.py", "test_matmul_ops.py", "test_op_statements.py"),
    *("test_packed_bytes.py", "test_pairs.py", "test_progress.py", "test_quantize.py", "test_quantized_ops.py"),
    *("test_selftest.py", "test_shared_input_ops.py", "test_soak.py", "test_static_ops.py", "test_threads.py"),
    *("test_tutorials.py", "wheels", Path(__file__).name),
)
#: As it was before any test changed it: runs begin beside tests.
ENVIRONMENT = dict(os.environ)
PYTEST = ("-m", "pytest", "tests", *(f"--ignore=tests/{name}" for name in ALIKE))
OPTIONS = ("-q", "--pairs", "-p", "no:cacheprovider", "--color=no", "-rfE", "-m", "not slow or every_torchao")


def fetch(version: str, folder: Path) -> None:
    """Unpacks torchao's wheel into an empty folder; without a wheel to download, installs into it."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries=2")
    with tempfile.TemporaryDirectory() as wheels:
        try:
            call((*pip, "download", "--no-deps", "--only-binary=:all:", f"--dest={wheels}", f"torchao=={version}"))
            (wheel,) = Path(wheels).iterdir()
        except (Unavailable, ValueError):
            call((*pip, "install", "--no-deps", f"--target={folder}", f"torchao=={version}"))
        else:
            with zipfile.ZipFile(wheel) as file:
                # Some of torchao's wheels bring a package `test`, which would hide Python's own.
                file.extractall(folder, [name for name in file.namelist() if name.startswith("torchao")])


def start(version: str, report: beside.Report) -> subprocess.Popen[str]:
    """Starts the tests with that version of torchao.

    Raises:
        Unavailable: if it cannot be had.
    """
    folder = piece(f"torchao-{version}", {"version": version}, partial(fetch, version), report)
    path = os.pathsep.join(filter(None, [str(folder), str(CHECKOUT), ENVIRONMENT.get("PYTHONPATH")]))
    environment = {**ENVIRONMENT, "PYTHONPATH": path}
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
def test_all_tests_with_torchao(
    version: str, outcome_of: Callable[[str], beside.Outcome], request: pytest.FixtureRequest
) -> None:
    try:
        beside.check(outcome_of(request.node.name), f"torchao {version}")
    except Unavailable as reason:
        beside.unavailable(f"torchao {version} is unavailable: {reason}")
