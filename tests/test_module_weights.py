"""Modules other than nn.Linear whose weights are packed: transformers' Conv1D, nn.MultiheadAttention, what has it."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from models import EACH_FIRST, FIRST, is_packed
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig, quantize_

import ao_arm
from ao_arm import packed_weight_of, quantizable

pytestmark = pytest.mark.one_cpu

WIDTH = 64


def quantize(model: nn.Module, config: AOBaseConfig = FIRST["dynamic"]) -> nn.Module:
    quantize_(model, config, filter_fn=quantizable)
    return model


def test_quantizable_takes_what_multiplies() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "embedding": nn.Embedding(4, 4),
            "convolution": nn.Conv1d(4, 4, 1),
            "norm": nn.LayerNorm(4),
            "other attention": torch.ao.nn.quantizable.MultiheadAttention(4, 2),
        }
    )
    assert [name for name, module in model.items() if quantizable(module, name)] == ["linear", "attention"]
    assert not quantizable(model["attention"].out_proj)  # by the attention


# --- Conv1D ---


def conv1d(k: int = WIDTH, n: int = 96) -> nn.Module:
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(n, k)
    nn.init.normal_(layer.bias)
    return layer


@torch.no_grad()
@EACH_FIRST
@pytest.mark.parametrize(
    "copied", [lambda layer: layer, copy.deepcopy, cases.saved_and_loaded], ids=["it", "copy", "loaded"]
)
def test_conv1d_is_the_linear_layer_of_its_transpose(
    first: AOBaseConfig, copied: Callable[[nn.Module], nn.Module]
) -> None:
    layer = conv1d()
    linear = nn.Linear(WIDTH, 96)
    linear.load_state_dict({"weight": layer.weight.t().contiguous(), "bias": layer.bias})
    layer, linear = copied(quantize(layer, first)), quantize(linear, first)
    assert layer.weight.shape == (WIDTH, 96) and packed_weight_of(layer.weight).weight_shape == (96, WIDTH)
    assert torch.equal(packed_weight_of(layer.weight).qdata, packed_weight_of(linear.weight).qdata)
    for shape in ((1,), (5,), (2, 3)):
        x = torch.randn(*shape, WIDTH)
        assert cases.same_bits(layer(x), linear(x)), shape


@torch.no_grad()
def test_conv1d_in_safetensors() -> None:
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    layer, other, x = quantize(conv1d()), conv1d(), torch.randn(5, WIDTH)
    state, left = support.unflatten_tensor_state_dict(
        *support.flatten_tensor_state_dict(nn.Sequential(layer).state_dict())
    )
    nn.Sequential(other).load_state_dict({**state, **left}, assign=True)
    assert other.weight.shape == (WIDTH, 96) and cases.same_bits(other(x), layer(x))


@torch.no_grad()
def test_conv1d_is_calibrated() -> None:
    layer, linear = conv1d(), nn.Linear(WIDTH, 96)
    linear.load_state_dict({"weight": layer.weight.t().contiguous(), "bias": layer.bias})
    x = torch.randn(8, WIDTH)
    for step in ("prepare", "convert"):
        for module in (layer, linear):
            quantize(module, ao_arm.acl_int8_static(step))
        assert cases.same_bits(layer(x), linear(x)) or step == "prepare"
    assert packed_weight_of(layer.weight).act_quantization == packed_weight_of(linear.weight).act_quantization


@torch.no_grad()
def test_gpt2_is_quantized_but_for_its_embeddings() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=WIDTH, n_layer=2, n_head=2, vocab_size=128, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model, tokens = transformers.AutoModelForCausalLM.from_config(config).eval(), torch.randint(0, 128, (2, 9))
    expected = model(tokens).logits
    quantize(model)
    floats = [name for name, parameter in model.named_parameters() if parameter.dim() > 1 and not is_packed(parameter)]
    assert floats == ["transformer.wte.weight", "transformer.wpe.weight"]
    assert cases.sqnr(expected, model(tokens).logits) > 30


# --- nn.MultiheadAttention ---


def projected(attention: nn.MultiheadAttention, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Queries, keys and values, by linear layers with the packed weights."""
    if attention.in_proj_weight is None:
        named = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        return [F.linear(x, weight, bias) for x, weight, bias in zip(inputs, named, biases, strict=True)]
    whole = [F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1) for x in inputs]
    return [whole[i][i] for i in range(3)]


def attended(attention: nn.MultiheadAttention, inputs: tuple[Tensor, ...]) -> Tensor:
    """What attention has to give for inputs (batch, length, width)."""
    heads = [x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in projected(attention, inputs)]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "no bias, batch first": {"bias": False, "batch_first": True},
    "other widths of keys and values": {"kdim": 32, "vdim": 96},
}


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("kind", ATTENTIONS)
@EACH_FIRST
def test_attention_multiplies_by_packed_weights(
    first: AOBaseConfig, kind: str, grad: Callable[[], AbstractContextManager[None]]
) -> None:
    attention = nn.MultiheadAttention(WIDTH, 4, **ATTENTIONS[kind]).eval()
    for bias in (attention.in_proj_bias, attention.out_proj.bias):
        if bias is not None:
            nn.init.normal_(bias)
    quantize(attention, first)
    assert all(is_packed(parameter) for parameter in attention.parameters() if parameter.dim() > 1)
    x, k, v = (torch.randn(3, 5, width) for width in (WIDTH, attention.kdim, attention.vdim))
    cases_of_inputs = [(x, k, v)] if attention.kdim != WIDTH else [(x, x, x), (x, k, k), (x, k, v), (x, k, k)]
    with grad():
        for inputs in cases_of_inputs:
            given = (
                inputs
                if attention.batch_first
                else tuple({id(t): t.transpose(0, 1) for t in inputs}[id(t)] for t in inputs)
            )
            for need_weights in (True, False):
                actual = attention(*given, need_weights=need_weights)[0]
                actual = actual if attention.batch_first else actual.transpose(0, 1)
                assert cases.sqnr(attended(attention, inputs), actual) > 45, need_weights


def test_attention_keeps_the_parts_of_its_weight() -> None:
    """Cross-attention splits it in each call; what it was split into goes when the weight is changed."""
    attention, other = (quantize(nn.MultiheadAttention(WIDTH, 4).eval()) for _ in range(2))
    weight = packed_weight_of(attention.in_proj_weight)
    bytes_before, x, memory = weight.nbytes, torch.randn(3, 1, WIDTH), torch.randn(5, 1, WIDTH)
    with torch.no_grad():
        first = attention(x, memory, memory)[0]
        kept = dict(weight._parts)
        assert cases.same_bits(attention(x, memory, memory)[0], first) and weight.nbytes > bytes_before
        assert len(kept) == 2 and all(weight._parts[key] is part for key, part in kept.items())
        attention.load_state_dict(other.state_dict())
        assert cases.same_bits(attention(x, memory, memory)[0], other(x, memory, memory)[0])
        assert not cases.same_bits(attention(x, memory, memory)[0], first)


@pytest.mark.x86
@pytest.mark.slow
def test_a_graph_that_splits_a_packed_weight_is_warned_of() -> None:
    attention = quantize(nn.MultiheadAttention(WIDTH, 4).eval())
    x, memory = torch.randn(3, 1, WIDTH), torch.randn(5, 1, WIDTH)
    torch._dynamo.reset()
    compiled = torch.compile(attention, backend="aot_eager")
    with torch.no_grad():
        with pytest.warns(UserWarning, match=r"shape \(192, 64\) is split in a graph.*torch.compiler.disable"):
            crossed = compiled(x, memory, memory)[0]
        assert cases.sqnr(attention(x, memory, memory)[0], crossed) > 60
        assert cases.sqnr(attention(x, x, x)[0], compiled(x, x, x)[0]) > 60


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_encoders_do_not_take_torchs_own_path(grad: Callable[[], AbstractContextManager[None]]) -> None:
    """That reads weights as floats, and makes nested tensors of padded batches."""
    exact = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 96, batch_first=True), 2).eval()
    model = quantize(copy.deepcopy(exact))
    assert sum(is_packed(parameter) for parameter in model.parameters()) == 8
    x, padding = torch.randn(3, 7, WIDTH), torch.arange(7) >= torch.tensor([[7], [5], [1]])
    with grad():
        assert cases.sqnr(exact(x), model(x)) > 35
        alone = model(x[1:2, :5])
        together = model(x, src_key_padding_mask=padding)
        assert cases.sqnr(exact(x, src_key_padding_mask=padding)[~padding], together[~padding]) > 35
        assert cases.sqnr(alone[0], together[1, :5]) > 35


@torch.no_grad()
@EACH_FIRST
def test_a_transformer_is_saved_and_loaded(first: AOBaseConfig) -> None:
    exact = nn.Transformer(WIDTH, 4, 1, 1, 96, batch_first=True).eval()
    model, inputs = quantize(copy.deepcopy(exact), first), (torch.randn(2, 6, WIDTH), torch.randn(2, 5, WIDTH))
    assert cases.sqnr(exact(*inputs), model(*inputs)) > (12 if first is FIRST["grouped"] else 30)
    assert cases.same_bits(cases.saved_and_loaded(model)(*inputs), model(*inputs))


def test_parameters_of_attention_are_chosen_by_name() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(WIDTH, 4)})
    config = ao_arm.acl_int8_dynamic()
    quantize_(model, FqnToConfig(OrderedDict({"attention.in_proj_weight": config})), filter_fn=None)
    assert is_packed(model["attention"].in_proj_weight) and not is_packed(model["attention"].out_proj.weight)
    quantize_(model, FqnToConfig(OrderedDict({"attention": config})), filter_fn=None)
    assert is_packed(model["attention"].out_proj.weight)
    assert "in_proj_weight=ACLPackedTensor(" in repr(model)


def test_a_module_is_quantized_as_a_whole_or_not_at_all() -> None:
    attention = nn.MultiheadAttention(WIDTH, 4)
    attention.out_proj.weight.data[0, 3] = float("nan")
    with pytest.raises(ValueError, match=r"'out_proj.weight' of MultiheadAttention.*was not quantized: it holds nan"):
        quantize(attention)
    assert not any(is_packed(parameter) for parameter in attention.parameters())
