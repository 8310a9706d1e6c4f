"""What the README and the pages of usage and support show is true: their Python runs, their kernels serve."""

import re
from pathlib import Path

import pytest

import ao_arm
from ao_arm import support
from ao_arm.system import current_system

CHECKOUT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/usage.md", "docs/support.md", "docs/performance.md")
README, USAGE, SUPPORT, PERFORMANCE = ((CHECKOUT / page).read_text() for page in PAGES)


@pytest.mark.slow
@pytest.mark.x86
@pytest.mark.parametrize("page", [README, USAGE], ids=["README", "usage"])
def test_its_python_runs(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "a page", "exec"), {})


@pytest.mark.x86
def test_its_figures_are_those_of_the_page_of_all_figures() -> None:
    rows = re.findall(r"^\| .*\|$", README, re.MULTILINE)
    assert len(rows) > 5
    assert [row for row in rows if row not in PERFORMANCE] == []


@pytest.mark.x86
def test_the_kernels_are_those_of_the_table() -> None:
    named = set(re.findall(r"`((?:acl|neon|sve|portable|kleidiai)/[\w+]+)`", SUPPORT))
    tables = (ao_arm.kernels.list(), ao_arm.kernels.list(group_size=32))
    assert named == {kernel.id for table in tables for kernel in table}


@pytest.mark.every_cpu
def test_the_kernels_are_those_that_serve_on_this_cpu() -> None:
    system = current_system()
    if "Arm" in support.line() and not all(name in system.build for name in ("Arm Compute Library", "KleidiAI")):
        pytest.skip("the table is about builds with Arm Compute Library and KleidiAI")
    if "x86" in support.line() and "avx512vnni" not in system.features:
        pytest.skip("the table is about x86 with AVX-512 VNNI")
    (table,) = re.findall(r"^<!-- kernels: begin.*?-->\n(.*?)^<!-- kernels: end -->", SUPPORT, re.MULTILINE | re.DOTALL)
    header, rule, *lines = table.splitlines()
    assert (header, rule) == support.HEADER
    assert lines.count(support.line()) == 1, "run tests/arm64/support_table.py"
    # Where it names the core, it does so in the line of its features.
    core = (system.emulated or system.cpu).replace("-", " ").title()
    assert core in support.line() or core not in table


@pytest.mark.x86
def test_its_commands_are_single_lines() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert [command.count("\n") for command in commands] == [1, 1]
    assert commands[0].rstrip().endswith("ao_arm demo")
    assert commands[1].rstrip().endswith("-m pytest")
