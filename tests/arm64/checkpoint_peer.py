"""Writes or reads the checkpoints of test_checkpoint_matrix.py; runs on any machine.

    checkpoint_peer.py write FOLDER
    checkpoint_peer.py read FOLDER...

Writing makes a quantized model and saves it in every form beside inputs and outputs. Reading prints, as JSON, for each
folder which kernel serves its weights here, after checking that weights and outputs are equal.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import quantize_

import ao_arm
from ao_arm.affine_quantized import packed_weight_of


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(96, 400), torch.nn.ReLU(), torch.nn.Linear(400, 130)).eval()


def write(folder: Path) -> None:
    quantized = model()
    quantize_(quantized, ao_arm.acl_int8_dynamic())
    inputs = torch.randn(9, 96, generator=torch.Generator().manual_seed(1))
    torch.save(quantized.state_dict(), folder / "state.pt")
    torch.save(quantized, folder / "model.pt")
    tensors, metadata = flatten_tensor_state_dict(quantized.state_dict())
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    weights = {name: quantized.get_parameter(name).dequantize() for name in ("0.weight", "2.weight")}
    torch.save({"inputs": inputs, "outputs": quantized(inputs).detach(), "weights": weights}, folder / "expected.pt")


def read(folder: Path) -> list[str]:
    expected = torch.load(folder / "expected.pt", weights_only=True)
    from_state = model()
    quantize_(from_state, ao_arm.acl_int8_dynamic())
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
            kernels.add(packed.kernel)
        with torch.no_grad():
            assert torch.equal(loaded(expected["inputs"]), expected["outputs"]), form
    return sorted(kernels)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        print(json.dumps({folder: read(Path(folder)) for folder in sys.argv[2:]}))
