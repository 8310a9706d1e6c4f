"""Prints the demo's figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .encoder import MODEL
from .figures import FP32, MODELS, Figures, KernelUse

if TYPE_CHECKING:
    from rich.table import Table


def show(figures: Figures) -> None:
    """Prints the figures of the three models, the kernels that serve ours, and what the figures are."""
    print_all(_model_table(figures), kernel_table([("ao_arm", use) for use in figures.kernels]), *_notes(figures))


def print_all(*items: Table | str) -> None:
    """Prints tables and, not wrapped, notes."""
    from rich.console import Console

    console = Console()
    for item in items:
        if isinstance(item, str):
            console.print(item, highlight=False, markup=False, soft_wrap=True)
        else:
            console.print(item)


def _model_table(figures: Figures) -> Table:
    from rich.table import Table

    table = Table(title=f"{MODEL}, {figures.scheme}, {figures.activations} activations")
    table.add_column("")
    for title in ("fp32", "ao_arm", "torchao's own"):
        table.add_column(title, justify="right")
    for label, *cells in zip(_labels(figures), *(_cells(figures, name) for name in MODELS), strict=True):
        table.add_row(label, *cells)
    return table


def _labels(figures: Figures) -> Iterator[str]:
    yield "SQNR to fp32, dB"
    yield "cosine to fp32, mean"
    yield "cosine to fp32, least"
    yield "nearest neighbour as in fp32"
    yield "nearest neighbour on subject"
    yield "model size, MB"
    yield "linear weights alone, MB"
    for latency in figures.models[FP32].latencies:
        yield f"latency, {latency.batch} x {latency.tokens} tokens, ms"


def _cells(figures: Figures, name: str) -> Iterator[str]:
    """One model's column of the table, in the order of ``_labels``."""
    model = figures.models[name]
    if accuracy := model.accuracy:
        yield f"{accuracy.sqnr_db:.1f}"
        yield f"{accuracy.mean_cosine:.4f}"
        yield f"{accuracy.least_cosine:.4f}"
        yield f"{accuracy.same_neighbour} of {figures.sentences}"
    else:
        yield from "----"
    yield f"{model.same_subject} of {figures.sentences}"
    yield f"{model.model_bytes / 1e6:.1f}"
    yield f"{model.linear_bytes / 1e6:.1f}"
    for latency in model.latencies:
        yield f"{latency.median_ms:.2f} ±{latency.spread_ms:.2f}"


def kernel_table(uses: Sequence[tuple[str, KernelUse]]) -> Table:
    """The kernels that serve the linear layers of models, each with its model's name."""
    from rich.table import Table

    table = Table(title="kernels of ao_arm's linear layers")
    table.add_column("model")
    table.add_column("kernel")
    table.add_column("packing format")
    table.add_column("layers", justify="right")
    for model, use in uses:
        table.add_row(model, use.kernel, use.packing_format, str(use.layers))
    return table


def _notes(figures: Figures) -> Iterator[str]:
    yield f"Linear layers that were not quantized: {', '.join(figures.not_quantized) or 'none'}."
    yield f"All figures were measured {figures.system}."
    yield f"Accuracy is that of the embeddings of {figures.sentences} sentences."
    yield "Size counts the bytes of all parameters, packed ones included; the embedding tables stay fp32."
    rounds = [str(latency.rounds) for latency in figures.models[FP32].latencies]
    if rounds:
        yield (
            "Latency is that of the whole encoder, eager, for a batch of sentences x tokens, without the tokenizer: "
            f"the median of {' and '.join(rounds)} rounds, ± half the interquartile range."
        )
    elif figures.system.emulated:
        yield "No latencies: emulated ones would say nothing about an Arm CPU."
