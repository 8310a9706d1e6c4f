"""Benchmark results as text: a table for each subject, the accuracy of each candidate, and what the figures are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .. import text_table
from ..timing import Timing
from .results import Measurement, Results

Cells = dict[tuple[str, str], str]
"""By case and candidate."""


def lines(results: Results, baseline: str) -> Iterator[str]:
    """Everything that there is to see."""
    rows = results.measurements
    if any(row.timing for row in rows):
        for subject, found in by_subject(rows).items():
            yield f"{subject}: microseconds of a call, ± half the interquartile range (times as fast as {baseline})"
            yield from pivot(found, _timing_cells(found, baseline))
            yield ""
    yield "results: SQNR to fp32 and difference from the candidate's own reference"
    yield from _accuracy_lines(results)
    yield ""
    yield from _memory_lines(rows)
    yield from _complaints(rows)
    yield from _notes(results)


def by_subject(rows: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """The measurements of each subject, in the order in which they were taken."""
    found: dict[str, list[Measurement]] = {}
    for row in rows:
        found.setdefault(row.subject, []).append(row)
    return found


def pivot(rows: Sequence[Measurement], cells: Cells) -> list[str]:
    """A table with a line for each candidate that has a cell and a column for each case."""
    cases = tuple(dict.fromkeys(row.case for row in rows))
    candidates = dict.fromkeys(row.candidate for row in rows)
    body = [
        (candidate, *(cells.get((case, candidate), "-") for case in cases))
        for candidate in candidates
        if any((case, candidate) in cells for case in cases)
    ]
    return text_table.with_rule(("", *cases), body, right=range(1, len(cases) + 1))


def _timing_cells(rows: Sequence[Measurement], baseline: str) -> Cells:
    base = {row.case: row.timing.median for row in rows if row.timing and row.candidate == baseline}
    return {
        (row.case, row.candidate): _timing_cell(row.timing, base.get(row.case))
        for row in rows
        if row.timing is not None
    }


def _timing_cell(timing: Timing, base: float | None) -> str:
    spread = f"±{microseconds(timing.spread)}" if timing.samples > 1 else "(once)"
    speed = "" if base is None else f" ({ratio(base / timing.median)}x)"
    return f"{microseconds(timing.median)} {spread}{speed}"


def ratio(value: float) -> str:
    """How many times as fast something is, without the sign."""
    return f"{value:5.2f}" if value >= 0.1 else f"{value:.1g}".rjust(5)


def microseconds(seconds: float) -> str:
    """A time in microseconds, without its unit."""
    value = 1e6 * seconds
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _accuracy_lines(results: Results) -> list[str]:
    found: dict[str, list[Measurement]] = {}
    for row in results.measurements:
        if row.sqnr_db is not None:
            found.setdefault(row.candidate, []).append(row)
    body = []
    for candidate, rows in found.items():
        sqnr = min(row.sqnr_db for row in rows if row.sqnr_db is not None)
        differences = [row.reference_difference for row in rows if row.reference_difference is not None]
        difference = "-" if not differences else "equal" if max(differences) == 0 else f"{max(differences):.1e}"
        decibels = "equal" if sqnr == float("inf") else f"{sqnr:.1f}"
        body.append((candidate, results.schemes[candidate], decibels, difference))
    return text_table.with_rule(("", "scheme", "least SQNR, dB", "reference"), body, right=(2, 3))


def _memory_lines(rows: Sequence[Measurement]) -> Iterator[str]:
    """What weights take in each subject, and what compiling adds to that; nothing if nothing was compiled."""
    kept = [row for row in rows if row.weight_bytes is not None]
    if all(row.added_bytes is None for row in kept):
        return
    cells: dict[tuple[str, str], str] = {}
    for row in sorted(kept, key=lambda row: row.added_bytes or 0):  # of a subject's cases the one that keeps most
        cells[row.candidate, row.subject] = _megabytes(row.weight_bytes or 0, row.added_bytes)
    subjects = tuple(dict.fromkeys(row.subject for row in kept))
    body = [
        (candidate, *(cells.get((candidate, subject), "-") for subject in subjects))
        for candidate in dict.fromkeys(row.candidate for row in kept)
    ]
    yield "memory: MB of the linear layers' weights + of the tensors that compiling makes and keeps"
    yield from text_table.with_rule(("", *subjects), body, right=range(1, len(subjects) + 1))
    yield ""


def _megabytes(held: int, added: int | None) -> str:
    return f"{held / 1e6:.2f}" + ("" if added is None else f" + {added / 1e6:.2f}")


def _complaints(rows: Sequence[Measurement]) -> Iterator[str]:
    """Candidates that did not run or were wrong, each reason once."""
    names: dict[tuple[bool, str, str], list[str]] = {}
    total = len(dict.fromkeys(row.name for row in rows))
    for row in rows:
        if row.complaint:
            names.setdefault((row.wrong, row.candidate, row.complaint), []).append(row.name)
    candidates: dict[tuple[bool, str, tuple[str, ...]], list[str]] = {}
    for (wrong, candidate, complaint), cases in names.items():
        candidates.setdefault((wrong, complaint, tuple(cases)), []).append(candidate)
    for (wrong, complaint, found), same in candidates.items():
        where = "" if len(found) == total else f" ({', '.join(found)})"
        yield f"{'WRONG, not timed' if wrong else 'not run'}: {', '.join(same)}{where}: {complaint}"


def _notes(results: Results) -> Iterator[str]:
    system = results.system
    features = ", ".join(system.features) or "none that a kernel asks for"
    yield f"Measured {system}; CPU features: {features}."
    if results.environment:
        yield f"Set: {', '.join(f'{name}={value}' for name, value in results.environment.items())}."
    if any(row.timing for row in results.measurements):
        settings = results.settings
        yield (
            f"Each figure is the median of up to {settings.samples} samples of about "
            f"{1e3 * settings.sample_seconds:g} ms, or of one call that takes longer, taken of all candidates in turn, "
            "in inference mode. Layers take and give float tensors, quantization included; compiled ones are compiled "
            "by torch.compile with freezing, fused ones with backend ao_arm as well."
        )
    elif system.emulated:
        yield "No times: emulated ones would say nothing about an Arm CPU."
