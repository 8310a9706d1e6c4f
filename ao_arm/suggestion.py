"""Which layer of a model gets which configuration, so that the model errs least within a number of bytes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig, quantize_

from . import text_table
from .affine_quantized import packed_weight_of
from .config import acl_int4_grouped, acl_int8_dynamic
from .importance import InputSquares, call, importance_of, put_importance
from .sizes import tensor_bytes
from .sqnr import sqnr_db

#: Rows of a layer's input, spread over each batch, by which its candidates are judged.
_ROWS = 64
#: Steps of the range of bytes in which the best choice is sought.
_STEPS = 1 << 15


@dataclass(frozen=True)
class Candidate:
    """What a layer would be with one configuration.

    Attributes:
        sqnr_db: of the layer's own output for the inputs that it got, activations quantized too; infinite if exact.
        noise: the expected squared error that it alone would make in the model's output.
        bytes: of its weight.
    """

    sqnr_db: float
    noise: float
    bytes: int


@dataclass(frozen=True)
class LayerSuggestion:
    """A layer's candidates by name, those that can serve it, and the name of the chosen one."""

    name: str
    shape: tuple[int, int]
    candidates: dict[str, Candidate]
    chosen: str


@dataclass(frozen=True)
class Suggestion:
    """What `suggest` found; prints as a table.

    Attributes:
        layers: in the order of the model.
        configs: the configurations by the names of the candidates.
        budget: in bytes, of the weights of all these layers.
        signal: the sum of squares of the model's output for the inputs.
    """

    layers: tuple[LayerSuggestion, ...]
    configs: dict[str, AOBaseConfig] = field(repr=False)
    budget: int
    signal: float

    @property
    def bytes(self) -> int:
        """Of the weights of all layers as chosen."""
        return sum(layer.candidates[layer.chosen].bytes for layer in self.layers)

    @property
    def sqnr_db(self) -> float:
        """The SQNR of the model's output that is expected: errors of layers are taken for independent and small."""
        noise = sum(layer.candidates[layer.chosen].noise for layer in self.layers)
        return 10 * math.log10(self.signal / noise) if noise else math.inf

    @property
    def config(self) -> FqnToConfig:
        """For ``quantize_(model, suggestion.config, filter_fn=None)``."""
        return FqnToConfig(OrderedDict((layer.name, self.configs[layer.chosen]) for layer in self.layers))

    def __str__(self) -> str:
        names = list(self.configs)
        header = ("layer", "n x k", *(f"{name}, dB" for name in names), "chosen", "KB")
        rows = []
        for layer in self.layers:
            cells = [f"{layer.candidates[name].sqnr_db:.1f}" if name in layer.candidates else "-" for name in names]
            size = f"{layer.candidates[layer.chosen].bytes / 1e3:.1f}"
            rows.append((layer.name, "{} x {}".format(*layer.shape), *cells, layer.chosen, size))
        right = (*range(2, 2 + len(names)), 3 + len(names))
        lines = text_table.with_rule(header, rows, right)
        lines.append(
            f"{self.bytes / 1e6:.2f} MB of {self.budget / 1e6:.2f} MB; expected SQNR of the output {self.sqnr_db:.1f} "
            "dB"
        )
        return "\n".join(lines)

    def plot(self) -> Any:
        """A matplotlib figure: the SQNR of each layer with each candidate, and which one was chosen.

        Raises:
            ImportError: without matplotlib, which ``pip install 'ao_arm[bench]'`` brings.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.5), layout="constrained")
        axes = figure.subplots()
        for name in self.configs:
            served = [(number, layer) for number, layer in enumerate(self.layers) if name in layer.candidates]
            places = [number for number, _ in served]
            (line,) = axes.plot(places, [layer.candidates[name].sqnr_db for _, layer in served], ".", ms=3, alpha=0.5)
            chosen = [(number, layer.candidates[name].sqnr_db) for number, layer in served if layer.chosen == name]
            label = f"{name}: {len(chosen)} of {len(self.layers)}"
            axes.plot(*(zip(*chosen, strict=True) if chosen else ((), ())), "o", color=line.get_color(), label=label)
        axes.set(xlabel="layer, in the order of the model", ylabel="SQNR of the layer's output, dB")
        axes.set_title(f"{self.bytes / 1e6:.2f} MB, expected SQNR of the model's output {self.sqnr_db:.1f} dB")
        axes.legend(title="filled: chosen")
        return figure


def suggest(
    model: torch.nn.Module,
    inputs: Iterable[Any],
    *,
    budget: int | None = None,
    bytes_per_weight: float | None = None,
    candidates: Mapping[str, AOBaseConfig] | None = None,
    filter_fn: Callable[[torch.nn.Module, str], bool] | None = None,
) -> Suggestion:
    """Chooses a configuration for each linear layer, so that the model's output errs least within a budget of bytes.

    The model runs forward and backward once for each batch. The gradient of a random projection of its output tells how
    much of an error in a layer's output arrives at the end; the error itself is that of the layer quantized by each
    candidate, for rows of the inputs that it got. Of all choices within the budget, that with the least sum of expected
    squared errors is taken (a knapsack, solved by dynamic programming in steps of 1/32768 of the range of sizes):
    with a larger budget the expected SQNR is never smaller. The model is left as it was, but its layers remember their
    inputs as `observe_importance` makes them, for candidates with ``search=True``.

    Args:
        model: a float model on the CPU, in eval mode, whose output is a float tensor, or has one as its first.
        inputs: batches: tensors, tuples of arguments, or mappings of keyword arguments such as a tokenizer's.
        budget: bytes of the weights of all these layers together, or
        bytes_per_weight: the same for each of their values: 1 for int8, 0.5625 for 4 bits in groups of 32.
        candidates: configurations for ``quantize_`` by names of your own; by default ``acl_int8_dynamic()`` and
            ``acl_int4_grouped`` with groups of 128 and 32 and ``search=True``. A layer that one cannot quantize does
            without it.
        filter_fn: which layers are considered, by module and name; by default all ``nn.Linear`` that hold floats.

    Raises:
        ValueError: if not exactly one budget is given or it is too small, if there are no inputs, no layers, layers
            that no input reaches or that no candidate can quantize.
    """
    if (budget is None) == (bytes_per_weight is None):
        raise ValueError(
            f"give either budget, in bytes, or bytes_per_weight; not budget={budget} and bytes_per_weight="
            f"{bytes_per_weight}"
        )
    configs = dict(candidates) if candidates is not None else _default_candidates()
    layers = _layers(model, filter_fn)
    squares = {name: InputSquares() for name in layers}
    signal, rows = _observe(model, layers, squares, inputs)
    unreached = [name for name in layers if not rows[name]]
    if unreached:
        raise ValueError(
            f"no input reaches {text_table.listed(unreached)}: give inputs that do, or leave these layers out with "
            "filter_fn"
        )
    for name, layer in layers.items():
        put_importance(layer, name, squares[name].mean())
    found = {name: _judge(name, layer, rows.pop(name), configs) for name, layer in layers.items()}
    if bytes_per_weight is not None:
        budget = int(bytes_per_weight * sum(layer.weight.numel() for layer in layers.values()))
    chosen = _choose(list(found.values()), budget or 0)
    made = (
        LayerSuggestion(name, (layer.out_features, layer.in_features), found[name], choice)
        for (name, layer), choice in zip(layers.items(), chosen, strict=True)
    )
    return Suggestion(tuple(made), configs, budget or 0, signal)


def _default_candidates() -> dict[str, AOBaseConfig]:
    int4 = {f"int4 g{group_size}": acl_int4_grouped(group_size, search=True) for group_size in (128, 32)}
    return {"int8": acl_int8_dynamic(), **int4}


def _layers(
    model: torch.nn.Module, filter_fn: Callable[[torch.nn.Module, str], bool] | None
) -> dict[str, torch.nn.Linear]:
    """The linear layers to choose for, by name; of weights that are quantized already there is nothing to choose."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and type(module.weight.data) is Tensor
        and (filter_fn is None or filter_fn(module, name))
    }
    if not found or "" in found:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear with float weights inside it that filter_fn accepts; suggest "
            "chooses between the layers of a model, by their names"
        )
    return found


#: Of each batch: rows of a layer's input, the squares of its output's gradients, and how many rows each stands for.
_Rows = list[tuple[Tensor, Tensor, float]]


def _observe(
    model: torch.nn.Module,
    layers: Mapping[str, torch.nn.Linear],
    squares: Mapping[str, InputSquares],
    inputs: Iterable[Any],
) -> tuple[float, dict[str, _Rows]]:
    """The sum of squares of all outputs, and what each layer got and how much its errors would count."""
    rows: dict[str, _Rows] = {name: [] for name in layers}
    signal, batches = 0.0, 0
    random = torch.Generator().manual_seed(0)
    with ExitStack() as hooks, torch.enable_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # gradients of the layers' outputs are enough
                hooks.callback(parameter.requires_grad_(False).requires_grad_, True)
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(squares[name]).remove)
            hooks.callback(layer.register_forward_hook(_watcher(rows[name])).remove)
        for batch in inputs:
            output = _first_float(call(model, batch))
            if output is None or not output.requires_grad:
                raise ValueError(
                    "the model's output must be a float tensor, or hold one, that depends on the layers; wrap the "
                    "model in one that returns it"
                )
            signal += float(output.detach().double().square().sum())
            projection = torch.randn(output.shape, generator=random).to(output.dtype)
            output.backward(projection)
            batches += 1
    if not batches:
        raise ValueError("there are no inputs: give some batches like those that the model will get")
    return signal, rows


def _watcher(rows: _Rows) -> Callable[[torch.nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook of a layer that keeps rows of its input, once the gradient of its output arrives."""

    def watch(layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
        count = min(_ROWS, x.shape[0])
        taken = torch.linspace(0, x.shape[0] - 1, count).round().long()
        x_rows = x[taken].clone()

        def keep(grad: Tensor) -> None:
            squares = grad.detach().reshape(-1, grad.shape[-1])[taken].float().square()
            rows.append((x_rows, squares, x.shape[0] / count))

        watched = output + output.new_zeros(()).requires_grad_()  # also where no parameter needs a gradient
        watched.register_hook(keep)
        return watched

    return watch


def _first_float(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((found for value in values if (found := _first_float(value)) is not None), None)


@torch.no_grad()
def _judge(name: str, layer: torch.nn.Linear, rows: _Rows, configs: Mapping[str, AOBaseConfig]) -> dict[str, Candidate]:
    """What the layer would be with each configuration that can quantize it."""
    x = torch.cat([part for part, _, _ in rows])
    counts = torch.cat([squares * stands_for for _, squares, stands_for in rows])
    exact = torch.nn.functional.linear(x, layer.weight).float()
    found, refused = {}, []
    for candidate, config in configs.items():
        copy = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta", dtype=x.dtype)
        copy.weight = torch.nn.Parameter(layer.weight.detach(), requires_grad=False)
        put_importance(copy, name, importance_of(layer))
        try:
            quantize_(copy, config)
        except (ValueError, NotImplementedError) as error:
            refused.append(f"{candidate}: {error}")
            continue
        y = copy(x).float()
        packed = packed_weight_of(copy.weight)
        size = tensor_bytes(copy.weight if packed is None else packed)
        found[candidate] = Candidate(sqnr_db(exact, y), float((counts * (y - exact).square()).double().sum()), size)
    if not found:
        raise ValueError(f"no candidate can quantize {name}; {'; '.join(refused) or 'there are none'}")
    return found


def _choose(layers: Sequence[Mapping[str, Candidate]], budget: int) -> list[str]:
    """The name of a candidate for each layer: the least sum of noise within the budget."""

    def cost(candidate: Candidate, smallest: int) -> int:
        """In steps above the smallest, rounded up."""
        return -(-(candidate.bytes - smallest) // step)

    least = [min(candidate.bytes for candidate in layer.values()) for layer in layers]
    if budget < sum(least):
        raise ValueError(
            f"the budget of {budget} bytes is too small: the smallest candidates of all {len(layers)} layers take "
            f"{sum(least)} bytes; give that much, smaller candidates, or leave layers out with filter_fn"
        )
    range_of_sizes = sum(max(candidate.bytes for candidate in layer.values()) for layer in layers) - sum(least)
    step = max(1, -(-range_of_sizes // _STEPS))
    # The least noise of the layers so far within each number of steps above the least sizes; sizes are rounded up.
    spare = budget - sum(least)
    if spare >= range_of_sizes:
        spare = step * sum(
            max(cost(candidate, smallest) for candidate in layer.values())
            for layer, smallest in zip(layers, least, strict=True)
        )
    steps = spare // step
    noise = np.zeros(steps + 1)
    taken = []
    for layer, smallest in zip(layers, least, strict=True):
        tried = np.full((len(layer), steps + 1), np.inf)
        for row, candidate in enumerate(layer.values()):
            more = cost(candidate, smallest)
            if more <= steps:
                tried[row, more:] = noise[: steps + 1 - more] + candidate.noise
        taken.append(tried.argmin(axis=0).astype(np.int16))
        noise = tried.min(axis=0)
    chosen = []
    for layer, smallest, rows in zip(reversed(layers), reversed(least), reversed(taken), strict=True):
        name = list(layer)[rows[steps]]
        steps -= cost(layer[name], smallest)
        chosen.append(name)
    return chosen[::-1]
