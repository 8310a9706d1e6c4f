"""What share of a model's parameters is quantized, what holds the rest, and why that is not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import stock_modules
from .calibration import observer_of
from .experts import is_packed
from .module_weights import quantizable, weights_of
from .pack_model import Found, find


@dataclass(frozen=True)
class Holder:
    """Parameters that ao_arm does not serve, of one kind.

    Attributes:
        name: of the modules' class and the parameter, such as "Embedding.weight".
        why: why they are not quantized, and what can be done.
        parameters: how many numbers they are.
        places: the names of the modules, each once for each parameter.
    """

    name: str
    why: str
    parameters: int
    places: tuple[str, ...]


@dataclass(frozen=True)
class Coverage:
    """The parameters of a model: prints as a line for all, and one for each kind of what is not quantized.

    A parameter that modules share counts once; quantized ones count as many as they stand for.

    Attributes:
        parameters: how many numbers there are.
        quantized: how many of them ao_arm packed.
        rest: who holds the others, the most first.
    """

    parameters: int = 0
    quantized: int = 0
    rest: tuple[Holder, ...] = ()

    @property
    def share(self) -> float:
        """What part of all parameters ao_arm packed, from 0 to 1."""
        return self.quantized / self.parameters if self.parameters else 0.0

    def __str__(self) -> str:
        if not self.parameters:
            return ""
        first = f"{self._percent(self.quantized)} of {_counted(self.parameters)} parameters quantized by ao_arm"
        if self.rest:
            first += "; not: " + ", ".join(
                f"{holder.name} {self._percent(holder.parameters)}" for holder in self.rest[:4]
            )
            left = sum(holder.parameters for holder in self.rest[4:])
            first += f", others {self._percent(left)}" if left else ""
        lines = [first]
        for holder in self.rest:
            where = (
                holder.places[0] if len(holder.places) == 1 else f"{holder.places[0]} and {len(holder.places) - 1} more"
            )
            lines.append(f"  {holder.name} ({_counted(holder.parameters)}; {where or 'the model'}): {holder.why}")
        return "\n".join(lines)

    def _percent(self, parameters: int) -> str:
        share = 100 * parameters / self.parameters
        return (
            f"{share:.0f}%"
            if share in (0.0, 100.0) or 1 <= share <= 99
            else f"{share:.2g}%"
            if share < 1
            else f"{share:.1f}%"
        )


@dataclass
class _Kind:
    parameters: int = 0
    places: list[str] = field(default_factory=list)


def _counted(parameters: int) -> str:
    """In words: 950, 12.3 k, 124.4 M, 46.7 G."""
    for factor, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if parameters >= factor:
            return f"{parameters / factor:.1f}{unit}"
    return str(parameters)


def coverage_of(model: torch.nn.Module) -> Coverage:
    """Counts a model's parameters, and what torch.ao's quantized modules hold in place of parameters."""
    stock = {place.name: found for found in find(model) for place in found.places}
    total, quantized = 0, 0
    counted: dict[tuple[str, str], _Kind] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        for holder, why, thing, numbers in _parts(name, module, stock):
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            total += numbers
            if not why:
                quantized += numbers
                continue
            kind = counted.setdefault((holder, why), _Kind())
            kind.parameters += numbers
            kind.places.append(name)
    rest = [Holder(holder, why, kind.parameters, tuple(kind.places)) for (holder, why), kind in counted.items()]
    return Coverage(total, quantized, tuple(sorted(rest, key=lambda holder: -holder.parameters)))


def _parts(name: str, module: torch.nn.Module, stock: dict[str, Found]) -> Iterator[tuple[str, str, object, int]]:
    """Of each parameter of a module: who holds it, why it is not quantized ("" if it is), itself, how many numbers."""
    kind = type(module).__name__
    if stock_modules.source_of(module) is not None:
        yield kind, _why_stock(stock[name]), module, math.prod(stock[name].shape)
        return
    for parameter_name, parameter in module.named_parameters(recurse=False):
        found = stock.get(name if parameter_name == "weight" else f"{name}.{parameter_name}".lstrip("."))
        if is_packed(parameter):
            yield kind, "", parameter, parameter.numel()
        elif found is not None:
            yield f"{kind}.{parameter_name}", _why_stock(found), parameter, math.prod(found.shape)
        elif parameter.dim() < 2:
            yield "biases and norms", "vectors stay floats", parameter, parameter.numel()
        else:
            yield f"{kind}.{parameter_name}", _why(module, parameter_name, parameter), parameter, parameter.numel()


def _why_stock(found: Found) -> str:
    try:
        found.check()
    except (ValueError, NotImplementedError) as error:
        return f"quantized by {found.source}; {error}"
    return f"quantized by {found.source}: ao_arm.pack_(model) takes it over"


_CONVOLUTIONS = torch.nn.modules.conv._ConvNd


def _why(module: torch.nn.Module, parameter_name: str, parameter: Tensor) -> str:
    """Why a parameter of at least two dimensions is not quantized."""
    if observer_of(module) is not None:
        return "prepared, not converted: quantize_ with step='convert'"
    if isinstance(module, torch.nn.Linear) and quantizable(module):
        return "was not chosen, or quantize_ was not called"
    if isinstance(module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "quantize_(..., filter_fn=ao_arm.quantizable) takes it with its nn.MultiheadAttention"
    if any(weight.name == parameter_name for weight in weights_of(module)):
        return "quantize_(..., filter_fn=ao_arm.quantizable) takes it; torchao's default takes nn.Linear alone"
    if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
        return "an embedding looks up rows, it does not multiply"
    if isinstance(module, _CONVOLUTIONS):
        return "ao_arm has no kernels for convolutions"
    if parameter.dim() == 3:
        return "ao_arm does not know how this module multiplies by 3-D weights"
    return "ao_arm does not know how this module uses it; if by F.linear, name it in an FqnToConfig"
