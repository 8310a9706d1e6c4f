"""What the tests of graph passes have in common: quantized layers as other tools write them, traced, run and compared.

`WRITTEN` and `SOURCES` are also what docs/support.md lists: see `fusion_table.py`.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
import torchao.quantization
import torchao.quantization.pt2e.quantizer.arm_inductor_quantizer as arm
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    PerAxis,
    PerGroup,
    quantize_,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, dequantize_affine, quantize_affine

import ao_arm
from ao_arm.passes import FusionReport, fuse, fuse_

DECOMPOSED, ATEN = torch.ops.quantized_decomposed, torch.ops.aten
DYNAMIC, STATIC, QUANTIZED, GROUPED = (
    f"ao_arm::linear_{name}" for name in ("int8_dynamic", "int8_static", "int8_quantized", "qta8a_qga4w")
)

# --- graphs ---


@torch.no_grad()
def exported(module: nn.Module, *inputs: Tensor, **more: Any) -> ExportedProgram:
    return torch.export.export(module, inputs, **more)


def traced(function: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    """The graph of a function or a module, in which all tensors that it holds are attributes."""
    with torch.no_grad():
        return make_fx(function, pre_dispatch=True)(*inputs)


def targets(graph: torch.fx.Graph) -> list[str]:
    """The names of the ops that a graph calls, in their order."""
    return [str(node.target).removesuffix(".default") for node in graph.nodes if node.op == "call_function"]


def layers(graph: torch.fx.Graph) -> list[str]:
    """The ops of ours that a graph calls."""
    return [name.replace(".", "::") for name in targets(graph) if name.startswith("ao_arm.")]


def nodes(module: GraphModule) -> list[tuple[str, str, str, str]]:
    """All that a graph is."""
    return [(node.op, node.name, str(node.target), f"{node.args} {node.kwargs}") for node in module.graph.nodes]


def fused(program: ExportedProgram) -> ExportedProgram:
    """A program in which each quantized layer was fused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*left as they were")
        return fuse(program)


def fused_graph(module: GraphModule) -> tuple[GraphModule, FusionReport]:
    """A graph after the pass; the one that is given stays as it is."""
    changed = copy.deepcopy(module)
    return changed, fuse_(changed)


def packed_weights(holder: Mapping[str, Tensor]) -> list[str]:
    """The names of packed weights among others."""
    return [name for name in holder if "packed_weight" in name]


# --- comparisons ---

#: How far outputs may be from the source's, as a share of the largest magnitude: sums of a layer with floats are
#: rounded by float32 or by what dtype the layer has; the int8 sums of ours are exact.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if expected.numel() == 0:
        return
    tolerance = TOLERANCES[expected.dtype] if tolerance is None else tolerance
    difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30)
    assert float(difference) <= tolerance


def assert_within_ulps(actual: Tensor, expected: Tensor, ulps: int = 2) -> None:
    """For layers whose sums are exact: what follows them is computed in floats, element by element."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    largest = torch.maximum(expected.double().abs(), expected.double().abs().amax(-1, keepdim=True) * 0.5)
    assert bool(((actual.double() - expected.double()).abs() <= ulps * torch.finfo(expected.dtype).eps * largest).all())


# --- layers, op by op ---


class Activations(nn.Module):
    """Activations that are quantized and dequantized: per token, or with one scale."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class TokensByTorchao(Activations):
    """torchao's ops, a scale for each token."""

    def __init__(self, mapping: MappingType = MappingType.ASYMMETRIC) -> None:
        super().__init__()
        self.mapping = mapping

    def forward(self, x: Tensor) -> Tensor:
        block = [*[1] * (x.dim() - 1), x.shape[-1]]
        epsilon = torch.finfo(torch.float32).eps
        chosen = (torch.int8, -128, 127, epsilon, torch.float32, torch.int8)
        scale, zero_point = choose_qparams_affine(x, self.mapping, block, *chosen)
        q = quantize_affine(x, block, scale, zero_point, torch.int8, -128, 127)
        return dequantize_affine(q, block, scale, zero_point, torch.int8, -128, 127, output_dtype=x.dtype)


class TokensByDecomposed(Activations):
    """`quantized_decomposed`'s ops, a scale for each token."""

    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = DECOMPOSED.choose_qparams_per_token_asymmetric(x, torch.int8)
        q = DECOMPOSED.quantize_per_token(x, scale, zero_point, -128, 127, torch.int8)
        return DECOMPOSED.dequantize_per_token(q, scale, zero_point, -128, 127, torch.int8, torch.float32)


class Calibrated(Activations):
    """One scale that is known beforehand."""

    def __init__(self, scale: float = 0.03125, zero_point: int = -7, dtype: torch.dtype = torch.int8) -> None:
        super().__init__()
        info = torch.iinfo(dtype)
        self.given = (scale, zero_point, info.min, info.max, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return DECOMPOSED.dequantize_per_tensor(DECOMPOSED.quantize_per_tensor(x, *self.given), *self.given)


class CalibratedByTorchao(Activations):
    """One scale in a tensor, and torchao's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.027]))
        self.register_buffer("zero_point", torch.tensor([3], dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        block = list(x.shape)
        q = quantize_affine(x, block, self.scale, self.zero_point, torch.int8, -128, 127)
        return dequantize_affine(q, block, self.scale, self.zero_point, torch.int8, -128, 127, output_dtype=x.dtype)


class ByRange(Activations):
    """One scale, by the range of all values."""

    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = DECOMPOSED.choose_qparams.tensor(x, -128, 127, 2.0**-12, torch.int8)
        q = DECOMPOSED.quantize_per_tensor.tensor(x, scale, zero_point, -128, 127, torch.int8)
        return DECOMPOSED.dequantize_per_tensor.tensor(q, scale, zero_point, -128, 127, torch.int8)


class Weight(nn.Module):
    """A quantized weight (n, k) that is dequantized."""

    qdata: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, n: int, k: int, groups: int = 1, bits: int = 8) -> None:
        super().__init__()
        largest = 2 ** (bits - 1) - 1
        self.register_buffer("qdata", torch.randint(-largest, largest + 1, (n, k), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(n, groups) * 0.02 + 0.01)
        self.register_buffer("zero_point", torch.zeros(n, groups, dtype=torch.int8))

    @property
    def group_size(self) -> int:
        return self.qdata.shape[1] // self.scale.shape[1]


class ChannelsByTorchao(Weight):
    """`torchao.dequantize_affine`, int8, a scale for each output channel."""

    def forward(self) -> Tensor:
        return dequantize_affine(self.qdata, [1, self.qdata.shape[1]], self.scale, None, torch.int8, -127, 127)


class ChannelsByDecomposed(Weight):
    """`quantized_decomposed.dequantize_per_channel`, int8."""

    def forward(self) -> Tensor:
        given = (self.scale.reshape(-1), self.zero_point.reshape(-1), 0, -127, 127, torch.int8)
        return DECOMPOSED.dequantize_per_channel(self.qdata, *given)


class WholeByDecomposed(Weight):
    """`quantized_decomposed.dequantize_per_tensor`, int8, one scale."""

    def forward(self) -> Tensor:
        return DECOMPOSED.dequantize_per_tensor(self.qdata, 0.017, 0, -127, 127, torch.int8)


class GroupsByTorchao(Weight):
    """`torchao.dequantize_affine`, 4 bits in groups, with zero points."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__(n, k, k // 32, 4)
        self.zero_point.random_(-8, 8)

    def forward(self) -> Tensor:
        block = [1, self.group_size]
        return dequantize_affine(self.qdata, block, self.scale, self.zero_point, torch.int8, -8, 7)


class GroupsByDecomposed(Weight):
    """`quantized_decomposed.dequantize_per_channel_group`, 4 bits in groups."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__(n, k, k // 32, 4)

    def forward(self) -> Tensor:
        given = (self.scale, self.zero_point, -8, 7, torch.int8, self.group_size, torch.float32)
        return DECOMPOSED.dequantize_per_channel_group(self.qdata, *given)


Product = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def _mm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = ATEN.view_copy(x, [-1, x.shape[-1]])
    product = ATEN.mm(rows, weight.t()).reshape(*x.shape[:-1], weight.shape[0])
    return product


def _addmm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows, columns = x.reshape(-1, x.shape[-1]), ATEN.permute(weight, [1, 0])
    product = ATEN.mm(rows, columns) if bias is None else ATEN.addmm(bias, rows, columns)
    return product.view(*x.shape[:-1], weight.shape[0])


def _bmm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(1, -1, x.shape[-1])
    return ATEN.bmm(rows, ATEN.transpose(weight.unsqueeze(0), 1, 2)).reshape(*x.shape[:-1], weight.shape[0])


#: Ways to multiply activations by a weight (n, k).
PRODUCTS: dict[str, Product] = {
    "linear": torch.nn.functional.linear,
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "matmul": lambda x, weight, bias: torch.matmul(x, weight.t()),
    "permute_copy": lambda x, weight, bias: torch.matmul(x, ATEN.permute_copy(weight, [1, 0])),
    "transposed twice": lambda x, weight, bias: torch.nn.functional.linear(x, weight.t().mT, bias),
}


class Layer(nn.Module):
    """A layer, op by op, with what may follow it."""

    def __init__(
        self,
        activations: nn.Module,
        weight: Weight,
        product: Product = torch.nn.functional.linear,
        bias: bool = True,
        then: Callable[[Tensor], Any] = lambda y: y,
    ) -> None:
        super().__init__()
        self.activations, self.weight, self.product, self.then = activations, weight, product, then
        self.bias = nn.Parameter(torch.randn(weight.qdata.shape[0]), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Any:
        return self.then(self.product(self.activations(x), self.weight(), self.bias))


@dataclass(frozen=True)
class Written:
    """A pair of activations and a weight as ops write them.

    Attributes:
        activations: makes the activations.
        weight: makes a weight of n x k.
        op: the op of ours that computes the pair's product.
    """

    activations: Callable[[], Activations]
    weight: Callable[[int, int], Weight]
    op: str

    def layer(self, n: int = 33, k: int = 64, **more: Any) -> Layer:
        return Layer(self.activations(), self.weight(n, k), **more)


def symmetric_tokens() -> Activations:
    """torchao's ops, a scale for each token, no zero point."""
    return TokensByTorchao(MappingType.SYMMETRIC)


def calibrated_u8() -> Activations:
    """One scale that is known beforehand, uint8."""
    return Calibrated(0.03125, 121, torch.uint8)


#: Ways to quantize activations, and the op of ours for each kind of weight.
ACTIVATIONS: dict[str, tuple[Callable[[], Activations], str, str]] = {
    # name: what makes them, the op for int8 weights, the op for 4 bits
    "per token, `torchao.*`": (TokensByTorchao, DYNAMIC, GROUPED),
    "per token, symmetric, `torchao.*`": (symmetric_tokens, DYNAMIC, GROUPED),
    "per token, `quantized_decomposed.*`": (TokensByDecomposed, QUANTIZED, GROUPED),
    "static s8, `quantized_decomposed.*`": (Calibrated, STATIC, GROUPED),
    "static u8, `quantized_decomposed.*`": (calibrated_u8, STATIC, ""),
    "static s8, `torchao.*`": (CalibratedByTorchao, STATIC, GROUPED),
    "by the range of all, `quantized_decomposed.*`": (ByRange, STATIC, GROUPED),
}
#: Ways to hold a weight.
WEIGHTS: dict[str, tuple[Callable[[int, int], Weight], bool]] = {
    # name: what makes it, whether it has 4 bits
    "int8 per channel, `torchao.*`": (ChannelsByTorchao, False),
    "int8 per channel, `quantized_decomposed.*`": (ChannelsByDecomposed, False),
    "int8 per tensor, `quantized_decomposed.*`": (WholeByDecomposed, False),
    "4 bits in groups, `torchao.*`": (GroupsByTorchao, True),
    "4 bits in groups, `quantized_decomposed.*`": (GroupsByDecomposed, True),
}
#: Each pair that is one op, by its name.
WRITTEN = {
    f"{lhs} x {rhs}".replace("`", "").replace(".*", ""): Written(
        activations, weight, of_4_bits if four_bits else of_int8
    )
    for lhs, (activations, of_int8, of_4_bits) in ACTIVATIONS.items()
    for rhs, (weight, four_bits) in WEIGHTS.items()
    if (of_4_bits if four_bits else of_int8)
}

#: A layer whose activations are quantized by ops that are none of those: source, what stands in the graph, and the op.
OWN_WAY = (
    "any tool: int8 activations of other ops",
    "`_int_mm`, `mul` by a scale for each token, `mul` by the weight's scales, `add` of a bias",
    "`linear_int8_quantized`",
)

# --- layers, as tools quantize them ---

K, HIDDEN, N = 64, 96, 33


def float_model() -> nn.Sequential:
    """Two layers with a ReLU between."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(K, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, N)).eval()


def quantized_by(config: Any, dtype: torch.dtype = torch.float32, sizes: tuple[int, ...] = (K, HIDDEN, N)) -> nn.Module:
    """A model that torchao quantized, whose parameters want no gradient."""
    torch.manual_seed(0)
    (k, hidden, n) = sizes
    model = nn.Sequential(nn.Linear(k, hidden), nn.ReLU(), nn.Linear(hidden, n)).eval().to(dtype)
    quantize_(model, config)
    return model.requires_grad_(False)


def pt2e(quantizer: Any, *shape: int) -> GraphModule:
    """`float_model` as PT2E quantizes it for inputs of a shape."""
    prepared = prepare_pt2e(exported(float_model(), torch.randn(*shape)).module(), quantizer)
    for _ in range(3):
        prepared(torch.randn(*shape))
    return convert_pt2e(prepared)


def arm_quantizer(is_dynamic: bool) -> Any:
    quantizer = arm.ArmInductorQuantizer()
    return quantizer.set_global(arm.get_default_arm_inductor_quantization_config(is_dynamic=is_dynamic))


def x86_quantizer(is_dynamic: bool) -> Any:
    quantizer = x86.X86InductorQuantizer()
    return quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=is_dynamic))


_VERSION = tuple(int(part) for part in torchao.__version__.split(".")[:2])


@dataclass(frozen=True)
class Source:
    """A configuration of torchao's `quantize_`, and the op that its layers become.

    Attributes:
        config: makes the configuration.
        op: for float32 models.
        op_bf16: for bfloat16 models, where torchao rounds an asymmetric range in its own way.
        pattern: what stands in the exported graph.
        exact: whether the source's own sums are integers too.
        first, last: the versions of torchao that have it.
        op_bf16_until_0_17: for bfloat16 models with a torchao that rounds the scales of activations to that too.
    """

    config: Callable[[], Any]
    op: str
    op_bf16: str
    pattern: str
    exact: bool = False
    first: tuple[int, ...] = (0, 0)
    last: tuple[int, ...] = (99,)
    op_bf16_until_0_17: str = ""

    def op_here(self, dtype: torch.dtype) -> str:
        """The op for models of a dtype, with this torchao."""
        if dtype == torch.float32:
            return self.op
        return (_VERSION < (0, 18) and self.op_bf16_until_0_17) or self.op_bf16


def _int8(mapping: MappingType = MappingType.SYMMETRIC, version: int = 2) -> Any:
    return Int8DynamicActivationInt8WeightConfig(act_mapping_type=mapping, version=version)


def _intx(dtype: torch.dtype, granularity: Any) -> Any:
    return Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=granularity)


def _grouped_until_0_16() -> Any:
    return torchao.quantization.Int8DynamicActivationInt4WeightConfig(group_size=32)


_INT_MM = "`quantize_affine`, `_int_mm` (s8 x s8, or u8 x s8 as VNNI has it), scales{}, bias"
_FLOATS = "`quantize_affine`, `dequantize_affine`, {}, `linear`"
INT8 = "`Int8DynamicActivationInt8WeightConfig(version=2)`"
INT4 = "`Int8DynamicActivationIntxWeightConfig(int4, PerGroup(32))`"
#: By the text that docs/support.md has.
SOURCES = {
    INT8: Source(_int8, DYNAMIC, DYNAMIC, _INT_MM.format(""), exact=True, op_bf16_until_0_17=QUANTIZED),
    "`Int8DynamicActivationInt8WeightConfig(version=2, act_mapping_type=ASYMMETRIC)`": Source(
        lambda: _int8(MappingType.ASYMMETRIC),
        DYNAMIC,
        QUANTIZED,
        _INT_MM.format(" and zero points"),
        exact=True,
        first=(0, 18),
    ),
    INT4: Source(
        lambda: _intx(torch.int4, PerGroup(32)), GROUPED, GROUPED, _FLOATS.format("`dequantize_affine` of 4 bits")
    ),
    "`Int8DynamicActivationIntxWeightConfig(int8, PerAxis(0))`": Source(
        lambda: _intx(torch.int8, PerAxis(0)), DYNAMIC, QUANTIZED, _FLOATS.format("`dequantize_affine` of int8")
    ),
    "`Int8DynamicActivationInt8WeightConfig(version=1)`, up to 0.17": Source(
        lambda: _int8(version=1), QUANTIZED, QUANTIZED, _INT_MM.format(""), last=(0, 17)
    ),
    "`Int8DynamicActivationInt8WeightConfig(version=1, act_mapping_type=ASYMMETRIC)`, up to 0.17": Source(
        lambda: _int8(MappingType.ASYMMETRIC, 1), DYNAMIC, QUANTIZED, _FLOATS.format("`to`, `mul`"), last=(0, 17)
    ),
    "`Int8DynamicActivationInt4WeightConfig(group_size=32)`, up to 0.16": Source(
        _grouped_until_0_16, GROUPED, GROUPED, _FLOATS.format("`dequantize_affine` of 4 bits"), last=(0, 16)
    ),
}
#: Those that this torchao has.
SOURCES_HERE = {name: source for name, source in SOURCES.items() if source.first <= _VERSION <= source.last}


@dataclass(frozen=True)
class SourceOfPT2E:
    """A quantizer of PT2E, what stands in its graphs, whether layers hand on integers to each other, and their op."""

    quantizer: Callable[[], Any]
    pattern: str
    chained: bool = False
    op: str = STATIC


def _pt2e(quantizer: Callable[[], Any], weight: str, before: str = "", chained: bool = False) -> SourceOfPT2E:
    activations = "`quantize_per_tensor`, `dequantize_per_tensor`"
    return SourceOfPT2E(quantizer, f"{before}{activations}, `dequantize_per_{weight}` of the weight, `linear`", chained)


PT2E = {
    "`ArmInductorQuantizer`, static": _pt2e(lambda: arm_quantizer(False), "tensor", chained=True),
    "`ArmInductorQuantizer`, dynamic": _pt2e(lambda: arm_quantizer(True), "tensor", "`choose_qparams`, "),
    "`X86InductorQuantizer`, static": _pt2e(lambda: x86_quantizer(False), "channel", chained=True),
    "`X86InductorQuantizer`, dynamic": _pt2e(lambda: x86_quantizer(True), "channel", "`choose_qparams`, "),
}
#: Those that this torchao converts: up to 0.17, it meets an error of its own with static layers and the newest torch.
PT2E_HERE = {name: source for name, source in PT2E.items() if _VERSION >= (0, 18) or not source.chained}


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
