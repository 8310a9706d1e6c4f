"""torch.compile: one graph without breaks, in it one op for each layer, and eager's results bit for bit."""

from collections import OrderedDict
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
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.quant_primitives import MappingType

import ao_arm

K, HIDDEN, N = 96, 200, 64
MS = (2, 3, 5, 64, 2048)
DYNAMIC = torch.ops.ao_arm.linear_int8_dynamic.default
STATIC = torch.ops.ao_arm.linear_int8_static.default
GROUPED = torch.ops.ao_arm.linear_qta8a_qga4w.default


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


#: The configurations of the model's three layers: each kind of int8 is there with a bias and without one.
SCHEMES = {
    "symmetric": (
        ao_arm.acl_int8_static(act_scale=0.03),
        ao_arm.acl_int8_dynamic(MappingType.SYMMETRIC),
        ao_arm.acl_int4_grouped(),
    ),
    "asymmetric": (
        ao_arm.acl_int8_dynamic(MappingType.ASYMMETRIC),
        ao_arm.acl_int8_static(None, 0.02, 9, MappingType.ASYMMETRIC, torch.uint8),
        ao_arm.acl_int4_grouped(None, MappingType.ASYMMETRIC, torch.float32),
    ),
}


def quantized_model(dtype: torch.dtype = torch.float32, scheme: str = "symmetric") -> torch.nn.Module:
    """Three layers and a ReLU, which is exact, so that compiled results can equal those of eager."""
    layers = [torch.nn.Linear(K, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, N, bias=False)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(N, 40))
    by_name = OrderedDict(zip(("0", "2", "3"), SCHEMES[scheme], strict=True))
    quantize_(model.eval().to(dtype), FqnToConfig(by_name), filter_fn=None)
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
@pytest.mark.x86
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
        assert calls == [STATIC, torch.ops.aten.relu.default, DYNAMIC, GROUPED]
    packed_bytes = [cases.packed_in(model[i]).packed_weight.shape for i in (0, 2, 3)]
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


@pytest.mark.x86
@pytest.mark.parametrize("scheme", SCHEMES)
def test_there_is_no_graph_break(scheme: str) -> None:
    explanation = torch._dynamo.explain(quantized_model(scheme=scheme))(torch.randn(5, K))
    assert explanation.graph_break_count == 0, explanation.break_reasons
    assert explanation.graph_count == 1


@pytest.mark.x86
@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
def test_inductor_with_fixed_rows(dtype: torch.dtype) -> None:
    for scheme in SCHEMES:
        model = quantized_model(dtype, scheme)
        compiled = torch.compile(model, fullgraph=True, dynamic=False)
        for x in (torch.randn(5, K, dtype=dtype), torch.randn(2, 3, K, dtype=dtype)):
            assert cases.same_bits(compiled(x), model(x)), f"{scheme}, {tuple(x.shape)}"


@torch.no_grad()
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, marks=pytest.mark.one_cpu),
        pytest.param(torch.bfloat16, marks=(pytest.mark.x86, pytest.mark.slow)),
    ],
    ids=cases.name_of,
)
def test_inductor_with_dynamic_rows(dtype: torch.dtype) -> None:
    model = quantized_model(dtype)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for m in MS:
        x = torch.randn(m, K, dtype=dtype)
        assert cases.same_bits(compiled(x), model(x)), f"{m=}"
    assert counters["stats"]["unique_graphs"] == 1
    if cases.EMULATED_CPU:  # where compiling another graph takes most of a minute
        return
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
@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.x86
@torch.no_grad()
def test_what_else_stands_for_a_linear_layer() -> None:
    """Products written by hand, and a weight that multiplies its input first, as SmoothQuant leaves them."""
    bias, weights = torch.randn(N), []
    for layout in cases.SCHEMES.values():
        weight = ao_arm.affine_quantized.as_weight(cases.packed(torch.randn(N, K), layout))
        smoothed = weight.clone()
        smoothed.act_pre_scale = torch.rand(K) + 0.5
        weights += [weight, smoothed]
    linear = torch.nn.functional.linear
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "keywords": lambda x, w, b: linear(input=x, weight=w, bias=b),
        "x @ w.t()": lambda x, w, b: x @ w.t() + b,
        "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
    }
    for (way, function), w, x in product(ways.items(), weights, (torch.randn(5, K), torch.randn(9, K))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert cases.same_bits(compiled(x, w, bias), function(x, w, bias)), way


@pytest.mark.x86
@torch.no_grad()
def test_values_of_the_weight_are_no_part_of_what_is_compiled() -> None:
    """Other models of the same shapes, and weights loaded later, get results of their own without compiling again."""
    graphs, x = Graphs(), torch.randn(5, K)
    first, second = quantized_model(), quantized_model()
    cases.packed_in(second[0]).act_scale.mul_(1.5)
    assert not torch.equal(first(x), second(x))
    compiled = torch.compile(first, fullgraph=True, backend=graphs.backend)
    assert cases.same_bits(compiled(x), first(x))
    first.load_state_dict(second.state_dict())
    assert cases.same_bits(compiled(x), second(x))
    assert len(graphs.graphs) == 1


@pytest.mark.x86
@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("freezing", [False, True], ids="freezing={}".format)
def test_models_that_share_the_cache_of_compiled_graphs(freezing: bool) -> None:
    x = torch.randn(5, K)
    models = [quantized_model(), quantized_model()]
    cases.packed_in(models[1][0]).act_scale.mul_(1.5)
    with inductor.patch(freezing=freezing):
        for model in models:
            torch._dynamo.reset()
            assert cases.same_bits(torch.compile(model, fullgraph=True)(x), model(x))


@pytest.mark.x86
def test_the_cache_key_tells_apart_what_compiles_differently() -> None:
    def key(layer: torch.nn.Module) -> str:
        return str(layer.weight._stable_hash_for_caching())

    def layer(n: int = N, dtype: torch.dtype = torch.float32, config: Any = None) -> torch.nn.Module:
        made = torch.nn.Sequential(torch.nn.Linear(K, n)).to(dtype)
        quantize_(made, ao_arm.acl_int8_dynamic() if config is None else config)
        return made[0]

    smoothed = layer()
    smoothed.weight.act_pre_scale = torch.ones(K)
    schemes = [layer(config=config) for configs in SCHEMES.values() for config in configs]
    schemes.append(layer(config=ao_arm.acl_int4_grouped(scale_dtype=torch.float32)))
    different = [*schemes, layer(n=N + 1), layer(dtype=torch.bfloat16), smoothed]
    assert len(set(map(key, different))) == len(different)
    assert key(layer()) == key(layer())
    scales = (ao_arm.acl_int8_static(act_scale=scale) for scale in (0.1, 0.2))
    assert len({key(layer(config=config)) for config in scales}) == 1


WRONG: dict[str, tuple[Tensor, str]] = {
    "another k": (
        torch.ones(5, K + 1),
        rf"input of shape \(5, {K + 1}\) does not fit .* its last dimension must be {K}",
    ),
    "float64": (
        torch.ones(5, K, dtype=torch.float64),
        "input must be torch.float32, torch.bfloat16(,| or) torch.float16.* not torch.float64",
    ),
    "int32": (
        torch.ones(5, K, dtype=torch.int32),
        "input must be torch.float32, torch.bfloat16(,| or) torch.float16.* not torch.int32",
    ),
}


@pytest.mark.slow
@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_inputs_are_named(wrong: str, backend: str) -> None:
    x, message = WRONG[wrong]
    grouped = torch.nn.Sequential(torch.nn.Linear(K, N))
    quantize_(grouped, ao_arm.acl_int4_grouped())
    for model in (*(quantized_model(scheme=scheme) for scheme in SCHEMES), grouped):
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        with pytest.raises((ValueError, RuntimeError), match=message):
            compiled(x)
