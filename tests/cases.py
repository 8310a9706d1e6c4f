"""What the tests have in common: the kernels of this CPU, sizes, values, and comparisons of floats by their bits."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

import ao_arm

#: The CPU model of the emulated machine; empty on a real one.
EMULATED_CPU = os.environ.get("AO_ARM_EMULATED_CPU", "")

#: Emulation is some thirty times slower: one in this many of the values that a test goes over is taken there.
STEP = 5 if EMULATED_CPU else 1

_SHAPES_TO_ASK_FOR = ((768, 768), (33, 31), (1, 1))


def _runs_here() -> tuple[str, ...]:
    tables = [ao_arm.kernels.list(n, k) for n, k in _SHAPES_TO_ASK_FOR]
    return tuple(rows[0].id for rows in zip(*tables, strict=True) if not all(row.reasons for row in rows))


#: Every kernel that this CPU can run.
KERNELS = _runs_here()

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

try:
    import torchao.dtypes.affine_quantized_tensor  # noqa: F401

    #: Whether this torchao (up to 0.17) has AffineQuantizedTensor, which then holds the packed weights of models.
    HAS_AQT = True
except ImportError:
    HAS_AQT = False

_T = TypeVar("_T")


def thinned(values: Sequence[_T]) -> list[_T]:
    """All values; under emulation the first, the last and some between."""
    return [*values[:-1:STEP], *values[-1:]]


def name_of(value: object) -> str:
    """Names dtypes as people do, for test ids."""
    return str(value).removeprefix("torch.")


def int8_values(*shape: int, least: int = -127) -> Tensor:
    """Random int8 values in [least, 127]: weights by default; activations reach down to -128."""
    return torch.randint(least, 128, shape, dtype=torch.int8)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets torch use this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fits(kernel: str, n: int, k: int) -> bool:
    """Whether a kernel can serve a layer of this shape."""
    return any(row.id == kernel and not row.reasons for row in ao_arm.kernels.list(n, k))


def packed_in(layer: torch.nn.Module) -> ao_arm.ACLPackedTensor:
    """The packed weight of a layer that `quantize_` replaced the weight of."""
    weight = layer.weight
    return weight.tensor_impl if HAS_AQT else weight


def bits(values: Tensor) -> Tensor:
    """The bit patterns of floats; all NaN have one."""
    integer = torch.int32 if values.dtype == torch.float32 else torch.int16
    return torch.where(values.isnan(), torch.full_like(values, torch.nan), values).contiguous().view(integer)


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit; a NaN is a NaN."""
    return actual.dtype == expected.dtype and torch.equal(bits(actual), bits(expected))


def ulps_apart(actual: Tensor, expected: Tensor) -> int:
    """How many representable values apart two tensors are where they differ most; 0 for equal ones.

    A NaN beside a number counts as 2^40.
    """
    assert actual.dtype == expected.dtype, f"{actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    if actual.numel() == 0:
        return 0
    if not torch.equal(actual.isnan(), expected.isnan()):
        return 1 << 40

    def place(values: Tensor) -> Tensor:
        patterns = bits(values).long()
        magnitude = patterns & (torch.iinfo(bits(values).dtype).max)
        return torch.where(patterns < 0, -magnitude, magnitude)

    return int((place(actual) - place(expected)).abs().max())
