"""The configurations: what they are by default, which options they refuse, and how they are written."""

import dataclasses
import json
import math

import cases
import pytest
import torch
from options import EACH_CONFIG, GROUPED, OPTIONS
from torchao.core.config import AOBaseConfig, config_from_dict, config_to_dict
from torchao.quantization import MappingType, PerAxis, PerGroup, PerTensor, PerToken

import ao_arm
from ao_arm import ACLPackedLayout, acl_int4_grouped, acl_int8_dynamic, acl_int8_static

pytestmark = pytest.mark.x86

# --- what they are by default ---


def test_the_default_is_asymmetric_per_token_by_per_channel() -> None:
    assert acl_int8_dynamic() == ao_arm.ACLInt8DynamicActivationInt8WeightConfig()
    assert acl_int8_dynamic().layout() == ACLPackedLayout("asymmetric", "per_token", "per_channel")
    assert acl_int8_dynamic(MappingType.ASYMMETRIC, PerTensor(), PerTensor()).layout() == ACLPackedLayout(
        "asymmetric", "per_tensor", "per_tensor"
    )


def test_the_default_static_layer_is_symmetric_by_per_channel() -> None:
    config = acl_int8_static(act_scale=0.5)
    assert config == ao_arm.ACLInt8StaticActivationInt8WeightConfig(act_scale=0.5)
    assert config.layout() == ACLPackedLayout("symmetric", "per_tensor", "per_channel", "int8_static", "int8")
    assert (config.act_scale, config.act_zero_point, config.observer) == (0.5, 0, None)


def test_the_default_4_bit_layer_has_symmetric_groups_of_32() -> None:
    assert acl_int4_grouped() == ao_arm.ACLInt8DynamicActivationInt4WeightConfig()
    assert acl_int4_grouped().layout(96) == cases.grouped(32)
    assert acl_int4_grouped(None).layout(96) == cases.grouped(96)


# --- wrong options ---

S8 = dict(act_scale=0.1, act_mapping_type=MappingType.ASYMMETRIC)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("act_mapping_type", MappingType.SYMMETRIC_NO_CLIPPING_ERR),
        ("act_mapping_type", "symmetric"),
        ("act_mapping_type", None),
        ("act_granularity", PerGroup(32)),
        ("act_granularity", PerAxis(0)),
        ("act_granularity", "per_token"),
        ("weight_granularity", PerGroup(32)),
        ("weight_granularity", PerAxis(1)),
        ("weight_granularity", PerToken()),
        ("weight_granularity", 0),
        ("version", 2),
        ("version", 0),
    ],
    ids=lambda value: str(value),
)
def test_wrong_options_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        ao_arm.ACLInt8DynamicActivationInt8WeightConfig(**{field: value})
    if field != "version":
        with pytest.raises(ValueError, match=f"{field} must be"):
            acl_int8_dynamic(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(), "give act_scale, or calibrate: step='prepare', inputs, step='convert'"),
        (dict(step="calibrate"), "step must be one of .*'prepare', 'convert', None.*not 'calibrate'"),
        (dict(step="prepare", act_scale=0.1), "for one shot: leave them or step='prepare' out"),
        (dict(step="convert", act_zero_point=3), "for one shot: leave them or step='convert' out"),
        (
            dict(act_scale=0.1, observer="minmax"),
            "observer is for step='prepare', and .* for one shot: leave 'minmax' out",
        ),
        (dict(step="prepare", observer="entropy"), "observer must be one of .*'histogram'.*, not 'entropy'"),
        *((dict(act_scale=scale), "act_scale must be positive") for scale in (0, -0.1, math.nan, math.inf)),
        (dict(act_scale=1e-60), "positive and finite in float32, not 1e-60"),
        (dict(act_scale=1e39), r"positive and finite in float32, not 1e\+39"),
        (dict(act_scale=torch.ones(2)), "act_scale must be a number or a tensor of one, not tensor"),
        (dict(act_scale="0.1 or so"), "act_scale must be a number or a tensor of one, not '0.1 or so'"),
        (dict(act_scale=0.1, act_zero_point=3), "act_zero_point must be 0 for symmetric activations, not 3"),
        (dict(act_scale=0.1, act_mapping_type=MappingType.ASYMMETRIC), "need act_zero_point as well"),
        *(
            (dict(S8, act_zero_point=zero), r"act_zero_point must be an integer within \[-128, 127\], not")
            for zero in (-129, 128, 3.5, math.nan, torch.tensor([200], dtype=torch.uint8))
        ),
        (dict(S8, act_zero_point=torch.zeros(2)), "act_zero_point must be a number or a tensor of one"),
        *(
            (dict(S8, act_dtype=torch.uint8, act_zero_point=zero), r"an integer within \[0, 255\], not")
            for zero in (-1, 256)
        ),
        (dict(act_scale=0.1, act_dtype=torch.uint8), "activation_mapping must be 'asymmetric'"),
        (dict(act_scale=0.1, act_dtype=torch.int16), "act_dtype must be torch.int8 or torch.uint8, not torch.int16"),
        (dict(act_scale=0.1, act_dtype="int8"), "act_dtype must be torch.int8 or torch.uint8, not int8"),
        (dict(act_scale=0.1, act_mapping_type="symmetric"), "act_mapping_type must be"),
        (dict(act_scale=0.1, weight_granularity=PerGroup(32)), "weight_granularity must be"),
    ],
    ids=str,
)
def test_wrong_static_options_are_refused(fields: dict[str, object], message: str) -> None:
    for make in (acl_int8_static, ao_arm.ACLInt8StaticActivationInt8WeightConfig):
        with pytest.raises(ValueError, match=message):
            make(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(
            (dict(group_size=size), f"group_size must be a whole number of at least 1, or None .*not {size!r}")
            for size in (0, -32, 32.0, "32", True)
        ),
        (dict(weight_mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR), "weight_mapping_type must be"),
        (dict(weight_mapping_type="symmetric"), "weight_mapping_type must be MappingType.SYMMETRIC or"),
        (dict(scale_dtype=torch.float16), "scale_dtype must be torch.bfloat16 or torch.float32, not torch.float16"),
        (dict(scale_dtype="bfloat16"), "scale_dtype must be torch.bfloat16 or torch.float32, not bfloat16"),
    ],
    ids=str,
)
def test_wrong_grouped_options_are_refused(fields: dict[str, object], message: str) -> None:
    for make in (acl_int4_grouped, ao_arm.ACLInt8DynamicActivationInt4WeightConfig):
        with pytest.raises(ValueError, match=message):
            make(**fields)


# --- configurations as dictionaries ---


FORMS = {name: config for name, (config, _) in OPTIONS.items()} | {
    "prepare": acl_int8_static("prepare", observer="histogram"),
    "convert": acl_int8_static("convert", act_mapping_type=MappingType.ASYMMETRIC, act_dtype=torch.uint8),
    "scale of a tensor": acl_int8_static(act_scale=torch.tensor([0.1])),
}


@pytest.mark.parametrize("form", FORMS)
def test_configurations_survive_the_way_through_a_dictionary(form: str) -> None:
    config = FORMS[form]
    written = json.loads(json.dumps(config_to_dict(config)))
    read = config_from_dict(written)
    assert type(read) is type(config)
    assert read == config
    k = (96,) if form in GROUPED else ()
    assert read.layout(*k) == config.layout(*k)


@EACH_CONFIG
def test_newer_configurations_are_refused(config: AOBaseConfig) -> None:
    written = config_to_dict(config)
    written["_version"] = 2
    with pytest.raises(ValueError, match=r"(?i)version"):
        config_from_dict(written)
    with pytest.raises(ValueError, match="version must be 1, not 2: written by a newer ao_arm"):
        dataclasses.replace(config, version=2)
