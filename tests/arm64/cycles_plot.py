"""Draws modelled cycles: a panel for each core, a line for each candidate, a marker for each shape."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Of a figure, in inches: a panel's width, the margin for names on the left, a line, and what is around the lines.
PANEL, NAMES, LINE, AROUND = 3.8, 4.2, 0.24, 2.0
# Of the shapes in a line, as a part of its height.
SPREAD = 0.6
MARKERS = "osD^vP*X"


class Panel(NamedTuple):
    """What is drawn of a core: the limit of each shape, and the cycles of each candidate and shape, both in cycles."""

    core: str
    limits: Mapping[str, float]
    cycles: Mapping[tuple[str, str], float]


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Write a picture, as PNG or whatever the file's suffix says; cores share the axes, so that they can be compared.

    Candidates and shapes have the order in which they first come.

    Raises:
        ValueError: if matplotlib does not know the suffix.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels for name, _ in panel.cycles))
    shapes = list(dict.fromkeys(shape for panel in panels for shape in panel.limits))
    height = AROUND + LINE * (len(names) + len(shapes))
    figure = Figure(figsize=(NAMES + PANEL * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        draw_panel(axis, panel, names, shapes)
    # At least a decade: the numbers of the axis are powers of ten and three times them.
    low, high = axes[0].get_xlim()
    axes[0].set_xlim(min(low, 0.9), max(high, 11))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    for label in axes[0].get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith("ao_arm") else "normal")
    figure.suptitle("Modelled cycles of a call, one thread: QEMU's counts x llvm-mca's prices, nothing measured")
    figure.savefig(file, dpi=120)


def draw_panel(axis: Any, panel: Panel, names: Sequence[str], shapes: Sequence[str]) -> None:
    """A marker for each candidate and shape, whose colour and marker are the same in all panels."""
    from matplotlib import colormaps
    from matplotlib.ticker import LogLocator
    from matplotlib.transforms import ScaledTranslation

    for number, shape in enumerate(shapes):
        # Above each other, so that equal figures do not hide each other.
        offset = SPREAD * (number - (len(shapes) - 1) / 2) / len(shapes)
        found = [(cycles / panel.limits[shape], name) for (name, of), cycles in panel.cycles.items() if of == shape]
        if found:
            axis.plot(
                [multiple for multiple, _ in found],
                [names.index(name) + offset for _, name in found],
                label=f"{shape} (limit: {panel.limits[shape] / 1000:.0f} thousand cycles)",
                linestyle="none",
                marker=MARKERS[number % len(MARKERS)],
                markersize=6,
                color=colormaps["viridis"](0.9 * number / max(len(shapes) - 1, 1)),
            )
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(title=f"modelled {panel.core}", xscale="log", xlabel="times the limit of int8 arithmetic: left is faster")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(True, axis="x", alpha=0.4)
    axis.grid(True, axis="y", alpha=0.2)
    # Half an inch is taken by the axis's numbers and its label.
    below = axis.transAxes + ScaledTranslation(0, -0.5, axis.figure.dpi_scale_trans)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, fontsize="small", title="m x k x n")
