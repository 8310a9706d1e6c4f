"""The demo's ways to quantize: a row for each, with what ao_arm does and what torchao's own configurations do."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torchao.quantization
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import (
    FqnToConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    PerGroup,
    PerRow,
    PerTensor,
    quantize_,
)
from torchao.quantization.quant_primitives import MappingType

from ..config import acl_int4_grouped, acl_int8_dynamic, acl_int8_static
from ..layout import HAS_AQT
from ..observers import make_observer
from .encoder import Batch
from .errors import DemoError


class Quantize(Protocol):
    """Quantizes a model in place. Static schemes calibrate with the batches."""

    def __call__(self, model: torch.nn.Module, mapping: MappingType, batches: Sequence[Batch]) -> None:
        """Quantizes all linear layers of the model; ``mapping`` is that of the activations."""


@dataclass(frozen=True)
class Scheme:
    """A way to quantize.

    Attributes:
        ours: with ao_arm.
        torchao: with torchao's own configuration for the same arithmetic.
        calibrated: whether half of the sentences are needed to calibrate with.
        mapping: of the activations, where none is asked for.
        always_asymmetric: whether activations have zero points in any case.
        least_cosine: a model whose embeddings have a smaller mean cosine to those of fp32 is broken.
    """

    ours: Quantize
    torchao: Quantize
    mapping: MappingType
    calibrated: bool = False
    always_asymmetric: bool = False
    least_cosine: float = 0.98


#: Whether torchao's Int8Tensor takes asymmetric activations; torchao 0.16 does not.
_HAS_ASYMMETRIC = hasattr(torchao.quantization.Int8StaticActivationInt8WeightConfig, "act_quant_zero_point")


def _dynamic(config: Callable[[MappingType], AOBaseConfig]) -> Quantize:
    return lambda model, mapping, batches: quantize_(model, config(mapping))


def _torchao_int8_dynamic(mapping: MappingType) -> AOBaseConfig:
    # Where AffineQuantizedTensor exists, version 1, the default, is made of it; version 2 is torchao 0.18's Int8Tensor.
    version = {"version": 2} if HAS_AQT and (mapping == MappingType.SYMMETRIC or _HAS_ASYMMETRIC) else {}
    return Int8DynamicActivationInt8WeightConfig(act_mapping_type=mapping, set_inductor_config=False, **version)


def _ours_int8_static(model: torch.nn.Module, mapping: MappingType, batches: Sequence[Batch]) -> None:
    quantize_(model, acl_int8_static("prepare", act_mapping_type=mapping))
    with torch.inference_mode():
        for batch in batches:
            model(**batch)
    quantize_(model, acl_int8_static("convert", act_mapping_type=mapping))


@torch.inference_mode()
def _torchao_int8_static(model: torch.nn.Module, mapping: MappingType, batches: Sequence[Batch]) -> None:
    """Torchao's configuration takes the scale of a layer: from observers of the same kind, on the same batches."""
    if not _HAS_ASYMMETRIC:
        raise NotImplementedError(f"torchao {torchao.__version__} has static layers without zero points only")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    observers = {id(layer): make_observer("minmax", mapping, torch.int8) for layer in layers.values()}
    dims: dict[int, int] = {}

    def see(layer: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        observers[id(layer)](inputs[0])
        dims[id(layer)] = inputs[0].dim()

    hooks = [layer.register_forward_pre_hook(see) for layer in layers.values()]
    for batch in batches:
        model(**batch)
    for hook in hooks:
        hook.remove()
    configs = OrderedDict()
    for name, layer in layers.items():
        # They must have as many dimensions as the layer's input.
        shape = (1,) * dims[id(layer)]
        scale, zero_point = (value.reshape(shape) for value in observers[id(layer)].calculate_qparams())
        configs[name] = torchao.quantization.Int8StaticActivationInt8WeightConfig(
            act_quant_scale=scale,
            act_quant_zero_point=zero_point.to(torch.int8) if mapping == MappingType.ASYMMETRIC else None,
            granularity=[PerTensor(), PerRow()],
            act_mapping_type=mapping,
            set_inductor_config=False,
        )
    quantize_(model, FqnToConfig(configs), filter_fn=None)


#: Values along k that share a scale.
GROUP_SIZE = 32


def _ours_int4(model: torch.nn.Module, mapping: MappingType, batches: Sequence[Batch]) -> None:
    quantize_(model, acl_int4_grouped(GROUP_SIZE))


def _torchao_int4(model: torch.nn.Module, mapping: MappingType, batches: Sequence[Batch]) -> None:
    int4: torch.dtype = getattr(torch, "int4")  # noqa: B009 - torch's types do not have it
    quantize_(model, Int8DynamicActivationIntxWeightConfig(int4, PerGroup(GROUP_SIZE), version=2))


SCHEMES = {
    "int8-dynamic": Scheme(_dynamic(acl_int8_dynamic), _dynamic(_torchao_int8_dynamic), MappingType.ASYMMETRIC),
    "int8-static": Scheme(_ours_int8_static, _torchao_int8_static, MappingType.SYMMETRIC, calibrated=True),
    # 4 bits cost some 3 percent of the cosine; random embeddings would have one near 0.
    "int4": Scheme(_ours_int4, _torchao_int4, MappingType.ASYMMETRIC, always_asymmetric=True, least_cosine=0.9),
}
DEFAULT = "int8-dynamic"


def quantizes(config: AOBaseConfig) -> Callable[[torch.nn.Module], None]:
    """What quantizes all linear layers of a model in place, by one configuration."""
    return lambda model: quantize_(model, config)


def quantized(name: str, model: torch.nn.Module, quantize: Callable[[torch.nn.Module], None]) -> torch.nn.Module:
    """A quantized copy; ``quantize`` does it in place.

    Raises:
        DemoError: if it cannot.
    """
    # Quantizing replaces parameters, and changes none: what stays is shared.
    made = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    try:
        quantize(made)
    except (ValueError, NotImplementedError, AssertionError) as error:  # torchao 0.16 asserts that it is symmetric
        raise DemoError(f"{name} cannot quantize the model: {error}") from None
    return made
