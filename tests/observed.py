"""What the tests of observers and of calibration have in common: kinds of activations, observers, what these chose."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchao.quantization import MappingType

from ao_arm.observers import OBSERVERS, make_observer, observed_quantization

#: The activations' integers.
ACTIVATIONS = {
    "s8 symmetric": (MappingType.SYMMETRIC, torch.int8),
    "s8": (MappingType.ASYMMETRIC, torch.int8),
    "u8": (MappingType.ASYMMETRIC, torch.uint8),
}
EACH_ACTIVATION = pytest.mark.parametrize(("mapping", "dtype"), ACTIVATIONS.values(), ids=ACTIVATIONS)
EACH_OBSERVER = pytest.mark.parametrize("observer", OBSERVERS)


def observed(name: str, batches: Any, mapping: MappingType, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    observer = make_observer(name, mapping, dtype)
    for batch in batches:
        assert observer(batch) is batch
    return observed_quantization(observer, dtype)
