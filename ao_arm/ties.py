"""A packed weight that is assigned floats again, as transformers' ``tie_weights()`` does: it stays, or one is told."""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from .experts import is_packed

#: Where a parameter that holds a packed weight keeps what the floats were that it was quantized from. No reference to
#: them, as torch cannot swap tensors that have weak ones.
_SOURCE = "_quantized_from"


def keep_tied(packed: Tensor, floats: Tensor) -> None:
    """Remembers what a weight was quantized from: to tie it to that again changes nothing.

    Args:
        packed: the parameter that took the place of ``floats``; copies of it do not remember.
        floats: a parameter, which another module may share.
    """
    setattr(packed, _SOURCE, _identity(floats))


def _identity(floats: Tensor) -> tuple[Any, ...]:
    rows: Any = torch.hash_tensor(floats.detach(), dim=-1).numpy()
    return tuple(floats.shape), floats.dtype, zlib.crc32(rows)


def _before_registration(module: torch.nn.Module, name: str, parameter: Tensor | None) -> Tensor | None:
    """What torch calls whenever a module is assigned a parameter; what it returns is taken instead."""
    old = module._parameters.get(name)
    if old is None or type(parameter) is not torch.nn.Parameter or not is_packed(old):
        return None
    source = getattr(old, _SOURCE, None)
    if source is not None and parameter.device.type == "cpu" and source == _identity(parameter):
        return old
    warnings.warn(
        f"the packed parameter '{name}' of {type(module).__name__}({type(module).extra_repr(module)}) is replaced by a "
        f"{parameter.dtype} one, so that this layer computes in floats again. If tie_weights() did it: quantize_ "
        "afterwards, or set the model's config.tie_word_embeddings = False. To replace it on purpose, delete it first",
        stacklevel=4,
    )
    return None


register_module_parameter_registration_hook(_before_registration)  # type: ignore[arg-type]
