"""The custom ops as Python sees them: each schema beside its fake kernel, which gives shapes and dtypes for tracing.

The kernels themselves, and the same schemas, are in ``csrc/ops.cpp``; the library may be loaded without Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _library

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
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


@_fake(
    "linear_int8_dynamic(Tensor input, Tensor packed_weight, Tensor weight_scale, Tensor? bias, bool symmetric, "
    "bool per_token) -> Tensor"
)
def _(
    input: Tensor, packed_weight: Tensor, weight_scale: Tensor, bias: Tensor | None, symmetric: bool, per_token: bool
) -> Tensor:
    if input.dtype not in _FLOATS:
        raise ValueError(f"input must be float32, bfloat16 or float16, not {input.dtype}")
    for name, tensor in (("packed_weight", packed_weight), ("weight_scale", weight_scale), ("bias", bias)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"input is on {input.device} but {name} is on {tensor.device}; move them together")
    return input.new_empty((*input.shape[:-1], weight_scale.shape[0]))


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


@_fake("unpack_int8(Tensor packed_weight) -> Tensor")
def _(packed_weight: Tensor) -> Tensor:
    context = torch.library.get_ctx()
    return packed_weight.new_empty((context.new_dynamic_size(), context.new_dynamic_size()), dtype=torch.int8)


linear_int8_dynamic = torch.ops.ao_arm.linear_int8_dynamic.default
matmul_int8 = torch.ops.ao_arm.matmul_int8.default
quantize_activations = torch.ops.ao_arm.quantize_activations.default
pack_int8 = torch.ops.ao_arm.pack_int8.default
unpack_int8 = torch.ops.ao_arm.unpack_int8.default
packed_weight_info = torch.ops.ao_arm.packed_weight_info.default
select_kernel = torch.ops.ao_arm.select_kernel.default
packed_bytes = torch.ops.ao_arm.packed_bytes.default
kernel_table = torch.ops.ao_arm.kernel_table.default
system_info = torch.ops.ao_arm.system_info.default
