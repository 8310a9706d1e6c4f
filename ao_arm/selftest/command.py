"""The self-test's options, its run, and its verdict in plain text or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .. import _library, info, kernels, progress, text_table
from ..system import current_system
from .cases import Case, cases

#: Of a kernel's failures so many are shown.
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``selftest``."""
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")


@dataclass
class Judged:
    """What was found out about a kernel.

    Attributes:
        id: the kernel's name.
        bits: of the weights it is for.
        features: CPU features it needs.
        fits: whether this CPU can run it.
        reasons: why it was not run; empty if it was.
        cases: layers that it met, each with every number of threads.
        worst_error: relative to the largest value, or of 4-bit weights to the largest sum of magnitudes of terms.
        tolerance: the error that is allowed.
        failures: what was wrong.
    """

    id: str
    bits: int
    features: tuple[str, ...]
    fits: bool
    reasons: tuple[str, ...] = ()
    cases: int = 0
    worst_error: float = 0.0
    tolerance: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In one or a few words."""
        if self.cases:
            return "FAILED" if self.failures else "ok"
        return "fits none of these layers" if self.fits else "not for this CPU"


def run(args: argparse.Namespace) -> int:
    """Prints the verdict. Returns 1 if a kernel failed, or if there is none for int8 or for 4-bit weights."""
    judged = judge()
    serving = {row.bits for row in judged if row.cases}
    ok = serving == {4, 8} and not any(row.failures for row in judged)
    if args.json:
        print(json.dumps(_as_json(judged, ok), indent=2))
    else:
        print(*_lines(judged, ok), sep="\n")
    return int(not ok)


def judge() -> list[Judged]:
    """Every kernel of the tables, after it was tried on all cases that it can serve."""
    tables = {8: kernels.list(65, 129), 4: kernels.list(65, 96, 32)}
    rows = {
        row.id: Judged(row.id, bits, row.features, row.cost is not None, row.reasons)
        for bits, table in tables.items()
        for row in table
    }
    all_cases = tuple(cases())
    with progress.steps(len(all_cases), "ao_arm selftest") as report:
        for case in all_cases:
            report(case.scheme)
            for row in kernels.list(*case.problem):
                if not row.reasons:
                    _try(rows[row.id], case)
    for judged in rows.values():
        judged.reasons = () if judged.cases else judged.reasons
    return list(rows.values())


def _try(judged: Judged, case: Case) -> None:
    judged.cases += 1
    judged.tolerance = case.tolerance
    try:
        packed = case.pack(judged.id)
        if not case.unpacks(packed):
            judged.failures.append(f"{case.scheme}, {case.name}: what is unpacked is not what was packed")
        for threads in thread_counts():
            with torch_threads(threads):
                error = case.error(case.call(packed))
            judged.worst_error = max(judged.worst_error, error)
            if not error <= case.tolerance:  # written so that NaN fails
                judged.failures.append(f"{case.scheme}, {case.name}, {threads} threads: error {error:.2g}")
    except (RuntimeError, ValueError, MemoryError) as error:
        judged.failures.append(f"{case.scheme}, {case.name}: {error}")


def thread_counts() -> list[int]:
    """One, two, three, and what torch uses by itself."""
    return sorted({1, 2, 3, torch.get_num_threads()})


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets torch use this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_json(judged: list[Judged], ok: bool) -> dict[str, Any]:
    """What ``--json`` prints; docs/installation.md states the keys."""
    return {
        **asdict(current_system()),
        "library": str(_library.PATH),
        "thread_counts": thread_counts(),
        "kernels": [{**asdict(row), "verdict": row.verdict} for row in judged],
        "ok": ok,
    }


def _lines(judged: list[Judged], ok: bool) -> Iterator[str]:
    yield from info.system_lines(current_system())
    yield ""
    yield f"each kernel beside the reference, with {', '.join(map(str, thread_counts()))} threads"
    header = ("kernel", "bits", "cases", "worst error", "allowed", "")
    lines = text_table.lines([header, *map(_row, judged)], right=(1, 2, 3, 4))
    yield next(lines)
    for line, row in zip(lines, judged, strict=True):
        yield line
        yield from (f"    - {text}" for text in (row.failures[:_SHOWN] or row.reasons))
        if len(row.failures) > _SHOWN:
            yield f"    - and {len(row.failures) - _SHOWN} more"
    failed = [row.id for row in judged if row.failures]
    if ok:
        yield "verdict: ok"
    elif failed:
        yield f"verdict: FAILED: {', '.join(failed)}. Report all of the above; AO_ARM_KERNEL forces another kernel"
    else:
        yield "verdict: FAILED: this CPU runs no kernel for int8 or for 4-bit weights"


def _row(row: Judged) -> tuple[str, ...]:
    if not row.cases:
        return row.id, str(row.bits), "-", "-", "-", row.verdict
    return row.id, str(row.bits), str(row.cases), _number(row.worst_error), _number(row.tolerance), row.verdict


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
