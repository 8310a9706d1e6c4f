"""Writes or reads the programs of test_programs_from_x86.py; runs on any machine.

    program_peer.py write FOLDER
    program_peer.py read FOLDER

Writing exports models that torchao quantized. Reading fuses each, checks its results, and prints, as JSON, the kernels
that serve its layers here.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    PerGroup,
    quantize_,
)

import ao_arm
from ao_arm.passes import fuse

_INT4: Any = getattr(torch, "int4")  # noqa: B009 - torch's types lack it
CONFIGS: dict[str, Callable[[], Any]] = {
    # On x86 with VNNI its graph has uint8 activations, of which 128 times the sums of weights are taken off.
    "int8": lambda: Int8DynamicActivationInt8WeightConfig(version=2),
    "int4": lambda: Int8DynamicActivationIntxWeightConfig(weight_dtype=_INT4, weight_granularity=PerGroup(32)),
}


@torch.no_grad()
def write(folder: Path) -> None:
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        model = torch.nn.Linear(96, 130).requires_grad_(False)
        quantize_(model, config())
        rows = ({0: torch.export.Dim("m", min=2, max=64)},)
        program = torch.export.export(model, (torch.randn(5, 96),), dynamic_shapes=rows).run_decompositions({})
        torch.export.save(program, folder / f"{name}.pt2")
        pairs = [(x, model(x)) for x in (torch.randn(m, 96) for m in (2, 5, 33))]
        torch.save(pairs, folder / f"{name}.pairs.pt")


@torch.no_grad()
def read(folder: Path) -> dict[str, str]:
    kernels = {}
    for name in CONFIGS:
        program = fuse(torch.export.load(folder / f"{name}.pt2"))
        (layer,) = ao_arm.explain(program)
        run = program.module()
        for x, expected in torch.load(folder / f"{name}.pairs.pt", weights_only=True):
            assert float((run(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), (name, x.shape)
        kernels[name] = layer.kernel
    return kernels


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        print(json.dumps(read(Path(sys.argv[2]))))
