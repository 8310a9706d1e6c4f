"""``python -m ao_arm info``: the CPU, the versions and the kernel table, in plain text for bug reports or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

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
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--support", action="store_true", help="show only which kernel serves which scheme, in Markdown")
    how.add_argument("--json", action="store_true", help="print all of it as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what this process runs on and the kernel table for a layer, or a line of the support table.

    Returns 1 if no kernel is chosen for the layer: none fits, or the forced one does not.
    """
    if args.support:
        print(*support.HEADER, support.line(), sep="\n")
        return 0
    judged = _judge(args.n, args.k, args.group_size)
    if args.json:
        print(json.dumps(_as_json(current_system(), judged), indent=2))
    else:
        print(*system_lines(current_system()), "", *_kernel_lines(judged), sep="\n")
    return int(judged.chosen is None)


@dataclass(frozen=True)
class Judged:
    """The kernel table for a layer.

    Attributes:
        layer: what the kernels are judged for.
        table: the kernels.
        chosen: the id of the one that is taken, or None.
        complaint: why none is; "" if one is.
    """

    layer: kernels.Problem
    table: tuple[kernels.Kernel, ...]
    chosen: str | None
    complaint: str = ""

    def verdict(self, kernel: kernels.Kernel) -> str:
        """One word on a kernel of the table."""
        return "chosen" if kernel.id == self.chosen else "rejected" if kernel.reasons else "fits"


def _judge(n: int, k: int, group_size: int) -> Judged:
    layer = kernels.Problem(n, k, group_size)
    table = kernels.list(*layer)
    try:
        return Judged(layer, table, kernels.select(*layer))
    except ValueError as error:
        return Judged(layer, table, None, str(error))


def _as_json(this: System, judged: Judged) -> dict[str, Any]:
    """What ``--json`` prints; docs/installation.md states the keys."""
    n, k, group_size = judged.layer[:3]
    return {
        **asdict(this),
        "library": str(_library.PATH),
        "forced": os.environ.get(kernels.FORCE, ""),
        "layer": {"n": n, "k": k, "group_size": group_size},
        "chosen": judged.chosen,
        "complaint": judged.complaint,
        "kernels": [{**asdict(kernel), "verdict": judged.verdict(kernel)} for kernel in judged.table],
    }


def system_lines(this: System) -> Iterator[str]:
    """What a process runs on, for bug reports."""
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


def _kernel_lines(judged: Judged) -> Iterator[str]:
    """The kernel table, each row followed by the reasons why that kernel cannot serve the layer."""
    n, k, group_size = judged.layer[:3]
    weight = f"4-bit weight in groups of {group_size}," if group_size else "int8 weight"
    yield f"kernels for a layer with {weight} (n, k) = ({n}, {k}); cost in cycles, averaged over 1, 16 and 128 rows"
    header = ("kernel", "needs", "cost", "")
    rows = [_row(kernel, judged.verdict(kernel)) for kernel in judged.table]
    lines = text_table.lines([header, *rows], right=(2,))
    for line, reasons in zip(lines, ((), *(kernel.reasons for kernel in judged.table)), strict=True):
        yield line
        yield from (f"    - {reason}" for reason in reasons)
    if judged.complaint:
        yield f"no kernel is chosen: {judged.complaint}"


def _row(kernel: kernels.Kernel, verdict: str) -> tuple[str, str, str, str]:
    cost = "-" if kernel.cost is None else f"{kernel.cost:,.0f}"
    return kernel.id, ", ".join(kernel.features) or "any CPU", cost, verdict
