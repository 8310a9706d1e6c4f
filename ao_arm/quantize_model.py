"""``quantize_``: torchao's for whole models, which are checked first, and quantized again on request."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchao.quantization import FqnToConfig

from . import text_table
from .config import CONFIGS, ACLInt8DynamicActivationInt4WeightConfig, ACLInt8StaticActivationInt8WeightConfig
from .experts import packed_in
from .handlers import names_of_weights, put_weight, quantize_layer
from .layer_checks import Config, has_scheme, unsupported_error, weight_of
from .module_weights import quantizable
from .outcomes import QUANTIZED_ALREADY, TOLD, Outcome


@dataclass(frozen=True)
class QuantizedEntry:
    """A weight that ``quantize_`` was to quantize.

    Attributes:
        name: of the layer in the model; of the parameter if that is not the layer's ``weight``.
        shape: (n, k).
        scheme: how it is quantized now, in words; "prepared, not converted" with ``step="prepare"``; empty of floats.
        changed: whether this call changed it.
        reason: why ``on_unsupported`` came into play; mostly empty.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    changed: bool
    reason: str = ""


class QuantizeReport(tuple[QuantizedEntry, ...]):
    """What ``quantize_`` did with a model; prints as a table, with the reasons below."""

    @property
    def quantized(self) -> tuple[QuantizedEntry, ...]:
        """What this call quantized, or prepared."""
        return tuple(entry for entry in self if entry.changed)

    @property
    def kept(self) -> tuple[QuantizedEntry, ...]:
        """What was quantized before, and stayed as it was."""
        return tuple(entry for entry in self if entry.scheme and not entry.changed)

    @property
    def left(self) -> tuple[QuantizedEntry, ...]:
        """What stayed in floats, because it cannot be quantized so."""
        return tuple(entry for entry in self if not entry.scheme)

    def __str__(self) -> str:
        if not self:
            return "no layer was taken"
        rows = [
            (
                entry.name,
                " x ".join(map(str, entry.shape)),
                (entry.scheme if entry.changed else f"as it was: {entry.scheme}") if entry.scheme else "left in floats",
            )
            for entry in self
        ]
        return "\n".join([*text_table.with_rule(("layer", "n x k", "quantized as"), rows), *_by_reason(self)])


@dataclass(frozen=True)
class _Planned:
    """A parameter and the configuration that is for it."""

    name: str
    module: torch.nn.Module
    parameter_name: str
    config: Config

    @property
    def weight(self) -> Tensor:
        return weight_of(self.module, self.parameter_name)

    @property
    def parameter(self) -> torch.nn.Parameter:
        return self.module.get_parameter(self.parameter_name)

    def is_packed_otherwise(self) -> bool:
        packed = packed_in(self.weight)
        return packed is not None and not has_scheme(packed, self.config)


@torch.no_grad()
def quantize_(
    model: torch.nn.Module,
    config: Config | FqnToConfig,
    filter_fn: Callable[[torch.nn.Module, str], bool] | None = None,
    *,
    requantize: bool = False,
) -> QuantizeReport:
    """Quantizes a model's layers in place, as ``torchao.quantization.quantize_`` does; if one cannot be, none is.

    The whole model is checked before anything is changed. What stops later, such as Ctrl-C, leaves each layer either as
    it was or wholly quantized. Layers that share a weight share the packed one (but for static layers, whose weights
    carry their own activations' scale).

    Args:
        model: any module on the CPU.
        config: one of ao_arm's configurations, or an ``FqnToConfig`` of them. Its ``on_unsupported`` says what becomes
            of layers that cannot be quantized so; they are named in one warning and in the report.
        filter_fn: called with a module and its name, chooses layers; ``ao_arm.quantizable`` by default. Not with
            ``FqnToConfig``, which takes layers as torchao does: by the names of parameters and modules, patterns after
            "re:", and "_default" for other linear layers. Biases and other 1-D parameters are passed over.
        requantize: whether layers that ao_arm quantized in another way are quantized again, one at a time, from what
            their packed weights hold. Integers stay if only activations are another matter. Otherwise such layers stay
            as they are; if that is so of all, a warning says so.

    Returns:
        A report on each weight; prints as a table.

    Raises:
        ValueError, NotImplementedError: which layers cannot be quantized, and why; the model is as it was. Or that an
            argument is none of the above.
    """
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    planned = [each for each in _plan(model, config, filter_fn) if each.weight.dim() > 1]
    _check(planned, requantize)
    kept_otherwise = not requantize and any(each.is_packed_otherwise() for each in planned)
    report = QuantizeReport(_quantized(model, planned, requantize))
    if told := _by_reason(report):
        warnings.warn("\n".join(told), stacklevel=3)
    if not planned:
        warnings.warn("no layer was quantized: the model has none that filter_fn or FqnToConfig takes", stacklevel=3)
    elif kept_otherwise and len(report.kept) == len(report):
        warnings.warn(QUANTIZED_ALREADY, stacklevel=3)
    return report


def _plan(model: torch.nn.Module, config: Any, filter_fn: Any) -> Iterator[_Planned]:
    if not isinstance(config, FqnToConfig):
        _check_config(config)
        takes = quantizable if filter_fn is None else filter_fn
        for fqn, module in model.named_modules():
            if takes(module, fqn):
                for name in names_of_weights(module):
                    yield _Planned(_name(fqn, name), module, name, config)
        return
    if filter_fn is not None:
        raise ValueError("filter_fn and FqnToConfig both choose layers: leave filter_fn out")
    for chosen in config.fqn_to_config.values():
        if chosen is not None:
            _check_config(chosen)
    for fqn, module in model.named_modules():
        for parameter_name, chosen in _configs_of(module, fqn, config.fqn_to_config).items():
            yield _Planned(_name(fqn, parameter_name), module, parameter_name, chosen)


def _name(fqn: str, parameter_name: str) -> str:
    return fqn if parameter_name == "weight" else f"{fqn}.{parameter_name}".lstrip(".")


def _check_config(config: Any) -> None:
    if not isinstance(config, CONFIGS):
        accepted = ", ".join(kind.__name__ for kind in CONFIGS)
        raise ValueError(
            f"config must be one of {accepted}, or an FqnToConfig of them, not {type(config).__name__}: give others to "
            "torchao.quantization.quantize_"
        )


def _configs_of(module: torch.nn.Module, fqn: str, by_name: Mapping[str, Any]) -> dict[str, Config]:
    """The configurations of a module's parameters by torchao's rules for ``FqnToConfig``: exact names of parameters,
    exact names of modules, patterns for parameters, patterns for modules, and the default."""
    found: dict[str, Config] = {}
    matched = False
    full_names = {name: f"{fqn}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
    for name, full_name in full_names.items():
        if full_name in by_name:
            matched = True
            if by_name[full_name] is not None:
                found[name] = by_name[full_name]
    if not matched and fqn in by_name:
        return _for_module(module, by_name[fqn])
    for name, full_name in full_names.items():
        if full_name in by_name:
            continue
        for config in _matching(by_name, full_name):
            matched = True
            if config is not None:
                found.setdefault(name, config)
    if matched:
        return found
    for config in _matching(by_name, fqn):
        return _for_module(module, config)
    return _for_module(module, by_name.get("_default")) if quantizable(module, fqn) else {}


def _for_module(module: torch.nn.Module, config: Config | None) -> dict[str, Config]:
    return {} if config is None else dict.fromkeys(names_of_weights(module), config)


def _matching(by_name: Mapping[str, Any], name: str) -> Iterator[Any]:
    for pattern, config in by_name.items():
        if pattern.startswith("re:") and re.fullmatch(pattern[3:], name):
            yield config


def _check(planned: list[_Planned], requantize: bool) -> None:
    """Raises one error for all layers that could not be quantized; changes nothing."""
    refused: dict[str, list[str]] = {}
    first: Exception | None = None
    for each in planned:
        error = _refusal(each, requantize)
        if error is not None:
            first = first or error
            refused.setdefault(str(error), []).append(each.name)
    if first is not None:
        reasons = "; ".join(f"{text_table.listed(names)}: {reason}" for reason, names in refused.items())
        failing = f"{sum(map(len, refused.values()))} of {len(planned)} layers"
        raise type(first)(
            f"nothing was quantized, because {failing} cannot be. {reasons}. Leave them out with filter_fn or "
            "FqnToConfig, or give the configuration an on_unsupported other than 'raise'"
        )


def _refusal(each: _Planned, requantize: bool) -> Exception | None:
    """Why a layer cannot be quantized, unless ``on_unsupported`` has an answer to it."""
    config = each.config
    if packed_in(each.weight) is not None:
        if not requantize or not each.is_packed_otherwise():
            return None
        if isinstance(config, ACLInt8StaticActivationInt8WeightConfig) and config.step is not None:
            return ValueError(
                f"it is quantized, and step={config.step!r} is for floats: ao_arm.dequantize_(model) first, or give "
                "act_scale"
            )
    error = unsupported_error(each.module, each.parameter_name, config)
    if error is None or config.on_unsupported == "skip":
        return None
    if config.on_unsupported == "int8":
        assert isinstance(config, ACLInt8DynamicActivationInt4WeightConfig)
        return unsupported_error(each.module, each.parameter_name, config.fallback())
    return error


def _quantized(model: torch.nn.Module, planned: list[_Planned], requantize: bool) -> Iterator[QuantizedEntry]:
    """Quantizes what is planned, one after the other; what shares a weight shares the packed one."""
    uses = Counter(id(each.weight) for each in planned)
    # Of shared weights alone: the weight as it was, so that no other one gets its id, and what became of it.
    made: dict[int, tuple[Tensor, Config, torch.nn.Parameter, Outcome]] = {}
    for each in planned:
        weight = each.weight
        known = made.get(id(weight))
        if known is not None and known[1] == each.config:
            outcome = known[3]
            put_weight(each.module, each.parameter_name, known[2], outcome.reason)
        else:
            outcome = quantize_layer(each.module, each.parameter_name, each.config, each.name, requantize)
            if requantize and packed_in(weight) is not None:
                _follow(model, weight, each.parameter)
            static = isinstance(each.config, ACLInt8StaticActivationInt8WeightConfig)
            if uses[id(weight)] > 1 and outcome.state in ("quantized", "int8") and not static:
                made[id(weight)] = weight, each.config, each.parameter, outcome
        yield _entry(each, outcome)


def _follow(model: torch.nn.Module, old: Tensor, new: torch.nn.Parameter) -> None:
    """Embeddings that share a packed weight get the new one as well."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight is old:
            module.weight = new


def _entry(each: _Planned, outcome: Outcome) -> QuantizedEntry:
    packed = packed_in(each.weight)
    scheme = "" if packed is None else packed.scheme
    if outcome.state == "prepared":
        scheme = "prepared, not converted"
    changed = outcome.state in ("quantized", "int8", "prepared")
    return QuantizedEntry(each.name, tuple(each.weight.shape), scheme, changed, outcome.reason)


def _by_reason(entries: Iterable[QuantizedEntry]) -> list[str]:
    """A line for each reason, with the layers that it holds for."""
    alike: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry.reason:
            told = TOLD["int8" if entry.scheme else "left"]
            alike.setdefault((told, entry.reason), []).append(entry.name)
    return [f"{text_table.listed(names)} {told}: {reason}" for (told, reason), names in alike.items()]
