"""Tiny models of many architectures, with random weights: what the table of architectures goes over."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, WORDS, TOKENS, BATCH = 64, 4, 2, 96, 12, 2

#: What transformers' configurations call these sizes.
SIZES = dict(
    vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
    num_attention_heads=HEADS, max_position_embeddings=64,
)  # fmt: skip
#: Other names of the same.
OF_BART = dict(
    vocab_size=WORDS, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS, encoder_ffn_dim=2 * WIDTH, decoder_ffn_dim=2 * WIDTH,
    pad_token_id=1, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2,
)  # fmt: skip
OF_DISTILBERT = dict(vocab_size=WORDS, dim=WIDTH, hidden_dim=2 * WIDTH, n_layers=LAYERS, n_heads=HEADS)
OF_T5 = dict(
    vocab_size=WORDS, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=2 * WIDTH, num_layers=LAYERS, num_heads=HEADS,
    decoder_start_token_id=0,
)  # fmt: skip
OF_GPT2 = dict(vocab_size=WORDS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=64)
OF_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=WIDTH)
OF_IMAGES = dict(image_size=16, patch_size=8)
NO_WINDOW = dict(num_key_value_heads=2, pad_token_id=0)


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
        make: builds the model.
        inputs: its arguments by name.
        generates: the name of what ``generate`` begins with; "" if it generates nothing.
        left: the ending of names of layers that are left out; "" if none has to be.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    generates: str = ""
    left: str = ""


def _words(*names: str) -> dict[str, Tensor]:
    return {name: torch.randint(4, WORDS, (BATCH, TOKENS)) for name in names}


def _image(channels: int = 3, size: int = 16) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, channels, size, size)}


def _transformers(name: str, head: str, **sizes: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}{head}")(config)


def _encoder(name: str, **sizes: Any) -> Architecture:
    return Architecture(partial(_transformers, name, "Model", **(sizes or SIZES)), partial(_words, "input_ids"))


def _decoder(name: str, head: str = "ForCausalLM", left: str = "", **sizes: Any) -> Architecture:
    make = partial(_transformers, name, head, **(sizes or SIZES))
    return Architecture(make, partial(_words, "input_ids"), "input_ids", left)


def _seq2seq(name: str, **sizes: Any) -> Architecture:
    make = partial(_transformers, name, "ForConditionalGeneration", **sizes)
    return Architecture(make, partial(_words, "input_ids", "decoder_input_ids"), "input_ids")


def _whisper_inputs() -> dict[str, Tensor]:
    return {"input_features": torch.randn(BATCH, 16, 2 * TOKENS), **_words("decoder_input_ids")}


def _clip() -> nn.Module:
    import transformers

    images = {name: size for name, size in SIZES.items() if name not in ("vocab_size", "max_position_embeddings")}
    config = transformers.CLIPConfig(
        text_config={**SIZES, "projection_dim": WIDTH, "bos_token_id": 1, "eos_token_id": WORDS - 1},
        vision_config={**images, **OF_IMAGES, "projection_dim": WIDTH},
        projection_dim=WIDTH,
    )
    return transformers.CLIPModel(config)


TRANSFORMERS = {
    "BERT": _encoder("Bert"),
    "RoBERTa": _encoder("Roberta"),
    "DistilBERT": _encoder("DistilBert", **OF_DISTILBERT),
    "ALBERT": _encoder("Albert", **SIZES, embedding_size=32),
    "ELECTRA": _encoder("Electra", **SIZES, embedding_size=32),
    "DeBERTa-v2": _encoder("DebertaV2", **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "MPNet": _encoder("MPNet"),
    "T5": _seq2seq("T5", **OF_T5),
    "BART": _seq2seq("Bart", **OF_BART),
    "ViT": Architecture(partial(_transformers, "ViT", "Model", **SIZES, **OF_IMAGES), _image),
    "CLIP": Architecture(_clip, lambda: _words("input_ids") | _image()),
    "Whisper": Architecture(
        partial(
            _transformers, "Whisper", "ForConditionalGeneration", **OF_BART,
            num_mel_bins=16, max_source_positions=TOKENS, max_target_positions=64,
        ),
        _whisper_inputs,
        "input_features",
    ),
    "GPT-2": _decoder("GPT2", "LMHeadModel", **OF_GPT2),
    "GPT-NeoX": _decoder("GPTNeoX"),
    "OPT": _decoder("OPT", **SIZES, ffn_dim=2 * WIDTH, word_embed_proj_dim=WIDTH),
    "Llama": _decoder("Llama", **SIZES, **NO_WINDOW),
    "Mistral": _decoder("Mistral", **SIZES, **NO_WINDOW),
    "Qwen2": _decoder("Qwen2", **SIZES, **NO_WINDOW),
    "Qwen3-MoE": _decoder("Qwen3Moe", **SIZES, **NO_WINDOW, **OF_EXPERTS, head_dim=WIDTH // HEADS),
    "Mixtral": _decoder("Mixtral", **SIZES, **NO_WINDOW, num_local_experts=4),
    "Mamba without `dt_proj`": _decoder(
        "Mamba", left=".dt_proj", vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS
    ),
}  # fmt: skip


class _Called(nn.Module):
    """A layer of torch.nn as a model that takes its inputs by name, and gives one tensor."""

    def __init__(self, layer: nn.Module, times: int) -> None:
        super().__init__()
        self.layer = layer
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        """The layer may want its input several times, and give more than one output."""
        found = self.layer(*(x for _ in range(self.times)))
        return found if isinstance(found, Tensor) else found[0]


def _layer(make: Callable[[], nn.Module], times: int = 1, words: bool = False) -> Architecture:
    def inputs() -> dict[str, Tensor]:
        return {"x": torch.randint(0, WORDS, (BATCH, WIDTH)) if words else torch.randn(BATCH, TOKENS, WIDTH)}

    return Architecture(lambda: _Called(make(), times), inputs)


_FOR_LAYERS = dict(nhead=HEADS, dim_feedforward=2 * WIDTH, batch_first=True)
LAYERS_OF_TORCH = {
    "Linear": _layer(lambda: nn.Linear(WIDTH, WIDTH)),
    "Bilinear": _layer(lambda: nn.Bilinear(WIDTH, WIDTH, 8), 2),
    "MultiheadAttention": _layer(lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), 3),
    "TransformerEncoderLayer": _layer(lambda: nn.TransformerEncoderLayer(WIDTH, **_FOR_LAYERS)),
    "TransformerDecoderLayer": _layer(lambda: nn.TransformerDecoderLayer(WIDTH, **_FOR_LAYERS), 2),
    "Transformer": _layer(
        lambda: nn.Transformer(WIDTH, num_encoder_layers=LAYERS, num_decoder_layers=LAYERS, **_FOR_LAYERS), 2
    ),
    "LSTM": _layer(lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True)),
    "GRU": _layer(lambda: nn.GRU(WIDTH, WIDTH, batch_first=True)),
    "Embedding": _layer(lambda: nn.Embedding(WORDS, WIDTH), words=True),
    "Conv1d": _layer(lambda: nn.Conv1d(TOKENS, WIDTH, 3)),
}
ARCHITECTURES = TRANSFORMERS | {f"`nn.{name}`": layer for name, layer in LAYERS_OF_TORCH.items()}


@dataclass
class Tiny:
    """A model of random weights, its inputs, and what it gives for them."""

    model: nn.Module
    inputs: dict[str, Tensor]
    outputs: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = outputs_of(self.model, self.inputs)


@torch.no_grad()
def tiny(architecture: Architecture) -> Tiny:
    """The same weights and inputs each time. Each matrix keeps the size of its input, so that all layers matter."""
    torch.manual_seed(0)
    model = architecture.make().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5 if parameter.dim() != 3 else parameter.shape[-1] ** -0.5)
    return Tiny(model, architecture.inputs())


@torch.no_grad()
def outputs_of(model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
    """All floats of the first output, or a model's logits or last hidden states."""
    found = model(**inputs)
    for name in ("logits", "last_hidden_state", "text_embeds"):
        if getattr(found, name, None) is not None:
            if name == "text_embeds":
                return torch.cat([found.text_embeds, found.image_embeds])
            return getattr(found, name)
    return found
