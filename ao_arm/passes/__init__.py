"""Passes over models that ao_arm quantized, and over graphs that other tools quantized."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import backend  # noqa: F401 - registers it
from .chains import chain_static_layers

if TYPE_CHECKING:
    from .compiler import compiled_reports, register_with_inductor
    from .fusion import FusedLayer, FusionReport, fuse, fuse_
    from .shared_inputs import SharedInput, share_inputs

__all__ = [
    "FusedLayer",
    "FusionReport",
    "SharedInput",
    "chain_static_layers",
    "compiled_reports",
    "fuse",
    "fuse_",
    "register_with_inductor",
    "share_inputs",
]

#: Imported when they are used first: Inductor, which they need, takes a second.
_MODULES = {
    "compiled_reports": "compiler",
    "register_with_inductor": "compiler",
    **dict.fromkeys(("FusedLayer", "FusionReport", "fuse", "fuse_"), "fusion"),
    **dict.fromkeys(("SharedInput", "share_inputs"), "shared_inputs"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
