"""Draws modelled cycles over numbers of threads: a panel for each shape, a line for each candidate."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Of a panel, of a line of the legend and of the title, in inches; the legend needs the width of two panels.
WIDTH, HEIGHT, LEGEND_LINE, TITLE = 3.8, 3.2, 0.24, 0.9
IDEAL = "limit of int8 arithmetic: ideal scaling has this slope"


class Line(NamedTuple):
    """The cycles of a candidate with each number of threads; lines of the same pair have the same colour."""

    name: str
    pair: str
    cycles: Mapping[int, float]


class ThreadsPanel(NamedTuple):
    """What is drawn of a shape."""

    title: str
    limits: Mapping[int, float]  # in cycles, with each number of threads
    lines: Sequence[Line]


def draw_threads(panels: Sequence[ThreadsPanel], file: Path) -> None:
    """Write a picture, as PNG or whatever the file's suffix says.

    Raises:
        ValueError: if matplotlib does not know the suffix.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    lines = [line for panel in panels for line in panel.lines]
    pairs = dict.fromkeys(line.pair for line in lines)
    colours = {pair: colormaps["tab10"](number % 10) for number, pair in enumerate(pairs)}
    names = [*dict.fromkeys(line.name for line in lines), IDEAL]
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    beside = 1 if columns < 3 else 2
    height = HEIGHT * rows + TITLE + LEGEND_LINE * math.ceil(len(names) / beside)
    figure = Figure(figsize=(WIDTH * max(columns, 2), height), layout="constrained")
    shown: dict[str, Any] = {}
    for number, panel in enumerate(panels):
        axis = figure.add_subplot(rows, columns, number + 1)
        draw_threads_panel(axis, panel, colours)
        shown |= {str(line.get_label()): line for line in axis.get_lines()}
    figure.legend([shown[name] for name in names], names, loc="outside lower center", ncols=beside, fontsize="small")
    figure.suptitle(
        "Modelled cycles of a call's busiest thread, nothing measured:\nQEMU's counts x llvm-mca's prices, without "
        "waiting, waking threads up,\nand what shared caches and memory bandwidth cost",
        fontsize="medium",
    )
    figure.savefig(file, dpi=120)


def draw_threads_panel(axis: Any, panel: ThreadsPanel, colours: Mapping[str, Any]) -> None:
    """A line for each candidate, solid if it is ao_arm's, and one for the limit."""
    from matplotlib.ticker import NullLocator

    for line in panel.lines:
        ours = line.name.startswith("ao_arm")
        axis.plot(
            list(line.cycles),
            [cycles / 1000 for cycles in line.cycles.values()],
            label=line.name,
            color=colours[line.pair],
            linestyle="solid" if ours else "dashed",
            linewidth=1.8 if ours else 1.2,
            marker="o" if ours else "s",
            markersize=4,
        )
    limits = [cycles / 1000 for cycles in panel.limits.values()]
    axis.plot(list(panel.limits), limits, label=IDEAL, color="black", linestyle="dotted", linewidth=1)
    axis.set(title=panel.title, xscale="log", yscale="log", xlabel="threads", ylabel="thousand cycles")
    axis.set_xticks(list(panel.limits), [str(threads) for threads in panel.limits])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(True, alpha=0.3)
