"""From a GGUF file of a Llama to a folder as transformers saves its models.

transformers reads GGUF too, by ``gguf_file=``, but parses the file's tokens, of which there are tens of thousands,
three times over (configuration, tokenizer, weights), and does not save what it read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: From the names of GGUF to those of transformers: modules of the model, and of a block in it.
_MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3


def convert(file: Path, folder: Path) -> None:
    """Writes the model in float32, its configuration, its tokenizer and its chat template into a folder.

    Raises:
        ValueError: if the file holds another kind of model or of tokenizer than a Llama with byte-level BPE.
    """
    from gguf import GGUFReader
    from transformers import LlamaForCausalLM

    reader = GGUFReader(file)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    kind = fields["general.architecture"], fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("llama", "gpt2", "smollm"):
        raise ValueError(
            f"{file.name} holds architecture, tokenizer and pre-tokenizer {kind}; those of SmolLM2 are read: "
            "('llama', 'gpt2', 'smollm')"
        )
    weights = _weights(reader.tensors, fields)
    config = _config(fields, tied="lm_head.weight" not in weights)
    make: Any = LlamaForCausalLM
    with torch.device("meta"):
        model = make(config)
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{file.name} does not hold {missing} of a Llama, and holds {unexpected}, which are unknown")
    model.tie_weights()
    model.save_pretrained(folder)
    _tokenizer(fields).save_pretrained(folder)


def _config(fields: dict[str, Any], tied: bool) -> Any:
    from transformers import LlamaConfig

    make: Any = LlamaConfig
    return make(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=fields["llama.rope.freq_base"],
        max_position_embeddings=fields["llama.context_length"],
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        tie_word_embeddings=tied,
    )


def _weights(tensors: Any, fields: dict[str, Any]) -> dict[str, Tensor]:
    """All weights in float32, by transformers' names and in transformers' order of rows."""
    from gguf import dequantize

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    found = {}
    for tensor in tensors:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        words = tensor.name.removesuffix(".weight").split(".")
        if words[0] == "blk":
            _, block, module = words
            name = f"model.layers.{block}.{_BLOCK_MODULES[module]}"
            if module in heads:
                # GGUF has the two halves that a rotary embedding rotates interleaved.
                rows, columns = weight.shape
                weight = weight.view(heads[module], -1, 2, columns).transpose(1, 2).reshape(rows, columns)
        else:
            name = _MODULES[words[0]]
        found[f"{name}.weight"] = weight
    return found


def _tokenizer(fields: dict[str, Any]) -> Any:
    """Byte-level BPE that splits numbers into digits."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    made.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=made,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
    )
