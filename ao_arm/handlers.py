"""What ``torchao.quantization.quantize_`` does with each configuration: one layer is quantized, or left as it was."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.transform_module import register_quantize_module_handler

from . import kernels, progress
from .affine_quantized import as_weight, packed_weight_of
from .calibration import observe, remove_observer
from .config import (
    CONFIGS,
    ACLInt8DynamicActivationInt4WeightConfig,
    ACLInt8StaticActivationInt8WeightConfig,
)
from .layer_checks import Config, act_quantization, check_layer, has_scheme, layout_of, weight_of
from .observers import DEFAULT, make_observer
from .outcomes import QUANTIZED_ALREADY, TOLD, Outcome, note_reason
from .stored_weights import in_another_scheme
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


def _torchaos_call(*variables: str) -> dict[str, Any] | None:
    """The innermost function of torchao's around us that has all of these variables; None if there is none.

    torchao tells handlers neither a layer's name in the model nor the other layers; its own functions know them.
    """
    frame = inspect.currentframe()
    while frame is not None:
        inside = frame.f_globals.get("__name__", "").startswith("torchao.quantization")
        if inside and all(variable in frame.f_locals for variable in variables):
            return frame.f_locals
        frame = frame.f_back
    return None


def _qualified_name(parameter_name: str) -> str:
    """The parameter's name in the whole model, for messages."""
    for variable in ("cur_fqn", "module_fqn", "fqn"):
        call = _torchaos_call(variable)
        layer = None if call is None else call[variable]
        if isinstance(layer, str) and layer:
            return f"{layer.rstrip('.')}.{parameter_name}"
    return parameter_name


def described(module: torch.nn.Module, parameter_name: str) -> str:
    """A parameter in words, with its name in the whole model where torchao is at work."""
    name = _qualified_name(parameter_name)
    return f"the parameter '{name}' of {type(module).__name__}({type(module).extra_repr(module)})"


def quantize_layer(
    module: torch.nn.Module, parameter_name: str, config: Config, name: str, requantize: bool = False
) -> Outcome:
    """Quantizes one layer in place, wholly or not at all.

    Args:
        module, parameter_name: where the weight is. Biases and other 1-D parameters are passed over.
        name: of the parameter, for messages.
        requantize: whether a weight that is packed in another scheme already is quantized anew from what it holds.

    Raises:
        ValueError, NotImplementedError: why it cannot be quantized, if ``config.on_unsupported`` says "raise".
    """
    weight = weight_of(module, parameter_name)
    if weight.dim() == 1:
        return Outcome("passed over")
    packed = packed_weight_of(weight)
    if packed is not None and (not requantize or has_scheme(packed, config)):
        remove_observer(module)
        return Outcome("kept")
    reason = ""
    try:
        if isinstance(config, ACLInt8StaticActivationInt8WeightConfig) and config.step == "prepare":
            check_layer(module, parameter_name, config)
            assert isinstance(module, torch.nn.Linear)
            observe(module, make_observer(config.observer or DEFAULT, config.act_mapping_type, config.act_dtype))
            return Outcome("prepared")
        made = _packed(module, weight, packed, config, parameter_name)
    except (ValueError, NotImplementedError) as error:
        if config.on_unsupported == "raise":
            raise type(error)(f"{name} was not quantized: {error}") from None
        reason = str(error)
    if reason:
        if not isinstance(config, ACLInt8DynamicActivationInt4WeightConfig) or config.on_unsupported == "skip":
            remove_observer(module)
            note_reason(module, parameter_name, reason)
            return Outcome("left", reason)
        try:
            made = _packed(module, weight, packed, config.fallback(), parameter_name)
        except (ValueError, NotImplementedError) as error:
            raise type(error)(f"{name} was not quantized, nor to int8: {error}") from None
    kernels.warn_if_slow(made.kernel, name, *made.problem)
    put_weight(module, parameter_name, torch.nn.Parameter(as_weight(made), requires_grad=False), reason)
    progress.layer_done()
    return Outcome("int8" if reason else "quantized", reason)


def _packed(
    module: torch.nn.Module, weight: Tensor, packed: ACLPackedTensor | None, config: Config, parameter_name: str
) -> ACLPackedTensor:
    """A layer's weight as a configuration wants it, from floats or from what is packed already."""
    check_layer(module, parameter_name, config)
    layout = layout_of(config, weight.shape[-1])
    search = isinstance(config, ACLInt8DynamicActivationInt4WeightConfig) and config.search
    activations = act_quantization(module, config)
    if packed is not None:
        return in_another_scheme(packed, layout, *activations, search)
    made: ACLPackedTensor = ACLPackedTensor.from_hp(weight, layout, *activations, search)
    return made


def put_weight(module: torch.nn.Module, parameter_name: str, weight: torch.nn.Parameter, reason: str = "") -> None:
    """Replaces a parameter by a packed weight, which the module's text then tells of; an observer goes.

    ``reason`` is why the weight is another one than was asked for.
    """
    setattr(module, parameter_name, weight)
    module.extra_repr = _ExtraRepr(module, parameter_name)  # type: ignore[method-assign]
    remove_observer(module)
    note_reason(module, parameter_name, reason)


def put_floats(module: torch.nn.Module, parameter_name: str, weight: torch.nn.Parameter) -> None:
    """Replaces a packed weight by floats; the module's text is its own again."""
    setattr(module, parameter_name, weight)
    if isinstance(vars(module).get("extra_repr"), _ExtraRepr):
        del module.extra_repr
    remove_observer(module)
    note_reason(module, parameter_name, "")


def _handle(module: torch.nn.Module, config: Config, *, parameter_name: str = "weight") -> torch.nn.Module:
    """Torchao hands over a layer at a time: what happens otherwise than was asked for is said of each."""
    weight_of(module, parameter_name)
    name = described(module, parameter_name)
    _warn_if_nothing_changes(module, config)
    try:
        outcome = quantize_layer(module, parameter_name, config, name)
    finally:  # what SmoothQuant put there is this layer's alone
        for found in ("act_quant_scale", "act_quant_zero_point"):
            if found in vars(config):
                delattr(config, found)
    if outcome.reason:
        warnings.warn(f"{name} {TOLD[outcome.state]}: {outcome.reason}", stacklevel=2)
    return module


def _warn_if_nothing_changes(module: torch.nn.Module, config: Config) -> None:
    """Warns if all layers that this call of torchao's takes are packed, and one of them otherwise: once, at the first.

    torchao's own function, which called us, knows which layers it takes.
    """
    call = _torchaos_call("model", "filter_fn", "config")
    if call is None or not isinstance(call["model"], torch.nn.Module) or not callable(call["filter_fn"]):
        return
    taken = (layer for name, layer in call["model"].named_modules() if call["filter_fn"](layer, name))
    packed: list[ACLPackedTensor] = []
    for layer in taken:
        weight = getattr(layer, "weight", None)
        held = packed_weight_of(weight) if isinstance(weight, Tensor) else None
        if held is None or (not packed and layer is not module):
            return
        packed.append(held)
    if packed and not all(has_scheme(held, config) for held in packed):
        warnings.warn(QUANTIZED_ALREADY, stacklevel=3)


for _config in CONFIGS:
    register_quantize_module_handler(_config)(_handle)

try:  # torchao 0.16 lists what FqnToConfig may apply to single parameters; newer ones apply anything
    from torchao.quantization.quant_api import CUSTOM_PARAM_QUANTIZATION_SUPPORTED_CONFIGS
except ImportError:
    pass
else:
    CUSTOM_PARAM_QUANTIZATION_SUPPORTED_CONFIGS.update(CONFIGS)
