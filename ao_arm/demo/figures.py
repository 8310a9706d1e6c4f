"""All figures of the demo, and how they are measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchao.quantization.quant_primitives import MappingType

from ..explanation import explain
from ..sizes import tensor_bytes
from ..system import System, current_system
from .accuracy import Accuracy, compare, count_same_subject
from .encoder import MODEL, SENTENCES, SUBJECT_OF, Encoder, embed
from .latency import Latency, time_models
from .schemes import SCHEMES, quantized

FP32, OURS, TORCHAO = MODELS = ("fp32", "ao_arm", "torchao")
BATCHES = (1, 16)


@dataclass(frozen=True)
class ModelFigures:
    """What was found out about one of the three models; fp32 has no accuracy."""

    accuracy: Accuracy | None
    same_subject: int
    model_bytes: int
    linear_bytes: int
    latencies: tuple[Latency, ...]


@dataclass(frozen=True)
class KernelUse:
    """How many linear layers one kernel serves with one packing format."""

    kernel: str
    packing_format: str
    layers: int


@dataclass(frozen=True)
class Figures:
    """Everything that the demo shows."""

    system: System
    scheme: str
    activations: str
    sentences: int
    models: dict[str, ModelFigures]
    kernels: tuple[KernelUse, ...]
    not_quantized: tuple[str, ...]


def steps(timing: bool) -> int:
    """How many steps ``measure`` reports."""
    return 1 + len(MODELS) + (len(BATCHES) if timing else 0)


def measure(scheme: str, mapping: MappingType | None, timing: bool, report: Callable[[str], None]) -> Figures:
    """Loads, quantizes, compares and times; ``report`` is told each step before it is taken.

    ``mapping`` is that of the activations, or None for the scheme's own.
    """
    report(f"loading {MODEL}")
    encoder = Encoder()
    row = SCHEMES[scheme]
    mapping = row.mapping if mapping is None or row.always_asymmetric else mapping
    models: dict[str, torch.nn.Module] = {}
    embeddings: dict[str, Tensor] = {}
    # Neighbours in the list are of one subject, so both halves have all subjects.
    evaluated = range(1 if row.calibrated else 0, len(SENTENCES), 2 if row.calibrated else 1)
    sentences = [SENTENCES[i] for i in evaluated]
    calibration = encoder.batches(SENTENCES[::2], max(BATCHES)) if row.calibrated else []
    for name, quantize in ((FP32, None), (OURS, row.ours), (TORCHAO, row.torchao)):
        report(f"{name}: embedding {len(sentences)} sentences")
        models[name] = encoder.model
        if quantize:
            models[name] = quantized(name, encoder.model, partial(quantize, mapping=mapping, batches=calibration))
        embeddings[name] = torch.cat([embed(models[name], batch) for batch in encoder.batches(sentences, max(BATCHES))])
    accuracies = {name: compare(name, embeddings[FP32], embeddings[name], row.least_cosine) for name in (OURS, TORCHAO)}
    rounds = []
    for size in BATCHES if timing else ():
        report(f"timing batch {size}")
        rounds.append(time_models(models, encoder.ordinary_batch(size)))
    uses, not_quantized = kernel_uses(models[OURS])
    figures = {
        name: ModelFigures(
            accuracy=accuracies.get(name),
            same_subject=count_same_subject(embeddings[name], [SUBJECT_OF[i] for i in evaluated]),
            model_bytes=sum(map(tensor_bytes, model.parameters())),
            linear_bytes=linear_bytes(model),
            latencies=tuple(latencies[name] for latencies in rounds),
        )
        for name, model in models.items()
    }
    activations = mapping.name.lower()
    return Figures(current_system(), scheme, activations, len(sentences), figures, uses, not_quantized)


def linear_bytes(model: torch.nn.Module) -> int:
    """The memory of the weights of all linear layers; one that layers share counts once."""
    weights = (module.weight for module in model.modules() if isinstance(module, torch.nn.Linear))
    return sum(map(tensor_bytes, {id(weight): weight for weight in weights}.values()))


def kernel_uses(model: torch.nn.Module) -> tuple[tuple[KernelUse, ...], tuple[str, ...]]:
    """Which kernels serve how many layers, and the names of linear layers that ao_arm does not serve."""
    layers = explain(model)
    served = Counter((layer.kernel, layer.packing_format) for layer in layers if layer.packing_format)
    uses = tuple(KernelUse(kernel, packing, count) for (kernel, packing), count in served.items())
    return uses, tuple(layer.name for layer in layers if not layer.packing_format)
