"""What tests of transformers' models have in common: a small language model, configurations, comparisons."""

from pathlib import Path

import cases
import pytest
import torch
from models import quantized_layers
from tensors import assert_same_weight
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import MappingType, PerTensor

import ao_arm
from ao_arm import packed_weight_of

transformers = pytest.importorskip("transformers")

STATIC = ao_arm.acl_int8_static(None, 0.05, 3, MappingType.ASYMMETRIC, torch.uint8)
CONFIGS: dict[str, AOBaseConfig] = {
    "dynamic": ao_arm.acl_int8_dynamic(),
    "dynamic-asymmetric-per-tensor": ao_arm.acl_int8_dynamic(MappingType.ASYMMETRIC, PerTensor(), PerTensor()),
    "static": STATIC,
    "grouped": ao_arm.acl_int4_grouped(),
    "grouped-float32-zero-points": ao_arm.acl_int4_grouped(64, MappingType.ASYMMETRIC, torch.float32),
}


def language_model(tied: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=100,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def linear_but_head(module: torch.nn.Module, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and name != "lm_head"


@torch.no_grad()
def outputs(model: torch.nn.Module) -> Tensor:
    logits: Tensor = model(input_ids=torch.arange(24).view(2, 12)).logits
    return logits


def assert_same_model(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Same weights and outputs, bit for bit."""
    assert quantized_layers(actual) == quantized_layers(expected) != []
    for name in quantized_layers(expected):
        ours, theirs = (packed_weight_of(model.get_submodule(name).weight) for model in (actual, expected))
        assert_same_weight(ours, theirs, name)
    assert cases.same_bits(outputs(actual), outputs(expected))


def read(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()
