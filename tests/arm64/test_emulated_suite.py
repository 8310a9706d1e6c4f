"""Runs the project's tests on emulated AArch64 CPUs: one emulated pytest process for each CPU model.

AO_ARM_EMULATED_CPUS="neoverse-v1,max" chooses among the models, and so does `-k neoverse-v1`. In the common tests,
those marked `x86` are left out here and those marked `one_cpu` run on one model only.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from cache import Report
from machine import CPUS, Machine
from pytest_runs import Outcome

CHOSEN = tuple(filter(None, os.environ.get("AO_ARM_EMULATED_CPUS", "").split(","))) or CPUS

ONE_CPU = "neoverse-v1"

PROCESSES = 2
REPORT_SECONDS = 60.0

PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-rfE", "tests", "--ignore=tests/arm64")


def marker_expression(cpu: str) -> str:
    """Which of the common tests run on a CPU model."""
    return "not x86" if cpu == ONE_CPU else "not x86 and not one_cpu"


class Suites:
    """The emulated runs of a session, two at a time."""

    def __init__(self, machine: Machine, cpus: Sequence[str], report: Report) -> None:
        self._machine = machine
        self._report = report
        self._latest = dict.fromkeys(cpus, "waiting")
        self._processes: list[subprocess.Popen[str]] = []
        self._pool = ThreadPoolExecutor(PROCESSES)
        self._futures = {cpu: self._pool.submit(self._run, cpu) for cpu in cpus}

    def _run(self, cpu: str) -> Outcome:
        started = time.monotonic()
        lines = []
        with self._machine.start(cpu, [*PYTEST, "-m", marker_expression(cpu)]) as process:
            self._processes.append(process)
            assert process.stdout is not None  # start() makes it a pipe
            for line in process.stdout:
                lines.append(line)
                self._latest[cpu] = line.strip() or self._latest[cpu]
            exit_code = process.wait()
        outcome = Outcome(exit_code, "".join(lines))
        self._report(f"arm64: {cpu}: {outcome.summary} ({time.monotonic() - started:.0f} s in all)")
        return outcome

    def outcome(self, cpu: str) -> Outcome:
        """How the run on a CPU model ended; meanwhile the latest line of each run is reported now and then."""
        future = self._futures[cpu]
        while not wait([future], timeout=REPORT_SECONDS).done:
            for name in (name for name, other in self._futures.items() if other.running()):
                self._report(f"arm64: {name}: {self._latest[name][-100:]}")
        return future.result()

    def stop(self) -> None:
        """End what still runs, as when the session was interrupted."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._pool.shutdown()


@pytest.fixture(scope="session")
def suites(request: pytest.FixtureRequest, machine: Machine, report: Report) -> Iterator[Suites]:
    """Every run that the chosen tests ask for, all started when the first one does."""
    asked = {item.name for item in request.session.items}
    running = Suites(machine, [cpu for cpu in CHOSEN if f"{test_emulated_suite.__name__}[{cpu}]" in asked], report)
    yield running
    running.stop()


@pytest.mark.parametrize("cpu", CHOSEN)
def test_emulated_suite(cpu: str, suites: Suites) -> None:
    outcome = suites.outcome(cpu)
    if outcome.exit_code or not outcome.passed:
        pytest.fail(f"pytest on {cpu} ended with exit code {outcome.exit_code}\n{outcome.failures}", pytrace=False)
    print(f"{cpu}: {outcome.summary}")


def test_an_outcome_is_read_from_what_pytest_prints() -> None:
    failed = Outcome(1, "..F.\n==== FAILURES ====\n___ test_a ___\nE   assert\n==== 1 failed, 3 passed in 2.00s ====\n")
    assert failed.passed == 3
    assert failed.summary == "1 failed, 3 passed in 2.00s"
    assert failed.failures.startswith("==== FAILURES")
    nothing_ran = Outcome(0, "ss\n==== 2 skipped in 1.00s ====\n")
    assert nothing_ran.passed == 0
    assert nothing_ran.failures == nothing_ran.output
    assert Outcome(-4, "").summary == "no output"
