"""How long a call of each model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from .. import timing
from .encoder import Batch, embed

SECONDS_FOR_A_BATCH = 2.5
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Latency:
    """Of one call of a model, over ``rounds`` calls; ``spread_ms`` is half the interquartile range."""

    batch: int
    tokens: int
    median_ms: float
    spread_ms: float
    rounds: int


def time_models(models: Mapping[str, torch.nn.Module], batch: Batch) -> dict[str, Latency]:
    """Times each model in turn, round after round."""
    size, tokens = batch["input_ids"].shape
    return time_calls({name: partial(embed, model, batch) for name, model in models.items()}, size, tokens)


def time_calls(calls: Mapping[str, Callable[[], object]], size: int, tokens: int) -> dict[str, Latency]:
    """Times one call of each model in turn, round after round; each takes a batch of ``size`` times ``tokens``."""
    timings = timing.interleaved(
        {name: timing.Task(call) for name, call in calls.items()}, LEAST_ROUNDS, SECONDS_FOR_A_BATCH
    )
    return {
        name: Latency(size, tokens, 1e3 * found.median, 1e3 * found.spread, found.samples)
        for name, found in timings.items()
    }
