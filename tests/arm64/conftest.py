"""The emulated machine as a fixture; and this folder's modules importable, whatever pytest's import mode is."""

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import beside
import pytest

if TYPE_CHECKING:
    from machine import Machine

FOLDER = str(Path(__file__).resolve().parent)

if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> beside.Report:
    return beside.reporter(request.config)


@pytest.fixture(scope="session")
def machine(report: beside.Report) -> "Machine":
    """The emulated machine with the project built for it; tests skip without it, but fail where CI is set."""
    from machine import BuildError, Unavailable, built_machine

    if platform.machine().lower() in ("aarch64", "arm64"):
        pytest.skip("this is an Arm CPU: the tests run on it directly")
    try:
        return built_machine(report)
    except Unavailable as reason:
        beside.unavailable(f"the emulated machine is unavailable: {reason}")
    except BuildError as error:
        pytest.fail(str(error), pytrace=False)
