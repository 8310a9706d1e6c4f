"""Which modules multiply by a weight that can be packed, which of their parameters those are, and how they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class ModuleWeight(NamedTuple):
    """A parameter that a module multiplies by.

    Attributes:
        name: as the module has it; with a dot if a module inside of it does.
        transposed: whether it is (k, n), or (experts, k, n), and not (n, k).
        experts: whether it is 3-D: a weight for each expert.
        observed: whether what the module is called with is what meets the weight, so that a hook in front of it can
            calibrate it.
    """

    name: str
    transposed: bool = False
    experts: bool = False
    observed: bool = True


class _Kind(NamedTuple):
    """Modules that multiply in the same way."""

    name: str
    matches: Callable[[torch.nn.Module], bool]
    weights: Callable[[torch.nn.Module], tuple[ModuleWeight, ...]]


def _is_linear(module: torch.nn.Module) -> bool:
    """As torchao's own filter: the layer within nn.MultiheadAttention, which is never called, belongs to that."""
    return isinstance(module, torch.nn.Linear) and not isinstance(
        module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear
    )


def _is_conv1d(module: torch.nn.Module) -> bool:
    """transformers' Conv1D, which computes ``addmm(bias, x, weight)``; known by name, to import nothing."""
    return any(
        (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D") for kind in type(module).__mro__
    )


def _is_attention(module: torch.nn.Module) -> bool:
    """Not torch.ao's subclasses, which compute by layers of their own."""
    attention = torch.nn.MultiheadAttention
    return isinstance(module, attention) and type(module).forward is attention.forward


def _is_experts(module: torch.nn.Module) -> bool:
    """transformers' experts that share the implementations of ``config._experts_implementation``."""
    config = getattr(module, "config", None)
    return isinstance(getattr(module, "is_transposed", None), bool) and hasattr(config, "_experts_implementation")


def _experts(module: torch.nn.Module) -> tuple[ModuleWeight, ...]:
    transposed = bool(module.is_transposed)
    named = dict(module.named_parameters(recurse=False))
    names = [name for name in ("gate_up_proj", "up_proj", "down_proj") if name in named]
    return tuple(ModuleWeight(name, transposed, experts=True, observed=False) for name in names)


def _attention(module: torch.nn.Module) -> tuple[ModuleWeight, ...]:
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    held = [name for name in names if getattr(module, name) is not None]
    return tuple(ModuleWeight(name, observed=False) for name in (*held, "out_proj.weight"))


_KINDS = (
    _Kind("nn.Linear", _is_linear, lambda module: (ModuleWeight("weight"),)),
    _Kind("Conv1D", _is_conv1d, lambda module: (ModuleWeight("weight", transposed=True),)),
    _Kind("nn.MultiheadAttention", _is_attention, _attention),
    _Kind("experts", _is_experts, _experts),
)


def quantizable(module: torch.nn.Module, name: str = "") -> bool:
    """Whether ao_arm can serve a module's products: the ``filter_fn`` for ``quantize_`` that takes all it can.

    These are nn.Linear, transformers' Conv1D and experts (3-D parameters), and nn.MultiheadAttention, with the latter
    also nn.TransformerEncoderLayer and the like.

    Args:
        module: any module of a model.
        name: its name in the model, which does not matter.
    """
    return bool(weights_of(module))


def weights_of(module: torch.nn.Module) -> tuple[ModuleWeight, ...]:
    """The weights of a module by which it multiplies; none if ao_arm does not know how it does."""
    return next((kind.weights(module) for kind in _KINDS if kind.matches(module)), ())


def weight_of(module: torch.nn.Module, name: str) -> ModuleWeight:
    """What is known of one parameter; of modules that no kind covers: that it is meant for ``F.linear``."""
    return next((weight for weight in weights_of(module) if weight.name == name), ModuleWeight(name, observed=False))


#: What experts that are packed can be multiplied by: see ``ACLPackedExperts``.
_IMPLEMENTATIONS = (None, "eager", "grouped_mm")


def check_served(module: torch.nn.Module, weight: ModuleWeight) -> None:
    """Raises ``NotImplementedError`` if a module is set to use its weight in a way that cannot be served."""
    chosen = getattr(getattr(module, "config", None), "_experts_implementation", None)
    if weight.experts and chosen not in _IMPLEMENTATIONS:
        raise NotImplementedError(
            f"its experts_implementation is {chosen!r}, which would unpack experts in each call: call "
            "model.set_experts_implementation('grouped_mm') before, or 'eager'"
        )


def owner_of(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """The module that has a ``ModuleWeight``'s parameter itself, and the parameter's name there."""
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def shape_of(weight: ModuleWeight, parameter: Tensor) -> tuple[int, int]:
    """(n, k) of a weight, or of each expert's."""
    n, k = parameter.shape[-2:]
    return (k, n) if weight.transposed else (n, k)
