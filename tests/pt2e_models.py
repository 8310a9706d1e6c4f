"""What tests of PT2E have in common: quantizers, models, and graphs whose products are exact."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchao
from torch import Tensor
from torch.export import Dim
from torch.fx import GraphModule
from torch.nn.functional import adaptive_avg_pool2d, gelu, scaled_dot_product_attention
from torchao.quantization.pt2e import quantize_pt2e
from torchao.quantization.pt2e.quantizer import arm_inductor_quantizer as arm
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

aten = torch.ops.aten
BATCH = Dim("batch", min=2, max=64)
Inputs = tuple[Tensor, ...]


def arm_config(**given: Any) -> Any:
    """Of int8 activations, and of weights with one scale."""
    return arm.get_default_arm_inductor_quantization_config(**given)


def x86_config(**given: Any) -> Any:
    """Of uint8 activations, and of weights with a scale for each channel."""
    return x86.get_default_x86_inductor_quantization_config(**given)


@dataclass(frozen=True)
class Way:
    """How a graph is quantized."""

    quantizer: Callable[[], Any]
    activations: Callable[..., Any]
    weights: Callable[..., Any]
    is_dynamic: bool

    def config(self) -> Any:
        """The quantizer's configuration."""
        made = self.activations(is_dynamic=self.is_dynamic)
        return dataclasses.replace(made, weight=self.weights().weight)


WAYS = {
    f"{name} {'dynamic' if is_dynamic else 'static'} {granularity}": Way(quantizer, activations, weights, is_dynamic)
    for name, quantizer, activations in (
        ("arm", arm.ArmInductorQuantizer, arm_config),
        ("x86", x86.X86InductorQuantizer, x86_config),
    )
    for granularity, weights in (("per tensor", arm_config), ("per channel", x86_config))
    for is_dynamic in (False, True)
}


class Encoder(torch.nn.Module):
    """A layer of a transformer, (batch, tokens, 32) in and out. Queries, keys and values have the same input."""

    LINEAR = ("query", "key", "value", "out", "up", "down")

    def __init__(self, size: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (torch.nn.Linear(size, size) for _ in range(4))
        self.up, self.down = torch.nn.Linear(size, 3 * size), torch.nn.Linear(3 * size, size)
        self.first_norm, self.second_norm = torch.nn.LayerNorm(size), torch.nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = self.first_norm(x + self.out(attended))
        return self.second_norm(x + self.down(gelu(self.up(x))))


class Pictures(torch.nn.Module):
    """Convolutions and two linear layers behind them: (batch, 3, 12, 12) to (batch, 10)."""

    LINEAR = ("hidden", "last")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        self.second = torch.nn.Conv2d(8, 16, 3, stride=2)
        self.hidden, self.last = torch.nn.Linear(256, 48), torch.nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        x = torch.relu(self.hidden(torch.flatten(adaptive_avg_pool2d(x, 4), 1)))
        return self.last(x)


#: Each model with the shape of its input without the batch.
MODELS: Mapping[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "encoder": (Encoder, (7, 32)),
    "pictures": (Pictures, (3, 12, 12)),
}


@torch.no_grad()
def converted(graph: GraphModule, quantizer: Any, calibration: Sequence[Inputs]) -> GraphModule:
    """What PT2E makes of a graph, which it changes."""
    # What nothing uses, as an encoder's pooler may be, is more than quantizers are prepared for.
    graph.graph.eliminate_dead_code()
    prepared = quantize_pt2e.prepare_pt2e(graph, quantizer)
    for inputs in calibration:
        prepared(*inputs)
    try:
        made: GraphModule = quantize_pt2e.convert_pt2e(prepared)
    except Exception as error:
        # torchao 0.17 looks for an overload of static graphs that torch 2.13 no longer has.
        if "'aten.transpose' has no overload name 'Dimname'" in str(error.__cause__):
            pytest.skip(f"torchao {torchao.__version__} converts no static graphs on torch {torch.__version__}")
        raise
    return made


def quantizer_of(way: Way) -> Any:
    quantizer = way.quantizer()
    quantizer.set_global(way.config())
    return quantizer


def exact(graph: GraphModule) -> GraphModule:
    """A copy whose linear layers add up their products in float64."""
    made = copy.deepcopy(graph)
    for node in made.graph.nodes:
        if node.target is aten.linear.default:
            node.target = _exact_linear
    made.recompile()
    return made


def _exact_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    double = None if bias is None else bias.double()
    return torch.nn.functional.linear(x.double(), weight.double(), double).to(x.dtype)


def count(graph: torch.fx.Graph, target: Any) -> int:
    """How many calls of an op, or of a packet's overloads, there are."""
    return sum(target in (node.target, getattr(node.target, "overloadpacket", None)) for node in graph.nodes)
