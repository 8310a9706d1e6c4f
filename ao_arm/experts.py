"""The weights of a layer of experts: a packed weight for each expert, behind one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchao.utils import TorchAOBaseTensor

from .affine_quantized import packed_weight_of
from .layout import ACLPackedLayout
from .nibbles import from_nibbles, to_nibbles
from .plain import Plain
from .tensor import ACLPackedTensor

aten = torch.ops.aten
#: Bytes; each expert's packed ones begin at a multiple, as those of a tensor of its own would.
_ALIGNMENT = 64


_Base: Any = TorchAOBaseTensor


class ACLPackedExperts(_Base):
    """Quantized weights (experts, n, k); ``w[i]`` is the ``ACLPackedTensor`` of an expert, in this one's memory.

    ``F.grouped_mm(x, w.transpose(-2, -1), offs=offs)`` is a call of ours for each expert that has rows.

    Attributes:
        packed_weight: (experts, bytes) uint8, each row a packed weight and padding.
        weight_scale: (experts, n) float32; None if the scales are among the packed bytes.
        packed_bytes: of an expert, without the padding.
        expert_shape: (n, k).
        transposed: whether this tensor stands for (experts, k, n).
        weight_dtype: the dtype of the weights that were quantized.
    """

    packed_weight: Tensor
    weight_scale: Tensor | None
    packed_bytes: int
    expert_shape: tuple[int, int]
    transposed: bool
    weight_dtype: torch.dtype
    tensor_data_names: list[str]
    optional_tensor_data_names: list[str]
    tensor_attribute_names: list[str]
    _layout: ACLPackedLayout
    _experts: dict[bool, list[ACLPackedTensor]]  # what ``expert`` gave, by ``transposed``; views of one memory share it

    @staticmethod
    def __new__(
        cls: type[ACLPackedExperts],
        packed_weight: Tensor,
        weight_scale: Tensor | None,
        packed_bytes: int,
        expert_shape: tuple[int, int],
        transposed: bool,
        weight_dtype: torch.dtype,
        _layout: ACLPackedLayout,
    ) -> ACLPackedExperts:
        """Of tensors that are packed already; ``stack`` makes one of weights."""
        n, k = expert_shape
        shape = (packed_weight.shape[0], *((k, n) if transposed else (n, k)))
        with torch.inference_mode(False):  # torch cannot make an inference tensor a view of a weight
            made: Any = torch.Tensor._make_wrapper_subclass(
                cls, shape, dtype=weight_dtype, device=packed_weight.device, requires_grad=False
            )
        made.packed_weight, made.weight_scale = packed_weight, weight_scale
        made.packed_bytes, made.expert_shape, made.transposed = packed_bytes, tuple(expert_shape), transposed
        made.weight_dtype, made._layout, made._experts = weight_dtype, _layout, {}
        result: ACLPackedExperts = made
        return result

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """``__new__`` has done everything."""

    @classmethod
    def stack(cls, count: int, make: Callable[[int], ACLPackedTensor]) -> ACLPackedExperts:
        """One tensor of the weights that ``make`` gives for 0 to ``count`` - 1, which are copied into it one by one.

        Raises:
            NotImplementedError: if their activations are static or scaled beforehand.
            ValueError: if they differ in shape, scheme or kernel.
        """
        first = expert = make(0)
        if first.act_scale is not None or first.act_pre_scale is not None or first._symmetric is None:
            raise NotImplementedError(
                "experts quantize activations as they come: take acl_int8_dynamic or acl_int4_grouped"
            )
        size = first.packed_weight.numel()
        packed = torch.zeros(count, -(-size // _ALIGNMENT) * _ALIGNMENT, dtype=torch.uint8)
        scale = None if first.weight_scale is None else torch.empty(count, first.weight_scale.numel())
        for i in range(count):
            expert = expert if i == 0 else make(i)
            if (expert.shape, expert._layout, expert.kernel) != (first.shape, first._layout, first.kernel):
                raise ValueError(f"expert {i} is {expert!r}, and expert 0 is {first!r}")
            packed[i, :size] = expert.packed_weight
            if scale is not None and expert.weight_scale is not None:
                scale[i] = expert.weight_scale
        return cls(packed, scale, size, first.weight_shape, first.transposed, first.weight_dtype, first._layout)

    # --- what it consists of ---

    def _attributes(self) -> tuple[Any, ...]:
        return (self.packed_bytes, self.expert_shape, self.transposed, self.weight_dtype, self._layout)

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        names = ["packed_weight"] + ([] if self.weight_scale is None else ["weight_scale"])
        return names, self._attributes()

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], attributes: tuple[Any, ...], outer_size: Any, outer_stride: Any
    ) -> ACLPackedExperts:
        return cls(inner["packed_weight"], inner.get("weight_scale"), *attributes)

    def _rewrap(self, function: Callable[[Tensor], Tensor] | None = None, **changes: Any) -> ACLPackedExperts:
        """A copy with ``function`` applied to the inner tensors and some attributes changed."""
        names = ("packed_bytes", "expert_shape", "transposed", "weight_dtype", "_layout")
        attributes = {**dict(zip(names, self._attributes(), strict=True)), **changes}
        inner = [self.packed_weight, self.weight_scale]
        if function is not None:
            inner = [None if tensor is None else function(tensor) for tensor in inner]
        return ACLPackedExperts(*inner, **attributes)

    def plain(self) -> Plain:
        """Exactly what was packed, of all experts: ``qdata`` (experts, n, k) and so on."""
        parts = [self.expert(i).plain() for i in range(self.packed_weight.shape[0])]
        zero_points = [part.zero_point for part in parts if part.zero_point is not None]
        qdata, scale = (
            torch.stack(of_all) for of_all in zip(*((part.qdata, part.scale) for part in parts), strict=True)
        )
        return Plain(qdata, scale, torch.stack(zero_points) if zero_points else None)

    @classmethod
    def from_plain(
        cls, plain: Plain, layout: ACLPackedLayout, weight_dtype: torch.dtype, transposed: bool = False
    ) -> ACLPackedExperts:
        """Packs what ``plain`` or ``stored`` gave, for the CPU at hand."""
        qdata = plain.qdata
        if qdata.dtype == torch.uint8:
            count, n, _ = qdata.shape
            k = plain.scale.shape[-1] * layout.group_size
            qdata = from_nibbles(qdata.flatten(0, 1), k).unflatten(0, (count, n))

        def expert(i: int) -> ACLPackedTensor:
            zero_point = None if plain.zero_point is None else plain.zero_point[i]
            packed = ACLPackedTensor(qdata[i], plain.scale[i], layout, weight_dtype, zero_point=zero_point)
            return packed._rewrap(transposed=transposed)

        return cls.stack(plain.qdata.shape[0], expert)

    @property
    def scheme(self) -> str:
        """Activation and weight quantization in words."""
        return f"{self._layout.scheme.replace('_', ' ')} ({self._layout.extra_repr()})"

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the weights take: packed bytes and scales."""
        return int(self.packed_weight.nbytes) + (0 if self.weight_scale is None else int(self.weight_scale.nbytes))

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, {self.scheme}, dtype={self.weight_dtype})"

    @property
    def qdata(self) -> Tensor:
        """Exactly the integers that were packed, (experts, n, k) int8; 4-bit ones two to a byte, by ``to_nibbles``."""
        return self.stored().qdata

    def stored(self) -> Plain:
        """``plain``, with 4-bit values two to a byte, as files hold them."""
        plain = self.plain()
        if not self._layout.is_grouped:
            return plain
        nibbles = to_nibbles(plain.qdata.flatten(0, 1)).unflatten(0, plain.qdata.shape[:2])
        return Plain(nibbles, plain.scale, plain.zero_point)

    @property
    def scale(self) -> Tensor:
        """The scales: (experts, n) float32, or (experts, n, k / group_size) of 4-bit weights."""
        return self.plain().scale if self.weight_scale is None else self.weight_scale

    @property
    def zero_point(self) -> Tensor | None:
        """The zero points of asymmetric 4-bit weights, (experts, n, k / group_size) int8, or None."""
        return self.plain().zero_point if self._layout.weight_mapping == "asymmetric" else None

    # --- using it ---

    def expert(self, index: int) -> ACLPackedTensor:
        """The weight of an expert, in the memory of this tensor."""
        if self.transposed not in self._experts:
            self._experts[self.transposed] = [self._view_of(i) for i in range(self.packed_weight.shape[0])]
        return self._experts[self.transposed][index]

    def _view_of(self, index: int) -> ACLPackedTensor:
        with torch.inference_mode(False):  # for calls outside of it, too
            inner = {
                "packed_weight": self.packed_weight[index, : self.packed_bytes],
                "weight_scale": None if self.weight_scale is None else self.weight_scale[index],
            }
            return ACLPackedTensor._wrap(inner, self._layout, self.expert_shape, self.weight_dtype, self.transposed)

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        """``(q - zero_point) * scale`` in float32, rounded to ``output_dtype`` (default: the weight's)."""
        return torch.stack([self.expert(i).dequantize(output_dtype) for i in range(self.packed_weight.shape[0])])

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__:
            index = args[1]
            if isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0):
                return args[0].expert(int(index))
            raise NotImplementedError(
                f"{list(index.shape) if isinstance(index, Tensor) else index!r} as an index of experts that ao_arm "
                "packed would unpack them in each call: take one by one, w[i], or all, F.grouped_mm(x, w.transpose(-2, "
                "-1), offs=offs). Of transformers' implementations these are 'eager' and 'grouped_mm': "
                "model.set_experts_implementation('grouped_mm')"
            )
        if func is torch.Tensor.share_memory_:  # torch would look for a storage of the wrapper, which has none
            for inner in args[0].__tensor_flatten__()[0]:
                getattr(args[0], inner).share_memory_()
            return args[0]
        if func is torch.Tensor.data_ptr:  # transformers asks whether it is aligned
            return args[0].packed_weight.data_ptr()
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.name() == "transformers::grouped_mm_fallback":  # the same product, in graphs
            func = aten._grouped_mm.default
        return super().__torch_dispatch__(func, types, args, kwargs or {})


def packed_in(tensor: Tensor) -> ACLPackedTensor | ACLPackedExperts | None:
    """The packed weight that a parameter is or holds, of a layer or of experts; None if ao_arm did not quantize it."""
    return tensor if isinstance(tensor, ACLPackedExperts) else packed_weight_of(tensor)


def is_packed(tensor: Tensor) -> bool:
    """Whether ao_arm packed a weight, of a layer or of experts."""
    return packed_in(tensor) is not None


def bytes_too_many(tensor: Tensor) -> int:
    """By how much a tensor's elements times their dtype's size exceed the memory that it takes; 0 of other tensors."""
    packed = packed_in(tensor)
    return 0 if packed is None else tensor.numel() * tensor.dtype.itemsize - packed.nbytes


# What torchao's safetensors support stores. Not in the class: torchao would take them for what the tensor consists of.
ACLPackedExperts.tensor_data_names = ["qdata", "scale"]
ACLPackedExperts.optional_tensor_data_names = ["zero_point"]
ACLPackedExperts.tensor_attribute_names = ["_layout", "weight_dtype", "transposed"]
