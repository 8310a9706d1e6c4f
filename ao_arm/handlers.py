"""What ``torchao.quantization.quantize_`` does with each configuration: one layer is quantized, or left as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torchao.quantization.transform_module import register_quantize_module_handler

from . import kernels, progress, stock_weights
from .affine_quantized import as_weight, packed_weight_of
from .calibration import observe, observer_of, remove_observer
from .config import (
    ACLInt8DynamicActivationInt4WeightConfig,
    ACLInt8DynamicActivationInt8WeightConfig,
    ACLInt8StaticActivationInt8WeightConfig,
)
from .experts import ACLPackedExperts, is_packed
from .module_weights import ModuleWeight, check_served, owner_of, weight_of, weights_of
from .observers import DEFAULT, make_observer, name_of, observed_quantization
from .quantize import check_weight
from .tensor import ACLPackedTensor
from .ties import keep_tied


class _ExtraRepr:
    """A module's ``extra_repr`` followed by what its weights are now. Picklable, unlike a bound partial."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self) -> str:
        parts = [type(self.module).extra_repr(self.module)]
        for name, parameter in self.module.named_parameters(recurse=False):
            if is_packed(parameter):
                parts.append(f"{name}={_text_of(parameter)}")
        return ", ".join(part for part in parts if part)


def _text_of(parameter: Tensor) -> str:
    packed = packed_weight_of(parameter)
    return repr(parameter if packed is None else packed)


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


def _chosen(module: torch.nn.Module, parameter_name: str | None) -> tuple[ModuleWeight, ...]:
    """What ``quantize_`` asks to quantize of a module: the parameter that it names, or all that the module has."""
    if parameter_name is not None:
        return (weight_of(module, parameter_name),)
    return weights_of(module) or (weight_of(module, "weight"),)


def _described(module: torch.nn.Module, parameter_name: str) -> str:
    name = _qualified_name(parameter_name)
    return f"the parameter '{name}' of {type(module).__name__}({type(module).extra_repr(module)})"


def _replace_weights(
    module: torch.nn.Module, parameter_name: str | None, quantize: Callable[[Tensor], ACLPackedTensor]
) -> torch.nn.Module:
    """Puts ``quantize(weight)`` in place of each of a module's weights, or of the one that is named; all of them stay
    as they were if that cannot be done with one."""
    made = [(weight, _packed(module, weight, quantize)) for weight in _chosen(module, parameter_name)]
    for weight, packed in made:
        owner, attribute = owner_of(module, weight.name)
        if packed is None:
            remove_observer(owner)
            continue
        floats = getattr(owner, attribute)
        put_weight(owner, attribute, torch.nn.Parameter(_as_parameter(packed), requires_grad=False))
        if not weight.experts:
            keep_tied(getattr(owner, attribute), floats)
    if any(packed is not None for _, packed in made):
        progress.layer_done()
    return module


def _packed(
    module: torch.nn.Module, weight: ModuleWeight, quantize: Callable[[Tensor], ACLPackedTensor]
) -> ACLPackedTensor | ACLPackedExperts | None:
    """What takes a weight's place; None if it is packed already."""
    held = _weight_of(*owner_of(module, weight.name))
    if is_packed(held):
        return None
    name = _described(module, weight.name)
    source = stock_weights.source_of(held)
    if source is not None:
        raise NotImplementedError(f"{name} was not quantized: it is by {source} already; see ao_arm.pack_(model)")

    def matrix(floats: Tensor) -> ACLPackedTensor:
        floats = floats.t() if weight.transposed else floats
        check_weight(floats)
        packed = quantize(floats)
        kernels.warn_if_slow(packed.kernel, name, *packed.problem)
        return packed.t() if weight.transposed else packed

    try:
        check_served(module, weight)
        if not weight.experts:
            return matrix(held)
        if held.dim() != 3:
            raise ValueError(f"it must be (experts, n, k), not of shape {tuple(held.shape)}")
        return ACLPackedExperts.stack(held.shape[0], lambda i: matrix(held[i]))
    except (ValueError, NotImplementedError) as error:
        raise type(error)(f"{name} was not quantized: {error}") from None


def _as_parameter(packed: ACLPackedTensor | ACLPackedExperts) -> Tensor:
    return as_weight(packed) if isinstance(packed, ACLPackedTensor) else packed


def put_weight(module: torch.nn.Module, parameter_name: str, weight: torch.nn.Parameter) -> None:
    """Replaces a parameter by a packed weight, which the module's text then tells of; an observer goes."""
    setattr(module, parameter_name, weight)
    module.extra_repr = _ExtraRepr(module)  # type: ignore[method-assign]
    remove_observer(module)


@register_quantize_module_handler(ACLInt8DynamicActivationInt8WeightConfig)
def _quantize_int8_dynamic(
    module: torch.nn.Module, config: ACLInt8DynamicActivationInt8WeightConfig, *, parameter_name: str | None = None
) -> torch.nn.Module:
    layout = config.layout()
    return _replace_weights(module, parameter_name, lambda weight: ACLPackedTensor.from_hp(weight, layout))


@register_quantize_module_handler(ACLInt8DynamicActivationInt4WeightConfig)
def _quantize_int4_grouped(
    module: torch.nn.Module, config: ACLInt8DynamicActivationInt4WeightConfig, *, parameter_name: str | None = None
) -> torch.nn.Module:
    return _replace_weights(
        module,
        parameter_name,
        lambda weight: ACLPackedTensor.from_hp(weight, config.layout(weight.shape[-1]), search=config.search),
    )


@register_quantize_module_handler(ACLInt8StaticActivationInt8WeightConfig)
def _quantize_int8_static(
    module: torch.nn.Module, config: ACLInt8StaticActivationInt8WeightConfig, *, parameter_name: str | None = None
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

    return _replace_weights(
        module, parameter_name, lambda weight: ACLPackedTensor.from_hp(weight, layout, *quantization())
    )


def _prepare(
    module: torch.nn.Module, config: ACLInt8StaticActivationInt8WeightConfig, parameter_name: str | None
) -> torch.nn.Module:
    """Puts an observer in front of a layer that is not quantized yet."""
    chosen = _chosen(module, parameter_name)
    if all(is_packed(_weight_of(*owner_of(module, weight.name))) for weight in chosen):
        return module
    _check_observed(module, chosen)
    observe(module, make_observer(config.observer or DEFAULT, config.act_mapping_type, config.act_dtype))
    return module


def _check_observed(module: torch.nn.Module, chosen: tuple[ModuleWeight, ...]) -> None:
    for weight in chosen:
        if not weight.observed:
            raise NotImplementedError(
                f"{_described(module, weight.name)} cannot be calibrated: only the weights of nn.Linear layers can, "
                "and of Conv1D, which multiply their input. Give its act_scale in one shot, or leave it out"
            )


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
