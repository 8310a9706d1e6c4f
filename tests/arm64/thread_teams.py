"""What teams of threads did in a region: the parallel regions that were opened, and the waiting, to be left out."""

import re
from pathlib import Path

from counting import Region, Thread
from symbols import Symbol, functions_of

OPENMP = r"libgomp\b.*"
# What compiled code calls for a parallel region, of whatever kind.
OPENS = r"GOMP_parallel(?!_end)\w*(@.*)?"
# The functions, of libraries, in which threads do nothing but wait for each other: at barriers and locks; in OpenBLAS
# for what others pack, while its multiplications are functions of their own.
WAITS = {
    OPENMP: r"gomp_(team_)?barrier_wait\w*|gomp_(mutex_lock|ptrlock_get|sem_wait)_slow",
    r"libopenblas\b.*": r"inner_thread",
}


def opened(llvm: Path, region: Region) -> int:
    """How many parallel regions the thread that marked the region opened in it."""
    entries = {symbol.start for symbol in _functions(llvm, region, OPENMP, OPENS)}
    return sum(block.executions for block in region.threads[region.caller].blocks if block.address in entries)


def without_waiting(llvm: Path, region: Region) -> dict[int, Thread]:
    """What each thread ran outside the functions that only wait."""
    waits = [symbol for library, name in WAITS.items() for symbol in _functions(llvm, region, library, name)]
    return {
        number: Thread(
            [block for block in thread.blocks if not any(wait.start <= block.address < wait.end for wait in waits)]
        )
        for number, thread in region.threads.items()
    }


def _functions(llvm: Path, region: Region, library: str, name: str) -> list[Symbol]:
    return [symbol for symbol in functions_of(llvm, library, region.mappings) if re.fullmatch(name, symbol.name)]
