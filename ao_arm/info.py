"""``python -m ao_arm info``: the CPU, the versions and the kernel table, in plain text for bug reports."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator

from . import _library, kernels, support, text_table
from .command_line import positive
from .system import System, current_system

_NO_ACL = (
    "not in this build. AArch64 CPUs without dot product instructions need it for int8 layers: install Arm Compute "
    "Library 24.11 or newer (Debian, Ubuntu: libarm-compute-dev; or set ACL_ROOT_DIR) and build ao_arm again"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``info``."""
    parser.add_argument("--n", type=int, default=768, help="output features of the layer (default: %(default)s)")
    parser.add_argument("--k", type=int, default=768, help="input features of the layer (default: %(default)s)")
    parser.add_argument(
        "--group-size", type=positive, default=0, help="show the kernels for 4-bit weights in groups of this size"
    )
    parser.add_argument(
        "--support", action="store_true", help="show only which kernel serves which scheme, in Markdown"
    )


def run(args: argparse.Namespace) -> int:
    """Prints what this process runs on and the kernel table for a layer, or a line of the support table; returns 0."""
    if args.support:
        print(*support.HEADER, support.line(), sep="\n")
        return 0
    for line in (*_system_lines(current_system()), "", *_kernel_lines(args.n, args.k, args.group_size)):
        print(line)
    return 0


def _system_lines(this: System) -> Iterator[str]:
    emulated = f" (emulated: {this.emulated})" if this.emulated else ""
    compiler, *linked = this.build.split("; ")
    facts = {
        "CPU": this.cpu + emulated,
        "features": ", ".join(this.features) or "none that a kernel asks for",
        "threads": str(this.threads),
        "ao_arm": this.ao_arm,
        "torch": this.torch,
        "torchao": this.torchao,
        "library": str(_library.PATH),
        "compiler": compiler,
        "linked in": ", ".join(linked) or "nothing",
    }
    if "Arm Compute Library" not in this.build and platform.machine() in ("aarch64", "arm64"):
        facts["ACL"] = _NO_ACL
    if kernels.FORCE in os.environ:
        facts[kernels.FORCE] = os.environ[kernels.FORCE]
    width = max(map(len, facts))
    return (f"{name:{width}}  {fact}" for name, fact in facts.items())


def _kernel_lines(n: int, k: int, group_size: int) -> Iterator[str]:
    """The kernel table, each row followed by the reasons why that kernel cannot serve the layer."""
    problem = kernels.Problem(n, k, group_size)
    table = kernels.list(*problem)
    try:
        chosen, complaint = kernels.select(*problem), ""
    except ValueError as error:
        chosen, complaint = "", str(error)
    weight = f"4-bit weight in groups of {group_size}," if group_size else "int8 weight"
    yield f"kernels for a layer with {weight} (n, k) = ({n}, {k}); cost in cycles, averaged over 1, 16 and 128 rows"
    header = ("kernel", "needs", "cost", "")
    rows = [_row(kernel, chosen) for kernel in table]
    lines = text_table.lines([header, *rows], right=(2,))
    for line, reasons in zip(lines, ((), *(kernel.reasons for kernel in table)), strict=True):
        yield line
        yield from (f"    - {reason}" for reason in reasons)
    if complaint:
        yield f"no kernel is chosen: {complaint}"


def _row(kernel: kernels.Kernel, chosen: str) -> tuple[str, str, str, str]:
    verdict = "chosen" if kernel.id == chosen else "rejected" if kernel.reasons else "fits"
    cost = "-" if kernel.cost is None else f"{kernel.cost:,.0f}"
    return kernel.id, ", ".join(kernel.features) or "any CPU", cost, verdict
