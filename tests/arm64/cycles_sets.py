"""Sets of shapes that say something as a whole, and their tables: torch's static grid, the linear layers of a Llama."""

from collections.abc import Sequence
from itertools import product
from statistics import mean
from typing import NamedTuple

from cycles_figures import CANDIDATES, GROUPS, PEERS, Row, cell
from cycles_tables import digits, in_columns

# The shapes of its layers, and how many there are of each: q and o; k and v; gate and up; down.
LLAMA_3_8B = {(4096, 4096): 2, (4096, 1024): 2, (4096, 14336): 2, (14336, 4096): 1}

GRID_ROWS = (8, 16, 32, 64, 128, 256, 512)
GRID_SIZES = (768, 1024, 2048, 4096)
# Each number of rows, and each size twice on either side.
GRID_SAMPLE = (
    "8x4096x768", "16x768x4096", "32x2048x1024", "64x1024x2048", "128x768x768", "256x1024x1024", "512x2048x2048",
    "8x4096x4096",
)  # fmt: skip

# What torch gives to oneDNN is a peer as well; in PEERS is the quicker one.
ONEDNN = "torch-static-u8-per-channel"
COMPARED = (*PEERS.items(), ("static-u8", ONEDNN))
GRID_CANDIDATES = (*GROUPS["static"], ONEDNN)


class ShapeSet(NamedTuple):
    """Shapes `MxKxN`, how many layers of each there are, and what is compared, on how many threads."""

    shapes: dict[str, int]
    candidates: tuple[str, ...]
    threads: tuple[int, ...]
    summed: bool  # over the layers, by rows


def _llama(rows: int, threads: tuple[int, ...]) -> ShapeSet:
    shapes = {f"{rows}x{k}x{n}": count for (k, n), count in LLAMA_3_8B.items()}
    return ShapeSet(shapes, ("torch-per-tensor", "ours", *GROUPS["int4"]), threads, summed=True)


SETS = {
    "static-grid": ShapeSet(dict.fromkeys(GRID_SAMPLE, 1), GRID_CANDIDATES, (16,), summed=False),
    "static-grid-all": ShapeSet(
        {f"{m}x{k}x{n}": 1 for k, n, m in product(GRID_SIZES, GRID_SIZES, GRID_ROWS)},
        GRID_CANDIDATES,
        (16,),
        summed=False,
    ),
    "llama-3-8b-decode": _llama(1, (1, 16, 64)),
    "llama-3-8b-prefill": _llama(128, (1, 16, 64)),
}

Cycles = dict[tuple[str, str, int], int]  # of the busiest thread, by candidate, column and threads
STATISTICS = (("mean", mean), ("least", min))


def set_table(name: str, rows: Sequence[Row]) -> str:
    """How many times as fast as its peers ours is: by shapes, with their mean and the least; or of all layers together.

    Raises:
        ValueError: if a layer is missing among the rows, so that there is nothing to sum up.
    """
    of = SETS[name]
    cycles = {(*cell(row), row.threads): row.busiest for row in rows if cell(row)[1] in of.shapes}
    return _sums_table(name, cycles) if of.summed else _ratios_table(name, cycles)


def _ratios_table(name: str, cycles: Cycles) -> str:
    places = list(dict.fromkeys((shape, threads) for _, shape, threads in cycles))
    ratios = {
        (pair, place): cycles[peer] / cycles[ours]
        for pair in COMPARED
        for place in places
        for ours, peer in [((pair[0], *place), (pair[1], *place))]
        if ours in cycles and peer in cycles
    }
    pairs = list(dict.fromkeys(pair for pair, _ in ratios))
    lines = [(f"times as fast, {name}", "threads", *(f"{ours} / {peer}" for ours, peer in pairs))]
    for shape, threads in places:
        found = (ratios.get((pair, (shape, threads))) for pair in pairs)
        lines.append((shape, str(threads), *("-" if ratio is None else f"{ratio:.2f}" for ratio in found)))
    columns = [[ratio for (of, _), ratio in ratios.items() if of == pair] for pair in pairs]
    lines += [(what, "", *(f"{function(column):.2f}" for column in columns)) for what, function in STATISTICS]
    return in_columns(lines)


def _sums_table(name: str, cycles: Cycles) -> str:
    counts = SETS[name].shapes
    sums: dict[tuple[str, int], int] = {}
    for candidate, threads in dict.fromkeys((candidate, threads) for candidate, _, threads in cycles):
        missing = [shape for shape in counts if (candidate, shape, threads) not in cycles]
        if missing:
            raise ValueError(f"{candidate} has no figures of {', '.join(missing)} with {threads} threads for {name}")
        sums[candidate, threads] = sum(count * cycles[candidate, shape, threads] for shape, count in counts.items())
    teams = list(dict.fromkeys(threads for _, threads in sums))
    lines = [(f"busiest thread's thousand cycles, {name}, {sum(counts.values())} layers; threads", *map(str, teams))]
    for candidate in dict.fromkeys(candidate for candidate, _ in sums):
        peer = PEERS.get(candidate)
        cells = []
        for threads in teams:
            total = sums[candidate, threads]
            ratio = f" ({sums[peer, threads] / total:.2f} x)" if peer and (peer, threads) in sums else ""
            cells.append(digits(total) + ratio)
        lines.append((CANDIDATES[candidate], *cells))
    return in_columns(lines)
