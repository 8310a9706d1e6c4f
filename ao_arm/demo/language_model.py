"""A causal language model of transformers in fp32: its tokens, its perplexity, and how it continues a prompt."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..affine_quantized import packed_weight_of


class LanguageModel:
    """An fp32 model and its tokenizer.

    Args:
        folder: of a saved transformers model with its tokenizer.
        name: what the model is called.
    """

    def __init__(self, folder: Path, name: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        self.model: torch.nn.Module = model.float().eval().requires_grad_(False)
        self.name = name

    def tokens(self, text: str, most: int) -> Tensor:
        """The first tokens of a text, (1, at most ``most``)."""
        found: Tensor = self._tokenizer(text, return_tensors="pt").input_ids
        return found[:, :most]

    def chat_tokens(self, question: str) -> Tensor:
        """The tokens of a question in a chat, (1, tokens), up to where the answer begins; alone without a template."""
        if self._tokenizer.chat_template is None:
            return self.tokens(question, len(question))
        messages = [{"role": "user", "content": question}]
        made: Tensor = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids
        return made

    def text(self, tokens: list[int]) -> str:
        """Generated tokens as text, up to the end of the answer."""
        end = self._tokenizer.eos_token_id
        answer = tokens[: tokens.index(end)] if end in tokens else tokens
        return str(self._tokenizer.decode(answer)).strip()


@torch.no_grad()
def dequantized(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its quantized weights as floats: what it would compute if activations were not quantized."""
    made = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    layers: list[Any] = [layer for layer in made.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        if packed_weight_of(layer.weight) is not None:
            layer.weight = torch.nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    return made


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    """How many tokens a model hesitates between, on average.

    Args:
        logits: (tokens, vocabulary) of the model for each token.
        tokens: (1, tokens), each of which is predicted from those before it.
    """
    return float(torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).exp())


@torch.inference_mode()
def read_prompt(model: Any, prompt: Tensor) -> tuple[Tensor, Any]:
    """Logits of all tokens of a prompt, (tokens, vocabulary), and the filled key-value cache."""
    output = model(input_ids=prompt, use_cache=True)
    return output.logits[0], output.past_key_values


@torch.inference_mode()
def prefill(model: Any, prompt: Tensor) -> None:
    """Reads a prompt as generating does: with the logits of the last token alone."""
    model(input_ids=prompt, use_cache=True, logits_to_keep=1)


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
