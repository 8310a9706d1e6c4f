"""Marks what cycles.py counts in the scripts that it runs; elsewhere the marks have no effect."""

import ctypes
from collections.abc import Callable

LABEL = "region: "

_MARK = ctypes.c_long(0x1A17)  # as in regions.c
_BEGIN, _END = ctypes.c_long(0), ctypes.c_long(1)
_syscall = ctypes.CDLL(None).syscall


def run_region(label: str, function: Callable[[], object]) -> None:
    """Call a function as a region of its own, on all threads: call it before as well, to leave out first-time work."""
    _syscall(_MARK, _BEGIN)
    function()
    _syscall(_MARK, _END)
    print(LABEL + label, flush=True)
