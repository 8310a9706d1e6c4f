"""``dequantize_``: layers that ao_arm quantized hold floats again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from .calibration import remove_observer
from .experts import ACLPackedExperts, is_packed, packed_in
from .handlers import put_floats
from .linear import float_weight
from .stock_modules import PackedDynamicLinear, PackedEagerLinear


@torch.no_grad()
def dequantize_(model: torch.nn.Module) -> None:
    """Gives a model's layers floats back, in place: what their packed weights stand for, in the dtype that they show.

    Layers compute with float activations then. Observers that wait for ``step="convert"`` go too. What other tools
    quantized stays as it is. Modules, their hooks and what they share stay; what ``pack_`` made of torch.ao's dynamic
    layers becomes an ``nn.Linear``, followed by an ``nn.ReLU`` in an ``nn.Sequential`` if it had one.

    Args:
        model: any module. Its parameters require gradients as the packed ones did, which is not at all:
            ``model.requires_grad_()`` to train.

    Raises:
        ValueError: if ``model`` is no module.
        NotImplementedError: if it holds what ``pack_`` made of torch.ao's static layers, whose inputs are torch's
            quantized tensors, or is itself what would be replaced. The model is as it was.
    """
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, PackedEagerLinear):
            _check_replaceable(name, module)
    uses = Counter(id(parameter) for _, _, parameter in _packed_parameters(model))
    # Of shared weights alone: the packed one, so that no other gets its id, and the floats.
    made: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
    for module, name, old in _packed_parameters(model):
        known = made.get(id(old))
        if known is None:
            new = torch.nn.Parameter(_floats(old), requires_grad=old.requires_grad)
            if uses[id(old)] > 1:
                made[id(old)] = old, new
        else:
            new = known[1]
        put_floats(module, name, new)
    _replace_layers(model)
    for module in model.modules():
        remove_observer(module)


def _packed_parameters(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Parameter]]:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if is_packed(parameter):
                yield module, name, parameter


def _floats(parameter: torch.Tensor) -> torch.Tensor:
    packed = packed_in(parameter)
    assert packed is not None
    if isinstance(packed, ACLPackedExperts):
        return packed.dequantize()
    floats = float_weight(packed, packed.weight_dtype)
    return floats.t().contiguous() if packed.transposed else floats


def _check_replaceable(name: str, module: PackedEagerLinear) -> None:
    if not isinstance(module, PackedDynamicLinear):
        raise NotImplementedError(
            f"the layer '{name}' is {type(module).__name__}, which takes and gives torch's quantized tensors: floats "
            "cannot replace it. Take the float model from before torch.ao's convert"
        )
    if name == "":
        raise NotImplementedError(
            f"the model itself is {type(module).__name__}, which is replaced: put it into a torch.nn.Sequential"
        )


def _replace_layers(model: torch.nn.Module) -> None:
    """Layers of ``pack_`` that now hold floats become torch's."""
    made: dict[PackedDynamicLinear, torch.nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, PackedDynamicLinear):
                if child not in made:
                    made[child] = _linear(child)
                setattr(parent, name, made[child])


def _linear(layer: PackedDynamicLinear) -> torch.nn.Module:
    linear = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    linear.weight = layer.weight
    linear.register_parameter("bias", layer.bias)
    replacement = torch.nn.Sequential(linear, torch.nn.ReLU()) if layer.relu else linear
    for name, value in vars(layer).items():
        if "_hooks" in name:
            setattr(replacement, name, value)
    return replacement.train(layer.training)
