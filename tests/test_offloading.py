"""Accelerate with models that were quantized by hand: sizes, what is written, offloading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained import CONFIGS, assert_same_model, language_model, linear_but_head, outputs
from torchao.quantization import quantize_

from ao_arm.experts import bytes_too_many

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.x86

EACH = pytest.mark.parametrize("scheme", ["dynamic", "grouped"])


def quantized(scheme: str = "grouped") -> Any:
    model = language_model()
    quantize_(model, CONFIGS[scheme], filter_fn=linear_but_head)
    return model


@EACH
def test_sizes_are_those_of_the_packed_bytes(scheme: str) -> None:
    model = quantized(scheme)
    of_parameters = sum(parameter.nbytes for parameter in model.parameters())
    of_buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert model.get_memory_footprint(return_buffers=False) == of_parameters
    assert model.get_memory_footprint() == of_parameters + of_buffers
    sizes = accelerate.utils.compute_module_sizes(model)
    assert sizes[""] == of_parameters + of_buffers
    name = "model.layers.0.mlp.up_proj"
    packed = model.get_submodule(name).weight
    assert sizes[name] == sizes[f"{name}.weight"] == packed.nbytes < packed.numel() * 1.5
    assert sizes["lm_head"] == 4 * 64 * 100
    in_half = accelerate.utils.compute_module_sizes(model, dtype=torch.float16)
    assert in_half["lm_head"] == 2 * 64 * 100 and in_half[name] == 2 * 64 * 128


def test_sizes_of_other_models_stay_as_they_were() -> None:
    model = language_model()
    in_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert model.get_memory_footprint(return_buffers=False) == in_bytes
    assert accelerate.utils.compute_module_sizes(model)["lm_head"] == 4 * 64 * 100
    assert bytes_too_many(model.lm_head.weight) == 0


def test_accelerator_writes_by_pickle_and_refuses_safetensors_by_name(tmp_path: Path) -> None:
    accelerator, model = accelerate.Accelerator(cpu=True), quantized()
    accelerator.save_model(model, tmp_path, safe_serialization=False)
    other = language_model()
    with torch.no_grad():
        other.lm_head.weight.zero_()
    quantize_(other, CONFIGS["grouped"], filter_fn=linear_but_head)
    accelerate.load_checkpoint_in_model(other, str(tmp_path))
    assert_same_model(other, model)
    with pytest.raises(NotImplementedError, match=r"safetensors cannot write.*safe_serialization=False"):
        accelerator.save_model(model, tmp_path / "other")


@pytest.mark.parametrize(
    ("offload", "message"),
    [
        pytest.param(accelerate.cpu_offload, "accelerate cannot offload weight.*leave the model as it is", id="cpu"),
        pytest.param(
            lambda model, device, folder: accelerate.disk_offload(model, folder, device),
            "numpy cannot read.*do not offload it to disk",
            id="disk",
        ),
    ],
)
def test_offloading_is_refused_by_name(offload: Callable[..., Any], message: str, tmp_path: Path) -> None:
    arguments = (tmp_path,) if "disk" in message else ()
    with pytest.raises(NotImplementedError, match=message):
        offload(quantized(), torch.device("cpu"), *arguments)
    model = language_model()
    expected = outputs(model)
    offload(model, torch.device("cpu"), *arguments)
    assert torch.equal(outputs(model), expected)
