"""What cannot be prepared or converted is refused, and stays as it was."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from calibrated import K, Model, N, assert_like, batches, calibrated
from torch import nn
from torchao.quantization import FqnToConfig, MappingType, quantize_

from ao_arm import acl_int8_static, packed_weight_of, quantizable

pytestmark = pytest.mark.x86


def converts(**scheme: Any) -> Callable[[nn.Module], None]:
    return lambda model: quantize_(model, acl_int8_static("convert", **scheme))


WRONG: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], None], str]] = {
    "no data": (lambda model: None, converts(), "saw no data"),
    "constant data": (lambda model: model(torch.ones(3, K)), converts(), "saw nothing but 1.0"),
    "NaN": (lambda model: model(torch.full((3, K), torch.nan)), converts(), "saw values from nan to nan"),
    "infinity": (lambda model: model(torch.full((3, K), torch.inf)), converts(), "saw values from inf"),
    "another mapping": (
        lambda model: model(torch.randn(3, K)),
        converts(act_mapping_type=MappingType.ASYMMETRIC),
        "was prepared for .*SYMMETRIC torch.int8 activations, not for .*ASYMMETRIC torch.int8: give both steps",
    ),
    "another dtype": (
        lambda model: model(torch.randn(3, K)),
        converts(act_mapping_type=MappingType.ASYMMETRIC, act_dtype=torch.uint8),
        "not for .*ASYMMETRIC torch.uint8: give both",
    ),
    "another observer": (
        lambda model: model(torch.randn(3, K)),
        converts(observer="histogram"),
        "was prepared with the observer 'minmax', not 'histogram': give both steps the same, or only step='prepare'",
    ),
    "an unknown kernel": (lambda model: model(torch.randn(3, K)), converts(), "unknown kernel 'none/such'"),
}


@pytest.mark.parametrize("wrong", WRONG)
@torch.no_grad()
def test_a_failed_conversion_leaves_the_layer_as_it_was(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Still prepared, still of floats; after what was missing it can be converted."""
    run, convert, message = WRONG[wrong]
    original = Model()
    model = copy.deepcopy(original)
    quantize_(model, acl_int8_static("prepare"))
    run(model)
    weight, state, text = model.first.weight, set(vars(model.first)), repr(model)
    if wrong == "an unknown kernel":
        monkeypatch.setenv("AO_ARM_KERNEL", "none/such")
    with pytest.raises(
        ValueError, match=rf"'first.weight' of Linear\(in_features={K}.* was not quantized: .*{message}"
    ):
        convert(model)
    monkeypatch.delenv("AO_ARM_KERNEL", raising=False)
    assert model.first.weight is weight and torch.equal(weight, original.first.weight)
    assert set(vars(model.first)) == state
    assert repr(model) == text
    assert len(model.first._forward_pre_hooks) == 1
    calibrated(model, batches())
    quantize_(model, acl_int8_static("convert"))
    assert_like(model, original, packed=True)


def test_converting_what_was_not_prepared_is_refused() -> None:
    model = Model()
    message = r"'first.weight' of Linear.*it has no observer: quantize_ with step='prepare' and calibrate before"
    with pytest.raises(ValueError, match=message):
        quantize_(model, acl_int8_static("convert"))
    assert_like(model, Model(), packed=False)


class Bilinear(nn.Module):
    """Has a weight, but is no nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N, K))
        self.other = nn.Parameter(torch.randn(N, K))


def test_only_linear_layers_can_be_calibrated() -> None:
    model = nn.Sequential(Bilinear())
    message = r"'0.weight' of Bilinear\(\) was not quantized: it cannot be calibrated: only the weights of nn.Linear"
    with pytest.raises(NotImplementedError, match=message):
        quantize_(model, acl_int8_static("prepare"), filter_fn=lambda module, name: name == "0")
    with pytest.raises(NotImplementedError, match=r"'0.other' of Bilinear"):
        quantize_(model, FqnToConfig(OrderedDict({"0.other": acl_int8_static("prepare")})), filter_fn=None)
    with pytest.raises(ValueError, match=r"ReLU\(\) has no parameter 'weight' to quantize"):
        quantize_(nn.Sequential(nn.ReLU()), acl_int8_static("prepare"), filter_fn=lambda module, name: name == "0")
    quantize_(model, FqnToConfig(OrderedDict({"0.other": acl_int8_static(act_scale=0.1)})), filter_fn=None)
    assert packed_weight_of(model[0].other) is not None


def test_attention_is_refused_before_it_is_calibrated() -> None:
    """nn.MultiheadAttention hands the weights of its layers on, so that an observer would see nothing."""
    model = nn.Sequential(nn.MultiheadAttention(K, 2))
    for filter_fn, name in (
        (quantizable, "0.in_proj"),
        (lambda module, _: isinstance(module, nn.Linear), "0.out_proj"),
    ):
        with pytest.raises(NotImplementedError, match=rf"'{name}.* of .* cannot be calibrated: .* leave it out"):
            quantize_(model, acl_int8_static("prepare"), filter_fn=filter_fn)
    assert not any(module._forward_pre_hooks for module in model.modules())
