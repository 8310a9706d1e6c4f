"""Models of transformers whose layers ``quantize_`` quantized: written as ``from_pretrained`` reads them.

transformers writes quantized weights only of models that it quantized itself: it asks the model for a quantizer. While
one that was quantized by hand is written, it has the quantizer that it would have had.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig
from torchao.quantization.granularity import PerRow, PerTensor, PerToken
from torchao.quantization.quant_primitives import MappingType

from .affine_quantized import packed_weight_of
from .config import acl_int4_grouped, acl_int8_dynamic, acl_int8_static
from .experts import ACLPackedExperts, bytes_too_many, is_packed, packed_in
from .import_hooks import after_import
from .tensor import ACLPackedTensor

_MAPPINGS = {
    "symmetric": MappingType.SYMMETRIC,
    "symmetric_127": MappingType.SYMMETRIC,  # no configuration makes it; the weight's own layout tells it when loaded
    "asymmetric": MappingType.ASYMMETRIC,
}
_ACTIVATIONS = {"per_token": PerToken, "per_tensor": PerTensor}
_WEIGHTS = {"per_channel": PerRow, "per_tensor": PerTensor}
_MISSING = object()


def save_pretrained(model: torch.nn.Module, folder: str | Path, **arguments: Any) -> None:
    """Writes a model, some of whose layers ao_arm quantized, for ``from_pretrained`` to read.

    ``model.save_pretrained(folder)`` does the same, and says nothing if the model holds no packed weight.

    Args:
        model: one of transformers or sentence-transformers: whatever has ``save_pretrained``.
        folder: where to write configuration and weights.
        arguments: what else the model's ``save_pretrained`` takes, such as ``max_shard_size``.

    Raises:
        ValueError: if the model has no ``save_pretrained``, or holds no weight that ao_arm quantized.
    """
    write = getattr(model, "save_pretrained", None)
    if write is None:
        raise ValueError(
            f"a {type(model).__name__} has no save_pretrained, as models of transformers and sentence-transformers do: "
            "write its state dict with torch.save"
        )
    if not any(is_packed(parameter) for parameter in model.parameters()):
        raise ValueError(
            f"this {type(model).__name__} holds no weight that ao_arm quantized: quantize_ it first, or call its own "
            "save_pretrained"
        )
    write(folder, **arguments)


def config_of(packed: ACLPackedTensor | ACLPackedExperts) -> AOBaseConfig:
    """The configuration that makes such a weight of a float one, with the scale of its static activations."""
    packed = packed.expert(0) if isinstance(packed, ACLPackedExperts) else packed
    layout = packed.get_layout()
    mapping = _MAPPINGS[layout.activation_mapping]
    if layout.is_grouped:
        scale_dtype = getattr(torch, layout.scale_dtype)
        return acl_int4_grouped(layout.group_size, _MAPPINGS[layout.weight_mapping], scale_dtype)
    weights = _WEIGHTS[layout.weight_granularity]()
    if layout.is_static:
        activation_dtype = getattr(torch, layout.activation_dtype)
        return acl_int8_static(None, packed.act_scale, packed.act_zero_point, mapping, activation_dtype, weights)
    return acl_int8_dynamic(mapping, _ACTIVATIONS[layout.activation_granularity](), weights)


def config_of_model(model: torch.nn.Module) -> AOBaseConfig | None:
    """The configuration that makes a model's packed weights: one for all, or one for each; None if there are none.

    Args:
        model: any module; weights that layers share count once for each name.
    """
    configs = OrderedDict(
        (name, config_of(packed))
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if (packed := packed_in(parameter)) is not None
    )
    if not configs:
        return None
    first = next(iter(configs.values()))
    return first if all(config == first for config in configs.values()) else FqnToConfig(configs)


def _not_quantized(model: torch.nn.Module) -> list[str]:
    """The linear layers that are not packed, which transformers is to leave."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and packed_weight_of(layer.weight) is None
    ]


@contextmanager
def _attribute(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an object an attribute, and takes it away or sets it back in the end."""
    before = vars(holder).get(name, _MISSING)
    setattr(holder, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(holder, name)
        else:
            setattr(holder, name, before)


@contextmanager
def _ready_to_be_written(model: Any) -> Iterator[None]:
    """Gives a model of packed weights, while it is written, the quantizer that transformers looks for.

    Not for good: transformers would no longer train it, move it or quantize it. A model with adapters writes those
    alone, and one that transformers quantized has its quantizer.
    """
    config = None if getattr(model, "_hf_peft_config_loaded", False) else config_of_model(model)
    with ExitStack() as attributes:
        if config is not None and getattr(model, "hf_quantizer", None) is None:
            from transformers import TorchAoConfig
            from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

            stated = TorchAoConfig(config, modules_to_not_convert=_not_quantized(model))
            attributes.enter_context(_attribute(model.config, "quantization_config", stated))
            quantizer = TorchAoHfQuantizer(stated, pre_quantized=True)
            attributes.enter_context(_attribute(model, "hf_quantizer", quantizer))
        if config is not None and getattr(model, "_weight_conversions", None) is not None:
            # Some were loaded from such a file, by a step that transformers cannot undo, and need not: the quantizer
            # has the names that are written.
            undone = [each for each in model._weight_conversions if not _makes_torchao_weights(each)]
            attributes.enter_context(_attribute(model, "_weight_conversions", undone))
        yield


def _makes_torchao_weights(conversion: Any) -> bool:
    return any(type(step).__name__ == "TorchAoDeserialize" for step in getattr(conversion, "operations", ()))


def _know_packed_weights(modeling: ModuleType) -> None:
    """Makes ``save_pretrained`` and ``get_memory_footprint`` of transformers' models know packed weights."""
    write, measure = modeling.PreTrainedModel.save_pretrained, modeling.PreTrainedModel.get_memory_footprint

    @functools.wraps(write)
    def save_pretrained(self: Any, *arguments: Any, **options: Any) -> Any:
        with _ready_to_be_written(self):
            return write(self, *arguments, **options)

    @functools.wraps(measure)
    def get_memory_footprint(self: Any, *arguments: Any, **options: Any) -> int:
        footprint: int = measure(self, *arguments, **options)
        return footprint - sum(bytes_too_many(parameter) for parameter in self.parameters())

    modeling.PreTrainedModel.save_pretrained = save_pretrained
    modeling.PreTrainedModel.get_memory_footprint = get_memory_footprint


after_import("transformers.modeling_utils", _know_packed_weights)
