"""A packed weight that is assigned floats again, as transformers' ``tie_weights()`` does: it stays, or one is told."""

from __future__ import annotations

import warnings
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from .affine_quantized import packed_weight_of


class _Source(NamedTuple):
    """The floats that a weight was quantized from, and how often they had been changed until then."""

    floats: weakref.ref[Tensor]
    version: int


#: By the parameter that holds a packed weight.
_sources: Any = WeakIdKeyDictionary()


def keep_tied(packed: Tensor, floats: Tensor) -> None:
    """Remembers what a weight was quantized from: to tie it to that again changes nothing.

    Args:
        packed: the parameter that took the place of ``floats``.
        floats: a parameter, which another module may share. It is not kept alive.
    """
    _sources[packed] = _Source(weakref.ref(floats), _version(floats))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _before_registration(module: torch.nn.Module, name: str, parameter: Tensor | None) -> Tensor | None:
    """What torch calls whenever a module is assigned a parameter; what it returns is taken instead."""
    old = module._parameters.get(name)
    if old is None or parameter is None or type(parameter) is not torch.nn.Parameter or packed_weight_of(old) is None:
        return None
    source = _sources.get(old)
    if source is not None and source.floats() is parameter and source.version == _version(parameter):
        return old
    warnings.warn(
        f"the packed parameter '{name}' of {type(module).__name__}({type(module).extra_repr(module)}) is replaced by a "
        f"{parameter.dtype} one, so that this layer computes in floats again. If tie_weights() did it: quantize_ "
        "afterwards, or set the model's config.tie_word_embeddings = False. To replace it on purpose, delete it first",
        stacklevel=4,
    )
    return None


register_module_parameter_registration_hook(_before_registration)  # type: ignore[arg-type]
