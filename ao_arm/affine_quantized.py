"""The weight that ``quantize_`` puts into a model: an AffineQuantizedTensor where torchao has it (up to 0.17), with
``ACLPackedLayout`` registered as one of its layouts; from 0.18 the packed tensor itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .layout import HAS_AQT, ACLPackedLayout
from .linear import linear
from .quantize import LARGEST
from .tensor import MEMORY_OF, ACLPackedTensor, check_supported, unsupported
from .tensor_ops import AS_THE_PACKED_TENSOR, attention, copy_weight
from .torch_functions import overridden

if HAS_AQT:
    from torchao.dtypes.affine_quantized_tensor import AffineQuantizedTensor, register_layout
    from torchao.dtypes.affine_quantized_tensor_ops import register_aqt_quantized_linear_dispatch
    from torchao.quantization.quant_primitives import ZeroPointDomain

    def _of_the_packed_weight(name: str) -> property:
        """What an ``ACLPackedTensor`` has by this name; see there."""
        return property(
            lambda weight: getattr(weight.tensor_impl, name),
            lambda weight, value: setattr(weight.tensor_impl, name, value),
        )

    def _held(argument: Any) -> ACLPackedTensor | None:
        return packed_weight_of(argument) if isinstance(argument, Tensor) else None

    class ACLAffineQuantizedTensor(AffineQuantizedTensor):
        """An AffineQuantizedTensor that goes straight to ``linear``, takes ``weight=`` as a keyword, can be shared
        between processes, and is saved in a form that a torchao without AffineQuantizedTensor can load."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # What torchao's safetensors support stores. On the instance: on the class, torchao would take them for
            # what the tensor consists of.
            self.tensor_data_names = ACLPackedTensor.tensor_data_names
            self.optional_tensor_data_names = ACLPackedTensor.optional_tensor_data_names
            self.tensor_attribute_names = ACLPackedTensor.tensor_attribute_names

        @classmethod
        def __torch_function__(
            cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if func is torch.nn.functional.linear:
                return _linear(*args, **kwargs) if kwargs else _linear(*args)
            if (result := overridden(func, args, kwargs, _held)) is not NotImplemented:
                return result
            if func in MEMORY_OF:
                result = MEMORY_OF[func](args[0].tensor_impl)
                return args[0] if func is torch.Tensor.share_memory_ else result
            return super().__torch_function__(func, types, args, kwargs)

        @classmethod
        def __torch_dispatch__(
            cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            check_supported(cls, func, args, kwargs or {})
            return super().__torch_dispatch__(func, types, args, kwargs or {})

        qdata = _of_the_packed_weight("qdata")
        scale = _of_the_packed_weight("scale")
        zero_point = _of_the_packed_weight("zero_point")
        act_pre_scale = _of_the_packed_weight("act_pre_scale")
        act_scale = _of_the_packed_weight("act_scale")
        act_zero_point = _of_the_packed_weight("act_zero_point")
        act_quantization = _of_the_packed_weight("act_quantization")
        nbytes = _of_the_packed_weight("nbytes")
        transposed = _of_the_packed_weight("transposed")

        @property
        def weight_dtype(self) -> torch.dtype:
            """The dtype that the weight shows."""
            return self.dtype  # type: ignore[no-any-return]

        def _stable_hash_for_caching(self) -> str:
            """For the key of torch.compile's cache."""
            return f"{type(self).__name__}:{self.requires_grad}:{self.tensor_impl._stable_hash_for_caching()}"

    def _linear(input: Tensor, weight: ACLAffineQuantizedTensor, bias: Tensor | None = None) -> Tensor:
        if type(weight) is not ACLAffineQuantizedTensor:
            raise NotImplementedError(f"F.linear takes {input!r} as its weight only, and not transposed")
        return linear(input, weight.tensor_impl, bias)

    @ACLAffineQuantizedTensor.implements([torch.ops.aten.permute.default, torch.ops.aten.transpose.int])
    def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """``w.T`` and ``w.transpose(0, 1)``, which torchao leaves out."""
        weight = args[0]
        dims = args[1] if func is torch.ops.aten.permute.default else args[1:]
        if [dim % 2 for dim in dims] == [0, 1] and func is torch.ops.aten.permute.default:
            return weight  # type: ignore[no-any-return]
        return torch.ops.aten.t.default(weight)  # type: ignore[no-any-return]

    @ACLAffineQuantizedTensor.implements(
        [torch.ops.aten.split.Tensor, torch.ops.aten.split_with_sizes.default, torch.ops.aten.chunk.default]
    )
    def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The packed tensor keeps the parts."""
        parts = func(args[0].tensor_impl, *args[1:], **kwargs)
        with torch.inference_mode(False):
            return [as_weight(part) for part in parts]

    @ACLAffineQuantizedTensor.implements([torch.ops.aten.select.int, torch.ops.aten.view.default])
    def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What torchao has for layouts of its own."""
        raise unsupported(str(func), args[0].tensor_impl)

    @ACLAffineQuantizedTensor.implements(torch.ops.aten.copy_.default)
    def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        target, source = ((tensor, packed_weight_of(tensor)) for tensor in args[:2])
        copy_weight(*(tensor if packed is None else packed for tensor, packed in (target, source)))
        return args[0]  # type: ignore[no-any-return]

    @ACLAffineQuantizedTensor.implements(AS_THE_PACKED_TENSOR)
    def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the packed tensor does it; torchao would assert for ``x @ w``, and know nothing of the others."""
        held = [packed_weight_of(argument) if isinstance(argument, Tensor) else None for argument in args]
        return func(*(args[i] if packed is None else packed for i, packed in enumerate(held)), **kwargs)

    ACLAffineQuantizedTensor.implements_torch_function(torch.nn.functional.multi_head_attention_forward)(attention)

    def _embedding(input: Tensor, weight: ACLAffineQuantizedTensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.nn.functional.embedding(input, weight.tensor_impl, *args, **kwargs)

    @ACLAffineQuantizedTensor.implements_torch_function(torch.nn.functional.embedding)
    def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """As the packed tensor does it; torchao's serves its own layout only."""
        return _embedding(*args, **kwargs)

    register_layout(ACLPackedLayout)(ACLPackedTensor)
    # For tensors that torchao's own factories make with our layout.
    register_aqt_quantized_linear_dispatch(
        lambda input, weight, bias: packed_weight_of(weight) is not None,
        lambda input, weight, bias: linear(input, weight.tensor_impl, bias),
    )


def packed_weight_of(tensor: Tensor) -> ACLPackedTensor | None:
    """The ``ACLPackedTensor`` that a weight is or, up to torchao 0.17, holds; None if ao_arm did not quantize it.

    Args:
        tensor: such as ``layer.weight``.

    Returns:
        The tensor itself, not a copy: changing its parts changes what the layer computes.
    """
    if isinstance(tensor, ACLPackedTensor):
        return tensor
    held = tensor.tensor_impl if HAS_AQT and isinstance(tensor, AffineQuantizedTensor) else None
    return held if isinstance(held, ACLPackedTensor) else None


def as_weight(packed: ACLPackedTensor) -> Tensor:
    """What ``quantize_`` puts in place of a weight, transposed or not."""
    if not HAS_AQT:
        return packed
    layout, (n, k) = packed.get_layout(), packed.weight_shape
    least, greatest = (-8, 7) if layout.is_grouped else (-128 if packed.problem.full_range else -LARGEST, LARGEST)
    block = (n if layout.weight_granularity == "per_tensor" else 1, layout.group_size or k)
    return ACLAffineQuantizedTensor(
        packed,
        block[::-1] if packed.transposed else block,
        torch.Size(packed.shape),
        quant_min=least,
        quant_max=greatest,
        zero_point_domain=ZeroPointDomain.NONE if layout.weight_mapping == "symmetric" else ZeroPointDomain.INT,
        dtype=packed.weight_dtype,
    )
