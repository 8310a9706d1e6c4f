"""Layers between ``step="prepare"`` and ``step="convert"``: an observer sees the inputs of each."""

from __future__ import annotations

from typing import Any

import torch

from .affine_quantized import packed_weight_of

#: Where a prepared layer keeps its observer.
_OBSERVER = "activation_observer"
#: Where it keeps the handle of the hook that shows the observer its inputs.
_OBSERVING = "_observing_inputs"


def observe(layer: torch.nn.Module, observer: torch.nn.Module) -> None:
    """Puts an observer in front of a layer that multiplies its one input; one that is there already is replaced.

    It goes when the layer is quantized, or is called with a packed weight that was loaded into it.
    """
    remove_observer(layer)
    setattr(layer, _OBSERVER, observer)
    # Kept by the module, so that a copy of the module has its own.
    setattr(layer, _OBSERVING, layer.register_forward_pre_hook(_see_input, with_kwargs=True))


def observer_of(layer: torch.nn.Module) -> Any:
    """The observer in front of a layer, or None."""
    return getattr(layer, _OBSERVER, None)


def remove_observer(layer: torch.nn.Module) -> None:
    """Takes a layer's observer away, if it has one, with all that came with it."""
    handle: Any = getattr(layer, _OBSERVING, None)
    if handle is not None:
        handle.remove()
        layer._modules.pop(_OBSERVER, None)  # first, so that what was interrupted here can be done again
        delattr(layer, _OBSERVING)


def _see_input(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    weight: Any = layer.weight
    if packed_weight_of(weight) is not None:
        remove_observer(layer)
        return
    input = args[0] if args else next(iter(kwargs.values()))
    # What the observer keeps must not be an inference tensor, which could not be changed outside of inference mode.
    with torch.inference_mode(False), torch.no_grad():
        observer_of(layer)(input.detach())
