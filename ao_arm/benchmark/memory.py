"""What layers and compiled graphs hold in memory: bytes of tensors, counted by what they lie in."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch._subclasses import FakeTensor


def weight_bytes(layers: Iterable[torch.nn.Module]) -> int | None:
    """The bytes of the parameters and buffers of layers; what several share counts once.

    None if there are none: then weights are where they cannot be counted, in another runtime or packed by torch.
    """
    tensors = (tensor for layer in layers for held in (layer.parameters(), layer.buffers()) for tensor in held)
    sizes = _sizes(part for tensor in tensors for part in _parts(tensor))
    return sum(sizes.values()) if sizes else None


def live_tensors() -> Sequence[Tensor]:
    """All tensors with memory of their own that there are now."""
    gc.collect()
    # By its type: some objects import or compute something when they are asked for their class.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and _has_memory(thing)]


def bytes_since(before: Sequence[Tensor], but_for: Tensor) -> int:
    """The bytes of tensors that were not there before, and still are, but for a result.

    Those that were have to be kept until then, so that no others take their places.
    """
    others = _sizes([*before, but_for]).keys()
    return sum(size for place, size in _sizes(live_tensors()).items() if place not in others)


def _has_memory(tensor: Tensor) -> bool:
    """Not those that are made of others, or have no contents."""
    made_of_others = isinstance(tensor, FakeTensor) or hasattr(tensor, "__tensor_flatten__")
    return not made_of_others and tensor.device.type == "cpu"


def _sizes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """The bytes of the memory that tensors lie in, by its address."""
    found: dict[int, int] = {}
    for tensor in tensors:
        if tensor.is_mkldnn:  # as oneDNN packs weights
            found[torch.ops.mkldnn.data_ptr(tensor)] = torch.ops.mkldnn._nbytes(tensor)
        else:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))
