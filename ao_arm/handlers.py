"""What ``torchao.quantization.quantize_`` does with each configuration: one layer is quantized, or left as it was."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.transform_module import register_quantize_module_handler

from . import kernels, progress
from .affine_quantized import as_weight
from .calibration import observe, remove_observer
from .config import (
    CONFIGS,
    ACLInt8DynamicActivationInt4WeightConfig,
    ACLInt8StaticActivationInt8WeightConfig,
)
from .experts import ACLPackedExperts, is_packed, packed_in
from .importance import forget_importance
from .layer_checks import (
    Config,
    act_quantization,
    check_layer,
    has_scheme,
    layout_of,
    search_importance,
    unsupported_error,
    weight_of,
)
from .module_weights import owner_of, shape_of, weights_of
from .module_weights import weight_of as described_weight
from .observers import DEFAULT, make_observer
from .outcomes import QUANTIZED_ALREADY, TOLD, Outcome, note_reason
from .stored_weights import in_another_scheme
from .tensor import ACLPackedTensor
from .ties import keep_tied

_Packed = ACLPackedTensor | ACLPackedExperts


class _ExtraRepr:
    """A module's ``extra_repr`` followed by what its weights are now. Picklable, unlike a bound partial."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self) -> str:
        parts = [type(self.module).extra_repr(self.module)]
        for name, parameter in self.module.named_parameters(recurse=False):
            if (packed := packed_in(parameter)) is not None:
                parts.append(f"{name}={packed!r}")
        return ", ".join(part for part in parts if part)


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
    """Quantizes one weight of a layer in place, wholly or not at all.

    Args:
        module, parameter_name: where the weight is; with a dot if a module inside has it. Biases and other 1-D
            parameters are passed over.
        name: of the parameter, for messages.
        requantize: whether a weight that is packed in another scheme already is quantized anew from what it holds.

    Raises:
        ValueError, NotImplementedError: why it cannot be quantized, if ``config.on_unsupported`` says "raise".
    """
    weight = weight_of(module, parameter_name)
    if weight.dim() == 1:
        return Outcome("passed over")
    packed = packed_in(weight)
    if packed is not None and (not requantize or has_scheme(packed, config)):
        remove_observer(module)
        return Outcome("kept")
    reason = ""
    try:
        if isinstance(config, ACLInt8StaticActivationInt8WeightConfig) and config.step == "prepare":
            check_layer(module, parameter_name, config)
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
            owner, attribute = owner_of(module, parameter_name)
            note_reason(owner, attribute, reason)
            return Outcome("left", reason)
        try:
            made = _packed(module, weight, packed, config.fallback(), parameter_name)
        except (ValueError, NotImplementedError) as error:
            raise type(error)(f"{name} was not quantized, nor to int8: {error}") from None
    one = made.expert(0) if isinstance(made, ACLPackedExperts) else made
    kernels.warn_if_slow(one.kernel, name, *one.problem)
    parameter = torch.nn.Parameter(made if one is not made else as_weight(one), requires_grad=False)
    if packed is None and one is made:
        keep_tied(parameter, weight)
    put_weight(module, parameter_name, parameter, reason)
    progress.layer_done()
    return Outcome("int8" if reason else "quantized", reason)


def _packed(
    module: torch.nn.Module, weight: Tensor, packed: _Packed | None, config: Config, parameter_name: str
) -> _Packed:
    """A layer's weight as a configuration wants it, from floats or from what is packed already."""
    check_layer(module, parameter_name, config)
    kind = described_weight(module, parameter_name)
    layout = layout_of(config, shape_of(kind, weight)[1])
    importance = search_importance(module, parameter_name, config)
    activations = act_quantization(module, config)

    def matrix(floats: Tensor, held: ACLPackedTensor | None) -> ACLPackedTensor:
        made: ACLPackedTensor
        if held is None:
            made = ACLPackedTensor.from_hp(floats.t() if kind.transposed else floats, layout, *activations, importance)
        else:
            made = in_another_scheme(held, layout, *activations, importance)
        return made.t() if kind.transposed else made

    if isinstance(packed, ACLPackedExperts):
        experts = packed
        return ACLPackedExperts.stack(weight.shape[0], lambda i: matrix(weight, experts.expert(i)))
    if kind.experts:
        return ACLPackedExperts.stack(weight.shape[0], lambda i: matrix(weight[i], None))
    return matrix(weight, packed)


def put_weight(module: torch.nn.Module, parameter_name: str, weight: torch.nn.Parameter, reason: str = "") -> None:
    """Replaces a parameter by a packed weight, which its module's text then tells of; an observer goes.

    ``reason`` is why the weight is another one than was asked for.
    """
    owner, attribute = owner_of(module, parameter_name)
    # Ctrl-C may come between any two of these: until the weight is set all is as it was, and what follows is done
    # again by whoever finds the weight.
    owner.extra_repr = _ExtraRepr(owner)  # type: ignore[method-assign]
    setattr(owner, attribute, weight)
    remove_observer(owner)
    forget_importance(owner)
    note_reason(owner, attribute, reason)


def put_floats(module: torch.nn.Module, parameter_name: str, weight: torch.nn.Parameter) -> None:
    """Replaces a packed weight by floats; the module's text is its own again."""
    module._parameters[parameter_name] = weight  # on purpose: setting the attribute would warn
    if isinstance(vars(module).get("extra_repr"), _ExtraRepr):
        del module.extra_repr
    remove_observer(module)
    note_reason(module, parameter_name, "")


def names_of_weights(module: torch.nn.Module) -> tuple[str, ...]:
    """The parameters of a module that a configuration for the whole of it is for."""
    return tuple(weight.name for weight in weights_of(module)) or ("weight",)


def _handle(module: torch.nn.Module, config: Config, *, parameter_name: str | None = None) -> torch.nn.Module:
    """Torchao hands over a layer at a time: what happens otherwise than was asked for is said of each."""
    names = names_of_weights(module) if parameter_name is None else (parameter_name,)
    for name in names:
        weight_of(module, name)
    _warn_if_nothing_changes(module, config)
    try:
        if len(names) > 1 and config.on_unsupported == "raise":
            _check_all(module, names, config)
        for name in names:
            outcome = quantize_layer(module, name, config, described(module, name))
            if outcome.reason:
                warnings.warn(f"{described(module, name)} {TOLD[outcome.state]}: {outcome.reason}", stacklevel=2)
    finally:  # what SmoothQuant put there is this layer's alone
        for found in ("act_quant_scale", "act_quant_zero_point"):
            if found in vars(config):
                delattr(config, found)
    return module


def _check_all(module: torch.nn.Module, names: tuple[str, ...], config: Config) -> None:
    """A module of several weights is quantized as a whole or not at all."""
    for name in names:
        if is_packed(weight_of(module, name)):
            continue
        error = unsupported_error(module, name, config)
        if error is not None:
            raise type(error)(f"{described(module, name)} was not quantized: {error}")


def _warn_if_nothing_changes(module: torch.nn.Module, config: Config) -> None:
    """Warns if all layers that this call of torchao's takes are packed, and one of them otherwise: once, at the first.

    torchao's own function, which called us, knows which layers it takes.
    """
    call = _torchaos_call("model", "filter_fn", "config")
    if call is None or not isinstance(call["model"], torch.nn.Module) or not callable(call["filter_fn"]):
        return
    taken = (layer for name, layer in call["model"].named_modules() if call["filter_fn"](layer, name))
    packed: list[_Packed] = []
    for layer in taken:
        if not packed and layer is not module:
            return
        for name in names_of_weights(layer):
            owner, attribute = owner_of(layer, name)
            weight = getattr(owner, attribute, None)
            held = packed_in(weight) if isinstance(weight, Tensor) else None
            if held is None:
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
