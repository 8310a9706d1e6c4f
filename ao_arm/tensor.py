"""The tensor subclass that replaces ``nn.Linear.weight``: it holds the packed weight and sends ``F.linear`` to the op.

On a torchao that has AffineQuantizedTensor (up to 0.17) the class is the ``tensor_impl`` of one, with
``ACLPackedLayout`` as a registered layout; from 0.18 it is the weight itself. It is the same class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchao.utils import TorchAOBaseTensor

from . import _ops, kernels
from .layout import HAS_AQT, ACLPackedLayout
from .packing import Packed, Plain, pack, problem_of, unpack
from .plain import checked_grouped, checked_int8
from .quantize import check_group_size, quantize_weight, quantize_weight_in_groups

_Base: Any = TorchAOBaseTensor
if HAS_AQT:
    from torchao.dtypes.utils import AQTTensorImpl

    _Base = AQTTensorImpl

#: The inner tensors; all but the first may be None.
_INNER = ("packed_weight", "weight_scale", "act_pre_scale", "act_scale", "act_zero_point")
_linear_int8_dynamic = _ops.linear_int8_dynamic
_linear_int8_static = _ops.linear_int8_static
_linear_qta8a_qga4w = _ops.linear_qta8a_qga4w
_is_autocast_enabled = torch.is_autocast_enabled


class ACLPackedTensor(_Base):
    """A quantized weight (n, k), kept in the packed form of the kernel that was chosen for it.

    To torchao it shows plain contents, so that whatever is written of it can be read on any CPU: ``qdata`` is unpacked
    when it is asked for, and the constructor packs.

    Args:
        qdata: (n, k) int8 in [-127, 127]; in [-8, 7] for 4-bit weights.
        scale: (n,) float32, one for each output channel (all equal if the weight is quantized per tensor);
            (n, k / group_size) for 4-bit weights.
        _layout: how weight and activations are quantized.
        weight_dtype: the dtype of the weight that was quantized, and of what ``dequantize`` returns.
        act_pre_scale: multiplied into activations before they are quantized (SmoothQuant), or None.
        act_scale: (1,) float32, the scale of static activations; None for dynamic ones.
        act_zero_point: (1,) of the activations' dtype, int8 or uint8; None for dynamic ones.
        zero_point: (n, k / group_size) int8 in [-8, 7] for asymmetric 4-bit weights, else None.

    Attributes:
        packed_weight: the packed bytes, uint8, with a header that names kernel and shape.
        weight_scale: the scales, as the kernel reads them; None if they are among the packed bytes.
        weight_shape: (n, k).
        transposed: whether this tensor stands for the transpose, (k, n): what ``w.t()`` gives.
        tensor_data_names, optional_tensor_data_names, tensor_attribute_names: the arguments of the constructor that
            torchao's safetensors support stores.
    """

    packed_weight: Tensor
    weight_scale: Tensor | None
    act_pre_scale: Tensor | None
    act_scale: Tensor | None
    act_zero_point: Tensor | None
    weight_shape: tuple[int, int]
    weight_dtype: torch.dtype
    transposed: bool
    _layout: ACLPackedLayout
    _symmetric: bool
    _per_token: bool
    _is_param: bool  # torch's mark of what is a parameter

    tensor_data_names = ["qdata", "scale"]  # noqa: RUF012 (torchao wants lists)
    optional_tensor_data_names = ["act_pre_scale", "zero_point"]  # noqa: RUF012
    # Two numbers rather than two tensors: transformers knows tensors of certain names only.
    tensor_attribute_names = ["_layout", "weight_dtype", "act_quantization"]  # noqa: RUF012

    def __new__(
        cls,
        qdata: Tensor,
        scale: Tensor,
        _layout: ACLPackedLayout,
        weight_dtype: torch.dtype,
        act_pre_scale: Tensor | None = None,
        act_scale: Tensor | None = None,
        act_zero_point: Tensor | None = None,
        zero_point: Tensor | None = None,
    ) -> ACLPackedTensor:
        """Packs for the kernel that serves this weight here; for the arguments see the class.

        Raises:
            ValueError: if no kernel serves it, or if the layout and the tensors that belong to it do not fit.
        """
        if (zero_point is not None) != (_layout.weight_mapping == "asymmetric"):
            raise ValueError(f"zero_point belongs to asymmetric 4-bit weights, not to {_layout.weight_mapping} ones")
        _check_activations(_layout, act_scale, act_zero_point)
        n, k = qdata.shape
        packed = pack(Plain(qdata, scale, zero_point), _layout)
        inner = (packed.packed_weight, packed.weight_scale, act_pre_scale, act_scale, act_zero_point)
        return cls._wrap(dict(zip(_INNER, inner, strict=True)), _layout, (n, k), weight_dtype)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """``_wrap`` has done everything."""

    @classmethod
    def _wrap(
        cls,
        inner: Mapping[str, Tensor | None],
        layout: ACLPackedLayout,
        weight_shape: tuple[int, int],
        weight_dtype: torch.dtype,
        transposed: bool = False,
    ) -> ACLPackedTensor:
        n, k = weight_shape
        packed_weight: Any = inner["packed_weight"]
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, (k, n) if transposed else (n, k), dtype=weight_dtype, device=packed_weight.device, requires_grad=False
        )
        for name in _INNER:
            setattr(made, name, inner.get(name))
        made._layout = layout
        made.weight_shape = (n, k)
        made.weight_dtype = weight_dtype
        made.transposed = transposed
        # What linear reads on each call, as plain attributes: reading a tensor's shape or dtype costs microseconds.
        made._symmetric = layout.activation_mapping == "symmetric"
        made._per_token = layout.activation_granularity == "per_token"
        result: ACLPackedTensor = made
        return result

    def _inner(self) -> dict[str, Tensor]:
        """The tensors that it consists of."""
        return {name: inner for name in _INNER if (inner := getattr(self, name)) is not None}

    def _rewrap(self, function: Callable[[Tensor], Tensor] | None = None, **changes: Any) -> ACLPackedTensor:
        """A copy with ``function`` applied to each inner tensor and some of ``_wrap``'s arguments changed."""
        inner = self._inner()
        arguments = {
            "inner": inner if function is None else {name: function(tensor) for name, tensor in inner.items()},
            "layout": self._layout,
            "weight_shape": self.weight_shape,
            "weight_dtype": self.weight_dtype,
            "transposed": self.transposed,
        }
        return ACLPackedTensor._wrap(**{**arguments, **changes})

    _apply_fn_to_data = _rewrap

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        attributes = ("_layout", "weight_shape", "weight_dtype", "transposed")
        return list(self._inner()), {name: getattr(self, name) for name in attributes}

    @classmethod
    def __tensor_unflatten__(
        cls, inner: Mapping[str, Tensor | None], attributes: dict[str, Any], outer_size: Any, outer_stride: Any
    ) -> ACLPackedTensor:
        layout, shape, dtype, transposed = attributes.values()
        return cls._wrap(inner, layout, shape, dtype, transposed)

    def _stable_hash_for_caching(self) -> str:
        """For the key of torch.compile's cache: what a graph depends on, which is everything but the values."""
        tensors = [(name, t.shape, t.stride(), t.dtype, t.device) for name, t in self._inner().items()]
        contents = (self.shape, self.requires_grad, self._layout, self.weight_dtype, self.transposed, tensors)
        return hashlib.sha256(repr(contents).encode()).hexdigest()

    # --- making one ---

    @classmethod
    def from_hp(
        cls,
        weight: Tensor,
        layout: ACLPackedLayout | None = None,
        act_scale: Tensor | None = None,
        act_zero_point: Tensor | None = None,
        search: bool = False,
    ) -> ACLPackedTensor:
        """Quantizes and packs a float weight.

        Args:
            weight: (n, k), float32, bfloat16 or float16, on the CPU.
            layout: how to quantize; the default is symmetric per-token activations x per-channel weights.
            act_scale, act_zero_point: of static activations, as for the constructor.
            search: whether to search for the scales of 4-bit groups, as ``quantize_weight_in_groups`` says.

        Raises:
            ValueError: if the weight has another shape or dtype, holds NaN or infinity, or no kernel can serve it.
            NotImplementedError: if it is on another device.
        """
        layout = ACLPackedLayout() if layout is None else layout
        check_weight(weight)
        with torch.no_grad():
            if layout.is_grouped:
                check_group_size(weight.shape[1], layout.group_size)
                qdata, scale, zero_point = quantize_weight_in_groups(
                    weight.detach(),
                    layout.group_size,
                    layout.weight_mapping == "symmetric",
                    getattr(torch, layout.scale_dtype),
                    search,
                )
                return cls(qdata, scale, layout, weight.dtype, zero_point=zero_point)
            qdata, scale = quantize_weight(weight.detach(), layout.weight_granularity == "per_channel")
            return cls(qdata, scale, layout, weight.dtype, None, act_scale, act_zero_point)

    @classmethod
    def from_plain(
        cls,
        data: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        _layout: ACLPackedLayout,
        dtype: torch.dtype = torch.float32,
        act_scale: Tensor | None = None,
        act_zero_point: Tensor | None = None,
    ) -> ACLPackedTensor:
        """Packs a weight that is already quantized.

        Args:
            data: (n, k) int8 in [-127, 127]. For 4-bit weights int8 in [-8, 7] or, as GPTQ and AWQ count, uint8 in
                [0, 15].
            scale: n positive numbers, or one for the whole weight; (n, k / group_size) numbers for 4-bit weights.
            zero_point: None or zeros for symmetric weights. (n, k / group_size) integers in the range of ``data`` for
                asymmetric 4-bit ones.
            _layout: how activations are quantized, and which kind of weight it is; the granularity of int8 weights is
                taken from ``scale``, and whether 4-bit ones are symmetric from ``zero_point``.
            dtype: the dtype that the tensor shows.
            act_scale, act_zero_point: of static activations, as for the constructor.

        Raises:
            ValueError: if a tensor has another shape, dtype or range.
            NotImplementedError: if a zero point of int8 weights is not 0, or a tensor is not on the CPU.
        """
        if dtype not in _ops.FLOATS:
            raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
        for name, tensor in (("data", data), ("scale", scale), ("zero_point", zero_point)):
            if tensor is not None and tensor.device.type != "cpu":
                raise NotImplementedError(f"{name} is on the device {tensor.device}, and ao_arm packs on the CPU")
        plain, layout = (checked_grouped if _layout.is_grouped else checked_int8)(data, scale, zero_point, _layout)
        return cls(plain.qdata, plain.scale, layout, dtype, None, act_scale, act_zero_point, plain.zero_point)

    # --- looking into one ---

    @property
    def scheme(self) -> str:
        """Activation and weight quantization in words."""
        return f"{self._layout.scheme.replace('_', ' ')} ({self._layout.extra_repr()})"

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
        return sum(int(tensor.nbytes) for tensor in self._inner().values())

    @property
    def problem(self) -> kernels.Problem:
        """What the kernel was chosen for."""
        return problem_of(*self.weight_shape, self._layout)

    def plain(self) -> Plain:
        """Exactly what was packed; reading its parts one by one would unpack for each."""
        return unpack(Packed(self._bytes(), self.weight_scale), *self.weight_shape, self._layout)

    @property
    def qdata(self) -> Tensor:
        """Exactly the integers (n, k) that were packed, int8."""
        return self.plain().qdata

    @property
    def scale(self) -> Tensor:
        """The scales: (n,) float32, or (n, k / group_size) of 4-bit weights."""
        return self.plain().scale if self.weight_scale is None else self.weight_scale

    @property
    def zero_point(self) -> Tensor | None:
        """The zero points of asymmetric 4-bit weights, (n, k / group_size) int8, or None."""
        return self.plain().zero_point if self._layout.weight_mapping == "asymmetric" else None

    def get_plain(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Exactly the integers (n, k) that were packed, their scales ((1,) if per tensor), and zero points."""
        plain = self.plain()
        return (
            plain.qdata,
            plain.scale[:1] if self._layout.weight_granularity == "per_tensor" else plain.scale,
            (plain.zero_point),
        )

    @property
    def act_quantization(self) -> list[float] | None:
        """The scale and the zero point of static activations as numbers, or None."""
        if self.act_scale is None or self.act_zero_point is None:
            return None
        return [float(self.act_scale), int(self.act_zero_point)]

    def get_layout(self) -> ACLPackedLayout:
        """How the weight is quantized, and the activations that meet it."""
        return self._layout

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        """``(q - zero_point) * scale`` in float32, rounded to ``output_dtype`` (default: the weight's); (n, k)."""
        plain, (n, k) = self.plain(), self.weight_shape
        groups = plain.qdata.to(torch.float32).view(n, -1, self._layout.group_size or k)
        if plain.zero_point is not None:
            groups = groups - plain.zero_point[..., None].to(torch.float32)
        scale = plain.scale.to(torch.float32).view(n, -1, 1)
        weight = (groups * scale).view(n, k).to(output_dtype or self.weight_dtype)
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
        for inner in self._inner().values():
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
    if weight.dtype not in _ops.FLOATS:
        raise ValueError(f"its dtype must be float32, bfloat16 or float16, not {weight.dtype}")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"it must be a matrix (n, k) with n and k of at least 1, not of shape {tuple(weight.shape)}")


def _check_activations(layout: ACLPackedLayout, scale: Tensor | None, zero_point: Tensor | None) -> None:
    """Raises ``ValueError`` unless static activations have a scale and a zero point as the kernels take them."""
    if not layout.is_static:
        if scale is not None or zero_point is not None:
            raise ValueError(f"act_scale and act_zero_point belong to static activations, not to {layout.scheme}")
        return
    for name, tensor, dtype in (
        ("act_scale", scale, torch.float32),
        ("act_zero_point", zero_point, getattr(torch, layout.activation_dtype)),
    ):
        given = "None" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != (1,):
            raise ValueError(f"{name} of {layout.scheme} activations must be {dtype} of shape (1,), not {given}")


def linear(input: Tensor, weight: ACLPackedTensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` for a packed weight: one fused call that quantizes ``input``, multiplies, scales and adds the bias.

    Args:
        input: (..., k), float32, bfloat16 or float16. Under CPU autocast, float32 becomes the autocast dtype. For
            static activations also already quantized, of ``act_zero_point``'s dtype.
        weight: (n, k).
        bias: (n,) or None.

    Returns:
        (..., n) of the input's dtype; float32 if that is quantized.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, or the packed bytes cannot be read here.
    """
    if type(weight) is not ACLPackedTensor or weight.transposed:
        raise NotImplementedError("F.linear takes an ACLPackedTensor as its weight only, and not a transposed one")
    if _is_autocast_enabled("cpu") and input.dtype is torch.float32:
        input = input.to(torch.get_autocast_dtype("cpu"))
    if weight.act_pre_scale is not None:
        if not input.is_floating_point():
            raise ValueError(f"this weight has an act_pre_scale, for floats, but its input is {input.dtype}")
        input = (input * weight.act_pre_scale).to(input.dtype)
    try:
        result: Tensor
        if weight.weight_scale is None:
            result = _linear_qta8a_qga4w(
                input, weight.packed_weight, weight.weight_shape[0], bias, None, None, None, None
            )
        elif weight.act_scale is None:
            result = _linear_int8_dynamic(
                input, weight.packed_weight, weight.weight_scale, bias, weight._symmetric, weight._per_token
            )
        else:
            result = _linear_int8_static(
                input, weight.packed_weight, weight.weight_scale, bias, weight.act_scale, weight.act_zero_point
            )
        return result
    except RuntimeError as error:
        if weight.weight_scale is None and input.dtype not in _ops.FLOATS:  # the op takes more, with scales
            raise ValueError(f"input must be float32, bfloat16 or float16, not {input.dtype}") from None
        raise _ops.user_error(error) from None


def linear_static(
    input: Tensor,
    weight: ACLPackedTensor,
    bias: Tensor | None = None,
    output_scale: Tensor | None = None,
    output_zero_point: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    output_min: float | None = None,
    output_max: float | None = None,
) -> Tensor:
    """A static layer of which the input may be quantized already, and the output be quantized as well.

    For the arguments see ``ao_arm.reference.linear_int8_static``; scale and zero point of the input are the weight's.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, or the packed bytes cannot be read here.
    """
    if weight.act_pre_scale is not None:
        input = (input * weight.act_pre_scale).to(input.dtype)
    result: Tensor = _ops.call(
        _linear_int8_static,
        *(input, weight.packed_weight, weight.weight_scale, bias, weight.act_scale, weight.act_zero_point),
        *(output_scale, output_zero_point, output_dtype, output_min, output_max),
    )
    return result
