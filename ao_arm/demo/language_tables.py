"""Prints the figures of the language model's demo."""

from __future__ import annotations

from collections.abc import Iterator

from .language_figures import FP32, LanguageFigures, LanguageModelFigures
from .tables import print_all

_TITLES = {FP32: FP32, "int8": "int8 dynamic", "int4": "int4 groups", "mixed": "mixed"}


def show(figures: LanguageFigures) -> None:
    """Prints the figures of all models, the kernels that serve them, and what the figures are."""
    print(figures.model)
    columns = [_labels(figures), *(_cells(figures, model) for model in figures.models.values())]
    uses = [(_TITLES[name], use) for name, model in figures.models.items() for use in model.kernels]
    print_all(("", *(_TITLES[name] for name in figures.models)), columns, uses)
    print(*_notes(figures), sep="\n")


def _labels(figures: LanguageFigures) -> Iterator[str]:
    yield "linear weights, MB"
    yield "SQNR to its dequantized weights, dB"
    yield "SQNR to fp32, dB"
    yield "first tokens as dequantized"
    yield "first tokens as fp32"
    if figures.models[FP32].prefill:
        yield f"prefill of {figures.prompt_tokens} tokens, ms"
        yield "prefill, tokens/s"
        yield "decode of a token, ms"
        yield "decode, tokens/s"


def _cells(figures: LanguageFigures, model: LanguageModelFigures) -> Iterator[str]:
    """One model's column of the table, in the order of ``_labels``."""
    yield f"{model.linear_bytes / 1e6:.1f}"
    if agreement := model.agreement:
        yield f"{agreement.sqnr_to_dequantized_db:.1f}"
        yield f"{agreement.sqnr_to_fp32_db:.1f}"
        yield f"{agreement.tokens_as_dequantized} of {figures.generated_tokens}"
        yield f"{agreement.tokens_as_fp32} of {figures.generated_tokens}"
    else:
        yield from "----"
    for latency in (model.prefill, model.decode):
        if latency:
            yield f"{latency.median_ms:.2f} ±{latency.spread_ms:.2f}"
            yield f"{1e3 * latency.tokens / latency.median_ms:.0f}"


def _notes(figures: LanguageFigures) -> Iterator[str]:
    yield "mixed: int4 groups in the MLPs, int8 dynamic in attention and the head, by FqnToConfig."
    for name, model in figures.models.items():
        if name != FP32 and model.not_quantized:
            yield f"Linear layers of {name} that were not quantized: {', '.join(model.not_quantized)}."
    yield f"All figures were measured {figures.system}."
    yield (
        f"Logits are those of a prompt of {figures.prompt_tokens} random tokens; {figures.generated_tokens} tokens are "
        "then generated greedily. Dequantized: the same quantized weights as floats, activations not quantized."
    )
    fp32 = figures.models[FP32]
    if fp32.prefill and fp32.decode:
        yield (
            "Times are those of the whole model, eager, with a key-value cache, without a tokenizer: the median of "
            f"{fp32.prefill.rounds} and {fp32.decode.rounds} rounds, ± half the interquartile range. Decoding follows "
            f"{figures.prompt_tokens + figures.generated_tokens - 1} tokens."
        )
    elif figures.system.emulated:
        yield "No times: emulated ones would say nothing about an Arm CPU."
