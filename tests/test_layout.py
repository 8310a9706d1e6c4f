"""Layouts: which they accept, and that they compare by value."""

import dataclasses

import cases
import pytest

from ao_arm import ACLPackedLayout

pytestmark = pytest.mark.x86

GROUPED = dataclasses.asdict(cases.grouped(32))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ACLPackedLayout)])
def test_layouts_accept_known_words_only(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be one of .*not 'none such'"):
        ACLPackedLayout(**{field: "none such"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(activation_granularity="per_token"), r"activation_granularity must be one of \('per_tensor',\)"),
        (dict(activation_dtype="uint8"), "uint8 activations have a zero point: activation_mapping must be"),
        (dict(group_size=32), "group_size must be one of"),
        (dict(scheme="int8_dynamic", activation_dtype="uint8"), "activation_dtype must be one of"),
        (dict(scheme="int4_grouped"), "activation_mapping must be one of .'asymmetric',. for int4_grouped"),
        (dict(GROUPED, weight_granularity="per_channel"), r"weight_granularity must be one of \('per_group',\)"),
        (dict(GROUPED, group_size=0), "group_size must be at least 1 for int4_grouped, not 0"),
        (dict(GROUPED, scale_dtype="float16"), r"scale_dtype must be one of \('bfloat16', 'float32'\)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_layouts_that_contradict_themselves(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ACLPackedLayout(**{"scheme": "int8_static", "activation_granularity": "per_tensor", **fields})


def test_layouts_compare_and_hash_by_value() -> None:
    assert ACLPackedLayout() == ACLPackedLayout("symmetric", "per_token", "per_channel")
    assert len({*cases.LAYOUTS.values(), ACLPackedLayout()}) == len(cases.LAYOUTS)
