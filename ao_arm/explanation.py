"""What became of a model's linear layers: which kernel serves each, and why no other one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from . import kernels, text_table
from .affine_quantized import packed_weight_of
from .calibration import observer_of


@dataclass(frozen=True)
class LayerExplanation:
    """How one layer is computed.

    Attributes:
        name: the layer's qualified name in the model.
        shape: (n, k) of its weight.
        scheme: how it is quantized, or "not quantized", or "prepared, not converted" if an observer sees its inputs.
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
        lines = text_table.with_rule(header, rows)
        # Layers may have been refused for different reasons.
        reasons = dict.fromkeys(
            f"not {kernel}: {'; '.join(why)}" for layer in self for kernel, why in layer.rejected.items()
        )
        lines += reasons
        return "\n".join(lines)


def explain(model: torch.nn.Module) -> Explanation:
    """Per linear layer: the scheme, the kernel chosen when its weight was packed, and why each other one was not.

    Args:
        model: any module; layers that ao_arm did not quantize are listed too.
    """
    layers = []
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            full_name = f"{name}.{parameter_name}" if parameter_name != "weight" else name
            packed = packed_weight_of(parameter)
            if packed is not None:
                info = packed._info()
                rejected = {kernel.id: kernel.reasons for kernel in kernels.list(*packed.problem) if kernel.reasons}
                shape, scheme, packing_format = packed.weight_shape, packed.scheme, info["packing_format"]
                layers.append(LayerExplanation(full_name, shape, scheme, info["kernel"], packing_format, rejected))
            elif isinstance(module, torch.nn.Linear) and parameter_name == "weight":
                n, k = parameter.shape
                state = "not quantized" if observer_of(module) is None else "prepared, not converted"
                layers.append(LayerExplanation(full_name, (n, k), f"{state} ({parameter.dtype})", "torch"))
    return Explanation(layers)
