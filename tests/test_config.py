"""`quantize_` with our configuration, on a torchao with AffineQuantizedTensor and on one without."""

import copy
import gc
import io
import json
import weakref
from itertools import product

import cases
import pytest
import torch
from torch import Tensor, nn
from torchao.core.config import config_from_dict, config_to_dict
from torchao.quantization import MappingType, PerAxis, PerGroup, PerRow, PerTensor, PerToken, quantize_

import ao_arm
from ao_arm import ACLPackedLayout, ACLPackedTensor, reference

ACTIVATION_MAPPINGS = {MappingType.SYMMETRIC: "symmetric", MappingType.ASYMMETRIC: "asymmetric"}
ACTIVATION_GRANULARITIES = {PerToken(): "per_token", PerRow(): "per_token", PerTensor(): "per_tensor"}
WEIGHT_GRANULARITIES = {PerRow(): "per_channel", PerAxis(0): "per_channel", PerTensor(): "per_tensor"}
OPTIONS = {
    "-".join(words): (arguments, ACLPackedLayout(*layout))
    for arguments, words, layout in (
        ((mapping, activation, weight), (mapping_word, repr(activation), repr(weight)), (mapping_word, *rest))
        for (mapping, mapping_word), (activation, activation_word), (weight, weight_word) in product(
            ACTIVATION_MAPPINGS.items(), ACTIVATION_GRANULARITIES.items(), WEIGHT_GRANULARITIES.items()
        )
        for rest in [(activation_word, weight_word)]
    )
}
needs_aqt = pytest.mark.skipif(not cases.HAS_AQT, reason="this torchao has no AffineQuantizedTensor")


class Model(nn.Module):
    """Three linear layers, one without a bias, and something that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 48)
        self.norm = nn.LayerNorm(48)
        self.rest = nn.Sequential(nn.Linear(48, 33, bias=False), nn.ReLU(), nn.Linear(33, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.norm(self.first(x)))

    def layers(self) -> list[nn.Linear]:
        return [self.first, self.rest[0], self.rest[2]]


def quantized_model(*arguments: object, dtype: torch.dtype = torch.float32) -> Model:
    model = Model().to(dtype).eval()
    quantize_(model, ao_arm.acl_int8_dynamic(*arguments))
    return model


def by_reference(layer: nn.Linear, x: Tensor) -> Tensor:
    packed = cases.packed_in(layer)
    qdata, scale, _ = packed.get_plain()
    layout = packed.get_layout()
    symmetric, per_token = layout.activation_mapping == "symmetric", layout.activation_granularity == "per_token"
    scale = scale.expand(qdata.shape[0])
    return reference.linear_int8_dynamic(x, qdata, scale, layer.bias, symmetric, per_token)


# --- what quantize_ does ---


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(option: str) -> None:
    arguments, layout = OPTIONS[option]
    model, x = quantized_model(*arguments), torch.randn(5, 64)
    for layer in model.layers():
        assert cases.packed_in(layer).get_layout() == layout
        inner = torch.randn(3, layer.in_features)
        assert cases.same_bits(layer(inner), by_reference(layer, inner))
    assert model(x).shape == (5, 10)


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
def test_models_of_every_dtype(dtype: torch.dtype) -> None:
    model = quantized_model(dtype=dtype)
    for layer in model.layers():
        assert (layer.weight.dtype, cases.packed_in(layer).dtype) == (dtype, dtype)
        x = torch.randn(2, 3, layer.in_features, dtype=dtype)
        assert cases.same_bits(layer(x), by_reference(layer, x))
    assert model(torch.randn(5, 64, dtype=dtype)).dtype == dtype


def test_the_default_is_symmetric_per_token_by_per_channel() -> None:
    assert ao_arm.acl_int8_dynamic() == ao_arm.ACLInt8DynamicActivationInt8WeightConfig()
    assert ao_arm.acl_int8_dynamic().layout() == ACLPackedLayout("symmetric", "per_token", "per_channel")
    assert ao_arm.acl_int8_dynamic(MappingType.ASYMMETRIC, PerTensor(), PerTensor()).layout() == ACLPackedLayout(
        "asymmetric", "per_tensor", "per_tensor"
    )


def test_the_weight_is_of_the_class_that_this_torchao_has() -> None:
    layer = quantized_model().first
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad
    assert layer.weight.shape == (48, 64)
    if not cases.HAS_AQT:
        assert isinstance(layer.weight, ACLPackedTensor)
        return
    from torchao.dtypes.affine_quantized_tensor import AffineQuantizedTensor

    assert isinstance(layer.weight, AffineQuantizedTensor)
    assert type(layer.weight.tensor_impl) is ACLPackedTensor
    assert type(layer.weight.tensor_impl.get_layout()) is ACLPackedLayout
    assert type(layer.weight._layout) is ACLPackedLayout


def test_weights_dequantize_to_what_was_quantized() -> None:
    model = Model()
    original = model.first.weight.detach().clone()
    quantize_(model, ao_arm.acl_int8_dynamic())
    packed = cases.packed_in(model.first)
    qdata, scale, _ = packed.get_plain()
    assert torch.equal(model.first.weight.dequantize(), qdata * scale[:, None])
    steps = (model.first.weight.dequantize() - original).abs() / scale[:, None]
    assert float(steps.max()) <= 0.5 + 1e-4


def test_only_linear_layers_change_and_filters_are_heeded() -> None:
    model = Model()
    norm, bias = model.norm.weight, model.first.bias
    quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=lambda module, name: name == "rest.2")
    assert [layer.scheme.startswith("int8") for layer in ao_arm.explain(model)] == [False, False, True]
    quantize_(model, ao_arm.acl_int8_dynamic())
    assert all(layer.scheme.startswith("int8") for layer in ao_arm.explain(model))
    assert model.norm.weight is norm
    assert model.first.bias is bias


def test_quantizing_again_changes_nothing() -> None:
    model = quantized_model()
    weights, x = [layer.weight for layer in model.layers()], torch.randn(5, 64)
    before = model(x)
    quantize_(model, ao_arm.acl_int8_dynamic(MappingType.ASYMMETRIC))
    assert all(layer.weight is weight for layer, weight in zip(model.layers(), weights, strict=True))
    assert cases.same_bits(model(x), before)


def test_a_layer_by_itself_can_be_quantized() -> None:
    layer = nn.Sequential(nn.Linear(7, 5))
    quantize_(layer, ao_arm.acl_int8_dynamic())
    assert layer(torch.randn(2, 7)).shape == (2, 5)


def test_subclasses_of_linear_are_quantized() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(7, 5))
    quantize_(model, ao_arm.acl_int8_dynamic())
    x = torch.randn(2, 7)
    assert cases.same_bits(model(x), 2 * by_reference(model[0], x))


def test_autocast() -> None:
    model, x = quantized_model(), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model.first(x)
    assert cases.same_bits(actual, by_reference(model.first, x.bfloat16()))


# --- AffineQuantizedTensor ---


@needs_aqt
@pytest.mark.parametrize("per_channel", [True, False], ids=["per_channel", "per_tensor"])
@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
def test_torchao_makes_affine_quantized_tensors_with_our_layout(per_channel: bool, dtype: torch.dtype) -> None:
    from torchao.dtypes import to_affine_quantized_intx
    from torchao.quantization.quant_primitives import ZeroPointDomain

    original, x = torch.randn(33, 64, dtype=dtype), torch.randn(5, 64, dtype=dtype)
    weight = to_affine_quantized_intx(
        original,
        mapping_type=MappingType.SYMMETRIC,
        block_size=(1 if per_channel else 33, 64),
        target_dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        eps=torch.finfo(torch.float32).eps,
        scale_dtype=torch.float32,
        zero_point_domain=ZeroPointDomain.NONE,
        _layout=ACLPackedLayout(),
    )
    assert type(weight.tensor_impl) is ACLPackedTensor
    qdata, scale, zero_point = weight.tensor_impl.get_plain()
    assert zero_point is None
    assert scale.shape == (33 if per_channel else 1,)
    expected = reference.linear_int8_dynamic(x, qdata, scale.expand(33), None, True, True)
    assert cases.same_bits(torch.nn.functional.linear(x, weight), expected)
    assert cases.same_bits(x @ weight.t(), expected)
    half_a_step = 0.51 * float(scale.max())
    torch.testing.assert_close(weight.dequantize(), original, atol=half_a_step, rtol=torch.finfo(dtype).eps)


@needs_aqt
def test_affine_quantized_weights_behave_as_the_packed_tensor() -> None:
    layer, x, bias = quantized_model().first, torch.randn(5, 64), torch.randn(48)
    weight, linear = layer.weight, torch.nn.functional.linear
    expected = linear(x, weight.tensor_impl, bias)
    for name, actual in {
        "linear": linear(x, weight, bias),
        "weight=": linear(x, weight=weight, bias=bias),
        "addmm": torch.addmm(bias, x, weight.t()),
        "@": x @ weight.t() + bias,
        "clone": linear(x, weight.clone(), bias),
        "detach": linear(x, weight.detach(), bias),
        "deepcopy": linear(x, copy.deepcopy(weight), bias),
    }.items():
        assert cases.same_bits(actual, expected), name
    assert cases.same_bits(weight.dequantize(), weight.tensor_impl.dequantize())
    for product_of in (lambda: x @ weight, lambda: torch.randn(5, 48) @ weight, lambda: weight @ x.t()):
        with pytest.raises(NotImplementedError, match=r"x @ w.t\(\) or F.linear\(x, w\) only"):
            product_of()


# --- wrong options ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("act_mapping_type", MappingType.SYMMETRIC_NO_CLIPPING_ERR),
        ("act_mapping_type", "symmetric"),
        ("act_mapping_type", None),
        ("act_granularity", PerGroup(32)),
        ("act_granularity", PerAxis(0)),
        ("act_granularity", "per_token"),
        ("weight_granularity", PerGroup(32)),
        ("weight_granularity", PerAxis(1)),
        ("weight_granularity", PerToken()),
        ("weight_granularity", 0),
        ("version", 2),
        ("version", 0),
    ],
    ids=lambda value: str(value),
)
def test_wrong_options_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        ao_arm.ACLInt8DynamicActivationInt8WeightConfig(**{field: value})
    if field != "version":
        with pytest.raises(ValueError, match=f"{field} must be"):
            ao_arm.acl_int8_dynamic(**{field: value})


def test_options_that_are_changed_later_are_checked_too() -> None:
    config, model = ao_arm.acl_int8_dynamic(), Model()
    config.act_granularity = PerGroup(32)
    before = model.first.weight
    with pytest.raises(ValueError, match="act_granularity must be"):
        quantize_(model, config)
    assert model.first.weight is before


# --- configurations as dictionaries ---


@pytest.mark.one_cpu
@pytest.mark.parametrize("option", OPTIONS)
def test_configurations_survive_the_way_through_a_dictionary(option: str) -> None:
    config = ao_arm.acl_int8_dynamic(*OPTIONS[option][0])
    written = json.loads(json.dumps(config_to_dict(config)))
    read = config_from_dict(written)
    assert type(read) is type(config)
    assert read == config
    assert read.layout() == OPTIONS[option][1]


def test_newer_configurations_are_refused() -> None:
    written = config_to_dict(ao_arm.acl_int8_dynamic())
    written["_version"] = 2
    with pytest.raises(ValueError, match=r"(?i)version"):
        config_from_dict(written)
    with pytest.raises(ValueError, match="version must be 1, not 2: written by a newer ao_arm"):
        ao_arm.ACLInt8DynamicActivationInt8WeightConfig(version=2)


# --- weights that cannot be quantized ---


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
    "k above the int32 limit": (lambda: torch.ones(1, 66312), ValueError, "66311 at most"),
    "meta": (lambda: torch.ones(5, 7, device="meta"), NotImplementedError, "load real values first"),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_weights_that_cannot_be_quantized_leave_the_layer_as_it_was(wrong: str) -> None:
    make, error, message = WRONG_WEIGHTS[wrong]
    model = nn.Sequential(with_weight(make()))
    layer = model[0]
    weight, state, text = layer.weight, set(vars(layer)), repr(layer)
    content = None if weight.is_meta else weight.detach().clone()
    with pytest.raises(error, match=rf"weight' of Linear\(in_features=.* was not quantized.*{message}"):
        quantize_(model, ao_arm.acl_int8_dynamic())
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
        quantize_(model, ao_arm.acl_int8_dynamic())
    assert model[0].weight is weight


# --- what remains of the model ---


def test_the_model_prints_what_its_weights_are() -> None:
    text = repr(quantized_model())
    assert "in_features=64, out_features=48, bias=True, weight=ACLPackedTensor(shape=(48, 64), int8 dynamic" in text
    assert text.count("ACLPackedTensor(") == 3


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [saved_and_loaded, copy.deepcopy], ids=["torch.save", "deepcopy"])
def test_models_survive(way) -> None:
    model, x = quantized_model(MappingType.ASYMMETRIC), torch.randn(5, 64)
    again = way(model)
    assert repr(again) == repr(model)
    assert cases.same_bits(again(x), model(x))
    again.first.weight = nn.Parameter(torch.zeros(48, 64))
    assert "weight=" not in again.first.extra_repr(), "it prints the weight of another layer than its own"
    assert "weight=" in model.first.extra_repr()


def tensor_memory() -> dict[int, int]:
    """Bytes of each storage that a tensor of this process is in, by its address."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter) and thing.device.type == "cpu":
            try:
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            except (RuntimeError, NotImplementedError):  # a wrapper, which has no memory
                continue
    return storages


def test_no_other_copy_of_the_weight_stays_alive() -> None:
    n, k = 512, 1024
    model = nn.Sequential(nn.Linear(k, n))
    old = weakref.ref(model[0].weight)
    before = tensor_memory()
    assert max(before.values()) >= 4 * n * k
    quantize_(model, ao_arm.acl_int8_dynamic())
    after = tensor_memory()
    assert old() is None, "the float weight is still alive"
    added = {address: size for address, size in after.items() if before.get(address) != size}
    assert sum(added.values()) <= 1.05 * n * k, f"new tensors of {sorted(added.values())} bytes"
    assert sum(after.values()) <= sum(before.values()) - 4 * n * k + 1.05 * n * k
    model(torch.randn(3, k))
    assert sum(tensor_memory().values()) <= sum(after.values()), "a call left tensors behind"


def test_shared_weights_stay_usable() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    quantize_(model, ao_arm.acl_int8_dynamic())
    x = torch.randn(3, 16)
    for layer in model:
        assert cases.same_bits(layer(x), by_reference(layer, x))
