"""Exported programs of models that torchao and PT2E_HERE quantized: each layer is one op, with the source's numbers."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from graphs import (
    DYNAMIC,
    GROUPED,
    INT4,
    INT8,
    PT2E_HERE,
    SOURCES_HERE,
    K,
    N,
    assert_near,
    assert_within_ulps,
    exported,
    fused,
    fused_graph,
    layers,
    packed_weights,
    pt2e,
    quantized_by,
    targets,
)
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchao.utils import unwrap_tensor_subclass

import ao_arm
from ao_arm.passes import fuse, fuse_

EACH_SOURCE = pytest.mark.parametrize("source", SOURCES_HERE)
SLOW = (pytest.mark.slow, pytest.mark.every_torchao)
EACH_PT2E = pytest.mark.parametrize("source", PT2E_HERE)


def _plain(model: nn.Module, x: Tensor, **more: Any) -> ExportedProgram:
    return exported(model, x, **more)


def _decomposed(model: nn.Module, x: Tensor, **more: Any) -> ExportedProgram:
    return exported(model, x, **more).run_decompositions({})


def _unwrapped(model: nn.Module, x: Tensor, **more: Any) -> ExportedProgram:
    return exported(unwrap_tensor_subclass(model), x, **more)


#: Ways to make a program of a quantized model, whose weights are subclasses.
FORMS: dict[str, Callable[..., ExportedProgram]] = {
    "as exported": _plain,
    "decomposed": _decomposed,
    "unwrapped": _unwrapped,
}


def left_of_the_source(program: ExportedProgram) -> list[str]:
    """Ops that multiply, or make floats of a weight."""
    kinds = ("_int_mm", "dequantize", "linear.default", ".mm", ".addmm", ".bmm", ".matmul")
    return [name for name in targets(program.graph) if "ao_arm" not in name and any(kind in name for kind in kinds)]


# --- torchao's quantize_ ---


@pytest.mark.x86
@pytest.mark.parametrize(
    "form", ["as exported", *(pytest.param(form, marks=SLOW) for form in ("decomposed", "unwrapped"))]
)
@EACH_SOURCE
def test_each_source_of_torchao(source: str, form: str) -> None:
    for dtype, rows, dynamic in ((torch.float32, (5,), None), (torch.bfloat16, (5, 3), ({0: Dim("m", min=2)},))):
        op = SOURCES_HERE[source].op_here(dtype)
        model = quantized_by(SOURCES_HERE[source].config(), dtype)
        changed = fused(FORMS[form](model, torch.randn(*rows, K, dtype=dtype), dynamic_shapes=dynamic))
        assert layers(changed.graph) == [op, op]
        assert left_of_the_source(changed) == []
        run = changed.module()
        for first in (rows[0], *((2, 7, 64) if dynamic else ())):
            x = torch.randn(first, *rows[1:], K, dtype=dtype)
            assert_near(run(x), model(x))
        held = {**changed.state_dict, **changed.constants}
        assert len(packed_weights(held)) == 2
        # What nothing reads any longer is left out.
        assert all(type(value) is Tensor or isinstance(value, nn.Parameter) for value in held.values())
        assert all(value.dtype != torch.int8 for value in held.values())


@pytest.mark.x86
@pytest.mark.parametrize("source", [name for name in SOURCES_HERE if SOURCES_HERE[name].exact])
def test_int8_sums_are_the_same(source: str) -> None:
    """One layer whose sums are exact in the source as well, so that only the epilogue's rounding may differ."""
    model = quantized_by(SOURCES_HERE[source].config())[0]
    for m in (1, 33):
        x = torch.randn(m, K) * torch.rand(m, 1)
        assert_within_ulps(fused(exported(model, x)).module()(x), model(x))


@pytest.mark.x86
def test_outliers_and_zeros() -> None:
    for source in SOURCES_HERE.values():
        model = quantized_by(source.config())[0]
        x = torch.cat(
            [torch.zeros(1, K), torch.full((1, K), -3.0), torch.randn(2, K) * 1e-20, torch.randn(2, K) * 1e20]
        )
        actual, expected = fused(exported(model, x)).module()(x), model(x)
        for one, other in zip(actual, expected, strict=True):
            assert_near(one, other)


@pytest.mark.x86
@pytest.mark.parametrize("source", [INT8, INT4])
def test_sizes_that_are_no_multiples_of_blocks(source: str) -> None:
    for sizes in ((32, 2, 1), (96, 37, 5), (160, 65, 131)):
        if source == INT4:
            sizes = (sizes[0], 32 * (sizes[1] // 32 + 1), sizes[2])
        model, x = quantized_by(SOURCES_HERE[source].config(), sizes=sizes), torch.randn(3, sizes[0])
        changed = fused(exported(model, x))
        assert layers(changed.graph) == [SOURCES_HERE[source].op] * 2
        assert_near(changed.module()(x), model(x), 1e-2)  # a step of the second layer's activations


@pytest.mark.x86
def test_the_sources_stay_as_they_were() -> None:
    for source in SOURCES_HERE.values():
        model, x = quantized_by(source.config()), torch.randn(5, K)
        program = exported(model, x)
        before, state, constants = str(program.graph), set(program.state_dict), set(program.constants)
        expected = program.module()(x)
        fused(program)
        assert (str(program.graph), set(program.state_dict), set(program.constants)) == (before, state, constants)
        assert torch.equal(program.module()(x), expected)
        assert layers(program.graph) == []


@pytest.mark.slow
@pytest.mark.x86
def test_a_fused_program_is_saved_and_loaded() -> None:
    for source in SOURCES_HERE.values():
        model, x = quantized_by(source.config()), torch.randn(5, K)
        changed, file = fused(exported(model, x)), io.BytesIO()
        torch.export.save(changed, file)
        file.seek(0)
        loaded = torch.export.load(file)
        assert torch.equal(loaded.module()(x), changed.module()(x))
        assert layers(loaded.run_decompositions().graph) == [source.op] * 2


@pytest.mark.x86
def test_activations_that_are_smoothed() -> None:
    """As SmoothQuant does: a product in front of each layer."""

    class Smoothed(nn.Module):
        def __init__(self, source: str) -> None:
            super().__init__()
            self.inner = quantized_by(SOURCES_HERE[source].config())[0]
            self.factor = nn.Parameter(torch.rand(K) + 0.5, requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x * self.factor)

    for source in SOURCES_HERE:
        model, x = Smoothed(source), torch.randn(5, K)
        changed = fused(exported(model, x))
        assert layers(changed.graph) == [SOURCES_HERE[source].op]
        assert_near(changed.module()(x), model(x))


@pytest.mark.slow
@pytest.mark.x86
def test_autocast_within_a_program() -> None:
    class Model(nn.Module):
        def __init__(self, source: str) -> None:
            super().__init__()
            self.inner = quantized_by(SOURCES_HERE[source].config())

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x)

    for source in SOURCES_HERE:
        model, x = Model(source), torch.randn(5, K)
        program = exported(model, x).run_decompositions({})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            changed = fuse(program)
        assert_near(changed.module()(x), program.module()(x), 2e-2)


# --- PT2E_HERE ---


@pytest.mark.x86
@EACH_PT2E
def test_each_source_of_pt2e(source: str) -> None:
    for shape in ((4, K), (2, 3, K)):
        converted, x = pt2e(PT2E_HERE[source].quantizer(), *shape), torch.randn(*shape)
        expected = converted(x)
        graph, report = fused_graph(converted)
        assert [(layer.name, layer.op) for layer in report] == [
            ("0", PT2E_HERE[source].op),
            ("2", PT2E_HERE[source].op),
        ]
        # Where float sums of the source lie on the edge between two integers, the next layer's input is a step off.
        tolerance = 1e-2 if PT2E_HERE[source].chained else 1e-5
        assert_near(graph(x), expected, tolerance)
        changed = fused(exported(converted, x))
        assert layers(changed.graph) == [PT2E_HERE[source].op] * 2
        assert left_of_the_source(changed) == []
        assert_near(changed.module()(x), expected, tolerance)


@pytest.mark.x86
@pytest.mark.parametrize("source", [name for name in PT2E_HERE if PT2E_HERE[name].chained])
def test_static_layers_of_pt2e_stay_quantized(source: str) -> None:
    x = torch.randn(4, K)
    changed = fused(exported(pt2e(PT2E_HERE[source].quantizer(), 4, K), x))
    assert targets(changed.graph) == ["ao_arm.linear_int8_static"] * 2


# --- programs with more than layers ---


class Counting(nn.Module):
    """A quantized model that keeps a count and gives several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = quantized_by(SOURCES_HERE[INT8].config())
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("unused", torch.ones(3), persistent=False)

    def forward(self, x: Tensor, scale: Tensor, add: float = 1.0) -> dict[str, Any]:
        self.calls.add_(1)
        return {"y": self.inner(x) * scale, "x": x, "calls": self.calls + add, "number": 3}


@pytest.mark.x86
def test_states_inputs_and_outputs_stay_what_they_are() -> None:
    x, scale = torch.randn(5, K), torch.tensor(2.0)
    for decompositions in (None, {}):
        model = Counting()
        program = torch.export.export(model, (x, scale), {"add": 2.0})
        run = fused(program if decompositions is None else program.run_decompositions(decompositions)).module()
        for count in (1, 2):
            outputs = run(x, scale, add=2.0)
            assert set(outputs) == {"y", "x", "calls", "number"} and outputs["number"] == 3
            assert float(outputs["calls"]) == count + 2
            assert_near(outputs["y"], model.inner(x) * 2)


@pytest.mark.x86
def test_a_program_without_quantized_layers_is_the_same() -> None:
    model, x = nn.Sequential(nn.Linear(K, N), nn.ReLU()), torch.randn(5, K)
    program = exported(model, x)
    changed = fused(program)
    assert targets(changed.graph) == targets(program.graph)
    assert torch.equal(changed.module()(x), model(x))
    assert set(changed.state_dict) == set(program.state_dict)


@pytest.mark.x86
def test_layers_of_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = quantized_by(SOURCES_HERE[INT8].config(), sizes=(K, K, K))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    model, x = Twice(), torch.randn(5, K)
    changed = fused(exported(model, x))
    assert layers(changed.graph) == [DYNAMIC] * 4
    assert len(packed_weights(changed.state_dict)) == 2
    assert_near(changed.module()(x), model(x), 1e-2)


# --- explain ---


@pytest.mark.x86
def test_explain_of_programs_and_graphs() -> None:
    for source in SOURCES_HERE.values():
        model, x = quantized_by(source.config()), torch.randn(5, K)
        program = exported(model, x)
        before = ao_arm.explain(program)
        assert [layer.kernel for layer in before] == ["torch", "torch"]
        assert all("ao_arm.passes.fuse" in layer.reason for layer in before)
        assert [layer.shape for layer in before] == [(96, K), (N, 96)]
        changed = fused(program)
        for after in (ao_arm.explain(changed), ao_arm.explain(changed.module())):
            assert [layer.name for layer in after] == ["0", "2"]
            assert [layer.shape for layer in after] == [(96, K), (N, 96)]
            kernels = cases.INT4_KERNELS if source.op == GROUPED else cases.KERNELS
            assert all(layer.kernel in kernels and layer.reason == "" for layer in after)
            assert all(("int4 grouped" if source.op == GROUPED else "int8 dynamic") in layer.scheme for layer in after)
            assert all(layer.packing_format and "{" not in layer.scheme for layer in after)
            assert after[0].rejected and "not " in str(after)


@pytest.mark.x86
@pytest.mark.parametrize("source", [name for name in PT2E_HERE if PT2E_HERE[name].chained][:1])
def test_explain_of_a_static_chain(source: str) -> None:
    converted = pt2e(PT2E_HERE[source].quantizer(), 4, K)
    fuse_(converted)
    first, second = ao_arm.explain(converted)
    assert (first.scheme, second.scheme) == (
        "int8 static (asymmetric int8, per_tensor x per_channel) -> int8",
        "int8 static (asymmetric int8, per_tensor x per_channel)",
    )
    assert ao_arm.explain(converted)[0].shape == (96, K)


# --- AOTInductor ---


@pytest.mark.x86
@pytest.mark.slow
def test_a_fused_program_as_an_aot_package(tmp_path: Path) -> None:
    """int8 and 4 bits in one package, for any number of rows."""
    first, second = (quantized_by(SOURCES_HERE[name].config(), sizes=(K, K, K)) for name in (INT8, INT4))
    model, rows = nn.Sequential(first[0], second[0]), ({0: Dim("m", min=2, max=64)},)
    changed = fused(exported(model, torch.randn(5, K), dynamic_shapes=rows))
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(changed, package_path=str(tmp_path / "model.pt2"))
    run = torch._inductor.aoti_load_package(path)
    module = changed.module()
    for m in (2, 5, 64):
        x = torch.randn(m, K)
        assert_near(run(x), module(x), 1e-6)
        assert_near(run(x), model(x), 1e-2)
