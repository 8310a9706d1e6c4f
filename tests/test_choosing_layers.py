"""Which layers `quantize_` quantizes, and to what: by filters, by names, by configurations as text."""

import copy
import json
from collections import OrderedDict

import cases
import pytest
import torch
from models import (
    EACH_FIRST,
    GROUPED,
    HIDDEN,
    K,
    N,
    assert_same_results,
    float_model,
    quantize,
    quantized_layers,
    quantized_model,
)
from torch import Tensor
from torchao.core.config import AOBaseConfig, config_from_dict, config_to_dict
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.quant_primitives import MappingType

import ao_arm

pytestmark = pytest.mark.x86


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
        assert packed.get_layout() == (ao_arm.acl_int8_dynamic().layout() if layout is None else layout), name
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
