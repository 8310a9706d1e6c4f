"""Marks what cycles.py counts in the scripts that it runs; elsewhere the marks have no effect."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LABEL = "region: "

_MARK = ctypes.c_long(0x1A17)  # as in regions.c
_BEGIN, _END, _MODEL, _MODEL_NO_MORE = map(ctypes.c_long, range(4))
_syscall = ctypes.CDLL(None).syscall


def run_region(label: str, function: Callable[[], object]) -> None:
    """Call a function as a region of its own, on all threads: call it before as well, to leave out first-time work."""
    _syscall(_MARK, _BEGIN)
    function()
    _syscall(_MARK, _END)
    print(LABEL + label, flush=True)


@contextmanager
def modelled_caches() -> Iterator[None]:
    """Has what the calling thread does go through the model of caches, which begin empty."""
    _syscall(_MARK, _MODEL)
    yield
    _syscall(_MARK, _MODEL_NO_MORE)
