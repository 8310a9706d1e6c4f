"""All figures of the language model's demo, and how they are measured."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig, quantize_

from ..config import acl_int4_grouped, acl_int8_dynamic
from ..sqnr import sqnr_db
from ..system import System, current_system
from .errors import DemoError
from .figures import KernelUse, kernel_uses, linear_bytes
from .language_model import (
    Size,
    continue_prompt,
    decode_again,
    dequantized,
    make_model,
    make_prompt,
    read_prompt,
)
from .latency import Latency, time_calls
from .schemes import GROUP_SIZE, quantized

PROMPT_TOKENS = 128
GENERATED_TOKENS = 32
#: A quantized model with a smaller SQNR to its own dequantized weights, or that goes another way earlier, is broken.
LEAST_SQNR_DB = 15.0
LEAST_SAME_TOKENS = 8

FP32 = "fp32"


def _by_name(configs: Sequence[tuple[str, AOBaseConfig]]) -> Callable[[torch.nn.Module], None]:
    return lambda model: quantize_(model, FqnToConfig(OrderedDict(configs)), filter_fn=None)


#: How each model is quantized, by its name.
QUANTIZED: dict[str, Callable[[torch.nn.Module], None]] = {
    "int8": lambda model: quantize_(model, acl_int8_dynamic()),
    "int4": lambda model: quantize_(model, acl_int4_grouped(GROUP_SIZE)),
    "mixed": _by_name(
        [
            (r"re:.*\.mlp\..*_proj", acl_int4_grouped(GROUP_SIZE)),
            (r"re:.*\.self_attn\..*_proj", acl_int8_dynamic()),
            ("lm_head", acl_int8_dynamic()),
        ]
    ),
}


@dataclass(frozen=True)
class Agreement:
    """How a quantized model compares: SQNR of the prompt's logits, and how many first generated tokens are the same.

    The dequantized model has the same quantized weights as floats, and does not quantize activations.
    """

    sqnr_to_dequantized_db: float
    sqnr_to_fp32_db: float
    tokens_as_dequantized: int
    tokens_as_fp32: int


@dataclass(frozen=True)
class LanguageModelFigures:
    """What was found out about one model; fp32 has no agreement. Latencies are None without timing."""

    agreement: Agreement | None
    linear_bytes: int
    prefill: Latency | None
    decode: Latency | None
    kernels: tuple[KernelUse, ...]
    not_quantized: tuple[str, ...]


@dataclass(frozen=True)
class LanguageFigures:
    """Everything that the demo shows."""

    system: System
    model: str
    prompt_tokens: int
    generated_tokens: int
    models: dict[str, LanguageModelFigures]


def steps(timing: bool) -> int:
    """How many steps ``measure_size`` reports."""
    return 1 + len(QUANTIZED) + (2 if timing else 0)


def measure_size(size: Size, timing: bool, report: Callable[[str], None]) -> LanguageFigures:
    """Makes, quantizes, compares and times; ``report`` is told each step before it is taken."""
    report(f"{FP32}: {GENERATED_TOKENS} tokens after a prompt of {PROMPT_TOKENS}")
    prompt = make_prompt(size, PROMPT_TOKENS)
    models = {FP32: make_model(size)}
    caches: dict[str, Any] = {}
    expected, caches[FP32], expected_tokens = _generate(models[FP32], prompt)
    agreements: dict[str, Agreement] = {}
    for name, quantize in QUANTIZED.items():
        report(f"{name}: the same")
        models[name] = quantized(name, models[FP32], quantize)
        logits, caches[name], tokens = _generate(models[name], prompt)
        float_logits, _, float_tokens = _generate(dequantized(models[name]), prompt)
        agreements[name] = Agreement(
            sqnr_to_dequantized_db=sqnr_db(float_logits, logits),
            sqnr_to_fp32_db=sqnr_db(expected, logits),
            tokens_as_dequantized=same_first(tokens, float_tokens),
            tokens_as_fp32=same_first(tokens, expected_tokens),
        )
        check(name, agreements[name])
    prefill, decode = ({}, {}) if not timing else _time(models, caches, prompt, report)
    figures = {}
    for name, model in models.items():
        uses, not_quantized = kernel_uses(model)
        figures[name] = LanguageModelFigures(
            agreements.get(name), linear_bytes(model), prefill.get(name), decode.get(name), uses, not_quantized
        )
    return LanguageFigures(current_system(), str(size), PROMPT_TOKENS, GENERATED_TOKENS, figures)


def check(name: str, agreement: Agreement) -> None:
    """Raises ``DemoError`` if a model computes something else than its weights say: timing would mean nothing."""
    sqnr, same = agreement.sqnr_to_dequantized_db, agreement.tokens_as_dequantized
    # Written so that NaN fails.
    if not (sqnr >= LEAST_SQNR_DB and same >= LEAST_SAME_TOKENS):
        raise DemoError(
            f"the logits of {name} are wrong: SQNR to its dequantized weights {sqnr:.1f} dB, which must "
            f"be {LEAST_SQNR_DB} or more, and {same} first tokens the same, which must be {LEAST_SAME_TOKENS} or more; "
            "so nothing is timed. Please report this with the output of python -m ao_arm info."
        )


def same_first(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens are the same up to the first that differs."""
    pairs = zip(tokens, expected, strict=True)
    return next((number for number, (token, other) in enumerate(pairs) if token != other), len(tokens))


def _generate(model: torch.nn.Module, prompt: Tensor) -> tuple[Tensor, Any, list[int]]:
    """The prompt's logits, the cache after all tokens, and the generated tokens."""
    logits, cache = read_prompt(model, prompt)
    return logits, cache, continue_prompt(model, logits, cache, GENERATED_TOKENS)


def _time(
    models: dict[str, torch.nn.Module], caches: dict[str, Any], prompt: Tensor, report: Callable[[str], None]
) -> tuple[dict[str, Latency], dict[str, Latency]]:
    report(f"timing prefill, {prompt.shape[1]} tokens")
    prefill = time_calls({name: partial(read_prompt, model, prompt) for name, model in models.items()}, *prompt.shape)
    report("timing decode, a token at a time")
    token = prompt[:, :1]
    decode = time_calls(
        {name: partial(decode_again, model, token, caches[name]) for name, model in models.items()}, *token.shape
    )
    return prefill, decode


#: As the demo measures it.
measure = partial(measure_size, Size())
