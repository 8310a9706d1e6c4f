"""Passes over models that ao_arm quantized."""

from .chains import chain_static_layers

__all__ = ["chain_static_layers"]
