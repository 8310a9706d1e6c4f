"""One layer of a transformers encoder, for cycles_models.py; runs on the emulated machine.

    cycles_model_guest.py MODEL LENGTH,... LENGTH,... THREADS

The layers of an encoder are alike, so that one is made, with random weights: by torch's own dynamic quantization, by
ao_arm and, for the lengths that come second, in fp32. For each length of the context its regions are `WHOSE PART
LENGTH`: the whole layer, and with the same inputs its linear layers alone; and as `all` its attention and its
normalisation alone, which are floats in all of them.
"""

import copy
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from cycles_guest import some, sqnr
from marks import run_region
from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention

# The least signal to noise of a linear layer's output, in decibels; per tensor it comes to some 30.
LEAST_SQNR = 20.0
# Of long contexts, which take long to emulate, what is done in the first call only is little: one warm-up.
WARM_UPS = 3
LONG = 64


def encoder_layer(model: str) -> tuple[torch.nn.Module, Any]:
    """A layer of a model's encoder with the sizes of its configuration, and the configuration.

    Embeddings are no part of it: few words are enough.
    """
    import transformers

    few: dict[str, Any] = {"vocab_size": 8, "max_position_embeddings": 8}
    if model == "distilbert":
        distilbert = transformers.DistilBertConfig(n_layers=1, **few)
        return transformers.DistilBertModel(distilbert).transformer.layer[0].eval(), distilbert
    large: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    made, config = {
        "bert-base": (transformers.BertModel, transformers.BertConfig(num_hidden_layers=1, **few)),
        "bert-large": (transformers.BertModel, transformers.BertConfig(num_hidden_layers=1, **few, **large)),
        "roberta-base": (transformers.RobertaModel, transformers.RobertaConfig(num_hidden_layers=1, **few)),
    }[model]
    return made(config).encoder.layer[0].eval(), config


def quantized_by_torch(layer: torch.nn.Module) -> torch.nn.Module:
    """Its weights are quantized per tensor, which this engine gives to ACL directly."""
    torch.backends.quantized.engine = "onednn"
    quantized: torch.nn.Module = torch.ao.quantization.quantize_dynamic(layer, {torch.nn.Linear}, torch.qint8)
    return quantized


def quantized_by_ours(layer: torch.nn.Module) -> torch.nn.Module:
    from torchao.quantization import quantize_

    import ao_arm

    made = copy.deepcopy(layer)
    quantize_(made, ao_arm.acl_int8_dynamic())
    return made


def linear_calls(
    layer: torch.nn.Module, states: Tensor, kind: type[torch.nn.Module]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What each layer of this kind gets and gives in a call, in the order of the calls."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: calls.__setitem__(name, (args[0], output)))
        for name, module in layer.named_modules()
        if isinstance(module, kind)
    ]
    layer(states)
    for handle in handles:
        handle.remove()
    return calls


def worst_sqnr(calls: Mapping[str, tuple[Tensor, Tensor]], fp32: torch.nn.Module) -> float:
    """Signal to noise of the noisiest of these linear layers, against the same one in fp32, in some of the tokens."""
    found = []
    for name, (input, output) in calls.items():
        tokens = some(torch.arange(input.shape[1]))
        found.append(sqnr(fp32.get_submodule(name)(input[:, tokens]), output[:, tokens]))
    return min(found)


def parts(
    layers: Mapping[str, torch.nn.Module], states: Tensor, inputs: dict[str, Tensor], heads: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each region's name but for the length, and what it runs."""
    for whose, layer in layers.items():
        linear = [(layer.get_submodule(name), input) for name, input in inputs.items()]
        yield f"{whose} whole", lambda layer=layer: layer(states)  # type: ignore[misc]
        yield f"{whose} linear", lambda linear=linear: [module(input) for module, input in linear]  # type: ignore[misc]
    head = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    norms = [module for module in layers["ours"].modules() if isinstance(module, torch.nn.LayerNorm)]
    widest = next(reversed(inputs.values()))
    yield "all attention", lambda: scaled_dot_product_attention(head, head, head)
    yield "all normalisation", lambda: ([norm(states) for norm in norms], gelu(widest))


def main(model: str, lengths: list[int], fp32_lengths: list[int], threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer, config = encoder_layer(model)
    torch_s, ours = quantized_by_torch(layer), quantized_by_ours(layer)
    kinds = {"torch": torch.ao.nn.quantized.dynamic.Linear, "ours": torch.nn.Linear}
    for length in lengths:
        layers = {"torch": torch_s, "ours": ours}
        states = torch.randn(1, length, config.hidden_size)
        inputs: dict[str, Tensor] = {}
        for whose, other in layers.items():
            calls = linear_calls(other, states, kinds[whose])
            inputs = {name: input for name, (input, _) in calls.items()}
            quality = worst_sqnr(calls, layer)
            if not quality > LEAST_SQNR:
                sys.exit(f"{whose} is wrong for {model} with {length} tokens: {quality:.1f} dB")
        if length in fp32_lengths:
            layers = {"fp32": layer, **layers}
        for name, call in parts(layers, states, inputs, config.num_attention_heads):
            for _ in range(WARM_UPS if length < LONG else 1):
                call()
            gc.collect()
            run_region(f"{name} {length}", call)


if __name__ == "__main__":
    lengths, fp32_lengths = ([int(length) for length in text.split(",") if length] for text in sys.argv[2:4])
    with torch.inference_mode():
        main(sys.argv[1], lengths, fp32_lengths, int(sys.argv[4]))
