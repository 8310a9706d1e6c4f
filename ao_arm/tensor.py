"""The tensor subclass that replaces ``nn.Linear.weight``: it holds the packed weight and sends ``F.linear`` to the op.

On a torchao that has AffineQuantizedTensor (up to 0.17) the class is the ``tensor_impl`` of one, with
``ACLPackedLayout`` as a registered layout; from 0.18 it is the weight itself. It is the same class.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torchao.utils import TorchAOBaseTensor

from . import _ops, kernels
from .quantize import LARGEST, quantize_weight

_Base: Any = TorchAOBaseTensor
_LayoutBase: Any = object
try:
    from torchao.dtypes.affine_quantized_tensor import AffineQuantizedTensor, register_layout
    from torchao.dtypes.affine_quantized_tensor_ops import register_aqt_quantized_linear_dispatch
    from torchao.dtypes.utils import AQTTensorImpl, Layout
    from torchao.quantization.quant_primitives import ZeroPointDomain

    _Base, _LayoutBase = AQTTensorImpl, Layout
    HAS_AQT = True
except ImportError:  # torchao 0.18 and newer
    HAS_AQT = False

aten = torch.ops.aten
_linear_int8_dynamic = _ops.linear_int8_dynamic
_is_autocast_enabled = torch.is_autocast_enabled


@dataclass(frozen=True)
class ACLPackedLayout(_LayoutBase):
    """How a packed weight is quantized, and how the activations that meet it are.

    Attributes:
        activation_mapping: "symmetric" or "asymmetric".
        activation_granularity: "per_token" or "per_tensor".
        weight_granularity: "per_channel" or "per_tensor".
    """

    activation_mapping: str = "symmetric"
    activation_granularity: str = "per_token"
    weight_granularity: str = "per_channel"

    def __post_init__(self) -> None:
        for name, accepted in (
            ("activation_mapping", ("symmetric", "asymmetric")),
            ("activation_granularity", ("per_token", "per_tensor")),
            ("weight_granularity", ("per_channel", "per_tensor")),
        ):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {accepted}, not {getattr(self, name)!r}")

    def extra_repr(self) -> str:
        return f"{self.activation_mapping}, {self.activation_granularity} x {self.weight_granularity}"


class ACLPackedTensor(_Base):
    """An int8 weight (n, k) in the packed form of the kernel that was chosen for it.

    Attributes:
        packed_weight: the packed bytes, uint8, with a header that names kernel and shape.
        scale: (n,) float32, one for each output channel (all equal if the weight is quantized per tensor).
        act_pre_scale: (k,) multiplied into activations before they are quantized (SmoothQuant), or None.
        weight_shape: (n, k).
        weight_dtype: the dtype of the weight that was quantized, and of what ``dequantize`` returns.
        transposed: whether this tensor stands for the transpose, (k, n): what ``w.t()`` gives.
    """

    tensor_data_names = ["packed_weight", "scale"]  # noqa: RUF012 (torchao copies these lists)
    optional_tensor_data_names = ["act_pre_scale"]  # noqa: RUF012
    tensor_attribute_names = ["_layout", "weight_shape", "weight_dtype"]  # noqa: RUF012
    optional_tensor_attribute_names = ["transposed"]  # noqa: RUF012

    def __new__(
        cls,
        packed_weight: Tensor,
        scale: Tensor,
        _layout: ACLPackedLayout,
        weight_shape: tuple[int, int],
        weight_dtype: torch.dtype,
        act_pre_scale: Tensor | None = None,
        transposed: bool = False,
    ) -> ACLPackedTensor:
        n, k = weight_shape
        made: ACLPackedTensor = torch.Tensor._make_wrapper_subclass(
            cls, (k, n) if transposed else (n, k), dtype=weight_dtype, device=packed_weight.device, requires_grad=False
        )
        return made

    def __init__(
        self,
        packed_weight: Tensor,
        scale: Tensor,
        _layout: ACLPackedLayout,
        weight_shape: tuple[int, int],
        weight_dtype: torch.dtype,
        act_pre_scale: Tensor | None = None,
        transposed: bool = False,
    ) -> None:
        self.packed_weight = packed_weight
        self.scale = scale
        self.act_pre_scale = act_pre_scale
        self._layout = _layout
        n, k = weight_shape
        self.weight_shape = (n, k)
        self.weight_dtype = weight_dtype
        self.transposed = transposed
        # What linear reads on each call, as plain attributes: reading a tensor's shape or dtype costs microseconds.
        self._symmetric = _layout.activation_mapping == "symmetric"
        self._per_token = _layout.activation_granularity == "per_token"

    # --- making one ---

    @classmethod
    def from_hp(cls, weight: Tensor, layout: ACLPackedLayout | None = None) -> ACLPackedTensor:
        """Quantizes and packs a float weight.

        Args:
            weight: (n, k), float32, bfloat16 or float16, on the CPU.
            layout: how to quantize; the default is symmetric per-token activations x per-channel weights.

        Raises:
            ValueError: if the weight has another shape or dtype, holds NaN or infinity, or no kernel can serve it.
            NotImplementedError: if it is on another device.
        """
        layout = ACLPackedLayout() if layout is None else layout
        check_weight(weight)
        with torch.no_grad():
            qdata, scale = quantize_weight(weight.detach(), layout.weight_granularity == "per_channel")
            return cls._from_int8(qdata, scale, layout, weight.dtype)

    @classmethod
    def from_plain(
        cls,
        data: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        _layout: ACLPackedLayout,
        dtype: torch.dtype = torch.float32,
    ) -> ACLPackedTensor:
        """Packs a weight that is already quantized.

        Args:
            data: (n, k) int8 in [-127, 127].
            scale: n positive numbers, or one for the whole weight.
            zero_point: None or zeros: weights are symmetric.
            _layout: how activations are quantized; the weight's granularity is taken from ``scale``.
            dtype: the dtype that the tensor shows.

        Raises:
            ValueError: if a tensor has another shape, dtype or range.
            NotImplementedError: if a zero point is not 0.
        """
        if data.dtype != torch.int8 or data.dim() != 2:
            raise ValueError(f"data must be an int8 matrix (n, k), not {data.dtype} of shape {tuple(data.shape)}")
        n = data.shape[0]
        if scale.numel() not in (1, n):
            raise ValueError(f"scale must have 1 or n = {n} elements, not {scale.numel()}: groups along k are not int8")
        if zero_point is not None and bool((zero_point != 0).any()):
            raise NotImplementedError("weights with zero points are not supported: quantize symmetrically")
        if data.numel() > 0 and int(data.amin()) < -LARGEST:
            raise ValueError(f"data holds -128; quantize with quant_min=-{LARGEST}, quant_max={LARGEST}")
        per_channel = scale.numel() == n and not (n == 1 and _layout.weight_granularity == "per_tensor")
        layout = dataclasses.replace(_layout, weight_granularity="per_channel" if per_channel else "per_tensor")
        return cls._from_int8(data, scale, layout, dtype)

    @classmethod
    def _from_int8(
        cls,
        qdata: Tensor,
        scale: Tensor,
        layout: ACLPackedLayout,
        dtype: torch.dtype,
        act_pre_scale: Tensor | None = None,
    ) -> ACLPackedTensor:
        n, k = qdata.shape
        packed = _ops.call(_ops.pack_int8, qdata.contiguous(), kernels.select(n, k))
        full_scale = scale.detach().reshape(-1).to(torch.float32).expand(n).contiguous()
        return cls(packed, full_scale, layout, (n, k), dtype, act_pre_scale)

    # --- looking into one ---

    @property
    def scheme(self) -> str:
        """Activation and weight quantization in words."""
        layout = self._layout
        return (
            f"int8 dynamic ({layout.activation_mapping}, {layout.activation_granularity} x {layout.weight_granularity})"
        )

    @property
    def kernel(self) -> str:
        """The id of the kernel that the weight is packed for."""
        return str(json.loads(_ops.call(_ops.packed_weight_info, self.packed_weight))["kernel"])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the weight takes: packed bytes and scales."""
        extra = 0 if self.act_pre_scale is None else self.act_pre_scale.nbytes
        return self.packed_weight.nbytes + self.scale.nbytes + extra

    def get_plain(self) -> tuple[Tensor, Tensor, None]:
        """Exactly the int8 values (n, k) that were packed, their scales, (n,) or (1,), and no zero points."""
        scale = self.scale if self._layout.weight_granularity == "per_channel" else self.scale[:1]
        return _ops.call(_ops.unpack_int8, self.packed_weight), scale, None

    def get_layout(self) -> ACLPackedLayout:
        return self._layout

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        """``q * scale`` in float32, rounded to ``output_dtype`` (default: the weight's dtype); (n, k)."""
        qdata, scale, _ = self.get_plain()
        weight = (qdata.to(torch.float32) * scale[:, None]).to(output_dtype or self.weight_dtype)
        return weight.t() if self.transposed else weight

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        where = self.kernel if self.packed_weight.device.type == "cpu" else f"device={self.packed_weight.device}"
        return f"{type(self).__name__}(shape={tuple(self.shape)}, {self.scheme}, {where}, dtype={self.weight_dtype})"

    # --- using one ---

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear:
            return linear(*args, **kwargs) if kwargs else linear(*args)
        return super().__torch_function__(func, types, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        qdata, scale, _ = self.get_plain()
        state = (qdata, scale, self.act_pre_scale, self._layout, self.weight_dtype, self.transposed)
        return _rebuild, (*state, getattr(self, "_is_param", False))


def _rebuild(
    qdata: Tensor,
    scale: Tensor,
    act_pre_scale: Tensor | None,
    layout: ACLPackedLayout,
    dtype: torch.dtype,
    transposed: bool,
    is_param: bool,
) -> ACLPackedTensor:
    """Unpickles: saved tensors hold plain int8 values, which are packed for the CPU at hand."""
    made = ACLPackedTensor._from_int8(qdata, scale, layout, dtype, act_pre_scale)
    if transposed:
        made = made.t()
    if is_param:
        made._is_param = True
    return made


def check_weight(weight: Tensor) -> None:
    """Raises ``ValueError`` or ``NotImplementedError`` unless ``weight`` is a float matrix on the CPU."""
    if weight.device.type != "cpu":
        todo = "load real values first" if weight.device.type == "meta" else "move the model with .cpu()"
        raise NotImplementedError(f"it is on the device {weight.device}, and ao_arm quantizes on the CPU; {todo}")
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"its dtype must be float32, bfloat16 or float16, not {weight.dtype}")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"it must be a matrix (n, k) with n and k of at least 1, not of shape {tuple(weight.shape)}")


def packed_weight_of(tensor: Tensor) -> ACLPackedTensor | None:
    """The ``ACLPackedTensor`` that ``tensor`` is or, as an AffineQuantizedTensor, holds; None if neither."""
    if isinstance(tensor, ACLPackedTensor):
        return tensor
    held = getattr(tensor, "tensor_impl", None) if HAS_AQT and isinstance(tensor, AffineQuantizedTensor) else None
    return held if isinstance(held, ACLPackedTensor) else None


def as_weight(packed: ACLPackedTensor) -> Tensor:
    """What ``quantize_`` puts in place of a weight: an AffineQuantizedTensor where torchao has it, else ``packed``."""
    if not HAS_AQT:
        return packed
    per_channel = packed.get_layout().weight_granularity == "per_channel"
    n, k = packed.weight_shape
    weight: Tensor = AffineQuantizedTensor(
        packed,
        (1 if per_channel else n, k),
        torch.Size((n, k)),
        quant_min=-LARGEST,
        quant_max=LARGEST,
        zero_point_domain=ZeroPointDomain.NONE,
        dtype=packed.weight_dtype,
    )
    return weight


def linear(input: Tensor, weight: ACLPackedTensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` for a packed weight: one fused call that quantizes ``input``, multiplies, scales and adds the bias.

    Args:
        input: (..., k), float32, bfloat16 or float16. Under CPU autocast, float32 becomes the autocast dtype.
        weight: (n, k).
        bias: (n,) or None.

    Returns:
        (..., n) of the input's dtype.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, or the packed bytes cannot be read here.
    """
    if type(weight) is not ACLPackedTensor or weight.transposed:
        raise NotImplementedError("F.linear takes an ACLPackedTensor as its weight only, and not a transposed one")
    if _is_autocast_enabled("cpu") and input.dtype is torch.float32:
        input = input.to(torch.get_autocast_dtype("cpu"))
    if weight.act_pre_scale is not None:
        input = (input * weight.act_pre_scale).to(input.dtype)
    try:
        result: Tensor = _linear_int8_dynamic(
            input, weight.packed_weight, weight.scale, bias, weight._symmetric, weight._per_token
        )
        return result
    except RuntimeError as error:
        raise _ops.user_error(error) from None


implements = ACLPackedTensor.implements


@implements(aten.linear.default)
def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return linear(*args, **kwargs)


@implements(aten.t.default)
def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    weight: ACLPackedTensor = args[0]
    flipped = ACLPackedTensor(
        weight.packed_weight,
        weight.scale,
        weight._layout,
        weight.weight_shape,
        weight.weight_dtype,
        weight.act_pre_scale,
        not weight.transposed,
    )
    result: Tensor = return_and_correct_aliasing(func, args, kwargs, flipped)
    return result


@implements(aten._to_copy.default)
def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    weight: ACLPackedTensor = args[0]
    target = weight._get_to_kwargs(*args[1:], **kwargs)
    device = torch.device(target["device"])
    if device.type not in ("cpu", "meta"):
        raise NotImplementedError(f"an ACLPackedTensor lives on the CPU, not on {device}: dequantize() it to move it")
    copied = weight._apply_fn_to_data(lambda inner: inner.to(device, copy=True))
    return ACLPackedTensor(
        copied.packed_weight,
        copied.scale,
        weight._layout,
        weight.weight_shape,
        target["dtype"],
        copied.act_pre_scale,
        weight.transposed,
    )


def _matmul(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``input @ weight + bias`` as compiled graphs write a linear layer: with the weight transposed."""
    if not isinstance(weight, ACLPackedTensor) or not weight.transposed:
        raise NotImplementedError(
            "an ACLPackedTensor multiplies as x @ w.t() or F.linear(x, w) only; dequantize() it for other products"
        )
    return linear(input, weight.t(), bias)


@implements(aten.mm.default)
def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _matmul(args[0], args[1], None)


@implements(aten.addmm.default)
def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    bias: Tensor
    if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
        raise NotImplementedError("addmm with an ACLPackedTensor supports alpha = beta = 1 only")
    bias, input, weight = args[:3]
    if bias.dim() != 1:
        return _matmul(input, weight, None) + bias
    return _matmul(input, weight, bias)


torch.serialization.add_safe_globals([ACLPackedTensor, ACLPackedLayout, _rebuild])

if HAS_AQT:
    register_layout(ACLPackedLayout)(ACLPackedTensor)
    register_aqt_quantized_linear_dispatch(
        lambda input, weight, bias: packed_weight_of(weight) is not None,
        lambda input, weight, bias: linear(input, weight.tensor_impl, bias),
    )
