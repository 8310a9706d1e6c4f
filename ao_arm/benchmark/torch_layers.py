"""Quantized linear layers made of torch's own ops, float in and float out like ``nn.Linear``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: Of an int8 weight; -128 is left out, as torch's observers do.
_LARGEST = 127


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """Makes torch pack weights for one of its engines; running them does not depend on it."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def _pack(linear: torch.nn.Linear, engine: str, bias: Tensor | None) -> object:
    """The weight for ``torch.ops.quantized``: int8, symmetric, one scale for all of it."""
    weight = linear.weight.detach()
    scale = float(weight.abs().amax()) / _LARGEST
    with _engine(engine):
        return torch.ops.quantized.linear_prepack(torch.quantize_per_tensor(weight, scale, 0, torch.qint8), bias)


def _bias(linear: torch.nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach()


class DynamicLinear(torch.nn.Module):
    """``torch.ops.quantized.linear_dynamic``: per-tensor u8 or s8 activations, as the engine has it."""

    def __init__(self, linear: torch.nn.Linear, engine: str) -> None:
        super().__init__()
        self._packed = _pack(linear, engine, _bias(linear))
        # As torch's own module does where u8 x s8 products are added in 16 bits on CPUs without VNNI.
        self._reduce_range = engine in ("x86", "fbgemm")

    def forward(self, input: Tensor) -> Tensor:
        """From (..., k) to (..., n), both float32."""
        output: Tensor = torch.ops.quantized.linear_dynamic(input, self._packed, self._reduce_range)
        return output


class StaticLinear(torch.nn.Module):
    """``torch.ops.quantized.linear`` with per-tensor activations, quantized before and dequantized after it.

    Args:
        linear: the float layer.
        calibration: inputs (..., k) whose range, and that of the outputs for them, is the range of the int8 values.
        engine: one of torch's.
        dtype: of the activations, ``torch.quint8`` or ``torch.qint8``.
    """

    def __init__(self, linear: torch.nn.Linear, calibration: Tensor, engine: str, dtype: torch.dtype) -> None:
        super().__init__()
        bias = _bias(linear)
        # For Arm, oneDNN's path in torch 2.10 has a buffer of m * k values for the n of the bias. Where n is larger it
        # would write past the end for small m, so that the bias is added outside.
        apart = engine == "onednn" and linear.out_features > linear.in_features
        self._bias_apart = bias if apart else None
        self._packed = _pack(linear, engine, None if apart else bias)
        self._dtype = dtype
        self._input = _scale_and_zero_point(calibration, dtype)
        with torch.no_grad():
            output = torch.nn.functional.linear(calibration, linear.weight, None if apart else bias)
        self._output = _scale_and_zero_point(output, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """From (..., k) to (..., n), both float32."""
        quantized = torch.quantize_per_tensor(input, *self._input, self._dtype)
        output: Tensor = torch.ops.quantized.linear(quantized, self._packed, *self._output).dequantize()
        return output if self._bias_apart is None else output + self._bias_apart


def _scale_and_zero_point(values: Tensor, dtype: torch.dtype) -> tuple[float, int]:
    """Of 8-bit values that span the range of ``values`` and hold 0."""
    low, high = min(float(values.amin()), 0.0), max(float(values.amax()), 0.0)
    scale = max((high - low) / 255, 2.0**-23)
    return scale, round(-low / scale) + torch.iinfo(dtype).min


class Dynamic4BitLinear(torch.nn.Module):
    """``aten._dyn_quant_matmul_4bit``: per-token int8 activations x 4-bit groups (KleidiAI on Arm).

    Raises:
        NotImplementedError: if the layer's input features are not whole groups.
    """

    def __init__(self, linear: torch.nn.Linear, group_size: int) -> None:
        super().__init__()
        n, k = linear.weight.shape
        if k % group_size:
            raise NotImplementedError(f"k = {k} is not a multiple of the group size {group_size}")
        weight = linear.weight.detach().reshape(n, k // group_size, group_size)
        scale = (weight.abs().amax(dim=2, keepdim=True) / 7).clamp(min=2.0**-23).to(torch.bfloat16)
        values = (weight / scale.float()).round().clamp(-8, 7).reshape(n, k).to(torch.int32) + 8
        pairs = (values[:, 1::2] << 4 | values[:, ::2]).to(torch.uint8)
        self._packed = torch.ops.aten._dyn_quant_pack_4bit_weight(
            pairs, scale.reshape(n, -1), _bias(linear), group_size, k, n
        )
        self._sizes = (group_size, k, n)

    def forward(self, input: Tensor) -> Tensor:
        """From (..., k) to (..., n), both of the input's dtype."""
        rows = input.reshape(-1, input.shape[-1])
        output: Tensor = torch.ops.aten._dyn_quant_matmul_4bit(rows, self._packed, *self._sizes)
        return output.reshape(*input.shape[:-1], output.shape[-1])
