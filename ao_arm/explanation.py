"""What became of a model's linear layers: which kernel serves each, and why no other one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from . import kernels, stock_modules, text_table
from .affine_quantized import packed_weight_of
from .calibration import observer_of
from .pack_model import Found, find


@dataclass(frozen=True)
class LayerExplanation:
    """How one layer is computed.

    Attributes:
        name: the layer's qualified name in the model.
        shape: (n, k) of its weight.
        scheme: how it is quantized, or "not quantized", or "prepared, not converted" if an observer sees its inputs; of
            what torchao or torch.ao quantized, by which class, and whether ``pack_`` takes it over.
        kernel: the kernel's id, or "torch" for layers that are not quantized by ao_arm.
        packing_format: how the kernel arranged the weight.
        rejected: for each kernel that could not be taken, its reasons.
        not_packed: why ``pack_`` would leave what torchao or torch.ao quantized.
    """

    name: str
    shape: tuple[int, int]
    scheme: str
    kernel: str
    packing_format: str = ""
    rejected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    not_packed: str = ""


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
        lines += dict.fromkeys(f"not for ao_arm.pack_: {layer.not_packed}" for layer in self if layer.not_packed)
        return "\n".join(lines)


def explain(model: torch.nn.Module) -> Explanation:
    """Per linear layer: the scheme, the kernel chosen when its weight was packed, and why each other one was not.

    Args:
        model: any module; layers that ao_arm did not quantize are listed too.
    """
    stock = {place.name: found for found in find(model) for place in found.places}
    layers = []
    for name, module in model.named_modules():
        if stock_modules.source_of(module) is not None:
            layers += _of_stock(name, stock[name])
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            full_name = f"{name}.{parameter_name}" if parameter_name != "weight" else name
            packed = packed_weight_of(parameter)
            if packed is not None:
                info = packed._info()
                rejected = {kernel.id: kernel.reasons for kernel in kernels.list(*packed.problem) if kernel.reasons}
                scheme = module.scheme if isinstance(module, stock_modules.PackedEagerLinear) else packed.scheme
                shape, packing_format = packed.weight_shape, info["packing_format"]
                layers.append(LayerExplanation(full_name, shape, scheme, info["kernel"], packing_format, rejected))
            elif full_name in stock:
                layers += _of_stock(full_name, stock[full_name])
            elif isinstance(module, torch.nn.Linear) and parameter_name == "weight":
                n, k = parameter.shape
                state = "not quantized" if observer_of(module) is None else "prepared, not converted"
                layers.append(LayerExplanation(full_name, (n, k), f"{state} ({parameter.dtype})", "torch"))
    return Explanation(layers)


def _of_stock(name: str, found: Found) -> list[LayerExplanation]:
    """A layer that a stock tool quantized; nothing if it is no linear one."""
    if len(found.shape) != 2:
        return []
    n, k = found.shape
    scheme, refused = f"quantized by {found.source}", ""
    try:
        found.check()
    except (ValueError, NotImplementedError) as error:
        refused = str(error)
    else:
        scheme += ": ao_arm.pack_(model) takes it over"
    return [LayerExplanation(name, (n, k), scheme, "torch", not_packed=refused)]
