"""What the README shows is true: its Python runs, its kernels exist, and its commands are those that CI runs."""

import re
from pathlib import Path

import ao_arm

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_its_python_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_its_kernels_are_those_of_the_table() -> None:
    named = set(re.findall(r"`((?:acl|neon|portable|kleidiai)/[\w+]+)`", README))
    tables = (ao_arm.kernels.list(), ao_arm.kernels.list(group_size=32))
    assert named == {kernel.id for table in tables for kernel in table}


def test_its_commands_are_single_lines() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert [command.count("\n") for command in commands] == [1, 1]
    assert commands[0].rstrip().endswith("ao_arm demo")
    assert commands[1].rstrip().endswith("-m pytest")
