"""A whole transformers model as the subject: every linear layer of it is made by the candidate."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..demo.encoder import Encoder
from .candidates import Candidate
from .subject import Function

#: Sentences in a batch.
BATCHES = (1, 16)


class ModelSubject:
    """The last hidden states of a model for batches of the demo's sentences; static schemes calibrate with them too."""

    #: Errors of the layers add up, and real activations have outliers that random ones have not.
    sqnr_loss_db = 25.0
    layers_alone = False

    def __init__(self, encoder: Encoder) -> None:
        self._model = encoder.model.requires_grad_(False)
        self._batches = {}
        for size in BATCHES:
            batch = dict(encoder.ordinary_batch(size))
            self._batches["{} x {} tokens".format(*batch["input_ids"].shape)] = batch
        self.title = encoder.name
        self.cases = tuple(self._batches)
        self._calibration = self._layer_inputs()

    def full_name(self, case: str) -> str:
        """The model's title and the case."""
        return f"{self.title}, {case}"

    def input(self, case: str, dtype: torch.dtype) -> Any:
        """The tokens, which have no float dtype."""
        return self._batches[case]

    def expected(self, case: str) -> Tensor:
        """The float model's last hidden states, (batch, tokens, features) float32."""
        states: Tensor = self._model(**self._batches[case]).last_hidden_state
        return states

    def build(self, candidate: Candidate) -> tuple[Function, list[torch.nn.Module]]:
        """A copy of the model with every linear layer made by the candidate, and these layers.

        Raises:
            NotImplementedError: if the candidate cannot make one of them, which is named.
        """
        same = candidate.dtype == torch.float32
        # What stays fp32 shares the float layers instead of copying them.
        shared: dict[int, Any] = {id(layer): layer for layer in _linear_layers(self._model).values()} if same else {}
        model = copy.deepcopy(self._model, shared).to(candidate.dtype)
        made: list[torch.nn.Module] = []
        for name, linear in _linear_layers(model).items():
            if name not in self._calibration:
                continue
            try:
                layer = candidate.make(linear, self._calibration[name].to(candidate.dtype))
            except NotImplementedError as error:
                raise NotImplementedError(f"layer {name}: {error}") from None
            model.set_submodule(name, layer)
            made.append(layer)

        def last_hidden_state(batch: Any) -> Tensor:
            states: Tensor = model(**batch).last_hidden_state
            return states

        return last_hidden_state, made

    @torch.no_grad()
    def _layer_inputs(self) -> dict[str, Tensor]:
        """What each linear layer gets for the largest batch, (..., k)."""
        inputs: dict[str, Tensor] = {}
        with _watching(_linear_layers(self._model), inputs):
            self._model(**self._batches[self.cases[-1]])
        return inputs


def _linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Not subclasses: torch's attention modules read the weight of theirs instead of calling it."""
    return {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}


@contextmanager
def _watching(layers: dict[str, torch.nn.Linear], inputs: dict[str, Tensor]) -> Iterator[None]:
    """Keeps the inputs of the layers' calls; layers that are not called keep none."""
    handles = [
        layer.register_forward_pre_hook(lambda module, args, name=name: inputs.__setitem__(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
