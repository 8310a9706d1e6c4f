"""Static layers that hand int8 to each other: what is recognised, what is left alone, and the values."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import quantize_
from torchao.quantization.quant_primitives import MappingType

import ao_arm
from ao_arm import packed_weight_of, reference
from ao_arm.passes import chain_static_layers
from ao_arm.passes.chains import ChainedLinear

pytestmark = pytest.mark.x86

K = 40
SCHEMES: dict[str, dict[str, Any]] = {
    "s8 symmetric": {},
    "s8": {"act_mapping_type": MappingType.ASYMMETRIC},
    "u8": {"act_mapping_type": MappingType.ASYMMETRIC, "act_dtype": torch.uint8},
}
EACH_SCHEME = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def static(model: nn.Module, **scheme: Any) -> nn.Module:
    """The model, calibrated with normal values."""
    model = model.eval()
    quantize_(model, ao_arm.acl_int8_static("prepare", **scheme))
    with torch.no_grad():
        model(torch.randn(200, K))
    quantize_(model, ao_arm.acl_int8_static("convert", **scheme))
    return model


def mlp(*activations: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(K, 70), *activations, nn.Linear(70, 33))


def chained_layers(model: nn.Module) -> list[str]:
    """The names of the layers that give int8 on."""
    return [name for name, m in model.named_modules() if isinstance(m, ChainedLinear) and m.following != (None,)]


def by_reference(x: Tensor, layers: list[nn.Linear], low: float | None, high: float | None) -> Tensor:
    """Two layers with int8 between, clamped."""
    first, second = (packed_weight_of(layer.weight) for layer in layers)
    assert first is not None and second is not None
    middle = reference.linear_int8_static(
        *(x, first.qdata, first.scale, layers[0].bias, first.act_scale, first.act_zero_point),
        *(second.act_scale, second.act_zero_point, None, low, high),
    )
    return reference.linear_int8_static(
        *(middle, second.qdata, second.scale, layers[1].bias, second.act_scale, second.act_zero_point),
        output_dtype=second.weight_dtype,
    )


ACTIVATIONS: dict[str, tuple[list[nn.Module], float | None, float | None]] = {
    "nothing": ([], None, None),
    "ReLU": ([nn.ReLU()], 0.0, None),
    "ReLU6": ([nn.ReLU6()], 0.0, 6.0),
    "Hardtanh": ([nn.Hardtanh(-0.25, 0.75)], -0.25, 0.75),
    "Dropout, ReLU, Identity": ([nn.Dropout(), nn.ReLU(), nn.Identity()], 0.0, None),
    "Hardtanh, ReLU": ([nn.Hardtanh(-0.5, 0.5), nn.ReLU()], 0.0, 0.5),
    "ReLU, Hardtanh of negative values": ([nn.ReLU(), nn.Hardtanh(-2.0, -1.0)], -1.0, -1.0),
}


@EACH_SCHEME
@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
@torch.no_grad()
def test_values_are_those_of_the_reference(scheme: dict[str, Any], dtype: torch.dtype) -> None:
    for name, (activations, low, high) in ACTIVATIONS.items():
        if name.startswith("ReLU, Hardtanh"):  # the second layer would see constant data
            continue
        model = static(mlp(*activations), **scheme).to(dtype)
        chained = chain_static_layers(model)
        assert chained_layers(chained) == ["0"], name
        for m in (1, 5, 33):
            x = torch.randn(m, K, dtype=dtype)
            expected = by_reference(x, [model[0], model[-1]], low, high)
            assert cases.same_bits(chained(x), expected), f"{name}, {m=}"


@EACH_SCHEME
@torch.no_grad()
def test_it_stays_near_the_model_without_chains(scheme: dict[str, Any]) -> None:
    model, x = static(nn.Sequential(mlp(nn.ReLU()), nn.ReLU(), nn.Linear(33, 33)), **scheme), torch.randn(64, K)
    chained = chain_static_layers(model)
    assert chained_layers(chained) == ["0.0", "0.2"]
    difference, expected = chained(x) - model(x), model(x)
    assert 10 * torch.log10(expected.square().mean() / difference.square().mean()) > 40


def test_the_model_is_left_as_it_was_and_names_stay() -> None:
    model = static(mlp(nn.ReLU()))
    before, x = copy.deepcopy(model), torch.randn(5, K)
    chained = chain_static_layers(model)
    assert type(model[0]) is nn.Linear
    assert cases.same_bits(model(x).detach(), before(x).detach())
    assert list(chained.state_dict()) == list(model.state_dict())
    assert chained.get_parameter("0.weight") is model[0].weight
    assert "gives int8 within [0.0, inf]" in repr(chained) and "gives floats" in repr(chained)


class Branches(nn.Module):
    """The first layer's output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(K, K), nn.Linear(K, K), nn.Linear(K, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.third(torch.nn.functional.relu(self.second(y)).clamp(max=3.0) * 1.0) + self.third(y)


class Functions(nn.Module):
    """Activations written as functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(K, K) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        functional = torch.nn.functional
        x = functional.relu(self.layers[0](x))
        x = self.layers[1](x).clamp(min=0.0)
        x = torch.clamp(self.layers[2](x), -1, 2)
        x = functional.relu6(self.layers[3](x))
        x = functional.dropout(functional.hardtanh(self.layers[4](x)), training=False)
        return self.layers[5](x)


@torch.no_grad()
def test_functions_and_methods_are_recognised() -> None:
    model, x = static(Functions()), torch.randn(33, K)
    chained = chain_static_layers(model)
    assert chained_layers(chained) == [f"layers.{i}" for i in range(5)]
    assert [chained.get_submodule(f"layers.{i}").bounds for i in range(5)] == [
        (0.0, torch.inf),
        (0.0, torch.inf),
        (-1, 2),
        (0.0, 6.0),
        (-1.0, 1.0),
    ]
    expected = model(x)
    assert 10 * torch.log10(expected.square().mean() / (chained(x) - expected).square().mean()) > 30


@torch.no_grad()
def test_what_is_used_elsewhere_stays_float() -> None:
    model, x = static(Branches()), torch.randn(5, K)
    chained = chain_static_layers(model)
    assert chained_layers(chained) == []
    assert cases.same_bits(chained(x), model(x))


@torch.no_grad()
def test_other_layers_and_activations_stay_as_they_are() -> None:
    smoothed = static(mlp(nn.ReLU()))
    (packed_weight_of(smoothed[2].weight)).act_pre_scale = torch.ones(70)
    dynamic = mlp(nn.ReLU())
    quantize_(dynamic, ao_arm.acl_int8_dynamic())
    for name, model in {
        "GELU": static(mlp(nn.GELU())),
        "dynamic": dynamic.eval(),
        "floats": mlp(nn.ReLU()).eval(),
        "pre-scaled": smoothed,
    }.items():
        chained, x = chain_static_layers(model), torch.randn(5, K)
        assert chained_layers(chained) == [], name
        assert cases.same_bits(chained(x), model(x)), name


@EACH_SCHEME
@torch.no_grad()
def test_exported_programs(scheme: dict[str, Any]) -> None:
    """The same chains, found among the ops; and chains that are exported."""
    model, x = static(nn.Sequential(mlp(nn.ReLU(), nn.Dropout()), nn.Hardtanh(), nn.Linear(33, 7)), **scheme), None
    x = torch.randn(5, K)
    program = torch.export.export(model, (x,))
    expected = chain_static_layers(model)(x)
    module = program.module()
    chained = chain_static_layers(module)
    calls = [node for node in chained.graph.nodes if node.target is torch.ops.ao_arm.linear_int8_static.default]
    assert len(calls) == 3
    assert not [node for node in chained.graph.nodes if "relu" in str(node.target) or "hardtanh" in str(node.target)]
    assert cases.same_bits(chained(x), expected)
    assert cases.same_bits(module(x), model(x))
    again = torch.export.export(chain_static_layers(model), (x,))
    assert cases.same_bits(again.module()(x), expected)


@torch.no_grad()
def test_compiled() -> None:
    chained, x = chain_static_layers(static(mlp(nn.ReLU()))), torch.randn(5, K)
    assert cases.same_bits(torch.compile(chained, fullgraph=True)(x), chained(x))


@torch.no_grad()
def test_weights_and_scales_that_are_loaded_later_are_used() -> None:
    first, second = static(mlp(nn.ReLU())), static(mlp(nn.ReLU()))
    chained, x = chain_static_layers(first), torch.randn(5, K)
    chained.load_state_dict(second.state_dict())
    assert cases.same_bits(chained(x), chain_static_layers(second)(x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "training": (lambda: static(mlp(nn.ReLU())).train(), r"training mode.*model.eval\(\)"),
    "control flow": (lambda: Branching().eval(), "torch.fx cannot trace Branching.*control flow"),
}


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_are_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        chain_static_layers(make())


@torch.no_grad()
def test_4_bit_layers_are_left_alone() -> None:
    """Between static layers one ends the chain before it and is the same layer afterwards."""
    sizes = (K, 64, 64, 33, 20)
    model = nn.Sequential(*(nn.Linear(k, n) for k, n in itertools.pairwise(sizes))).eval()
    quantize_(model[1], ao_arm.acl_int4_grouped())
    model = static(model)
    x = torch.randn(5, K)
    chained = chain_static_layers(model)
    assert chained_layers(chained) == ["2"]
    assert chained.get_parameter("1.weight") is model[1].weight
    assert packed_weight_of(chained.get_parameter("1.weight")).get_layout().is_grouped
    assert type(chained.get_submodule("1")) is nn.Linear
    difference, expected = chained(x) - model(x), model(x)
    assert 10 * torch.log10(expected.square().mean() / difference.square().mean()) > 30
