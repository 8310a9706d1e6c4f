"""The pass that makes one call of layers with the same input: which it takes together, and which it must not."""

import io
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from graphs import DYNAMIC, GROUPED, STATIC, assert_near, exported, fused, layers, nodes
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, MappingType, quantize_

import ao_arm
from ao_arm import _ops
from ao_arm.passes import compiled_reports, share_inputs

pytestmark = pytest.mark.x86

K = 64
SHARED, SHARED_INT4 = f"{DYNAMIC}_shared", f"{GROUPED}_shared"
CONFIGS = {
    "int8 asymmetric": (ao_arm.acl_int8_dynamic(), DYNAMIC, SHARED),
    "int8 symmetric": (ao_arm.acl_int8_dynamic(MappingType.SYMMETRIC), DYNAMIC, SHARED),
    "int4": (ao_arm.acl_int4_grouped(32), GROUPED, SHARED_INT4),
}


class Block(nn.Module):
    """Attention whose keys and values are narrower than its queries, then a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(K, K), nn.Linear(K, K // 2), nn.Linear(K, K // 2, bias=False)
        self.out = nn.Linear(K, K)
        self.gate, self.up, self.down = nn.Linear(K, 2 * K), nn.Linear(K, 2 * K), nn.Linear(2 * K, K)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 16)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        heads = scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        x = x + self.out(heads.transpose(1, 2).flatten(-2))
        return x + self.down(silu(self.gate(x)) * self.up(x))


def quantized(model: nn.Module, config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = model.eval()
    quantize_(model, config)
    return model


def results(program: ExportedProgram, *inputs: Tensor) -> Tensor:
    result: Tensor = program.module()(*(x.clone() for x in inputs))
    return result


@pytest.mark.parametrize("scheme", CONFIGS)
def test_a_program_gives_the_same_bits_by_fewer_calls(scheme: str) -> None:
    config, op, shared = CONFIGS[scheme]
    x = torch.randn(2, 5, K)
    program = exported(quantized(Block(), config), x, dynamic_shapes=({0: Dim("batch", min=2, max=64)},))
    before = nodes(program.graph_module)
    sharing = share_inputs(program)
    assert layers(sharing.graph) == [shared, op, shared, op]
    assert nodes(program.graph_module) == before
    for batch in (2, 3, 64):
        x = torch.randn(batch, 5, K)
        assert cases.same_bits(results(sharing, x), results(program, x))
    assert nodes(share_inputs(sharing).graph_module) == nodes(sharing.graph_module), "a second time it finds nothing"


@pytest.mark.slow
def test_programs_share_before_and_after_they_are_decomposed() -> None:
    x = torch.randn(2, 5, K)
    program = exported(quantized(Block(), CONFIGS["int4"][0]), x)
    expected = results(program, x)
    for sharing in (share_inputs(program.run_decompositions()), share_inputs(program).run_decompositions()):
        assert layers(sharing.graph) == [SHARED_INT4, GROUPED, SHARED_INT4, GROUPED]
        assert_near(results(sharing, x), expected)


def test_explain_names_the_layers_that_share_also_when_a_program_was_saved() -> None:
    x = torch.randn(2, 5, K)
    program = share_inputs(exported(quantized(Block(), CONFIGS["int8 asymmetric"][0]), x))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert cases.same_bits(results(loaded, x), results(program, x))
    for explained in (ao_arm.explain(program), ao_arm.explain(loaded)):
        assert [layer.name for layer in explained] == ["q", "k", "v", "out", "gate", "up", "down"]
        assert [layer.shape[0] for layer in explained] == [K, K // 2, K // 2, K, 2 * K, 2 * K, K]
        assert [layer.scheme.partition("), ")[2] for layer in explained] == [
            *["input shared by 3"] * 3,
            "",
            *["input shared by 2"] * 2,
            "",
        ]


def test_layers_of_another_tool_share_once_they_are_fused() -> None:
    x = torch.randn(2, 5, K)
    program = fused(exported(quantized(Block(), Int8DynamicActivationInt8WeightConfig(version=2)), x))
    sharing = share_inputs(program)
    assert layers(sharing.graph) == [SHARED, DYNAMIC, SHARED, DYNAMIC]
    assert cases.same_bits(results(sharing, x), results(program, x))


# --- what stands between ---


class Pair(nn.Module):
    """Two layers, and a way to call them."""

    def __init__(self, forward: Callable[["Pair", Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(K, K), nn.Linear(K, 40), nn.Linear(K, K)
        self.bias = nn.Parameter(torch.randn(40))
        self.register_buffer("state", torch.randn(40))
        self.call = (forward,)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.call[0](self, x)


def input_changed(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    x = x * 2
    one = self.one(x)
    x.add_(1)
    return one, self.two(x)


def part_of_input_changed(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    whole = torch.cat((x, x), -1)
    part, _ = whole.chunk(2, -1)
    one = self.one(part)
    whole.add_(1)
    return one, self.two(part)


def bias_changed(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    bias = self.bias * 1
    one = self.one(x)
    bias.mul_(2)
    return one, linear(x, self.two.weight, bias)


def buffer_changed(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    one = self.one(x)
    self.state.fill_(1)
    return one, linear(x, self.two.weight, self.state)


def bias_of_the_first_output(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    one = self.one(x)
    return one, linear(x, self.two.weight, one.mean((0, 1))[:40])


def random_bias(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    one = self.one(x)
    return one, linear(x, self.two.weight, torch.rand_like(self.bias) * 0)


def another_layer_between(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    one = self.one(x)
    return one, self.three(x + 1), self.two(x)


def branches_between(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    """What branches do is not looked at."""
    one = self.one(x)
    return one, torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)), self.two(x)


def another_dtype(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    return self.one(x), self.two(x.bfloat16())


APART = (
    input_changed,
    part_of_input_changed,
    bias_changed,
    buffer_changed,
    bias_of_the_first_output,
    random_bias,
    another_layer_between,
    branches_between,
    another_dtype,
)


def bias_computed_between(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    one = self.one(x)
    return one, linear(x, self.two.weight, (self.bias * 2).tanh())


def output_changed(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    one = self.one(x)
    one.add_(1)
    return one, self.two(x)


def output_unused(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    self.one(x)
    return (self.two(x),)


def one_layer_twice(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    return self.one(x), self.one(x)


TOGETHER = (bias_computed_between, output_changed, output_unused, one_layer_twice)


def outputs_of(program: ExportedProgram, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(program.module()(x.clone()))


@pytest.mark.slow
@pytest.mark.parametrize("forward", [*APART, *TOGETHER], ids=lambda forward: forward.__name__)
def test_what_stands_between(forward: Callable[[Pair, Tensor], tuple[Tensor, ...]]) -> None:
    x = torch.randn(2, 3, K)
    program = exported(quantized(Pair(forward), CONFIGS["int8 asymmetric"][0]), x)
    sharing = share_inputs(program)
    assert (SHARED in layers(sharing.graph)) == (forward in TOGETHER)
    pairs = zip(outputs_of(sharing, x), outputs_of(program, x), strict=True)
    assert all(cases.same_bits(actual, expected) for actual, expected in pairs)


def test_layers_that_quantize_differently_stay_apart() -> None:
    """Other rules, or scales that are given; what runs of them are alike are taken together."""
    qdata, scale = cases.int8_values(40, K), torch.rand(40)
    packed = _ops.pack_int8(qdata, "")
    packed4 = _ops.pack_int4(torch.randint(-8, 8, (40, K), dtype=torch.int8), torch.rand(40, 2), None, "")
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int8)

    class Ops(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            rules = [(False, True), (True, True), (True, True), (True, False), (False, True)]
            return (
                *(_ops.linear_int8_dynamic(x, packed, scale, None, *rule) for rule in rules),
                _ops.linear_int8_static(x, packed, scale, None, one, zero),
                _ops.linear_qta8a_qga4w(x, packed4, 40, None, one, zero),
                _ops.linear_qta8a_qga4w(x, packed4, 40, None, output_min=0.0),
                *(_ops.linear_qta8a_qga4w(x, packed4, 40, None) for _ in range(2)),
            )

    x = torch.randn(3, K)
    program = exported(Ops(), x)
    sharing = share_inputs(program)
    assert layers(sharing.graph) == [DYNAMIC, SHARED, DYNAMIC, DYNAMIC, STATIC, GROUPED, GROUPED, SHARED_INT4]
    pairs = zip(outputs_of(sharing, x), outputs_of(program, x), strict=True)
    assert all(cases.same_bits(actual, expected) for actual, expected in pairs)


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"must be a torch.export.ExportedProgram, not Block.*backend=\"ao_arm\""):
        share_inputs(Block())  # type: ignore[arg-type]


# --- compiled ---


def both(self: Pair, x: Tensor) -> tuple[Tensor, ...]:
    return self.one(x), self.two(x)


def compiled(model: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[tuple[Tensor, ...], list[str]]:
    """What a model gives once it is compiled, and what the reports of its graphs say."""
    torch._dynamo.reset()
    before = {id(report) for report in compiled_reports()}
    result = torch.compile(model, backend="ao_arm")(x)
    return result, [str(report) for report in compiled_reports() if id(report) not in before]


def gradients(outputs: tuple[Tensor, ...], model: nn.Module, x: Tensor) -> list[Tensor]:
    sum(output.square().sum() for output in outputs).backward()  # type: ignore[union-attr]
    found = [x.grad, model.one.bias.grad, model.two.bias.grad]
    model.zero_grad()
    return found


@pytest.mark.slow
def test_compiled_models_share_inputs_and_so_does_training() -> None:
    model, x = quantized(Pair(both), CONFIGS["int8 asymmetric"][0]), torch.randn(2, 5, K)
    with torch.no_grad():
        outputs, (report,) = compiled(model, x)
        assert all(cases.same_bits(*pair) for pair in zip(outputs, model(x), strict=True))
    assert report == "one, two share their input: ao_arm::linear_int8_dynamic_shared"
    own, others = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = gradients(model(own), model, own)
    outputs, (report,) = compiled(model, others)
    assert report.endswith("one, two share their input: ao_arm::linear_int8_dynamic_shared")
    for actual, wanted in zip(gradients(outputs, model, others), expected, strict=True):
        assert_near(actual, wanted)


@pytest.mark.slow
def test_what_is_computed_anew_in_the_backward_pass_stays_as_it_is() -> None:
    model = quantized(Pair(both), CONFIGS["int8 asymmetric"][0])
    own, others = (torch.ones(2, 5, K).requires_grad_() for _ in range(2))
    outputs, reports = compiled(lambda x: checkpoint(model, x, use_reentrant=False), others)
    assert len(reports) == 1 and "share" not in reports[0]
    expected = gradients(model(own), model, own)
    for actual, wanted in zip(gradients(outputs, model, others), expected, strict=True):
        assert_near(actual, wanted)
