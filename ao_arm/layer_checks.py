"""Whether a configuration can be applied to a layer, and whether it was."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torchao.quantization.quant_primitives import MappingType

from . import kernels
from .calibration import observer_of
from .config import (
    ACLInt8DynamicActivationInt4WeightConfig,
    ACLInt8DynamicActivationInt8WeightConfig,
    ACLInt8StaticActivationInt8WeightConfig,
)
from .experts import ACLPackedExperts, packed_in
from .importance import importance_of
from .layout import ACLPackedLayout
from .module_weights import check_served, owner_of, shape_of
from .module_weights import weight_of as described_weight
from .observers import name_of, observed_quantization
from .outcomes import noted_reason
from .packing import problem_of
from .quantize import check_finite, check_group_size, check_weight
from .stock_weights import source_of
from .tensor import ACLPackedTensor

Config = (
    ACLInt8DynamicActivationInt8WeightConfig
    | ACLInt8StaticActivationInt8WeightConfig
    | ACLInt8DynamicActivationInt4WeightConfig
)


def weight_of(module: torch.nn.Module, parameter_name: str) -> Tensor:
    """The parameter that a configuration is for; of a module inside of it if its name has a dot.

    Raises:
        ValueError: if there is none.
    """
    owner, attribute = owner_of(module, parameter_name)
    weight = getattr(owner, attribute, None)
    if not isinstance(weight, torch.Tensor):
        raise ValueError(
            f"{type(module).__name__}({module.extra_repr()}) has no parameter '{parameter_name}' to quantize: choose "
            "linear layers, with filter_fn or by the names in FqnToConfig"
        )
    return weight


def layout_of(config: Config, k: int) -> ACLPackedLayout:
    """What a configuration makes of a weight with rows of k values."""
    if isinstance(config, ACLInt8DynamicActivationInt4WeightConfig):
        return config.layout(k)
    return config.layout()


def check_layer(module: torch.nn.Module, parameter_name: str, config: Config) -> None:
    """Raises what quantizing a layer would, but for values and observations that do not do; changes nothing.

    Raises:
        ValueError, NotImplementedError: why ``config`` cannot be applied.
    """
    weight, kind = weight_of(module, parameter_name), described_weight(module, parameter_name)
    check_served(module, kind)
    owner, attribute = owner_of(module, parameter_name)
    sources = f"{attribute}_"  # such as weight_g and weight_orig
    if attribute not in owner._parameters and (
        parametrize.is_parametrized(owner, attribute) or any(name.startswith(sources) for name in owner._parameters)
    ):
        raise NotImplementedError(
            "it is computed at each call, as by weight norm or pruning. Make it permanent first, by "
            "torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm or "
            "torch.nn.utils.prune.remove; or leave the layer out with filter_fn"
        )
    if packed_in(weight) is None:
        if (source := source_of(weight)) is not None:
            raise ValueError(
                f"it is quantized already, by {source}: ao_arm.pack_(model) takes it over, or says why not"
            )
        if kind.experts and weight.dim() != 3:
            raise ValueError(f"it must be (experts, n, k), not of shape {tuple(weight.shape)}")
        check_weight(weight[0] if kind.experts else weight)
    n, k = shape_of(kind, weight)
    _check_shape(n, k, layout_of(config, k))
    search_importance(module, parameter_name, config)
    if not isinstance(config, ACLInt8StaticActivationInt8WeightConfig):
        return
    if kind.experts:
        raise NotImplementedError(
            "experts quantize activations as they come: take acl_int8_dynamic or acl_int4_grouped, or leave it out"
        )
    if config.step == "prepare" and not kind.observed:
        raise NotImplementedError(
            "it cannot be calibrated: only the weights of nn.Linear layers can, and of Conv1D, which multiply their "
            "input. Give its act_scale in one shot, or leave it out"
        )


def search_importance(module: torch.nn.Module, parameter_name: str, config: Config) -> Tensor | None:
    """What a search for scales weighs errors by: see ``quantize_weight_in_groups``; None without a search.

    Raises:
        ValueError: if it is not known.
    """
    if not isinstance(config, ACLInt8DynamicActivationInt4WeightConfig) or not config.search:
        return None
    importance = importance_of(module) if parameter_name == "weight" else None
    if importance is None:
        raise ValueError(
            "search=True needs to know its inputs, and it got none: ao_arm.observe_importance(model, inputs) first, "
            "with inputs that reach this layer, or leave search out"
        )
    return importance


def unsupported_error(
    module: torch.nn.Module, parameter_name: str, config: Config
) -> ValueError | NotImplementedError | None:
    """Why a configuration cannot be applied to a layer, as the error that says so; None if it can. Changes nothing."""
    try:
        check_layer(module, parameter_name, config)
        if not isinstance(config, ACLInt8StaticActivationInt8WeightConfig) or config.step != "prepare":
            act_quantization(module, config)
        weight = weight_of(module, parameter_name)
        if packed_in(weight) is None:
            check_finite(weight)
    except (ValueError, NotImplementedError) as error:
        return error
    return None


def act_quantization(module: torch.nn.Module, config: Config) -> tuple[Tensor | None, Tensor | None]:
    """Scale and zero point of static activations, (1,) each, as given or as observed; None of dynamic ones.

    Raises:
        ValueError: if a layer was not observed, or not as the configuration says.
    """
    if not isinstance(config, ACLInt8StaticActivationInt8WeightConfig):
        return None, None
    if config.step is None:
        scale = torch.tensor([config.act_scale], dtype=torch.float32)
        return scale, torch.tensor([config.act_zero_point], dtype=config.act_dtype)
    if config.act_quant_scale is not None:
        return _found_by_torchao(config)
    observer = observer_of(module)
    if observer is None:
        missing = "it has no observer: quantize_ with step='prepare' and calibrate before step='convert'"
        raise ValueError(noted_reason(module, "weight") or missing)
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


def _found_by_torchao(config: ACLInt8StaticActivationInt8WeightConfig) -> tuple[Tensor, Tensor]:
    """What SmoothQuant observed of one layer. torchao's activations are int8: uint8 ones are the same, 128 higher."""
    assert config.act_quant_scale is not None
    scale, zero_point = config.act_quant_scale.detach().reshape(-1).float(), config.act_quant_zero_point
    if scale.numel() != 1 or not bool((scale.isfinite() & (scale > 0)).all()):
        raise ValueError(f"SmoothQuant saw activations of the scale {scale.tolist()}: calibrate with finite inputs")
    if config.act_mapping_type == MappingType.SYMMETRIC:
        return scale, torch.zeros(1, dtype=config.act_dtype)
    if zero_point is None:
        raise NotImplementedError(
            "this torchao's SmoothQuant finds no zero points: take act_mapping_type=MappingType.SYMMETRIC, or torchao "
            ">= 0.17"
        )
    shift = 128 if config.act_dtype == torch.uint8 else 0
    return scale, (zero_point.reshape(1).to(torch.int32) + shift).to(config.act_dtype)


def has_scheme(packed: ACLPackedTensor | ACLPackedExperts, config: Config) -> bool:
    """Whether a packed weight is what a configuration would make of it, its policy included."""
    if isinstance(packed, ACLPackedExperts):
        packed = packed.expert(0)
    n, k = packed.weight_shape
    layout = layout_of(config, k)
    if isinstance(config, ACLInt8DynamicActivationInt4WeightConfig) and config.on_unsupported == "int8":
        try:
            _check_shape(n, k, layout)
        except ValueError:
            layout = config.fallback().layout()
    given = isinstance(config, ACLInt8StaticActivationInt8WeightConfig) and config.step is None
    if given and packed.act_scale is not None:
        scale, zero_point = act_quantization(torch.nn.Module(), config)
        assert scale is not None and zero_point is not None
        if packed.act_quantization != [float(scale), int(zero_point)]:
            return False
    return packed.get_layout() == layout


def _check_shape(n: int, k: int, layout: ACLPackedLayout) -> None:
    if layout.is_grouped:
        check_group_size(k, layout.group_size)
    kernels.select(*problem_of(n, k, layout))
