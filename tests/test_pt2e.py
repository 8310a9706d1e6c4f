"""Graphs that PT2E quantized: every linear layer becomes one op of ours, and nothing else changes."""

import copy
import dataclasses
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any

import cases
import pt2e_models
import pytest
import torch
from pt2e_models import MODELS, WAYS, Encoder, Inputs, Way, aten, converted, exact, quantizer_of, x86_config
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

from ao_arm.demo import encoder
from ao_arm.passes import FusionReport, compiled_reports, fuse, fuse_

Run = Callable[..., Any]
STATIC, DYNAMIC = "ao_arm::linear_int8_static", "ao_arm::linear_int8_dynamic"
EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
#: Quantizers find no layers in what torch 2.10 exports otherwise.
STRICT = torch.__version__.startswith("2.10")
#: Of the largest value; floats are added up in another order. Where that moves a value over a rounding tie, more.
CLOSE = 1e-5
#: The signal to noise, in decibels, of what differs by such ties alone.
TIES = 40.0


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@functools.cache
def exported(model: str) -> tuple[torch.nn.Module, ExportedProgram]:
    """A float model, and a program of it for any batch."""
    make, shape = MODELS[model]
    floats = make().eval()
    batch = {"dynamic_shapes": ({0: pt2e_models.BATCH},), "strict": STRICT}
    return floats, torch.export.export(floats, (torch.randn(3, *shape),), **batch)


def quantized(model: str, way: Way) -> tuple[torch.nn.Module, GraphModule]:
    """A float model, and what PT2E makes of its graph for any batch."""
    floats, program = exported(model)
    calibration = [(torch.randn(16, *MODELS[model][1]),) for _ in range(3)]
    return floats, converted(program.module(), quantizer_of(way), calibration)


def fused_in_place(graph: GraphModule, x: Tensor) -> tuple[Run, FusionReport]:
    made = copy.deepcopy(graph)
    return made, fuse_(made)


def exported_and_fused(graph: GraphModule, x: Tensor) -> tuple[Run, FusionReport]:
    program = fuse(torch.export.export(graph, (x,), dynamic_shapes=({0: pt2e_models.BATCH},)))
    assert pt2e_models.count(program.graph, aten.linear) == 0
    return program.module(), fuse_(copy.deepcopy(program.graph_module))


def compiled(graph: GraphModule, x: Tensor, **options: Any) -> tuple[Run, FusionReport]:
    run = torch.compile(graph, backend="ao_arm", dynamic=True, options=options)
    run(x)
    return run, compiled_reports()[-1]


def decibels(expected: Tensor, actual: Tensor) -> float:
    return cases.sqnr(expected, actual)


def differs(expected: Tensor, actual: Tensor) -> float:
    return float((expected - actual).abs().max() / expected.abs().max())


@pytest.mark.x86
@torch.no_grad()
@EACH_WAY
@pytest.mark.parametrize("model", MODELS)
def test_every_linear_layer_is_one_op_and_the_numbers_stay(model: str, way: Way) -> None:
    floats, graph = quantized(model, way)
    fused, report = fused_in_place(graph, torch.empty(0))
    assert [(layer.name, layer.op, layer.reason) for layer in report] == [
        (name, STATIC, "") for name in MODELS[model][0].LINEAR
    ]
    assert pt2e_models.count(fused.graph, aten.linear) == 0
    assert pt2e_models.count(fused.graph, aten.conv2d) == pt2e_models.count(graph.graph, aten.conv2d)
    for batch in (2, 3, 16):
        x = torch.randn(batch, *MODELS[model][1])
        expected, result, sums = floats(x), fused(x), exact(graph)(x)
        assert differs(sums, result) < CLOSE or decibels(sums, result) > TIES
        assert decibels(expected, result) == pytest.approx(decibels(expected, graph(x)), abs=0.2)
        assert decibels(expected, result) > 15


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.slow
@EACH_WAY
@pytest.mark.parametrize("model", MODELS)
def test_programs_and_compiled_graphs_fuse_alike(model: str, way: Way) -> None:
    floats, graph = quantized(model, way)
    x = torch.randn(5, *MODELS[model][1])
    sums = exact(graph)(x)
    for prepare in (exported_and_fused, *((compiled,) if model == "encoder" else ())):  # Inductor takes long
        torch._dynamo.reset()
        run, report = prepare(graph, x)
        assert report.left == ()
        if prepare is compiled:
            assert [layer.op for layer in report] == [STATIC] * len(MODELS[model][0].LINEAR)
        result = run(x)
        # What Inductor computes around the ops may round another way.
        assert differs(sums, result) < CLOSE or decibels(sums, result) > TIES - 10 * (prepare is compiled)
        assert decibels(floats(x), result) == pytest.approx(decibels(floats(x), graph(x)), abs=0.3)


@pytest.mark.slow
@pytest.mark.one_cpu
@torch.no_grad()
def test_arm_s_own_quantizer_compiled_with_freezing() -> None:
    floats, graph = quantized("encoder", WAYS["arm static per tensor"])
    x = torch.randn(5, *MODELS["encoder"][1])
    run, report = compiled(graph, x, freezing=True)
    assert [layer.op for layer in report] == [STATIC] * len(Encoder.LINEAR)
    assert decibels(exact(graph)(x), run(x)) > TIES - 10
    assert decibels(floats(x), run(x)) > 15


@pytest.mark.x86
@torch.no_grad()
@EACH_WAY
def test_one_activation_is_quantized_once_for_all_that_share_it(way: Way) -> None:
    _, graph = quantized("encoder", way)
    fused, _ = fused_in_place(graph, torch.empty(0))
    ops = [node for node in fused.graph.nodes if str(node.target).startswith("ao_arm.linear")]
    query, key, value = (node.args[0] for node in ops[:3])
    assert query is key is value
    if way.is_dynamic:
        scales = {node.args[4] if node.op == "get_attr" else _source(node.args[4]) for node in ops[:3]}
        assert len(scales) == 1
        assert pt2e_models.count(fused.graph, torch.ops.quantized_decomposed.choose_qparams) == 4
    else:
        assert query.target is torch.ops.quantized_decomposed.quantize_per_tensor.default


def _source(node: Any) -> Any:
    """What a scale is, past casts and views."""
    while node.target in (aten.to.dtype, aten.reshape.default):
        node = node.args[0]
    return node


@pytest.mark.x86
@torch.no_grad()
def test_a_relu_and_the_next_layer_s_quantization_go_into_the_op() -> None:
    _, graph = quantized("pictures", WAYS["arm static per tensor"])
    fused, _ = fused_in_place(graph, torch.empty(0))
    hidden, last = (node for node in fused.graph.nodes if str(node.target).startswith("ao_arm.linear"))
    assert last.args[0] is hidden  # integers go from one to the other
    assert fused(torch.randn(2, 3, 12, 12)).dtype == torch.float32
    assert pt2e_models.count(fused.graph, aten.relu) == 2  # of the convolutions


@pytest.mark.x86
@torch.no_grad()
def test_activations_in_half_the_range() -> None:
    """As CPUs need them whose 16-bit sums overflow."""
    graph = torch.export.export(Encoder().eval(), (torch.randn(3, 7, 32),)).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(x86_config(reduce_range=True))
    made = converted(graph, quantizer, [(torch.randn(3, 7, 32),)])
    assert "0, 127, torch.uint8" in str(made.code)
    fused, report = fused_in_place(made, torch.empty(0))
    assert len(report.fused) == len(Encoder.LINEAR) and report.left == ()
    x = 3 * torch.randn(3, 7, 32)  # beyond what was seen: it is cut off at 127
    assert decibels(exact(made)(x), fused(x)) > TIES


# --- near misses ---


@torch.no_grad()
def one_layer(config: Any, x: Tensor) -> GraphModule:
    """A quantized layer, named 0."""
    quantizer = X86InductorQuantizer()
    quantizer.set_global(config)
    layer = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 16)).eval()
    return converted(torch.export.export(layer, (x,)).module(), quantizer, [(x,)])


def of_weights_alone(x: Tensor) -> GraphModule:
    return one_layer(dataclasses.replace(x86_config(), input_activation=None), x)


def with_zero_points(x: Tensor) -> GraphModule:
    graph = one_layer(x86_config(), x)
    for name, buffer in graph.named_buffers():
        if "zero_point" in name:
            buffer.fill_(3)
    return graph


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (of_weights_alone, "its weight is quantized, but its activations are floats"),
        (with_zero_points, "its 8-bit weight has zero points, and 8 bits are taken with symmetric scales"),
    ],
)
def test_what_no_op_computes_is_left_and_said(make: Callable[[Tensor], GraphModule], reason: str) -> None:
    x = torch.randn(3, 32)
    graph = make(x)
    expected, program = graph(x), torch.export.export(graph, (x,))
    with pytest.warns(UserWarning, match=f"1 quantized linear layers were left as they were: 0: {re.escape(reason)}"):
        fuse(program)
    fused, (left,) = fused_in_place(graph, x)
    assert (left.name, left.op) == ("0", "") and left.reason.startswith(reason)
    assert cases.same_bits(fused(x), expected)


@pytest.mark.x86
@torch.no_grad()
def test_layers_that_were_not_quantized_stay_floats() -> None:
    graph = torch.export.export(Encoder().eval(), (torch.randn(3, 7, 32),)).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(x86_config()).set_module_name_qconfig("up", None)
    made = converted(graph, quantizer, [(torch.randn(3, 7, 32),)])
    fused, report = fused_in_place(made, torch.empty(0))
    assert [layer.name for layer in report] == [name for name in Encoder.LINEAR if name != "up"]
    assert report.left == () and pt2e_models.count(fused.graph, aten.linear) == 1
    x = torch.randn(3, 7, 32)
    assert decibels(exact(made)(x), fused(x)) > TIES


@pytest.mark.x86
@torch.no_grad()
def test_products_of_activations_are_no_layers() -> None:
    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = torch.nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(self.query(x), x.transpose(1, 2))

    x = torch.randn(3, 7, 32)
    quantizer = X86InductorQuantizer()
    quantizer.set_global(x86_config()).set_function_type_qconfig(torch.matmul, x86_config())
    graph = converted(torch.export.export(Scores().eval(), (x,)).module(), quantizer, [(x,)])
    assert "matmul" in str(graph.code)
    fused, report = fused_in_place(graph, x)
    assert [layer.name for layer in report.fused] == ["query"]
    assert all("no constant" in layer.reason for layer in report.left)
    assert decibels(exact(graph)(x), fused(x)) > TIES


# --- SmoothQuant ---


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("prepare", [exported_and_fused, pytest.param(compiled, marks=pytest.mark.slow)])
def test_smoothquant_s_pre_scale_stays_in_front_of_the_op(prepare: Callable[..., tuple[Run, FusionReport]]) -> None:
    smoothquant = pytest.importorskip("torchao.prototype.smoothquant")
    floats, outliers = Encoder().eval(), torch.ones(32)
    outliers[::8] = 30.0
    model, calibration = copy.deepcopy(floats), torch.randn(16, 7, 32) * outliers
    base = Int8DynamicActivationInt8WeightConfig(version=2, set_inductor_config=False)
    for step in ("prepare", "convert"):
        quantize_(model, smoothquant.SmoothQuantConfig(base_config=base, step=step))
        model(calibration)
    x = torch.randn(5, 7, 32) * outliers
    expected = model(x)
    assert decibels(floats(x), expected) > 20
    run, report = prepare(model, x)
    assert report.left == ()
    if prepare is compiled:
        assert [layer.op for layer in report] == [DYNAMIC] * len(Encoder.LINEAR)
    assert decibels(expected, run(x)) > TIES - 10 * (prepare is compiled)
    assert decibels(floats(x), run(x)) == pytest.approx(decibels(floats(x), expected), abs=0.3)


# --- a real encoder ---


class States(torch.nn.Module):
    """An encoder's last hidden states as a function of tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return states


@functools.cache
def exported_encoder() -> tuple[torch.nn.Module, ExportedProgram, list[Inputs]]:
    """Also inputs to calibrate with, and others."""
    model = encoder.Encoder()
    batches = [(batch["input_ids"], batch["attention_mask"]) for batch in model.batches(encoder.SENTENCES[:32], 16)]
    floats = States(model.model).eval()
    shape = {0: pt2e_models.BATCH, 1: torch.export.Dim("tokens", min=2, max=128)}
    return floats, torch.export.export(floats, batches[0], dynamic_shapes=(shape, shape)), batches


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("way", ["arm static per tensor", "x86 dynamic per channel"])
@pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in ("transformers", encoder.MODEL_PACKAGE)),
    reason="pip install 'ao_arm[demo]'",
)
def test_a_real_encoder(way: str) -> None:
    floats, program, (calibration, other) = exported_encoder()
    graph = converted(program.module(), quantizer_of(WAYS[way]), [calibration])
    fused, report = fused_in_place(graph, torch.empty(0))
    assert len(report.fused) == 36 and report.left == ()
    assert pt2e_models.count(fused.graph, aten.linear) == 0
    expected, before, after = floats(*other), graph(*other), fused(*other)
    assert decibels(expected, after) == pytest.approx(decibels(expected, before), abs=0.3)
    # Rounding ties that fall the other way add up over six layers; quantization itself costs much more.
    assert decibels(exact(graph)(*other), after) > decibels(expected, after) + 4
    if way != "arm static per tensor":  # Inductor takes long
        return
    run = torch.compile(graph, backend="ao_arm", dynamic=True)
    assert decibels(expected, run(*other)) == pytest.approx(decibels(expected, before), abs=0.5)
    assert len(compiled_reports()[-1].fused) == 36 and compiled_reports()[-1].left == ()
