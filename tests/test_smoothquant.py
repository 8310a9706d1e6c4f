"""SmoothQuant and AWQ, which multiply activations before they are quantized."""

import copy

import cases
import pytest
import torch
import torchao
from models import (
    GROUPED,
    K,
    N,
    assert_same_results,
    float_model,
    quantize,
    quantized_layers,
)
from torchao.core.config import AOBaseConfig
from torchao.quantization import MappingType, quantize_

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


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=cases.name_of)
@pytest.mark.parametrize("mapping", [MappingType.SYMMETRIC, MappingType.ASYMMETRIC], ids=lambda mapping: mapping.name)
def test_smoothquant_calibrates_static_layers(mapping: MappingType, dtype: torch.dtype) -> None:
    """Each layer gets the scale of its own inputs, after the pre-scale."""
    smoothquant = pytest.importorskip("torchao.prototype.smoothquant")
    if (mapping, dtype) == (MappingType.SYMMETRIC, torch.uint8):
        with pytest.raises(ValueError, match="uint8 activations have a zero point"):
            ao_arm.acl_int8_static("convert", None, None, mapping, dtype)
        return
    model, outliers = float_model(), torch.ones(K)
    outliers[::16] = 60.0
    calibration, x = (torch.randn(1024, K).clamp(-3, 2) * outliers for _ in range(2))
    exact, hidden = model[0](x), model[:2](calibration)
    plain = copy.deepcopy(model)
    for step in ("prepare", "convert"):
        quantize_(plain, ao_arm.acl_int8_static(step, None, None, mapping, dtype))
        plain(calibration)
    config = ao_arm.acl_int8_static("convert", None, None, mapping, dtype)
    before = copy.deepcopy(vars(config))
    biases = [layer.bias.clone() for layer in (model[0], model[2])]
    quantize_(model, smoothquant.SmoothQuantConfig(base_config=config, step="prepare"))
    for observed, inputs in ((model[0], calibration), (model[2], hidden)):
        observed(inputs)
    if mapping == MappingType.ASYMMETRIC and "0.16" in torchao.__version__:
        with pytest.raises(NotImplementedError, match="this torchao's SmoothQuant finds no zero points"):
            quantize_(model, smoothquant.SmoothQuantConfig(base_config=config, step="convert"))
        return
    quantize_(model, smoothquant.SmoothQuantConfig(base_config=config, step="convert"))
    assert quantized_layers(model) == ["0", "2"] and vars(config) == before
    for layer, inputs, bias in ((model[0], calibration, biases[0]), (model[2], hidden, biases[1])):
        packed = cases.packed_in(layer)
        assert packed.get_layout() == config.layout() and torch.equal(layer.bias, bias)
        smooth = inputs * packed.act_pre_scale
        if mapping == MappingType.SYMMETRIC:
            torch.testing.assert_close(packed.act_scale, smooth.abs().max().reshape(1) / 127.5)
        else:
            low, high = min(float(smooth.min()), 0.0), max(float(smooth.max()), 0.0)
            least = torch.iinfo(dtype).min
            torch.testing.assert_close(packed.act_scale, torch.tensor([(high - low) / 255]))
            assert abs(float(packed.act_zero_point) - (least - low / float(packed.act_scale))) <= 1
        assert cases.same_bits(layer(inputs), cases.by_reference(smooth, packed, layer.bias))
    assert cases.sqnr(exact, model[0](x)) > cases.sqnr(exact, plain[0](x)) + 3
    with pytest.raises(ValueError, match="it has no observer"):  # nothing of SmoothQuant's is left for other models
        quantize_(torch.nn.Sequential(torch.nn.Linear(K, N)), config)


@torch.no_grad()
@pytest.mark.parametrize("config", [ao_arm.acl_int4_grouped(), ao_arm.acl_int8_dynamic()], ids=["grouped", "dynamic"])
def test_awq(config: AOBaseConfig) -> None:
    """torchao's search tries our layers, and the best factors become the weight's pre-scale."""
    awq = pytest.importorskip("torchao.prototype.awq")
    model = torch.nn.Sequential(torch.nn.Linear(K, N))
    calibration, x = (torch.randn(64, K) * torch.logspace(-1.5, 1.5, K) for _ in range(2))
    exact, plain = model(x), copy.deepcopy(model)
    quantize_(plain, config)
    quantize_(model, awq.AWQConfig(config, step="prepare"))
    model(calibration)
    quantize_(model, awq.AWQConfig(config, step="convert"))
    packed = cases.packed_in(model[0])
    assert packed.act_pre_scale is not None
    cases.assert_by_reference(model(x), x * packed.act_pre_scale, packed, model[0].bias)
    assert cases.sqnr(exact, model(x)) > cases.sqnr(exact, plain(x)) + 0.2
    assert_same_results(copy.deepcopy(model), model)


@torch.no_grad()
def test_gptq_is_refused_by_name() -> None:
    """torchao's converts on CUDA only, and to its own weights."""
    observer = pytest.importorskip("torchao.prototype.gptq.observer")
    model = torch.nn.Sequential(torch.nn.Linear(K, N))
    model[0].weight = torch.nn.Parameter(observer.GPTQObserverTensor.from_hp(model[0].weight), requires_grad=False)
    message = (
        r"quantized already, by torchao's GPTQObserverTensor: ao_arm.pack_\(model\) takes it over, or says why not"
    )
    with pytest.raises(ValueError, match=message):
        quantize_(model, ao_arm.acl_int4_grouped())
    (left,) = ao_arm.pack_(model).left
    assert left.reason.startswith("torchao's GPTQ observes it, which converts on CUDA")


def test_gptq_refuses_configurations_of_ours_when_it_is_given_one() -> None:
    gptq = pytest.importorskip("torchao.prototype.gptq")
    with pytest.raises(NotImplementedError, match=r"cannot end in ACL.*observe_importance.*from_plain"):
        gptq.GPTQConfig(step="convert", base_config=ao_arm.acl_int4_grouped())
