"""The machine and the software that a process runs on, as figures name them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import torch
import torchao

from . import _ops
from ._version import __version__

EMULATED_CPU = "AO_ARM_EMULATED_CPU"
"""Environment variable that tests/arm64 sets in every emulated process: the name of the CPU model."""

#: Linux on Arm gives the number of a core's design, not its name.
_CPU_PARTS = {
    "0xac3": "Ampere-1",
    "0xac4": "Ampere-1A",
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd84": "Neoverse-V3",
    "0xd8e": "Neoverse-N3",
}


@dataclass(frozen=True)
class System:
    """The machine and the software that figures are measured on.

    Attributes:
        cpu: the model's name.
        features: the CPU features that kernels ask for and this CPU has.
        emulated: the CPU model that tests/arm64 emulates; empty on a real CPU.
        threads: that torch uses.
        ao_arm, torch, torchao: versions.
        build: the compiler of the library, and what is linked into it.
    """

    cpu: str
    features: tuple[str, ...]
    emulated: str
    threads: int
    ao_arm: str
    torch: str
    torchao: str
    build: str

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        machine = f"on emulated AArch64: {self.emulated}" if self.emulated else f"on this machine: {self.cpu}"
        return f"{machine}, {threads}; ao_arm {self.ao_arm}, torch {self.torch}, torchao {self.torchao}"


def current_system() -> System:
    """What this process runs on."""
    library = json.loads(_ops.system_info())
    return System(
        cpu=_CPU_PARTS.get(library["model"], library["model"]),
        features=tuple(library["features"]),
        emulated=os.environ.get(EMULATED_CPU, ""),
        threads=torch.get_num_threads(),
        ao_arm=__version__,
        torch=torch.__version__,
        torchao=torchao.__version__,
        build=library["build"],
    )
