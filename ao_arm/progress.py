"""Progress bars on a terminal.

One counts the layers that have been quantized. torchao does not tell how many there will be, nor when the last one is
done, so that bar counts without a total and closes when no layer has followed for a moment.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

#: Environment variable: "1" shows the bar wherever standard error goes, "0" never; otherwise a terminal shows it.
VARIABLE = "AO_ARM_PROGRESS"
_SHOW_AFTER_SECONDS = 1.0
_CLOSE_AFTER_SECONDS = 0.5

_lock = threading.Lock()
_bar: Any = None
_steps_are_shown = False
_closing: threading.Timer | None = None


def _wanted() -> bool:
    setting = os.environ.get(VARIABLE, "")
    return sys.stderr.isatty() if setting not in ("0", "1") else setting == "1"


def layer_done() -> None:
    """Counts a layer."""
    global _bar, _closing
    if not _wanted() or _steps_are_shown:
        return
    with _lock:
        if _closing is not None:
            _closing.cancel()
        if _bar is None:
            _bar = tqdm(desc="ao_arm: quantizing", unit=" layers", delay=_SHOW_AFTER_SECONDS)
        _bar.update()
        _closing = threading.Timer(_CLOSE_AFTER_SECONDS, close)
        _closing.daemon = True
        _closing.start()


def close() -> None:
    """Ends the bar, so that what is printed next starts on a line of its own."""
    global _bar, _closing
    with _lock:
        if _bar is not None:
            _bar.close()
        _bar = _closing = None


class _StepBar(tqdm):  # type: ignore[misc]
    """Without tqdm's thread, which would disturb what is timed."""

    monitor_interval = 0


@contextmanager
def steps(total: int, title: str) -> Iterator[Callable[[str], None]]:
    """A bar for a known number of steps; what it yields is told each step before it is taken.

    It is the only bar: layers that are quantized meanwhile are not counted.
    """
    global _steps_are_shown
    with _StepBar(total=total, desc=title, disable=not _wanted(), mininterval=0, leave=False) as bar:
        begun = False

        def report(step: str) -> None:
            nonlocal begun
            bar.set_postfix_str(step, refresh=False)
            bar.update(int(begun))
            begun = True

        _steps_are_shown = True
        try:
            yield report
        finally:
            _steps_are_shown = False
