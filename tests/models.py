"""What tests of whole models have in common: two layers of the schemes, and what is quantized of a model."""

from collections import OrderedDict
from itertools import pairwise

import cases
import pytest
import torch
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.quant_primitives import MappingType

import ao_arm
from ao_arm import packed_weight_of

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


def quantized_layers_of(*sizes: int, config: AOBaseConfig | None = None) -> torch.nn.Sequential:
    """Linear layers of these widths, one after the other."""
    model = torch.nn.Sequential(*(torch.nn.Linear(k, n) for k, n in pairwise(sizes)))
    quantize_(model, ao_arm.acl_int8_dynamic() if config is None else config)
    return model
