"""Weights that `quantize_` cannot quantize: an error that names the layer, which stays as it was."""

from collections.abc import Callable

import pytest
import torch
from options import CONFIGS
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import PerGroup, quantize_

from ao_arm import acl_int4_grouped, acl_int8_dynamic

pytestmark = pytest.mark.one_cpu


def with_weight(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(1, 1)
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def with_value(value: float) -> Tensor:
    weight = torch.randn(5, 7)
    weight[3, 2] = value
    return weight


WRONG_WEIGHTS = {
    "NaN": (lambda: with_value(torch.nan), ValueError, r"holds nan at \[3, 2\]"),
    "infinity": (lambda: with_value(torch.inf), ValueError, r"holds inf at \[3, 2\]"),
    "negative infinity": (lambda: with_value(-torch.inf), ValueError, r"holds -inf at \[3, 2\]"),
    "int32": (lambda: torch.ones(5, 7, dtype=torch.int32), ValueError, "not torch.int32"),
    "float64": (lambda: torch.ones(5, 7, dtype=torch.float64), ValueError, "not torch.float64"),
    "n=0": (lambda: torch.ones(0, 7), ValueError, "at least 1"),
    "k=0": (lambda: torch.ones(5, 0), ValueError, "at least 1"),
    "meta": (lambda: torch.ones(5, 7, device="meta"), NotImplementedError, "load real values first"),
}


WRONG_FOR_CONFIGS = [
    pytest.param(config, *wrong, id=f"{scheme}-{name}")
    for scheme, config in CONFIGS.items()
    for name, wrong in {
        **WRONG_WEIGHTS,
        "k above the int32 limit": {
            "grouped": (lambda: torch.ones(1, 600_000), ValueError, "may not fit in int32"),
        }.get(scheme, (lambda: torch.ones(1, 66312), ValueError, "66311 at most")),
    }.items()
]


@pytest.mark.parametrize(("config", "make", "error", "message"), WRONG_FOR_CONFIGS)
def test_weights_that_cannot_be_quantized_leave_the_layer_as_it_was(
    config: AOBaseConfig, make: Callable[[], Tensor], error: type[Exception], message: str
) -> None:
    model = nn.Sequential(with_weight(make()))
    layer = model[0]
    weight, state, text = layer.weight, set(vars(layer)), repr(layer)
    content = None if weight.is_meta else weight.detach().clone()
    with pytest.raises(error, match=rf"weight' of Linear\(in_features=.* was not quantized.*{message}"):
        quantize_(model, config)
    assert model[0] is layer
    assert layer.weight is weight
    assert set(vars(layer)) == state
    assert repr(layer) == text
    if content is not None:
        assert torch.equal(weight.nan_to_num(1e30), content.nan_to_num(1e30))


def test_an_unknown_kernel_leaves_the_layer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", "none/such")
    model = nn.Sequential(nn.Linear(7, 5))
    weight = model[0].weight
    with pytest.raises(ValueError, match=r"weight' of Linear\(in_features=7.*unknown kernel 'none/such'"):
        quantize_(model, acl_int8_dynamic())
    assert model[0].weight is weight


GROUP_SIZES = {
    (100, 32): r"k = 100 is no multiple of the group size 32; group sizes that fit: 100 \(whole rows\)",
    (192, 128): r"k = 192 is no multiple of the group size 128; group sizes that fit: 64, 96, 192 \(whole rows\)",
    (768, 112): r"k = 768 is no multiple of the group size 112; group sizes that fit: 64, 96, 128",
    (96, 128): r"k = 96 is no multiple of the group size 128; group sizes that fit: 32, 96 \(whole rows\)",
    (96, 48): ".* group size 48 is neither a multiple of 32 nor k = 96",
}


@pytest.mark.parametrize(("k", "group_size"), GROUP_SIZES, ids=str)
def test_a_group_size_that_does_not_fit_names_layer_and_sizes_that_do(k: int, group_size: int) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(k, 5)))
    weight = model[0][0].weight
    message = (
        rf"the parameter '0\.0\.weight' of Linear\(in_features={k}.* was not quantized: {GROUP_SIZES[k, group_size]}"
    )
    with pytest.raises(ValueError, match=message):
        quantize_(model, acl_int4_grouped(group_size))
    assert model[0][0].weight is weight


def test_options_that_are_changed_later_are_checked_too() -> None:
    config, model = acl_int8_dynamic(), nn.Sequential(nn.Linear(64, 96))
    config.act_granularity = PerGroup(32)
    before = model[0].weight
    with pytest.raises(ValueError, match="act_granularity must be"):
        quantize_(model, config)
    assert model[0].weight is before
