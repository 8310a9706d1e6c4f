"""What the README shows is true: its Python runs, its kernels serve, and its commands are those that CI runs."""

import re
from pathlib import Path

import pytest

import ao_arm
from ao_arm import support
from ao_arm.system import current_system

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.x86
def test_its_python_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.x86
def test_its_kernels_are_those_of_the_table() -> None:
    named = set(re.findall(r"`((?:acl|neon|portable|kleidiai)/[\w+]+)`", README))
    tables = (ao_arm.kernels.list(), ao_arm.kernels.list(group_size=32))
    assert named == {kernel.id for table in tables for kernel in table}


@pytest.mark.every_cpu
def test_its_kernels_are_those_that_serve_on_this_cpu() -> None:
    system = current_system()
    if "Arm" in support.line() and not all(name in system.build for name in ("Arm Compute Library", "KleidiAI")):
        pytest.skip("the README's table is about builds with Arm Compute Library and KleidiAI")
    if "x86" in support.line() and "avx512vnni" not in system.features:
        pytest.skip("the README's table is about x86 with AVX-512 VNNI")
    (table,) = re.findall(r"^<!-- kernels: begin.*?-->\n(.*?)^<!-- kernels: end -->", README, re.MULTILINE | re.DOTALL)
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
