"""What a packed weight is and how the activations that meet it are quantized: plain data that tensors carry along.

On a torchao that has AffineQuantizedTensor (up to 0.17) the class is a genuine ``Layout``.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

_LayoutBase: Any = object
try:
    from torchao.dtypes.utils import Layout

    _LayoutBase = Layout
    HAS_AQT = True
except ImportError:  # torchao 0.18 and newer
    HAS_AQT = False

#: What the int8 schemes say of their weights.
_INT8_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "weight_granularity": ("per_channel", "per_tensor"),
    "weight_mapping": ("symmetric",),
    "scale_dtype": ("float32",),
    "group_size": (0,),
}
#: Each scheme's accepted values.
_ACCEPTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "int8_dynamic": {
        "activation_mapping": ("symmetric", "asymmetric", "symmetric_127"),
        "activation_granularity": ("per_token", "per_tensor"),
        "activation_dtype": ("int8",),
        **_INT8_WEIGHTS,
    },
    "int8_static": {
        "activation_mapping": ("symmetric", "asymmetric"),
        "activation_granularity": ("per_tensor",),
        "activation_dtype": ("int8", "uint8"),
        **_INT8_WEIGHTS,
    },
    "int4_grouped": {
        "activation_mapping": ("asymmetric",),
        "activation_granularity": ("per_token",),
        "activation_dtype": ("int8",),
        "weight_granularity": ("per_group",),
        "weight_mapping": ("symmetric", "asymmetric"),
        "scale_dtype": ("bfloat16", "float32"),
    },
}


def whole_number(value: Any) -> int | None:
    """An integer of any library as Python's; None of what is none, such as a bool."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class ACLPackedLayout(_LayoutBase):
    """How a packed weight is quantized, and how the activations that meet it are.

    Attributes:
        activation_mapping: "symmetric" (zero point 0) or "asymmetric"; "symmetric_127" of layers that torchao up to
            0.17 quantized, with max / 127 as the scale of a token and not max / 127.5.
        activation_granularity: "per_token" or "per_tensor"; static activations are "per_tensor".
        weight_granularity: "per_channel" or "per_tensor"; 4-bit weights are "per_group".
        scheme: "int8_dynamic": activations are quantized by their own range, as they come; "int8_static": by a scale
            and a zero point that are known beforehand; "int4_grouped": as in "int8_dynamic", but weights have 4 bits.
        activation_dtype: "int8", or "uint8" for static asymmetric activations.
        group_size: how many weights along k share a scale; 0 for int8 weights, which have no groups.
        weight_mapping: "symmetric", or "asymmetric" for 4-bit weights with zero points.
        scale_dtype: of the weights' scales: "float32", or "bfloat16" for 4-bit weights.

    Raises:
        ValueError: for any other value.
    """

    activation_mapping: str = "symmetric"
    activation_granularity: str = "per_token"
    weight_granularity: str = "per_channel"
    scheme: str = "int8_dynamic"
    activation_dtype: str = "int8"
    group_size: int = 0
    weight_mapping: str = "symmetric"
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.scheme not in _ACCEPTED:
            raise ValueError(f"scheme must be one of {tuple(_ACCEPTED)}, not {self.scheme!r}")
        for name, accepted in _ACCEPTED[self.scheme].items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {accepted} for {self.scheme}, not {getattr(self, name)!r}")
        if self.scheme == "int4_grouped":
            group_size = whole_number(self.group_size)
            if group_size is None or group_size < 1:
                raise ValueError(f"group_size must be at least 1 for {self.scheme}, not {self.group_size!r}")
            object.__setattr__(self, "group_size", group_size)
        if self.activation_mapping == "symmetric_127" and self.activation_granularity != "per_token":
            raise ValueError(
                "activation_mapping 'symmetric_127' is per token: activation_granularity must be 'per_token'"
            )
        if self.activation_dtype == "uint8" and self.activation_mapping == "symmetric":
            raise ValueError("uint8 activations have a zero point: activation_mapping must be 'asymmetric'")

    @property
    def is_static(self) -> bool:
        """Whether the scale of activations is part of the weight."""
        return self.scheme == "int8_static"

    @property
    def is_grouped(self) -> bool:
        """Whether weights have 4 bits and a scale for each group along k."""
        return self.scheme == "int4_grouped"

    def extra_repr(self) -> str:
        """The layout in words."""
        dtype = f" {self.activation_dtype}" if self.is_static else ""
        weights = self.weight_granularity
        if self.is_grouped:
            weights = f"{self.weight_mapping} groups of {self.group_size}, {self.scale_dtype} scales"
        return f"{self.activation_mapping}{dtype}, {self.activation_granularity} x {weights}"
