"""Passes over models that ao_arm quantized, and over graphs that other tools quantized."""

from .chains import chain_static_layers
from .compiler import compiled_reports, register_with_inductor
from .fusion import FusedLayer, FusionReport, fuse, fuse_

__all__ = [
    "FusedLayer",
    "FusionReport",
    "chain_static_layers",
    "compiled_reports",
    "fuse",
    "fuse_",
    "register_with_inductor",
]
