"""Layers that stock tools quantized: each way of torchao and torch.ao that `pack_` takes over, as a table."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import cases
import torch
from torch import Tensor, nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    PerAxis,
    PerGroup,
    PerRow,
    PerTensor,
    quant_api,
    quantize_,
)
from torchao.quantization.quant_primitives import MappingType

#: Of outputs by other floats and the same integers, relative to the largest magnitude of an output or bias: some units
#: in the last place. One step of one activation, or of a weight, is a thousand times as much.
SAME_INTEGERS = 2e-6
#: Where the stock layer dequantizes, and multiplies floats.
FLOAT_PRODUCT = 1e-5

NARROW = (torch.bfloat16, torch.float16)
SYMMETRIC, ASYMMETRIC = MappingType.SYMMETRIC, MappingType.ASYMMETRIC
Quantize = Callable[[nn.Linear], None]


@dataclass(frozen=True)
class Way:
    """A way to quantize a linear layer.

    Attributes:
        quantize: does it, in place.
        scheme: what the packed layer says of itself.
        tolerance: of float32 outputs, relative to the largest magnitude.
        note: what the report says of float32 layers.
        exact_in: narrow dtypes in which activations become the same integers.
    """

    quantize: Quantize
    scheme: str
    tolerance: float = SAME_INTEGERS
    note: str = ""
    exact_in: tuple[torch.dtype, ...] = ()


def float_layer(n: int, k: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    return nn.Linear(k, n, bias=bias, dtype=dtype).eval().requires_grad_(False)


def by(config: Any) -> Quantize:
    return lambda layer: quantize_(layer, config)


def _rows(activation: Any, weight: Any) -> dict[str, Any]:
    """Granularities as torchao's int8 configurations take them; none where it is the same for both."""
    return {"granularity": activation if activation == weight else [activation, weight]}


def _dynamic(mapping: MappingType, activation: Any, weight: Any) -> Quantize:
    return by(Int8DynamicActivationInt8WeightConfig(act_mapping_type=mapping, version=2, **_rows(activation, weight)))


def _static(zero_point: int | None, weight: Any = None) -> Quantize:
    def quantize(layer: nn.Linear) -> None:
        dtype = layer.weight.dtype
        scale = torch.tensor([[0.031]], dtype=dtype)
        arguments: dict[str, Any] = {"act_quant_scale": scale}
        if zero_point is not None:
            zero = torch.tensor([[zero_point]], dtype=torch.int8)
            arguments |= {"act_quant_zero_point": zero, "act_mapping_type": ASYMMETRIC}
        by(quant_api.Int8StaticActivationInt8WeightConfig(granularity=PerTensor(), **arguments))(layer)

    return quantize


def _intx(bits: int, group_size: int | None, mapping: MappingType, scale_dtype: torch.dtype | None = None) -> Quantize:
    granularity = PerAxis(0) if group_size is None else PerGroup(group_size)
    return by(
        Int8DynamicActivationIntxWeightConfig(
            weight_dtype=getattr(torch, f"int{bits}"),
            weight_granularity=granularity,
            weight_mapping_type=mapping,
            weight_scale_dtype=scale_dtype,
        )
    )


def grouped_scheme(groups: str, scales: str = "float32") -> str:
    return f"int4 grouped (asymmetric, per_token x {groups}, {scales} scales)"


#: The last k of `shape_of`.
K, ODD_K, N = 96, 97, 33
HAS_ASYMMETRIC_INT8 = "act_quant_zero_point" in {
    field.name for field in fields(quant_api.Int8StaticActivationInt8WeightConfig)
}
HAS_PER_ROW_DIM = "dim" in {field.name for field in fields(PerRow)}
HAS_FLOAT32_SCALES = "reduce_range" in {field.name for field in fields(Int8DynamicActivationInt8WeightConfig)}


def _int8_ways() -> dict[str, Way]:
    words = {PerRow(): ("per_token", "per_channel"), PerTensor(): ("per_tensor", "per_tensor")}
    made = {}
    for mapping in (SYMMETRIC, *([ASYMMETRIC] if HAS_ASYMMETRIC_INT8 else [])):
        mapping_word = mapping.name.lower()
        for activation, weight in [
            (PerRow(), PerRow()),
            (PerTensor(), PerTensor()),
            *([(PerRow(), PerTensor()), (PerTensor(), PerRow())] if HAS_ASYMMETRIC_INT8 else []),
        ]:
            described = f"{mapping_word}, {words[activation][0]} x {words[weight][1]}"
            made[f"Int8Tensor dynamic {described}"] = Way(
                _dynamic(mapping, activation, weight),
                f"int8 dynamic ({described})",
                exact_in=NARROW if mapping == SYMMETRIC and HAS_FLOAT32_SCALES else (),
            )
    made["Int8Tensor static symmetric"] = Way(_static(None), "int8 static (symmetric int8, per_tensor x per_tensor)")
    if HAS_ASYMMETRIC_INT8:
        made["Int8Tensor static asymmetric"] = Way(
            _static(-9), "int8 static (asymmetric int8, per_tensor x per_tensor)"
        )
    return made


def _intx_ways() -> dict[str, Way]:
    made = {
        f"Intx {bits} bits {mapping.name.lower()} {group_size} {scale_dtype}": Way(
            _intx(bits, group_size, mapping, scale_dtype),
            grouped_scheme(
                f"{word} groups of {group_size or K}", "bfloat16" if scale_dtype is torch.bfloat16 else "float32"
            ),
            FLOAT_PRODUCT,
        )
        for bits, group_size, mapping, word, scale_dtype in [
            (4, 32, SYMMETRIC, "symmetric", None),
            (4, 32, ASYMMETRIC, "asymmetric", None),
            (4, 32, SYMMETRIC, "symmetric", torch.bfloat16),
            (4, None, ASYMMETRIC, "asymmetric", None),
            (2, 32, ASYMMETRIC, "asymmetric", None),
            (3, 32, SYMMETRIC, "symmetric", None),
        ]
    }
    for bits in (8, 6):
        made[f"Intx {bits} bits by row"] = Way(
            _intx(bits, None, SYMMETRIC), "int8 dynamic (asymmetric, per_token x per_channel)", FLOAT_PRODUCT
        )
    return made


def affine_quantized(
    function: str | Callable[[Tensor], Tensor], bits: int = 8, group_size: int | None = None, zeros: bool = False
) -> Quantize:
    """torchao's AffineQuantizedTensor, its activations quantized by one of torchao's own functions."""

    def quantize(layer: nn.Linear) -> None:
        from torchao.dtypes import to_affine_quantized_intx
        from torchao.quantization.linear_activation_quantized_tensor import to_linear_activation_quantized
        from torchao.quantization.quant_primitives import ZeroPointDomain

        half = 1 << bits - 1
        weight = to_affine_quantized_intx(
            layer.weight,
            ASYMMETRIC if zeros else SYMMETRIC,
            (1, group_size or layer.in_features),
            torch.int8,
            -half,
            half - 1,
            eps=torch.finfo(torch.float32).eps,
            zero_point_dtype=torch.int32,
            zero_point_domain=ZeroPointDomain.INT if zeros else ZeroPointDomain.NONE,
        )
        quantized = function if callable(function) else getattr(quant_api, function)
        layer.weight = nn.Parameter(to_linear_activation_quantized(weight, quantized), requires_grad=False)

    return quantize


BY_127 = "max / 127 "


def _affine_ways() -> dict[str, Way]:
    if not cases.HAS_AQT:
        return {}
    asymmetric, symmetric = (
        f"int8 dynamic ({word}, per_token x per_channel)" for word in ("asymmetric", "symmetric_127")
    )
    version_1 = {
        mapping: by(Int8DynamicActivationInt8WeightConfig(act_mapping_type=mapping, version=1))
        for mapping in (SYMMETRIC, ASYMMETRIC)
    }
    grouped = affine_quantized("_int8_asymm_per_token_quant", 4, 32, zeros=True)
    return {
        "AffineQuantizedTensor version 1 asymmetric": Way(version_1[ASYMMETRIC], asymmetric, FLOAT_PRODUCT),
        "AffineQuantizedTensor version 1 symmetric": Way(
            version_1[SYMMETRIC], symmetric, FLOAT_PRODUCT, BY_127, (torch.float16,)
        ),
        "AffineQuantizedTensor uint8": Way(affine_quantized("_uint8_asymm_per_token_quant"), asymmetric, FLOAT_PRODUCT),
        "AffineQuantizedTensor 4 bits asymmetric": Way(
            grouped, grouped_scheme("asymmetric groups of 32"), FLOAT_PRODUCT
        ),
        "AffineQuantizedTensor 4 bits symmetric": Way(
            affine_quantized("_int8_asymm_per_token_quant", 4, 32),
            grouped_scheme("symmetric groups of 32"),
            FLOAT_PRODUCT,
        ),
    }


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    WAYS: dict[str, Way] = {**_int8_ways(), **_intx_ways(), **_affine_ways()}


def is_grouped(way: Way) -> bool:
    return "groups of" in way.scheme


def layer_by(way: Way, dtype: torch.dtype = torch.float32, n: int = N, **options: Any) -> nn.Linear:
    """A layer quantized that way; k is odd where groups do not forbid that."""
    layer = float_layer(n, K if is_grouped(way) else ODD_K, dtype, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        way.quantize(layer)
    return layer


def rows(layer: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Inputs: one row, several, and two batches of some; of some the range lies on one side of 0."""
    k = layer.in_features
    return [torch.randn(1, k, dtype=dtype), torch.rand(7, k, dtype=dtype) + 0.5, torch.randn(2, 3, k, dtype=dtype) * 3]


def output(layer: nn.Module, x: Tensor) -> Tensor:
    """Of a stock layer; some take matrices only."""
    flat: Tensor = layer(x.reshape(-1, x.shape[-1]))
    return flat.reshape(*x.shape[:-1], -1)


def assert_near(
    actual: Tensor, expected: Tensor, tolerance: float, bias: Tensor | None = None, case: object = ""
) -> None:
    """Within a share of the largest magnitude."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), case
    if expected.numel() == 0:
        return
    largest = float(expected.abs().amax()) + (0.0 if bias is None else float(bias.abs().amax()))
    error = float((actual.double() - expected.double()).abs().amax())
    assert error <= tolerance * largest, f"{case}: {error / largest} of the largest magnitude"
