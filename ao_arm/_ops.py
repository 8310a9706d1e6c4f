"""The custom ops as Python sees them: each schema beside its fake kernel, which gives shapes and dtypes for tracing.

The same schemas are in ``csrc/ops.cpp``, as the library may be loaded without Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _library

#: Element types of activations, biases, outputs, and of weights before they are quantized.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_MARK = "ao_arm: "


def user_error(error: RuntimeError) -> Exception:
    """The library's complaint about an argument as ``ValueError``; any other error as it is."""
    before, mark, message = str(error).partition(_MARK)
    return ValueError(message) if mark and not before else error


def call(op: Any, *args: Any) -> Any:
    """Calls an op so that its complaints about arguments are ``ValueError``."""
    try:
        return op(*args)
    except RuntimeError as error:
        raise user_error(error) from None


def _fake(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated function as the fake kernel of the op with this schema."""
    name = schema.partition("(")[0]

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        built = str(getattr(torch.ops.ao_arm, name).default._schema)
        if built != f"ao_arm::{schema}":
            raise ImportError(
                f"{_library.PATH} has the op {built}, but this Python code expects {schema}: the two are of different "
                "versions. Reinstall ao_arm."
            )
        torch.library.register_fake(f"ao_arm::{name}")(function)
        return function

    return register


def _check_devices(input: Tensor, others: dict[str, Tensor | None]) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"input is on {input.device} but {name} is on {tensor.device}; move them together")


@_fake(
    "linear_int8_dynamic(Tensor input, Tensor packed_weight, Tensor weight_scale, Tensor? bias, bool symmetric, "
    "bool per_token) -> Tensor"
)
def _(
    input: Tensor, packed_weight: Tensor, weight_scale: Tensor, bias: Tensor | None, symmetric: bool, per_token: bool
) -> Tensor:
    if input.dtype not in FLOATS:
        raise ValueError(f"input must be float32, bfloat16 or float16, not {input.dtype}")
    _check_devices(input, {"packed_weight": packed_weight, "weight_scale": weight_scale, "bias": bias})
    return input.new_empty((*input.shape[:-1], weight_scale.shape[0]))


@_fake(
    "linear_int8_static(Tensor input, Tensor packed_weight, Tensor weight_scale, Tensor? bias, Tensor input_scale, "
    "Tensor input_zero_point, Tensor? output_scale=None, Tensor? output_zero_point=None, "
    "ScalarType? output_dtype=None, float? output_min=None, float? output_max=None) -> Tensor"
)
def _(
    input: Tensor,
    packed_weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor,
    input_zero_point: Tensor,
    output_scale: Tensor | None = None,
    output_zero_point: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    output_min: float | None = None,
    output_max: float | None = None,
) -> Tensor:
    if input.dtype not in (*FLOATS, input_zero_point.dtype):
        raise ValueError(
            f"input must be float32, bfloat16, float16 or, as input_zero_point is, {input_zero_point.dtype}, not "
            f"{input.dtype}"
        )
    others = {
        "packed_weight": packed_weight,
        "weight_scale": weight_scale,
        "bias": bias,
        "input_scale": input_scale,
        "input_zero_point": input_zero_point,
        "output_scale": output_scale,
        "output_zero_point": output_zero_point,
    }
    _check_devices(input, others)
    if output_zero_point is not None:
        output_dtype = output_zero_point.dtype
    elif output_dtype is None:
        output_dtype = input.dtype if input.dtype.is_floating_point else torch.float32
    return input.new_empty((*input.shape[:-1], weight_scale.shape[0]), dtype=output_dtype)


@_fake("matmul_int8(Tensor qdata, Tensor packed_weight) -> Tensor")
def _(qdata: Tensor, packed_weight: Tensor) -> Tensor:
    columns = torch.library.get_ctx().new_dynamic_size()
    return qdata.new_empty((qdata.shape[0], columns), dtype=torch.int32)


@_fake("quantize_activations(Tensor input, bool symmetric) -> (Tensor, Tensor, Tensor)")
def _(input: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    tokens = (input.shape[0], 1)
    return (
        input.new_empty(input.shape, dtype=torch.int8),
        input.new_empty(tokens, dtype=torch.float32),
        input.new_empty(tokens, dtype=torch.int32),
    )


@_fake("pack_int8(Tensor qdata, str kernel) -> Tensor")
def _(qdata: Tensor, kernel: str) -> Tensor:
    n, k = qdata.shape
    return qdata.new_empty((call(torch.ops.ao_arm.packed_bytes.default, int(n), int(k), kernel),), dtype=torch.uint8)


@_fake("unpack_int8(Tensor packed_weight, int n, int k) -> Tensor")
def _(packed_weight: Tensor, n: int, k: int) -> Tensor:
    return packed_weight.new_empty((n, k), dtype=torch.int8)


@_fake(
    "linear_qta8a_qga4w(Tensor input, Tensor packed_weight, int n, Tensor? bias, Tensor? act_scale, "
    "Tensor? act_zero_point, float? output_min, float? output_max) -> Tensor"
)
def _(
    input: Tensor,
    packed_weight: Tensor,
    n: int,
    bias: Tensor | None,
    act_scale: Tensor | None,
    act_zero_point: Tensor | None,
    output_min: float | None,
    output_max: float | None,
) -> Tensor:
    if input.dtype not in (*FLOATS, torch.int8):
        raise ValueError(f"input must be float32, bfloat16, float16 or int8, not {input.dtype}")
    others = {"packed_weight": packed_weight, "bias": bias, "act_scale": act_scale, "act_zero_point": act_zero_point}
    _check_devices(input, others)
    dtype = torch.float32 if input.dtype == torch.int8 else input.dtype
    return input.new_empty((*input.shape[:-1], n), dtype=dtype)


@_fake("pack_int4(Tensor qdata, Tensor scale, Tensor? zero_point, str kernel) -> Tensor")
def _(qdata: Tensor, scale: Tensor, zero_point: Tensor | None, kernel: str) -> Tensor:
    n, k = (int(size) for size in qdata.shape)
    floats, zero_points = scale.dtype == torch.float32, zero_point is not None
    size = call(packed_bytes_int4, n, k, k // int(scale.shape[1]), floats, zero_points, kernel)
    return qdata.new_empty((size,), dtype=torch.uint8)


@_fake(
    "unpack_int4(Tensor packed_weight, int n, int k, int group_size, bool float_scales, bool zero_points) -> "
    "(Tensor, Tensor, Tensor)"
)
def _(
    packed_weight: Tensor, n: int, k: int, group_size: int, float_scales: bool, zero_points: bool
) -> tuple[Tensor, Tensor, Tensor]:
    groups = (n, k // group_size)
    return (
        packed_weight.new_empty((n, k), dtype=torch.int8),
        packed_weight.new_empty(groups, dtype=torch.float32 if float_scales else torch.bfloat16),
        packed_weight.new_empty(groups if zero_points else (0, 0), dtype=torch.int8),
    )


linear_int8_dynamic = torch.ops.ao_arm.linear_int8_dynamic.default
linear_int8_static = torch.ops.ao_arm.linear_int8_static.default
matmul_int8 = torch.ops.ao_arm.matmul_int8.default
quantize_activations = torch.ops.ao_arm.quantize_activations.default
pack_int8 = torch.ops.ao_arm.pack_int8.default
unpack_int8 = torch.ops.ao_arm.unpack_int8.default
linear_qta8a_qga4w = torch.ops.ao_arm.linear_qta8a_qga4w.default
pack_int4 = torch.ops.ao_arm.pack_int4.default
unpack_int4 = torch.ops.ao_arm.unpack_int4.default
packed_weight_info = torch.ops.ao_arm.packed_weight_info.default
select_kernel = torch.ops.ao_arm.select_kernel.default
packed_bytes = torch.ops.ao_arm.packed_bytes.default
kernel_table = torch.ops.ao_arm.kernel_table.default
select_kernel_int4 = torch.ops.ao_arm.select_kernel_int4.default
packed_bytes_int4 = torch.ops.ao_arm.packed_bytes_int4.default
kernel_table_int4 = torch.ops.ao_arm.kernel_table_int4.default
system_info = torch.ops.ao_arm.system_info.default
