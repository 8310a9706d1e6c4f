"""Every option of the configurations, each with the layout that it gives."""

from itertools import product

import cases
import pytest
import torch
from torchao.quantization import MappingType, PerAxis, PerRow, PerTensor, PerToken

from ao_arm import ACLPackedLayout, acl_int4_grouped, acl_int8_dynamic, acl_int8_static

ACTIVATION_MAPPINGS = {MappingType.SYMMETRIC: "symmetric", MappingType.ASYMMETRIC: "asymmetric"}
ACTIVATION_GRANULARITIES = {PerToken(): "per_token", PerRow(): "per_token", PerTensor(): "per_tensor"}
WEIGHT_GRANULARITIES = {PerRow(): "per_channel", PerAxis(0): "per_channel", PerTensor(): "per_tensor"}
DYNAMIC = {
    "-".join(words): (acl_int8_dynamic(*arguments), ACLPackedLayout(*layout))
    for arguments, words, layout in (
        ((mapping, activation, weight), (mapping_word, repr(activation), repr(weight)), (mapping_word, *rest))
        for (mapping, mapping_word), (activation, activation_word), (weight, weight_word) in product(
            ACTIVATION_MAPPINGS.items(), ACTIVATION_GRANULARITIES.items(), WEIGHT_GRANULARITIES.items()
        )
        for rest in [(activation_word, weight_word)]
    )
}
STATIC = {
    f"{mapping_word} {dtype}-{weight!r}".replace("torch.", ""): (
        acl_int8_static(None, 0.04, zero_point, mapping, dtype, weight),
        ACLPackedLayout(mapping_word, "per_tensor", weight_word, "int8_static", cases.name_of(dtype)),
    )
    for (mapping, dtype, zero_point), (weight, weight_word) in product(
        [
            (MappingType.SYMMETRIC, torch.int8, None),
            (MappingType.ASYMMETRIC, torch.int8, -9),
            (MappingType.ASYMMETRIC, torch.uint8, 130),
        ],
        WEIGHT_GRANULARITIES.items(),
    )
    for mapping_word in [ACTIVATION_MAPPINGS[mapping]]
}
#: The layouts are those of a layer with 64 input features.
GROUPED = {
    f"{group_size} {mapping_word} {cases.name_of(scale_dtype)}": (
        acl_int4_grouped(group_size, mapping, scale_dtype),
        cases.grouped(group_size or 64, mapping_word, cases.name_of(scale_dtype)),
    )
    for group_size, (mapping, mapping_word), scale_dtype in product(
        (None, 32), ACTIVATION_MAPPINGS.items(), (torch.bfloat16, torch.float32)
    )
}
OPTIONS = DYNAMIC | STATIC | GROUPED

#: One of each scheme, where more would show nothing new.
CONFIGS = {
    "dynamic": acl_int8_dynamic(MappingType.ASYMMETRIC),
    "static": acl_int8_static(None, 0.04, 113, MappingType.ASYMMETRIC, torch.uint8),
    "grouped": acl_int4_grouped(None, MappingType.ASYMMETRIC),
}
EACH_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
