"""Layers that are prepared, calibrated and converted."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from observed import ACTIVATIONS, EACH_ACTIVATION, EACH_OBSERVER, observed
from torch import Tensor, nn
from torchao.quantization import FqnToConfig, MappingType, quantize_
from torchao.quantization.quantize_.common.quantization_step import QuantizationStep

import ao_arm
from ao_arm import acl_int8_dynamic, acl_int8_static, packed_weight_of

pytestmark = pytest.mark.one_cpu

K, HIDDEN, N = 48, 40, 24

# --- prepare, calibrate, convert ---


class Model(nn.Module):
    """Two linear layers, of which one has no bias and is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(K, HIDDEN)
        self.second = nn.Linear(HIDDEN, N, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(input=self.first(x).relu())

    def inputs_of_layers(self, x: Tensor) -> dict[str, Tensor]:
        return {"first": x, "second": self.first(x).relu()}


LAYERS = ("first", "second")


def batches(count: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(3, 7, K, dtype=dtype) for _ in range(count)]


@torch.no_grad()
def calibrated(model: nn.Module, data: list[Tensor], **scheme: Any) -> nn.Module:
    quantize_(model, acl_int8_static("prepare", **scheme))
    for batch in data:
        model(batch)
    return model


def assert_like(model: nn.Module, before: nn.Module, packed: bool, text: bool = True) -> None:
    """Nothing of the observers is left; with weights that were packed in place only the text of a layer is new."""
    assert [name for name, _ in model.named_modules()] == [name for name, _ in before.named_modules()]
    for name in LAYERS:
        layer, original = model.get_submodule(name), before.get_submodule(name)
        assert set(vars(layer)) == set(vars(original)) | ({"extra_repr"} if packed and text else set())
        for hooks in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_modules", "_buffers"):
            assert not getattr(layer, hooks), hooks
        assert (packed_weight_of(layer.weight) is not None) == packed


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


# --- what is refused ---


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
    message = r"'0.weight' of Bilinear\(\) cannot be calibrated: only the weights of nn.Linear layers can"
    with pytest.raises(NotImplementedError, match=message):
        quantize_(model, acl_int8_static("prepare"), filter_fn=lambda module, name: name == "0")
    with pytest.raises(NotImplementedError, match=r"'0.other' of Bilinear"):
        quantize_(model, FqnToConfig(OrderedDict({"0.other": acl_int8_static("prepare")})), filter_fn=None)
    with pytest.raises(ValueError, match=r"ReLU\(\) has no parameter 'weight' to quantize"):
        quantize_(nn.Sequential(nn.ReLU()), acl_int8_static("prepare"), filter_fn=lambda module, name: name == "0")
    quantize_(model, FqnToConfig(OrderedDict({"0.other": acl_int8_static(act_scale=0.1)})), filter_fn=None)
    assert packed_weight_of(model[0].other) is not None


def test_a_layer_that_is_not_called_is_named() -> None:
    """nn.MultiheadAttention hands the weight of its output layer on, so that its observer sees nothing."""
    model = nn.MultiheadAttention(K, 2)

    def linear(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear)

    quantize_(model, acl_int8_static("prepare"), filter_fn=linear)
    model(*[torch.randn(3, 2, K)] * 3)
    with pytest.raises(ValueError, match=r"'out_proj.weight' of .* saw no data"):
        quantize_(model, acl_int8_static("convert"), filter_fn=linear)
