"""Compares two files of results: the time of each candidate in each case, and whether they can be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean

from . import results, tables
from .results import Results


def lines(first: Path, second: Path) -> Iterator[str]:
    """How many times as fast each candidate is in the second file.

    Raises:
        ValueError: if a file holds no results, or the two have no timed case and candidate in common.
    """
    before, after = results.read(first), results.read(second)
    old, new = before.medians(), after.medians()
    common = [key for key in new if key in old]
    if not common:
        raise ValueError(f"{first} and {second} have no case in common in which the same candidate was timed")
    yield from (f"warning: {difference}" for difference in differences(before, after))
    for subject, rows in tables.by_subject(after.measurements).items():
        cells = {
            (row.case, row.candidate): f"{tables.ratio(old[key] / new[key]).strip()}x"
            for row in rows
            if (key := (row.name, row.candidate)) in old and key in new
        }
        if cells:
            yield f"{subject}: times as fast in {second.name} as in {first.name}"
            yield from tables.pivot([row for row in rows if (row.case, row.candidate) in cells], cells)
            yield ""
    mean = geometric_mean(old[key] / new[key] for key in common)
    yield f"Geometric mean over {len(common)} pairs: {mean:.2f}x."
    left_out = len(old.keys() ^ new.keys())
    if left_out:
        yield f"{left_out} timed in one of the files only are left out."


def differences(before: Results, after: Results) -> Iterator[str]:
    """What differs between the machines, versions and settings of two results, other than what was measured."""
    plain = (dataclasses.asdict(before), dataclasses.asdict(after))
    for part in ("system", "environment", "settings"):
        first, second = (one[part] for one in plain)
        for name in dict.fromkeys((*first, *second)):
            if first.get(name) != second.get(name):
                yield f"{name} differs: {_shown(first.get(name))} and {_shown(second.get(name))}"


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(str, value)) or "none"
    return "unset" if value in (None, "") else str(value)
