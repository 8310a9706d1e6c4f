"""``pack_``: weights that stock tools quantized become packed ones, without being quantized again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from . import kernels, progress, stock_modules, stock_weights, text_table
from .affine_quantized import as_weight
from .handlers import put_weight
from .tensor import ACLPackedTensor


@dataclass(frozen=True)
class PackedEntry:
    """A weight that ``pack_`` found.

    Attributes:
        name: of the layer in the model; of the parameter if that is not the layer's ``weight``.
        shape: (n, k) of a linear layer's weight.
        source: the class that held the integers, such as "torchao's Int8Tensor".
        scheme: how the packed layer quantizes activations and weights; empty if the weight was left.
        reason: why it was left; empty if it was taken.
        note: what the packed layer computes in another way than before; mostly empty.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    scheme: str = ""
    reason: str = ""
    note: str = ""


class PackReport(tuple[PackedEntry, ...]):
    """What ``pack_`` found in a model; prints as a table, with the reasons and notes below."""

    @property
    def taken(self) -> tuple[PackedEntry, ...]:
        """What ao_arm's kernels serve now."""
        return tuple(entry for entry in self if not entry.reason)

    @property
    def left(self) -> tuple[PackedEntry, ...]:
        """What stayed as it was."""
        return tuple(entry for entry in self if entry.reason)

    def __str__(self) -> str:
        if not self:
            return "no weight of this model was quantized by torchao or torch.ao"
        rows = [
            (entry.name, " x ".join(map(str, entry.shape)), entry.source, entry.scheme or "left as it was")
            for entry in self
        ]
        lines = text_table.with_rule(("layer", "n x k", "quantized by", "packed as"), rows)
        for word in ("reason", "note"):
            by_text: dict[str, list[str]] = {}
            for entry in self:
                by_text.setdefault(getattr(entry, word), []).append(entry.name)
            lines += [f"{word} for {text_table.listed(names)}: {text}" for text, names in by_text.items() if text]
        return "\n".join(lines)


@torch.no_grad()
def pack_(model: torch.nn.Module) -> PackReport:
    """Lets ao_arm's kernels serve what torchao or torch.ao quantized, in place and without quantizing again.

    Linear layers with torchao's ``Int8Tensor``, ``IntxUnpackedToInt8Tensor`` and, up to torchao 0.17,
    ``LinearActivationQuantizedTensor`` get a packed weight of the same integers and scales, as ``quantize_`` with
    ao_arm's configurations puts one there. torch.ao's eager ``nn.quantized.dynamic.Linear``, ``nn.quantized.Linear``
    and their forms with a ReLU are replaced by modules with the same inputs and outputs. Activations are quantized to
    the same integers as before, and outputs differ by the rounding of floats only, those that are quantized by at most
    one step; where that is not so, the report has a note.

    Args:
        model: any module on the CPU. What several layers share is packed once and stays shared.

    Returns:
        What was taken (``report.taken``), and what was left as it was and why (``report.left``); prints as a table.
        What no stock tool quantized does not occur in it.

    Raises:
        ValueError: if ``model`` is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    entries = []
    for found in find(model):
        scheme = reason = note = ""
        try:
            scheme, note = found.take()
            progress.layer_done()
        except (ValueError, NotImplementedError) as error:
            reason = str(error)
        entries += [PackedEntry(place.name, found.shape, found.source, scheme, reason, note) for place in found.places]
    return PackReport(entries)


@dataclass(frozen=True)
class _Place:
    """Where a model has something: ``owner.attribute``; the owner of the model itself is None."""

    name: str
    owner: torch.nn.Module | None
    attribute: str

    def get(self) -> object:
        return getattr(self.owner, self.attribute)

    @property
    def is_linear(self) -> bool:
        return isinstance(self.owner, torch.nn.Linear) and self.attribute == "weight"


@dataclass(frozen=True)
class Found(ABC):
    """What a stock tool quantized: a weight or a layer.

    Holds no reference to it, so that each one's memory is free as soon as it is packed.

    Attributes:
        source: its class in words.
        shape: (n, k) of a linear layer.
        places: where the model has it; several layers may share a weight.
    """

    source: str
    shape: tuple[int, ...]
    places: list[_Place] = field(default_factory=list)

    @abstractmethod
    def check(self) -> None:
        """Raises ``ValueError`` or ``NotImplementedError`` with the reason why it cannot be taken, if there is one."""

    @abstractmethod
    def take(self) -> tuple[str, str]:
        """Puts what is packed in its place; the scheme of that, and a note. Raises what ``check`` does."""


class _FoundWeight(Found):
    """A parameter that torchao quantized."""

    def check(self) -> None:
        self._read().check()

    def take(self) -> tuple[str, str]:
        stock = self._read()
        packed = stock.packed()
        _warn_if_slow(packed, self.places[0].name)
        weight = torch.nn.Parameter(as_weight(packed), requires_grad=False)
        for place in self.places:
            assert place.owner is not None
            put_weight(place.owner, place.attribute, weight)
        return packed.scheme, stock.note

    def _read(self) -> stock_weights.StockWeight:
        for place in self.places:
            if not place.is_linear:
                raise NotImplementedError(_misplaced(place, len(self.places) > 1))
        weight = self.places[0].get()
        assert isinstance(weight, torch.Tensor)
        return stock_weights.read(weight)


class _FoundLayer(Found):
    """A layer that torch.ao quantized."""

    def check(self) -> None:
        self._read()[1].weight.check()

    def take(self) -> tuple[str, str]:
        module, stock = self._read()
        packed = stock.weight.packed()
        _warn_if_slow(packed, self.places[0].name)
        layer = stock.replacement(packed).train(module.training)
        for place in self.places:
            assert place.owner is not None
            setattr(place.owner, place.attribute, layer)
        return layer.scheme, stock.note

    def _read(self) -> tuple[torch.nn.Module, stock_modules.StockLayer]:
        if any(place.owner is None for place in self.places):
            raise NotImplementedError("it is the model itself: put it into a torch.nn.Sequential to have it replaced")
        module = self.places[0].get()
        assert isinstance(module, torch.nn.Module)
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotImplementedError("it has hooks, which would go with it: remove them first")
        return module, stock_modules.read(module)


def find(model: torch.nn.Module) -> list[Found]:
    """What stock tools quantized of a model, in the order of the model."""
    found: dict[int, Found | None] = {}
    for place, thing in _things(model):
        if id(thing) not in found:
            found[id(thing)] = _found(thing)
        if (known := found[id(thing)]) is not None:
            known.places.append(place)
    return [known for known in found.values() if known is not None]


def _found(thing: torch.nn.Module | torch.Tensor) -> Found | None:
    if isinstance(thing, torch.Tensor):
        source = stock_weights.source_of(thing)
        return None if source is None else _FoundWeight(source, tuple(thing.shape))
    source = stock_modules.source_of(thing)
    return None if source is None else _FoundLayer(source, stock_modules.shape_of(thing))


def _things(model: torch.nn.Module) -> Iterator[tuple[_Place, torch.nn.Module | torch.nn.Parameter]]:
    """Every module at every place that it has in a model, and every parameter of each module."""
    seen: set[int] = set()
    for place, module in _modules(_Place("", None, ""), model, ()):
        yield place, module
        if id(module) in seen:
            continue
        seen.add(id(module))
        name = place.name
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            qualified = ".".join(part for part in (name, attribute) if part)
            yield _Place(name if attribute == "weight" else qualified, module, attribute), parameter


def _modules(
    place: _Place, module: torch.nn.Module, around: tuple[torch.nn.Module, ...]
) -> Iterator[tuple[_Place, torch.nn.Module]]:
    """As ``named_modules(remove_duplicate=False)``, which would not end where a module contains itself."""
    if any(module is outer for outer in around):
        return
    yield place, module
    for attribute, child in list(module._modules.items()):
        if child is not None:
            name = f"{place.name}.{attribute}" if place.name else attribute
            yield from _modules(_Place(name, module, attribute), child, (*around, module))


def _misplaced(place: _Place, shared: bool) -> str:
    holder = f"the {place.attribute} of {type(place.owner).__name__}"
    told = f"it is shared with '{place.name}', {holder}" if shared else f"it is {holder}"
    if isinstance(place.owner, torch.nn.Embedding):
        return f"{told}, which looks up rows: packed ones would be unpacked by each call"
    return f"{told}, and ao_arm packs the weights of nn.Linear layers"


def _warn_if_slow(packed: ACLPackedTensor, name: str) -> None:
    kernels.warn_if_slow(packed.kernel, f"the layer '{name}'", *packed.problem)
