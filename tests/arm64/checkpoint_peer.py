"""Writes and reads the checkpoints of test_checkpoint_matrix.py; runs on any machine.

    checkpoint_peer.py OWN_FOLDER FOLDER...

It makes a quantized model, saves it in every form beside inputs and outputs in its own folder, and prints `written`.
When it gets a line, as soon as its peers have written too, it reads all the other folders and prints, as JSON, for each
which kernels serve its weights here, after checking that weights and outputs are equal.
"""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import FqnToConfig, MappingType, quantize_

import ao_arm
from ao_arm import packed_weight_of, reference
from ao_arm.affine_quantized import as_weight


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(96, 400), torch.nn.ReLU(), torch.nn.Linear(400, 64), torch.nn.Linear(64, 130)]
    return torch.nn.Sequential(*layers).eval()


def quantized_model(factor: float = 1.0) -> torch.nn.Sequential:
    """A layer with dynamic activations, one with static ones, and one with 4-bit weights; of multiples of the model's
    parameters."""
    made = model()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(factor)
    configs = {
        "0": ao_arm.acl_int8_dynamic(),
        "2": ao_arm.acl_int8_static(None, 0.02, 9, MappingType.ASYMMETRIC, torch.uint8),
        "3": ao_arm.acl_int4_grouped(32, MappingType.ASYMMETRIC),
    }
    quantize_(made, FqnToConfig(OrderedDict(configs)), filter_fn=None)
    return made


SCHEMES = {"0.weight": "int8_dynamic", "2.weight": "int8_static", "3.weight": "int4_grouped"}


def with_minus_128(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    """An int8 weight, some of whose values become -128, which not every kernel multiplies."""
    packed = packed_weight_of(weight)
    assert packed is not None
    qdata = packed.qdata.clone()
    qdata[::3, ::2] = -128
    made = ao_arm.ACLPackedTensor.from_plain(qdata, packed.scale, None, packed.get_layout(), packed.dtype)
    return torch.nn.Parameter(as_weight(made), requires_grad=False)


def write(folder: Path) -> None:
    quantized = quantized_model()
    quantized[0].weight = with_minus_128(quantized.get_parameter("0.weight"))
    inputs = torch.randn(9, 96, generator=torch.Generator().manual_seed(1))
    torch.save(quantized.state_dict(), folder / "state.pt")
    torch.save(quantized, folder / "model.pt")
    tensors, metadata = flatten_tensor_state_dict(quantized.state_dict())
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    weights = {name: quantized.get_parameter(name).dequantize() for name in SCHEMES}
    with torch.no_grad():
        between = quantized[:3](inputs)
        outputs = quantized[3](between)
    expected = {"inputs": inputs, "inputs_of_grouped": between, "outputs": outputs, "weights": weights}
    torch.save(expected, folder / "expected.pt")


def read(folder: Path) -> list[str]:
    expected = torch.load(folder / "expected.pt", weights_only=True)
    from_state = quantized_model(factor=-3.0)
    from_state.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    whole = torch.load(folder / "model.pt", weights_only=False)
    from_safetensors = model()
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
        with torch.no_grad():
            inputs = loaded[:3](expected["inputs"])
            assert torch.equal(inputs, expected["inputs_of_grouped"]), form
            grouped = packed_weight_of(loaded.get_parameter("3.weight"))
            assert grouped is not None
            magnitude = reference.magnitude_qta8a_qga4w(inputs, *grouped.get_plain())
            # Kernels for 4-bit weights differ in the order of their sums, each by 1e-6 at most.
            difference = (loaded[3](inputs).double() - expected["outputs"].double()).abs()
            assert bool((difference <= 2e-6 * (magnitude + 1)).all()), form
    return sorted(kernels)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]))
    print("written", flush=True)
    if sys.stdin.readline():
        print(json.dumps({folder: read(Path(folder)) for folder in sys.argv[2:]}))
