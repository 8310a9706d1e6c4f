"""Writes the table of kernels in docs/support.md, a line for each kind of CPU: `python support_table.py`."""

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from machine import CHECKOUT, BuildError, Machine, Unavailable

PAGE = CHECKOUT / "docs/support.md"
MARKERS = "<!-- kernels: begin, written by tests/arm64/support_table.py -->", "<!-- kernels: end -->"

# Of the emulated ones, those that differ in what kernels ask for.
CPUS = ("neoverse-v1", "max", "neoverse-n1", "a64fx")
INFO = ("-m", "ao_arm", "info", "--support")


def table_in(text: str) -> list[str]:
    """The lines of a Markdown table among others."""
    return [line for line in text.splitlines() if line.startswith("|")]


def replaced(page: str, table: Sequence[str], markers: tuple[str, str] = MARKERS) -> str:
    """The page's text with this table between the markers."""
    begin, end = map(re.escape, markers)
    made, times = re.subn(f"(?<={begin}\n).*(?={end})", "".join(f"{line}\n" for line in table), page, flags=re.DOTALL)
    if times != 1:
        raise ValueError(f"{PAGE.name} has {times} places for the table: {' '.join(markers)}")
    return made


def main() -> int:
    """Ask each CPU for its line, write them, and return the exit code."""
    report = partial(print, file=sys.stderr, flush=True)
    here = subprocess.run([sys.executable, *INFO], cwd=CHECKOUT, check=True, stdout=subprocess.PIPE, text=True)
    *header, x86 = table_in(here.stdout)
    try:
        machine = Machine(report)
        lines = [table_in(machine.run(cpu, INFO).stdout)[-1] for cpu in CPUS]
    except (Unavailable, BuildError) as error:
        report(f"arm64: {error}")
        return 2
    PAGE.write_text(replaced(PAGE.read_text(), [*header, *lines, x86]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
