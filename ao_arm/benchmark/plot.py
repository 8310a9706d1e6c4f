"""Benchmark results as a picture: for each subject the speed of every candidate, relative to one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import Measurement, Results
from .tables import by_subject


def draw(results: Results, baseline: str, file: Path) -> None:
    """Writes a picture, as PNG or whatever the file's suffix says.

    Raises:
        ValueError: if nothing was timed, or matplotlib does not know the suffix.
    """
    from matplotlib.figure import Figure

    timed = [row for row in results.measurements if row.timing]
    subjects = {
        title: rows for title, rows in by_subject(timed).items() if any(row.candidate == baseline for row in rows)
    }
    if not subjects:
        raise ValueError(f"there is nothing to plot: {baseline} was not timed")
    columns = math.ceil(math.sqrt(len(subjects)))
    rows = math.ceil(len(subjects) / columns)
    figure = Figure(figsize=(5.5 * columns + 3.5, 4 * rows + 1), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    names = list(dict.fromkeys(row.candidate for found in subjects.values() for row in found))
    lines: dict[str, Any] = {}
    for axis, (title, found) in zip(axes, subjects.items(), strict=False):
        for number, name in enumerate(names):
            _draw_candidate(axis, found, baseline, name, number, lines)
        axis.set(title=title, ylabel=f"times as fast as {baseline}", yscale="log")
        axis.grid(True, which="both", alpha=0.3)
    for axis in axes[len(subjects) :]:
        axis.set_axis_off()
    figure.legend(lines.values(), lines.keys(), loc="outside right upper")
    figure.suptitle(f"Linear layers {results.system}", fontsize="medium")
    figure.savefig(file, dpi=120)


def _draw_candidate(
    axis: Any, rows: Sequence[Measurement], baseline: str, name: str, number: int, lines: dict[str, Any]
) -> None:
    """A candidate's line, with the quartiles as bars. All have the same place on the axis for the same case."""
    cases = list(dict.fromkeys(row.case for row in rows))
    base = {row.case: row.timing.median for row in rows if row.timing and row.candidate == baseline}
    found = [(row.case, row.timing) for row in rows if row.timing and row.candidate == name and row.case in base]
    if not found:
        return
    speeds = [base[case] / timing.median for case, timing in found]
    low = [speed - base[case] / timing.high for speed, (case, timing) in zip(speeds, found, strict=True)]
    high = [base[case] / timing.low - speed for speed, (case, timing) in zip(speeds, found, strict=True)]
    # Ours stand out; colours repeat after ten candidates, so that the markers differ then.
    style = {"linewidth": 2.5} if name.startswith("ao_arm") else {"linewidth": 1.0}
    lines[name] = axis.errorbar(
        [cases.index(case) for case, _ in found],
        speeds,
        yerr=(low, high),
        marker="osD^v"[number // 10 % 5],
        color=f"C{number % 10}",
        capsize=2,
        **style,
    )
    axis.set_xticks(range(len(cases)), cases)
