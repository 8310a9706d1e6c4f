"""Prints the figures of the language model's demo."""

from __future__ import annotations

from collections.abc import Iterator

from .. import text_table
from .language_figures import FP32, LanguageFigures, LanguageModelFigures
from .latency import Latency
from .tables import print_kernels


def show(figures: LanguageFigures) -> None:
    """Prints the figures of all models, their answers, the kernels that serve them, and what the figures are."""
    print(figures.model)
    header = ["", "linear MB", "perplexity", "SQNR, dB", "tokens as fp32"]
    if figures.models[FP32].prefill:
        header += ["prefill, tokens/s", "decode, tokens/s"]
    rows = [[name, *_cells(figures, model)] for name, model in figures.models.items()]
    print(*text_table.with_rule(header, rows, right=range(1, len(header))), "", sep="\n")
    print(figures.question)
    answers: dict[str, list[str]] = {}
    for name, model in figures.models.items():
        answers.setdefault(" ".join(model.answer.split()), []).append(name)
    print(*(f"  {text_table.listed(names)}: {answer}" for answer, names in answers.items()), "", sep="\n")
    print_kernels([(name, use) for name, model in figures.models.items() for use in model.kernels])
    print(*_notes(figures), sep="\n")


def _cells(figures: LanguageFigures, model: LanguageModelFigures) -> Iterator[str]:
    """One model's row of the table, after its name."""
    yield f"{model.linear_bytes / 1e6:.1f}"
    yield f"{model.perplexity:.2f}"
    if model.sqnr_to_fp32_db is None:
        yield from "--"
    else:
        yield f"{model.sqnr_to_fp32_db:.1f}"
        yield f"{model.tokens_as_fp32} of {figures.generated_tokens}"
    for latency in (model.prefill, model.decode):
        if latency:
            yield _rate(latency)


def _rate(latency: Latency) -> str:
    """Tokens a second, ± half the interquartile range."""
    rate = 1e3 * latency.tokens / latency.median_ms
    return f"{rate:.0f} ±{rate * latency.spread_ms / latency.median_ms:.0f}"


def _notes(figures: LanguageFigures) -> Iterator[str]:
    for name, model in figures.models.items():
        if model.not_quantized:
            yield f"Linear layers of {name} that were not quantized: {', '.join(model.not_quantized)}."
    yield f"All figures were measured {figures.system}."
    yield (
        f"Perplexity and SQNR are those of the first {figures.text_tokens} tokens of {figures.text}, each predicted "
        f"from those before it; answers are generated greedily, {figures.generated_tokens} tokens long. Searched: for "
        "the inputs of other sentences."
    )
    fp32 = figures.models[FP32]
    if fp32.prefill and fp32.decode:
        yield (
            f"Times are those of the whole model, eager, with a key-value cache: {fp32.prefill.tokens} tokens at "
            f"once, and one at a time after the answer; the median of {fp32.prefill.rounds} and {fp32.decode.rounds} "
            "rounds, ± half the interquartile range."
        )
    elif figures.system.emulated:
        yield "No times: emulated ones would say nothing about an Arm CPU."
