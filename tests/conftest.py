"""Shared fixtures: each kernel of this CPU forced in turn, thread counts, and a record of which kernels met a case.

Which tests are quick, in which order they run, and what runs beside them.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import beside
import cases
import hypothesis
import pairs
import pytest
import torch

if cases.EMULATED_CPU:
    from hypothesis.internal import scrutineer

    # Debian keeps packages where hypothesis takes them for ours, and it reads our files in search of constants.
    scrutineer.SITE_PACKAGES_DIRS.add(Path(torch.__file__).resolve().parents[1])

hypothesis.settings.register_profile(
    "ao_arm",
    max_examples=20 if cases.EMULATED_CPU else 200,
    deadline=None,
    derandomize=True,
    # Fixtures here choose a kernel or a number of threads, which no example changes.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ao_arm")

#: Fail for kernels in no one's `kernels_met`, so they have to run last.
LAST = ("test_every_kernel_of_this_cpu_met_a_case", "test_every_int4_kernel_of_this_cpu_met_a_case")
_left_out = pytest.StashKey[bool]()
#: Of a test that others stand for.
_spared = pytest.StashKey[bool]()


# Only what asks for more threads gets them: on a busy machine they wait for each other for long.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.enable_grad():  # graphs that were traced without gradients leave them off when they are called
        yield


@pytest.fixture(params=cases.TRIED_KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kernel that this CPU can run, thinned under emulation: weights that the test packs are packed for it."""
    monkeypatch.setenv("AO_ARM_KERNEL", request.param)
    return request.param


@pytest.fixture(params=cases.TRIED_INT4_KERNELS)
def kernel4(request: pytest.FixtureRequest) -> str:
    """Each kernel for 4-bit weights that this CPU can run, thinned under emulation."""
    return request.param


@pytest.fixture(params=(1, 2), ids="threads={}".format)
def threads(request: pytest.FixtureRequest) -> int:
    """One thread and two, for `cases.torch_threads`."""
    return request.param


@pytest.fixture(scope="session")
def kernels_met() -> set[str]:
    """Kernels whose results were compared with the reference; tests add to it after they did."""
    return set()


@pytest.fixture
def all_were_asked_for(request: pytest.FixtureRequest) -> None:
    """Skips the test unless every test that adds to `kernels_met` runs as well."""
    if request.config.stash.get(_left_out, False) or any("::" in argument for argument in request.config.args):
        pytest.skip("not all tests that compare kernels were asked for")


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        elsewhere = cases.EMULATED_CPU and item.get_closest_marker("x86")
        if "kernels_met" in getattr(item, "fixturenames", ()) and not elsewhere and not item.stash.get(_spared, False):
            item.config.stash[_left_out] = True


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pairs", action="store_true", help="of a test's combinations of parameters those in pairs.py")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[beside.TERMINAL] = os.fdopen(os.dup(1), "w")


_lanes = pytest.StashKey[beside.Lanes]()


def _order(item: pytest.Item) -> tuple[bool, bool, bool]:
    """The emulated machine is prepared meanwhile; what runs beside is waited for at the end."""
    return "outcome_of" in _fixtures(item), item.name in LAST, "machine" in _fixtures(item)


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


def _is_quick(item: pytest.Item) -> bool:
    needed = {"machine", "outcome_of"} & {*_fixtures(item)}
    return not needed and item.get_closest_marker("slow") is None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        if _is_quick(item):
            item.add_marker("quick")
    items.sort(key=_order)
    yield
    if config.option.pairs:  # now that other tests are deselected
        spared = pairs.left_out(items)
        for item in spared:
            item.stash[_spared] = True
        config.hook.pytest_deselected(items=spared)
        items[:] = [item for item in items if not item.stash.get(_spared, False)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    if session.config.option.collectonly or session.testsfailed:
        return
    # What was imported stays: going through it again and again would be a seventh of what exporting graphs takes.
    gc.collect()
    gc.freeze()
    marks = {item.name: item.get_closest_marker("beside") for item in session.items}
    runs = {name: mark for name, mark in marks.items() if mark is not None}
    longest_first = sorted(runs, key=lambda name: -runs[name].kwargs["minutes"])
    session.config.stash[_lanes] = beside.Lanes(beside.reporter(session.config))
    session.config.stash[_lanes].start({name: runs[name].args[0] for name in longest_first})


def pytest_sessionfinish(session: pytest.Session) -> None:
    if lanes := session.config.stash.get(_lanes, None):
        lanes.stop()


@pytest.fixture
def outcome_of(request: pytest.FixtureRequest) -> Callable[[str], beside.Outcome]:
    """How a run beside this one ended, by the name of the test whose mark `beside` starts it."""
    return request.config.stash[_lanes].outcome
