"""The kernel table: which kernels there are, which one serves a layer, and why not the others."""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import _ops

FORCE = "AO_ARM_KERNEL"
"""Environment variable that names the one kernel to use, or one for int8 and one for 4-bit weights, separated by a
comma. An unknown or unfit one is an error."""
_warned: set[tuple[str, ...]] = set()


@dataclass(frozen=True)
class Kernel:
    """A row of the table, judged for one layer.

    Attributes:
        id: its name, as ``AO_ARM_KERNEL`` takes it.
        summary: what it is.
        features: CPU features it needs.
        reasons: every reason why it cannot serve the layer here; empty if it can.
        cost: estimated cycles of a call on one thread, the geometric mean over 1, 16 and 128 rows, were it not for the
            reasons; None if this CPU cannot run it, or no kernel could serve the layer.
    """

    id: str
    summary: str
    features: tuple[str, ...]
    reasons: tuple[str, ...]
    cost: float | None


class Problem(NamedTuple):
    """A linear layer as far as kernels are chosen by it.

    Attributes:
        n, k: the weight's shape.
        group_size: of 4-bit weights; 0 for int8 weights.
        float_scales: whether the scales of groups are float32, and not bfloat16.
        zero_points: whether groups have zero points.
        full_range: whether an int8 weight holds -128, which not every kernel multiplies exactly on every CPU.
    """

    n: int
    k: int
    group_size: int = 0
    float_scales: bool = False
    zero_points: bool = False
    full_range: bool = False


def list(
    n: int = 768,
    k: int = 768,
    group_size: int = 0,
    float_scales: bool = False,
    zero_points: bool = False,
    full_range: bool = False,
) -> tuple[Kernel, ...]:
    """All kernels that ao_arm knows for weights of this kind, judged for a layer; the arguments are a ``Problem``'s."""
    table = (
        _ops.kernel_table_int4(n, k, group_size, float_scales, zero_points)
        if group_size
        else _ops.kernel_table(n, k, full_range)
    )
    return tuple(
        Kernel(row["id"], row["summary"], tuple(row["features"]), tuple(row["reasons"]), row["cost"])
        for row in json.loads(table)
    )


def select(
    n: int,
    k: int,
    group_size: int = 0,
    float_scales: bool = False,
    zero_points: bool = False,
    full_range: bool = False,
) -> str:
    """The id of the kernel that serves a layer: the cheapest that fits, or the forced one.

    The arguments are a ``Problem``'s.

    Raises:
        ValueError: if none fits, or ``AO_ARM_KERNEL`` names an unknown or unfit kernel.
    """
    forced = _forced(group_size)
    chosen: str = (
        _ops.call(_ops.select_kernel_int4, n, k, group_size, float_scales, zero_points, forced)
        if group_size
        else _ops.call(_ops.select_kernel, n, k, forced, full_range)
    )
    return chosen


def _forced(group_size: int) -> str:
    """Of the kernels that ``AO_ARM_KERNEL`` names, that for weights of this kind; what it names if there is none."""
    named = os.environ.get(FORCE, "")
    known = {kernel.id for kernel in list(group_size=group_size)} if "," in named else set()
    return next((name.strip() for name in named.split(",") if name.strip() in known), named)


def warn_if_slow(chosen: str, layer: str, *problem: Any) -> None:
    """Warns, once for each reason, if a kernel that would be faster on this CPU had to refuse the layer."""
    if os.environ.get(FORCE):
        return
    rows = list(*problem)
    cost = min((kernel.cost for kernel in rows if kernel.id == chosen and kernel.cost is not None), default=math.inf)
    for kernel in rows:
        faster = kernel.cost is not None and kernel.cost < cost
        if faster and kernel.reasons and kernel.reasons not in _warned:
            _warned.add(kernel.reasons)
            warnings.warn(
                f"{layer} is served by the slower kernel {chosen}, because {kernel.id} cannot: "
                f"{'; '.join(kernel.reasons)}. ao_arm.explain(model) lists all layers.",
                stacklevel=2,
            )
