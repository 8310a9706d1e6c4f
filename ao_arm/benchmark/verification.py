"""Whether a candidate computes what it should: nothing that is wrong gets timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..sqnr import sqnr_db
from .candidates import Candidate, Reference


@dataclass(frozen=True)
class Verification:
    """How far results are from fp32 and from the candidate's reference.

    Attributes:
        sqnr_db: against the fp32 subject; infinite if equal.
        reference_difference: the largest difference from the reference, relative to its largest value; None without
            a reference.
        complaint: what is wrong; "" if nothing is.
        weight_bytes: of the parameters and buffers of the candidate's layers, a shared one once; None without any.
        added_bytes: of the tensors that compiling made and keeps; None if nothing was compiled.
    """

    sqnr_db: float
    reference_difference: float | None
    complaint: str
    weight_bytes: int | None = None
    added_bytes: int | None = None


#: Of what is compiled, to the same layers' eager output. Rounding ties fall differently, which adds up in a model.
LEAST_DB_TO_EAGER = 12.0


def verify(
    candidate: Candidate,
    output: Tensor,
    expected: Tensor,
    least_sqnr_db: float,
    difference: float | None,
    uncompiled: Tensor | None = None,
) -> Verification:
    """Judges an output (of any float dtype) by the fp32 one, the difference from the reference if there is one, and if
    it is that of a compiled candidate by what the same layers give eagerly."""
    if output.shape != expected.shape:
        complaint = f"its output has the shape {tuple(output.shape)} instead of {tuple(expected.shape)}"
        return Verification(float("-inf"), difference, complaint)
    found = sqnr_db(expected, output.float())
    complaint = ""
    if not found >= least_sqnr_db:  # written so that NaN fails
        complaint = f"its SQNR to fp32 is {found:.1f} dB, and at least {least_sqnr_db:.0f} dB are expected"
    elif difference is not None and not difference <= candidate.tolerance:
        complaint = (
            f"it differs from its reference by {difference:.2g} of the largest value, and {candidate.tolerance:.2g} is "
            "allowed"
        )
    elif uncompiled is not None:
        alike = sqnr_db(uncompiled.float(), output.float())
        if not alike >= LEAST_DB_TO_EAGER:
            complaint = f"its SQNR to the same layers in eager mode is {alike:.1f} dB"
    return Verification(found, difference, complaint)


def difference_from_reference(
    layers: Sequence[torch.nn.Module], reference: Reference, run: Callable[[], object]
) -> float:
    """Compares what each layer gives while ``run`` runs with its reference; the largest relative difference."""
    differences = [0.0]
    with ExitStack() as hooks:
        for layer in layers:
            hook = partial(_compare, reference, differences)
            hooks.callback(layer.register_forward_hook(hook).remove)
        run()
    # Unlike max(), amax() keeps NaN.
    return float(torch.tensor(differences, dtype=torch.float64).amax())


def _compare(
    reference: Reference, differences: list[float], layer: torch.nn.Module, inputs: tuple[Any, ...], output: Any
) -> None:
    differences.append(relative_difference(output, reference(layer, inputs[0])))


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value; 0 only if all values are equal."""
    if torch.equal(actual, expected):
        return 0.0
    largest = expected.double().abs().amax().clamp(min=torch.finfo(torch.float64).tiny)
    return float((actual.double() - expected.double()).abs().amax() / largest)
