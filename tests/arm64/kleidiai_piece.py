"""KleidiAI's int8 layer as a library for the emulated machine; cycles_guest.py calls it."""

import hashlib
from pathlib import Path

from cache import Report, piece
from commands import call
from machine import Machine

SOURCE = Path(__file__).with_name("kleidiai_int8.c")
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden")
# libtorch exports its own copy of KleidiAI, of another version.
LINKED_ALONE = ("-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic", "-Wl,-z,defs")


def kleidiai_int8(machine: Machine, report: Report) -> Path:
    """The library, linked with the KleidiAI of the emulated machine's root."""
    sdk = machine.root / "sdk"

    def fill(folder: Path) -> None:
        report("arm64: building a layer of KleidiAI's")
        command = (machine.tools() / "gcc", *FLAGS, f"-I{sdk / 'include'}", "-o", folder / "kleidiai_int8.so", SOURCE)
        call((*command, *LINKED_ALONE, sdk / "lib/libkleidiai.a", "-lm"))

    asked = {
        "compiler": machine.compiler.name,
        "root": machine.root.name,
        "flags": (*FLAGS, *LINKED_ALONE),
        "source": hashlib.sha256(SOURCE.read_bytes()).hexdigest(),
    }
    return piece("kleidiai-int8", asked, fill, report) / "kleidiai_int8.so"
