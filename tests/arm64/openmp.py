"""What GCC's OpenMP library did in a region: the parallel regions that were opened, and the waiting, to be left out."""

import re
from collections.abc import Iterable
from pathlib import Path

from counting import Region, Thread
from symbols import Symbol, functions_of

LIBRARY = r"libgomp\b.*\.so\b.*"
# What compiled code calls for a parallel region, of whatever kind.
OPENS = r"GOMP_parallel(?!_end)\w*(@.*)?"
# What threads are in from their arrival at a barrier or a lock that is held until they may go on.
WAITS = r"gomp_(team_)?barrier_wait\w*|gomp_(mutex_lock|ptrlock_get|sem_wait)_slow"


def opened(llvm: Path, region: Region) -> int:
    """How many parallel regions the thread that marked the region opened in it."""
    entries = {symbol.start for symbol in _functions(llvm, region, OPENS)}
    blocks = region.threads[region.caller].blocks if region.caller in region.threads else []
    return sum(block.executions for block in blocks if block.address in entries)


def without_waiting(llvm: Path, region: Region) -> dict[int, Thread]:
    """What each thread ran outside the functions that only wait."""
    waits = _functions(llvm, region, WAITS)
    return {
        number: Thread([block for block in thread.blocks if not _inside(block.address, waits)])
        for number, thread in region.threads.items()
    }


def _functions(llvm: Path, region: Region, name: str) -> list[Symbol]:
    return [symbol for symbol in functions_of(llvm, LIBRARY, region.mappings) if re.fullmatch(name, symbol.name)]


def _inside(address: int, functions: Iterable[Symbol]) -> bool:
    return any(function.start <= address < function.end for function in functions)
