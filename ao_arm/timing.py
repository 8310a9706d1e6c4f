"""Times calls in turn, round after round, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the ``median`` and the quartiles, ``low`` and ``high``, over ``samples``, each the mean of
    ``calls`` calls."""

    median: float
    low: float
    high: float
    samples: int
    calls: int = 1

    @property
    def spread(self) -> float:
        """Half the interquartile range."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Task:
    """What is timed: a ``call``, how many ``calls`` of it make a sample, and after ``most_samples`` it rests (None:
    never)."""

    call: Callable[[], object]
    calls: int = 1
    most_samples: int | None = None


def plan(call: Callable[[], object], sample_seconds: float, samples: int, most_seconds: float) -> Task | Timing:
    """A task whose samples take about ``sample_seconds``, or one call if that takes longer.

    Calls it a few times to find out; it has been called before, to warm up. If ``samples`` would take longer than
    ``most_seconds`` altogether, the task rests earlier, but not before three. If a single call does, nothing else gets
    timed.
    """
    found: list[float] = []
    while len(found) < 4 and sum(found) < most_seconds:
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    # The least: others may have met what else the machine does.
    seconds = max(min(found), 1e-9)
    if seconds > most_seconds:
        return Timing(seconds, seconds, seconds, samples=1)
    calls = max(1, round(sample_seconds / seconds))
    return Task(call, calls, max(min(samples, 3), min(samples, int(most_seconds / (seconds * (calls + 1))))))


def interleaved(
    tasks: Mapping[str, Task], rounds: int, seconds: float = 0.0, deadline: float = math.inf
) -> dict[str, Timing]:
    """Takes a sample of each task in turn, at least ``rounds`` times and for at least ``seconds``.

    Once ``time.perf_counter()`` is past the deadline no other round begins, but the first one always does.

    Before a sample the task is called once untimed. That brings its weights back into the caches: a server does not
    change its model at every call.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    end = time.perf_counter() + seconds
    done = 0
    while done == 0 or ((done < rounds or time.perf_counter() < end) and time.perf_counter() < deadline):
        for name, task in tasks.items():
            if task.most_samples is None or len(times[name]) < task.most_samples:
                times[name].append(_sample(task))
        done += 1
    return {name: _timing(found, tasks[name].calls) for name, found in times.items()}


def _sample(task: Task) -> float:
    call = task.call
    call()
    begin = time.perf_counter()
    for _ in range(task.calls):
        call()
    return (time.perf_counter() - begin) / task.calls


def _timing(times: list[float], calls: int) -> Timing:
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1, calls)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, low, high, len(times), calls)
