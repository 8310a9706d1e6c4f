"""Weights that an embedding shares with the head."""

import copy
import warnings
from collections.abc import Callable

import cases
import pytest
import torch
from models import (
    EACH_FIRST,
    K,
    quantized_layers,
)
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import quantize_
from torchao.quantization.quant_primitives import MappingType

import ao_arm

pytestmark = pytest.mark.x86


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
    packed = ao_arm.ACLPackedTensor.from_hp(model.embedding.weight, ao_arm.acl_int8_dynamic().layout())
    quantize_(model, ao_arm.acl_int8_dynamic())
    assert quantized_layers(model) == ["head"]
    assert torch.equal(model.embedding(TOKENS), vectors)
    assert cases.same_bits(model(TOKENS), torch.nn.functional.linear(vectors, packed))


def tied_model(config: AOBaseConfig) -> LanguageModel:
    model = LanguageModel()
    quantize_(model, config)
    model.embedding.weight = model.head.weight
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "backend"),
    [
        (ao_arm.acl_int8_dynamic(), "aot_eager"),
        (ao_arm.acl_int4_grouped(None, MappingType.ASYMMETRIC), "aot_eager"),
        pytest.param(ao_arm.acl_int8_static(act_scale=0.03), "inductor", marks=pytest.mark.slow),
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
    for tokens in (torch.tensor([49, 0, 49, 7]), torch.tensor(3), torch.zeros(2, 0, dtype=torch.int32)):
        assert cases.same_bits(model.embedding(tokens), packed.dequantize()[tokens.long()])
    for wrong in (-1, 50):
        with pytest.raises(ValueError, match=f"row {wrong} is not within 0 and 49"):
            model.embedding(torch.tensor([0, wrong]))
    assert cases.same_bits(model(TOKENS), torch.nn.functional.linear(vectors, packed))


def test_tying_the_head_again_keeps_its_packed_weight() -> None:
    """To the floats that it was quantized from, unless those have changed since."""
    model = LanguageModel()
    quantize_(model, ao_arm.acl_int8_dynamic())
    packed = model.head.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.head.weight = model.embedding.weight
    assert model.head.weight is packed
    assert set(model.state_dict()) == {"embedding.weight", "head.weight"}
    with torch.no_grad():
        model.embedding.weight += 1
    with pytest.warns(UserWarning, match=r"'weight' of Linear\(.*\) is replaced by a torch.float32 one.*tie_weights"):
        model.head.weight = model.embedding.weight
    assert model.head.weight is model.embedding.weight


def test_transformers_ties_weights_again() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=K, n_layer=1, n_head=2, vocab_size=50, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    quantize_(model, ao_arm.acl_int8_dynamic())
    assert quantized_layers(model) == ["lm_head"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.tie_weights()
    assert quantized_layers(model) == ["lm_head"]
    copied = copy.deepcopy(model)
    copied.transformer.wte.weight.data += 1
    with pytest.warns(UserWarning, match="computes in floats again"):
        copied.tie_weights()
    assert quantized_layers(copied) == []


def test_quantized_layers_are_converted() -> None:
    """torch swaps the parameters in place, which it refuses to do to what has weak references."""
    model = LanguageModel()
    quantize_(model, ao_arm.acl_int8_dynamic())
    assert quantized_layers(model.to(torch.bfloat16)) == ["head"] and model.head.weight.dtype == torch.bfloat16
