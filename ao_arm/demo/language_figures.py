"""All figures of the language model's demo, and how they are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.quant_primitives import MappingType

from ..config import acl_int4_grouped, acl_int8_dynamic
from ..importance import observe_importance
from ..sqnr import sqnr_db
from ..system import System, current_system
from .errors import DemoError
from .figures import KernelUse, kernel_uses, linear_bytes
from .language_model import (
    LanguageModel,
    continue_prompt,
    decode_again,
    dequantized,
    perplexity,
    prefill,
    read_prompt,
)
from .latency import Latency, time_calls
from .schemes import SCHEMES, quantized, quantizes
from .sentences import SUBJECTS
from .text import Text

QUESTION = "What is the capital of France, and what is it known for?"
GENERATED_TOKENS = 32
#: Of the text, whose perplexity is measured, and of its beginning, whose prefill is timed.
TEXT_TOKENS = 1322
PREFILL_TOKENS = 128
#: What is searched is searched for the inputs of these: neither the text nor the question is among them.
CALIBRATION = "\n".join(sentence for subject in SUBJECTS.values() for sentence in subject)
CALIBRATION_TOKENS = 512
#: On an emulated CPU.
EMULATED_TEXT_TOKENS = 96
#: A model of ours with a smaller SQNR to its own dequantized weights computes something else than these say.
LEAST_SQNR_DB = 10.0

FP32 = "fp32"
#: The largest groups that divide the rows of this model (576 and 1536 values) and are wider than 128, which does not.
WIDE_GROUP = 192

_SYMMETRIC, _ASYMMETRIC = MappingType.SYMMETRIC, MappingType.ASYMMETRIC


def _of_torchao(scheme: str) -> Callable[[torch.nn.Module], None]:
    return partial(SCHEMES[scheme].torchao, mapping=_SYMMETRIC, batches=())


#: How each model is quantized, by its name; torchao's own by the same arithmetic follow ours.
QUANTIZED: dict[str, Callable[[torch.nn.Module], None]] = {
    "int8, symmetric": quantizes(acl_int8_dynamic(_SYMMETRIC)),
    "int8, asymmetric": quantizes(acl_int8_dynamic(_ASYMMETRIC)),
    "torchao's int8, symmetric": _of_torchao("int8-dynamic"),
    "int4 g32": quantizes(acl_int4_grouped(32)),
    "int4 g32, zero points": quantizes(acl_int4_grouped(32, _ASYMMETRIC)),
    "int4 g32, searched": quantizes(acl_int4_grouped(32, search=True)),
    "torchao's int4 g32": _of_torchao("int4"),
    f"int4 g{WIDE_GROUP}": quantizes(acl_int4_grouped(WIDE_GROUP)),
    f"int4 g{WIDE_GROUP}, searched": quantizes(acl_int4_grouped(WIDE_GROUP, search=True)),
}


@dataclass(frozen=True)
class LanguageModelFigures:
    """What was found out about one model.

    Attributes:
        linear_bytes: the memory of the weights of its linear layers.
        perplexity: of the text.
        sqnr_to_fp32_db: of the text's logits; None of fp32.
        answer: to the question.
        tokens_as_fp32: how many first tokens of the answer are fp32's.
        prefill: of the text's beginning; None without timing, and so is ``decode``, of a token after the answer.
        kernels: of ao_arm that serve its linear layers.
        not_quantized: the names of the layers that none of them serves.
    """

    linear_bytes: int
    perplexity: float
    sqnr_to_fp32_db: float | None
    answer: str
    tokens_as_fp32: int
    prefill: Latency | None
    decode: Latency | None
    kernels: tuple[KernelUse, ...]
    not_quantized: tuple[str, ...]


@dataclass(frozen=True)
class LanguageFigures:
    """Everything that the demo shows."""

    system: System
    model: str
    text: str
    text_tokens: int
    question: str
    generated_tokens: int
    models: dict[str, LanguageModelFigures]


@dataclass(frozen=True)
class _Read:
    """What a model made of the text and of the question."""

    logits: Tensor
    answer: list[int]
    cache: Any


def steps(timing: bool) -> int:
    """How many steps ``measure`` reports, the first of which may be more."""
    return 3 + len(QUANTIZED) + (2 if timing else 0)


def measure(
    load: Callable[[], LanguageModel], text: Text, timing: bool, report: Callable[[str], None]
) -> LanguageFigures:
    """Loads, quantizes, compares and times; ``report`` is told each step before it is taken.

    Raises:
        DemoError: if there is too little text, or a model computes nonsense.
    """
    report("loading the model")
    loaded = load()
    system = current_system()
    tokens = loaded.tokens(text.content, EMULATED_TEXT_TOKENS if system.emulated else TEXT_TOKENS)
    if tokens.shape[1] < 2:
        raise DemoError(f"{text.name} holds {tokens.shape[1]} tokens; a text needs 2 or more for a perplexity")
    prompt = loaded.chat_tokens(QUESTION)
    report("observing inputs, for what is searched")
    observe_importance(loaded.model, [{"input_ids": loaded.tokens(CALIBRATION, CALIBRATION_TOKENS)}])
    report(f"{FP32}: perplexity of {tokens.shape[1]} tokens, and an answer")
    models, reads = {FP32: loaded.model}, {FP32: _read(loaded.model, tokens, prompt)}
    for name, quantize in QUANTIZED.items():
        report(f"{name}: the same")
        models[name] = quantized(name, loaded.model, quantize)
        reads[name] = _read(models[name], tokens, prompt)
        if kernel_uses(models[name])[0]:
            check(
                name, sqnr_db(read_prompt(dequantized(models[name]), prompt)[0], read_prompt(models[name], prompt)[0])
            )
    latencies = _time(models, reads, tokens[:, :PREFILL_TOKENS], report) if timing else {}
    figures = {}
    for name, model in models.items():
        uses, not_quantized = kernel_uses(model)
        figures[name] = LanguageModelFigures(
            linear_bytes=linear_bytes(model),
            perplexity=perplexity(reads[name].logits, tokens),
            sqnr_to_fp32_db=None if name == FP32 else sqnr_db(reads[FP32].logits, reads[name].logits),
            answer=loaded.text(reads[name].answer),
            tokens_as_fp32=same_first(reads[name].answer, reads[FP32].answer),
            prefill=latencies.get((name, "prefill")),
            decode=latencies.get((name, "decode")),
            kernels=uses,
            not_quantized=not_quantized if uses else (),
        )
    return LanguageFigures(system, loaded.name, text.name, tokens.shape[1], QUESTION, GENERATED_TOKENS, figures)


def check(name: str, sqnr: float) -> None:
    """Raises ``DemoError`` if a model computes something else than its weights say: timing would mean nothing."""
    if not sqnr >= LEAST_SQNR_DB:  # so that NaN fails
        raise DemoError(
            f"the logits of {name} are wrong: SQNR to its dequantized weights {sqnr:.1f} dB, which must "
            f"be {LEAST_SQNR_DB} or more, so nothing is timed. Please report this with the output of python -m ao_arm "
            "info."
        )


def same_first(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens are the same up to the first that differs."""
    pairs = zip(tokens, expected, strict=True)
    return next((number for number, (token, other) in enumerate(pairs) if token != other), len(tokens))


def _read(model: torch.nn.Module, tokens: Tensor, prompt: Tensor) -> _Read:
    logits, _ = read_prompt(model, tokens)
    prompt_logits, cache = read_prompt(model, prompt)
    answer = continue_prompt(model, prompt_logits, cache, GENERATED_TOKENS)
    return _Read(logits, answer, cache)


def _time(
    models: dict[str, torch.nn.Module], reads: dict[str, _Read], prompt: Tensor, report: Callable[[str], None]
) -> dict[tuple[str, str], Latency]:
    """Of each model's prefill and decode."""
    token = prompt[:, :1]
    calls: dict[str, tuple[Tensor, Callable[[str], Callable[[], object]]]] = {
        "prefill": (prompt, lambda name: partial(prefill, models[name], prompt)),
        "decode": (token, lambda name: partial(decode_again, models[name], token, reads[name].cache)),
    }
    found = {}
    for phase, (timed, call) in calls.items():
        report(f"timing {phase} of {timed.shape[1]}")
        latencies = time_calls({name: call(name) for name in models}, *timed.shape)
        found.update({(name, phase): latency for name, latency in latencies.items()})
    return found
