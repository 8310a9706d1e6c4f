"""The table of what is benchmarked. A row for each way to compute a linear layer; another one needs a row, no more."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torchao.quantization
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import PerGroup, PerRow, PerTensor, quantize_
from torchao.quantization.quant_primitives import MappingType

from .. import reference
from ..affine_quantized import packed_weight_of
from ..config import acl_int4_grouped, acl_int8_dynamic, acl_int8_static
from ..layout import HAS_AQT
from ..pack_model import pack_
from .executorch_layers import ExecuTorchLayer
from .litert_layers import LiteRTLayer
from .onnx_runtime_layers import OnnxRuntimeLayer
from .runtime_layer import RuntimeLayer
from .torch_layers import Dynamic4BitLinear, DynamicLinear, StaticLinear

Make = Callable[[torch.nn.Linear, Tensor], torch.nn.Module]
"""Builds the layer from a float one, which it leaves as it is, and inputs (..., k) to calibrate with."""

Reference = Callable[[torch.nn.Module, Tensor], Tensor]
"""What exactly a layer that was made should give for an input."""

#: What ratios are to, unless another one is asked for.
BASELINE = "fp32"


@dataclass(frozen=True)
class Candidate:
    """A row of the table.

    Attributes:
        name: unique.
        scheme: the kind of arithmetic.
        make: builds the layer.
        least_sqnr_db: against the fp32 layer, for normally distributed weights and inputs; less is an error.
        reference: the oracle of the layer that was made, or None.
        tolerance: the largest difference from ``reference``, relative to its largest value; 0 means equal bits.
        dtype: of the float layer and the inputs.
        backend: of torch.compile, which compiles it with freezing; "" if nothing does.
        obstacle: tells why it cannot run on this machine or with these versions; "" if it can.
    """

    name: str
    scheme: str
    make: Make
    least_sqnr_db: float
    reference: Reference | None = None
    tolerance: float = 0.0
    dtype: torch.dtype = torch.float32
    backend: str = ""
    obstacle: Callable[[], str] = lambda: ""


# --- how layers are made ---


def _as_it_is(linear: torch.nn.Linear, calibration: Tensor) -> torch.nn.Module:
    return linear


def _uncalibrated(
    layer: Callable[..., torch.nn.Module], linear: torch.nn.Linear, calibration: Tensor, **settings: Any
) -> torch.nn.Module:
    return layer(linear, **settings)


def _quantize(config: Callable[[Tensor], AOBaseConfig], linear: torch.nn.Linear, calibration: Tensor) -> Any:
    """A copy quantized by ``quantize_`` with the configuration for these inputs."""
    made = copy.deepcopy(linear)
    quantize_(made, config(calibration))
    return made


def _packed_from(make: Callable[..., torch.nn.Module], linear: torch.nn.Linear, calibration: Tensor) -> torch.nn.Module:
    """What another tool makes, after ``pack_``."""
    made = make(linear, calibration)
    if left := pack_(made).left:
        raise ValueError(f"not packed: {left[0].reason}")
    return made


def _prepare_and_convert(
    linear: torch.nn.Linear, calibration: Tensor, mapping: MappingType, dtype: torch.dtype
) -> torch.nn.Module:
    made = copy.deepcopy(linear)
    quantize_(made, acl_int8_static("prepare", act_mapping_type=mapping, act_dtype=dtype))
    made(calibration)
    quantize_(made, acl_int8_static("convert", act_mapping_type=mapping, act_dtype=dtype))
    return made


def _ours_int4(group_size: int, calibration: Tensor) -> AOBaseConfig:
    return acl_int4_grouped(group_size)


def _torchao_dynamic(calibration: Tensor) -> AOBaseConfig:
    # Where AffineQuantizedTensor exists, version 1, the default, is made of it; version 2 is torchao 0.18's Int8Tensor.
    version = {"version": 2} if HAS_AQT else {}
    return torchao.quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, **version)


def _torchao_int4(group_size: int, calibration: Tensor) -> AOBaseConfig:
    int4: torch.dtype = getattr(torch, "int4")  # noqa: B009 - torch's types do not have it
    return torchao.quantization.Int8DynamicActivationIntxWeightConfig(int4, PerGroup(group_size), version=2)


def _torchao_static(calibration: Tensor) -> AOBaseConfig:
    scale = calibration.abs().amax().float().reshape((1,) * calibration.dim()) / 127.5
    return torchao.quantization.Int8StaticActivationInt8WeightConfig(
        act_quant_scale=scale, granularity=[PerTensor(), PerRow()], set_inductor_config=False
    )


# --- what they should give ---


def _int8_dynamic_reference(layer: Any, input: Tensor) -> Tensor:
    packed = _packed(layer)
    layout = packed.get_layout()
    symmetric, per_token = layout.activation_mapping == "symmetric", layout.activation_granularity == "per_token"
    return reference.linear_int8_dynamic(input, packed.qdata, packed.scale, layer.bias, symmetric, per_token)


def _int8_static_reference(layer: Any, input: Tensor) -> Tensor:
    packed = _packed(layer)
    given = (packed.act_scale, packed.act_zero_point)
    return reference.linear_int8_static(input, packed.qdata, packed.scale, layer.bias, *given)


def _int4_reference(layer: Any, input: Tensor) -> Tensor:
    plain = _packed(layer).plain()
    return reference.linear_qta8a_qga4w(input, plain.qdata, plain.scale, plain.zero_point, layer.bias)


def _packed(layer: Any) -> Any:
    packed = packed_weight_of(layer.weight)
    if packed is None:
        raise TypeError(f"the weight of {layer} is not packed")
    return packed


# --- what they need ---


def _needs_torchao(name: str) -> str:
    return "" if hasattr(torchao.quantization, name) else f"torchao {torchao.__version__} has no {name}"


def _needs_engine(engine: str) -> str:
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if engine not in engines:
        return f"this torch's engines are {', '.join(engines) or 'none'}"
    return "" if hasattr(torch, "quantize_per_tensor") else f"torch {torch.__version__} has no quantized tensors"


def _needs_packages(extra: str, *packages: str) -> str:
    return "" if all(map(find_spec, packages)) else f"it needs `pip install 'ao_arm[{extra}]'`"


def _needs_op(name: str) -> str:
    return "" if hasattr(torch.ops.aten, name) else f"torch {torch.__version__} has no aten.{name}"


# --- the table ---


#: By the extra that installs them: the layer, whose range int8 activations have, groups of 4 bits, and the packages.
OTHER_RUNTIMES: tuple[tuple[str, type[RuntimeLayer], str, tuple[int, ...], tuple[str, ...]], ...] = (
    ("onnxruntime", OnnxRuntimeLayer, "tensor", (32, 128), ("onnxruntime", "onnx", "onnx_ir")),
    ("executorch", ExecuTorchLayer, "token", (32, 128), ("executorch",)),
    ("litert", LiteRTLayer, "token", (32,), ("litert_torch",)),
)

#: What is compiled is called by its eager name and one of these, which stand for a backend.
_BACKENDS = {"compiled": "inductor", "fused": "ao_arm"}


def _and_compiled(eager: Candidate, *suffixes: str) -> tuple[Candidate, ...]:
    return eager, *(
        dataclasses.replace(eager, name=f"{eager.name} {suffix}", backend=_BACKENDS[suffix])
        for suffix in suffixes or ("compiled",)
    )


def _stock(eager: Candidate) -> tuple[Candidate, ...]:
    """What another tool quantized: as it is, taken over by ``pack_``, compiled, and compiled to ops of ours."""
    taken_over = dataclasses.replace(eager, name=f"{eager.name} packed", make=partial(_packed_from, eager.make))
    return *_and_compiled(eager, *_BACKENDS), taken_over


CANDIDATES = (
    *_and_compiled(Candidate(BASELINE, "float", _as_it_is, least_sqnr_db=100)),
    Candidate("bf16", "float", _as_it_is, least_sqnr_db=40, dtype=torch.bfloat16),
    *_and_compiled(
        Candidate(
            "ao_arm int8 dynamic",
            "int8 dynamic, per token x per channel",
            partial(_quantize, lambda calibration: acl_int8_dynamic()),
            least_sqnr_db=33,
            reference=_int8_dynamic_reference,
        )
    ),
    Candidate(
        "ao_arm int8 dynamic symmetric",
        "int8 dynamic, per token x per channel",
        partial(_quantize, lambda calibration: acl_int8_dynamic(MappingType.SYMMETRIC)),
        least_sqnr_db=33,
        reference=_int8_dynamic_reference,
    ),
    *(
        row
        for name, mapping, dtype in (
            ("s8", MappingType.SYMMETRIC, torch.int8),
            ("u8", MappingType.ASYMMETRIC, torch.uint8),
        )
        for row in _and_compiled(
            Candidate(
                f"ao_arm int8 static {name}",
                "int8 static, per tensor x per channel",
                partial(_prepare_and_convert, mapping=mapping, dtype=dtype),
                least_sqnr_db=30,
                reference=_int8_static_reference,
            )
        )
    ),
    *(
        row
        for group_size in (32, 128)
        for row in _and_compiled(
            Candidate(
                f"ao_arm int4 g{group_size}",
                f"int4 grouped, per token x per group of {group_size}",
                partial(_quantize, partial(_ours_int4, group_size)),
                least_sqnr_db=15,
                reference=_int4_reference,
                # Of the largest output; the kernels are held to 1e-6 of the largest sum of magnitudes.
                tolerance=1e-5,
            )
        )
    ),
    *_stock(
        Candidate(
            "torchao int8 dynamic",
            "int8 dynamic, per token x per channel",
            partial(_quantize, _torchao_dynamic),
            least_sqnr_db=33,
            obstacle=partial(_needs_torchao, "Int8DynamicActivationInt8WeightConfig"),
        )
    ),
    *_stock(
        Candidate(
            "torchao int8 static",
            "int8 static, per tensor x per channel",
            partial(_quantize, _torchao_static),
            least_sqnr_db=30,
            obstacle=partial(_needs_torchao, "Int8StaticActivationInt8WeightConfig"),
        )
    ),
    *_stock(
        Candidate(
            "torchao int4 g32",
            "int4 grouped, per token x per group of 32",
            partial(_quantize, partial(_torchao_int4, 32)),
            least_sqnr_db=15,
            obstacle=partial(_needs_torchao, "Int8DynamicActivationIntxWeightConfig"),
        )
    ),
    *(
        Candidate(
            f"torch int8 dynamic {engine}",
            "int8 dynamic, per tensor x per tensor",
            partial(_uncalibrated, DynamicLinear, engine=engine),
            least_sqnr_db=28,
            obstacle=partial(_needs_engine, engine),
        )
        for engine in ("onednn", "qnnpack", "x86", "fbgemm")
    ),
    *(
        Candidate(
            f"torch int8 static {name} {engine}",
            "int8 static, per tensor x per tensor, int8 out",
            partial(StaticLinear, engine=engine, dtype=dtype),
            least_sqnr_db=28,
            obstacle=partial(_needs_engine, engine),
        )
        for engine, name, dtype in (
            ("onednn", "s8", torch.qint8),
            ("onednn", "u8", torch.quint8),
            ("qnnpack", "u8", torch.quint8),
            ("x86", "u8", torch.quint8),
            ("fbgemm", "u8", torch.quint8),
        )
    ),
    *(
        Candidate(
            f"torch int4 g{group_size}",
            f"int4 grouped, per token x per group of {group_size}",
            partial(_uncalibrated, Dynamic4BitLinear, group_size=group_size),
            least_sqnr_db=15,
            obstacle=partial(_needs_op, "_dyn_quant_matmul_4bit"),
        )
        for group_size in (32, 128)
    ),
    *(
        Candidate(
            f"{runtime} int4 g{group_size}" if group_size else f"{runtime} int8 dynamic",
            f"int4 grouped, per token x per group of {group_size}"
            if group_size
            else f"int8 dynamic, per {granularity} x per channel",
            partial(_uncalibrated, layer.of, group_size=group_size),
            least_sqnr_db=15 if group_size else 33,
            obstacle=partial(_needs_packages, runtime, *packages),
        )
        for runtime, layer, granularity, group_sizes, packages in OTHER_RUNTIMES
        for group_size in (0, *group_sizes)
    ),
)


def choose(patterns: str) -> tuple[Candidate, ...]:
    """The candidates, always with the baseline, whose names match one of some patterns with ``*``, separated by commas.

    Raises:
        ValueError: if a pattern matches none.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    for pattern in wanted:
        if not any(fnmatchcase(row.name, pattern) for row in CANDIDATES):
            names = ", ".join(row.name for row in CANDIDATES)
            raise ValueError(f"no candidate is called {pattern!r}; there are: {names}")
    return tuple(
        row for row in CANDIDATES if row.name == BASELINE or any(fnmatchcase(row.name, pattern) for pattern in wanted)
    )
