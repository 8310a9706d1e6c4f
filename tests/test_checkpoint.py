"""Weights written and read again: torch.save, pickle, safetensors; what is refused, and how memory is used."""

import copy
import json
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensors import assert_same_weight
from torchao.quantization import FqnToConfig, MappingType, quantize_

import ao_arm
from ao_arm import checkpoint, packed_weight_of
from ao_arm.nibbles import from_nibbles, to_nibbles

pytestmark = pytest.mark.one_cpu

LAYERS = ("0.weight", "2.weight", "3.weight")


def fp32_model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(96, 400), torch.nn.ReLU(), torch.nn.Linear(400, 64), torch.nn.Linear(64, 33)]
    return torch.nn.Sequential(*layers).eval()


def quantize(model: torch.nn.Module) -> torch.nn.Module:
    """Makes a layer with dynamic activations, one with static ones, and one with 4-bit weights."""
    configs = {
        "0": ao_arm.acl_int8_dynamic(),
        "2": ao_arm.acl_int8_static(None, 0.02, 9, MappingType.ASYMMETRIC, torch.uint8),
        "3": ao_arm.acl_int4_grouped(32, MappingType.ASYMMETRIC),
    }
    quantize_(model, FqnToConfig(OrderedDict(configs)), filter_fn=None)
    return model


def quantized_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return quantize(fp32_model().to(dtype))


@pytest.fixture
def inputs() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(5, 96)


def assert_same(left: torch.nn.Module, right: torch.nn.Module, inputs: torch.Tensor) -> None:
    """Same weights, same outputs."""
    for name in LAYERS:
        ours, theirs = (packed_weight_of(model.get_parameter(name)) for model in (left, right))
        assert_same_weight(ours, theirs, name)
    with torch.no_grad():
        assert torch.equal(left(inputs), right(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_dict_loads_with_weights_only(dtype: torch.dtype, inputs: torch.Tensor) -> None:
    model = quantized_model(dtype)
    state = torch.load(cases.saved(model.state_dict()), weights_only=True)
    other = quantized_model(dtype)
    with torch.no_grad():
        for parameter in other.parameters():
            if packed_weight_of(parameter) is None:
                parameter.zero_()
    other.load_state_dict(state)
    assert_same(model, other, inputs.to(dtype))


def test_loading_replaces_other_values(inputs: torch.Tensor) -> None:
    model = quantized_model()
    other = fp32_model()
    with torch.no_grad():
        other[0].weight.mul_(-3)
    quantize(other)
    packed_weight_of(other[2].weight).act_scale.mul_(3)
    assert not torch.equal(model(inputs), other(inputs))
    other.load_state_dict(torch.load(cases.saved(model.state_dict()), weights_only=True))
    assert_same(model, other, inputs)


def test_state_dict_loads_into_a_meta_model(inputs: torch.Tensor) -> None:
    model = quantized_model()
    with torch.device("meta"):
        other = fp32_model()
    other.load_state_dict(torch.load(cases.saved(model.state_dict()), weights_only=True), assign=True)
    assert_same(model, other, inputs)


def test_state_dict_loads_through_mmap(tmp_path: Path, inputs: torch.Tensor) -> None:
    model = quantized_model()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = quantized_model()
    other.load_state_dict(torch.load(tmp_path / "model.pt", mmap=True, weights_only=True), assign=True)
    assert_same(model, other, inputs)


def test_misplaced_state_dicts_are_refused_with_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"quantize_ the model first, or use load_state_dict\(..., assign=True\)"):
        fp32_model().load_state_dict(quantized_model().state_dict())
    with pytest.raises(RuntimeError, match="load it into the model before quantize_"):
        quantized_model().load_state_dict(fp32_model().state_dict())


@pytest.mark.parametrize(
    "round_trip",
    [
        pytest.param(cases.saved_and_loaded, id="torch.save"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
        pytest.param(copy.deepcopy, id="deepcopy"),
    ],
)
def test_whole_models(round_trip: Callable[[torch.nn.Module], torch.nn.Module], inputs: torch.Tensor) -> None:
    model = quantized_model()
    other = round_trip(model)
    assert_same(model, other, inputs)
    assert repr(other) == repr(model)
    assert len(list(other.parameters())) == 6


def test_pre_scale_is_kept(inputs: torch.Tensor) -> None:
    model = quantized_model()
    before = model(inputs)
    model[0].weight.act_pre_scale = torch.linspace(0.5, 2, 96)
    model[2].weight.act_pre_scale = torch.linspace(0.5, 2, 400)
    model[3].weight.act_pre_scale = torch.linspace(0.5, 2, 64)
    assert not torch.equal(model(inputs), before)
    other = cases.saved_and_loaded(model)
    assert_same(model, other, inputs)
    for i in (0, 2, 3):
        assert torch.equal(other[i].weight.act_pre_scale, model[i].weight.act_pre_scale)


@pytest.mark.parametrize("shards", [1, 2])
def test_safetensors(shards: int, tmp_path: Path, inputs: torch.Tensor) -> None:
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    model = quantized_model()
    names, dtypes = list(model.state_dict()), dict[str, torch.dtype]()
    for shard in range(shards):
        part = {name: model.state_dict()[name] for name in names[shard::shards]}
        tensors, metadata = support.flatten_tensor_state_dict(part)
        dtypes |= {name.partition(".")[0]: tensor.dtype for name, tensor in tensors.items() if name.endswith("qdata")}
        save_file(tensors, tmp_path / f"{shard}.safetensors", metadata=metadata)
    assert dtypes == {"0": torch.int8, "2": torch.int8, "3": torch.uint8}
    state: dict[str, torch.Tensor] = {}
    for path in sorted(tmp_path.iterdir()):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        part, left = support.unflatten_tensor_state_dict(load_file(path), metadata)
        assert not left
        state |= part
    other = fp32_model()
    other.load_state_dict(state, assign=True)
    assert_same(model, other, inputs)


def _edited(change: Callable[[dict[str, Any]], None], layer: int = 2) -> dict[str, Any]:
    weight = packed_weight_of(quantized_model()[layer].weight)
    assert weight is not None
    _, (state,) = checkpoint.reduce_packed(weight)
    change(state)
    return state


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(
        ValueError, match=rf"version {checkpoint.FORMAT_VERSION + 1} of ao_arm's checkpoint format.*update"
    ):
        checkpoint.rebuild(_edited(lambda state: state.update(version=checkpoint.FORMAT_VERSION + 1)))


def test_version_1_still_loads(inputs: torch.Tensor) -> None:
    """It knows neither static activations nor the fields of the layout that came with them."""
    for mapping in ("symmetric", "asymmetric"):
        packed = ao_arm.ACLPackedTensor.from_hp(torch.randn(33, 96), ao_arm.ACLPackedLayout(mapping))
        _, (state,) = checkpoint.reduce_packed(packed)
        names = ("activation_mapping", "activation_granularity", "weight_granularity")
        state["layout"] = {name: state["layout"][name] for name in names}
        del state["act_scale"], state["act_zero_point"]
        loaded = packed_weight_of(checkpoint.rebuild({**state, "version": 1}))
        assert loaded is not None
        assert loaded.get_layout() == packed.get_layout()
        assert torch.equal(loaded.qdata, packed.qdata) and torch.equal(loaded.scale, packed.scale)
        linear = torch.nn.functional.linear
        assert torch.equal(linear(inputs, loaded), linear(inputs, packed))


def test_four_bits_of_version_2_still_load() -> None:
    """From a file that ao_arm wrote when 4-bit values took a byte each."""
    state = torch.load(Path(__file__).with_name("four_bits_of_version_2.pt"), weights_only=True)
    loaded = packed_weight_of(state["weight"])
    assert loaded is not None and loaded.get_layout().scheme == "int4_grouped"
    qdata, scale, zero_point = loaded.get_plain()
    assert torch.equal(qdata, (torch.arange(3 * 64).view(3, 64) * 7 % 16 - 8).to(torch.int8))
    assert torch.equal(scale, (torch.arange(1, 7).view(3, 2) * 0.25).to(torch.bfloat16))
    assert zero_point is not None and zero_point.tolist() == [[-8, 7], [0, 3], [1, -1]]


@pytest.mark.parametrize("k", [1, 2, 7, 64])
def test_4_bit_values_are_two_to_a_byte(k: int) -> None:
    values = torch.randint(-8, 8, (5, k), dtype=torch.int8)
    values[0] = -8
    stored = to_nibbles(values)
    assert stored.dtype == torch.uint8 and stored.shape == (5, (k + 1) // 2)
    assert torch.equal(from_nibbles(stored, k), values)
    for row, values_of_row in zip(stored.tolist(), values.tolist(), strict=True):
        halves = [half - 8 for byte in row for half in (byte % 16, byte // 16)]
        assert halves == values_of_row + [0] * (k % 2)


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_files_of_4_bit_weights_hold_4_bits(scale_dtype: torch.dtype, tmp_path: Path) -> None:
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    layer = torch.nn.Linear(1024, 512, bias=False)
    quantize_(layer, ao_arm.acl_int4_grouped(32, scale_dtype=scale_dtype))
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    tensors, metadata = support.flatten_tensor_state_dict({"0.weight": layer.state_dict()["weight"]})
    save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)
    bytes_a_weight = 0.5 + scale_dtype.itemsize / 32
    for path in tmp_path.iterdir():
        assert 0 < path.stat().st_size - bytes_a_weight * 1024 * 512 < 4096, path


@pytest.mark.parametrize("shape", [(33, 31), (33, 33), (33, 64), (32, 32), (33,)], ids=str)
def test_4_bit_values_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    def cut(state: dict[str, Any]) -> None:
        state["qdata"] = torch.zeros(shape, dtype=torch.uint8)
        contents = (state[name] for name in ("qdata", "scale", "act_scale", "act_zero_point", "zero_point"))
        state["checksum"] = checkpoint._checksum(*contents)

    with pytest.raises(ValueError, match=r"qdata must be torch.uint8 or torch.int8 of shape \(33, 32\), not"):
        checkpoint.rebuild(_edited(cut, 3))


DAMAGED = [
    *((2, "(64, 400)", name) for name in ("qdata", "scale", "act_scale", "act_zero_point")),
    *((3, "(33, 32)", name) for name in ("qdata", "scale", "zero_point")),
]


@pytest.mark.parametrize(("layer", "shape", "name"), DAMAGED)
def test_damaged_bytes_are_refused(layer: int, shape: str, name: str) -> None:
    def damage(state: dict[str, Any]) -> None:
        state[name] = state[name].clone()
        state[name].view(torch.uint8).view(-1)[-1] ^= 1

    with pytest.raises(ValueError, match=rf"is damaged: its checksum.*of shape {re.escape(shape)}"):
        checkpoint.rebuild(_edited(damage, layer))


def test_frozen_traces_hold_the_packed_bytes_alone(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 64)).eval()
    quantize_(model, ao_arm.acl_int8_dynamic())
    x = torch.randn(2, 256)
    torch.jit.save(torch.jit.freeze(torch.jit.trace(model, x)), tmp_path / "model.pt")
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert 0 < (tmp_path / "model.pt").stat().st_size - held < 8192
    assert torch.equal(torch.jit.load(tmp_path / "model.pt")(x), model(x))


MEASURE = """
import json, resource, sys, torch, ao_arm
from torchao.quantization import quantize_
config = getattr(ao_arm, sys.argv[1])()
warm = torch.nn.Linear(256, 256); quantize_(warm, config); warm(torch.randn(1, 256))
model = torch.nn.Linear(4096, 6144)  # large beside what else the process may touch for the first time
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
quantize_(model, config)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"grown": (after - before) * 1024, "packed": model.weight.nbytes}))
"""


@pytest.mark.x86
@pytest.mark.slow
@pytest.mark.parametrize(("config", "bytes_per_weight"), [("acl_int8_dynamic", 1.05), ("acl_int4_grouped", 0.57)])
def test_quantizing_takes_less_than_one_more_fp32_copy(config: str, bytes_per_weight: float) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, config], capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    elements = 4096 * 6144
    assert measured["grown"] <= 4 * elements, measured
    assert measured["packed"] <= bytes_per_weight * elements, measured
