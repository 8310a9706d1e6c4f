"""The emulated machine as a fixture; and this folder's modules importable, whatever pytest's import mode is."""

import os
import platform
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cache import Report
    from machine import Machine

FOLDER = str(Path(__file__).resolve().parent)

if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> "Report":
    """Prints a line at once: what takes minutes must not wait in pytest's capture to say so."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            print(f"\n{line}", end="", flush=True)

    return show


@pytest.fixture(scope="session")
def machine(report: "Report") -> "Machine":
    """The emulated machine with the project built for it; tests skip without it, but fail where CI is set."""
    from machine import BuildError, Machine, Unavailable

    if platform.machine().lower() in ("aarch64", "arm64"):
        pytest.skip("this is an Arm CPU: the tests run on it directly")
    try:
        made = Machine(report)
        made.build()
    except Unavailable as reason:
        text = f"the emulated machine is unavailable: {reason}"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    except BuildError as error:
        pytest.fail(str(error), pytrace=False)
    return made
