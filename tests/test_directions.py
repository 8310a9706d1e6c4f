"""Imports in ao_arm/ and includes in csrc/ run one way: downward in the lists below, and never in a circle."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.x86

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE, SOURCES = CHECKOUT / "ao_arm", CHECKOUT / "csrc"

#: Modules and packages of ao_arm from what imports nothing of ours upward; none imports one of its own line.
FLOORS = (
    "_library _version gradients import_hooks importance layout module_weights nibbles outcomes "
    "command_line progress reference sizes sqnr text_table timing",
    "_torchao quantize observers",
    "_ops config plain",
    "gptq kernels linear system",
    "packing support torch_functions",
    "tensor",
    "tensor_ops",
    "affine_quantized",
    "calibration checkpoint_contents experts stock_weights stored_weights",
    "checkpoint experts_ops layer_checks offloading pretrained ties",
    "handlers passes stock_modules",
    "dequantize_model pack_model qat quantize_model suggestion",
    "coverage",
    "explanation",
    "__init__",
    "demo info",
    "benchmark selftest",
    "__main__",
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}

#: Folders of csrc, and which others each may include. Files of csrc itself are not restricted.
ROOMS = {
    "core": "",
    "rows": "core",
    "kernels": "core rows",
    "layer": "core rows",
    "ops": "core rows layer",
}


def module_of(path: Path) -> str:
    """A module's name in the package: `tensor`, `demo.figures`; `demo` for `demo/__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imported_by(name: str) -> Iterator[str]:
    """The modules of ours that a module imports anywhere in it: above, in a function, or for types alone."""
    package = ["ao_arm", *name.split(".")]
    if MODULES[name].name != "__init__.py" or name == "__init__":
        package = package[:-1]
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            found = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for words in found:
            if words[0] == "ao_arm":
                inner, outer = ".".join(words[1:]), ".".join(words[1:-1])
                yield inner if inner in MODULES else outer if outer in MODULES else "__init__"


IMPORTS = {name: sorted({*imported_by(name)} - {name}) for name in MODULES}


def test_this_test_sees_imports() -> None:
    assert {"tensor", "linear", "passes"} <= {module for found in IMPORTS.values() for module in found}
    assert "_version" in IMPORTS["system"] and "demo.encoder" in IMPORTS["benchmark.model"]


def test_every_module_has_its_floor() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(FLOOR_OF)


def test_modules_import_from_below() -> None:
    for name, imported in IMPORTS.items():
        room, *others = (module.partition(".")[0] for module in (name, *imported))
        upward = [other for other in others if other != room and FLOOR_OF[other] >= FLOOR_OF[room]]
        assert not upward, f"{name} imports {upward}"


def test_modules_of_a_package_import_each_other_one_way() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises an error that names a circle


def test_includes_run_one_way() -> None:
    rooms = {path.name for path in SOURCES.iterdir() if path.is_dir() and any(path.rglob("*.h"))}
    assert rooms <= set(ROOMS), "a folder of csrc without a line in ROOMS"
    for room in rooms:
        for path in (path for kind in ("*.h", "*.cpp") for path in (SOURCES / room).rglob(kind)):
            for included in re.findall(r'^\s*#\s*include "(\w+|\.\.)/', path.read_text(), re.MULTILINE):
                allowed = (room, *ROOMS[room].split())
                assert included in allowed or included not in (*ROOMS, ".."), f"{path} includes {included}/"
