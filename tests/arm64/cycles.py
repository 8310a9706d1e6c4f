"""Models the cycles that calls take on an Arm core: `python tests/arm64/cycles.py [--cpu CPU] [--top N] ...`."""

import argparse
import json
import math
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cache import Report
from counting import Counter, CountingError
from cycles_pieces import llvm
from cycles_plot import Panel, draw
from machine import BuildError, Machine, Unavailable
from pricing import Core
from wheels import PYTHON

GUEST = Path(__file__).with_name("cycles_guest.py")

CAVEAT = """\
Modelled, not measured: how often QEMU ran each block of code x what llvm-mca says the block costs on the core. Caches
always hit, branches are always predicted. Compare figures of one run, which repeat within a percent. They are no times,
and too low where a call waits for memory, as one row against a large weight does."""


@dataclass(frozen=True)
class Target:
    """A core to model, and what is emulated for it."""

    model: str  # as QEMU names it
    machine_cpu: str  # the emulated machine's CPU model with the same instructions
    products: int  # of int8 numbers, multiplied and added up in a cycle


TARGETS = {
    "neoverse-v1": Target("neoverse-v1", "neoverse-v1", 128),
    "neoverse-n1": Target("neoverse-n1", "neoverse-n1", 32),
    # QEMU does not have it; neoverse-n2 has the same instructions and the same length of vectors.
    "neoverse-v2": Target("neoverse-n2", "max", 128),
}

CANDIDATES = {
    "fp32": "fp32 F.linear",
    "torch-per-tensor": "torch quantized.linear_dynamic, per tensor (direct ACL)",
    "ours": "ao_arm, per token x per channel",
    "ours-asymmetric": "ao_arm, asymmetric activations",
    "ours-bf16": "ao_arm, bfloat16 in and out",
    "torch-static-s8": "torch quantized.linear, s8 to s8, per tensor (direct ACL)",
    "torch-static-u8": "torch quantized.linear, u8 to u8, per tensor (direct ACL)",
    "torch-static-u8-per-channel": "torch quantized.linear, u8 to u8, per channel (oneDNN)",
    "static-s8": "ao_arm static, s8 to s8, per channel",
    "static-u8": "ao_arm static, u8 to u8, per channel",
    "static-float": "ao_arm static s8, floats to floats",
    "int4-g32": "ao_arm, 4-bit weights in groups of 32, op alone",
    "int4-g128": "ao_arm, 4-bit weights in groups of 128, op alone",
    "int4-g32-kleidiai": "ao_arm, 4-bit weights in groups of 32, through KleidiAI",
    "torch-int4-g32": "torch _dyn_quant_matmul_4bit, groups of 32",
    "torch-int4-g128": "torch _dyn_quant_matmul_4bit, groups of 128",
}
# Names for several candidates. torch's static layers per channel take many times the cycles of all others together:
# they are in `all` only.
GROUPS = {
    "all": tuple(CANDIDATES),
    "int8": ("fp32", "torch-per-tensor", "ours"),
    "static": ("torch-static-s8", "torch-static-u8", "static-s8", "static-u8"),
    "int4": ("torch-int4-g32", "torch-int4-g128", "int4-g32", "int4-g128"),
}
DEFAULT_CANDIDATES = GROUPS["int8"]
DEFAULT_SHAPES = ("1x768x768", "8x768x768", "64x768x768", "64x768x3072", "64x3072x768")
LIMIT = "limit of int8 arithmetic"


@dataclass(frozen=True)
class Row:
    """What one region is modelled to take; `functions` are the costliest, with their shares of the cycles."""

    label: str
    instructions: int
    cycles: int
    functions: tuple[tuple[str, float], ...] = ()


def model(
    machine: Machine,
    cpu: str,
    script: Path,
    *args: str,
    top: int = 0,
    report: Report = print,
) -> list[Row]:
    """Run a script with the emulated machine's Python, on one thread, and model the regions that it runs."""
    target = TARGETS[cpu]
    counter, core = Counter(machine.root, report), Core(cpu, llvm(report))
    staged = machine.build()
    env = {**machine.environment(target.machine_cpu), "PYTHONPATH": str(staged), "OMP_NUM_THREADS": "1"}
    report(f"arm64: counting on an emulated {target.model}")
    regions = counter.run(target.model, (machine.root / f"usr/bin/python{PYTHON}", script, *args), env)
    report(f"arm64: pricing {len(regions)} regions for {cpu}")
    return [
        Row(region.label, region.instructions, round(core.cycles(region)), tuple(core.functions(region, top)))
        for region in regions
    ]


def compare(
    machine: Machine, cpu: str, candidates: Sequence[str], shapes: Sequence[str], top: int = 0, report: Report = print
) -> list[Row]:
    """Model candidates on shapes `MxKxN`; the labels are `CANDIDATE MxKxN`."""
    return model(machine, cpu, GUEST, ",".join(candidates), ",".join(shapes), top=top, report=report)


def cell(row: Row) -> tuple[str, str]:
    """The candidate and the shape of a row of `compare`."""
    candidate, shape = row.label.split()
    return candidate, shape


def table(rows: Sequence[Row], cpu: str) -> str:
    """The cycles in thousands: a line for each candidate, a column for each shape."""
    cycles = {cell(row): row.cycles for row in rows}
    candidates, shapes = (list(dict.fromkeys(names)) for names in zip(*cycles, strict=True))
    lines = [(f"thousand cycles, {cpu}, one thread", *shapes)]
    lines.append((LIMIT, *(thousands(limit(cpu, shape)) for shape in shapes)))
    for candidate in candidates:
        lines.append((CANDIDATES[candidate], *(thousands(cycles.get((candidate, shape))) for shape in shapes)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def read(files: Sequence[Path]) -> dict[str, list[Row]]:
    """The rows of each core in files that `--json` wrote; of the same row in several files the last one counts.

    Raises:
        ValueError: if a file holds anything else.
    """
    found: dict[str, dict[str, Row]] = {}
    for file in files:
        try:
            figures = json.loads(file.read_text())
            rows = [Row(row["label"], row["instructions"], row["cycles"]) for row in figures["rows"]]
            known = figures["cpu"] in TARGETS and all(cell(row)[0] in CANDIDATES for row in rows)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is no file that --json wrote: {error!r}") from None
        if not known:
            raise ValueError(f"{file} names a core or candidates that are not known here")
        found.setdefault(figures["cpu"], {}).update({row.label: row for row in rows})
    return {cpu: list(rows.values()) for cpu, rows in found.items()}


def among(rows: Sequence[Row], candidates: Collection[str] | None, shapes: Collection[str] | None) -> list[Row]:
    """The rows of these candidates and shapes, where None stands for all."""
    cells = ((row, cell(row)) for row in rows)
    return [
        row
        for row, (candidate, shape) in cells
        if (candidates is None or candidate in candidates) and (shapes is None or shape in shapes)
    ]


def panel(cpu: str, rows: Sequence[Row]) -> Panel:
    """What is drawn of a core's rows."""
    cycles = {cell(row): row.cycles for row in rows}
    return Panel(
        cpu,
        {shape: limit(cpu, shape) for _, shape in cycles},
        {(CANDIDATES[candidate], shape): cycles[candidate, shape] for candidate, shape in cycles},
    )


def limit(cpu: str, shape: str) -> float:
    """The cycles that the integer multiplications alone take, at best, for `MxKxN`."""
    return math.prod(map(int, shape.split("x"))) / TARGETS[cpu].products


def caveat(cpu: str) -> str:
    """What the figures are, and what they are not."""
    emulated = TARGETS[cpu].model
    return CAVEAT if emulated == cpu else f"{CAVEAT}\nQEMU has no {cpu}: libraries chose their kernels for {emulated}."


def thousands(cycles: float | None) -> str:
    """A figure of the table."""
    return "-" if cycles is None else f"{cycles / 1000:.0f}"


def listed(text: str, pattern: str) -> list[str]:
    """The items of a comma-separated list, all of which match the pattern."""
    items = text.split(",")
    for item in items:
        if not re.fullmatch(pattern, item):
            raise argparse.ArgumentTypeError(f"{item!r} is none of {pattern}")
    return items


def show(cpu: str, rows: Sequence[Row]) -> None:
    """Print the table of a core, the costliest functions of each call, and what the figures are."""
    print(f"{table(rows, cpu)}\n")
    for row in rows:
        if row.functions:
            print(f"{row.label}: {row.cycles:,} cycles, {row.instructions:,} instructions")
            print("".join(f"  {share:6.1%}  {function}\n" for function, share in row.functions))
    print(f"{caveat(cpu)}\n")


def candidates(text: str) -> tuple[str, ...]:
    """The candidates of a comma-separated list of them and of groups, in the order of `CANDIDATES`."""
    named = {name for item in listed(text, "|".join((*GROUPS, *CANDIDATES))) for name in GROUPS.get(item, (item,))}
    return tuple(name for name in CANDIDATES if name in named)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description="Model the cycles that linear layers take on an Arm core.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--cpu", choices=TARGETS, default="neoverse-v1", help="core (default: %(default)s)")
    source.add_argument(
        "--from",
        dest="files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="model nothing: take the figures, of all cores, that --json wrote",
    )
    shapes = partial(listed, pattern=r"[1-9]\d*x[1-9]\d*x[1-9]\d*")
    parser.add_argument(
        "--shapes",
        type=shapes,
        metavar="MxKxN,...",
        help=f"default: {','.join(DEFAULT_SHAPES)}, or with --from all",
    )
    groups = "; ".join(f"{name}: {', '.join(members)}" for name, members in GROUPS.items() if name != "all")
    parser.add_argument(
        "--only",
        type=candidates,
        metavar="NAME,...",
        help=f"{', '.join(CANDIDATES)}, all, or groups of them; {groups} (default: int8, or with --from all)",
    )
    parser.add_argument("--top", type=int, default=0, metavar="N", help="name the N costliest functions of each call")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures (.png); needs matplotlib")
    given = parser.parse_args(arguments)
    if given.files and (given.json or given.top):
        parser.error("--json and --top are about what is modelled, and with --from nothing is")
    if given.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'ao_arm[bench]'")
    report = partial(print, file=sys.stderr, flush=True)
    try:
        if given.files:
            found = {cpu: among(rows, given.only, given.shapes) for cpu, rows in read(given.files).items()}
        else:
            asked = given.only or DEFAULT_CANDIDATES, given.shapes or DEFAULT_SHAPES
            found = {given.cpu: compare(Machine(report), given.cpu, *asked, given.top, report)}
    except (Unavailable, BuildError, CountingError, ValueError) as error:
        report(f"arm64: {error}")
        return 2
    figures = {cpu: rows for cpu, rows in found.items() if rows}
    for cpu, rows in figures.items():
        show(cpu, rows)
        if given.json:
            plain = {"cpu": cpu, "what": caveat(cpu), "rows": [asdict(row) for row in rows]}
            given.json.write_text(json.dumps(plain, indent=1) + "\n")
    if given.plot and figures:
        draw([panel(cpu, rows) for cpu, rows in figures.items()], given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
