"""The layers that kernels are tried on, each with what the reference makes of it: once for all kernels and threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .. import _ops, reference
from ..kernels import Problem

#: (n, k) and the least value: one weight; odd sizes, of which the last is large enough for several threads.
INT8_WEIGHTS = ((1, 1, -127), (7, 33, -127), (65, 129, -127), (65, 129, -128), (333, 520, -127))
#: (n, k, group_size); the first two's groups are whole rows.
INT4_WEIGHTS = ((1, 1, 1), (7, 33, 33), (65, 96, 32), (333, 512, 128))
ROWS = (1, 3, 18, 65)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """A call of an op, and what it has to give.

    Attributes:
        scheme: what kind of layer it is.
        name: what is particular to it.
        problem: by which kernels are chosen.
        pack: packs the weight for the kernel of this id.
        call: runs the op on a packed weight.
        expected: what the reference gives.
        unpacks: whether a packed weight still holds what was packed.
        magnitude: for each token, what its errors are measured by; None of schemes where every bit has to agree.
    """

    scheme: str
    name: str
    problem: Problem
    pack: Callable[[str], Tensor]
    call: Callable[[Tensor], Tensor]
    expected: Tensor
    unpacks: Callable[[Tensor], bool]
    magnitude: Tensor | None = None

    def error(self, output: Tensor) -> float:
        """How far an output is from the expected one, relative to the magnitude; 0 if equal, infinite if not alike."""
        expected = self.expected
        if output.dtype != expected.dtype or output.shape != expected.shape:
            return float("inf")
        output, expected = output.double(), expected.double()
        if not torch.equal(output.isnan(), expected.isnan()):
            return float("inf")
        difference = (output - expected).nan_to_num(nan=0.0).abs()
        magnitude = expected.nan_to_num(nan=0.0).abs().amax() if self.magnitude is None else self.magnitude
        return float((difference / magnitude.clamp(min=torch.finfo(torch.float32).tiny)).amax())

    @property
    def tolerance(self) -> float:
        """The largest error that is allowed."""
        return 0.0 if self.magnitude is None else reference.GROUPED_TOLERANCE


def cases() -> Iterator[Case]:
    """All of them: the same ones each time, whatever else draws random numbers."""
    generator = torch.Generator().manual_seed(0)
    for n, k, least in INT8_WEIGHTS:
        yield from _int8(generator, n, k, least)
    for n, k, group_size in INT4_WEIGHTS:
        for scale_dtype, zero_points in product((torch.bfloat16, torch.float32), (False, True)):
            yield from _int4(generator, n, k, group_size, scale_dtype, zero_points)


def _integers(generator: torch.Generator, least: int, greatest: int, *shape: int) -> Tensor:
    return torch.randint(least, greatest + 1, shape, dtype=torch.int8, generator=generator)


def _activations(generator: torch.Generator, m: int, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of different ranges; the last of several tokens holds a NaN."""
    x = torch.randn(m, k, generator=generator) * torch.logspace(-2, 2, m)[:, None]
    if m > 1:
        x[-1, k // 2] = torch.nan
    return x.to(dtype)


def _int8(generator: torch.Generator, n: int, k: int, least: int) -> Iterator[Case]:
    qdata = _integers(generator, least, 127, n, k)
    qdata[0, 0] = least
    scale, act_scale = torch.rand(n, generator=generator) * 0.01 + 1e-4, torch.tensor([0.035])
    problem = Problem(n, k, full_range=least == -128)

    def pack(kernel: str) -> Tensor:
        return _ops.call(_ops.pack_int8, qdata, kernel)

    def unpacks(packed: Tensor) -> bool:
        return torch.equal(_ops.call(_ops.unpack_int8, packed, n, k, None), qdata)

    def case(scheme: str, name: str, expected: Tensor, call: Callable[[Tensor], Tensor]) -> Case:
        return Case(scheme, f"(n, k) = ({n}, {k}) from {least} on, {name}", problem, pack, call, expected, unpacks)

    for at, (m, symmetric, with_bias) in enumerate(product(ROWS, (True, False), (False, True))):
        dtype = _DTYPES[at % len(_DTYPES)]
        x = _activations(generator, m, k, dtype)
        bias = torch.randn(n, generator=generator).to(_DTYPES[at % 2]) if with_bias else None
        mapping = "symmetric" if symmetric else "asymmetric"
        name = f"m = {m}, {dtype}{', bias' if with_bias else ''}"
        expected = reference.linear_int8_dynamic(x, qdata, scale, bias, symmetric, True)

        def dynamic(packed: Tensor, x: Tensor = x, bias: Tensor | None = bias, symmetric: bool = symmetric) -> Tensor:
            return _ops.call(_ops.linear_int8_dynamic, x, packed, scale, bias, symmetric, True)

        yield case(f"int8 dynamic {mapping}", name, expected, dynamic)

        zero_point = torch.tensor([0], dtype=torch.int8) if symmetric else torch.tensor([120], dtype=torch.uint8)
        x = x.nan_to_num(nan=1.0)
        out = (torch.tensor([0.5]), torch.tensor([-3], dtype=torch.int8)) if at % 4 > 1 else (None, None)
        expected = reference.linear_int8_static(x, qdata, scale, bias, act_scale, zero_point, *out)
        wanted = "" if out[0] is None else ", quantized output"

        def static(
            packed: Tensor,
            x: Tensor = x,
            bias: Tensor | None = bias,
            zero_point: Tensor = zero_point,
            out: tuple[Tensor | None, Tensor | None] = out,
        ) -> Tensor:
            return _ops.call(_ops.linear_int8_static, x, packed, scale, bias, act_scale, zero_point, *out)

        yield case(f"int8 static {mapping}", name + wanted, expected, static)


def _int4(
    generator: torch.Generator, n: int, k: int, group_size: int, scale_dtype: torch.dtype, zero_points: bool
) -> Iterator[Case]:
    qdata, groups = _integers(generator, -8, 7, n, k), k // group_size
    scale = (torch.rand(n, groups, generator=generator) * 0.02 + 1e-3).to(scale_dtype)
    zero_point = _integers(generator, -8, 7, n, groups) if zero_points else None
    float_scales = scale_dtype == torch.float32

    def pack(kernel: str) -> Tensor:
        return _ops.call(_ops.pack_int4, qdata, scale, zero_point, kernel)

    def unpacks(packed: Tensor) -> bool:
        found = _ops.call(_ops.unpack_int4, packed, n, k, group_size, float_scales, zero_points, None)
        pairs = zip(found, (qdata, scale, zero_point), strict=True)
        return all(stored is None or torch.equal(part, stored) for part, stored in pairs)

    for at, m in enumerate(ROWS):
        x = _activations(generator, m, k)
        bias = torch.randn(n, generator=generator) if at % 2 else None
        expected = reference.linear_qta8a_qga4w(x, qdata, scale, zero_point, bias)
        magnitude = reference.magnitude_qta8a_qga4w(x, qdata, scale, zero_point)
        if bias is not None:
            magnitude = magnitude + bias.double().abs().max()

        def call(packed: Tensor, x: Tensor = x, bias: Tensor | None = bias) -> Tensor:
            return _ops.call(_ops.linear_qta8a_qga4w, x, packed, n, bias)

        yield Case(
            f"4 bits {'asymmetric' if zero_points else 'symmetric'}",
            f"(n, k) = ({n}, {k}), groups of {group_size}, {scale_dtype} scales, m = {m}{', bias' if at % 2 else ''}",
            Problem(n, k, group_size, float_scales, zero_points),
            pack,
            call,
            expected,
            unpacks,
            magnitude.nan_to_num(nan=1.0),
        )
