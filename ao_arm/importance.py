"""How much each column of a layer's weight counts: the mean square of the input that it is multiplied by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

#: A plain attribute of layers, no buffer: checkpoints do not change.
_ATTRIBUTE = "_ao_arm_importance"


class InputSquares:
    """A hook in front of a layer that adds up the squares of each column of its inputs."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._rows = 0

    def __call__(self, layer: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Sees an input, (..., k)."""
        x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
        self._sum = self._sum + x.square().sum(dim=0)
        self._rows += x.shape[0]

    def mean(self) -> Tensor | None:
        """The mean squares, (k,) in float32; None if there was no input."""
        return self._sum / self._rows if isinstance(self._sum, Tensor) and self._rows else None


def observe_importance(model: torch.nn.Module, inputs: Iterable[Any]) -> None:
    """Lets each linear layer of a model remember how large the columns of its input are, for ``search=True``.

    ``quantize_`` with ``acl_int4_grouped(..., search=True)`` then chooses the scales of groups that give a layer's
    **output** the least error for such inputs, and forgets what was remembered. Some hundred tokens are enough.

    Args:
        model: a float model. Its results, parameters and state dict do not change.
        inputs: batches like those that the model will get: tensors, tuples of arguments, or mappings of keyword
            arguments such as a tokenizer's.

    Raises:
        ValueError: if there are no inputs, or some that are not finite reach a layer.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    squares = {name: InputSquares() for name in layers}
    batches = 0
    with ExitStack() as hooks, torch.inference_mode():
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(squares[name]).remove)
        for batch in inputs:
            call(model, batch)
            batches += 1
    if not batches:
        raise ValueError("there are no inputs: give some batches like those that the model will get")
    for name, layer in layers.items():
        put_importance(layer, name, squares[name].mean())


def put_importance(layer: torch.nn.Module, name: str, importance: Tensor | None) -> None:
    """Lets a layer remember mean squares of its input's columns, (k,); None: that it got no input.

    Raises:
        ValueError: if they are not finite.
    """
    if importance is not None and not importance.isfinite().all():
        raise ValueError(
            f"the inputs of {name} hold values that are not finite: give inputs that the model can compute"
        )
    setattr(layer, _ATTRIBUTE, None if importance is None else importance.clone())


def importance_of(layer: torch.nn.Module) -> Tensor | None:
    """What a layer remembers, (k,) in float32."""
    found: Tensor | None = getattr(layer, _ATTRIBUTE, None)
    return found


def forget_importance(layer: torch.nn.Module) -> None:
    """Removes what a layer remembers."""
    if hasattr(layer, _ATTRIBUTE):
        delattr(layer, _ATTRIBUTE)


def call(model: Callable[..., Any], batch: Any) -> Any:
    """A model's output for a batch: a tensor, a tuple of arguments, or a mapping of keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
