"""A linear layer that another runtime computes, float in and float out like ``nn.Linear``."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RuntimeLayer(torch.nn.Module, ABC):
    """What runtimes have in common: a model as a file holds it, and contiguous float32 rows (m, k) of any number.

    They run on as many threads as torch had when the layer was made.

    Args:
        model: what ``serialized`` gave.
    """

    @abstractmethod
    def __init__(self, model: bytes) -> None:
        super().__init__()

    @staticmethod
    @abstractmethod
    def serialized(linear: torch.nn.Linear, group_size: int) -> bytes:
        """A float layer as the runtime's own tools quantize it and as a file holds it.

        Args:
            linear: the float layer, in float32.
            group_size: of 4-bit weights; 0 for int8.

        Raises:
            NotImplementedError: if they cannot.
        """

    @classmethod
    def of(cls, linear: torch.nn.Linear, group_size: int = 0) -> RuntimeLayer:
        """The layer that computes what ``serialized`` gives for these arguments."""
        with silenced(), torch.inference_mode(False), torch.no_grad():
            return cls(cls.serialized(linear, group_size))

    def forward(self, input: Tensor) -> Tensor:
        """From (..., k) to (..., n), both float32."""
        output = self.rows(input.reshape(-1, input.shape[-1]).contiguous())
        return output.reshape(*input.shape[:-1], output.shape[-1])

    @abstractmethod
    def rows(self, input: Tensor) -> Tensor:
        """From (m, k) to (m, n), a tensor of its own until the next call."""


@contextmanager
def silenced() -> Iterator[None]:
    """Without what native code and converters print, which the user of a benchmark can do nothing about."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in kept:
            os.dup2(nowhere, stream)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, before in kept.items():
            os.dup2(before, stream)
            os.close(before)
        os.close(nowhere)
