"""The kernel table: which kernels there are, which one serves a layer, and why not the others."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field

import torch

from . import _ops

#: Environment variable that names the one kernel to use. An unknown or unfit one is an error.
FORCE = "AO_ARM_KERNEL"
#: On AArch64 a layer that this kernel has to refuse is slower than it could be.
_BEST_ON_ARM = "acl/s8s32+epilogue"
_warned: set[tuple[str, ...]] = set()


@dataclass(frozen=True)
class Kernel:
    """A row of the table, judged for one layer.

    Attributes:
        id: its name, as ``AO_ARM_KERNEL`` takes it.
        summary: what it is.
        features: CPU features it needs.
        reasons: every reason why it cannot serve the layer here; empty if it can.
        cost: estimated cycles of a call with 16 rows, or None if it cannot serve the layer.
    """

    id: str
    summary: str
    features: tuple[str, ...]
    reasons: tuple[str, ...]
    cost: float | None


def list(n: int = 768, k: int = 768) -> tuple[Kernel, ...]:
    """All kernels that ao_arm knows, judged for a layer with weight (n, k)."""
    return tuple(
        Kernel(row["id"], row["summary"], tuple(row["features"]), tuple(row["reasons"]), row["cost"])
        for row in json.loads(_ops.kernel_table(n, k))
    )


def select(n: int, k: int) -> str:
    """The id of the kernel that serves a layer with weight (n, k): the cheapest that fits, or the forced one.

    Raises:
        ValueError: if none fits, or ``AO_ARM_KERNEL`` names an unknown or unfit kernel.
    """
    chosen: str = _ops.call(_ops.select_kernel, n, k, os.environ.get(FORCE, ""))
    return chosen


def warn_if_slow(chosen: str, layer: str, n: int, k: int) -> None:
    """Warns, once for each reason, if this CPU's best kernel had to refuse the layer."""
    if os.environ.get(FORCE) or "AArch64" not in _architecture():
        return
    for kernel in list(n, k):
        if kernel.id == _BEST_ON_ARM and kernel.reasons and kernel.reasons not in _warned:
            _warned.add(kernel.reasons)
            warnings.warn(
                f"{layer} is served by the slower kernel {chosen}, because {kernel.id} cannot: "
                f"{'; '.join(kernel.reasons)}. ao_arm.explain(model) lists all layers.",
                stacklevel=2,
            )


def _architecture() -> str:
    import platform

    return "AArch64" if platform.machine() in ("aarch64", "arm64") else platform.machine()


@dataclass(frozen=True)
class LayerExplanation:
    """How one layer is computed.

    Attributes:
        name: the layer's qualified name in the model.
        shape: (n, k) of its weight.
        scheme: how it is quantized, or "not quantized".
        kernel: the kernel's id, or "torch" for layers that are not quantized by ao_arm.
        packing_format: how the kernel arranged the weight.
        rejected: for each kernel that could not be taken, its reasons.
    """

    name: str
    shape: tuple[int, int]
    scheme: str
    kernel: str
    packing_format: str = ""
    rejected: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Explanation(tuple[LayerExplanation, ...]):
    """The layers of a model; prints as a table."""

    def __str__(self) -> str:
        header = ("layer", "n x k", "scheme", "kernel", "packing format")
        rows = [
            (layer.name, f"{layer.shape[0]} x {layer.shape[1]}", layer.scheme, layer.kernel, layer.packing_format)
            for layer in self
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (header, tuple("-" * width for width in widths), *rows)
        ]
        reasons = {kernel: why for layer in self for kernel, why in layer.rejected.items()}
        lines += [f"not {kernel}: {'; '.join(why)}" for kernel, why in reasons.items()]
        return "\n".join(lines)


def explain(model: torch.nn.Module) -> Explanation:
    """Per linear layer: the scheme, the kernel chosen when its weight was packed, and why each other one was not.

    Args:
        model: any module; layers that ao_arm did not quantize are listed too.
    """
    from .affine_quantized import packed_weight_of

    layers = []
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            full_name = f"{name}.{parameter_name}" if parameter_name != "weight" else name
            packed = packed_weight_of(parameter)
            if packed is not None:
                info = json.loads(_ops.packed_weight_info(packed._bytes()))
                n, k = info["n"], info["k"]
                rejected = {kernel.id: kernel.reasons for kernel in list(n, k) if kernel.reasons}
                layers.append(
                    LayerExplanation(full_name, (n, k), packed.scheme, info["kernel"], info["packing_format"], rejected)
                )
            elif isinstance(module, torch.nn.Linear) and parameter_name == "weight":
                n, k = parameter.shape
                layers.append(LayerExplanation(full_name, (n, k), f"not quantized ({parameter.dtype})", "torch"))
    return Explanation(layers)
