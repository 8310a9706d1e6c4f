"""Runs the project's tests on emulated AArch64 CPUs: one emulated pytest process for each CPU model.

AO_ARM_EMULATED_CPUS="neoverse-v1,max" chooses among the models, and so does `-k neoverse-v1`. Which of the common tests
run on which model, their marks say: see CONTRIBUTING.md.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import beside
import exchanged
import pytest
from beside import Outcome, Report
from machine import CHECKOUT, CPUS, ENVIRONMENT, BuildError, Unavailable, built_machine
from test_exchanged import check_kernels

#: What runs on each model, and about how many minutes that takes.
SUITES = {
    "neoverse-v1": ("not x86", 6),
    "neoverse-n1": ("not x86 and not one_cpu", 3),
    "a64fx": ("not x86 and not one_cpu", 2),
    "max": ("every_cpu", 1),
}
CHOSEN = tuple(filter(None, os.environ.get("AO_ARM_EMULATED_CPUS", "").split(","))) or CPUS

PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-rfE", "--pairs")
TESTS = Path(__file__).resolve().parents[1]


def files(marks: str) -> list[str]:
    """Those that have tests with these marks: reading the others takes longer there than many a test."""
    texts = {f"tests/{path.name}": path.read_text() for path in sorted(TESTS.glob("test_*.py"))}
    if marks == "every_cpu":
        return [name for name, text in texts.items() if "pytest.mark.every_cpu" in text]
    left_out = "|".join(mark for mark in ("x86", "one_cpu") if f"not {mark}" in marks)
    return [
        name
        for name, text in texts.items()
        if not re.search(rf"^pytestmark = \[?\s*pytest\.mark\.({left_out})\b", text, re.M)
    ]


_exchanging = threading.Lock()
_exchange: list[tempfile.TemporaryDirectory[str]] = []


def exchange() -> Path:
    """A folder for what kinds of CPU write for each other; what x86 writes is in it."""
    with _exchanging:
        if not _exchange:
            made = tempfile.TemporaryDirectory(prefix="exchange-")
            folder = Path(made.name) / exchanged.X86
            folder.mkdir()
            env = {**ENVIRONMENT, "PYTHONPATH": str(CHECKOUT)}
            subprocess.run([sys.executable, TESTS / "exchanged.py", folder], env=env, check=True)
            _exchange.append(made)
    return Path(_exchange[0].name)


def start(cpu: str, report: Report) -> AbstractContextManager[subprocess.Popen[str]]:
    marks = SUITES[cpu][0]
    env = {exchanged.FOLDER_VARIABLE: str(exchange())}
    return built_machine(report).start(cpu, [*PYTEST, *files(marks), "-m", marks], env=env)


@pytest.mark.skipif(platform.machine().lower() in ("aarch64", "arm64"), reason="the tests run on this Arm CPU")
@pytest.mark.parametrize(
    "cpu", [pytest.param(cpu, marks=pytest.mark.beside(partial(start, cpu), minutes=SUITES[cpu][1])) for cpu in CHOSEN]
)
def test_emulated_suite(cpu: str, outcome_of: Callable[[str], Outcome], request: pytest.FixtureRequest) -> None:
    try:
        beside.check(outcome_of(request.node.name), cpu)
    except Unavailable as reason:
        beside.unavailable(f"the emulated machine is unavailable: {reason}")
    except BuildError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.mark.parametrize("cpu", [cpu for cpu in CHOSEN if "every_cpu" not in SUITES[cpu][0]])
def test_a_checkpoint_written_there_is_read_here(cpu: str, outcome_of: Callable[[str], Outcome]) -> None:
    try:
        outcome_of(f"{test_emulated_suite.__name__}[{cpu}]")
    except (Unavailable, BuildError) as reason:
        pytest.skip(f"nothing was written: {reason}")  # which the test of that name judges
    check_kernels(exchanged.read_checkpoint(exchange() / cpu), "")


def test_files_are_left_out_by_their_marks() -> None:
    assert {"tests/test_kernel_choice.py", "tests/test_readme.py"} <= {*files("every_cpu")}
    of_any_kind = files("not x86")
    assert {*files("every_cpu")} < {*of_any_kind}
    assert "tests/test_tensor.py" in of_any_kind
    assert "tests/test_language_demo.py" not in of_any_kind and "tests/test_directions.py" not in of_any_kind
    of_each_kind = files("not x86 and not one_cpu")
    assert {*of_any_kind} - {*of_each_kind} >= {"tests/test_qat.py", "tests/test_encoder_demo.py"}
    assert {*files("every_cpu")} | {"tests/test_tensor.py"} < {*of_each_kind} < {*of_any_kind}


def test_an_outcome_is_read_from_what_pytest_prints() -> None:
    failed = Outcome(1, "..F.\n==== FAILURES ====\n___ test_a ___\nE   assert\n==== 1 failed, 3 passed in 2.00s ====\n")
    assert failed.passed == 3
    assert failed.summary == "1 failed, 3 passed in 2.00s"
    assert failed.failures.startswith("==== FAILURES")
    nothing_ran = Outcome(0, "ss\n==== 2 skipped in 1.00s ====\n")
    assert nothing_ran.passed == 0
    assert nothing_ran.failures == nothing_ran.output
    assert Outcome(-4, "").summary == "no output"
