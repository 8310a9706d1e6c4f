"""Layers that are prepared, calibrated and converted."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from calibrated import LAYERS, K, Model, N, assert_like, batches, calibrated
from observed import ACTIVATIONS, EACH_ACTIVATION, EACH_OBSERVER, observed
from torch import nn
from torchao.quantization import FqnToConfig, MappingType, quantize_
from torchao.quantization.quantize_.common.quantization_step import QuantizationStep

import ao_arm
from ao_arm import acl_int8_dynamic, acl_int8_static

pytestmark = pytest.mark.x86


@EACH_OBSERVER
@EACH_ACTIVATION
@torch.no_grad()
def test_layers_are_quantized_by_what_they_saw(observer: str, mapping: MappingType, dtype: torch.dtype) -> None:
    original, data = Model(), batches()
    scheme = {"act_mapping_type": mapping, "act_dtype": dtype, "observer": observer}
    model = calibrated(copy.deepcopy(original), data, **scheme)
    for batch in data:
        assert torch.equal(model(batch), original(batch)), "observing changes results"
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert list(state) == list(original.state_dict())
    quantize_(model, acl_int8_static("convert", **scheme))
    assert_like(model, original, packed=True)
    for name in LAYERS:
        layer = model.get_submodule(name)
        seen = [original.inputs_of_layers(batch)[name] for batch in data] * 2
        packed = cases.packed_in(layer)
        expected = observed(observer, seen, mapping, dtype)
        assert torch.equal(packed.act_scale, expected[0]) and torch.equal(packed.act_zero_point, expected[1]), name
        assert packed.get_layout() == acl_int8_static("convert", **scheme).layout()
        x = torch.randn(5, layer.in_features)
        assert cases.same_bits(layer(x), cases.by_reference(x, packed, layer.bias)), name
    x = torch.cat(data)
    assert cases.sqnr(original(x), model(x)) > 30
    assert all(row.scheme.startswith("int8 static") for row in ao_arm.explain(model))


@torch.no_grad()
def test_asymmetric_activations_suit_what_comes_after_a_relu() -> None:
    layer, data = nn.Sequential(nn.Linear(K, N)), [torch.randn(64, K).relu() for _ in range(3)]
    exact, results = layer(data[0]), {}
    for name, (mapping, dtype) in ACTIVATIONS.items():
        scheme = {"act_mapping_type": mapping, "act_dtype": dtype}
        model = calibrated(copy.deepcopy(layer), data, **scheme)
        quantize_(model, acl_int8_static("convert", **scheme))
        results[name] = cases.sqnr(exact, model(data[0]))
    assert results["s8"] == pytest.approx(results["u8"], abs=1e-3)
    assert results["u8"] > results["s8 symmetric"] + 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
@torch.no_grad()
def test_models_of_16_bit_floats(dtype: torch.dtype) -> None:
    model, data = Model().to(dtype), batches(dtype=dtype)
    exact = model(data[0])
    quantize_(calibrated(model, data), acl_int8_static("convert"))
    for name in LAYERS:
        layer = model.get_submodule(name)
        packed = cases.packed_in(layer)
        assert (layer.weight.dtype, packed.act_scale.dtype) == (dtype, torch.float32)
        x = torch.randn(5, layer.in_features, dtype=dtype)
        assert cases.same_bits(layer(x), cases.by_reference(x, packed, layer.bias))
    assert model(data[0]).dtype == dtype
    assert cases.sqnr(exact, model(data[0])) > 25


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
@EACH_OBSERVER
@torch.no_grad()
def test_prompts_and_single_tokens_calibrate_together(observer: str, dtype: torch.dtype) -> None:
    original = Model().to(dtype)
    data = [torch.randn(shape, dtype=dtype) for shape in ((1, 256, K), (1, 1, K), (1, K), (K,), (0, K), (2, 3, 5, K))]
    for order in (data, data[::-1]):
        model = calibrated(copy.deepcopy(original), order, observer=observer)
        quantize_(model, acl_int8_static("convert"))
        for name in LAYERS:
            seen = [original.inputs_of_layers(batch)[name] for batch in order]
            scale, _ = observed(observer, seen, *ACTIVATIONS["s8 symmetric"])
            assert torch.equal(cases.packed_in(model.get_submodule(name)).act_scale, scale), name


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, cases.saved_and_loaded], ids=["deepcopy", "torch.save and torch.load"]
)
@EACH_OBSERVER
@torch.no_grad()
def test_each_step_may_be_on_a_copy(observer: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    data, model = batches(4), Model()
    expected = calibrated(copy.deepcopy(model), data, observer=observer)
    quantize_(expected, acl_int8_static("convert"))

    prepared = copied(model)
    quantize_(prepared, acl_int8_static("prepare", observer=observer))
    half = copied(prepared)
    half(data[0]), half(data[1])
    whole = copied(half)
    whole(data[2]), whole(data[3])
    converted = copied(whole)
    quantize_(converted, acl_int8_static("convert"))
    again = copied(converted)
    for name in LAYERS:
        ours, theirs = cases.packed_in(again.get_submodule(name)), cases.packed_in(expected.get_submodule(name))
        assert torch.equal(ours.act_scale, theirs.act_scale)
    x = torch.randn(5, K)
    assert cases.same_bits(again(x), expected(x))
    assert_like(again, model, packed=True)
    with pytest.raises(ValueError, match=r"first.weight.*saw no data"):
        quantize_(prepared, acl_int8_static("convert"))
    other = calibrated(copy.deepcopy(model), data[:2], observer=observer)
    for each in (half, other):
        quantize_(each, acl_int8_static("convert"))
    assert cases.same_bits(half(x), other(x)), "the copy saw what the original saw, or the other way round"


@EACH_OBSERVER
@torch.no_grad()
def test_preparing_again_begins_anew(observer: str) -> None:
    original, data = Model(), batches()
    model = calibrated(
        copy.deepcopy(original), [100 * batch for batch in data], act_mapping_type=MappingType.ASYMMETRIC
    )
    calibrated(model, data, observer=observer)
    assert all(len(model.get_submodule(name)._forward_pre_hooks) == 1 for name in LAYERS)
    quantize_(model, acl_int8_static("convert"))
    expected = calibrated(copy.deepcopy(original), data, observer=observer)
    quantize_(expected, acl_int8_static("convert"))
    assert cases.same_bits(model(data[0]), expected(data[0]))
    assert_like(model, original, packed=True)


@torch.no_grad()
def test_quantizing_again_changes_nothing() -> None:
    model, data = Model(), batches()
    quantize_(calibrated(model, data), acl_int8_static("convert"))
    weights, before = [model.first.weight, model.second.weight], model(data[0])
    state = [set(vars(model.get_submodule(name))) for name in LAYERS]
    for config in (
        acl_int8_static("prepare"),
        acl_int8_static("convert", act_mapping_type=MappingType.ASYMMETRIC),
        acl_int8_static(act_scale=5.0),
        acl_int8_dynamic(),
    ):
        quantize_(model, config)
        assert model.first.weight is weights[0] and model.second.weight is weights[1]
        assert cases.same_bits(model(data[0]), before)
    assert [set(vars(model.get_submodule(name))) for name in LAYERS] == state


@pytest.mark.parametrize(
    "config", [acl_int8_dynamic(), acl_int8_static(act_scale=0.1)], ids=["dynamic", "static in one shot"]
)
@torch.no_grad()
def test_prepared_layers_may_be_quantized_otherwise(config: Any) -> None:
    original, data = Model(), batches()
    model, expected = calibrated(copy.deepcopy(original), data), copy.deepcopy(original)
    for each in (model, expected):
        quantize_(each, config)
    assert_like(model, original, packed=True)
    assert cases.same_bits(model(data[0]), expected(data[0]))


@torch.no_grad()
def test_weights_that_are_loaded_into_a_prepared_model() -> None:
    original, data = Model(), batches()
    converted = calibrated(copy.deepcopy(original), data)
    quantize_(converted, acl_int8_static("convert"))
    model = calibrated(copy.deepcopy(original), data)
    model.load_state_dict(converted.state_dict(), assign=True)
    called, by_name = copy.deepcopy(model), copy.deepcopy(model)
    assert cases.same_bits(called(data[0]), converted(data[0]))
    quantize_(called, acl_int8_static("convert"))
    # torchao's own filter passes over some weights that are quantized already.
    quantize_(by_name, acl_int8_static("convert"), filter_fn=lambda module, name: name in LAYERS)
    for each in (called, by_name):
        assert_like(each, original, packed=True, text=False)
        assert cases.same_bits(each(data[0]), converted(data[0]))


def test_steps_of_torchaos_enumeration() -> None:
    for step in ("prepare", "convert"):
        config = acl_int8_static(QuantizationStep(step))
        assert config == acl_int8_static(step)
        assert config.step == step and type(config.step) is str
    model = Model()
    quantize_(model, acl_int8_static(QuantizationStep.PREPARE))
    model(batches()[0])
    quantize_(model, acl_int8_static(QuantizationStep.CONVERT))
    assert_like(model, Model(), packed=True)
    with pytest.raises(ValueError, match=r"step must be one of .* not 'prepare_for_loading'"):
        acl_int8_static(QuantizationStep.PREPARE_FOR_LOADING)


def test_gradient_modes_may_change_during_calibration() -> None:
    model, data = Model(), batches(4)
    expected = calibrated(copy.deepcopy(model), data)
    quantize_(model, acl_int8_static("prepare"))
    with torch.inference_mode():
        model(data[0])
    model(data[1].clone().requires_grad_()).sum().backward()
    with torch.no_grad():
        model(data[2])
    with torch.inference_mode():
        model(data[3])
    for each in (model, expected):
        quantize_(each, acl_int8_static("convert"))
    with torch.no_grad():
        assert cases.same_bits(model(data[0]), expected(data[0]))
    assert not cases.packed_in(model.first).act_scale.is_inference()


def test_explain_tells_prepared_layers() -> None:
    model = Model().bfloat16()
    quantize_(model, acl_int8_static("prepare"), filter_fn=lambda module, name: name == "second")
    assert [(row.scheme, row.kernel) for row in ao_arm.explain(model)] == [
        ("not quantized (torch.bfloat16)", "torch"),
        ("prepared, not converted (torch.bfloat16)", "torch"),
    ]
    model(batches(dtype=torch.bfloat16)[0])
    quantize_(model, acl_int8_static("convert"), filter_fn=lambda module, name: name == "second")
    assert [row.scheme.split(" (")[0] for row in ao_arm.explain(model)] == ["not quantized", "int8 static"]


# --- schemes of their own for some layers ---


@torch.no_grad()
def test_layers_have_schemes_of_their_own() -> None:
    data, model = batches(), Model()
    x = data[0]
    inputs = model.inputs_of_layers(x)
    scheme = {"act_mapping_type": MappingType.ASYMMETRIC, "act_dtype": torch.uint8, "observer": "histogram"}
    for step in ("prepare", "convert"):
        by_name = {"first": acl_int8_dynamic(), r"re:.*second": acl_int8_static(step, **scheme)}
        quantize_(model, FqnToConfig(OrderedDict(by_name)), filter_fn=None)
        inputs = model.inputs_of_layers(x)
        model(x)
    assert [row.scheme.split(" (")[0] for row in ao_arm.explain(model)] == ["int8 dynamic", "int8 static"]
    expected = observed("histogram", [inputs["second"]], MappingType.ASYMMETRIC, torch.uint8)
    assert torch.equal(cases.packed_in(model.second).act_scale, expected[0])
    assert_like(model, Model(), packed=True)


def test_layers_have_scales_of_their_own() -> None:
    for names in (("first", "second"), ("first.weight", "second.weight")):
        model = Model()
        configs = dict(zip(names, (acl_int8_static(act_scale=0.1), acl_int8_static(act_scale=0.2)), strict=True))
        quantize_(model, FqnToConfig(OrderedDict(configs)), filter_fn=None)
        scales = [float(cases.packed_in(layer).act_scale) for layer in (model.first, model.second)]
        assert scales == pytest.approx([0.1, 0.2])
        assert cases.packed_in(model.first).act_scale.data_ptr() != cases.packed_in(model.second).act_scale.data_ptr()


@torch.no_grad()
def test_parameters_chosen_by_name_are_calibrated() -> None:
    model = Model()
    for step in ("prepare", "convert"):
        by_name = OrderedDict({"first.weight": acl_int8_static(step)})
        quantize_(model, FqnToConfig(by_name), filter_fn=None)
        if step == "prepare":
            model(batches()[0])
    assert [row.scheme.split(" (")[0] for row in ao_arm.explain(model)] == ["int8 static", "not quantized"]
