"""Which kernel serves which scheme on this CPU: a line of a Markdown table, made of the kernel tables."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from itertools import product

from . import kernels
from .kernels import Kernel

HEADER = (
    "| CPU | `acl_int8_dynamic` (s8 x s8), `acl_int8_static` (s8 x s8, u8 x s8) | `acl_int4_grouped` (s8 x 4 bits) "
    "| can be forced |",
    "| --- | --- | --- | --- |",
)

_ARCHITECTURES = {"aarch64": "AArch64", "arm64": "AArch64", "x86_64": "x86-64", "AMD64": "x86-64"}

#: Known cores with these features and, of those that other kernels ask for, no more.
_CORES = {
    ("dotprod", "i8mm", "sve256"): "Neoverse V1",
    ("dotprod", "i8mm"): "Neoverse V2, N2",
    ("dotprod",): "Neoverse N1",
}

#: (n, k) of the layers that the line speaks for, from a small encoder's to a large language model's.
_SHAPES = ((384, 384), (768, 768), (3072, 768), (768, 3072), (4096, 4096), (4096, 11008))
#: Of 4-bit weights; they divide every k.
_GROUP_SIZES = (32, 64, 128)


def line() -> str:
    """The table's line for this CPU: the kernels that are chosen, and those that fit too.

    It says nothing about CPUs with fewer features: what a kernel costs depends on all that the CPU has. One kernel is
    chosen for each scheme, or several if that depends on the shape.
    """
    int8 = [kernels.list(*shape) for shape in _SHAPES]
    int4 = [
        kernels.list(*shape, group_size, float_scales, zero_points)
        for shape, group_size, float_scales, zero_points in product(_SHAPES, _GROUP_SIZES, (False, True), (False, True))
    ]
    fitting = {kernel.id: kernel for table in (*int8, *int4) for kernel in table if not kernel.reasons}
    chosen = _chosen(int8), _chosen(int4)
    others = [name for name in fitting if name not in (*chosen[0], *chosen[1])]
    features = tuple(dict.fromkeys(feature for kernel in fitting.values() for feature in kernel.features))
    return f"| {' | '.join((_cpu(features), *map(_code, (*chosen, others))))} |"


def _chosen(tables: Iterable[Sequence[Kernel]]) -> list[str]:
    """The cheapest kernel of each table, among those that fit."""
    found = []
    for table in tables:
        costs = {kernel.id: kernel.cost for kernel in table if not kernel.reasons and kernel.cost is not None}
        found.append(min(costs, key=costs.__getitem__))
    return list(dict.fromkeys(found))


def _cpu(features: tuple[str, ...]) -> str:
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    if not features:
        return f"any {architecture}"
    cores = f" ({_CORES[features]})" if features in _CORES else ""
    return f"{architecture} with {', '.join(features)}{cores}"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
