"""What tests of the benchmark have in common."""

import dataclasses
from typing import Any

import pytest

from ao_arm import timing
from ao_arm.__main__ import main
from ao_arm.benchmark import command, layers, measuring, results
from ao_arm.benchmark.candidates import BASELINE, CANDIDATES, OTHER_RUNTIMES, Candidate
from ao_arm.benchmark.results import Measurement, Results
from ao_arm.system import current_system

OURS = "ao_arm int8 dynamic"
SETTINGS = results.Settings("quick", samples=2, sample_seconds=1e-4, most_seconds=1e9)
_OTHERS = tuple(f"{runtime} " for runtime, *_ in OTHER_RUNTIMES)
#: What torch computes, not compiled.
EAGER = tuple(row for row in CANDIDATES if not row.backend and not row.name.startswith(_OTHERS))


def row_of(name: str) -> Candidate:
    return next(row for row in CANDIDATES if row.name == name)


def measured(*rows: Candidate, shape: str = "3x64x40", timed: bool = False) -> dict[str, Measurement]:
    subjects = layers.subjects(layers.shapes(shape))
    found = [row for case in measuring.measure(subjects, rows, SETTINGS, timed, lambda step: None) for row in case]
    return {row.candidate: row for row in found}


def bench(*options: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        # Nothing is too slow on a busy machine.
        patient = dataclasses.replace(command.PRESETS["quick"], most_seconds=SETTINGS.most_seconds)
        patch.setitem(command.PRESETS, "quick", patient)
        return main(["bench", "--samples", "2", "--only", f"bf16,{OURS}", *options])


def some_results(factor: float = 1.0, **system: Any) -> Results:
    """Two candidates in two cases, and one that did not run."""
    rows = [
        Measurement(
            "32 -> 48", f"m = {m}", f"{m}x32x48", name,
            timing.Timing(factor * median, 0.9 * factor * median, 1.1 * factor * median, samples=5, calls=3),
            sqnr_db=sqnr, reference_difference=difference,
        )
        for m in (1, 8)
        for name, median, sqnr, difference in ((BASELINE, 4e-5, None, None), (OURS, m * 1e-5, 40.5, 0.0))
    ]  # fmt: skip
    rows.append(Measurement("32 -> 48", "m = 1", "1x32x48", "bf16", complaint="it needs another CPU"))
    schemes = {row.name: row.scheme for row in CANDIDATES}
    return Results(
        dataclasses.replace(current_system(), **system), {"OMP_NUM_THREADS": "2"}, SETTINGS, schemes, tuple(rows)
    )
