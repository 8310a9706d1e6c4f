"""SmoothQuant, which multiplies activations before they are quantized."""

import copy

import cases
import pytest
import torch
from models import (
    GROUPED,
    K,
    N,
    assert_same_results,
    float_model,
    quantize,
    quantized_layers,
)
from torchao.quantization import quantize_

import ao_arm

pytestmark = pytest.mark.x86


@torch.no_grad()
def test_smoothquant_raises_the_accuracy_for_channels_with_outliers() -> None:
    smoothquant = pytest.importorskip("torchao.prototype.smoothquant")
    model, outliers = float_model(), torch.ones(K)
    outliers[::16] = 60.0
    x, calibration = (torch.randn(64, K) * outliers for _ in range(2))
    exact = model(x)
    plain = copy.deepcopy(model)
    quantize_(plain, ao_arm.acl_int8_dynamic())
    quantize_(model, smoothquant.SmoothQuantConfig(base_config=ao_arm.acl_int8_dynamic(), step="prepare"))
    model(calibration)
    quantize_(model, smoothquant.SmoothQuantConfig(base_config=ao_arm.acl_int8_dynamic(), step="convert"))
    assert quantized_layers(model) == ["0", "2"]
    assert cases.sqnr(exact, model(x)) > cases.sqnr(exact, plain(x)) + 3
    assert_same_results(copy.deepcopy(model), model)
    target = quantize(float_model(), ao_arm.acl_int8_dynamic(), ao_arm.acl_int8_dynamic())
    target.load_state_dict(model.state_dict())
    assert_same_results(target, model)


@torch.no_grad()
def test_smoothquant_of_4_bit_layers() -> None:
    """Groups of the weights need not gain by it; what is computed is right."""
    smoothquant = pytest.importorskip("torchao.prototype.smoothquant")
    layer, x = torch.nn.Sequential(torch.nn.Linear(K, N)), torch.randn(64, K) * torch.logspace(-1, 1, K)
    exact = layer(x)
    for step in ("prepare", "convert"):
        quantize_(layer, smoothquant.SmoothQuantConfig(base_config=GROUPED, step=step))
        layer(x)
    packed = cases.packed_in(layer[0])
    assert packed.get_layout() == cases.grouped(32, "asymmetric") and packed.act_pre_scale is not None
    cases.assert_by_reference(layer(x), x * packed.act_pre_scale, packed, layer[0].bias)
    assert cases.sqnr(exact, layer(x)) > 16
    assert_same_results(copy.deepcopy(layer), layer)


@torch.no_grad()
def test_smoothquant_of_static_layers() -> None:
    """The scale in one shot is that of what the pre-scale leaves."""
    smoothquant = pytest.importorskip("torchao.prototype.smoothquant")
    layer, outliers = torch.nn.Sequential(torch.nn.Linear(K, N)), torch.ones(K)
    outliers[::16] = 60.0
    x, calibration = (torch.randn(64, K) * outliers for _ in range(2))
    exact = layer(x)
    plain = copy.deepcopy(layer)
    quantize_(plain, ao_arm.acl_int8_static(act_scale=float(calibration.abs().max()) / 127.5))
    config = ao_arm.acl_int8_static(act_scale=0.02)
    quantize_(layer, smoothquant.SmoothQuantConfig(base_config=config, step="prepare"))
    layer(calibration)
    quantize_(layer, smoothquant.SmoothQuantConfig(base_config=config, step="convert"))
    packed = cases.packed_in(layer[0])
    assert packed.get_layout() == config.layout() and packed.act_pre_scale is not None
    packed.act_scale.fill_(float((calibration * packed.act_pre_scale).abs().max()) / 127.5)
    assert cases.same_bits(layer(x), cases.by_reference(x * packed.act_pre_scale, packed, layer[0].bias))
    assert cases.sqnr(exact, layer(x)) > cases.sqnr(exact, plain(x)) + 3
    copied = copy.deepcopy(layer)
    assert cases.same_bits(copied(x), layer(x))
