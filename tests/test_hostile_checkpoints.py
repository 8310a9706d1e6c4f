"""Checkpoints that are cut off, damaged or made up: refused by name, and what they ask for is in proportion to them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from damaged_checkpoints import K, N, experts_of, refused_when_cut, refused_when_flipped, weight_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ao_arm import _ops, checkpoint, kernels
from ao_arm.affine_quantized import as_weight

pytestmark = pytest.mark.one_cpu


def signed(state: dict[str, Any]) -> dict[str, Any]:
    """With checksums that are right, as somebody who makes up a file can make them."""
    names = ("qdata", "scale", "act_scale", "act_zero_point", "zero_point")
    tensors = [value for name in names if type(value := state.get(name)) is Tensor and _is_small(value)]
    return {**state, "checksum": checkpoint._checksum(*tensors), "settings_checksum": None}


def _is_small(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.numel() < 1 << 20


REPEATED = torch.zeros(1, dtype=torch.int8).expand(1 << 30, 1 << 10)
#: What is put in place of an entry of the dictionary, and what is then said.
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a huge weight of one byte": ("dynamic", {"qdata": REPEATED}, "qdata must be stored element by element"),
    "huge scales of one number": (
        "dynamic",
        {"scale": torch.ones(1).expand(1 << 40)},
        "scale must be stored element by element",
    ),
    "huge nibbles of one byte": (
        "grouped",
        {"qdata": REPEATED.view(torch.uint8)},
        "qdata must be stored element by element",
    ),
    "floats": ("dynamic", {"qdata": torch.zeros(N, K)}, "qdata must be torch.int8 of shape"),
    "3 dimensions": ("dynamic", {"qdata": torch.zeros(1, N, K, dtype=torch.int8)}, "qdata must be torch.int8 of shape"),
    "no dimension": ("dynamic", {"qdata": torch.tensor(1, dtype=torch.int8)}, "qdata must be torch.int8 of shape"),
    "a row too many": ("dynamic", {"qdata": torch.zeros(N + 1, K, dtype=torch.int8)}, "qdata must be torch.int8 of"),
    "no columns": ("dynamic", {"qdata": torch.zeros(N, 0, dtype=torch.int8)}, "no kernel can serve a layer"),
    "nothing": ("dynamic", {"qdata": torch.zeros(0, 0, dtype=torch.int8), "scale": torch.ones(0)}, "and not empty"),
    "sparse": ("dynamic", {"scale": torch.ones(N).to_sparse()}, "scale must be an ordinary tensor"),
    "packed in packed": ("dynamic", {"qdata": weight_of("dynamic")}, "qdata must be an ordinary tensor"),
    "on two devices": ("dynamic", {"scale": torch.ones(N, device="meta")}, "scale must be on the device of qdata"),
    "float64 scales": ("dynamic", {"scale": torch.ones(N).double()}, "scale must be torch.float32 of 1 dimensions"),
    "no tensor": ("dynamic", {"scale": [1.0] * N}, "scale must be Tensor, not list"),
    "missing": ("dynamic", {"scale": None}, "scale must be Tensor, not NoneType"),
    "k of other groups": ("grouped", {"scale": torch.ones(N, 2).bfloat16()}, "qdata must be torch.uint8 or torch.int8"),
    "scales of other dtype": ("grouped", {"scale": torch.ones(N, 3)}, "scale must be torch.bfloat16"),
    "zero points of other shape": (
        "grouped",
        {"zero_point": torch.zeros(N, 1, dtype=torch.int8)},
        "zero_point must be torch.int8 of shape",
    ),
    "zero points of other range": (
        "grouped",
        {"zero_point": torch.full((N, 3), 100, dtype=torch.int8)},
        "zero_point must lie in [-8, 7]",
    ),
    "values of other range": ("grouped", {"qdata": torch.full((N, K), 50, dtype=torch.int8)}, "qdata must lie in"),
    "no scale of activations": ("static", {"act_scale": None}, "act_scale of int8_static activations must be"),
    "a factor that adds rows": ("dynamic", {"act_pre_scale": torch.ones(9, K)}, "act_pre_scale must be one float, or"),
    "a factor of integers": ("dynamic", {"act_pre_scale": torch.ones(K).int()}, "act_pre_scale must be one float, or"),
    "an older version than any": ("dynamic", {"version": 0}, "version must be a whole number from 1 to"),
    "no version": ("dynamic", {"version": "3"}, "version must be a whole number from 1 to"),
    "an integer dtype": ("dynamic", {"dtype": torch.int8}, "dtype must be torch.float32, torch.bfloat16 or"),
    "a dtype's name": ("dynamic", {"dtype": "float32"}, "dtype must be dtype, not str"),
    "a number for a yes": ("dynamic", {"transposed": 1}, "transposed must be bool, not int"),
    "a yes for a number": ("dynamic", {"checksum": True}, "checksum must be int, not bool"),
    "no layout": ("dynamic", {"layout": "int8_dynamic"}, "layout must be dict, not str"),
    "an unknown key": ("dynamic", {"layout": {"colour": "red"}}, "each entry of layout must be one of"),
    "a list in the layout": ("dynamic", {"layout": {"scheme": ["int8_dynamic"]}}, "layout's scheme must be a text"),
    "a scheme of nobody": ("dynamic", {"layout": {"scheme": "int3"}}, "scheme must be one of"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_contents_are_refused_by_name(wrong: str) -> None:
    scheme, changes, message = WRONG[wrong]
    _, (state,) = checkpoint.reduce_packed(weight_of(scheme))
    with pytest.raises(ValueError) as caught:
        checkpoint.rebuild({**signed({**state, **changes}), **changes})
    assert message in str(caught.value)


#: Of experts.
WRONG_EXPERTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a huge weight of one byte": ("dynamic", {"qdata": REPEATED[None]}, "qdata must be stored element by element"),
    "no expert": ("dynamic", {"qdata": torch.zeros(0, N, K, dtype=torch.int8), "scale": torch.ones(0, N)}, "not empty"),
    "one expert": ("dynamic", {"qdata": torch.zeros(N, K, dtype=torch.int8)}, "qdata must be torch.int8 of shape"),
    "fewer scales": ("dynamic", {"scale": torch.ones(2, N)}, "qdata must be torch.int8 of shape (2, 8, 96)"),
    "zero points": ("grouped", {"zero_point": torch.zeros(3, N, dtype=torch.int8)}, "zero_point must be torch.int8"),
    "no version": ("dynamic", {"version": None}, "version must be a whole number from 1 to"),
}


@pytest.mark.parametrize("wrong", WRONG_EXPERTS)
def test_wrong_contents_of_experts_are_refused_by_name(wrong: str) -> None:
    scheme, changes, message = WRONG_EXPERTS[wrong]
    _, (state,) = checkpoint.reduce_experts(experts_of(scheme))
    with pytest.raises(ValueError) as caught:
        checkpoint.rebuild_experts(signed({**state, **changes}))
    assert message in str(caught.value)


def test_a_file_of_two_kilobytes_cannot_ask_for_a_terabyte() -> None:
    """By torch.save, whose files hold tensors as storage, shape and strides."""
    _, (state,) = checkpoint.reduce_packed(weight_of("dynamic"))
    file = cases.saved(_Pickled({**state, "qdata": REPEATED, "settings_checksum": None}))
    assert len(file.getvalue()) < 8192
    with pytest.raises(ValueError, match="qdata must be stored element by element"):
        torch.load(file, weights_only=True)


class _Pickled:
    """Pickles as a call of `rebuild` with this dictionary."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Callable[..., Tensor], tuple[dict[str, Any]]]:
        return checkpoint.rebuild, (self.state,)


@pytest.mark.x86
def test_files_that_are_cut_off_are_refused() -> None:
    assert refused_when_cut(range(0, 1 << 20, 67)) > 100


@pytest.mark.x86
def test_a_flipped_bit_is_refused_or_changes_no_weight() -> None:
    assert refused_when_flipped(range(5, 1 << 20, 27)) > 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_quantization": [0.1, 300]}, "act_quantization must be a scale and a zero point in"),
        ({"act_quantization": [0.1]}, "act_quantization must be a scale and a zero point in"),
        ({"act_quantization": "none"}, "act_quantization must be list or None, not str"),
        ({"transposed": 1}, "transposed must be bool or None, not int"),
        ({"weight_dtype": {"_type": "torch.dtype", "_data": "int8"}}, "dtype must be torch.float32"),
        ({"_layout": {"_type": "MappingType", "_data": "SYMMETRIC"}}, "_layout must be ACLPackedLayout"),
        ({"qdata": torch.zeros(N, K)}, "qdata must be torch.int8 of shape"),
        ({"scale": torch.ones(N, 2)}, "scale must be torch.float32 of 1 dimensions"),
        ({"act_pre_scale": torch.ones(2, K)}, "act_pre_scale must be one float"),
    ],
    ids=str,
)
def test_wrong_safetensors_are_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    tensors, metadata = support.flatten_tensor_state_dict({"0.weight": as_weight(weight_of("static"))})
    stated = json.loads(metadata["0.weight"])
    for name, value in changes.items():
        if isinstance(value, Tensor):
            tensors[f"0._weight_{name}"] = value
        else:
            stated["_data"][name] = value
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, {**metadata, "0.weight": json.dumps(stated)})
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    with pytest.raises(ValueError) as caught:
        support.unflatten_tensor_state_dict(load_file(file), metadata)
    assert message in str(caught.value)


@pytest.mark.x86
def test_damaged_safetensors_are_refused_or_read(tmp_path: Path) -> None:
    """Cut off anywhere; or with a flipped bit in the header, which has no checksum: another file then, and no crash."""
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    tensors, metadata = support.flatten_tensor_state_dict({"0.weight": as_weight(weight_of("grouped"))})
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata)
    content = file.read_bytes()

    def is_refused(damaged: bytes) -> bool:
        file.write_bytes(damaged)
        try:
            with safe_open(file, "pt") as opened:
                support.unflatten_tensor_state_dict(load_file(file), opened.metadata() or {})
        except Exception:  # safetensors, json and torchao name what they find in many ways
            return True
        return False

    assert not is_refused(content)
    assert all(is_refused(content[:size]) for size in range(0, len(content), 61))
    header = 8 + int.from_bytes(content[:8], "little")
    for at in range(0, header, 11):
        is_refused(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])


#: A packed weight takes at most so many bytes for one of its contents: a narrow one, which is padded most.
MOST_TIMES = 20
NARROW = ((1, 60000), (60000, 1), (60000, 9), (65, 1), (2, 30000), (1, 33), (1001, 1001))


def test_packed_weights_are_in_proportion_to_files() -> None:
    for n, k in NARROW:
        for row in kernels.list(n, k):
            if not row.reasons:
                assert _ops.packed_bytes(n, k, row.id, False) <= MOST_TIMES * (n * k + 4 * n) + 4096, (row.id, n, k)
        for row in kernels.list(n, k, k):
            if not row.reasons:
                packed = _ops.packed_bytes_int4(n, k, k, False, False, row.id)
                assert packed <= MOST_TIMES * (n * (k + 1) // 2 + 2 * n) + 4096, (row.id, n, k)
