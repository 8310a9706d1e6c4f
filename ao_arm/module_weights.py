"""Which modules hold a weight that ao_arm quantizes."""

from __future__ import annotations

from torch import nn


def quantizable(module: nn.Module, fqn: str) -> bool:
    """Whether ``quantize_`` takes a module if no ``filter_fn`` chooses: linear layers, as torchao does."""
    excluded = nn.modules.linear.NonDynamicallyQuantizableLinear
    return isinstance(module, nn.Linear) and not isinstance(module, excluded)
