"""Benchmark results as a picture: for each subject a line for every candidate, with its speed in each case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..system import System
from .results import Measurement, Results
from .tables import by_subject, microseconds

#: Of a figure, in inches: a panel's width, the margin for names on the left, a line, and what is around the lines.
_PANEL, _NAMES, _LINE, _AROUND = 3.8, 2.6, 0.2, 1.5
#: Of the cases in a line, as a part of its height.
_SPREAD = 0.6
_MARKERS = "osD^vP*X"


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
    names = _names(results, [row for rows in subjects.values() for row in rows])
    columns = min(len(subjects), max(3, math.isqrt(len(subjects))))
    rows = math.ceil(len(subjects) / columns)
    lines = len(names) + max(len({row.case for row in found}) for found in subjects.values())
    size = (_NAMES + _PANEL * columns, 0.5 + rows * (_AROUND + _LINE * lines))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axis, (title, found) in zip(axes, subjects.items(), strict=False):
        _draw_subject(axis, found, baseline, names)
        axis.set_title(title)
        axis.set_xlabel(f"times as fast as {baseline}: right is faster")
        axis.tick_params(labelbottom=True)
    # At least two powers of ten: only they are numbered.
    low, high = axes[0].get_xlim()
    axes[0].set_xlim(min(low, 0.9), max(high, 11))
    for axis in axes[len(subjects) :]:
        axis.set_axis_off()
    _name_lines(axes[0], results, names)
    figure.suptitle(_heading(results.system), fontsize="medium")
    figure.savefig(file, dpi=120)


def _heading(system: System) -> str:
    threads = f"{system.threads} thread{'s' if system.threads > 1 else ''}"
    return (
        f"Measured on {system.cpu} ({', '.join(system.features) or 'no features that a kernel asks for'}), {threads}\n"
        f"ao_arm {system.ao_arm}, torch {system.torch}, torchao {system.torchao}; medians, quartiles as bars"
    )


def _family(scheme: str) -> str:
    """The kind of arithmetic without its granularity."""
    return scheme.partition(",")[0]


def _names(results: Results, rows: Sequence[Measurement]) -> list[str]:
    """The candidates among the rows, those of the same kind of arithmetic together, otherwise in their order."""
    families = list(dict.fromkeys(map(_family, results.schemes.values())))
    return sorted(
        dict.fromkeys(row.candidate for row in rows), key=lambda name: families.index(_family(results.schemes[name]))
    )


def _draw_subject(axis: Any, rows: Sequence[Measurement], baseline: str, names: Sequence[str]) -> None:
    """A marker for each candidate and case, with the quartiles as bars; a case has one colour and one marker."""
    from matplotlib import colormaps
    from matplotlib.transforms import ScaledTranslation

    base = {row.case: row.timing.median for row in rows if row.timing and row.candidate == baseline}
    for number, (case, seconds) in enumerate(base.items()):
        # Above each other, so that equal speeds do not hide each other.
        offset = _SPREAD * (number - (len(base) - 1) / 2) / len(base)
        found = [(names.index(row.candidate), row.timing) for row in rows if row.timing and row.case == case]
        speeds = [seconds / timing.median for _, timing in found]
        low = [speed - seconds / timing.high for speed, (_, timing) in zip(speeds, found, strict=True)]
        high = [seconds / timing.low - speed for speed, (_, timing) in zip(speeds, found, strict=True)]
        axis.errorbar(
            speeds,
            [line + offset for line, _ in found],
            xerr=(low, high),
            label=f"{case} ({baseline}: {microseconds(seconds)} µs)",
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            elinewidth=0.8,
            color=colormaps["viridis"](0.9 * number / max(len(base) - 1, 1)),
        )
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(True, axis="x", alpha=0.4)
    axis.grid(True, axis="y", alpha=0.2)
    # Half an inch is taken by the axis's numbers and its label.
    below = axis.transAxes + ScaledTranslation(0, -0.5, axis.figure.dpi_scale_trans)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, fontsize="small")


def _name_lines(axis: Any, results: Results, names: Sequence[str]) -> None:
    """Names the lines of all panels, ours in bold, and rules off each kind of arithmetic."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith("ao_arm") else "normal")
    first = 0
    for _, same in groupby(names, lambda name: _family(results.schemes[name])):
        for panel in axis.figure.axes if first else ():
            panel.axhline(first - 0.5, color="black", linewidth=0.8, alpha=0.6)
        first += len(list(same))
