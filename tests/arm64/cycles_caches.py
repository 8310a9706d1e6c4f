"""What calls bring into a core's caches: figures of the model, their tables, and what they are not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from counting import Region
from cycles_figures import CANDIDATES, TARGETS, Row, caveat, cell, write_figures
from cycles_tables import in_columns
from pricing import Core
from symbols import function_at

LINE_BYTES = 64

CACHES_CAVEAT = """\
{cpu}'s data caches: {first} KiB in {first_ways} ways and {second} KiB in {second_ways}, lines of {line} bytes; the
least recently used leaves, stores bring lines in, what leaves the second level leaves the first. Addresses are virtual.
Left out are instructions, address translation, what is written back, and prefetching, which hides that a call waits but
brings the same lines. Weight cold, as in a model: before the call, empty caches saw one of another layer of the same
kind and shape, and then its activations were written. Warm, as in a benchmark's loop: before it the same call ran."""


@dataclass(frozen=True)
class CacheRow:
    """What one call is modelled to bring in."""

    row: Row
    cold: bool  # whether the weight was, or nothing
    first: int  # lines into the first level
    second: int  # lines into the second level, from beyond it
    functions: tuple[tuple[str, float, float], ...] = ()  # that brought in most, with their shares of both


def cache_row(region: Region, priced: Row, core: Core, top: int) -> CacheRow:
    """What a region whose label is `CANDIDATE MxKxN cold` or `... warm` brought in."""
    label, _, state = region.label.rpartition(" ")
    first, second = (sum(getattr(fills, level) for fills in region.fills) for level in ("first", "second"))
    by_function: dict[str, tuple[int, int]] = {}
    for fills in region.fills if top else ():
        name = function_at(core.llvm, fills.address, region.mappings)
        before = by_function.get(name, (0, 0))
        by_function[name] = (before[0] + fills.first, before[1] + fills.second)
    functions = tuple(
        (name, by_function[name][0] / max(first, 1), by_function[name][1] / max(second, 1))
        for name in sorted(by_function, key=lambda name: -sum(by_function[name]))[:top]
    )
    return CacheRow(replace(priced, label=label), state == "cold", first, second, functions)


def cache_tables(rows: Sequence[CacheRow], cpu: str) -> str:
    """A table for each shape; where functions are named, they are below it."""
    heads = ("weight", "thousand cycles", "lines into L1", "into L2", "KB into L2", "bytes a cycle into L1", "into L2")
    parts = []
    for shape in dict.fromkeys(cell(row.row)[1] for row in rows):
        of_shape = [row for row in rows if cell(row.row)[1] == shape]
        parts.append(in_columns([(f"{shape}, {cpu}, one thread", *heads), *map(_cells, of_shape)]))
        for row in of_shape:
            if row.functions:
                parts.append("\n".join((f"{row.row.label}, {_state(row)}: lines into L1, into L2", *_shares(row))))
    return "\n\n".join(parts)


def caches_caveat(cpu: str) -> str:
    """What the caches are, and what is left out."""
    first, first_ways, second, second_ways = TARGETS[cpu].caches
    sizes = {"first": first >> 10, "first_ways": first_ways, "second": second >> 10, "second_ways": second_ways}
    return CACHES_CAVEAT.format(cpu=cpu, line=LINE_BYTES, **sizes)


def write_caches(file: Path, cpu: str, rows: Sequence[CacheRow]) -> None:
    """Write a core's rows to a file."""
    what = f"{caveat(cpu, [row.row for row in rows])}\n{caches_caveat(cpu)}"
    write_figures(file, cpu, what, [asdict(row) for row in rows])


def _cells(row: CacheRow) -> tuple[str, ...]:
    lines, cycles = (row.first, row.second), row.row.cycles
    kilobytes = LINE_BYTES * row.second / 1000
    rates = (f"{LINE_BYTES * count / cycles:.2f}" for count in lines)
    name, _ = cell(row.row)
    return (
        CANDIDATES[name],
        _state(row),
        f"{cycles / 1000:.0f}",
        *(f"{count:,}" for count in lines),
        f"{kilobytes:,.0f}",
        *rates,
    )


def _state(row: CacheRow) -> str:
    return "cold" if row.cold else "warm"


def _shares(row: CacheRow) -> list[str]:
    return [f"  {first:6.1%}  {second:6.1%}  {function}" for function, first, second in row.functions]
