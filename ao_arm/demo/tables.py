"""Prints the demo's figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .. import text_table
from .encoder import MODEL
from .figures import FP32, MODELS, Figures, KernelUse


def show(figures: Figures) -> None:
    """Prints the figures of the three models, the kernels that serve ours, and what the figures are."""
    print(f"{MODEL}, {figures.scheme}, {figures.activations} activations")
    columns = [_labels(figures), *(_cells(figures, name) for name in MODELS)]
    header = ("", "fp32", "ao_arm", "torchao's own")
    print(*text_table.with_rule(header, list(zip(*columns, strict=True)), right=range(1, len(header))), "", sep="\n")
    print_kernels([("ao_arm", use) for use in figures.kernels])
    print(*_notes(figures), sep="\n")


def print_kernels(uses: Sequence[tuple[str, KernelUse]]) -> None:
    """Prints a table of the kernels that serve the linear layers of models, by the models' names."""
    rows = [(model, use.kernel, use.packing_format, str(use.layers)) for model, use in uses]
    kernels = text_table.with_rule(("model", "kernel", "packing format", "layers"), rows, right=(3,))
    print("kernels of ao_arm's linear layers", *kernels, "", sep="\n")


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
