"""Other runs of pytest beside this one: each core has one, this process among them until it waits for an outcome."""

import os
import re
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Thread
from typing import NoReturn, TextIO

import pytest

REPORT_SECONDS = 60.0

Report = Callable[[str], None]
#: Starts a pytest of which both outputs come in one stream; what it reports meanwhile is about preparing it.
Start = Callable[[Report], AbstractContextManager[subprocess.Popen[str]]]


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


class Lanes:
    """Takes runs in the order given; one at a time for each core but one, and for all once an outcome is waited for."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._queue: deque[tuple[str, Start]] = deque()
        self._futures: dict[str, Future[Outcome]] = {}
        self._latest: dict[str, str] = {}
        self._processes: list[subprocess.Popen[str]] = []
        self._waited = False

    def start(self, runs: Mapping[str, Start]) -> None:
        self._queue.extend(runs.items())
        self._futures = {name: Future() for name in runs}
        self._open(max(1, (os.cpu_count() or 1) - 1))

    def _open(self, count: int) -> None:
        for _ in range(count):
            Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                name, start = self._queue.popleft()
            except IndexError:
                return
            started = time.monotonic()
            self._latest[name] = "preparing"
            try:
                with start(self.report) as process:
                    outcome = self._follow(name, process)
                self.report(f"{name}: {outcome.summary} ({time.monotonic() - started:.0f} s in all)")
                self._futures[name].set_result(outcome)
            except BaseException as error:
                self._futures[name].set_exception(error)
            del self._latest[name]

    def _follow(self, name: str, process: subprocess.Popen[str]) -> Outcome:
        """Reads what a run prints to its end."""
        self._processes.append(process)
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            self._latest[name] = line.strip() or self._latest[name]
        return Outcome(process.wait(), "".join(lines))

    def outcome(self, name: str) -> Outcome:
        """How a run ended; meanwhile the latest line of each is reported now and then."""
        if not self._waited:
            self._waited = True
            self._open(1)
        while not wait([self._futures[name]], timeout=REPORT_SECONDS).done:
            for other, line in dict(self._latest).items():
                self.report(f"{other}: {line[-100:]}")
        return self._futures[name].result()

    def stop(self) -> None:
        """Ends what still runs, as when the session was interrupted."""
        self._queue.clear()
        for process in self._processes:
            process.kill()


#: Standard output as it is before pytest captures it.
TERMINAL = pytest.StashKey[TextIO]()


def reporter(config: pytest.Config) -> Report:
    """Prints a line at once, from any thread, past the capture of the test that runs meanwhile."""
    return lambda line: print(f"\n{line}", end="", file=config.stash[TERMINAL], flush=True)


def unavailable(reason: object) -> NoReturn:
    """Skips the test for what cannot be had here; where CI is set, everything can be had."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(str(reason), pytrace=False)
    pytest.skip(str(reason))


def check(outcome: Outcome, what: str) -> None:
    """Fails with the reports of what failed in that run."""
    if outcome.exit_code or not outcome.passed:
        pytest.fail(f"{what}: pytest ended with exit code {outcome.exit_code}\n{outcome.failures}", pytrace=False)
    print(f"{what}: {outcome.summary}")
