"""Random graphs of quantized layers compute what they did before, bit for bit where floats are exact."""

from dataclasses import dataclass

import pytest
import torch
from cases import STEP
from graphs import (
    PRODUCTS,
    WRITTEN,
    Calibrated,
    ChannelsByDecomposed,
    ChannelsByTorchao,
    GroupsByDecomposed,
    GroupsByTorchao,
    Layer,
    TokensByDecomposed,
    TokensByTorchao,
    Weight,
    WholeByDecomposed,
    assert_near,
    fused_graph,
    layers,
    traced,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytestmark = pytest.mark.slow

K = 32
#: What follows a layer.
THEN = {
    "nothing": lambda y: y,
    "relu": torch.relu,
    "clamp": lambda y: torch.clamp(y, -3, 40),
    "hardtanh": lambda y: nn.functional.hardtanh(y, -5.0, 5.0),
    "view": lambda y: y.reshape(-1, 1, y.shape[-1]).reshape(y.shape),
    "doubled": lambda y: y + y,
}
WEIGHTS = (ChannelsByTorchao, ChannelsByDecomposed, WholeByDecomposed)
GROUPS = (GroupsByTorchao, GroupsByDecomposed)


@dataclass(frozen=True)
class Step:
    """One layer of a random graph: where its input comes from, and how it is made."""

    source: int
    activations: int
    weight: int
    product: str
    then: str
    bias: bool


def exact_layer(weight: Weight, activations: nn.Module, step: Step) -> Layer:
    """A static layer whose scales are powers of two, so that float32 holds all that it computes."""
    layer = Layer(activations, weight, PRODUCTS[step.product], step.bias, THEN[step.then])
    weight.qdata.clamp_(-15, 15)
    weight.scale.fill_(2.0**-5)
    if layer.bias is not None:
        layer.bias.copy_(torch.randint(-64, 64, layer.bias.shape) / 16)
    return layer


class Graph(nn.Module):
    """Layers over the input and over each other; some share activations, some a weight."""

    def __init__(self, steps: list[Step], dtype: torch.dtype) -> None:
        super().__init__()
        self.sources = [step.source for step in steps]
        activations = nn.ModuleList(
            [Calibrated(0.5, 3, dtype), Calibrated(0.25, 7 if dtype == torch.int8 else 99, dtype)]
        )
        weights = nn.ModuleList([ChannelsByTorchao(K, K), ChannelsByDecomposed(K, K), ChannelsByDecomposed(K, K)])
        self.layers = nn.ModuleList([exact_layer(weights[s.weight], activations[s.activations], s) for s in steps])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for place, layer in enumerate(self.layers):
            values.append(layer(values[self.sources[place] % (place + 1)]))
        return tuple(values[1:])


STEPS = st.builds(
    Step,
    source=st.integers(0, 3),
    activations=st.integers(0, 1),
    weight=st.integers(0, 2),
    product=st.sampled_from(["linear", "addmm", "linear"]),
    then=st.sampled_from([*THEN]),
    bias=st.booleans(),
)


@pytest.mark.x86
@settings(max_examples=max(2, 10 // STEP))
@torch.no_grad()
@given(st.lists(STEPS, min_size=1, max_size=5), st.sampled_from([torch.int8, torch.uint8]), st.integers(1, 3))
def test_static_layers_give_the_same_bits(steps: list[Step], dtype: torch.dtype, m: int) -> None:
    torch.manual_seed(len(steps) + m)
    model, x = Graph(steps, dtype), torch.randint(-60, 60, (m, K)) / 4
    graph = traced(model, x)
    expected = graph(x)
    changed, report = fused_graph(graph)
    assert len(report.fused) == len(steps) == len(layers(changed.graph))
    for one, other in zip(changed(x), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.x86
@settings(max_examples=20 // STEP)
@torch.no_grad()
@given(
    st.sampled_from([*WRITTEN]),
    st.sampled_from([*PRODUCTS]),
    st.booleans(),
    st.integers(1, 40),
    st.integers(1, 4),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.sampled_from([*THEN]),
)
def test_any_layer(name: str, product: str, bias: bool, n: int, groups: int, rows: list[int], then: str) -> None:
    layer = WRITTEN[name].layer(n, 32 * groups, product=PRODUCTS[product], bias=bias, then=THEN[then])
    x = torch.randn(*rows, 32 * groups)
    graph = traced(layer, x)
    changed, report = fused_graph(graph)
    assert [found.op for found in report] == [WRITTEN[name].op]
    assert_near(changed(x), graph(x), 2e-5)


@pytest.mark.x86
@settings(max_examples=max(2, 6 // STEP))
@torch.no_grad()
@given(st.lists(st.sampled_from([*WEIGHTS, *GROUPS]), min_size=1, max_size=4), st.integers(0, 1), st.integers(1, 20))
def test_any_layers_that_share_activations(kinds: list[type[Weight]], activations: int, n: int) -> None:
    shared = (TokensByTorchao(), TokensByDecomposed())[activations]
    weights = nn.ModuleList([kind(n, 64) for kind in kinds])

    def function(x: Tensor) -> list[Tensor]:
        floats = shared(x)
        return [nn.functional.linear(floats, weight()) for weight in weights]

    x = torch.randn(3, 64)
    graph = traced(function, x)
    changed, report = fused_graph(graph)
    assert len(report.fused) == len(kinds)
    for one, other in zip(changed(x), graph(x), strict=True):
        assert_near(one, other)


@pytest.mark.x86
def test_these_graphs_can_tell_a_difference() -> None:
    """A weight that is one off shows in bits and in floats."""
    model, x = Graph([Step(0, 0, 0, "linear", "nothing", True)], torch.int8), torch.ones(2, K)
    (before,) = model(x)
    model.layers[0].weight.qdata[0, 0] += 1
    assert not torch.equal(model(x)[0], before)
    with pytest.raises(AssertionError):
        assert_near(model(x)[0], before)
