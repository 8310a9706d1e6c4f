"""The configurations that ``torchao.quantization.quantize_`` takes; what it does with them is in ``handlers``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchao.core.config import ALLOWED_AO_MODULES, AOBaseConfig
from torchao.quantization.granularity import Granularity, PerAxis, PerRow, PerTensor, PerToken
from torchao.quantization.quant_primitives import MappingType

from .layout import ACLPackedLayout, whole_number
from .observers import OBSERVERS

# Lets torchao's config_from_dict look for configurations here.
ALLOWED_AO_MODULES.add("ao_arm")

_MAPPINGS = {MappingType.SYMMETRIC: "symmetric", MappingType.ASYMMETRIC: "asymmetric"}
_STATIC_DTYPES = {torch.int8: "int8", torch.uint8: "uint8"}
_STEPS = ("prepare", "convert", None)
_POLICIES = ("raise", "skip")


def _check_version(version: int) -> None:
    if version != 1:
        raise ValueError(f"version must be 1, not {version}: written by a newer ao_arm?")


def _check_policy(policy: str, accepted: tuple[str, ...] = _POLICIES) -> None:
    if policy not in accepted:
        other = " ('int8' is for 4-bit layers)" if policy == "int8" else ""
        raise ValueError(f"on_unsupported must be one of {accepted}, not {policy!r}{other}")


def _mapping(mapping: MappingType, name: str = "act_mapping_type") -> str:
    if mapping not in _MAPPINGS:
        raise ValueError(f"{name} must be MappingType.SYMMETRIC or MappingType.ASYMMETRIC, not {mapping}")
    return _MAPPINGS[mapping]


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a number or a tensor of one, not {value!r}") from None


#: Of a ``PerRow``: along a row, whose values share a scale.
_ALONG_ROWS = (-1, 1)


def _granularity(name: str, granularity: Granularity, of_a_row: str, also: Granularity) -> str:
    """The granularity in a layout's words: ``of_a_row`` for ``PerRow`` along rows and for ``also``."""
    if granularity == also or (isinstance(granularity, PerRow) and granularity.dim in _ALONG_ROWS):
        return of_a_row
    if isinstance(granularity, PerTensor):
        return "per_tensor"
    raise ValueError(f"{name} must be PerRow(), {also} or PerTensor(), not {granularity}: only rows have a scale each")


def _weight_granularity(granularity: Granularity) -> str:
    return _granularity("weight_granularity", granularity, "per_channel", PerAxis(0))


@dataclass
class ACLInt8DynamicActivationInt8WeightConfig(AOBaseConfig):
    """Int8 linear layers whose activations are quantized as they come, computed by one fused call.

    Attributes:
        act_mapping_type: ``MappingType.ASYMMETRIC``, or ``MappingType.SYMMETRIC`` (zero point 0): torchao's rule,
            bit for bit. It takes 1.3 to 1.6 percent fewer cycles (Neoverse V1, modelled) and is less accurate: by
            some 4 dB in MiniLM's embeddings. Its scale, max / 127.5, puts a negative peak on a rounding tie, so that
            the last bit of an input, which may depend on the size of the batch, often decides on an integer: a MiniLM
            embedding in a batch is only 20 to 30 dB near the same one alone, against more than 100 dB otherwise.
        act_granularity: ``PerToken()`` (also written ``PerRow()``): one scale for each row of the input; or
            ``PerTensor()``: one for the whole input.
        weight_granularity: ``PerRow()`` (also written ``PerAxis(0)``): one scale for each output channel; or
            ``PerTensor()``. Weights are symmetric.
        on_unsupported: what becomes of a layer that cannot be quantized so: "raise" an error that names it, or "skip"
            it, so that it stays in floats, with a warning; `ao_arm.explain` has the reason.
        version: of the configuration.

    Raises:
        ValueError: for any other value.
    """

    act_mapping_type: MappingType = MappingType.ASYMMETRIC
    act_granularity: Granularity = field(default_factory=PerToken)
    weight_granularity: Granularity = field(default_factory=PerRow)
    on_unsupported: str = "raise"
    version: int = 1

    def __post_init__(self) -> None:
        _check_version(self.version)
        _check_policy(self.on_unsupported)
        self.layout()

    def layout(self) -> ACLPackedLayout:
        """This configuration as the tensors keep it."""
        activation = _granularity("act_granularity", self.act_granularity, "per_token", PerToken())
        return ACLPackedLayout(
            _mapping(self.act_mapping_type), activation, _weight_granularity(self.weight_granularity)
        )


def acl_int8_dynamic(
    act_mapping_type: MappingType = MappingType.ASYMMETRIC,
    act_granularity: Granularity | None = None,
    weight_granularity: Granularity | None = None,
    on_unsupported: str = "raise",
) -> ACLInt8DynamicActivationInt8WeightConfig:
    """The configuration for ``quantize_``: asymmetric per-token int8 activations x per-channel int8 weights by default.

    For the arguments see `ACLInt8DynamicActivationInt8WeightConfig`.
    """
    return ACLInt8DynamicActivationInt8WeightConfig(
        act_mapping_type,
        PerToken() if act_granularity is None else act_granularity,
        PerRow() if weight_granularity is None else weight_granularity,
        on_unsupported,
    )


@dataclass
class ACLInt8StaticActivationInt8WeightConfig(AOBaseConfig):
    """Int8 linear layers whose activations are quantized by one scale that is known beforehand, in three ways:

    calibrated: ``step="prepare"`` puts observers in front of the layers, the model runs on some inputs, and
    ``step="convert"`` makes packed layers of what they saw; or, in one shot, ``act_scale`` says it.

    Attributes:
        step: "prepare", "convert" (or torchao's ``QuantizationStep`` of that name), or None with ``act_scale``.
        act_scale: the scale of activations, a positive number or a tensor of one.
        act_zero_point: their zero point, in the range of ``act_dtype``; 0 for symmetric activations.
        act_mapping_type: ``MappingType.SYMMETRIC`` (zero point 0) or ``MappingType.ASYMMETRIC``.
        act_dtype: ``torch.int8``, or ``torch.uint8`` for asymmetric activations.
        weight_granularity: ``PerRow()`` (also written ``PerAxis(0)``) or ``PerTensor()``. Weights are symmetric.
        observer: "minmax" (the whole range, the default), "histogram", which minimises the error, or "moving_average",
            the only one for which the order of batches matters. "convert" may name it as well, but no other than
            "prepare" did.
        on_unsupported: what becomes of a layer that cannot be quantized so: "raise" an error that names it, or "skip"
            it, so that it stays in floats, with a warning; `ao_arm.explain` has the reason.
        version: of the configuration.
        act_quant_scale, act_quant_zero_point: where torchao's SmoothQuant puts, with ``step="convert"``, what it found
            of the layer that it hands over next; taken away with that layer.

    Raises:
        ValueError: for any other value.
    """

    step: str | None = None
    act_scale: float | Tensor | None = None
    act_zero_point: int | Tensor | None = None
    act_mapping_type: MappingType = MappingType.SYMMETRIC
    act_dtype: torch.dtype = torch.int8
    weight_granularity: Granularity = field(default_factory=PerRow)
    observer: str | None = None
    on_unsupported: str = "raise"
    version: int = 1
    act_quant_scale: ClassVar[Tensor | None] = None
    act_quant_zero_point: ClassVar[Tensor | None] = None

    def __post_init__(self) -> None:
        _check_version(self.version)
        _check_policy(self.on_unsupported)
        self.step = getattr(self.step, "value", self.step)
        if self.step not in _STEPS:
            raise ValueError(f"step must be one of {_STEPS}, not {self.step!r}")
        if self.observer is not None and self.observer not in OBSERVERS:
            raise ValueError(f"observer must be one of {tuple(OBSERVERS)}, not {self.observer!r}")
        if self.act_dtype not in _STATIC_DTYPES:
            raise ValueError(f"act_dtype must be torch.int8 or torch.uint8, not {self.act_dtype}")
        symmetric = self.layout().activation_mapping == "symmetric"
        if self.step is not None:
            if self.act_scale is not None or self.act_zero_point is not None:
                raise ValueError(f"act_scale and act_zero_point are for one shot: leave them or step={self.step!r} out")
            return
        if self.act_scale is None:
            raise ValueError("give act_scale, or calibrate: step='prepare', inputs, step='convert'")
        if self.observer is not None:
            raise ValueError(f"observer is for step='prepare', and act_scale for one shot: leave {self.observer!r} out")
        self.act_scale = _number("act_scale", self.act_scale)
        if not 0 < torch.tensor(self.act_scale, dtype=torch.float64).float() < torch.inf:
            raise ValueError(f"act_scale must be positive and finite in float32, not {self.act_scale}")
        if self.act_zero_point is None and not symmetric:
            raise ValueError("asymmetric activations need act_zero_point as well as act_scale")
        zero_point = 0.0 if self.act_zero_point is None else _number("act_zero_point", self.act_zero_point)
        limits = torch.iinfo(self.act_dtype)
        least, greatest = (0, 0) if symmetric else (limits.min, limits.max)
        if not zero_point.is_integer() or not least <= zero_point <= greatest:
            allowed = "0 for symmetric activations" if symmetric else f"an integer within [{least}, {greatest}]"
            raise ValueError(f"act_zero_point must be {allowed}, not {self.act_zero_point}")
        self.act_zero_point = int(zero_point)

    def layout(self) -> ACLPackedLayout:
        """This configuration as the tensors keep it."""
        return ACLPackedLayout(
            _mapping(self.act_mapping_type),
            "per_tensor",
            _weight_granularity(self.weight_granularity),
            "int8_static",
            _STATIC_DTYPES[self.act_dtype],
        )

    def get_act_quant_kwargs(self) -> Any:
        """How torchao's SmoothQuant is to quantize what a layer saw, once it is smooth."""
        from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

        return QuantizeTensorToInt8Kwargs(granularity=PerTensor(), mapping_type=self.act_mapping_type)


def acl_int8_static(
    step: str | None = None,
    act_scale: float | Tensor | None = None,
    act_zero_point: int | Tensor | None = None,
    act_mapping_type: MappingType = MappingType.SYMMETRIC,
    act_dtype: torch.dtype = torch.int8,
    weight_granularity: Granularity | None = None,
    observer: str | None = None,
    on_unsupported: str = "raise",
) -> ACLInt8StaticActivationInt8WeightConfig:
    """The configuration for ``quantize_``: static int8 activations x per-channel int8 weights by default.

    For the arguments see `ACLInt8StaticActivationInt8WeightConfig`.
    """
    return ACLInt8StaticActivationInt8WeightConfig(
        step,
        act_scale,
        act_zero_point,
        act_mapping_type,
        act_dtype,
        PerRow() if weight_granularity is None else weight_granularity,
        observer,
        on_unsupported,
    )


@dataclass
class ACLInt8DynamicActivationInt4WeightConfig(AOBaseConfig):
    """Linear layers with 4-bit weights in groups and asymmetric per-token int8 activations, computed by one fused call.

    Attributes:
        group_size: how many weights along k share a scale: 32, 64, 128, 256, any multiple of 32 that divides k, or
            None for whole rows.
        weight_mapping_type: ``MappingType.SYMMETRIC``, or ``MappingType.ASYMMETRIC`` for groups with zero points.
        scale_dtype: of the groups' scales, ``torch.bfloat16`` or ``torch.float32``.
        search: whether to search for the scales that give the least error in the layer's output, which takes longer;
            for models whose inputs `observe_importance` saw before.
        on_unsupported: what becomes of a layer that cannot be quantized so: "raise" an error that names it; "skip"
            it, so that it stays in floats; or "int8", which gives it what ``fallback`` says, as where no group size
            fits its k. The last two warn; `ao_arm.explain` has the reason.
        version: of the configuration.

    Raises:
        ValueError: for any other value.
    """

    group_size: int | None = 32
    weight_mapping_type: MappingType = MappingType.SYMMETRIC
    scale_dtype: torch.dtype = torch.bfloat16
    search: bool = False
    on_unsupported: str = "raise"
    version: int = 1

    def __post_init__(self) -> None:
        _check_version(self.version)
        _check_policy(self.on_unsupported, (*_POLICIES, "int8"))
        if self.group_size is not None:
            group_size = whole_number(self.group_size)
            if group_size is None or group_size < 1:
                raise ValueError(
                    f"group_size must be a whole number of at least 1, or None for whole rows, not {self.group_size!r}"
                )
            self.group_size = group_size
        if self.scale_dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"scale_dtype must be torch.bfloat16 or torch.float32, not {self.scale_dtype}")
        self.layout(1)

    def layout(self, k: int) -> ACLPackedLayout:
        """This configuration as the tensors keep it, for a weight with rows of k values, which are one group if
        ``group_size`` is None."""
        return ACLPackedLayout(
            activation_mapping="asymmetric",
            weight_granularity="per_group",
            scheme="int4_grouped",
            group_size=self.group_size or k,
            weight_mapping=_mapping(self.weight_mapping_type, "weight_mapping_type"),
            scale_dtype=str(self.scale_dtype).removeprefix("torch."),
        )

    def fallback(self) -> ACLInt8DynamicActivationInt8WeightConfig:
        """What ``on_unsupported="int8"`` does instead: the same activations, and int8 weights per channel."""
        return ACLInt8DynamicActivationInt8WeightConfig(MappingType.ASYMMETRIC)


def acl_int4_grouped(
    group_size: int | None = 32,
    weight_mapping_type: MappingType = MappingType.SYMMETRIC,
    scale_dtype: torch.dtype = torch.bfloat16,
    search: bool = False,
    on_unsupported: str = "raise",
) -> ACLInt8DynamicActivationInt4WeightConfig:
    """The configuration for ``quantize_``: per-token int8 activations x 4-bit weights in symmetric groups by default.

    For the arguments see `ACLInt8DynamicActivationInt4WeightConfig`.
    """
    return ACLInt8DynamicActivationInt4WeightConfig(
        group_size, weight_mapping_type, scale_dtype, search, on_unsupported
    )


#: All of them.
CONFIGS = (
    ACLInt8DynamicActivationInt8WeightConfig,
    ACLInt8StaticActivationInt8WeightConfig,
    ACLInt8DynamicActivationInt4WeightConfig,
)
