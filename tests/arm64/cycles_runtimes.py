"""Other runtimes among the candidates of cycles.py: this machine makes their models, the emulated one runs them.

Their tools are x86's, from ao_arm's extras; their runtimes are wheels for AArch64.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from cache import Report, piece
from commands import Unavailable
from wheels import RUNTIME_PINS, unpack_wheels

from ao_arm.benchmark.candidates import CANDIDATES, OTHER_RUNTIMES
from ao_arm.benchmark.runtime_layer import RuntimeLayer, silenced

#: The layers and group sizes of cycles.py's candidates, and the row of the benchmark's table that is the same.
RUNTIMES: dict[str, tuple[type[RuntimeLayer], int, str]] = {
    f"{runtime}-int4-g{size}" if size else f"{runtime}-int8": (
        layer,
        size,
        f"{runtime} int4 g{size}" if size else f"{runtime} int8 dynamic",
    )
    for runtime, layer, _, group_sizes, _ in OTHER_RUNTIMES
    for size in (0, *group_sizes)
}


def obstacles(candidates: Collection[str]) -> dict[str, str]:
    """Of those that are runtimes, why models cannot be made for them on this machine."""
    rows = {row.name: row for row in CANDIDATES}
    found = {name: rows[RUNTIMES[name][2]].obstacle() for name in candidates if name in RUNTIMES}
    return {name: obstacle for name, obstacle in found.items() if obstacle}


def site_packages(report: Report) -> Path:
    """The folder of the runtimes' packages for AArch64."""

    def fill(folder: Path) -> None:
        report(f"arm64: downloading {len(RUNTIME_PINS)} Python packages of other runtimes")
        unpack_wheels(folder, RUNTIME_PINS)

    return piece("runtimes", {"python": RUNTIME_PINS}, fill, report, megabytes=400)


def write_models(folder: Path, candidates: Collection[str], shapes: Sequence[str], report: Report) -> None:
    """Write for the guest each layer's weight and bias, and the model that each runtime's tools make of them.

    Raises:
        Unavailable: if such tools are not installed.
    """
    if missing := obstacles(candidates):
        raise Unavailable("; ".join(f"{name}: {obstacle}" for name, obstacle in missing.items()))
    rows = defaultdict(list)
    for m, k, n in (map(int, shape.split("x")) for shape in shapes):
        rows[k, n].append(m)
    for (k, n), ms in rows.items():
        torch.manual_seed(0)
        linear = torch.nn.Linear(k, n).requires_grad_(False)
        torch.nn.init.normal_(linear.weight, std=k**-0.5)
        torch.nn.init.normal_(linear.bias)
        if any(m * k < n for m in ms):  # as the guest does where torch's static layers would crash
            linear.bias.zero_()
        torch.save((linear.weight.data, linear.bias.data), folder / f"{k}x{n}.pt")
        for name in candidates:
            if name in RUNTIMES:
                report(f"arm64: making {name}'s model of {k} -> {n}")
                layer, group_size, _ = RUNTIMES[name]
                with silenced():
                    model = layer.serialized(linear, group_size)
                (folder / f"{k}x{n}.{name}").write_bytes(model)
