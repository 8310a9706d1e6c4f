"""`dequantize_` gives floats back, `quantize_(requantize=True)` another scheme, and shared weights stay shared."""

import copy
from collections import OrderedDict
from collections.abc import Callable

import cases
import pytest
import torch
from models import K, N, float_model, is_packed, quantized_layers
from options import EACH_CONFIG
from test_choosing_layers import BY_NAME
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig, MappingType
from torchao.quantization import quantize_ as torchaos_quantize_

import ao_arm
from ao_arm import acl_int4_grouped, acl_int8_dynamic, acl_int8_static, handlers

pytestmark = pytest.mark.one_cpu


@EACH_CONFIG
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=cases.name_of)
def test_dequantized_layers_hold_what_was_stored(config: AOBaseConfig, dtype: torch.dtype) -> None:
    model = float_model().to(dtype)
    text, calls = repr(model), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    torchaos_quantize_(model, config)
    expected = [cases.packed_in(layer).dequantize() for layer in (model[0], model[2])]
    assert ao_arm.dequantize_(model) is None
    for layer, floats in zip((model[0], model[2]), expected, strict=True):
        assert type(layer) is torch.nn.Linear and type(layer.weight) is torch.nn.Parameter
        assert cases.same_bits(layer.weight, floats) and layer.weight.dtype == dtype
        assert not layer.weight.requires_grad
    assert repr(model) == text and "extra_repr" not in vars(model[0])
    x = torch.randn(3, K, dtype=dtype)
    assert torch.equal(model[0](x), torch.nn.functional.linear(x, expected[0], model[0].bias)) and calls == [1]
    assert "not quantized" in ao_arm.explain(model)[0].scheme
    ao_arm.quantize_(model, config)  # and may be quantized again
    assert quantized_layers(model) == ["0", "2"]


def test_observers_go_too() -> None:
    model = float_model()
    before = set(vars(model[0]))
    torchaos_quantize_(model, acl_int8_static("prepare"))
    ao_arm.dequantize_(model)
    assert set(vars(model[0])) == before and not model[0]._forward_pre_hooks


@torch.no_grad()
def test_the_factors_of_smoothquant_are_part_of_the_floats() -> None:
    smoothquant = pytest.importorskip("torchao.prototype.smoothquant")
    x, config = torch.randn(64, K) * torch.logspace(-1, 1, K), acl_int8_dynamic()
    model = torch.nn.Sequential(torch.nn.Linear(K, N))
    for step in ("prepare", "convert"):
        torchaos_quantize_(model, smoothquant.SmoothQuantConfig(base_config=config, step=step))
        smooth = model(x)
    assert cases.packed_in(model[0]).act_pre_scale is not None
    again = copy.deepcopy(model)
    ao_arm.dequantize_(model)
    assert cases.sqnr(model(x), smooth) > 30
    ao_arm.quantize_(again, acl_int4_grouped(), requantize=True)
    assert cases.packed_in(again[0]).act_pre_scale is None
    assert cases.sqnr(model(x), again(x)) > 16


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@torch.no_grad()
def test_what_pack_made_of_torch_aos_layers() -> None:
    dynamic = torch.ao.nn.quantized.dynamic
    layers = (dynamic.Linear(K, 24), torch.ao.nn.intrinsic.quantized.dynamic.LinearReLU(24, N))
    model, x = torch.nn.Sequential(*layers, layers[1]), torch.randn(3, K)
    model = model[:2]
    ao_arm.pack_(model)
    weights = [cases.packed_in(layer).dequantize() for layer in model]
    biases = [layer.bias for layer in model]
    calls: list[int] = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    ao_arm.dequantize_(model)
    assert type(model[0]) is torch.nn.Linear
    assert [type(part) for part in model[1]] == [torch.nn.Linear, torch.nn.ReLU]
    inner = torch.nn.functional.linear(x, weights[0], biases[0])
    assert torch.equal(model(x), torch.nn.functional.linear(inner, weights[1], biases[1]).relu())
    assert calls == [1]


def test_layers_for_torchs_quantized_tensors_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(K, N), torch.ao.nn.quantized.Linear(K, N))
    ao_arm.pack_(model)
    torchaos_quantize_(model, acl_int8_dynamic())
    with pytest.raises(NotImplementedError, match="the layer '1' is PackedQuantizedLinear, which takes and gives"):
        ao_arm.dequantize_(model)
    assert is_packed(model[0].weight)
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module, not dict"):
        ao_arm.dequantize_({})


# --- requantizing ---


@torch.no_grad()
def test_integers_stay_where_activations_alone_are_another_matter() -> None:
    model = float_model().bfloat16()
    ao_arm.quantize_(model, acl_int8_dynamic(MappingType.SYMMETRIC))
    before = [cases.packed_in(layer).get_plain() for layer in (model[0], model[2])]
    for config in (acl_int8_dynamic(MappingType.ASYMMETRIC), acl_int8_static(act_scale=0.03)):
        report = ao_arm.quantize_(model, config, requantize=True)
        assert len(report.quantized) == 2
        for layer, (qdata, scale, _) in zip((model[0], model[2]), before, strict=True):
            packed, x = cases.packed_in(layer), torch.randn(3, layer.in_features, dtype=torch.bfloat16)
            assert packed.get_layout() == config.layout() and packed.weight_dtype == torch.bfloat16
            assert torch.equal(packed.qdata, qdata) and torch.equal(packed.scale, scale)
            cases.assert_by_reference(layer(x), x, packed, layer.bias)


def test_another_kind_of_weights_comes_from_what_is_stored() -> None:
    model = float_model()
    ao_arm.quantize_(model, acl_int8_dynamic())
    floats = copy.deepcopy(model)
    ao_arm.dequantize_(floats)
    ao_arm.quantize_(floats, acl_int4_grouped(None))
    ao_arm.quantize_(model, acl_int4_grouped(None), requantize=True)
    for name in ("0", "2"):
        packed, expected = (cases.packed_in(each.get_submodule(name)) for each in (model, floats))
        assert all(torch.equal(a, b) for a, b in zip(packed.get_plain()[:2], expected.get_plain()[:2], strict=True))
        assert packed.get_layout() == expected.get_layout()


def test_the_same_scheme_changes_nothing() -> None:
    for config in (acl_int8_dynamic(), acl_int4_grouped(None), acl_int8_static(act_scale=0.1)):
        model = float_model()
        ao_arm.quantize_(model, config)
        weights = [model[0].weight, model[2].weight]
        report = ao_arm.quantize_(model, config, requantize=True)
        assert len(report.kept) == 2
        assert weights[0] is model[0].weight and weights[1] is model[2].weight
    report = ao_arm.quantize_(model, acl_int8_static(act_scale=0.2), requantize=True)
    assert len(report.quantized) == 2 and cases.packed_in(model[0]).act_quantization == [float(torch.tensor(0.2)), 0]


def test_calibration_needs_floats() -> None:
    model = float_model()
    ao_arm.quantize_(model, acl_int8_dynamic())
    for step in ("prepare", "convert"):
        with pytest.raises(ValueError, match=rf"0, 2: it is quantized, and step='{step}' is for floats: ao_arm.dequ"):
            ao_arm.quantize_(model, acl_int8_static(step), requantize=True)


def test_interrupted_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer is as it was or wholly quantized, and the same call goes on from there."""
    model = float_model()
    ao_arm.quantize_(model, acl_int8_dynamic())
    finished = copy.deepcopy(model)
    ao_arm.quantize_(finished, acl_int4_grouped(None), requantize=True)
    put, done = handlers.put_weight, []

    def interrupted(*arguments: object) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        put(*arguments)

    monkeypatch.setattr(handlers, "put_weight", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ao_arm.quantize_(model, acl_int4_grouped(None), requantize=True)
    monkeypatch.undo()
    assert [cases.packed_in(model[i]).get_layout().scheme for i in (0, 2)] == ["int4_grouped", "int8_dynamic"]
    ao_arm.quantize_(model, acl_int4_grouped(None), requantize=True)
    x = torch.randn(3, K)
    assert cases.same_bits(model(x), finished(x))


# --- what is shared ---


class Tied(torch.nn.Module):
    """Two layers share a weight; an embedding and a head another one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, K)
        self.layers = torch.nn.Sequential(torch.nn.Linear(K, K), torch.nn.Linear(K, K))
        self.head = torch.nn.Linear(K, 50, bias=False)
        self.layers[1].weight = self.layers[0].weight
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens)))


TOKENS = torch.arange(50).reshape(5, 10)


@torch.no_grad()
def test_shared_weights_stay_shared() -> None:
    model = Tied().eval()
    ao_arm.quantize_(model, acl_int8_dynamic())
    assert quantized_layers(model) == ["layers.0", "layers.1", "head"]
    assert model.layers[1].weight is model.layers[0].weight
    assert not is_packed(model.embedding.weight)
    model.embedding.weight = model.head.weight
    ao_arm.quantize_(model, acl_int4_grouped(), requantize=True)
    assert model.layers[1].weight is model.layers[0].weight and model.embedding.weight is model.head.weight
    assert {cases.packed_in(layer).get_layout().scheme for layer in (*model.layers, model.head)} == {"int4_grouped"}
    vectors = cases.packed_in(model.head).dequantize()
    assert cases.same_bits(model.embedding(TOKENS), vectors[TOKENS])
    ao_arm.dequantize_(model)
    assert model.layers[1].weight is model.layers[0].weight and model.embedding.weight is model.head.weight
    assert cases.same_bits(model.head.weight, vectors) and model(TOKENS).shape == (5, 10, 50)


def test_layers_that_share_a_weight_may_be_skipped_together() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.Linear(50, 50))
    model[1].weight = model[0].weight
    with pytest.warns(UserWarning, match="0, 1 has int8 weights"):
        report = ao_arm.quantize_(model, acl_int4_grouped(on_unsupported="int8"))
    assert model[1].weight is model[0].weight
    assert report[0].scheme == report[1].scheme and report[1].reason == report[0].reason != ""
    assert all(layer.reason for layer in ao_arm.explain(model))


# --- by name ---

PATTERNS = {
    "biases among the parameters": {r"re:[02]\..*": True},
    "a bias by its name": {"0.bias": True, "2.weight": True},
    "a pattern after another that leaves": {r"re:0\.weight": False, r"re:.*\.weight": True},
    "a module that is left": {"0": False, r"re:.*": False, "2": True},
}


@pytest.mark.filterwarnings("ignore:Config Deprecation")
@pytest.mark.parametrize("choice", [*BY_NAME, *PATTERNS])
@pytest.mark.parametrize(
    "quantize_", [ao_arm.quantize_, lambda *given: torchaos_quantize_(*given, filter_fn=None)], ids=["ours", "torchaos"]
)
def test_names_choose_the_same_layers(choice: str, quantize_: Callable[..., object]) -> None:
    names = BY_NAME[choice][0] if choice in BY_NAME else PATTERNS[choice]
    expected = {
        "a bias by its name": ["2"],
        "a module that is left": ["2"],
        **{name: layers for name, (_, layers) in BY_NAME.items()},
    }.get(choice, ["0", "2"])
    by_name = OrderedDict((name, acl_int8_dynamic() if wanted else None) for name, wanted in names.items())
    model = float_model()
    quantize_(model, FqnToConfig(by_name))
    assert quantized_layers(model) == expected
    assert all(
        type(layer.bias) is torch.nn.Parameter and layer.bias.is_floating_point() for layer in (model[0], model[2])
    )


def test_schemes_by_name_are_checked_together() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(K, 50), torch.nn.Linear(50, N))
    by_name = OrderedDict({"0": acl_int8_dynamic(), "re:1": acl_int4_grouped()})
    with pytest.raises(ValueError, match=r"1 of 2 layers cannot be\. 1: k = 50 is no multiple"):
        ao_arm.quantize_(model, FqnToConfig(by_name))
    assert quantized_layers(model) == []
    by_name["re:1"] = acl_int4_grouped(None)
    ao_arm.quantize_(model, FqnToConfig(by_name))
    assert [cases.packed_in(layer).get_layout().scheme for layer in model] == ["int8_dynamic", "int4_grouped"]
