"""Quantized layers written op by op: each known way is one op with the same numbers, each near miss stays as it was."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import (
    DECOMPOSED,
    DYNAMIC,
    GROUPED,
    OWN_WAY,
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
from torchao.quantization.quant_primitives import choose_qparams_affine, dequantize_affine, quantize_affine

import ao_arm
from ao_arm.passes import fuse, fuse_

K, N = 64, 33


@torch.no_grad()
def assert_fused(module: nn.Module, ops: list[str], *inputs: Tensor) -> torch.fx.GraphModule:
    """All layers of a module's graph become these ops, and it computes the same."""
    expected = module(*inputs)
    changed, report = fused_graph(traced(module, *inputs))
    assert [layer.op for layer in report] == ops == layers(changed.graph), report
    assert report.left == () and report.fused == report
    assert_near(changed(*inputs), expected)
    return changed


@torch.no_grad()
def assert_left(module: nn.Module, reason: str, *inputs: Tensor) -> None:
    """A module's graph stays node for node as it was, and the pass says why."""
    graph = traced(module, *inputs)
    before, attributes = nodes(graph), set(dict(graph.named_buffers()))
    expected = graph(*inputs)
    report = fuse_(graph)
    assert [layer.op for layer in report] == [""] and report.left == report
    assert report[0].reason in str(report)
    assert reason in report[0].reason
    assert nodes(graph) == before and set(dict(graph.named_buffers())) == attributes
    assert torch.equal(graph(*inputs).nan_to_num(), expected.nan_to_num())
    (explained,) = [layer for layer in ao_arm.explain(graph)]
    assert (explained.kernel, explained.reason) == ("torch", report[0].reason)


# --- each way to write a layer ---


@pytest.mark.x86
@pytest.mark.parametrize("name", WRITTEN)
def test_each_pair_is_one_op(name: str) -> None:
    written = WRITTEN[name]
    for rows in ((5,), (2, 3)):
        assert_fused(written.layer(N, K), [written.op], torch.randn(*rows, K))


@pytest.mark.one_cpu
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("activations", "weight", "op"), [
    (TokensByTorchao, ChannelsByTorchao, DYNAMIC),
    (TokensByTorchao, GroupsByTorchao, GROUPED),
    (TokensByDecomposed, ChannelsByDecomposed, QUANTIZED),
    (Calibrated, ChannelsByDecomposed, STATIC),
])  # fmt: skip
def test_each_product_is_known(activations: Any, weight: Any, op: str, product: str) -> None:
    for bias in (False, True):
        layer = Layer(activations(), weight(N, K), PRODUCTS[product], bias)
        for rows in ((1,), (2, 3), (2, 1, 4)):
            assert_fused(layer, [op], torch.randn(*rows, K))


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


# --- near misses ---


def near_misses() -> dict[str, tuple[str, Callable[[], nn.Module]]]:
    """By what is wrong: a part of the reason, and what makes the module."""

    def with_weight(**changes: Any) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            layer = Layer(TokensByTorchao(), changes.pop("kind", ChannelsByTorchao)(N, K))
            for name, change in changes.items():
                change(getattr(layer.weight, name))
            return layer

        return make

    def weighted(function: Callable[[Weight], Tensor], kind: Any = ChannelsByTorchao) -> Callable[[], nn.Module]:
        class Other(kind):  # type: ignore[misc]
            def forward(self) -> Tensor:
                return function(self)

        return lambda: Layer(TokensByTorchao(), Other(N, K))

    def activated(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
        class Other(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return function(x)

        return lambda: Layer(Other(), ChannelsByTorchao(N, K))

    def multiplied(product: Any, kind: Any = ChannelsByTorchao, n: int = N) -> Callable[[], nn.Module]:
        return lambda: Layer(TokensByTorchao(), kind(n, K), product)

    def in_blocks(x: Tensor, block: list[int]) -> Tensor:
        given = (torch.int8, -128, 127, 1e-7, torch.float32, torch.int32)
        scale, zero_point = choose_qparams_affine(x, TokensByTorchao().mapping, block, *given)
        q = quantize_affine(x, block, scale, zero_point, torch.int8, -128, 127)
        return dequantize_affine(q, block, scale, zero_point, torch.int8, -128, 127)

    def u8_tokens(x: Tensor) -> Tensor:
        given = (torch.uint8, 0, 255, 1e-7, torch.float32, torch.int32)
        scale, zero_point = choose_qparams_affine(x, TokensByTorchao().mapping, [1, K], *given)
        q = quantize_affine(x, [1, K], scale, zero_point, torch.uint8, 0, 255)
        return dequantize_affine(q, [1, K], scale, zero_point, torch.uint8, 0, 255)

    def calibrated(scale: float, zero_point: int, least: int = -128, dtype: Any = torch.int8) -> Any:
        def function(x: Tensor) -> Tensor:
            q = DECOMPOSED.quantize_per_tensor(x, 0.5, 0, least, 127, dtype)
            return DECOMPOSED.dequantize_per_tensor(q, scale, zero_point, least, 127, dtype)

        return activated(function)

    def unknown_zero_point(dtype: torch.dtype) -> Callable[[], nn.Module]:
        def function(x: Tensor) -> Tensor:
            zero_point = x.sum().to(dtype)
            q = DECOMPOSED.quantize_per_tensor(x, 0.5, 0, -128, 127, torch.int8)
            return (
                ((q.to(torch.int32) - zero_point) * 0.5)
                if dtype == torch.int64
                else (DECOMPOSED.dequantize_per_tensor.tensor(q, torch.tensor(0.5), zero_point, -128, 127, torch.int8))
            )

        return activated(function)

    def changed_weight(weight: Weight) -> Tensor:
        copy = weight.qdata.clone()
        copy.add_(1)
        return dequantize_affine(copy, [1, K], weight.scale, None, torch.int8, -127, 127)

    def columns(weight: Weight) -> Tensor:
        scale = (weight.qdata[:1] % 7 + 9) * 0.01
        return dequantize_affine(weight.qdata, [N, 1], scale, None, torch.int8, -127, 127)

    def blocks(weight: Weight) -> Tensor:
        return dequantize_affine(weight.qdata, [3, K], weight.scale[::3], None, torch.int8, -127, 127)

    def axis_1(weight: Weight) -> Tensor:
        given = ((weight.qdata[0] % 7 + 9) * 0.01, weight.qdata[0] * 0, 1, -127, 127, torch.int8)
        return DECOMPOSED.dequantize_per_channel(weight.qdata, *given)

    def in_groups_of_8_bits(weight: Weight) -> Tensor:
        return dequantize_affine(weight.qdata, [1, 32], weight.scale.expand(N, 2).clone(), None, torch.int8, -127, 127)

    def zero_points(weight: Weight) -> Tensor:
        return dequantize_affine(weight.qdata, [1, K], weight.scale, weight.zero_point + 1, torch.int8, -127, 127)

    def of_16_bits(weight: Weight) -> Tensor:
        return dequantize_affine(weight.qdata.to(torch.int16), [1, K], weight.scale, None, torch.int16, -127, 127)

    return {
        "float activations": ("its activations are floats", activated(lambda x: x * 2)),
        "blocks within rows": ("neither rows nor all", activated(lambda x: in_blocks(x, [1, 32]))),
        "blocks of rows": ("neither rows nor all", activated(lambda x: in_blocks(x, [2, K]))),
        "uint8 tokens": ("torch.uint8", activated(u8_tokens)),
        "int16 activations": ("torch.int16", calibrated(0.5, 0, dtype=torch.int16)),
        "activations scaled by 0": ("the scale 0.0", calibrated(0.0, 0)),
        "a negative scale": ("the scale -0.5", calibrated(-0.5, 0)),
        "an infinite scale": ("the scale inf", calibrated(math.inf, 0)),
        "a scale that is no number": ("the scale nan", calibrated(math.nan, 0)),
        "a scale without a reciprocal": ("the scale 1e-42", calibrated(1e-42, 0)),
        "a zero point out of range": ("the zero point 200", calibrated(0.5, 200)),
        "a zero point that may be out of range": ("may be none of torch.int8", unknown_zero_point(torch.int32)),
        "weights scaled by 0": ("positive, finite", with_weight(scale=lambda scale: scale[3].zero_())),
        "a negative weight scale": ("positive, finite", with_weight(scale=lambda scale: scale[3].neg_())),
        "weights without a scale": ("positive, finite", with_weight(scale=lambda scale: scale[3].fill_(math.nan))),
        "an infinite weight scale": ("positive, finite", with_weight(scale=lambda scale: scale[3].fill_(math.inf))),
        "groups without a scale": (
            "finite floats other than 0",
            with_weight(kind=GroupsByTorchao, scale=lambda scale: scale[3].zero_()),
        ),
        "more than 4 bits": ("[-8, 7]", with_weight(kind=GroupsByTorchao, qdata=lambda qdata: qdata[2].fill_(99))),
        "a weight per column": ("blocks of [33, 1]", weighted(columns)),
        "a weight in blocks of rows": ("blocks of [3, 64]", weighted(blocks)),
        "a weight along axis 1": ("along axis 1", weighted(axis_1)),
        "8 bits in groups": ("8 bits in groups of 32", weighted(in_groups_of_8_bits)),
        "8 bits with zero points": ("zero points", weighted(zero_points)),
        "16 bits": ("int16", weighted(of_16_bits)),
        "a weight that changes": ("no constant", weighted(changed_weight)),
        "an unknown dequantization": ("in a way that is known", weighted(lambda weight: weight.qdata.float().pow(2))),
        "a weight that is not transposed": (
            "as (k, n)",
            multiplied(lambda x, weight, bias: torch.mm(x, weight), n=K),
        ),
        "a scaled product": (
            "scaled by 2",
            multiplied(lambda x, weight, bias: torch.addmm(bias, x, weight.t(), alpha=2)),
        ),
        "a bias for each token": (
            "its bias has the shape (6, 1)",
            multiplied(lambda x, weight, bias: torch.addmm(x[:, :1], x, weight.t())),
        ),
        "a bias of one": (
            "its bias has the shape (1,)",
            multiplied(lambda x, weight, bias: torch.addmm(bias[:1], x, weight.t())),
        ),
    }  # fmt: skip


NEAR_MISSES = near_misses()


@pytest.mark.x86
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays_as_it_was(name: str) -> None:
    reason, make = NEAR_MISSES[name]
    assert_left(make(), reason, torch.randn(6, K))


@pytest.mark.x86
def test_weights_that_are_inputs_stay_as_they_were() -> None:
    def function(x: Tensor, qdata: Tensor, scale: Tensor) -> Tensor:
        weight = dequantize_affine(qdata, [1, K], scale, None, torch.int8, -127, 127)
        return nn.functional.linear(TokensByTorchao()(x), weight)

    weight = ChannelsByTorchao(N, K)
    assert_left(function, "no constant", torch.randn(5, K), weight.qdata, weight.scale)


@pytest.mark.x86
def test_a_program_with_a_near_miss_warns_and_is_served_but_for_it() -> None:
    good, bad = Layer(TokensByTorchao(), ChannelsByTorchao(K, K)), NEAR_MISSES["weights scaled by 0"][1]()
    model, x = nn.Sequential(good, bad), torch.randn(5, K)
    program = exported(model, x)
    with pytest.warns(UserWarning, match="1 quantized linear layers were left as they were: .*positive, finite"):
        changed = fuse(program)
    assert layers(changed.graph) == [DYNAMIC]
    assert_near(changed.module()(x), model(x), 1e-2)


# --- values that change in place ---


@pytest.mark.x86
def test_inputs_that_change_after_they_were_quantized() -> None:
    layer = Layer(TokensByTorchao(), ChannelsByTorchao(N, K))

    class Changing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            activations = layer.activations(x)
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


# --- element by element, as compilers see it ---


def int_mm(
    scale: Callable[[Tensor], Tensor], weight_scale: tuple[int, ...] = (K,), bias: tuple[int, ...] | None = (K,)
) -> nn.Module:
    """A square product of integers for as many rows, so that a shape tells what is a row and what a column."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = Weight(K, K)
            self.register_buffer("weight_scale", torch.rand(weight_scale) + 0.5)
            self.bias = nn.Parameter(torch.randn(bias), requires_grad=False) if bias else None

        def forward(self, x: Tensor) -> Tensor:
            sums = torch._int_mm(x.round().clamp(-128, 127).to(torch.int8), self.weight.qdata.t())
            floats = sums.to(torch.float32) * scale(x) * self.weight_scale
            return floats if self.bias is None else floats + self.bias

    return Model()


@pytest.mark.x86
@pytest.mark.parametrize("bias", [(K,), None], ids=str)
@pytest.mark.parametrize("weight_scale", [(K,), (1, K), (1,)], ids=str)
def test_activations_that_are_quantized_in_a_way_of_their_own(weight_scale: Any, bias: Any) -> None:
    """Nothing that is known stands in front, so that an op takes the integers and the scales."""
    tokens, op = (
        int_mm(lambda x: x.abs().amax(-1, keepdim=True), weight_scale, bias),
        f"ao_arm::{OWN_WAY[2].strip('`')}",
    )
    assert_fused(tokens, [op], torch.randn(K, K) * 40)
    repeated = int_mm(lambda x: x.abs().amax(-1, keepdim=True).expand(-1, K), weight_scale, bias)
    assert_fused(repeated, [op], torch.randn(K, K) * 40)
    smoothed = int_mm(lambda x: torch.exp(x[:, :1] / 100), weight_scale, bias)
    assert_fused(smoothed, [QUANTIZED], torch.randn(K, K) * 40)


EPILOGUES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "activations scaled by column": ("the shape of the scale", lambda: int_mm(lambda x: x[0].exp())),
    "activations scaled one by one": ("the shape of the scale", lambda: int_mm(lambda x: x.abs())),
    "weights scaled by row": ("its weight's scales have the shape", lambda: int_mm(lambda x: x[:, :1], (K, 1))),
}


@pytest.mark.x86
def test_a_bias_by_row_is_added_behind_the_op() -> None:
    changed = assert_fused(int_mm(lambda x: x[:, :1], (K,), (K, 1)), [QUANTIZED], torch.randn(K, K) * 40)
    assert targets(changed.graph)[-1] == "aten.add.Tensor"


@pytest.mark.x86
@pytest.mark.parametrize("name", EPILOGUES)
def test_an_epilogue_that_is_another_stays_as_it_was(name: str) -> None:
    reason, make = EPILOGUES[name]
    assert_left(make(), reason, torch.randn(K, K))


@pytest.mark.x86
def test_an_intermediate_result_that_is_used_again() -> None:
    model = int_mm(lambda x: x[:, :1])

    class Used(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sums = torch._int_mm(x.to(torch.int8), model.weight.qdata.t())
            return sums.to(torch.float32) * x[:, :1] * model.weight_scale + sums

    assert_left(Used(), "more than one node uses", torch.randn(K, K) * 40)


@pytest.mark.x86
@pytest.mark.parametrize("dims", ["row", "column", "all"])
def test_weights_that_are_dequantized_element_by_element(dims: str) -> None:
    shape = {"row": (K, 1), "column": (1, K), "all": (1, 1)}[dims]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Layer(Calibrated(), Weight(K, K))
            self.register_buffer("scale", torch.rand(K if dims != "all" else 1) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.ops.prims.convert_element_type(self.inner.weight.qdata, torch.float32)
            weight = weight * self.scale.view(shape)
            return self.inner.product(self.inner.activations(x), weight, self.inner.bias)

    if dims == "column":
        assert_left(Model(), "by column", torch.randn(5, K))
    else:
        assert_fused(Model(), [STATIC], torch.randn(5, K))
