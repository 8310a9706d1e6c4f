"""Each op is stated three times, and alike: by the library (ops.cpp), by `_ops.py` and by `reference.py`.

That `_ops.py` states the library's schemas is checked when it is imported, and mypy checks its callers.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from ao_arm import _ops, reference

pytestmark = pytest.mark.x86

REGISTRATIONS = next((Path(__file__).resolve().parents[1] / "csrc").rglob("ops.cpp")).read_text()
NAMES = re.findall(r'library\.def\(\s*"(\w+)\(', REGISTRATIONS)
#: What a packed weight stands for, where the reference takes the plain one.
PLAIN = {
    "matmul_int8": {"packed_weight": ["weight"]},
    "linear_int8_dynamic": {"packed_weight": ["qdata"]},
    "linear_int8_dynamic_shared": {"packed_weights": ["qdata"]},
    "linear_int8_quantized": {"packed_weight": ["weight"]},
    "linear_int8_static": {"packed_weight": ["qdata"]},
    "linear_qta8a_qga4w": {"packed_weight": ["qdata", "scale", "zero_point"], "n": []},
    "linear_qta8a_qga4w_shared": {"packed_weights": ["qdata", "scale", "zero_point"], "n": []},
    "quantize_activations": {},
}
TYPES = {"int": int, "bool": bool, "str": str, "Tensor": torch.Tensor}


def schema_of(name: str) -> torch.FunctionSchema:
    return getattr(torch.ops.ao_arm, name).default._schema


def test_python_knows_the_ops_of_the_library() -> None:
    known = [name for name, value in vars(_ops).items() if isinstance(value, torch._ops.OpOverload)]
    assert len(NAMES) > 10
    assert sorted(known) == sorted(NAMES)
    assert all(getattr(_ops, name) is getattr(torch.ops.ao_arm, name).default for name in NAMES)


def test_the_types_of_ops_without_a_fake_kernel() -> None:
    stated = get_type_hints(_ops, {**vars(_ops), "Callable": Callable})
    for name, hint in ((name, hint) for name, hint in stated.items() if name in NAMES):
        arguments, result = get_args(hint)
        schema = schema_of(name)
        assert [TYPES[str(argument.type)] for argument in schema.arguments] == arguments, name
        assert [TYPES[str(returned.type)] for returned in schema.returns] == [result], name
    assert stated.keys() & NAMES, "no such op is stated any more"


@pytest.mark.parametrize("name", PLAIN)
def test_the_reference_takes_what_the_op_takes(name: str) -> None:
    plain = PLAIN[name]
    expected = [word for given in schema_of(name).arguments for word in plain.get(given.name, [given.name])]
    parameters = inspect.signature(getattr(reference, name)).parameters
    more = list(parameters)[len(expected) :]
    assert list(parameters)[: len(expected)] == expected
    assert all(parameters[word].default is not inspect.Parameter.empty for word in more), "the op would not know it"
    for given in schema_of(name).arguments:
        if given.has_default_value():
            assert parameters[given.name].default == given.default_value, given.name


def test_every_op_that_computes_has_a_reference() -> None:
    computing = {name for name in NAMES if name.startswith(("linear", "matmul", "quantize"))}
    assert computing == set(PLAIN)
