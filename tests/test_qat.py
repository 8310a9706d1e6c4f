"""Quantization-aware training: prepared layers compute on the grid that converted ones have."""

import copy
from typing import Any

import cases
import pytest
import torch
from models import K, N, quantized_layers
from torchao.core.config import AOBaseConfig
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, MappingType, PerGroup, PerTensor, quantize_
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
from torchao.quantization.qat.linear import disable_linear_fake_quant, enable_linear_fake_quant

import ao_arm
from ao_arm import acl_int4_grouped, acl_int8_dynamic, acl_int8_static
from ao_arm.qat import PreparedLinear

pytestmark = pytest.mark.one_cpu

CONFIGS = {
    "symmetric int8": acl_int8_dynamic(MappingType.SYMMETRIC),
    "asymmetric int8": acl_int8_dynamic(MappingType.ASYMMETRIC),
    "per tensor": acl_int8_dynamic(MappingType.ASYMMETRIC, PerTensor(), PerTensor()),
    "groups": acl_int4_grouped(),
    "groups with zero points": acl_int4_grouped(None, MappingType.ASYMMETRIC, torch.float32),
    "static": acl_int8_static(None, 0.03, 9, MappingType.ASYMMETRIC, torch.uint8),
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def prepared_model(config: AOBaseConfig, dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    model = torch.nn.Sequential(torch.nn.Linear(K, 64), torch.nn.ReLU(), torch.nn.Linear(64, N, bias=False)).to(dtype)
    quantize_(model, QATConfig(base_config=config, step="prepare"))
    return model


def train(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> list[float]:
    """A few steps; the losses."""
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.5), torch.randn(64, K, dtype=dtype)
    target, losses = torch.randn(64, N, dtype=dtype) / 4, []
    for _ in range(12):
        loss = torch.nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("config", cases.thinned([*CONFIGS.values()]), ids=cases.thinned([*CONFIGS]))
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.x86)], ids=cases.name_of
)
def test_converted_layers_compute_what_was_trained(config: AOBaseConfig, dtype: torch.dtype) -> None:
    model = prepared_model(config, dtype)
    weight = model[0].weight.detach().clone()
    losses = train(model, dtype)
    assert losses[-1] < 0.9 * losses[0] and not torch.equal(model[0].weight, weight)
    trained, inputs = copy.deepcopy(model), (torch.randn(7, K, dtype=dtype), torch.randn(7, 64, dtype=dtype))
    quantize_(model, QATConfig(base_config=config, step="convert"))
    assert quantized_layers(model) == ["0", "2"]
    for i, x in zip((0, 2), inputs, strict=True):
        packed = cases.packed_in(model[i])
        with torch.no_grad():
            # Float by float the grid that was trained; what is left is the order of sums, and the output's rounding.
            assert torch.equal(trained[i].weight_fake_quantizer(trained[i].weight), packed.plain().dequantized())
            expected = trained[i](x).float()
            difference = (model[i](x).float() - expected).abs().max()
        assert float(difference) <= (2e-5 if dtype == torch.float32 else 0.01) * float(expected.abs().max())
        direct = torch.nn.Linear(*reversed(packed.weight_shape), bias=False, dtype=dtype)
        direct.weight = trained[i].weight
        quantize_(torch.nn.Sequential(direct), config)
        assert torch.equal(cases.packed_in(direct).qdata, packed.qdata)


def test_gradients_pass_straight_through_where_static_activations_are_within_the_range() -> None:
    model = prepared_model(acl_int8_static(act_scale=0.01))
    x = torch.tensor([[0.5, -1.27, 1.3, -1.4] * (K // 4)], requires_grad=True)
    model[0](x).sum().backward()
    fake = model[0].weight_fake_quantizer(model[0].weight).detach()
    inside = torch.tensor([1.0, 1.0, 0.0, 0.0] * (K // 4))
    torch.testing.assert_close(x.grad[0], fake.sum(dim=0) * inside)
    rounded = x.detach().div(0.01).round().clamp(-128, 127).mul(0.01)
    torch.testing.assert_close(model[0].weight.grad, rounded.expand(64, K))


def test_fake_quantization_is_turned_off_and_on_as_torchaos() -> None:
    model, x = prepared_model(acl_int4_grouped()), torch.randn(5, K)
    quantized = model[0](x)
    model.apply(disable_linear_fake_quant)
    assert torch.equal(model[0](x), torch.nn.functional.linear(x, model[0].weight, model[0].bias))
    model.apply(enable_linear_fake_quant)
    assert torch.equal(model[0](x), quantized)


def test_policies() -> None:
    for policy, kinds in (("skip", [torch.nn.Linear, PreparedLinear]), ("int8", [PreparedLinear, PreparedLinear])):
        model: Any = torch.nn.Sequential(torch.nn.Linear(50, 64), torch.nn.Linear(64, N))
        config = acl_int4_grouped(on_unsupported=policy)
        with pytest.warns(UserWarning, match=r"'0\.weight' of .*k = 50 is no multiple"):
            quantize_(model, QATConfig(config, step="prepare"))
        assert [type(layer) for layer in model] == kinds
        quantize_(model, QATConfig(config, step="convert"))
        assert quantized_layers(model) == (["1"] if policy == "skip" else ["0", "1"])
    assert cases.packed_in(model[0]).get_layout() == config.fallback().layout()
    model = torch.nn.Sequential(torch.nn.Linear(50, 64))
    with pytest.raises(ValueError, match=r"'0\.weight' of .* was not prepared: k = 50 is no multiple"):
        quantize_(model, QATConfig(acl_int4_grouped(), step="prepare"))
    assert type(model[0]) is torch.nn.Linear


def test_converting_to_another_grid_is_refused() -> None:
    model = prepared_model(acl_int4_grouped())
    with pytest.raises(
        ValueError, match=r"was trained for .*group_size=32.*, not for .*group_size=64.*give both steps"
    ):
        quantize_(model, QATConfig(acl_int4_grouped(64), step="convert"))
    assert type(model[0]) is PreparedLinear
    model = torch.nn.Sequential(torch.nn.Linear(K, N))
    quantize_(model, QATConfig(weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32), step="prepare"))
    with pytest.raises(
        ValueError, match=r"was trained on a grid of torchao's: convert with torchao's .*pack_\(model\)"
    ):
        quantize_(model, QATConfig(acl_int4_grouped(), step="convert"))
    with pytest.raises(ValueError, match="static activations are trained by a scale that is known"):
        quantize_(model, QATConfig(acl_int8_static("prepare"), step="prepare"))


@torch.no_grad()
def test_torchaos_grid_comes_in_by_pack() -> None:
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))
    model, x = torch.nn.Sequential(torch.nn.Linear(K, N)), torch.randn(5, K)
    quantize_(model, QATConfig(config, step="prepare"))
    trained = model(x)
    grid = model[0].weight_fake_quantizer(model[0].weight)
    quantize_(model, QATConfig(config, step="convert"))
    assert len(ao_arm.pack_(model).taken) == 1
    torch.testing.assert_close(cases.packed_in(model[0]).dequantize(), grid, rtol=1e-6, atol=1e-7)
    assert cases.sqnr(trained, model(x)) > 60


def test_a_search_is_refused() -> None:
    config = QATConfig(base_config=acl_int4_grouped(search=True), step="prepare")
    with pytest.raises(ValueError, match="in training the grid follows them: leave search out"):
        quantize_(torch.nn.Sequential(torch.nn.Linear(64, 32)), config)
