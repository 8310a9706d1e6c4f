"""Writes the table of what graph passes fuse in docs/support.md, from what tests hold: `python fusion_table.py`."""

import sys
from collections.abc import Iterator
from pathlib import Path

from graphs import ACTIVATIONS, OWN_WAY, PT2E, SOURCES, WEIGHTS

sys.path.append(str(Path(__file__).with_name("arm64")))
from support_table import PAGE, replaced

MARKERS = "<!-- fused graphs: begin, written by tests/fusion_table.py -->", "<!-- fused graphs: end -->"
HEADER = ("| source | in the graph | op of `ao_arm` |", "| --- | --- | --- |")


def _op(name: str) -> str:
    return f"`{name.removeprefix('ao_arm::')}`"


def rows() -> Iterator[tuple[str, str, str]]:
    """Source, what stands in the graph, and the op that takes its place."""
    for name, source in SOURCES.items():
        op = _op(source.op) if source.op == source.op_bf16 else f"{_op(source.op)}; bfloat16: {_op(source.op_bf16)}"
        before = source.op_bf16_until_0_17
        yield f"torchao {name}", source.pattern, f"{op}; bfloat16 up to 0.17: {_op(before)}" if before else op
    for name, quantizer in PT2E.items():
        chained = ", with ReLU or clamp and the next layer's quantization" if quantizer.chained else ""
        yield f"PT2E {name}", quantizer.pattern, _op(quantizer.op) + chained
    for activations, (_, of_int8, of_4_bits) in ACTIVATIONS.items():
        for four_bits, op in ((False, of_int8), (True, of_4_bits)):
            weights = dict.fromkeys(name.partition(",")[0] for name, (_, kind) in WEIGHTS.items() if kind == four_bits)
            if op:
                yield f"any tool: activations {activations}", f"dequantized weights, {' or '.join(weights)}", _op(op)
    yield OWN_WAY


def table() -> list[str]:
    """The lines of the table."""
    return [*HEADER, *(f"| {' | '.join(row)} |" for row in rows())]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(), table(), MARKERS))
