"""What a pytest that a test has started ended with."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How a pytest ended: its exit code and what it printed."""

    exit_code: int
    output: str

    @property
    def summary(self) -> str:
        """pytest's last line: how many tests passed, failed and were skipped."""
        return next((line.strip("= ") for line in reversed(self.output.splitlines()) if line.strip()), "no output")

    @property
    def passed(self) -> int:
        """The number of tests that passed."""
        match = re.search(r"(\d+) passed", self.summary)
        return int(match[1]) if match else 0

    @property
    def failures(self) -> str:
        """The reports of what failed, without the progress before them; everything when there are none."""
        match = re.search(r"^=+ (FAILURES|ERRORS) =+$.*", self.output, re.MULTILINE | re.DOTALL)
        return match[0] if match else self.output
