"""Modelled figures: the cores and the candidates that they are about, what they are not, and files of them."""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

CAVEAT = """\
Modelled, not measured: how often QEMU ran each block of code x what llvm-mca says the block costs on the core. Caches
always hit, branches are always predicted. Compare figures of one run, which repeat within a percent. They are no times,
and too low where a call waits for memory, as one row against a large weight does; --caches tells for how much of it."""
THREADS_CAVEAT = """\
Several threads: what each of them ran itself, less the functions of libgomp and OpenBLAS in which they only wait. Left
out are waking threads up, barriers and all other waiting, and that threads share caches and memory bandwidth. A call
takes longer than its busiest thread's cycles. A thread that woke up and found nothing to do is none that worked."""


@dataclass(frozen=True)
class Target:
    """A core to model, and what is emulated for it."""

    model: str  # as QEMU names it
    machine_cpu: str  # the emulated machine's CPU model with the same instructions
    products: int  # of int8 numbers, multiplied and added up in a cycle
    second_level: int  # bytes of its cache; there are cores with half of it

    @property
    def caches(self) -> tuple[int, int, int, int]:
        """Bytes and ways of the first level of data caches, and of the second."""
        return 64 << 10, 4, self.second_level, 8


TARGETS = {
    "neoverse-v1": Target("neoverse-v1", "neoverse-v1", 128, 1 << 20),
    "neoverse-n1": Target("neoverse-n1", "neoverse-n1", 32, 1 << 20),
    # QEMU does not have it; neoverse-n2 has the same instructions and the same length of vectors.
    "neoverse-v2": Target("neoverse-n2", "max", 128, 2 << 20),
}

CANDIDATES = {
    "fp32": "fp32 F.linear",
    "torch-per-tensor": "torch quantized.linear_dynamic, per tensor (direct ACL)",
    "ours": "ao_arm, per token x per channel",
    "ours-symmetric": "ao_arm, symmetric activations",
    "ours-bf16": "ao_arm, bfloat16 in and out",
    "ours-acl": "ao_arm on Arm Compute Library's kernels",
    "kleidiai-int8": "KleidiAI alone, per token x per channel",
    "torch-static-s8": "torch quantized.linear, s8 to s8, per tensor (direct ACL)",
    "torch-static-u8": "torch quantized.linear, u8 to u8, per tensor (direct ACL)",
    "torch-static-u8-per-channel": "torch quantized.linear, u8 to u8, per channel (oneDNN)",
    "static-s8": "ao_arm static, s8 to s8, per channel",
    "static-u8": "ao_arm static, u8 to u8, per channel",
    "static-float": "ao_arm static s8, floats to floats",
    "int4-g32": "ao_arm, 4-bit weights in groups of 32, op alone",
    "int4-g128": "ao_arm, 4-bit weights in groups of 128, op alone",
    "int4-g32-kleidiai": "ao_arm, 4-bit weights in groups of 32, through KleidiAI",
    "torch-int4-g32": "torch _dyn_quant_matmul_4bit, groups of 32",
    "torch-int4-g128": "torch _dyn_quant_matmul_4bit, groups of 128",
    "torchao-int8": "torchao int8 dynamic, per token x per channel, eager",
    "torchao-int8-packed": "the same after ao_arm.pack_",
    "torchao-int8-fused": "the same, exported and fused by ao_arm",
    "pt2e": "PT2E static s8 for Arm, per tensor, compiled with freezing",
    "pt2e-fused": "the same, compiled with backend ao_arm",
    "onnxruntime-int8": "ONNX Runtime quantize_dynamic, per tensor x per channel",
    "onnxruntime-int4-g32": "ONNX Runtime MatMulNBits, groups of 32",
    "onnxruntime-int4-g128": "ONNX Runtime MatMulNBits, groups of 128",
    "executorch-int8": "ExecuTorch XNNPACK, per token x per channel",
    "executorch-int4-g32": "ExecuTorch XNNPACK, 4 bits in groups of 32",
    "executorch-int4-g128": "ExecuTorch XNNPACK, 4 bits in groups of 128",
    "litert-int8": "LiteRT dynamic, per token x per channel",
    "litert-int4-g32": "LiteRT dynamic, 4 bits in groups of 32",
    "three": "ao_arm, per token x per channel: ops of three layers with the same input",
    "three-shared": "the three int8 layers as one op",
    "three-int4-g32": "ao_arm, 4-bit weights in groups of 32: ops of three layers with the same input",
    "three-int4-g32-shared": "the three 4-bit layers as one op",
}
# What other tools than torch's make and run: see cycles_runtimes.py.
RUNTIMES = frozenset(name for name in CANDIDATES if name.startswith(("onnxruntime-", "executorch-", "litert-")))
LIMIT = "limit of int8 arithmetic"
# Names for several candidates; `all` are those that need nothing else installed. torch's static layers per channel take
# many times the cycles of all others together: they are in `all` only. What torchao quantized comes close to them.
GROUPS = {
    "all": tuple(name for name in CANDIDATES if name not in RUNTIMES),
    "int8": ("fp32", "torch-per-tensor", "ours"),
    "libraries": ("torch-per-tensor", "ours-acl", "kleidiai-int8", "ours"),
    "static": ("torch-static-s8", "torch-static-u8", "static-s8", "static-u8"),
    "int4": ("torch-int4-g32", "torch-int4-g128", "int4-g32", "int4-g128"),
    "shared": ("three", "three-shared", "three-int4-g32", "three-int4-g32-shared"),
    "runtimes": tuple(name for name in CANDIDATES if name in RUNTIMES),
    "stock": ("fp32", "torchao-int8", "torchao-int8-packed", "torchao-int8-fused", "pt2e", "pt2e-fused"),
}
# What those of ao_arm are to be faster than.
PEERS = {
    "ours": "torch-per-tensor",
    "static-s8": "torch-static-s8",
    "static-u8": "torch-static-u8",
    "int4-g32": "torch-int4-g32",
    "int4-g128": "torch-int4-g128",
    "torchao-int8-packed": "torchao-int8",
    "torchao-int8-fused": "torchao-int8",
    "pt2e-fused": "pt2e",
    "three-shared": "three",
    "three-int4-g32-shared": "three-int4-g32",
}


@dataclass(frozen=True)
class Row:
    """What one region is modelled to take with a number of torch's threads."""

    label: str
    threads: int
    instructions: int  # of all threads
    cycles: int  # of all threads
    busiest: int  # cycles of the busiest thread
    working: int  # threads that had work to do
    regions: int  # OpenMP's parallel regions that the calling thread opened
    functions: tuple[tuple[str, float], ...] = ()  # the busiest thread's costliest, with their shares of its cycles


def cell(row: Row) -> tuple[str, str]:
    """The candidate and the shape of a row whose label is `CANDIDATE MxKxN`."""
    candidate, shape = row.label.split()
    return candidate, shape


def read(files: Sequence[Path]) -> dict[str, list[Row]]:
    """The rows of each core in files that `--json` wrote; of the same one in several files the last counts.

    Raises:
        ValueError: if a file holds anything else, as what `--caches` found.
    """
    names = [field.name for field in fields(Row) if field.name != "functions"]
    found: dict[str, dict[tuple[str, int], Row]] = {}
    for file in files:
        try:
            figures = json.loads(file.read_text())
            rows = [Row(**{name: row[name] for name in names}) for row in figures["rows"]]
            known = figures["cpu"] in TARGETS and all(cell(row)[0] in CANDIDATES for row in rows)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is no file that --json wrote without --caches: {error!r}") from None
        if not known:
            raise ValueError(f"{file} names a core or candidates that are not known here")
        found.setdefault(figures["cpu"], {}).update({(row.label, row.threads): row for row in rows})
    return {cpu: list(rows.values()) for cpu, rows in found.items()}


def write(file: Path, cpu: str, rows: Sequence[Row]) -> None:
    """Write a core's rows to a file, for `read`."""
    write_figures(file, cpu, caveat(cpu, rows), [asdict(row) for row in rows])


def write_figures(file: Path, cpu: str, what: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write what was modelled for a core, and what such figures are."""
    file.write_text(json.dumps({"cpu": cpu, "what": what, "rows": rows}, indent=1) + "\n")


def among(
    rows: Sequence[Row],
    candidates: Collection[str] | None,
    shapes: Collection[str] | None,
    threads: Collection[int] | None,
) -> list[Row]:
    """The rows of these candidates, shapes and numbers of threads, where None stands for all."""
    cells = ((row, cell(row)) for row in rows)
    return [
        row
        for row, (candidate, shape) in cells
        if (candidates is None or candidate in candidates)
        and (shapes is None or shape in shapes)
        and (threads is None or row.threads in threads)
    ]


def limit(cpu: str, shape: str, threads: int = 1) -> float:
    """The cycles that the integer multiplications alone take, at best, for `MxKxN`."""
    return math.prod(map(int, shape.split("x"))) / TARGETS[cpu].products / threads


def threaded(rows: Sequence[Row]) -> bool:
    """Whether the rows are about anything but one thread."""
    return any(row.threads != 1 for row in rows)


def caveat(cpu: str, rows: Sequence[Row]) -> str:
    """What the figures are, and what they are not."""
    emulated = TARGETS[cpu].model
    parts = [CAVEAT]
    if threaded(rows):
        parts.append(THREADS_CAVEAT)
    if emulated != cpu:
        parts.append(f"QEMU has no {cpu}: libraries chose their kernels for {emulated}.")
    return "\n".join(parts)
