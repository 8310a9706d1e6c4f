"""One layer of a transformers encoder, for cycles_models.py; runs on the emulated machine.

    cycles_model_guest.py MODEL LENGTH,... THREADS

The layers of an encoder are alike, so that one is made, with random weights: in fp32, by torch's own dynamic
quantization, and by ao_arm. For each length of the context its regions are `WHOSE PART LENGTH`: the whole layer, and
with the same inputs its linear layers, its attention and its normalisation alone.
"""

import copy
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from cycles_guest import sqnr
from marks import run_region
from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention

# The least signal to noise of a layer's output, in decibels; per tensor it comes to some 30.
LEAST_SQNR = 20.0
WARM_UPS = 3


def encoder_layer(model: str) -> tuple[torch.nn.Module, Any]:
    """A layer of a model's encoder with the sizes of its configuration, and the configuration."""
    import transformers

    if model == "distilbert":
        distilbert = transformers.DistilBertConfig(n_layers=1)
        return transformers.DistilBertModel(distilbert).transformer.layer[0].eval(), distilbert
    made, config = {
        "bert-base": (transformers.BertModel, transformers.BertConfig(num_hidden_layers=1)),
        "bert-large": (
            transformers.BertModel,
            transformers.BertConfig(
                num_hidden_layers=1, hidden_size=1024, intermediate_size=4096, num_attention_heads=16
            ),
        ),
        "roberta-base": (transformers.RobertaModel, transformers.RobertaConfig(num_hidden_layers=1)),
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


def hidden_states(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a layer gives, which some wrap."""
    return output if isinstance(output, Tensor) else output[0]


def linear_inputs(layer: torch.nn.Module, states: Tensor) -> dict[str, Tensor]:
    """What each linear layer gets, in the order of the calls."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.__setitem__(name, args[0]))
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    layer(states)
    for handle in handles:
        handle.remove()
    return found


def parts(layers: Mapping[str, torch.nn.Module], states: Tensor, heads: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each region's name but for the length, and what it runs."""
    fp32 = layers["fp32"]
    inputs = linear_inputs(fp32, states)
    for whose, layer in layers.items():
        linear = [(layer.get_submodule(name), input) for name, input in inputs.items()]
        yield f"{whose} whole", lambda layer=layer: layer(states)  # type: ignore[misc]
        yield f"{whose} linear", lambda linear=linear: [module(input) for module, input in linear]  # type: ignore[misc]
    head = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    norms = [module for module in fp32.modules() if isinstance(module, torch.nn.LayerNorm)]
    widest = next(reversed(inputs.values()))
    yield "fp32 attention", lambda: scaled_dot_product_attention(head, head, head)
    yield "fp32 normalisation", lambda: ([norm(states) for norm in norms], gelu(widest))


def main(model: str, lengths: list[int], threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer, config = encoder_layer(model)
    layers = {"fp32": layer, "torch": quantized_by_torch(layer), "ours": quantized_by_ours(layer)}
    for length in lengths:
        states = torch.randn(1, length, config.hidden_size)
        expected = hidden_states(layer(states))
        for whose, other in layers.items():
            quality = sqnr(expected.double(), hidden_states(other(states)).double())
            if not quality > LEAST_SQNR:
                sys.exit(f"{whose} is wrong for {model} with {length} tokens: {quality:.1f} dB")
        for name, call in parts(layers, states, config.num_attention_heads):
            for _ in range(WARM_UPS):
                call()
            gc.collect()
            run_region(f"{name} {length}", call)


if __name__ == "__main__":
    with torch.inference_mode():
        main(sys.argv[1], [int(length) for length in sys.argv[2].split(",")], int(sys.argv[3]))
