"""Puts an op of ours in the place of a layer in a graph; each weight is packed once."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .. import _ops
from ..layout import ACLPackedLayout
from ..quantize import FLOATS
from ..tensor import ACLPackedTensor
from .layers import Activations, Layer, Unfit, Weight
from .matching import aten, dtype_of, is_view, shape_of, without
from .names import KEPT_META
from .values import fake_mode_of, value_of_call

#: Steps of float32 within which a scale is looked for that has a wanted reciprocal.
_NEIGHBOURS = (0, 1, -1, 2, -2)


class Replacer:
    """Writes layers anew in a graph, and remembers what it has packed for it.

    Args:
        module: the graph. It gets the packed weights as buffers.
        cast: the op that changes dtypes in such graphs: takes a tensor and a dtype.
    """

    def __init__(self, module: GraphModule, cast: Any) -> None:
        self._cast_to = cast
        self._module = module
        self._graph = module.graph
        self._mode = fake_mode_of(module.graph)
        self._packed: dict[tuple[Any, ...], ACLPackedTensor] = {}
        self._attributes: dict[tuple[Any, ...], str] = {}
        self._kept: list[Tensor] = []  # what keys name by its identity
        self._new_nodes: list[Node] = []

    def replace(self, layer: Layer) -> Node:
        """Replaces a layer by a call of an op, and erases what only the layer used.

        Raises:
            Unfit: if no op takes it; the graph is as it was then.
        """
        one_scale = not layer.activations.per_token and not layer.weight.group_size
        if dtype_of(layer.activations.integers) == torch.uint8 and not one_scale:
            raise Unfit("its activations are uint8, which is taken with a single scale and an 8-bit weight only")
        packed = self._pack(layer.weight)
        self._new_nodes = []
        try:
            made = self._instead_of(layer, packed, _free_shape(layer))
        except (ValueError, NotImplementedError) as error:  # an op's own check
            for node in reversed(self._new_nodes):
                self._graph.erase_node(node)
            raise Unfit(str(error)) from None
        layer.node.replace_all_uses_with(made)
        product = layer.between[-1] if layer.between else layer.node
        made.meta.update({name: product.meta[name] for name in KEPT_META if name in product.meta})
        for node in (layer.node, *layer.between):
            for user in list(node.users):  # checks of a value that there is no longer
                self._graph.erase_node(user)
            self._graph.erase_node(node)
        return made

    def _instead_of(self, layer: Layer, packed: ACLPackedTensor, shape: list[Any] | None) -> Node:
        """The op's result, in the dtype and shape that the layer's has."""
        with self._graph.inserting_before(layer.node):
            made = self._call(layer, packed)
            wanted = dtype_of(layer.node)
            if layer.output is None and wanted is not None and dtype_of(made) != wanted:
                made = self._new(self._cast_to, made, wanted)
            return made if shape is None else self._new(aten.reshape.default, made, shape)

    def forget_unused(self) -> None:
        """Takes from the graph's module what nothing in the graph reads any longer, of what was given to it here."""
        read = {str(node.target) for node in self._graph.nodes if node.op == "get_attr"}
        for name in self._attributes.values():
            if name not in read:
                delattr(self._module, name)

    def _call(self, layer: Layer, packed: ACLPackedTensor) -> Node:
        activations, weight = layer.activations, self._attribute("packed_weight", packed.packed_weight)
        if packed.weight_scale is None:
            n = packed.weight_shape[0]
            if activations.floats is not None and activations.mapping == "asymmetric" and activations.per_token:
                return self._new(_ops.linear_qta8a_qga4w, activations.floats, weight, n, layer.bias)
            scale, zero_point = self._scales(activations)
            return self._new(_ops.linear_qta8a_qga4w, activations.integers, weight, n, layer.bias, scale, zero_point)
        weight_scale = self._attribute("weight_scale", packed.weight_scale)
        if activations.floats is not None and activations.mapping is not None:
            symmetric = activations.mapping == "symmetric"
            rule = (symmetric, activations.per_token)
            return self._new(_ops.linear_int8_dynamic, activations.floats, weight, weight_scale, layer.bias, *rule)
        if activations.per_token:
            scale, zero_point = self._scales(activations)
            given = (activations.integers, scale, zero_point, weight, weight_scale, layer.bias, dtype_of(layer.node))
            return self._new(_ops.linear_int8_quantized, *given)
        return self._static(layer, weight, weight_scale)

    def _static(self, layer: Layer, weight: Node, weight_scale: Node) -> Node:
        activations = layer.activations
        dtype = dtype_of(activations.integers)
        scale, from_floats = activations.scale, activations.floats is not None
        if isinstance(scale, float):
            exact = scale_with_reciprocal(scale)
            from_floats = from_floats and exact is not None
            scale = self._attribute("scale", torch.tensor([scale if exact is None else exact]))
        else:
            scale = self._cast(scale, torch.float32, [1])
        zero_point = activations.zero_point
        if isinstance(zero_point, Node):
            zero_point = self._cast(zero_point, dtype, [1])
        else:
            zero_point = self._attribute("zero_point", torch.tensor([zero_point or 0], dtype=dtype))
        given = activations.floats if from_floats and not _shared(activations) else activations.integers
        arguments = (weight, weight_scale, layer.bias, scale, zero_point)
        output = layer.output
        if output is None:
            wanted = dtype_of(layer.node)
            more = () if wanted == dtype_of(given) else (None, None, wanted)  # type: ignore[arg-type]
            return self._new(_ops.linear_int8_static, given, *arguments, *more)
        output_scale = self._attribute("scale", torch.tensor([scale_with_reciprocal(output.scale) or output.scale]))
        output_zero_point = self._attribute("zero_point", torch.tensor([output.zero_point], dtype=output.dtype))
        bounds = (None if bound is None else float(bound) for bound in (output.least, output.greatest))
        return self._new(_ops.linear_int8_static, given, *arguments, output_scale, output_zero_point, None, *bounds)

    def _scales(self, activations: Activations) -> tuple[Node, Node | None]:
        scale, zero_point = activations.scale, activations.zero_point
        if not isinstance(scale, Node):
            scale = self._attribute("scale", torch.tensor([scale]))
        elif dtype_of(scale) != torch.float32:
            scale = self._cast(scale, torch.float32)
        if zero_point is None:
            return scale, None
        if not isinstance(zero_point, Node):
            return scale, self._attribute("zero_point", torch.tensor([zero_point], dtype=torch.int32))
        known = dtype_of(zero_point) in (torch.int8, torch.int32)
        return scale, zero_point if known else self._cast(zero_point, torch.int32)

    def _cast(self, node: Node, dtype: torch.dtype | None, shape: list[int] | None = None) -> Node:
        node = without(is_view, node)
        if dtype_of(node) != dtype:
            node = self._new(self._cast_to, node, dtype)
        return node if shape is None else self._new(aten.reshape.default, node, shape)

    def _pack(self, weight: Weight) -> ACLPackedTensor:
        # Scales and zero points may have been computed for each layer anew; they are compared by what they hold.
        held = (_contents(tensor) for tensor in (weight.scale, weight.zero_point))
        key = (_identity(weight.qdata), *held, weight.group_size)
        if key not in self._packed:
            self._kept.append(weight.qdata)
            self._packed[key] = packed_weight(weight)
        return self._packed[key]

    def _attribute(self, name: str, value: Tensor) -> Node:
        """A node that reads a constant; the same for the same small value, or for the same tensor."""
        key = (str(value.dtype), *value.tolist()) if value.numel() == 1 else _identity(value)
        if key not in self._attributes:
            free = (f"_ao_arm_{name}_{number}" for number in itertools.count())
            self._attributes[key] = next(place for place in free if not hasattr(self._module, place))
            self._kept.append(value)
            self._module.register_buffer(self._attributes[key], value)
        node = self._graph.get_attr(self._attributes[key])
        self._new_nodes.append(node)
        node.meta["val"] = self._mode.from_tensor(value, static_shapes=True)
        return node

    def _new(self, target: Any, *args: Any) -> Node:
        node = self._graph.call_function(target, args)
        self._new_nodes.append(node)
        node.meta["val"] = value_of_call(self._mode, target, args, {})
        return node


def check(layer: Layer) -> None:
    """Raises ``Unfit`` if ``Replacer.replace`` would."""
    packed_weight(layer.weight)
    _free_shape(layer)


def packed_weight(weight: Weight) -> ACLPackedTensor:
    """A weight, packed for the kernel that serves it here.

    Raises:
        Unfit: if none does, or if integers or scales are none that ops take.
    """
    layout = ACLPackedLayout()
    if weight.group_size:
        layout = ACLPackedLayout(
            activation_mapping="asymmetric",
            weight_granularity="per_group",
            scheme="int4_grouped",
            group_size=weight.group_size,
            scale_dtype="bfloat16",
        )
    try:
        # A copy: the packed weight shares no memory with the stock one.
        scale = weight.scale.clone() if weight.scale.dtype in FLOATS else weight.scale.float()
        return ACLPackedTensor.from_plain(weight.qdata, scale, weight.zero_point, layout)
    except (ValueError, NotImplementedError) as error:
        raise Unfit(f"its weight: {error}") from None


def scale_with_reciprocal(scale: float) -> float | None:
    """A float32 of which the reciprocal in float32 is what 1 / scale is when that is rounded to float32.

    PyTorch's quantization multiplies by that, with a scale in float64; ops take a float32 and multiply by its
    reciprocal. Integers are the same only if these are.

    Returns:
        ``scale`` itself if it is a float32, else a neighbour of it; None if there is none.
    """
    wanted = torch.tensor(1.0 / scale, dtype=torch.float64).float()
    nearest = torch.tensor([scale], dtype=torch.float64).float()
    for steps in _NEIGHBOURS:
        candidate = (nearest.view(torch.int32) + steps).view(torch.float32)
        if bool(1.0 / candidate == wanted):
            return float(candidate)
    return None


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _contents(tensor: Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return ()
    data = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(data).digest()


def _shared(activations: Activations) -> bool:
    """Whether several dequantize the same integers: then they are quantized once."""
    return len(activations.integers.users) > 1


def _free_shape(layer: Layer) -> list[Any] | None:
    """The shape to give to an op's output, whose leading dimensions are those of its activations; None if it has it.

    Raises:
        Unfit: if more than one dimension is not known beforehand.
    """
    activations = layer.activations
    source = activations.floats if activations.floats is not None else activations.integers
    given, wanted = shape_of(source), shape_of(layer.node)
    if given is None or wanted is None:
        raise Unfit("the shapes of its input and output are not known")
    if [str(size) for size in given[:-1]] == [str(size) for size in wanted[:-1]]:
        return None
    free = [place for place, size in enumerate(wanted) if not isinstance(size, int)]
    if len(free) > 1:
        raise Unfit(f"its output is reshaped to {wanted}, of which more than one size is not known beforehand")
    return [-1 if place in free else size for place, size in enumerate(wanted)]
