"""The short forms of `tests/soak.py`, and that it finds what it looks for."""

import mmap
import signal
import threading

import pytest
import soak
import torch
from torch import Tensor

pytestmark = [pytest.mark.x86, pytest.mark.slow]


def test_many_callers_share_layers() -> None:
    assert "all bits the same" in soak.many_callers(seconds=0.3)


def test_many_calls_keep_no_memory() -> None:
    assert "memory grew by" in soak.many_calls(1500)


def test_forks_after_threads_were_used() -> None:
    soak.forks()


def test_more_threads_than_cores() -> None:
    soak.many_threads()


def test_damaged_files() -> None:
    assert "no weight was another one" in soak.damaged_files(bytes_apart=500)


def test_no_memory_is_an_error_of_python() -> None:
    soak.no_memory(limits=4)


def test_a_wrong_bit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one thread on, as of a race."""

    def sometimes_wrong(x: Tensor, weight: Tensor) -> Tensor:
        output = torch.nn.functional.linear(x, weight)
        return output if threading.current_thread() is threading.main_thread() else output + 1

    monkeypatch.setattr(soak, "linear", sometimes_wrong)
    with pytest.raises(AssertionError, match="wrong results or errors, first"):
        soak.many_callers(seconds=0)


def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 kilobytes a call, none of which was in use before."""
    kept = []

    def leaking(x: Tensor, weight: Tensor) -> Tensor:
        kept.append(mmap.mmap(-1, 1 << 16))
        kept[-1].write(b"x" * (1 << 16))
        return torch.nn.functional.linear(x, weight)

    monkeypatch.setattr(soak, "linear", leaking)
    with pytest.raises(AssertionError, match="memory grew by"):
        soak.many_calls(300)


def test_a_child_that_is_ended_by_a_signal_is_found() -> None:
    with pytest.raises(AssertionError, match="a child ended with status"):
        soak.in_child(lambda: signal.raise_signal(signal.SIGKILL))
