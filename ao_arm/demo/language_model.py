"""A Llama of transformers with random weights, and how it continues a prompt."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..affine_quantized import packed_weight_of


@dataclass(frozen=True)
class Size:
    """Of a Llama. ``embedding_spread`` is the standard deviation of the token embeddings."""

    hidden: int = 1024
    layers: int = 4
    heads: int = 16
    key_value_heads: int = 4
    intermediate: int = 2816
    vocabulary: int = 8192
    embedding_spread: float = 0.5

    def __str__(self) -> str:
        return (
            f"Llama, random weights: hidden {self.hidden}, {self.layers} layers, {self.heads} heads with "
            f"{self.key_value_heads} for keys and values, intermediate {self.intermediate}, vocabulary "
            f"{self.vocabulary}"
        )


def make_model(size: Size) -> torch.nn.Module:
    """The float32 model, the same each time.

    Weights are normal, as wide as keeps the spread of activations. Random logits would be nearly tied, and rounding
    would decide between the tokens. So that one token stands out, as in a trained model, the rows of the head are the
    token embeddings in another order: a token asks for the one that stands in its place.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        intermediate_size=size.intermediate,
        vocab_size=size.vocabulary,
        initializer_range=size.hidden**-0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        make: Any = LlamaForCausalLM
        model = make(config).float().eval()
        embeddings = model.get_input_embeddings().weight
        embeddings.normal_()
        model.get_output_embeddings().weight[torch.randperm(size.vocabulary)] = embeddings * size.hidden**-0.5
        embeddings.mul_(size.embedding_spread)
    made: torch.nn.Module = model
    return made


def make_prompt(size: Size, tokens: int) -> Tensor:
    """Random tokens, (1, tokens)."""
    return torch.randint(0, size.vocabulary, (1, tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def dequantized(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its quantized weights as floats: what it would compute if activations were not quantized."""
    made = copy.deepcopy(model)
    layers: list[Any] = [layer for layer in made.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        if packed_weight_of(layer.weight) is not None:
            layer.weight = torch.nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    return made


@torch.inference_mode()
def read_prompt(model: Any, prompt: Tensor) -> tuple[Tensor, Any]:
    """Logits of all tokens of a prompt, (tokens, vocabulary), and the filled key-value cache."""
    output = model(input_ids=prompt, use_cache=True)
    return output.logits[0], output.past_key_values


@torch.inference_mode()
def continue_prompt(model: Any, logits: Tensor, cache: Any, tokens: int) -> list[int]:
    """The most likely next tokens, one at a time; ``logits`` and the cache, which grows, are the prompt's."""
    found = [int(logits[-1].argmax())]
    while len(found) < tokens:
        output = model(input_ids=torch.tensor([found[-1:]]), past_key_values=cache, use_cache=True)
        found.append(int(output.logits[0, -1].argmax()))
    return found


@torch.inference_mode()
def decode_again(model: Any, token: Tensor, cache: Any) -> None:
    """Decodes one token, (1, 1), and takes it out of the cache, so that each call does the same."""
    model(input_ids=token, past_key_values=cache, use_cache=True)
    cache.crop(-1)
