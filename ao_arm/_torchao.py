"""Imports torchao before the rest does: in silence for ``python -m ao_arm``, whose user asked for nothing of torchao's.

A program that imports ao_arm sees what torchao and torch say of themselves, as it would without.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

from .command_line import quiet

#: While Python looks for the package that ``-m`` names, ``-m`` is its first argument.
IS_COMMAND = sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] == __package__

with quiet() if IS_COMMAND else nullcontext():
    import torchao.quantization  # noqa: F401
