"""The emulated machine as a fixture."""

import platform

import beside
import pytest
from counting import Counter
from cycles_pieces import llvm
from machine import BuildError, Machine, Unavailable, built_machine


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> beside.Report:
    return beside.reporter(request.config)


@pytest.fixture(scope="session")
def machine(report: beside.Report) -> Machine:
    """The emulated machine with the project built for it; tests skip without it, but fail where CI is set."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        pytest.skip("this is an Arm CPU: the tests run on it directly")
    try:
        return built_machine(report)
    except Unavailable as reason:
        beside.unavailable(f"the emulated machine is unavailable: {reason}")
    except BuildError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def counter(machine: Machine, report: beside.Report) -> Counter:
    """The emulator that counts; tests skip without it, but fail where CI is set, as without the emulated machine."""
    try:
        llvm(report)
        return Counter(machine.root, report)
    except Unavailable as reason:
        beside.unavailable(str(reason))
