"""Quantized layers written op by op: each known way is one op with the same numbers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import thinned
from graphs import (
    DECOMPOSED,
    DYNAMIC,
    GROUPED,
    PRODUCTS,
    QUANTIZED,
    STATIC,
    WRITTEN,
    Calibrated,
    CalibratedByTorchao,
    ChannelsByDecomposed,
    ChannelsByTorchao,
    GroupsByDecomposed,
    GroupsByTorchao,
    Layer,
    TokensByDecomposed,
    TokensByTorchao,
    Weight,
    assert_fused,
    assert_near,
    exported,
    fused,
    fused_graph,
    layers,
    nodes,
    packed_weights,
    targets,
    traced,
)
from torch import Tensor, nn

from ao_arm.passes import fuse, fuse_

K, N = 64, 33


# --- each way to write a layer ---


@pytest.mark.x86
@pytest.mark.parametrize("name", WRITTEN)
def test_each_pair_is_one_op(name: str) -> None:
    written = WRITTEN[name]
    for rows in ((5,), (2, 3)):
        assert_fused(written.layer(N, K), [written.op], torch.randn(*rows, K))


@pytest.mark.slow
@pytest.mark.one_cpu
@pytest.mark.parametrize("product", thinned([*PRODUCTS]))
@pytest.mark.parametrize(("activations", "weight", "op"), [
    (TokensByTorchao, ChannelsByTorchao, DYNAMIC),
    (TokensByTorchao, GroupsByTorchao, GROUPED),
    (TokensByDecomposed, ChannelsByDecomposed, QUANTIZED),
    (Calibrated, ChannelsByDecomposed, STATIC),
])  # fmt: skip
def test_each_product_is_known(activations: Any, weight: Any, op: str, product: str) -> None:
    for bias, rows in ((False, (1,)), (True, (2, 3)), (False, (2, 3)), (True, (2, 1, 4))):
        layer = Layer(activations(), weight(N, K), PRODUCTS[product], bias)
        assert_fused(layer, [op], torch.randn(*rows, K))


@pytest.mark.slow
@pytest.mark.x86
@pytest.mark.parametrize("name", list(WRITTEN)[::4])
def test_an_exported_program_gives_the_same(name: str) -> None:
    layer, x = WRITTEN[name].layer(N, K), torch.randn(5, K)
    program = exported(layer, x)
    for form in (program, program.run_decompositions({})):
        changed = fused(form)
        assert layers(changed.graph) == [WRITTEN[name].op]
        assert_near(changed.module()(x), layer(x))


@pytest.mark.x86
@pytest.mark.parametrize("name", list(WRITTEN)[::3])
@pytest.mark.parametrize(("n", "k"), [(1, 32), (7, 96), (33, 160)])
def test_sizes_that_are_no_multiples_of_blocks(name: str, n: int, k: int) -> None:
    assert_fused(WRITTEN[name].layer(n, k), [WRITTEN[name].op], torch.randn(3, k))


@pytest.mark.x86
@pytest.mark.parametrize("k", [1, 31, 65])
def test_rows_of_odd_length(k: int) -> None:
    of_torchao = [(TokensByTorchao, DYNAMIC)] if k > 1 else []  # which quantizes no rows of one value
    for activations, op in (*of_torchao, (TokensByDecomposed, QUANTIZED), (Calibrated, STATIC)):
        assert_fused(Layer(activations(), ChannelsByTorchao(5, k)), [op], torch.randn(3, k))


#: What is still quantized by ops of others, which take no rows: a range over all values, and torchao's symmetric ops.
NO_ROWS = [name for name in WRITTEN if "by the range" not in name and not ("symmetric" in name and "4 bits" in name)]


@pytest.mark.slow
@pytest.mark.x86
@pytest.mark.parametrize("name", NO_ROWS)
def test_no_rows(name: str) -> None:
    """A graph of five rows, and none."""
    layer = WRITTEN[name].layer(N, K)
    program = exported(layer, torch.randn(5, K), dynamic_shapes={"x": {0: torch.export.Dim("m", min=0, max=64)}})
    changed = fused(program).module(check_guards=False)
    for m in (0, 1, 7):
        x = torch.randn(m, K)
        assert_near(changed(x), layer(x) if m else torch.empty(0, N))


@pytest.mark.x86
@pytest.mark.parametrize("name", list(WRITTEN)[::4])
def test_inputs_that_are_not_contiguous(name: str) -> None:
    layer, wide = WRITTEN[name].layer(N, K), torch.randn(2 * K, 6)
    for x in (wide.t()[:, ::2], wide[:K].t()[::2], torch.randn(1, K).expand(4, K)):
        assert_fused(layer, [WRITTEN[name].op], x)


@pytest.mark.x86
def test_the_quantized_integers_are_the_same() -> None:
    """A weight of ones and scales of powers of two: outputs tell each row's sum of integers."""
    x = torch.randn(500, 2)
    for name, written in WRITTEN.items():
        if "4 bits" in name:
            continue
        layer = written.layer(1, 2, bias=False)
        layer.weight.qdata.fill_(1)
        graph = traced(layer, x)
        changed, _ = fused_graph(graph)
        scale = (x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)) / 255 * float(layer.weight.scale.reshape(-1)[0])
        step = scale.clamp(min=1e-4).min()
        assert float((changed(x) - graph(x)).abs().max()) < float(step) / 20, name


# --- several layers in a graph ---


class Several(nn.Module):
    """Layers that share their quantized activations."""

    def __init__(self, activations: nn.Module, *weights: Weight) -> None:
        super().__init__()
        self.activations, self.weights = activations, nn.ModuleList(weights)

    def forward(self, x: Tensor) -> Tensor:
        activations = self.activations(x)
        return torch.cat([nn.functional.linear(activations, weight()) for weight in self.weights], -1)


@pytest.mark.x86
@pytest.mark.parametrize(("activations", "op"), [
    (TokensByTorchao, DYNAMIC),
    (TokensByDecomposed, QUANTIZED),
    (Calibrated, STATIC),
    (CalibratedByTorchao, STATIC),
])  # fmt: skip
def test_three_layers_share_their_activations(activations: Any, op: str) -> None:
    weights = [ChannelsByTorchao(5, K), ChannelsByDecomposed(9, K), ChannelsByTorchao(N, K)]
    assert_fused(Several(activations(), *weights), [op] * 3, torch.randn(4, K))
    assert_fused(Several(activations(), *weights, GroupsByTorchao(7, K)), [*[op] * 3, GROUPED], torch.randn(4, K))


@pytest.mark.x86
@pytest.mark.parametrize("weight", [ChannelsByTorchao, ChannelsByDecomposed, GroupsByTorchao, GroupsByDecomposed])
def test_a_weight_that_layers_share_is_packed_once(weight: Any) -> None:
    shared = weight(K, K)
    layer = Layer(TokensByTorchao(), shared)
    model = nn.Sequential(layer, Layer(Calibrated(), shared), layer, Layer(TokensByTorchao(), weight(N, K)))
    x = torch.randn(4, K)
    program = exported(model, x)
    changed = fused(program)
    assert len(layers(changed.graph)) == 4
    assert len(packed_weights(changed.state_dict)) == 2
    assert not any(name.endswith("qdata") for name in [*changed.state_dict, *changed.constants])
    graph, report = fused_graph(traced(model, x))
    assert len(report.fused) == 4 and len(packed_weights(dict(graph.named_buffers()))) == 2


@pytest.mark.x86
def test_a_weight_that_is_read_in_two_ways_is_packed_twice() -> None:
    """The same integers under other scales, or other zero points, are other weights."""
    one, other = ChannelsByTorchao(N, K), ChannelsByTorchao(N, K)
    other.qdata = one.qdata
    assert_fused(Several(TokensByTorchao(), one, other), [DYNAMIC] * 2, torch.randn(4, K))
    first, second = GroupsByTorchao(N, K), GroupsByTorchao(N, K)
    second.qdata, second.scale = first.qdata, first.scale
    changed = assert_fused(Several(TokensByTorchao(), first, second), [GROUPED] * 2, torch.randn(4, K))
    assert len(packed_weights(dict(changed.named_buffers()))) == 2


@pytest.mark.x86
def test_a_second_pass_leaves_what_the_first_one_made() -> None:
    graph, x = (
        traced(nn.Sequential(*(WRITTEN[name].layer(K, K) for name in WRITTEN)), torch.randn(4, K)),
        torch.ones(4, K),
    )
    expected = graph(x)
    assert len(fuse_(graph)) == len(WRITTEN)
    before, buffers = nodes(graph), dict(graph.named_buffers())
    assert fuse_(graph) == ()
    assert nodes(graph) == before and set(dict(graph.named_buffers())) == set(buffers)
    assert_near(graph(x), expected, 0.05)


@pytest.mark.x86
def test_layers_that_are_added_later_do_not_disturb_those_before() -> None:
    """Packed weights of two passes over one module have names of their own."""
    layer, other = (
        WRITTEN["static s8, quantized_decomposed x int8 per tensor, quantized_decomposed"].layer(N, K),
        Layer(Calibrated(0.05, 4), ChannelsByTorchao(N, K)),
    )
    x = torch.randn(4, K)
    graph = traced(layer, x)
    fuse_(graph)
    both = traced(lambda x: graph(x) + other(x), x)
    fuse_(both)
    assert layers(both.graph) == [STATIC] * 2
    assert_near(both(x), layer(x) + other(x))


# --- chains of static layers ---


def chain(*then: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.int8) -> nn.Sequential:
    """Static layers, each with what follows it; numbers are such that float32 computes them exactly."""
    made = []
    for function in then:
        layer = Layer(Calibrated(0.5, 3, dtype), ChannelsByDecomposed(K, K), then=function)
        layer.weight.scale.fill_(2.0**-6)
        assert layer.bias is not None
        layer.bias.copy_(torch.randint(-40, 40, (K,)) / 8)
        made.append(layer)
    return nn.Sequential(*made)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda y: y,
    "relu": torch.relu,
    "hardtanh": lambda y: nn.functional.hardtanh(y, -3.0, 7.5),
    "relu6": nn.functional.relu6,
    "clamp": lambda y: torch.clamp(y, -2, 9),
    "clamp_min": lambda y: torch.clamp(y, min=-1.5),
    "clamp_max": lambda y: torch.clamp(y, max=4),
    "two clamps": lambda y: torch.clamp(torch.relu(y), -5, 3),
    "bounds that cross": lambda y: torch.clamp(torch.clamp(y, min=5), max=2),
    "views": lambda y: torch.relu(y.reshape(-1, 1, K)).reshape(y.shape),
}


@pytest.mark.slow
@pytest.mark.x86
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_chains_stay_quantized(name: str, dtype: torch.dtype) -> None:
    function = ACTIVATION_FUNCTIONS[name]
    model, x = chain(function, function, function, dtype=dtype), torch.randn(5, K) * 20
    changed = assert_fused(model, [STATIC] * 3, x)
    assert torch.equal(changed(x), model(x))
    called = [node for node in changed.graph.nodes if str(node.target).startswith("ao_arm.")]
    assert [node.meta["val"].dtype for node in called] == [dtype, dtype, torch.float32]
    assert targets(changed.graph)[:3] == ["ao_arm.linear_int8_static"] * 3


@pytest.mark.x86
def test_what_several_use_stays_float() -> None:
    """The output of the first layer is used by two, so that it is not quantized in the op."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = chain(torch.relu, torch.relu)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y) + y

    x = torch.randn(5, K) * 20
    changed = assert_fused(Forked(), [STATIC] * 2, x)
    called = [node for node in changed.graph.nodes if str(node.target).startswith("ao_arm.")]
    assert [node.meta["val"].dtype for node in called] == [torch.float32] * 2


@pytest.mark.x86
@pytest.mark.parametrize("scale, zero_point", [(-1.0, 0), (1e-42, 0), (math.inf, 0), (math.nan, 0), (0.5, 300)])
def test_an_output_quantization_that_is_none_stays_outside(scale: float, zero_point: int) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            (self.layer,) = chain(torch.relu)

        def forward(self, x: Tensor) -> Tensor:
            return DECOMPOSED.quantize_per_tensor(self.layer(x), scale, zero_point, -128, 127, torch.int8)

    x = torch.randn(5, K)
    graph = traced(Model(), x)
    changed, report = fused_graph(graph)
    assert [layer.op for layer in report] == [STATIC]
    assert "quantized_decomposed.quantize_per_tensor" in targets(changed.graph)
    assert torch.equal(changed(x), graph(x))


# --- values that change in place ---


@pytest.mark.x86
@pytest.mark.parametrize("part", [lambda x: x, lambda x: x.chunk(2)[0]], ids=["whole", "a part"])
def test_inputs_that_change_after_they_were_quantized(part: Callable[[Tensor], Tensor]) -> None:
    layer = Layer(TokensByTorchao(), ChannelsByTorchao(N, K))

    class Changing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            activations = layer.activations(part(x))
            x.mul_(3)
            return nn.functional.linear(activations, layer.weight()) + x.sum()

    x = torch.randn(5, K)
    changed = assert_fused(Changing(), [QUANTIZED], x)
    assert "torchao.quantize_affine" in targets(changed.graph)


@pytest.mark.x86
def test_a_bias_that_changes_is_read_in_time() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer(TokensByTorchao(), ChannelsByTorchao(N, K))

        def forward(self, x: Tensor) -> Tensor:
            bias = self.layer.bias.clone()
            bias.add_(1)
            return self.layer.product(self.layer.activations(x), self.layer.weight(), bias)

    assert_fused(Changing(), [DYNAMIC], torch.randn(5, K))


@pytest.mark.x86
def test_scales_that_a_program_updates_are_no_constants() -> None:
    class Updating(Layer):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.scale.mul_(1.5)
            return super().forward(x)

    make = lambda: Updating(TokensByTorchao(), ChannelsByTorchao(N, K))  # noqa: E731
    x = torch.randn(5, K)
    torch.manual_seed(1)
    model = make()
    torch.manual_seed(1)
    program = exported(make(), x)
    for form in (program, program.run_decompositions({})):
        with pytest.warns(UserWarning, match="left as they were: .*no constant"):
            changed = fuse(form)
        assert layers(changed.graph) == []
    module, expected = changed.module(), model(x)
    assert torch.equal(module(x), expected)
    assert torch.equal(module(x), model(x))
