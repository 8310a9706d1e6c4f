"""Tables of modelled cycles: a line for each candidate and number of threads, a column for each shape."""

from collections.abc import Callable, Sequence

from cycles_figures import CANDIDATES, LIMIT, Row, cell, limit, threaded

Figures = dict[tuple[str, str, int], str]  # by candidate, shape and threads


def table(rows: Sequence[Row], cpu: str) -> str:
    """The thousand cycles; with several threads the busiest thread's, and in a table below those of all threads."""
    if not threaded(rows):
        figures = limits(rows, cpu, whole) | shown(rows, lambda row: whole(row.cycles))
        return aligned(f"thousand cycles, {cpu}, one thread", figures, names_threads=False)
    busiest = limits(rows, cpu, digits) | shown(rows, lambda row: f"{digits(row.busiest)} ({row.working})")
    total = shown(rows, lambda row: f"{digits(row.cycles)} [{row.regions}]")
    return "\n\n".join(
        (
            aligned(f"busiest thread's thousand cycles (threads that worked), {cpu}", busiest),
            aligned(f"all threads' thousand cycles [parallel regions of a call], {cpu}", total),
        )
    )


def whole(cycles: float) -> str:
    """Thousand cycles."""
    return f"{cycles / 1000:.0f}"


def digits(cycles: float) -> str:
    """Thousand cycles, with a decimal where a call is short."""
    return whole(cycles) if cycles >= 100_000 else f"{cycles / 1000:.1f}"


def shown(rows: Sequence[Row], text: Callable[[Row], str]) -> Figures:
    """What is shown of each row."""
    return {(CANDIDATES[candidate], shape, row.threads): text(row) for row in rows for candidate, shape in [cell(row)]}


def limits(rows: Sequence[Row], cpu: str, text: Callable[[float], str]) -> Figures:
    """The limits of the shapes and threads of the rows."""
    return {(LIMIT, cell(row)[1], row.threads): text(limit(cpu, cell(row)[1], row.threads)) for row in rows}


def aligned(title: str, figures: Figures, names_threads: bool = True) -> str:
    """The figures as a table."""
    names, shapes, _ = (list(dict.fromkeys(keys)) for keys in zip(*figures, strict=True))
    counts = sorted({threads for _, _, threads in figures})
    lines = [(title, "threads", *map(str, shapes))]
    for name in names:
        for threads in counts:
            cells = [figures.get((name, shape, threads), "-") for shape in shapes]
            lines.append((name, str(threads), *cells))
    if not names_threads:
        lines = [(name, *cells) for name, _, *cells in lines]
    return in_columns(lines)


def in_columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first of them to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
