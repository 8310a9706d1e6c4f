"""`quantize_` with our configuration, on a torchao with AffineQuantizedTensor and on one without."""

import copy
import dataclasses
import gc
import io
import json
import math
import weakref
from collections.abc import Callable
from itertools import product

import cases
import pytest
import torch
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig, config_from_dict, config_to_dict
from torchao.quantization import MappingType, PerAxis, PerGroup, PerRow, PerTensor, PerToken, quantize_

import ao_arm
from ao_arm import ACLPackedLayout, ACLPackedTensor, acl_int4_grouped, acl_int8_dynamic, acl_int8_static, reference

ACTIVATION_MAPPINGS = {MappingType.SYMMETRIC: "symmetric", MappingType.ASYMMETRIC: "asymmetric"}
ACTIVATION_GRANULARITIES = {PerToken(): "per_token", PerRow(): "per_token", PerTensor(): "per_tensor"}
WEIGHT_GRANULARITIES = {PerRow(): "per_channel", PerAxis(0): "per_channel", PerTensor(): "per_tensor"}
DYNAMIC = {
    "-".join(words): (acl_int8_dynamic(*arguments), ACLPackedLayout(*layout))
    for arguments, words, layout in (
        ((mapping, activation, weight), (mapping_word, repr(activation), repr(weight)), (mapping_word, *rest))
        for (mapping, mapping_word), (activation, activation_word), (weight, weight_word) in product(
            ACTIVATION_MAPPINGS.items(), ACTIVATION_GRANULARITIES.items(), WEIGHT_GRANULARITIES.items()
        )
        for rest in [(activation_word, weight_word)]
    )
}
STATIC = {
    f"{mapping_word} {dtype}-{weight!r}".replace("torch.", ""): (
        acl_int8_static(None, 0.04, zero_point, mapping, dtype, weight),
        ACLPackedLayout(mapping_word, "per_tensor", weight_word, "int8_static", cases.name_of(dtype)),
    )
    for (mapping, dtype, zero_point), (weight, weight_word) in product(
        [
            (MappingType.SYMMETRIC, torch.int8, None),
            (MappingType.ASYMMETRIC, torch.int8, -9),
            (MappingType.ASYMMETRIC, torch.uint8, 130),
        ],
        WEIGHT_GRANULARITIES.items(),
    )
    for mapping_word in [ACTIVATION_MAPPINGS[mapping]]
}
#: The layouts are those of the model's first layer.
GROUPED = {
    f"{group_size} {mapping_word} {cases.name_of(scale_dtype)}{' search' * search}": (
        acl_int4_grouped(group_size, mapping, scale_dtype, search),
        cases.grouped(group_size or 64, mapping_word, cases.name_of(scale_dtype)),
    )
    for group_size, (mapping, mapping_word), scale_dtype, search in [
        *product((None, 32), ACTIVATION_MAPPINGS.items(), (torch.bfloat16, torch.float32), (False,)),
        (32, (MappingType.ASYMMETRIC, "asymmetric"), torch.bfloat16, True),
    ]
}
OPTIONS = DYNAMIC | STATIC | GROUPED
needs_aqt = pytest.mark.skipif(not cases.HAS_AQT, reason="this torchao has no AffineQuantizedTensor")


class Model(nn.Module):
    """Three linear layers, one without a bias, and something that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 96)
        self.norm = nn.LayerNorm(96)
        self.rest = nn.Sequential(nn.Linear(96, 32, bias=False), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.norm(self.first(x)))

    def layers(self) -> list[nn.Linear]:
        return [self.first, self.rest[0], self.rest[2]]


def quantized_model(config: AOBaseConfig | None = None, dtype: torch.dtype = torch.float32) -> Model:
    model = Model().to(dtype).eval()
    quantize_(model, acl_int8_dynamic() if config is None else config)
    return model


def assert_by_reference(actual: Tensor, layer: nn.Linear, x: Tensor) -> None:
    cases.assert_by_reference(actual, x, cases.packed_in(layer), layer.bias)


SCHEMES = {
    "dynamic": acl_int8_dynamic(MappingType.ASYMMETRIC),
    "static": acl_int8_static(None, 0.04, 113, MappingType.ASYMMETRIC, torch.uint8),
    "grouped": acl_int4_grouped(None, MappingType.ASYMMETRIC),
}
EACH_SCHEME = pytest.mark.parametrize("config", SCHEMES.values(), ids=SCHEMES)


# --- what quantize_ does ---


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(option: str) -> None:
    config, layout = OPTIONS[option]
    model, x = quantized_model(config), torch.randn(5, 64)
    assert cases.packed_in(model.first).get_layout() == layout
    for layer in model.layers():
        expected = config.layout(layer.in_features) if layout.is_grouped else layout
        assert cases.packed_in(layer).get_layout() == expected
        inner = torch.randn(3, layer.in_features)
        assert_by_reference(layer(inner), layer, inner)
    assert model(x).shape == (5, 10)


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
@EACH_SCHEME
def test_models_of_every_dtype(config: AOBaseConfig, dtype: torch.dtype) -> None:
    model = quantized_model(config, dtype)
    for layer in model.layers():
        assert (layer.weight.dtype, cases.packed_in(layer).dtype) == (dtype, dtype)
        x = torch.randn(2, 3, layer.in_features, dtype=dtype)
        assert_by_reference(layer(x), layer, x)
    assert model(torch.randn(5, 64, dtype=dtype)).dtype == dtype


def test_the_default_is_symmetric_per_token_by_per_channel() -> None:
    assert acl_int8_dynamic() == ao_arm.ACLInt8DynamicActivationInt8WeightConfig()
    assert acl_int8_dynamic().layout() == ACLPackedLayout("symmetric", "per_token", "per_channel")
    assert acl_int8_dynamic(MappingType.ASYMMETRIC, PerTensor(), PerTensor()).layout() == ACLPackedLayout(
        "asymmetric", "per_tensor", "per_tensor"
    )


def test_the_default_static_layer_is_symmetric_by_per_channel() -> None:
    config = acl_int8_static(act_scale=0.5)
    assert config == ao_arm.ACLInt8StaticActivationInt8WeightConfig(act_scale=0.5)
    assert config.layout() == ACLPackedLayout("symmetric", "per_tensor", "per_channel", "int8_static", "int8")
    assert (config.act_scale, config.act_zero_point, config.observer) == (0.5, 0, None)


def test_the_default_4_bit_layer_has_symmetric_groups_of_32() -> None:
    assert acl_int4_grouped() == ao_arm.ACLInt8DynamicActivationInt4WeightConfig()
    assert acl_int4_grouped().layout(96) == cases.grouped(32)
    assert acl_int4_grouped(None).layout(96) == cases.grouped(96)


def test_searched_scales_have_less_error() -> None:
    weight = torch.randn(40, 96)
    errors = []
    for search in (False, True):
        model = nn.Sequential(nn.Linear(96, 40))
        model[0].weight.data.copy_(weight)
        quantize_(model, acl_int4_grouped(search=search))
        errors.append(float((model[0].weight.dequantize() - weight).square().mean()))
    assert errors[1] < 0.98 * errors[0]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=cases.name_of)
def test_one_shot_scales_are_what_was_given(default: torch.dtype) -> None:
    """As numbers or as tensors, also while torch's default dtype is another one, as loaders of models make it."""
    for scale, zero_point in ((0.1, 7), (torch.tensor(0.1), torch.tensor([7], dtype=torch.uint8))):
        config = acl_int8_static(None, scale, zero_point, MappingType.ASYMMETRIC, torch.uint8)
        torch.set_default_dtype(default)
        try:
            model = quantized_model(config, torch.float32)
        finally:
            torch.set_default_dtype(torch.float32)
        for layer in model.layers():
            packed = cases.packed_in(layer)
            assert torch.equal(packed.act_scale, torch.tensor([0.1]))
            assert torch.equal(packed.act_zero_point, torch.tensor([7], dtype=torch.uint8))
        assert model(torch.randn(5, 64)).dtype == torch.float32


def test_explain_shows_the_scheme() -> None:
    for config, text in (
        (SCHEMES["dynamic"], "int8 dynamic (asymmetric, per_token x per_channel)"),
        (SCHEMES["static"], "int8 static (asymmetric uint8, per_tensor x per_channel)"),
        (
            acl_int4_grouped(),
            "int4 grouped (asymmetric, per_token x symmetric groups of 32, bfloat16 scales)",
        ),
    ):
        explanation = ao_arm.explain(quantized_model(config))
        assert [layer.scheme for layer in explanation] == [text] * 3
        assert str(explanation).count(text) == 3


def test_the_weight_is_of_the_class_that_this_torchao_has() -> None:
    layer = quantized_model().first
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad
    assert layer.weight.shape == (96, 64)
    assert ao_arm.packed_weight_of(nn.Linear(7, 5).weight) is None
    if not cases.HAS_AQT:
        assert isinstance(layer.weight, ACLPackedTensor)
        assert ao_arm.packed_weight_of(layer.weight) is layer.weight
        return
    from torchao.dtypes.affine_quantized_tensor import AffineQuantizedTensor

    assert isinstance(layer.weight, AffineQuantizedTensor)
    assert type(layer.weight.tensor_impl) is ACLPackedTensor
    assert ao_arm.packed_weight_of(layer.weight) is layer.weight.tensor_impl
    assert type(layer.weight.tensor_impl.get_layout()) is ACLPackedLayout
    assert type(layer.weight._layout) is ACLPackedLayout


def test_weights_dequantize_to_what_was_quantized() -> None:
    model = Model()
    original = model.first.weight.detach().clone()
    quantize_(model, acl_int8_dynamic())
    packed = cases.packed_in(model.first)
    qdata, scale, _ = packed.get_plain()
    assert torch.equal(model.first.weight.dequantize(), qdata * scale[:, None])
    steps = (model.first.weight.dequantize() - original).abs() / scale[:, None]
    assert float(steps.max()) <= 0.5 + 1e-4


def test_only_linear_layers_change_and_filters_are_heeded() -> None:
    model = Model()
    norm, bias = model.norm.weight, model.first.bias
    quantize_(model, acl_int8_dynamic(), filter_fn=lambda module, name: name == "rest.2")
    assert [layer.scheme.startswith("int8") for layer in ao_arm.explain(model)] == [False, False, True]
    quantize_(model, acl_int8_dynamic())
    assert all(layer.scheme.startswith("int8") for layer in ao_arm.explain(model))
    assert model.norm.weight is norm
    assert model.first.bias is bias


def test_quantizing_again_changes_nothing() -> None:
    model = quantized_model()
    weights, x = [layer.weight for layer in model.layers()], torch.randn(5, 64)
    before = model(x)
    quantize_(model, acl_int8_dynamic(MappingType.ASYMMETRIC))
    assert all(layer.weight is weight for layer, weight in zip(model.layers(), weights, strict=True))
    assert cases.same_bits(model(x), before)


def test_a_layer_by_itself_can_be_quantized() -> None:
    layer = nn.Sequential(nn.Linear(7, 5))
    quantize_(layer, acl_int8_dynamic())
    assert layer(torch.randn(2, 7)).shape == (2, 5)


def test_subclasses_of_linear_are_quantized() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(7, 5))
    quantize_(model, acl_int8_dynamic())
    x = torch.randn(2, 7)
    assert_by_reference(model(x) / 2, model[0], x)


@EACH_SCHEME
def test_autocast(config: AOBaseConfig) -> None:
    model, x = quantized_model(config), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model.first(x)
    assert_by_reference(actual, model.first, x.bfloat16())


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
    layer, x, bias = quantized_model().first, torch.randn(5, 64), torch.randn(96)
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
    for product_of in (lambda: x @ weight, lambda: torch.randn(5, 96) @ weight, lambda: weight @ x.t()):
        with pytest.raises(NotImplementedError, match=r"x @ w.t\(\) or F.linear\(x, w\) only"):
            product_of()


# --- wrong options ---

S8 = dict(act_scale=0.1, act_mapping_type=MappingType.ASYMMETRIC)


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
            acl_int8_dynamic(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(), "give act_scale, or calibrate: step='prepare', inputs, step='convert'"),
        (dict(step="calibrate"), "step must be one of .*'prepare', 'convert', None.*not 'calibrate'"),
        (dict(step="prepare", act_scale=0.1), "for one shot: leave them or step='prepare' out"),
        (dict(step="convert", act_zero_point=3), "for one shot: leave them or step='convert' out"),
        (
            dict(act_scale=0.1, observer="minmax"),
            "observer is for step='prepare', and .* for one shot: leave 'minmax' out",
        ),
        (dict(step="prepare", observer="entropy"), "observer must be one of .*'histogram'.*, not 'entropy'"),
        *((dict(act_scale=scale), "act_scale must be positive") for scale in (0, -0.1, math.nan, math.inf)),
        (dict(act_scale=1e-60), "positive and finite in float32, not 1e-60"),
        (dict(act_scale=1e39), r"positive and finite in float32, not 1e\+39"),
        (dict(act_scale=torch.ones(2)), "act_scale must be a number or a tensor of one, not tensor"),
        (dict(act_scale="0.1 or so"), "act_scale must be a number or a tensor of one, not '0.1 or so'"),
        (dict(act_scale=0.1, act_zero_point=3), "act_zero_point must be 0 for symmetric activations, not 3"),
        (dict(act_scale=0.1, act_mapping_type=MappingType.ASYMMETRIC), "need act_zero_point as well"),
        *(
            (dict(S8, act_zero_point=zero), r"act_zero_point must be an integer within \[-128, 127\], not")
            for zero in (-129, 128, 3.5, math.nan, torch.tensor([200], dtype=torch.uint8))
        ),
        (dict(S8, act_zero_point=torch.zeros(2)), "act_zero_point must be a number or a tensor of one"),
        *(
            (dict(S8, act_dtype=torch.uint8, act_zero_point=zero), r"an integer within \[0, 255\], not")
            for zero in (-1, 256)
        ),
        (dict(act_scale=0.1, act_dtype=torch.uint8), "activation_mapping must be 'asymmetric'"),
        (dict(act_scale=0.1, act_dtype=torch.int16), "act_dtype must be torch.int8 or torch.uint8, not torch.int16"),
        (dict(act_scale=0.1, act_dtype="int8"), "act_dtype must be torch.int8 or torch.uint8, not int8"),
        (dict(act_scale=0.1, act_mapping_type="symmetric"), "act_mapping_type must be"),
        (dict(act_scale=0.1, weight_granularity=PerGroup(32)), "weight_granularity must be"),
    ],
    ids=str,
)
def test_wrong_static_options_are_refused(fields: dict[str, object], message: str) -> None:
    for make in (acl_int8_static, ao_arm.ACLInt8StaticActivationInt8WeightConfig):
        with pytest.raises(ValueError, match=message):
            make(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(
            (dict(group_size=size), f"group_size must be a whole number of at least 1, or None .*not {size!r}")
            for size in (0, -32, 32.0, "32", True)
        ),
        (dict(weight_mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR), "weight_mapping_type must be"),
        (dict(weight_mapping_type="symmetric"), "weight_mapping_type must be MappingType.SYMMETRIC or"),
        (dict(scale_dtype=torch.float16), "scale_dtype must be torch.bfloat16 or torch.float32, not torch.float16"),
        (dict(scale_dtype="bfloat16"), "scale_dtype must be torch.bfloat16 or torch.float32, not bfloat16"),
    ],
    ids=str,
)
def test_wrong_grouped_options_are_refused(fields: dict[str, object], message: str) -> None:
    for make in (acl_int4_grouped, ao_arm.ACLInt8DynamicActivationInt4WeightConfig):
        with pytest.raises(ValueError, match=message):
            make(**fields)


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
    config, model = acl_int8_dynamic(), Model()
    config.act_granularity = PerGroup(32)
    before = model.first.weight
    with pytest.raises(ValueError, match="act_granularity must be"):
        quantize_(model, config)
    assert model.first.weight is before


# --- configurations as dictionaries ---


FORMS = {name: config for name, (config, _) in OPTIONS.items()} | {
    "prepare": acl_int8_static("prepare", observer="histogram"),
    "convert": acl_int8_static("convert", act_mapping_type=MappingType.ASYMMETRIC, act_dtype=torch.uint8),
    "scale of a tensor": acl_int8_static(act_scale=torch.tensor([0.1])),
}


@pytest.mark.one_cpu
@pytest.mark.parametrize("form", FORMS)
def test_configurations_survive_the_way_through_a_dictionary(form: str) -> None:
    config = FORMS[form]
    written = json.loads(json.dumps(config_to_dict(config)))
    read = config_from_dict(written)
    assert type(read) is type(config)
    assert read == config
    k = (96,) if form in GROUPED else ()
    assert read.layout(*k) == config.layout(*k)


@EACH_SCHEME
def test_newer_configurations_are_refused(config: AOBaseConfig) -> None:
    written = config_to_dict(config)
    written["_version"] = 2
    with pytest.raises(ValueError, match=r"(?i)version"):
        config_from_dict(written)
    with pytest.raises(ValueError, match="version must be 1, not 2: written by a newer ao_arm"):
        dataclasses.replace(config, version=2)


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
    "meta": (lambda: torch.ones(5, 7, device="meta"), NotImplementedError, "load real values first"),
}


WRONG_FOR_SCHEMES = [
    pytest.param(config, *wrong, id=f"{scheme}-{name}")
    for scheme, config in SCHEMES.items()
    for name, wrong in {
        **WRONG_WEIGHTS,
        "k above the int32 limit": {
            "grouped": (lambda: torch.ones(1, 600_000), ValueError, "may not fit in int32"),
        }.get(scheme, (lambda: torch.ones(1, 66312), ValueError, "66311 at most")),
    }.items()
]


@pytest.mark.parametrize(("config", "make", "error", "message"), WRONG_FOR_SCHEMES)
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


# --- what remains of the model ---


@EACH_SCHEME
def test_the_model_prints_what_its_weights_are(config: AOBaseConfig) -> None:
    text = repr(quantized_model(config))
    scheme = cases.packed_in(quantized_model(config).first).scheme.split(" (")[0]
    assert f"in_features=64, out_features=96, bias=True, weight=ACLPackedTensor(shape=(96, 64), {scheme}" in text
    assert text.count("ACLPackedTensor(") == 3


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [saved_and_loaded, copy.deepcopy], ids=["torch.save", "deepcopy"])
@EACH_SCHEME
def test_models_survive(config: AOBaseConfig, way) -> None:
    model, x = quantized_model(config), torch.randn(5, 64)
    again = way(model)
    assert repr(again) == repr(model)
    assert cases.same_bits(again(x), model(x))
    again.first.weight = nn.Parameter(torch.zeros(96, 64))
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


@pytest.mark.parametrize(
    ("config", "bytes_per_weight"), [(acl_int8_dynamic(), 1.05), (acl_int4_grouped(), 0.57)], ids=["int8", "int4"]
)
def test_no_other_copy_of_the_weight_stays_alive(config: AOBaseConfig, bytes_per_weight: float) -> None:
    n, k = 512, 1024
    model = nn.Sequential(nn.Linear(k, n))
    old = weakref.ref(model[0].weight)
    before = tensor_memory()
    assert max(before.values()) >= 4 * n * k
    quantize_(model, config)
    after = tensor_memory()
    assert old() is None, "the float weight is still alive"
    added = {address: size for address, size in after.items() if before.get(address) != size}
    assert sum(added.values()) <= bytes_per_weight * n * k, f"new tensors of {sorted(added.values())} bytes"
    assert sum(after.values()) <= sum(before.values()) - 4 * n * k + bytes_per_weight * n * k
    model(torch.randn(3, k))
    assert sum(tensor_memory().values()) <= sum(after.values()), "a call left tensors behind"


@EACH_SCHEME
def test_shared_weights_stay_usable(config: AOBaseConfig) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    quantize_(model, config)
    x = torch.randn(3, 16)
    for layer in model:
        assert_by_reference(layer(x), layer, x)
