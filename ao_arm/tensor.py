"""The tensor subclass that replaces ``nn.Linear.weight``: it holds the packed weight and sends ``F.linear`` to the op.

On a torchao that has AffineQuantizedTensor (up to 0.17) the class is the ``tensor_impl`` of one, with
``ACLPackedLayout`` as a registered layout; from 0.18 it is the weight itself. It is the same class.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
    from torchao.dtypes.utils import AQTTensorImpl, Layout

    _Base, _LayoutBase = AQTTensorImpl, Layout
    HAS_AQT = True
except ImportError:  # torchao 0.18 and newer
    HAS_AQT = False

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
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
    """An int8 weight (n, k), kept in the packed form of the kernel that was chosen for it.

    To torchao it shows plain contents, so that whatever is written of it can be read on any CPU: ``qdata`` is unpacked
    when it is asked for, and the constructor packs.

    Args:
        qdata: (n, k) int8 in [-127, 127].
        scale: (n,) float32, one for each output channel (all equal if the weight is quantized per tensor).
        _layout: how weight and activations are quantized.
        weight_dtype: the dtype of the weight that was quantized, and of what ``dequantize`` returns.
        act_pre_scale: multiplied into activations before they are quantized (SmoothQuant), or None.

    Attributes:
        packed_weight: the packed bytes, uint8, with a header that names kernel and shape.
        weight_shape: (n, k).
        transposed: whether this tensor stands for the transpose, (k, n): what ``w.t()`` gives.
    """

    packed_weight: Tensor
    scale: Tensor
    act_pre_scale: Tensor | None
    weight_shape: tuple[int, int]
    weight_dtype: torch.dtype
    transposed: bool
    _layout: ACLPackedLayout
    _symmetric: bool
    _per_token: bool

    tensor_data_names = ["qdata", "scale"]  # noqa: RUF012 (torchao wants lists)
    optional_tensor_data_names = ["act_pre_scale"]  # noqa: RUF012
    tensor_attribute_names = ["_layout", "weight_dtype"]  # noqa: RUF012

    def __new__(
        cls,
        qdata: Tensor,
        scale: Tensor,
        _layout: ACLPackedLayout,
        weight_dtype: torch.dtype,
        act_pre_scale: Tensor | None = None,
    ) -> ACLPackedTensor:
        n, k = qdata.shape
        packed = _ops.call(_ops.pack_int8, qdata.contiguous(), kernels.select(n, k))
        full_scale = scale.detach().reshape(-1).to(torch.float32).expand(n).contiguous()
        return cls._wrap(packed, full_scale, _layout, (n, k), weight_dtype, act_pre_scale)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """``_wrap`` has done everything."""

    @classmethod
    def _wrap(
        cls,
        packed_weight: Tensor,
        scale: Tensor,
        layout: ACLPackedLayout,
        weight_shape: tuple[int, int],
        weight_dtype: torch.dtype,
        act_pre_scale: Tensor | None = None,
        transposed: bool = False,
    ) -> ACLPackedTensor:
        n, k = weight_shape
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, (k, n) if transposed else (n, k), dtype=weight_dtype, device=packed_weight.device, requires_grad=False
        )
        made.packed_weight = packed_weight
        made.scale = scale
        made.act_pre_scale = act_pre_scale
        made._layout = layout
        made.weight_shape = (n, k)
        made.weight_dtype = weight_dtype
        made.transposed = transposed
        # What linear reads on each call, as plain attributes: reading a tensor's shape or dtype costs microseconds.
        made._symmetric = layout.activation_mapping == "symmetric"
        made._per_token = layout.activation_granularity == "per_token"
        result: ACLPackedTensor = made
        return result

    def _rewrap(self, function: Callable[[Tensor], Tensor] | None = None, **changes: Any) -> ACLPackedTensor:
        """A copy with ``function`` applied to each inner tensor and some of ``_wrap``'s arguments changed."""
        apply = function or (lambda inner: inner)
        pre_scale = None if self.act_pre_scale is None else apply(self.act_pre_scale)
        arguments = {
            "packed_weight": apply(self.packed_weight),
            "scale": apply(self.scale),
            "layout": self._layout,
            "weight_shape": self.weight_shape,
            "weight_dtype": self.weight_dtype,
            "act_pre_scale": pre_scale,
            "transposed": self.transposed,
        }
        return ACLPackedTensor._wrap(**{**arguments, **changes})

    _apply_fn_to_data = _rewrap

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        inner = ["packed_weight", "scale", *(["act_pre_scale"] if self.act_pre_scale is not None else [])]
        attributes = ("_layout", "weight_shape", "weight_dtype", "transposed")
        return inner, {name: getattr(self, name) for name in attributes}

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], attributes: dict[str, Any], outer_size: Any, outer_stride: Any
    ) -> ACLPackedTensor:
        return cls._wrap(
            inner["packed_weight"],
            inner["scale"],
            attributes["_layout"],
            attributes["weight_shape"],
            attributes["weight_dtype"],
            inner.get("act_pre_scale"),
            attributes["transposed"],
        )

    def _stable_hash_for_caching(self) -> str:
        """For the key of torch.compile's cache: what a graph depends on, which is everything but the values."""
        inner = (self.packed_weight, self.scale, self.act_pre_scale)
        tensors = [None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in inner]
        contents = (self.shape, self.requires_grad, self._layout, self.weight_dtype, self.transposed, tensors)
        return hashlib.sha256(repr(contents).encode()).hexdigest()

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
            return cls(qdata, scale, layout, weight.dtype)

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
            NotImplementedError: if a zero point is not 0, or a tensor is not on the CPU.
        """
        if data.dtype != torch.int8 or data.dim() != 2:
            raise ValueError(f"data must be an int8 matrix (n, k), not {data.dtype} of shape {tuple(data.shape)}")
        if dtype not in _FLOATS:
            raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
        for name, tensor in (("data", data), ("scale", scale), ("zero_point", zero_point)):
            if tensor is not None and tensor.device.type != "cpu":
                raise NotImplementedError(f"{name} is on the device {tensor.device}, and ao_arm packs on the CPU")
        n = data.shape[0]
        if scale.numel() not in (1, n):
            raise ValueError(f"scale must have 1 or n = {n} elements, not {scale.numel()}: groups along k are not int8")
        if not scale.is_floating_point() or not bool((scale.float().isfinite() & (scale.float() > 0)).all()):
            raise ValueError("scale must hold positive, finite floats")
        if zero_point is not None and bool((zero_point != 0).any()):
            raise NotImplementedError("weights with zero points are not supported: quantize symmetrically")
        if data.numel() > 0 and int(data.amin()) < -LARGEST:
            raise ValueError(f"data holds -128; quantize with quant_min=-{LARGEST}, quant_max={LARGEST}")
        per_channel = scale.numel() == n and not (n == 1 and _layout.weight_granularity == "per_tensor")
        layout = dataclasses.replace(_layout, weight_granularity="per_channel" if per_channel else "per_tensor")
        return cls(data, scale, layout, dtype)

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
        return str(json.loads(_ops.call(_ops.packed_weight_info, self._bytes()))["kernel"])

    def _bytes(self) -> Tensor:
        if self.packed_weight.device.type == "meta":
            raise NotImplementedError("this weight is on the meta device and has no values: load a checkpoint first")
        return self.packed_weight

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the weight takes: packed bytes and scales."""
        inner = (self.packed_weight, self.scale, self.act_pre_scale)
        return sum(int(tensor.nbytes) for tensor in inner if tensor is not None)

    @property
    def qdata(self) -> Tensor:
        """Exactly the int8 values (n, k) that were packed."""
        values: Tensor = _ops.call(_ops.unpack_int8, self._bytes())
        return values

    def get_plain(self) -> tuple[Tensor, Tensor, None]:
        """Exactly the int8 values (n, k) that were packed, their scales, (n,) or (1,), and no zero points."""
        return self.qdata, self.scale if self._layout.weight_granularity == "per_channel" else self.scale[:1], None

    def get_layout(self) -> ACLPackedLayout:
        return self._layout

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        """``q * scale`` in float32, rounded to ``output_dtype`` (default: the weight's dtype); (n, k)."""
        weight = (self.qdata.to(torch.float32) * self.scale[:, None]).to(output_dtype or self.weight_dtype)
        return weight.t() if self.transposed else weight

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        # Without bytes to read, as on the meta device or while torch.compile traces, no kernel is known.
        readable = type(self.packed_weight) is Tensor and self.packed_weight.device.type == "cpu"
        where = self.kernel if readable else f"device={self.packed_weight.device}"
        return f"{type(self).__name__}(shape={tuple(self.shape)}, {self.scheme}, {where}, dtype={self.weight_dtype})"

    # --- using one ---

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear:
            return linear(*args, **kwargs) if kwargs else linear(*args)
        if func is torch.Tensor.share_memory_:  # torch would look for a storage of the wrapper, which has none
            return args[0]._share_memory()
        return super().__torch_function__(func, types, args, kwargs)

    def _share_memory(self) -> ACLPackedTensor:
        for inner in (self.packed_weight, self.scale, self.act_pre_scale):
            if inner is not None:
                inner.share_memory_()
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        from .checkpoint import reduce_packed

        return reduce_packed(self)


def check_weight(weight: Tensor) -> None:
    """Raises ``ValueError`` or ``NotImplementedError`` unless ``weight`` is a float matrix on the CPU."""
    if weight.device.type != "cpu":
        todo = "load real values first" if weight.device.type == "meta" else "move the model with .cpu()"
        raise NotImplementedError(f"it is on the device {weight.device}, and ao_arm quantizes on the CPU; {todo}")
    if weight.dtype not in _FLOATS:
        raise ValueError(f"its dtype must be float32, bfloat16 or float16, not {weight.dtype}")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"it must be a matrix (n, k) with n and k of at least 1, not of shape {tuple(weight.shape)}")


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
_Arguments = tuple[Any, ...]
_Keywords = dict[str, Any]


def copy_weight(target: Tensor, source: Tensor) -> None:
    """Copies one packed weight's values into another: what ``load_state_dict`` does without ``assign=True``.

    Raises:
        ValueError: if either is no packed weight, or their shapes or schemes differ.
    """
    if not isinstance(source, ACLPackedTensor):
        raise ValueError(
            f"a {source.dtype} tensor cannot be copied into a weight that ao_arm quantized: load it into the model "
            "before quantize_"
        )
    if not isinstance(target, ACLPackedTensor):
        raise ValueError(
            f"a weight that ao_arm quantized cannot be copied into a {target.dtype} tensor: quantize_ the model first, "
            "or use load_state_dict(..., assign=True)"
        )
    for name in ("weight_shape", "_layout", "transposed"):
        theirs, ours = getattr(source, name), getattr(target, name)
        if theirs != ours:
            raise ValueError(f"a weight with {name.strip('_')} {theirs} cannot be copied into one with {ours}")
    if target.packed_weight.shape == source.packed_weight.shape:
        target.packed_weight.copy_(source.packed_weight)
    else:
        target.packed_weight = source.packed_weight.clone()
    target.scale.copy_(source.scale)
    target.act_pre_scale = None if source.act_pre_scale is None else source.act_pre_scale.clone()


@implements(aten.copy_.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    target: Tensor = args[0]
    copy_weight(target, args[1])
    return target


@implements(aten.linear.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    return linear(*args, **kwargs)


@implements([aten.detach.default, aten.alias.default, aten.clone.default, aten.contiguous.default])
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    copied = args[0]._rewrap(lambda inner: func(inner, *args[1:], **kwargs))
    result: Tensor = return_and_correct_aliasing(func, args, kwargs, copied)
    return result


@implements(aten._to_copy.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    weight: ACLPackedTensor = args[0]
    target = weight._get_to_kwargs(*args[1:], **kwargs)
    device = torch.device(target["device"])
    if device.type not in ("cpu", "meta"):
        raise NotImplementedError(f"an ACLPackedTensor lives on the CPU, not on {device}: dequantize() it to move it")
    if not target["dtype"].is_floating_point:
        raise ValueError(
            f"an ACLPackedTensor stands for floats, not for {target['dtype']}: dequantize() it to convert it"
        )
    return weight._rewrap(lambda inner: inner.to(device, copy=True), weight_dtype=target["dtype"])


@implements([aten.t.default, aten.transpose.int, aten.permute.default])
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    weight: ACLPackedTensor = args[0]
    dims = args[1] if func is aten.permute.default else args[1:] or (1, 0)
    order = [dim % 2 for dim in dims]
    if sorted(order) != [0, 1]:
        raise ValueError(f"an ACLPackedTensor has the dimensions 0 and 1, not {tuple(dims)}")
    swaps = func is not aten.permute.default or order == [1, 0]
    flipped = weight._rewrap(transposed=weight.transposed != swaps)
    result: Tensor = return_and_correct_aliasing(func, args, kwargs, flipped)
    return result


@implements(aten.slice.Tensor)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    """A slice is unpacked, cut and packed again: a tensor of its own, not a view."""
    weight, dim, *bounds = args
    dim = (dim if args[1:] else 0) % 2
    of_k = (dim == 1) != weight.transposed
    qdata = aten.slice.Tensor(weight.qdata, int(of_k), *bounds)
    if qdata.numel() == 0:
        raise ValueError(f"a slice of an ACLPackedTensor must not be empty, as {tuple(qdata.shape)} is")
    scale, pre_scale = weight.scale, weight.act_pre_scale
    if not of_k:
        scale = aten.slice.Tensor(scale, 0, *bounds)
    elif pre_scale is not None and pre_scale.numel() > 1:
        pre_scale = aten.slice.Tensor(pre_scale, pre_scale.dim() - 1, *bounds)
    made = ACLPackedTensor(qdata, scale, weight._layout, weight.weight_dtype, pre_scale)
    return made._rewrap(transposed=weight.transposed)


@implements(aten.embedding.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    """For a weight that a language model shares between its head and its embedding. Dequantizes, so it is slow."""
    weight, indices, *rest = args
    looked_up: Tensor = aten.embedding.default(weight.dequantize(), indices, *rest, **kwargs)
    return looked_up


def _matmul(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``input @ weight + bias`` as compiled graphs write a linear layer: with the weight transposed."""
    if not isinstance(weight, ACLPackedTensor) or not weight.transposed:
        raise NotImplementedError(
            "an ACLPackedTensor multiplies as x @ w.t() or F.linear(x, w) only; dequantize() it for other products"
        )
    return linear(input, weight._rewrap(transposed=False), bias)


@implements(aten.mm.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    return _matmul(args[0], args[1], None)


@implements(aten.addmm.default)
def _(func: Any, types: Any, args: _Arguments, kwargs: _Keywords) -> Tensor:
    if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
        raise NotImplementedError("addmm with an ACLPackedTensor supports alpha = beta = 1 only")
    bias: Tensor
    bias, input, weight = args[:3]
    if bias.dim() != 1:
        return _matmul(input, weight, None) + bias
    return _matmul(input, weight, bias)
