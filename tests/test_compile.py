"""torch.compile: one graph without breaks, in it one op for each layer, and eager's results bit for bit."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

import cases
import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torchao.quantization import quantize_
from torchao.quantization.quant_primitives import MappingType

import ao_arm

K, HIDDEN, N = 96, 200, 64
MS = (2, 3, 5, 64, 2048)
OP = torch.ops.ao_arm.linear_int8_dynamic.default


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def quantized_model(dtype: torch.dtype = torch.float32, **scheme: Any) -> torch.nn.Module:
    """Two layers and a ReLU, which is exact, so that compiled results can equal those of eager."""
    model = torch.nn.Sequential(torch.nn.Linear(K, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, N, bias=False))
    quantize_(model.eval().to(dtype), ao_arm.acl_int8_dynamic(**scheme))
    return model


class Graphs:
    """A backend of torch.compile that keeps the graphs it is given, down to the ops, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []
        self.backend = aot_autograd(fw_compiler=self._keep)

    def _keep(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    @property
    def calls(self) -> list[list[Any]]:
        """For each graph what it calls, in order."""
        return [[node.target for node in graph.graph.nodes if node.op == "call_function"] for graph in self.graphs]


@torch.no_grad()
@pytest.mark.one_cpu
def test_one_graph_with_one_op_for_each_layer_serves_every_number_of_rows() -> None:
    """Nothing is unpacked, dequantized or packed in the graph, and only m = 1 may get a graph of its own."""
    graphs, model = Graphs(), quantized_model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs.backend)
    for m in (*MS, 7, 2):
        x = torch.randn(m, K)
        assert cases.same_bits(compiled(x), model(x)), f"{m=}"
        assert len(graphs.graphs) == 1, f"a new graph for {m=}"
    x = torch.randn(1, K)
    assert cases.same_bits(compiled(x), model(x))
    assert len(graphs.graphs) <= 2
    for calls in graphs.calls:
        assert calls == [OP, torch.ops.aten.relu.default, OP]
    packed_bytes = [cases.packed_in(layer).packed_weight.shape for layer in (model[0], model[2])]
    inputs = [node.meta["val"] for node in graphs.graphs[0].graph.nodes if node.op == "placeholder"]
    assert [value.shape for value in inputs if getattr(value, "dtype", None) == torch.uint8] == packed_bytes


@pytest.mark.x86
@torch.no_grad()
def test_dynamic_rows_are_found_out_without_being_asked_for() -> None:
    """By default torch.compile takes m for fixed until it meets a second one."""
    graphs, model = Graphs(), quantized_model()
    compiled = torch.compile(model, fullgraph=True, backend=graphs.backend)
    for m in (*MS, 7):
        x = torch.randn(m, K)
        assert cases.same_bits(compiled(x), model(x)), f"{m=}"
    assert len(graphs.graphs) == 2


SCHEMES = {
    "symmetric": {},
    "asymmetric": {"act_mapping_type": MappingType.ASYMMETRIC},
}


@pytest.mark.x86
@pytest.mark.parametrize("scheme", SCHEMES)
def test_there_is_no_graph_break(scheme: str) -> None:
    explanation = torch._dynamo.explain(quantized_model(**SCHEMES[scheme]))(torch.randn(5, K))
    assert explanation.graph_break_count == 0, explanation.break_reasons
    assert explanation.graph_count == 1


@pytest.mark.x86
@pytest.mark.slow_compile
@torch.no_grad()
@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
def test_inductor_with_fixed_rows(dtype: torch.dtype) -> None:
    for scheme in SCHEMES.values():
        model = quantized_model(dtype, **scheme)
        compiled = torch.compile(model, fullgraph=True, dynamic=False)
        for x in (torch.randn(5, K, dtype=dtype), torch.randn(2, 3, K, dtype=dtype)):
            assert cases.same_bits(compiled(x), model(x)), f"{scheme}, {tuple(x.shape)}"


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
def test_inductor_with_dynamic_rows(dtype: torch.dtype) -> None:
    model = quantized_model(dtype)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for m in MS:
        x = torch.randn(m, K, dtype=dtype)
        assert cases.same_bits(compiled(x), model(x)), f"{m=}"
    assert counters["stats"]["unique_graphs"] == 1
    x = torch.randn(1, K, dtype=dtype)
    assert cases.same_bits(compiled(x), model(x))
    assert counters["stats"]["unique_graphs"] <= 2


MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "freezing": ({"freezing": True}, {}),
    "max-autotune": ({}, {"mode": "max-autotune"}),
    "freezing and max-autotune": ({"freezing": True}, {"mode": "max-autotune"}),
    "C++ wrapper": ({"cpp_wrapper": True}, {}),
}


@pytest.mark.x86
@pytest.mark.slow_compile
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_inductor(mode: str) -> None:
    settings, arguments = MODES[mode]
    model, x = quantized_model(), torch.randn(5, K)
    with torch.no_grad(), inductor.patch(settings):
        assert cases.same_bits(torch.compile(model, fullgraph=True, **arguments)(x), model(x))


GRADIENTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "neither": nullcontext,
}


@pytest.mark.x86
@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
@pytest.mark.parametrize("mode", GRADIENTS)
def test_gradient_modes(mode: str) -> None:
    model, x = quantized_model(), torch.randn(5, K)
    expected = model(x).detach()
    with GRADIENTS[mode]():
        assert cases.same_bits(torch.compile(model, fullgraph=True)(x).detach(), expected)


@pytest.mark.x86
@torch.no_grad()
def test_what_else_stands_for_a_linear_layer() -> None:
    """Products written by hand, and a weight that multiplies its input first, as SmoothQuant leaves them."""
    weight, bias = ao_arm.affine_quantized.as_weight(ao_arm.ACLPackedTensor.from_hp(torch.randn(N, K))), torch.randn(N)
    smoothed = weight.clone()
    smoothed.act_pre_scale = torch.rand(K) + 0.5
    linear = torch.nn.functional.linear
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "keywords": lambda x, w, b: linear(input=x, weight=w, bias=b),
        "x @ w.t()": lambda x, w, b: x @ w.t() + b,
        "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
    }
    for (way, function), w, x in product(ways.items(), (weight, smoothed), (torch.randn(5, K), torch.randn(9, K))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert cases.same_bits(compiled(x, w, bias), function(x, w, bias)), way


@pytest.mark.x86
@torch.no_grad()
def test_values_of_the_weight_are_no_part_of_what_is_compiled() -> None:
    """Other models of the same shapes, and weights loaded later, get results of their own without compiling again."""
    graphs, x = Graphs(), torch.randn(5, K)
    first, second = quantized_model(), quantized_model()
    assert not torch.equal(first(x), second(x))
    compiled = torch.compile(first, fullgraph=True, backend=graphs.backend)
    assert cases.same_bits(compiled(x), first(x))
    first.load_state_dict(second.state_dict())
    assert cases.same_bits(compiled(x), second(x))
    assert len(graphs.graphs) == 1


@pytest.mark.x86
@pytest.mark.slow_compile
@torch.no_grad()
@pytest.mark.parametrize("freezing", [False, True], ids="freezing={}".format)
def test_models_that_share_the_cache_of_compiled_graphs(freezing: bool) -> None:
    x = torch.randn(5, K)
    models = [quantized_model(), quantized_model()]
    with inductor.patch(freezing=freezing):
        for model in models:
            torch._dynamo.reset()
            assert cases.same_bits(torch.compile(model, fullgraph=True)(x), model(x))


@pytest.mark.x86
def test_the_cache_key_tells_apart_what_compiles_differently() -> None:
    def key(layer: torch.nn.Module) -> str:
        return str(layer.weight._stable_hash_for_caching())

    def layer(n: int = N, dtype: torch.dtype = torch.float32, **scheme: Any) -> torch.nn.Module:
        made = torch.nn.Sequential(torch.nn.Linear(K, n)).to(dtype)
        quantize_(made, ao_arm.acl_int8_dynamic(**scheme))
        return made[0]

    smoothed = layer()
    smoothed.weight.act_pre_scale = torch.ones(K)
    different = [layer(), layer(n=N + 1), layer(dtype=torch.bfloat16), layer(**SCHEMES["asymmetric"]), smoothed]
    assert len(set(map(key, different))) == len(different)
    assert key(layer()) == key(layer())


WRONG: dict[str, tuple[Tensor, str]] = {
    "another k": (
        torch.ones(5, K + 1),
        rf"input of shape \(5, {K + 1}\) does not fit .* its last dimension must be {K}",
    ),
    "float64": (torch.ones(5, K, dtype=torch.float64), "input must be float32, bfloat16 or float16, not torch.float64"),
    "int32": (torch.ones(5, K, dtype=torch.int32), "input must be float32, bfloat16 or float16, not torch.int32"),
}


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_inputs_are_named(wrong: str, backend: str) -> None:
    x, message = WRONG[wrong]
    compiled = torch.compile(quantized_model(), fullgraph=True, backend=backend)
    with pytest.raises((ValueError, RuntimeError), match=message):
        compiled(x)
