"""torch.export and AOTInductor: programs and packages give eager's results, also where there is only the library."""

import io
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torchao.quantization import FqnToConfig, MappingType, quantize_

import ao_arm
from ao_arm import _library
from ao_arm.passes import share_inputs

K, HIDDEN, N = 96, 200, 64
MS = (2, 5, 64, 2048)


def quantized_model() -> torch.nn.Module:
    """A layer with static activations, one with dynamic ones, and one with 4-bit weights."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(K, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, N), torch.nn.Linear(N, 40)]
    model = torch.nn.Sequential(*layers).eval()
    configs = {
        "0": ao_arm.acl_int8_static(None, 0.03, -7, MappingType.ASYMMETRIC),
        "2": ao_arm.acl_int8_dynamic(),
        "3": ao_arm.acl_int4_grouped(32, MappingType.ASYMMETRIC),
    }
    quantize_(model, FqnToConfig(OrderedDict(configs)), filter_fn=None)
    return model


def exported(model: torch.nn.Module, **arguments: Any) -> ExportedProgram:
    """The model as a program for 2 to 4096 rows."""
    rows = ({0: Dim("m", min=2, max=4096)},)
    return torch.export.export(model, (torch.randn(5, K),), dynamic_shapes=rows, **arguments)


def saved(program: ExportedProgram) -> io.BytesIO:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return file


@torch.no_grad()
def assert_same_results(run: Callable[[Tensor], Tensor], model: torch.nn.Module) -> None:
    for m in MS:
        x = torch.randn(m, K)
        assert cases.same_bits(run(x), model(x)), f"{m=}"


@pytest.mark.one_cpu
def test_a_program_saved_and_loaded_gives_the_same_results() -> None:
    model = quantized_model()
    program = exported(model)
    assert_same_results(program.module(), model)
    assert_same_results(torch.export.load(saved(program)).module(), model)


@pytest.mark.x86
@pytest.mark.parametrize("strict", [True, False], ids="strict={}".format)
def test_a_program_holds_one_op_for_each_layer(strict: bool) -> None:
    model = quantized_model()
    program = exported(model, strict=strict)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    # torch.export notes here that it reads tensors inside of tensors; nothing is computed.
    assert [call for call in calls if "access_subclass_inner_tensor" not in str(call)] == [
        torch.ops.ao_arm.linear_int8_static.default,
        torch.ops.aten.relu.default,
        torch.ops.ao_arm.linear_int8_dynamic.default,
        torch.ops.ao_arm.linear_qta8a_qga4w.default,
    ]
    assert_same_results(program.module(), model)
    assert_same_results(program.run_decompositions().module(), model)
    assert_same_results(torch.export.load(saved(program)).module(), model)


@pytest.mark.x86
def test_a_program_is_packed_for_the_cpu_that_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_ARM_KERNEL", "portable/baseline,portable/int4_baseline")
    file = saved(exported(quantized_model()))
    for kernels in cases.KERNEL_PAIRS:
        monkeypatch.setenv("AO_ARM_KERNEL", kernels)
        file.seek(0)
        loaded = torch.export.load(file)
        weights = (ao_arm.affine_quantized.packed_weight_of(loaded.state_dict[f"{i}.weight"]) for i in (0, 3))
        assert ",".join(weight.kernel for weight in weights) == kernels
        assert_same_results(loaded.module(), quantized_model())


def in_a_fresh_process(script: str, *arguments: Path) -> str:
    """Runs Python code and returns what it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def with_inputs_and_results(folder: Path, model: torch.nn.Module) -> Path:
    """A file of pairs of input and expected result."""
    with torch.no_grad():
        pairs = [(x, model(x)) for x in (torch.randn(m, K) for m in MS)]
    torch.save(pairs, folder / "pairs.pt")
    return folder / "pairs.pt"


LOAD_PROGRAM = """
import sys, torch
program, pairs = sys.argv[1:]
assert "ao_arm" not in sys.modules
run = torch.export.load(program).module()
for x, expected in torch.load(pairs):
    assert torch.equal(run(x), expected), x.shape
print("equal")
"""


@pytest.mark.x86
@pytest.mark.slow
def test_a_process_need_not_import_ao_arm_to_load_a_program(tmp_path: Path) -> None:
    """The program itself names what reads its weights, so it is enough that ao_arm is installed."""
    model = quantized_model()
    torch.export.save(exported(model), tmp_path / "program.pt2")
    pairs = with_inputs_and_results(tmp_path, model)
    assert in_a_fresh_process(LOAD_PROGRAM, tmp_path / "program.pt2", pairs) == "equal\n"


class Branches(torch.nn.Module):
    """The model, and beside it two pairs of layers that share its input."""

    def __init__(self) -> None:
        super().__init__()
        self.model = quantized_model()
        self.pairs = torch.nn.ModuleList(torch.nn.Linear(K, 40, bias=at % 2 == 0) for at in range(4)).eval()
        quantize_(self.pairs[:2], ao_arm.acl_int8_dynamic())
        quantize_(self.pairs[2:], ao_arm.acl_int4_grouped(32))

    def forward(self, x: Tensor) -> Tensor:
        """The products of the pairs, added to what the model gives."""
        a, b, c, d = (layer(x) for layer in self.pairs)
        return self.model(x) + a * b + c * d


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model compiled ahead of time, with layers that share their input."""
    path = tmp_path_factory.mktemp("package") / "package.pt2"
    program = share_inputs(exported(Branches()))
    assert [str(node.target).count("_shared") for node in program.graph.nodes].count(1) == 2
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return path


LOAD_PACKAGE = """
import sys, torch
library, package, pairs = sys.argv[1:]
torch.ops.load_library(library)
run = torch._inductor.aoti_load_package(package)
try:
    for x, expected in torch.load(pairs):
        assert torch.equal(run(x), expected), x.shape
    print("equal")
except RuntimeError as error:
    print(error)
assert "ao_arm" not in sys.modules and "torchao" not in sys.modules
"""


@pytest.mark.x86
@pytest.mark.slow
def test_a_package_runs_with_torch_and_the_library_alone(package: Path, tmp_path: Path) -> None:
    pairs = with_inputs_and_results(tmp_path, Branches())
    assert in_a_fresh_process(LOAD_PACKAGE, _library.PATH, package, pairs) == "equal\n"


# --- packed bytes that this CPU cannot use ---

MARK = b"AOARMPW\0"
HEADER_BYTES, CHECKSUM_AT, KERNEL_AT, KERNEL_BYTES = 256, 248, 48, 32


def renamed(header: bytes, kernel: str) -> bytes:
    """The header of packed bytes as it would be if another kernel had packed them, with a checksum that fits."""
    assert header[: len(MARK)] == MARK and len(header) == HEADER_BYTES
    name = kernel.encode().ljust(KERNEL_BYTES, b"\0")
    contents = header[:KERNEL_AT] + name + header[KERNEL_AT + KERNEL_BYTES : CHECKSUM_AT]
    checksum = 0xCBF29CE484222325
    for (word,) in struct.iter_unpack("<Q", contents):
        checksum = (checksum ^ word) * 0x9E3779B97F4A7C15 % 2**64
        checksum ^= checksum >> 32
    return contents + struct.pack("<Q", checksum)


def pretend_packed_by(kernel: str, model: torch.nn.Module) -> None:
    for layer in (model[0], model[2], model[3]):
        packed_bytes = cases.packed_in(layer).packed_weight
        header = renamed(packed_bytes[:HEADER_BYTES].numpy().tobytes(), kernel)
        packed_bytes[:HEADER_BYTES] = torch.frombuffer(bytearray(header), dtype=torch.uint8)


def rename_kernels_in(package: Path, result: Path, kernel: str) -> int:
    """Copies a package, with all packed bytes in it renamed; returns how many there were."""
    found = 0
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(result, "w") as target:
        for entry in source.infolist():
            contents = bytearray(source.read(entry))
            at = contents.find(MARK)
            while at >= 0:
                contents[at : at + HEADER_BYTES] = renamed(bytes(contents[at : at + HEADER_BYTES]), kernel)
                found += 1
                at = contents.find(MARK, at + HEADER_BYTES)
            target.writestr(entry, bytes(contents))
    return found


#: A kernel that other CPUs have, and one that only a newer ao_arm might have.
FOREIGN = {
    next((row.id for row in ao_arm.kernels.list() if row.reasons), ""): "which cannot run here: ",
    "acl/of-the-future": "which this ao_arm does not have",
}
WHAT_TO_DO = "Pack the weight again on this machine"


@pytest.mark.x86
@pytest.mark.parametrize("kernel", FOREIGN)
def test_a_program_with_packed_bytes_of_a_foreign_kernel(kernel: str) -> None:
    model = quantized_model()
    pretend_packed_by(kernel, model)
    program = torch.export.export(model, (torch.randn(5, K),))
    message = f"packed by the kernel {re.escape(kernel)}, {FOREIGN[kernel]}.*{WHAT_TO_DO}"
    with pytest.raises(RuntimeError, match=message):
        program.module()(torch.randn(5, K))
    with pytest.raises(ValueError, match=message):  # it is written in plain form, which must be had first
        saved(program)


@pytest.mark.x86
@pytest.mark.slow
@pytest.mark.parametrize("kernel", FOREIGN)
def test_a_package_with_packed_bytes_of_a_foreign_kernel(kernel: str, package: Path, tmp_path: Path) -> None:
    assert rename_kernels_in(package, tmp_path / "foreign.pt2", kernel) == 7
    pairs = with_inputs_and_results(tmp_path, Branches())
    printed = in_a_fresh_process(LOAD_PACKAGE, _library.PATH, tmp_path / "foreign.pt2", pairs)
    for part in (f"packed by the kernel {kernel}", FOREIGN[kernel], WHAT_TO_DO):
        assert part in printed
