"""A sentence's embedding is the same in a batch and alone: the size of a batch changes last bits, not integers."""

import copy
import importlib.util

import cases
import pytest
import torch
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import PerTensor, quantize_
from torchao.quantization.quant_primitives import MappingType

from ao_arm import acl_int4_grouped, acl_int8_dynamic, acl_int8_static
from ao_arm.demo import encoder

pytestmark = [
    pytest.mark.x86,
    pytest.mark.skipif(
        any(importlib.util.find_spec(package) is None for package in ("transformers", encoder.MODEL_PACKAGE)),
        reason="pip install 'ao_arm[demo]'",
    ),
]

SYMMETRIC, ASYMMETRIC = MappingType.SYMMETRIC, MappingType.ASYMMETRIC

#: The steps of each.
SCHEMES: dict[str, tuple[AOBaseConfig, ...]] = {
    "dynamic": (acl_int8_dynamic(),),
    "4 bits": (acl_int4_grouped(),),
    "4 bits with zero points": (acl_int4_grouped(None, ASYMMETRIC),),
    "static": (acl_int8_static("prepare"), acl_int8_static("convert")),
    "static asymmetric": tuple(acl_int8_static(step, act_mapping_type=ASYMMETRIC) for step in ("prepare", "convert")),
}
#: What the numerics page says depends on the batch.
DEPENDENT: dict[str, tuple[AOBaseConfig, ...]] = {
    "dynamic symmetric": (acl_int8_dynamic(SYMMETRIC),),
    "dynamic per tensor": (acl_int8_dynamic(act_granularity=PerTensor()),),
}
BATCHES = (encoder.SENTENCES[::8], encoder.SENTENCES[4::8])


@pytest.fixture(scope="module")
def minilm() -> encoder.Encoder:
    return encoder.Encoder()


def together_and_alone(minilm: encoder.Encoder, model: torch.nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each sentence's embedding from a batch of six, and from a batch of its own."""
    return [
        (together, encoder.embed(model, minilm.batch([sentence]))[0])
        for batch in BATCHES
        for sentence, together in zip(batch, encoder.embed(model, minilm.batch(batch)), strict=True)
    ]


@pytest.fixture(scope="module")
def differing(minilm: encoder.Encoder) -> list[int]:
    """The sentences whose last bits depend on the batch already in fp32: padding adds zeros to sums of theirs."""
    pairs = together_and_alone(minilm, minilm.model)
    differing = [i for i, pair in enumerate(pairs) if not torch.equal(*pair)]
    assert len(differing) >= 4
    assert min(cases.sqnr(*pairs[i]) for i in differing) > 110
    return differing


def median_sqnr(minilm: encoder.Encoder, differing: list[int], steps: tuple[AOBaseConfig, ...]) -> float:
    """Between the differing sentences' embeddings, in a batch and alone. The median: now and then, under any scheme, a
    value lies so near a rounding tie that a last bit decides."""
    model = copy.deepcopy(minilm.model)
    for step in steps:
        if step is not steps[0]:
            encoder.embed(model, minilm.batch(BATCHES[0]))
        quantize_(model, step)
    pairs = together_and_alone(minilm, model)
    # Equal ones have an infinite one.
    return float(torch.tensor([cases.sqnr(*pairs[i]) for i in differing]).median())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_embedding_is_the_same_in_a_batch_and_alone(
    scheme: str, minilm: encoder.Encoder, differing: list[int]
) -> None:
    assert median_sqnr(minilm, differing, SCHEMES[scheme]) > 100


@pytest.mark.slow
@pytest.mark.parametrize("scheme", DEPENDENT)
def test_what_is_documented_to_depend_on_the_batch_is_near(
    scheme: str, minilm: encoder.Encoder, differing: list[int]
) -> None:
    assert 15 < median_sqnr(minilm, differing, DEPENDENT[scheme]) < 50
