"""The custom ops as Python sees them: each is stated by its fake kernel, which gives shapes and dtypes for tracing.

The library states its schemas too, as it may be loaded without Python; where the two differ it is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from . import _library
from .quantize import FLOATS, check_float

_MARK = "ao_arm: "
_NO_MEMORY = "ao_arm has no memory left"
_P = ParamSpec("_P")
_T = TypeVar("_T")


def user_error(error: RuntimeError) -> Exception:
    """The library's complaint about an argument as ``ValueError``, of memory as ``MemoryError``; others as they are."""
    if str(error).startswith(_NO_MEMORY):
        return MemoryError(str(error))
    before, mark, message = str(error).partition(_MARK)
    return ValueError(message) if mark and not before else error


def call(op: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Calls an op so that its complaints about arguments are ``ValueError``."""
    try:
        return op(*args, **kwargs)
    except RuntimeError as error:
        raise user_error(error) from None


def _check_not_for_onnx(name: str) -> None:
    """While torch exports to ONNX, which has no such op; fake kernels are what exporting calls."""
    if torch.onnx.is_in_onnx_export():
        raise NotImplementedError(
            f"ONNX has no op for ao_arm::{name}: export the float model to ONNX and quantize it there, as by "
            "onnxruntime.quantization; or export what ao_arm quantized by torch.export.export or AOTInductor"
        )


def _op(fake: Callable[_P, _T]) -> Callable[_P, _T]:
    """The op that has the name, the arguments and the results of its fake kernel."""
    name = fake.__name__
    op: Callable[_P, _T] = getattr(torch.ops.ao_arm, name).default
    expected = f"{name}{torch.library.infer_schema(fake, mutates_args=())}".replace("SymInt", "int")
    built = str(op._schema)  # type: ignore[attr-defined]
    if built != f"ao_arm::{expected}":
        raise ImportError(
            f"{_library.PATH} has the op {built}, but this Python code expects {expected}: the two are of different "
            "versions. Reinstall ao_arm."
        )

    @wraps(fake)
    def exportable(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        _check_not_for_onnx(name)
        return fake(*args, **kwargs)

    torch.library.register_fake(f"ao_arm::{name}")(exportable)
    return op


def _check_devices(input: Tensor, others: dict[str, Tensor | None], called: str = "input") -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{called} is on {input.device} but {name} is on {tensor.device}; move them together")


def _check_matrix(name: str, tensor: Tensor) -> None:
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise ValueError(f"{name} must be a matrix with rows and columns, not of shape {tuple(tensor.shape)}")


def _check_counts(packed_weights: Sequence[Tensor], **lists: Sequence[object]) -> None:
    count = len(packed_weights)
    if count == 0:
        raise ValueError("packed_weights must hold one weight at least")
    for name, given in lists.items():
        if len(given) != count:
            raise ValueError(f"{name} must have one element for each of the {count} packed_weights, not {len(given)}")


def _columns(weight_scale: Tensor) -> int:
    """How many columns an output has."""
    if weight_scale.dim() != 1:
        shape = tuple(weight_scale.shape)
        raise ValueError(f"weight_scale must have one element for each of the output channels, not shape {shape}")
    return weight_scale.shape[0]


@_op
def linear_int8_dynamic(
    input: Tensor, packed_weight: Tensor, weight_scale: Tensor, bias: Tensor | None, symmetric: bool, per_token: bool
) -> Tensor:
    check_float("input", input.dtype)
    _check_devices(input, {"packed_weight": packed_weight, "weight_scale": weight_scale, "bias": bias})
    return input.new_empty((*input.shape[:-1], _columns(weight_scale)))


@_op
def linear_int8_dynamic_shared(
    input: Tensor,
    packed_weights: Sequence[Tensor],
    weight_scales: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    symmetric: bool,
    per_token: bool,
) -> list[Tensor]:
    check_float("input", input.dtype)
    _check_counts(packed_weights, weight_scales=weight_scales, biases=biases)
    for packed_weight, weight_scale, bias in zip(packed_weights, weight_scales, biases, strict=True):
        _check_devices(input, {"packed_weight": packed_weight, "weight_scale": weight_scale, "bias": bias})
    return [input.new_empty((*input.shape[:-1], _columns(weight_scale))) for weight_scale in weight_scales]


@_op
def linear_int8_quantized(
    qdata: Tensor,
    act_scale: Tensor,
    act_zero_point: Tensor | None,
    packed_weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    output_dtype: torch.dtype,
) -> Tensor:
    if qdata.dtype != torch.int8:
        raise ValueError(f"qdata must be torch.int8, not {qdata.dtype}")
    check_float("output_dtype", output_dtype)
    others = {
        "act_scale": act_scale,
        "act_zero_point": act_zero_point,
        "packed_weight": packed_weight,
        "weight_scale": weight_scale,
        "bias": bias,
    }
    _check_devices(qdata, others, "qdata")
    return qdata.new_empty((*qdata.shape[:-1], _columns(weight_scale)), dtype=output_dtype)


@_op
def linear_int8_static(
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
            "input must be torch.float32, torch.bfloat16, torch.float16 or, as input_zero_point is, "
            f"{input_zero_point.dtype}, not {input.dtype}"
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
    return input.new_empty((*input.shape[:-1], _columns(weight_scale)), dtype=output_dtype)


@_op
def matmul_int8(qdata: Tensor, packed_weight: Tensor) -> Tensor:
    _check_matrix("qdata", qdata)
    columns = torch.library.get_ctx().new_dynamic_size()
    return qdata.new_empty((qdata.shape[0], columns), dtype=torch.int32)


@_op
def quantize_activations(input: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    _check_matrix("input", input)
    tokens = (input.shape[0], 1)
    return (
        input.new_empty(input.shape, dtype=torch.int8),
        input.new_empty(tokens, dtype=torch.float32),
        input.new_empty(tokens, dtype=torch.int32),
    )


@_op
def pack_int8(qdata: Tensor, kernel: str) -> Tensor:
    _check_matrix("qdata", qdata)
    n, k = qdata.shape
    # Of a named kernel, whether or not the values reach -128.
    return qdata.new_empty((call(packed_bytes, int(n), int(k), kernel, False),), dtype=torch.uint8)


@_op
def unpack_int8(packed_weight: Tensor, n: int, k: int, rows: Tensor | None = None) -> Tensor:
    _check_devices(packed_weight, {"rows": rows}, "packed_weight")
    return packed_weight.new_empty((n if rows is None else rows.shape[0], k), dtype=torch.int8)


@_op
def linear_qta8a_qga4w(
    input: Tensor,
    packed_weight: Tensor,
    n: int,
    bias: Tensor | None,
    act_scale: Tensor | None = None,
    act_zero_point: Tensor | None = None,
    output_min: float | None = None,
    output_max: float | None = None,
) -> Tensor:
    if input.dtype not in (*FLOATS, torch.int8):
        raise ValueError(f"input must be torch.float32, torch.bfloat16, torch.float16 or torch.int8, not {input.dtype}")
    others = {"packed_weight": packed_weight, "bias": bias, "act_scale": act_scale, "act_zero_point": act_zero_point}
    _check_devices(input, others)
    dtype = torch.float32 if input.dtype == torch.int8 else input.dtype
    return input.new_empty((*input.shape[:-1], n), dtype=dtype)


@_op
def linear_qta8a_qga4w_shared(
    input: Tensor, packed_weights: Sequence[Tensor], n: Sequence[int], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    check_float("input", input.dtype)
    _check_counts(packed_weights, n=n, biases=biases)
    for packed_weight, bias in zip(packed_weights, biases, strict=True):
        _check_devices(input, {"packed_weight": packed_weight, "bias": bias})
    return [input.new_empty((*input.shape[:-1], columns)) for columns in n]


@_op
def pack_int4(qdata: Tensor, scale: Tensor, zero_point: Tensor | None, kernel: str) -> Tensor:
    _check_matrix("qdata", qdata)
    _check_matrix("scale", scale)
    _check_devices(qdata, {"scale": scale, "zero_point": zero_point}, "qdata")
    n, k = (int(size) for size in qdata.shape)
    floats, zero_points = scale.dtype == torch.float32, zero_point is not None
    size = call(packed_bytes_int4, n, k, k // int(scale.shape[1]), floats, zero_points, kernel)
    return qdata.new_empty((size,), dtype=torch.uint8)


@_op
def unpack_int4(
    packed_weight: Tensor,
    n: int,
    k: int,
    group_size: int,
    float_scales: bool,
    zero_points: bool,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, not {group_size}")
    _check_devices(packed_weight, {"rows": rows}, "packed_weight")
    count = n if rows is None else rows.shape[0]
    groups = (count, k // group_size)
    return (
        packed_weight.new_empty((count, k), dtype=torch.int8),
        packed_weight.new_empty(groups, dtype=torch.float32 if float_scales else torch.bfloat16),
        packed_weight.new_empty(groups if zero_points else (0, 0), dtype=torch.int8),
    )


# What is known of kernels and weights: texts, numbers and no tensors to trace.
packed_weight_info: Callable[[Tensor], str] = torch.ops.ao_arm.packed_weight_info.default
select_kernel: Callable[[int, int, str, bool], str] = torch.ops.ao_arm.select_kernel.default
packed_bytes: Callable[[int, int, str, bool], int] = torch.ops.ao_arm.packed_bytes.default
kernel_table: Callable[[int, int, bool], str] = torch.ops.ao_arm.kernel_table.default
select_kernel_int4: Callable[[int, int, int, bool, bool, str], str] = torch.ops.ao_arm.select_kernel_int4.default
packed_bytes_int4: Callable[[int, int, int, bool, bool, str], int] = torch.ops.ao_arm.packed_bytes_int4.default
kernel_table_int4: Callable[[int, int, int, bool, bool], str] = torch.ops.ao_arm.kernel_table_int4.default
system_info: Callable[[], str] = torch.ops.ao_arm.system_info.default
