"""LoRA adapters of peft on a quantized encoder: they learn, with the gradients that the dequantized encoder has."""

import copy
import importlib.util

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import quantize_

import ao_arm
from ao_arm.affine_quantized import packed_weight_of

pytestmark = [
    pytest.mark.x86,
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="pip install 'ao_arm[test]'"),
]

CONFIGS = {
    "int8": ao_arm.acl_int8_dynamic(),
    "4 bits": ao_arm.acl_int4_grouped(group_size=32),
}


class Dequantized(nn.Module):
    """A layer's dequantized weight, at the values that the layer gives: gradients above it are at the same place."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = [layer]
        packed = packed_weight_of(layer.weight)
        assert packed is not None
        self.weight = packed.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        straight = nn.functional.linear(x, self.weight, self.layer[0].bias)
        return straight + (self.layer[0](x) - straight).detach()


def adapted_encoder(config: object) -> nn.Module:
    import peft
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = BertModel(BertConfig(vocab_size=50, **shape), add_pooling_layer=False).eval()
    quantize_(model, config)
    lora = peft.LoraConfig(target_modules=["query", "value"], r=4, init_lora_weights=False)
    adapted: nn.Module = peft.inject_adapter_in_model(lora, model)
    for name, parameter in adapted.named_parameters():
        if packed_weight_of(parameter) is None:
            parameter.requires_grad_("lora_" in name)
    return adapted


def gradients(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(tokens).last_hidden_state.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear")
def test_adapters_have_the_gradients_of_the_dequantized_encoder(config: str) -> None:
    model, tokens = adapted_encoder(CONFIGS[config]), torch.randint(0, 50, (3, 7))
    found = gradients(model, tokens)
    assert len(found) == 8  # two of each of two layers in two blocks
    twin = copy.deepcopy(model)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and packed_weight_of(child.weight) is not None:
                setattr(parent, name, Dequantized(child))
    expected = {name.replace(".layer.weight", ".weight"): value for name, value in gradients(twin, tokens).items()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear")
def test_adapters_learn(config: str) -> None:
    model, tokens = adapted_encoder(CONFIGS[config]), torch.randint(0, 50, (3, 7))
    target = torch.randn(3, 64)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(10):
        loss = (model(tokens).last_hidden_state.mean(1) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
