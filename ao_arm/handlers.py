"""What ``torchao.quantization.quantize_`` does with each configuration: one layer is quantized, or left as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torchao.quantization.transform_module import register_quantize_module_handler

from . import kernels, progress
from .affine_quantized import as_weight, packed_weight_of
from .calibration import observe, observer_of, remove_observer
from .config import (
    ACLInt8DynamicActivationInt4WeightConfig,
    ACLInt8DynamicActivationInt8WeightConfig,
    ACLInt8StaticActivationInt8WeightConfig,
)
from .importance import forget_importance, importance_of
from .observers import DEFAULT, make_observer, name_of, observed_quantization
from .quantize import check_weight
from .tensor import ACLPackedTensor


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


def _weight_of(module: torch.nn.Module, parameter_name: str) -> Tensor:
    weight = getattr(module, parameter_name, None)
    if not isinstance(weight, torch.Tensor):
        raise ValueError(
            f"{type(module).__name__}({module.extra_repr()}) has no parameter '{parameter_name}' to quantize: choose "
            "linear layers, with filter_fn or by the names in FqnToConfig"
        )
    return weight


def _described(module: torch.nn.Module, parameter_name: str) -> str:
    name = _qualified_name(parameter_name)
    return f"the parameter '{name}' of {type(module).__name__}({type(module).extra_repr(module)})"


def _replace_weight(
    module: torch.nn.Module, parameter_name: str, quantize: Callable[[Tensor], ACLPackedTensor]
) -> torch.nn.Module:
    """Puts ``quantize(weight)`` in place of a parameter; leaves the module as it was if that cannot be done."""
    weight = _weight_of(module, parameter_name)
    if packed_weight_of(weight) is not None:
        remove_observer(module)
        return module
    name = _described(module, parameter_name)
    try:
        check_weight(weight)
        packed = quantize(weight)
    except (ValueError, NotImplementedError) as error:
        raise type(error)(f"{name} was not quantized: {error}") from None
    kernels.warn_if_slow(packed.kernel, name, *packed.problem)
    put_weight(module, parameter_name, torch.nn.Parameter(as_weight(packed), requires_grad=False))
    progress.layer_done()
    return module


def put_weight(module: torch.nn.Module, parameter_name: str, weight: torch.nn.Parameter) -> None:
    """Replaces a parameter by a packed weight, which the module's text then tells of; an observer goes."""
    setattr(module, parameter_name, weight)
    module.extra_repr = _ExtraRepr(module, parameter_name)  # type: ignore[method-assign]
    remove_observer(module)
    forget_importance(module)


@register_quantize_module_handler(ACLInt8DynamicActivationInt8WeightConfig)
def _quantize_int8_dynamic(
    module: torch.nn.Module, config: ACLInt8DynamicActivationInt8WeightConfig, *, parameter_name: str = "weight"
) -> torch.nn.Module:
    layout = config.layout()
    return _replace_weight(module, parameter_name, lambda weight: ACLPackedTensor.from_hp(weight, layout))


@register_quantize_module_handler(ACLInt8DynamicActivationInt4WeightConfig)
def _quantize_int4_grouped(
    module: torch.nn.Module, config: ACLInt8DynamicActivationInt4WeightConfig, *, parameter_name: str = "weight"
) -> torch.nn.Module:
    def quantize(weight: Tensor) -> ACLPackedTensor:
        importance = importance_of(module) if config.search and parameter_name == "weight" else None
        if config.search and importance is None:
            raise ValueError(
                "search=True needs to know its inputs, and it got none: ao_arm.observe_importance(model, inputs) "
                "first, with inputs that reach this layer, or leave search out"
            )
        packed: ACLPackedTensor = ACLPackedTensor.from_hp(
            weight, config.layout(weight.shape[-1]), importance=importance
        )
        return packed

    return _replace_weight(module, parameter_name, quantize)


@register_quantize_module_handler(ACLInt8StaticActivationInt8WeightConfig)
def _quantize_int8_static(
    module: torch.nn.Module, config: ACLInt8StaticActivationInt8WeightConfig, *, parameter_name: str = "weight"
) -> torch.nn.Module:
    if config.step == "prepare":
        return _prepare(module, config, parameter_name)
    layout = config.layout()

    def quantization() -> tuple[Tensor, Tensor]:
        if config.step is None:
            scale = torch.tensor([config.act_scale], dtype=torch.float32)
            return scale, torch.tensor([config.act_zero_point], dtype=config.act_dtype)
        observer = observer_of(module)
        if observer is None:
            raise ValueError("it has no observer: quantize_ with step='prepare' and calibrate before step='convert'")
        if config.observer not in (None, name_of(observer)):
            raise ValueError(
                f"it was prepared with the observer {name_of(observer)!r}, not {config.observer!r}: give both steps "
                "the same, or only step='prepare'"
            )
        if (observer.mapping_type, observer.target_dtype) != (config.act_mapping_type, config.act_dtype):
            raise ValueError(
                f"it was prepared for {observer.mapping_type} {observer.target_dtype} activations, not for "
                f"{config.act_mapping_type} {config.act_dtype}: give both steps the same"
            )
        return observed_quantization(observer, config.act_dtype)

    return _replace_weight(
        module, parameter_name, lambda weight: ACLPackedTensor.from_hp(weight, layout, *quantization())
    )


def _prepare(
    module: torch.nn.Module, config: ACLInt8StaticActivationInt8WeightConfig, parameter_name: str
) -> torch.nn.Module:
    """Puts an observer in front of a linear layer that is not quantized yet."""
    if packed_weight_of(_weight_of(module, parameter_name)) is not None:
        return module
    if not isinstance(module, torch.nn.Linear) or parameter_name != "weight":
        name = _described(module, parameter_name)
        raise NotImplementedError(
            f"{name} cannot be calibrated: only the weights of nn.Linear layers can, which multiply their input. "
            "Give its act_scale in one shot, or leave it out"
        )
    observe(module, make_observer(config.observer or DEFAULT, config.act_mapping_type, config.act_dtype))
    return module


try:  # torchao 0.16 lists what FqnToConfig may apply to single parameters; newer ones apply anything
    from torchao.quantization.quant_api import CUSTOM_PARAM_QUANTIZATION_SUPPORTED_CONFIGS
except ImportError:
    pass
else:
    CUSTOM_PARAM_QUANTIZATION_SUPPORTED_CONFIGS.update(
        (
            ACLInt8DynamicActivationInt4WeightConfig,
            ACLInt8DynamicActivationInt8WeightConfig,
            ACLInt8StaticActivationInt8WeightConfig,
        )
    )
