"""The configurations that ``torchao.quantization.quantize_`` takes, and what it does with them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import torch
from torchao.core.config import ALLOWED_AO_MODULES, AOBaseConfig
from torchao.quantization.granularity import Granularity, PerAxis, PerRow, PerTensor, PerToken
from torchao.quantization.quant_primitives import MappingType
from torchao.quantization.transform_module import register_quantize_module_handler

from . import kernels, progress
from .affine_quantized import as_weight, packed_weight_of
from .tensor import ACLPackedLayout, ACLPackedTensor, check_weight

# Lets torchao's config_from_dict look for configurations here.
ALLOWED_AO_MODULES.add("ao_arm")

_MAPPINGS = {MappingType.SYMMETRIC: "symmetric", MappingType.ASYMMETRIC: "asymmetric"}


@dataclass
class ACLInt8DynamicActivationInt8WeightConfig(AOBaseConfig):
    """Int8 linear layers whose activations are quantized as they come, computed by one fused call.

    Attributes:
        act_mapping_type: ``MappingType.SYMMETRIC`` (zero point 0) or ``MappingType.ASYMMETRIC``.
        act_granularity: ``PerToken()`` (also written ``PerRow()``): one scale for each row of the input; or
            ``PerTensor()``: one for the whole input.
        weight_granularity: ``PerRow()`` (also written ``PerAxis(0)``): one scale for each output channel; or
            ``PerTensor()``. Weights are symmetric.
        version: of the configuration.

    Raises:
        ValueError: for any other value.
    """

    act_mapping_type: MappingType = MappingType.SYMMETRIC
    act_granularity: Granularity = field(default_factory=PerToken)
    weight_granularity: Granularity = field(default_factory=PerRow)
    version: int = 1

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ValueError(f"version must be 1, not {self.version}: written by a newer ao_arm?")
        self.layout()

    def layout(self) -> ACLPackedLayout:
        """This configuration as the tensors keep it."""
        if self.act_mapping_type not in _MAPPINGS:
            raise ValueError(
                f"act_mapping_type must be MappingType.SYMMETRIC or MappingType.ASYMMETRIC, not {self.act_mapping_type}"
            )
        if isinstance(self.act_granularity, PerToken | PerRow):
            activation = "per_token"
        elif isinstance(self.act_granularity, PerTensor):
            activation = "per_tensor"
        else:
            raise ValueError(f"act_granularity must be PerToken() or PerTensor(), not {self.act_granularity}")
        if isinstance(self.weight_granularity, PerRow) or self.weight_granularity == PerAxis(0):
            weight = "per_channel"
        elif isinstance(self.weight_granularity, PerTensor):
            weight = "per_tensor"
        else:
            raise ValueError(f"weight_granularity must be PerRow() or PerTensor(), not {self.weight_granularity}")
        return ACLPackedLayout(_MAPPINGS[self.act_mapping_type], activation, weight)


def acl_int8_dynamic(
    act_mapping_type: MappingType = MappingType.SYMMETRIC,
    act_granularity: Granularity | None = None,
    weight_granularity: Granularity | None = None,
) -> ACLInt8DynamicActivationInt8WeightConfig:
    """The configuration for ``quantize_``: per-token int8 activations x per-channel int8 weights by default.

    For the arguments see :class:`ACLInt8DynamicActivationInt8WeightConfig`.
    """
    return ACLInt8DynamicActivationInt8WeightConfig(
        act_mapping_type,
        PerToken() if act_granularity is None else act_granularity,
        PerRow() if weight_granularity is None else weight_granularity,
    )


class _ExtraRepr:
    """A module's ``extra_repr`` followed by what its weight is now. Picklable, unlike a bound partial."""

    def __init__(self, module: torch.nn.Module, parameter_name: str) -> None:
        self.module = module
        self.parameter_name = parameter_name

    def __call__(self) -> str:
        original = type(self.module).extra_repr(self.module)
        packed = packed_weight_of(getattr(self.module, self.parameter_name))
        return original if packed is None else f"{original}, {self.parameter_name}={packed!r}"


def _qualified_name(parameter_name: str) -> str:
    """The parameter's name in the whole model, for messages.

    torchao tells handlers only the name in the layer; its own functions, which called us, know the rest.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("torchao.quantization"):
            for variable in ("cur_fqn", "module_fqn", "fqn"):
                layer = frame.f_locals.get(variable)
                if isinstance(layer, str) and layer:
                    return f"{layer.rstrip('.')}.{parameter_name}"
        frame = frame.f_back
    return parameter_name


@register_quantize_module_handler(ACLInt8DynamicActivationInt8WeightConfig)
def _quantize_int8_dynamic(
    module: torch.nn.Module, config: ACLInt8DynamicActivationInt8WeightConfig, *, parameter_name: str = "weight"
) -> torch.nn.Module:
    """Replaces one parameter of ``module``; leaves the module as it was if that cannot be done."""
    weight = getattr(module, parameter_name, None)
    if not isinstance(weight, torch.Tensor):
        raise ValueError(
            f"{type(module).__name__}({module.extra_repr()}) has no parameter '{parameter_name}' to quantize: choose "
            "linear layers, with filter_fn or by the names in FqnToConfig"
        )
    if packed_weight_of(weight) is not None:
        return module
    name = f"the parameter '{_qualified_name(parameter_name)}' of {type(module).__name__}({module.extra_repr()})"
    try:
        check_weight(weight)
        packed = ACLPackedTensor.from_hp(weight, config.layout())
    except (ValueError, NotImplementedError) as error:
        raise type(error)(f"{name} was not quantized: {error}") from None
    kernels.warn_if_slow(packed.kernel, name, *packed.weight_shape)
    setattr(module, parameter_name, torch.nn.Parameter(as_weight(packed), requires_grad=False))
    module.extra_repr = _ExtraRepr(module, parameter_name)  # type: ignore[method-assign]
    progress.layer_done()
    return module


try:  # torchao 0.16 lists what FqnToConfig may apply to single parameters; newer ones apply anything
    from torchao.quantization.quant_api import CUSTOM_PARAM_QUANTIZATION_SUPPORTED_CONFIGS
except ImportError:
    pass
else:
    CUSTOM_PARAM_QUANTIZATION_SUPPORTED_CONFIGS.add(ACLInt8DynamicActivationInt8WeightConfig)
