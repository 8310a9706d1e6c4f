"""Weights written and read again: torch.save, pickle, safetensors; what is refused, and how memory is used."""

import copy
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchao.quantization import quantize_

import ao_arm
from ao_arm import checkpoint
from ao_arm.affine_quantized import packed_weight_of

LAYERS = ("0.weight", "2.weight")


def fp32_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(96, 400), torch.nn.ReLU(), torch.nn.Linear(400, 33)).eval()


def quantized_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = fp32_model().to(dtype)
    quantize_(model, ao_arm.acl_int8_dynamic())
    return model


@pytest.fixture
def inputs() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(5, 96)


def saved(value: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def assert_same(left: torch.nn.Module, right: torch.nn.Module, inputs: torch.Tensor) -> None:
    """Same int8 values and scales, same outputs."""
    for name in LAYERS:
        ours, theirs = (packed_weight_of(model.get_parameter(name)) for model in (left, right))
        assert ours is not None and theirs is not None, name
        assert torch.equal(ours.qdata, theirs.qdata), name
        assert torch.equal(ours.scale, theirs.scale), name
        assert ours.weight_dtype == theirs.weight_dtype, name
    with torch.no_grad():
        assert torch.equal(left(inputs), right(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_dict_loads_with_weights_only(dtype: torch.dtype, inputs: torch.Tensor) -> None:
    model = quantized_model(dtype)
    state = torch.load(saved(model.state_dict()), weights_only=True)
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
    quantize_(other, ao_arm.acl_int8_dynamic())
    assert not torch.equal(model(inputs), other(inputs))
    other.load_state_dict(torch.load(saved(model.state_dict()), weights_only=True))
    assert_same(model, other, inputs)


def test_state_dict_loads_into_a_meta_model(inputs: torch.Tensor) -> None:
    model = quantized_model()
    with torch.device("meta"):
        other = fp32_model()
    other.load_state_dict(torch.load(saved(model.state_dict()), weights_only=True), assign=True)
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
        pytest.param(lambda model: torch.load(saved(model), weights_only=False), id="torch.save"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
        pytest.param(copy.deepcopy, id="deepcopy"),
    ],
)
def test_whole_models(round_trip: Callable[[torch.nn.Module], torch.nn.Module], inputs: torch.Tensor) -> None:
    model = quantized_model()
    other = round_trip(model)
    assert_same(model, other, inputs)
    assert repr(other) == repr(model)
    assert len(list(other.parameters())) == 4


def test_pre_scale_is_kept(inputs: torch.Tensor) -> None:
    model = quantized_model()
    model[0].weight.act_pre_scale = torch.linspace(0.5, 2, 96)
    other = torch.load(saved(model), weights_only=False)
    assert_same(model, other, inputs)
    assert torch.equal(other[0].weight.act_pre_scale, model[0].weight.act_pre_scale)


@pytest.mark.parametrize("shards", [1, 2])
def test_safetensors(shards: int, tmp_path: Path, inputs: torch.Tensor) -> None:
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    model = quantized_model()
    names = list(model.state_dict())
    for shard in range(shards):
        part = {name: model.state_dict()[name] for name in names[shard::shards]}
        tensors, metadata = support.flatten_tensor_state_dict(part)
        assert {tensor.dtype for name, tensor in tensors.items() if name.endswith("qdata")} <= {torch.int8}
        save_file(tensors, tmp_path / f"{shard}.safetensors", metadata=metadata)
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


def _edited(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    weight = packed_weight_of(quantized_model()[0].weight)
    assert weight is not None
    _, (state,) = checkpoint.reduce_packed(weight)
    change(state)
    return state


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"version 2 of ao_arm's checkpoint format.*update"):
        checkpoint.rebuild(_edited(lambda state: state.update(version=2)))


@pytest.mark.parametrize("name", ["qdata", "scale"])
def test_damaged_bytes_are_refused(name: str) -> None:
    def damage(state: dict[str, Any]) -> None:
        state[name] = state[name].clone()
        state[name].view(torch.uint8).view(-1)[7] ^= 1

    with pytest.raises(ValueError, match=r"shape \(400, 96\) is damaged"):
        checkpoint.rebuild(_edited(damage))


MEASURE = """
import json, resource, sys, torch, ao_arm
from torchao.quantization import quantize_
warm = torch.nn.Linear(256, 256); quantize_(warm, ao_arm.acl_int8_dynamic()); warm(torch.randn(1, 256))
model = torch.nn.Linear(4096, 4096)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
quantize_(model, ao_arm.acl_int8_dynamic())
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"grown": (after - before) * 1024, "weight": 4096 * 4096 * 4, "packed": model.weight.nbytes}))
"""


@pytest.mark.x86
def test_quantizing_takes_less_than_one_more_fp32_copy() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["grown"] <= measured["weight"], measured
    assert measured["packed"] <= 1.05 * 4096 * 4096, measured
