"""What became of layers, and what is said of those that were not quantized as was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: By the state of an outcome that has a reason, what is said of the layer.
TOLD = {"left": "was left in floats", "int8": "has int8 weights and not 4-bit ones"}
#: Said where nothing was changed.
QUANTIZED_ALREADY = (
    "nothing was changed: each layer is quantized already, and at least one in another way than this configuration "
    "says. ao_arm.quantize_(model, config, requantize=True) quantizes again from what is stored; "
    "ao_arm.dequantize_(model) gives floats back"
)
#: Where a module keeps why parameters of it were not quantized as they should have been.
_REASONS = "_unsupported_reasons"


@dataclass(frozen=True)
class Outcome:
    """What became of a layer.

    Attributes:
        state: "quantized"; "int8" in place of 4 bits, "left" in floats, both by ``on_unsupported``; "prepared" for
            calibration; "kept", because it was quantized already; "passed over", being no matrix.
        reason: why ``on_unsupported`` came into play.
    """

    state: str
    reason: str = ""


def note_reason(module: torch.nn.Module, parameter_name: str, reason: str) -> None:
    """Keeps with a module why a parameter was not quantized as it should have been; an empty reason is forgotten."""
    reasons = {**vars(module).get(_REASONS, {}), parameter_name: reason}
    kept = {name: why for name, why in reasons.items() if why}
    if kept:
        setattr(module, _REASONS, kept)
    elif _REASONS in vars(module):
        delattr(module, _REASONS)


def noted_reason(module: torch.nn.Module, parameter_name: str) -> str:
    """Why a parameter was left in floats, or quantized in another way than was asked for; mostly empty."""
    return str(vars(module).get(_REASONS, {}).get(parameter_name, ""))
