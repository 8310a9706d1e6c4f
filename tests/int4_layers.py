"""What tests of the ops of 4-bit weights have in common: their options, layers, calls."""

import cases
import pytest
import torch
from torch import Tensor

from ao_arm import _ops

DTYPES = pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
SCALES = pytest.mark.parametrize("scale_dtype", (torch.bfloat16, torch.float32), ids=cases.name_of)
ZEROS = pytest.mark.parametrize("zeros", (False, True), ids=("symmetric", "zero_points"))

#: (n, k, group_size); with k = group_size whole rows are groups.
LAYERS = (
    (1, 1, 1),
    (7, 33, 33),
    (5, 32, 32),
    (9, 64, 32),
    (8, 130, 130),
    (33, 96, 32),
    (16, 128, 64),
    (23, 256, 128),
    (24, 512, 256),
    (3, 300, 300),
    (17, 1024, 1024),
    (259, 160, 32),
    (10, 2304, 256),
    (6, 2080, 32),
    (4, 192, 96),
)
ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 31, 33, 65)
EVERYWHERE = [(n, k, group) for n, k, group in LAYERS if group in (32, k) and n in (7, 33)]

Plain = tuple[Tensor, Tensor, Tensor | None]


def plain_of(n: int, k: int, group: int, scale_dtype: torch.dtype, zeros: bool) -> Plain:
    """qdata, scale and zero_point of a random weight."""
    qdata = torch.randint(-8, 8, (n, k), dtype=torch.int8)
    # Negative scales are allowed: that of a group may map its largest value to -8.
    sign = torch.randint(0, 2, (n, k // group)) * 2 - 1
    scale = ((torch.rand(n, k // group) * 0.02 + 1e-3) * sign).to(scale_dtype)
    return qdata, scale, torch.randint(-8, 8, scale.shape, dtype=torch.int8) if zeros else None


def linear(x: Tensor, packed: Tensor, n: int, bias: Tensor | None = None, **others: object) -> Tensor:
    arguments = {"act_scale": None, "act_zero_point": None, "output_min": None, "output_max": None, **others}
    return _ops.linear_qta8a_qga4w(x, packed, n, bias, *arguments.values())
