"""Checkpoints and programs that one kind of CPU writes and others read.

`python tests/exchanged.py FOLDER` writes both.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import (
    FqnToConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    MappingType,
    PerGroup,
    quantize_,
)

import ao_arm
from ao_arm import packed_weight_of, reference
from ao_arm.affine_quantized import as_weight
from ao_arm.passes import fuse

#: Names the folder with what x86 wrote, and each other kind of CPU writes, to those that run on emulated CPUs.
FOLDER_VARIABLE = "AO_ARM_EMULATED_EXCHANGE"
X86 = "x86"

SCHEMES = {"0.weight": "int8_dynamic", "2.weight": "int8_static", "3.weight": "int4_grouped"}
CONFIGS = {
    "0": ao_arm.acl_int8_dynamic(),
    "2": ao_arm.acl_int8_static(None, 0.02, 9, MappingType.ASYMMETRIC, torch.uint8),
    "3": ao_arm.acl_int4_grouped(32, MappingType.ASYMMETRIC),
}
_INT4: Any = getattr(torch, "int4")  # noqa: B009 - torch's types lack it
PROGRAMS: dict[str, Callable[[], Any]] = {
    # On x86 with VNNI its graph has uint8 activations, of which 128 times the sums of weights are taken off.
    "int8": lambda: Int8DynamicActivationInt8WeightConfig(version=2),
    "int4": lambda: Int8DynamicActivationIntxWeightConfig(weight_dtype=_INT4, weight_granularity=PerGroup(32)),
}


# --- checkpoints ---


def _model(seed: int) -> torch.nn.Sequential:
    """Of numbers that are the same everywhere: torch's random floats are not."""
    layers = [torch.nn.Linear(96, 400), torch.nn.ReLU(), torch.nn.Linear(400, 64), torch.nn.Linear(64, 130)]
    model, numbers = torch.nn.Sequential(*layers).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-512, 513, parameter.shape, generator=numbers) / 4096)
    return model


def _quantized_model(seed: int) -> torch.nn.Sequential:
    """A layer with dynamic activations, one with static ones, and one with 4-bit weights."""
    made = _model(seed)
    quantize_(made, FqnToConfig(OrderedDict(CONFIGS)), filter_fn=None)
    return made


def _with_minus_128(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    """An int8 weight, some of whose values become -128, which not every kernel multiplies."""
    packed = packed_weight_of(weight)
    assert packed is not None
    qdata = packed.qdata.clone()
    qdata[::3, ::2] = -128
    made = ao_arm.ACLPackedTensor.from_plain(qdata, packed.scale, None, packed.get_layout(), packed.dtype)
    return torch.nn.Parameter(as_weight(made), requires_grad=False)


@torch.no_grad()
def write_checkpoint(folder: Path) -> None:
    """Saves a quantized model in every form, beside inputs and outputs."""
    quantized = _quantized_model(seed=0)
    quantized[0].weight = _with_minus_128(quantized.get_parameter("0.weight"))
    inputs = torch.randint(-4096, 4097, (9, 96), generator=torch.Generator().manual_seed(1)) / 1024
    torch.save(quantized.state_dict(), folder / "state.pt")
    torch.save(quantized, folder / "model.pt")
    tensors, metadata = flatten_tensor_state_dict(quantized.state_dict())
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    weights = {name: quantized.get_parameter(name).dequantize() for name in SCHEMES}
    between = quantized[:3](inputs)
    expected = {"inputs": inputs, "inputs_of_grouped": between, "outputs": quantized[3](between), "weights": weights}
    torch.save(expected, folder / "expected.pt")


@torch.no_grad()
def read_checkpoint(folder: Path) -> set[str]:
    """Loads every form, checks weights and outputs, and returns the kernels that serve the loaded weights here."""
    expected = torch.load(folder / "expected.pt", weights_only=True)
    from_state = _quantized_model(seed=3)
    from_state.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    whole = torch.load(folder / "model.pt", weights_only=False)
    from_safetensors = _model(seed=3)
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    state, left = unflatten_tensor_state_dict(load_file(folder / "model.safetensors"), metadata)
    assert not left
    from_safetensors.load_state_dict(state, assign=True)
    kernels = set()
    for form, loaded in (("state dict", from_state), ("model", whole), ("safetensors", from_safetensors)):
        for name, weight in expected["weights"].items():
            assert torch.equal(loaded.get_parameter(name).dequantize(), weight), (form, name)
            packed = packed_weight_of(loaded.get_parameter(name))
            assert packed is not None, (form, name)
            assert packed.get_layout().scheme == SCHEMES[name], form
            kernels.add(packed.kernel)
        inputs = loaded[:3](expected["inputs"])
        assert torch.equal(inputs, expected["inputs_of_grouped"]), form
        grouped = packed_weight_of(loaded.get_parameter("3.weight"))
        assert grouped is not None
        magnitude = reference.magnitude_qta8a_qga4w(inputs, *grouped.get_plain())
        # Kernels for 4-bit weights differ in the order of their sums, each by 1e-6 at most.
        difference = (loaded[3](inputs).double() - expected["outputs"].double()).abs()
        assert bool((difference <= 2e-6 * (magnitude + 1)).all()), form
    return kernels


def contents(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The plain tensors of a checkpoint and what is said of them, but for a class that torchao up to 0.17 makes."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        said = {
            name: text.replace("ACLAffineQuantizedTensor", "ACLPackedTensor") for name, text in file.metadata().items()
        }
    return load_file(folder / "model.safetensors"), said


# --- programs of models that torchao quantized ---


@torch.no_grad()
def write_programs(folder: Path) -> None:
    """Exports a model for each of torchao's configurations, with rows that may vary, beside inputs and outputs."""
    torch.manual_seed(0)
    for name, config in PROGRAMS.items():
        model = torch.nn.Linear(96, 130).requires_grad_(False)
        quantize_(model, config())
        rows = ({0: torch.export.Dim("m", min=2, max=64)},)
        program = torch.export.export(model, (torch.randn(5, 96),), dynamic_shapes=rows).run_decompositions({})
        torch.export.save(program, folder / f"{name}.pt2")
        pairs = [(x, model(x)) for x in (torch.randn(m, 96) for m in (2, 5, 33))]
        torch.save(pairs, folder / f"{name}.pairs.pt")


@torch.no_grad()
def read_programs(folder: Path) -> dict[str, str]:
    """Fuses each, checks its results, and returns the kernels that serve its layers here."""
    kernels = {}
    for name in PROGRAMS:
        program = fuse(torch.export.load(folder / f"{name}.pt2"))
        (layer,) = ao_arm.explain(program)
        run = program.module()
        for x, expected in torch.load(folder / f"{name}.pairs.pt", weights_only=True):
            assert float((run(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), (name, x.shape)
        kernels[name] = layer.kernel
    return kernels


if __name__ == "__main__":
    torch.set_num_threads(1)
    for write in (write_checkpoint, write_programs):
        write(Path(sys.argv[1]))
