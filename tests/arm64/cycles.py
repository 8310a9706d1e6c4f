"""Models the cycles that calls take on an Arm core: `python tests/arm64/cycles.py [--cpu CPU] [--threads N] ...`."""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cache import Report
from counting import Counter, CountingError, Region
from cycles_caches import CacheRow, cache_row, cache_tables, caches_caveat, write_caches
from cycles_figures import (
    CANDIDATES,
    CAVEAT,
    GROUPS,
    PEERS,
    RUNTIMES,
    TARGETS,
    THREADS_CAVEAT,
    Row,
    among,
    caveat,
    cell,
    limit,
    read,
    threaded,
    write,
)
from cycles_models import (
    FP32_LENGTHS,
    LENGTHS,
    MODEL_CAVEAT,
    MODELS,
    ModelRow,
    draw_models,
    model_rows,
    model_table,
    read_encoders,
    write_encoders,
)
from cycles_pieces import llvm
from cycles_plot import Panel, draw
from cycles_runtimes import obstacles, site_packages, write_models
from cycles_sets import SETS, set_table
from cycles_tables import table
from cycles_threads_plot import Line, ThreadsPanel, draw_threads
from kleidiai_piece import kleidiai_int8
from machine import BuildError, Machine, Unavailable
from pricing import Core
from thread_teams import opened, without_waiting
from wheels import PYTHON

GUEST = Path(__file__).with_name("cycles_guest.py")
MODEL_GUEST = Path(__file__).with_name("cycles_model_guest.py")

DEFAULT_CANDIDATES = GROUPS["int8"]
DEFAULT_SHAPES = ("1x768x768", "8x768x768", "64x768x768", "64x768x3072", "64x3072x768")
# More cycles than a thread takes that is woken for a parallel region and finds no work in it: some 80, of libgomp and
# torch. The smallest tasks take several hundred.
WOKEN = 200


def count(
    machine: Machine,
    cpu: str,
    script: Path,
    *args: str,
    threads: int,
    report: Report,
    caches: Sequence[int] = (),
    packages: Sequence[Path] = (),
    variables: Mapping[str, str] | None = None,
) -> list[Region]:
    """Run a script with the emulated machine's Python, on so many threads, and count the regions that it runs.

    `packages` are folders of Python packages besides the machine's own, `variables` what else its environment has.
    """
    target = TARGETS[cpu]
    counter, staged = Counter(machine.root, report), machine.build()
    env = {
        **machine.environment(target.machine_cpu),
        "PYTHONPATH": os.pathsep.join(map(str, (staged, *packages))),
        "OMP_NUM_THREADS": str(threads),
        # OpenBLAS's own threads would spin for long while they wait, and take the time of those that work.
        "OPENBLAS_THREAD_TIMEOUT": "4",
        **(variables or {}),
    }
    report(f"arm64: counting on an emulated {target.model}, threads: {threads}")
    return counter.run(target.model, (machine.root / f"usr/bin/python{PYTHON}", script, *args), env, caches)


def priced(region: Region, core: Core, threads: int = 1, top: int = 0) -> Row:
    """What a region that ran with so many of torch's threads is modelled to take."""
    ran, regions = without_waiting(core.llvm, region), opened(core.llvm, region)
    cycles = {number: core.cycles(thread) for number, thread in ran.items()}
    busiest = max(cycles, key=lambda number: cycles[number])
    return Row(
        region.label,
        threads,
        instructions=sum(thread.instructions for thread in ran.values()),
        cycles=round(sum(cycles.values())),
        busiest=round(cycles[busiest]),
        working=sum(taken > WOKEN * max(regions, 1) for taken in cycles.values()),
        regions=regions,
        functions=tuple(core.functions(ran[busiest], region.mappings, top)),
    )


def count_candidates(
    machine: Machine,
    cpu: str,
    candidates: Sequence[str],
    shapes: Sequence[str],
    threads: int,
    report: Report,
    caches: Sequence[int] = (),
) -> list[Region]:
    """Count the regions of candidates and shapes, with the models of other runtimes that are among them."""
    args = [",".join(candidates), ",".join(shapes), str(threads)]
    if caches:
        args.append("--caches")
    library = {"KLEIDIAI_INT8": str(kleidiai_int8(machine, report))} if "kleidiai-int8" in candidates else {}
    counted = partial(count, machine, cpu, GUEST, threads=threads, report=report, caches=caches, variables=library)
    if RUNTIMES.isdisjoint(candidates):
        return counted(*args)
    packages = (site_packages(report),)
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), candidates, shapes, report)
        args += ["--models", folder]
        return counted(*args, packages=packages)


def compare(
    machine: Machine,
    cpu: str,
    candidates: Sequence[str],
    shapes: Sequence[str],
    threads: Sequence[int] = (1,),
    top: int = 0,
    report: Report = print,
) -> list[Row]:
    """Model candidates on shapes `MxKxN`; the labels are `CANDIDATE MxKxN`.

    Each number of threads has a process of its own: libraries keep what they set up for the first one.
    """
    core, rows = Core(cpu, llvm(report)), []
    for number in threads:
        regions = count_candidates(machine, cpu, candidates, shapes, number, report)
        report(f"arm64: pricing {len(regions)} regions for {cpu}")
        rows += [priced(region, core, number, top) for region in regions]
    return rows


def compare_caches(
    machine: Machine,
    cpu: str,
    candidates: Sequence[str],
    shapes: Sequence[str],
    top: int = 0,
    report: Report = print,
) -> list[CacheRow]:
    """The same with what the calls bring into the core's caches, on one thread; two rows for each."""
    core, caches = Core(cpu, llvm(report)), TARGETS[cpu].caches
    regions = count_candidates(machine, cpu, candidates, shapes, 1, report, caches)
    report(f"arm64: pricing {len(regions)} regions for {cpu}")
    return [cache_row(region, priced(region, core), core, top) for region in regions]


def compare_model(
    machine: Machine,
    cpu: str,
    model: str,
    lengths: Sequence[int],
    fp32_lengths: Sequence[int],
    threads: int,
    report: Report = print,
) -> list[ModelRow]:
    """Model an encoder with contexts of these lengths, those of `fp32_lengths` among them in floats as well."""
    args = (model, ",".join(map(str, lengths)), ",".join(map(str, fp32_lengths)), str(threads))
    regions = count(machine, cpu, MODEL_GUEST, *args, threads=threads, report=report)
    report(f"arm64: pricing {len(regions)} regions for {cpu}")
    core = Core(cpu, llvm(report))
    return model_rows(model, [priced(region, core, threads) for region in regions])


def panel(cpu: str, rows: Sequence[Row]) -> Panel:
    """What is drawn of a core's rows."""
    cycles = {cell(row): row.cycles for row in rows}
    return Panel(
        cpu,
        {shape: limit(cpu, shape) for _, shape in cycles},
        {(CANDIDATES[candidate], shape): cycles[candidate, shape] for candidate, shape in cycles},
    )


def threads_panels(cpu: str, rows: Sequence[Row]) -> list[ThreadsPanel]:
    """What is drawn of a core's rows, over the numbers of threads."""
    busiest = {(*cell(row), row.threads): row.busiest for row in sorted(rows, key=lambda row: row.threads)}
    pairs = {peer: name for name, peer in PEERS.items()}
    panels = []
    for shape in dict.fromkeys(cell(row)[1] for row in rows):
        lines = [
            Line(
                CANDIDATES[candidate],
                pairs.get(candidate, candidate),
                {threads: cycles for (*of, threads), cycles in busiest.items() if of == [candidate, shape]},
            )
            for candidate in CANDIDATES
            if any(key[:2] == (candidate, shape) for key in busiest)
        ]
        counts = sorted({threads for line in lines for threads in line.cycles})
        limits = {threads: limit(cpu, shape, threads) for threads in counts}
        panels.append(ThreadsPanel(f"{shape}, {cpu}", limits, lines))
    return panels


def plot(figures: Mapping[str, Sequence[Row]], file: Path) -> None:
    """Draw the rows of all cores."""
    if any(threaded(rows) for rows in figures.values()):
        draw_threads([panel for cpu, rows in figures.items() for panel in threads_panels(cpu, rows)], file)
    else:
        draw([panel(cpu, rows) for cpu, rows in figures.items()], file)


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
            of = f", {row.threads} threads, the busiest one" if row.threads > 1 else ""
            print(f"{row.label}{of}: {row.busiest:,} cycles")
            print("".join(f"  {share:6.1%}  {function}\n" for function, share in row.functions))
    print(f"{caveat(cpu, rows)}\n")


def show_caches(cpu: str, rows: Sequence[CacheRow]) -> None:
    """Print the tables of a core, and what the figures are."""
    print(f"{cache_tables(rows, cpu)}\n")
    print(f"{caveat(cpu, [row.row for row in rows])}\n{caches_caveat(cpu)}\n")


def show_models(cpu: str, threads: int, found: Mapping[str, Sequence[ModelRow]], plot: Path | None) -> None:
    """Print the table of each model and what the figures are, and draw all of them."""
    for model, rows in found.items():
        print(f"{model_table(model, rows, cpu, threads)}\n\n{MODEL_CAVEAT.format(layers=MODELS[model])}\n")
    print(f"{CAVEAT}\n{THREADS_CAVEAT}")
    if plot:
        draw_models(found, cpu, threads, plot)


def compare_models(given: argparse.Namespace, report: Report) -> tuple[str, int, dict[str, list[ModelRow]]]:
    """Model the encoders that are asked for, or read them."""
    if given.files:
        return read_encoders(given.files, given.models)
    (threads,) = given.threads or (16,)
    machine, found = Machine(report), {}
    for model in given.models:
        found[model] = compare_model(machine, given.cpu, model, given.lengths, given.fp32_lengths, threads, report)
        if given.json:  # after each of them, as the next one takes long
            write_encoders(given.json, given.cpu, threads, found)
    return given.cpu, threads, found


def candidates(text: str) -> tuple[str, ...]:
    """The candidates of a comma-separated list of them and of groups, in the order of `CANDIDATES`."""
    named = {name for item in listed(text, "|".join((*GROUPS, *CANDIDATES))) for name in GROUPS.get(item, (item,))}
    return tuple(name for name in CANDIDATES if name in named)


def with_runtimes(candidates: Sequence[str], report: Report) -> tuple[str, ...]:
    """These candidates and all other runtimes that models can be made for; why not for others is reported."""
    missing = obstacles(GROUPS["runtimes"])
    for name, obstacle in missing.items():
        report(f"arm64: left out is {name}: {obstacle}")
    return tuple(dict.fromkeys((*candidates, *(name for name in GROUPS["runtimes"] if name not in missing))))


def thread_counts(text: str) -> list[int]:
    """The numbers of a comma-separated list."""
    return [int(item) for item in listed(text, r"[1-9]\d*")]


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
    parser.add_argument(
        "--set",
        choices=SETS,
        help="shapes that are looked at as a whole, with their candidates and threads unless others are named",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="other runtimes as well, as far as ao_arm's extras of their names are installed",
    )
    parser.add_argument(
        "--threads",
        type=thread_counts,
        metavar="N,...",
        help="numbers of torch's threads (default: 1, or with --from all)",
    )
    parser.add_argument(
        "--caches",
        action="store_true",
        help="count what calls bring into the core's caches, on one thread; --top then names what brings in most",
    )
    parser.add_argument(
        "--model",
        dest="models",
        type=partial(listed, pattern="|".join(MODELS)),
        metavar="NAME,...",
        help=f"encoders of transformers instead of layers: {', '.join(MODELS)} (16 threads, or as --threads says)",
    )
    parser.add_argument(
        "--lengths",
        type=thread_counts,
        default=LENGTHS,
        metavar="N,...",
        help="of the contexts of --model, in tokens (default: 8, 16, .. 512)",
    )
    parser.add_argument(
        "--fp32-lengths",
        type=thread_counts,
        default=FP32_LENGTHS,
        metavar="N,...",
        help="those of them that are modelled in fp32 as well (default: 8 to 64; longer ones take long)",
    )
    parser.add_argument("--top", type=int, default=0, metavar="N", help="name the N costliest functions of each call")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures (.png); needs matplotlib")
    given = parser.parse_args(arguments)
    if given.files and (given.json or given.top):
        parser.error("--json and --top are about what is modelled, and with --from nothing is")
    if given.caches and (given.files or given.plot):
        parser.error("--caches prints tables, of what it models itself: it goes with neither --from nor --plot")
    if given.caches and given.threads not in (None, [1]):
        parser.error("--caches models the caches of one core, whose thread is the only one: leave out --threads")
    if given.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'ao_arm[bench]'")
    if given.models and (given.caches or given.only or given.shapes or given.top):
        parser.error("--model goes with --cpu, --threads, --lengths, --fp32-lengths, --json, --from and --plot")
    if given.models and given.threads and len(given.threads) > 1:
        parser.error("--model takes one number of threads")
    if given.set and (given.shapes or given.models or given.caches):
        parser.error("--set goes with neither --shapes, --model nor --caches")
    if given.set:
        of = SETS[given.set]
        given.shapes, given.only = list(of.shapes), given.only or of.candidates
        given.threads = given.threads or (None if given.files else of.threads)
    report = partial(print, file=sys.stderr, flush=True)
    if given.peers:
        given.only = with_runtimes(given.only or DEFAULT_CANDIDATES, report)
    if given.threads not in (None, [1]) and not RUNTIMES.isdisjoint(given.only or ()):
        parser.error("what other runtimes' threads do while they wait is not known here: leave out --threads")
    try:
        if given.models:
            show_models(*compare_models(given, report), given.plot)
            return 0
        if given.files:
            asked = given.only, given.shapes, given.threads
            found = {cpu: among(rows, *asked) for cpu, rows in read(given.files).items()}
        elif given.caches:
            calls = given.only or DEFAULT_CANDIDATES, given.shapes or DEFAULT_SHAPES
            brought = compare_caches(Machine(report), given.cpu, *calls, given.top, report)
            show_caches(given.cpu, brought)
            if given.json:
                write_caches(given.json, given.cpu, brought)
            return 0
        else:
            modelled = given.only or DEFAULT_CANDIDATES, given.shapes or DEFAULT_SHAPES, given.threads or (1,)
            found = {given.cpu: compare(Machine(report), given.cpu, *modelled, given.top, report)}
    except (Unavailable, BuildError, CountingError, ValueError) as error:
        report(f"arm64: {error}")
        return 2
    figures = {cpu: rows for cpu, rows in found.items() if rows}
    for cpu, rows in figures.items():
        show(cpu, rows)
        if given.json:
            write(given.json, cpu, rows)
        if given.set:  # after the figures are written, which are not to be lost
            try:
                print(set_table(given.set, rows))
            except ValueError as error:
                report(f"arm64: {error}")
                return 2
    if given.plot and figures:
        plot(figures, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
