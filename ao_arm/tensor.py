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
from torch.utils._pytree import tree_leaves
from torchao.utils import TorchAOBaseTensor

from . import _ops, kernels
from .layout import HAS_AQT, ACLPackedLayout
from .linear import linear
from .nibbles import from_nibbles, to_nibbles
from .packing import Packed, pack, problem_of, unpack
from .plain import Plain, check_activations, checked, quantized
from .torch_functions import overridden

_Base: Any = TorchAOBaseTensor
if HAS_AQT:
    from torchao.dtypes.utils import AQTTensorImpl

    _Base = AQTTensorImpl

#: The inner tensors; all but the first may be None.
_INNER = ("packed_weight", "weight_scale", "act_pre_scale", "act_scale", "act_zero_point")


def check_supported(cls: Any, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises ``NotImplementedError`` unless this class of packed weights implements an op of torch's."""
    if op not in cls._ATEN_OP_TABLE.get(cls, ()):
        weight = next(value for value in tree_leaves((args, kwargs)) if isinstance(value, cls))
        raise unsupported(str(op), getattr(weight, "tensor_impl", weight))


def unsupported(op: str, weight: ACLPackedTensor) -> NotImplementedError:
    """The error of code that asks a packed weight for more than layers do; it names the weight and what to do."""
    return NotImplementedError(
        f"{op} cannot take the packed weight {weight!r}, which can be copied, transposed, sliced, and otherwise "
        "multiplies as x @ w.t() or F.linear(x, w) only. Resize, prune and reparametrize before quantize_; give other "
        "code weight.dequantize(), or leave the layer out of quantize_ with filter_fn. DistributedDataParallel("
        "..., init_sync=False) and fully_shard(..., ignored_params={parameters for which "
        "ao_arm.packed_weight_of(parameter) is not None}) leave packed weights as they are in each process"
    )


#: By how activations are quantized, the argument of the op; None for what the op does not do itself.
_SYMMETRIC = {"symmetric": True, "asymmetric": False}


def _held(argument: Any) -> ACLPackedTensor | None:
    return argument if isinstance(argument, ACLPackedTensor) else None


class ACLPackedTensor(_Base):
    """A quantized weight (n, k), kept in the packed form of the kernel that was chosen for it.

    To torchao it shows plain contents, so that whatever is written of it can be read on any CPU: ``qdata`` is unpacked
    when it is asked for, and the constructor packs.

    Args:
        qdata: (n, k) int8; for 4-bit weights in [-8, 7], or as ``qdata`` shows them, (n, (k + 1) // 2) uint8.
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
    _symmetric: bool | None
    _per_token: bool
    _parts: dict[tuple[int, int, int], ACLPackedTensor]  # what it was split into, by dimension, start and end
    _is_param: bool  # torch's mark of what is a parameter

    tensor_data_names = ["qdata", "scale"]  # noqa: RUF012 (torchao wants lists)
    optional_tensor_data_names = ["act_pre_scale", "zero_point"]  # noqa: RUF012
    # Two numbers rather than two tensors: transformers knows tensors of certain names only.
    tensor_attribute_names = ["_layout", "weight_dtype", "act_quantization", "transposed"]  # noqa: RUF012

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
        check_activations(_layout, act_scale, act_zero_point)
        if _layout.is_grouped and qdata.dtype == torch.uint8:
            qdata = from_nibbles(qdata, scale.shape[-1] * _layout.group_size)
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
        shape, device = (k, n) if transposed else (n, k), packed_weight.device
        with torch.inference_mode(False):  # torch cannot make an inference tensor a view of a weight
            made: Any = torch.Tensor._make_wrapper_subclass(
                cls, shape, dtype=weight_dtype, device=device, requires_grad=False
            )
        for name in _INNER:
            setattr(made, name, inner.get(name))
        made._layout = layout
        made.weight_shape = (n, k)
        made.weight_dtype = weight_dtype
        made.transposed = transposed
        made._parts = {}
        # What linear reads on each call, as plain attributes: reading a tensor's shape or dtype costs microseconds.
        made._symmetric = _SYMMETRIC.get(layout.activation_mapping)
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
    @torch.compiler.disable
    def from_hp(
        cls,
        weight: Tensor,
        layout: ACLPackedLayout | None = None,
        act_scale: Tensor | None = None,
        act_zero_point: Tensor | None = None,
        importance: Tensor | None = None,
    ) -> ACLPackedTensor:
        """Quantizes and packs a float weight.

        Args:
            weight: (n, k), float32, bfloat16 or float16, on the CPU.
            layout: how to quantize; the default is symmetric per-token activations x per-channel weights.
            act_scale, act_zero_point: of static activations, as for the constructor.
            importance: (k,), by which the scales of 4-bit groups are searched, as ``quantize_weight_in_groups`` says.

        Raises:
            ValueError: if the weight has another shape or dtype, holds NaN or infinity, or no kernel can serve it.
            NotImplementedError: if it is on another device.
        """
        layout = ACLPackedLayout() if layout is None else layout
        plain = quantized(weight, layout, importance)
        return cls(plain.qdata, plain.scale, layout, weight.dtype, None, act_scale, act_zero_point, plain.zero_point)

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
            data: (n, k) int8. For 4-bit weights int8 in [-8, 7] or, as GPTQ and AWQ count, uint8 in [0, 15].
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
        plain, layout = checked(data, scale, zero_point, _layout, dtype)
        return cls(plain.qdata, plain.scale, layout, dtype, None, act_scale, act_zero_point, plain.zero_point)

    # --- looking into one ---

    @property
    def scheme(self) -> str:
        """Activation and weight quantization in words."""
        return f"{self._layout.scheme.replace('_', ' ')} ({self._layout.extra_repr()})"

    @property
    def kernel(self) -> str:
        """The id of the kernel that the weight is packed for."""
        return str(self._info()["kernel"])

    def _info(self) -> dict[str, Any]:
        """What the packed bytes say of themselves."""
        info: dict[str, Any] = json.loads(_ops.call(_ops.packed_weight_info, self._bytes()))
        return info

    def _is_readable(self) -> bool:
        """Whether there are bytes to read, as on the meta device and while torch.compile traces there are not."""
        return type(self.packed_weight) is Tensor and self.packed_weight.device.type == "cpu"

    def _bytes(self) -> Tensor:
        if self.packed_weight.device.type == "meta":
            raise NotImplementedError("this weight is on the meta device and has no values: load a checkpoint first")
        return self.packed_weight

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the weight takes: packed bytes and scales, and those of parts that it was split into."""
        own = sum(int(tensor.nbytes) for tensor in self._inner().values())
        return own + sum(part.nbytes for part in self._parts.values())

    @property
    def problem(self) -> kernels.Problem:
        """What the kernel was chosen for; ``full_range`` is False where there are no bytes to read."""
        full_range = self._is_readable() and bool(self._info().get("full_range"))
        return problem_of(*self.weight_shape, self._layout, full_range)

    def plain(self, rows: Tensor | None = None) -> Plain:
        """Exactly what was packed; reading its parts one by one would unpack for each. With ``rows``, (m,) int64, of
        these rows of (n, k) alone."""
        return unpack(Packed(self._bytes(), self.weight_scale), *self.weight_shape, self._layout, rows)

    @property
    def qdata(self) -> Tensor:
        """Exactly the integers that were packed, as files hold them: (n, k) int8; those of 4-bit weights two to a byte,
        (n, (k + 1) // 2) uint8, each plus 8, the first of a pair in the lower half. ``get_plain`` gives all as int8."""
        qdata = self.plain().qdata
        return to_nibbles(qdata) if self._layout.is_grouped else qdata

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
        weight = self.plain().dequantized().to(output_dtype or self.weight_dtype)
        return weight.t() if self.transposed else weight

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        where = self.kernel if self._is_readable() else f"device={self.packed_weight.device}"
        return f"{type(self).__name__}(shape={tuple(self.shape)}, {self.scheme}, {where}, dtype={self.weight_dtype})"

    # --- using one ---

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        check_supported(cls, func, args, kwargs or {})
        return super().__torch_dispatch__(func, types, args, kwargs or {})

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear:
            return linear(*args, **kwargs) if kwargs else linear(*args)
        if (result := overridden(func, args, kwargs, _held)) is not NotImplemented:
            return result
        if func in MEMORY_OF:
            return MEMORY_OF[func](args[0])
        return super().__torch_function__(func, types, args, kwargs)

    def _share_memory(self) -> ACLPackedTensor:
        for inner in self._inner().values():
            inner.share_memory_()
        return self


def _refused(does: str, instead: str) -> Callable[[ACLPackedTensor], Any]:
    def refuse(weight: ACLPackedTensor) -> Any:
        raise NotImplementedError(
            f"{does} a weight that ao_arm quantized, of shape {tuple(weight.shape)}, whose memory holds packed bytes "
            f"and not {weight.dtype}: {instead}"
        )

    return refuse


_NOT_WRITTEN = _refused(
    "safetensors cannot write, and no other program can read by its address,",
    "write models of transformers with save_pretrained, others with torch.save (accelerate's functions: "
    "safe_serialization=False)",
)
#: What asks for a tensor's memory, by torch's own name: the wrapper that torch sees has none.
MEMORY_OF: dict[Callable[..., Any], Callable[[ACLPackedTensor], Any]] = {
    torch.Tensor.share_memory_: ACLPackedTensor._share_memory,
    torch.Tensor.storage: lambda weight: weight.packed_weight.storage(),  # its size: torch.distributed.checkpoint
    torch.Tensor.data_ptr: _NOT_WRITTEN,
    torch.Tensor.numpy: _refused(
        "numpy cannot read", "dequantize() it, take get_plain() for its integers, or do not offload it to disk"
    ),
}
