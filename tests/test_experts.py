"""Experts of transformers' models: 3-D parameters, of which each expert's weight is packed."""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from models import EACH_FIRST, FIRST
from torch import Tensor, nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig, quantize_

import ao_arm
from ao_arm import ACLPackedExperts, quantizable

pytestmark = pytest.mark.one_cpu

WIDTH, INNER, EXPERTS = 64, 96, 4
COMMON = dict(
    hidden_size=WIDTH,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=50,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)
#: Gated experts (e, n, k), and those of (e, k, n) with biases.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", dict(intermediate_size=INNER, num_local_experts=EXPERTS)),
    "gpt-oss": ("GptOssConfig", dict(intermediate_size=INNER, num_local_experts=EXPERTS, head_dim=16)),
}
EACH_MODEL = pytest.mark.parametrize("kind", MODELS)


def model_of(kind: str) -> Any:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    name, arguments = MODELS[kind]
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**COMMON, **arguments)).eval()


def experts_of(kind: str, config: AOBaseConfig = FIRST["dynamic"]) -> tuple[nn.Module, nn.Module]:
    """A layer's experts, and them packed."""
    experts = model_of(kind).model.layers[0].mlp.experts
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    packed = copy.deepcopy(experts)
    quantize_(packed, config, filter_fn=quantizable)
    return experts, packed


def routed(tokens: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of a layer of experts: no token goes to the last one."""
    chosen = torch.rand(tokens, EXPERTS - 1).argsort(dim=1)[:, :2]
    return torch.randn(tokens, WIDTH), chosen, torch.rand(tokens, 2)


def floats_of(packed: ACLPackedExperts) -> ACLPackedExperts:
    return packed.transpose(1, 2) if packed.transposed else packed


@torch.no_grad()
@EACH_MODEL
@EACH_FIRST
def test_each_expert_is_the_packed_weight_of_a_linear_layer(first: AOBaseConfig, kind: str) -> None:
    exact, packed = experts_of(kind, first)
    for name in ("gate_up_proj", "down_proj"):
        weight, floats = getattr(packed, name), getattr(exact, name)
        assert type(weight) is ACLPackedExperts and weight.shape == floats.shape and weight.dtype == floats.dtype
        for i in range(EXPERTS):
            matrix = floats[i].t() if weight.transposed else floats[i]
            linear = nn.Linear(*matrix.t().shape, bias=False)
            linear.weight.copy_(matrix)
            quantize_(linear, first)
            x = torch.randn(5, matrix.shape[1])
            for one in (
                weight[i],
                weight[torch.tensor(i)],
                weight.select(0, i),
                weight.unbind(0)[i],
                weight[i - EXPERTS],
            ):
                assert cases.same_bits(x @ one if weight.transposed else F.linear(x, one), linear(x)), (name, i)
            assert weight[i].packed_weight.data_ptr() % 64 == 0
            assert torch.equal(weight.dequantize()[i], weight[i].dequantize())


@EACH_MODEL
@EACH_FIRST
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_implementations_agree(
    grad: Callable[[], AbstractContextManager[None]], first: AOBaseConfig, kind: str
) -> None:
    """Looped, as each model writes it, and grouped; against floats of the packed values."""
    exact, packed = experts_of(kind, first)
    x, chosen, weights = routed()
    outputs = {}
    for implementation in ("eager", "grouped_mm"):
        packed.config._experts_implementation = exact.config._experts_implementation = implementation
        with grad():
            outputs[implementation] = packed(x, chosen, weights).detach()
            expected = exact(x, chosen, weights).detach()
        assert cases.sqnr(expected, outputs[implementation]) > (12 if first is FIRST["grouped"] else 30)
    assert cases.sqnr(outputs["eager"], outputs["grouped_mm"]) > 90


@torch.no_grad()
@EACH_FIRST
def test_grouped_products_are_those_of_each_expert(first: AOBaseConfig) -> None:
    weight = experts_of("mixtral", first)[1].down_proj
    x, ends = torch.randn(9, INNER), torch.tensor([2, 2, 7, 8], dtype=torch.int32)
    actual = F.grouped_mm(x, weight.transpose(-2, -1), offs=ends)
    begin = 0
    for i, end in enumerate(ends.tolist()):
        assert cases.same_bits(actual[begin:end], F.linear(x[begin:end], weight[i])), i
        begin = end
    assert not actual[8:].any()
    torch.library.opcheck(
        torch.ops.ao_arm.grouped_linear.default,
        (x, ends, weight.packed_weight, weight.weight_scale, weight.packed_bytes, WIDTH, True, True),
    )


@pytest.mark.x86
@pytest.mark.slow
@torch.no_grad()
@EACH_FIRST
def test_grouped_experts_compile_to_one_graph(first: AOBaseConfig) -> None:
    packed = experts_of("mixtral", first)[1]
    packed.config._experts_implementation = "grouped_mm"
    torch._dynamo.reset()
    compiled = torch.compile(packed, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (9, 5):
        inputs = routed(tokens)
        assert cases.sqnr(packed(*inputs), compiled(*inputs)) > 90


def by_safetensors(experts: nn.Module) -> nn.Module:
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    tensors, metadata = support.flatten_tensor_state_dict(nn.Sequential(experts).state_dict())
    assert all(type(tensor) is Tensor for tensor in tensors.values())
    state, left = support.unflatten_tensor_state_dict(tensors, metadata)
    copied = copy.deepcopy(experts)
    nn.Sequential(copied).load_state_dict({**state, **left}, assign=True)
    return copied


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda experts: pickle.loads(pickle.dumps(experts)),
    "saved and loaded": cases.saved_and_loaded,
    "safetensors": by_safetensors,
    "to": lambda experts: experts.to(torch.float32),
}


@torch.no_grad()
@EACH_MODEL
@EACH_FIRST
@pytest.mark.parametrize("way", cases.thinned([*COPIES]))
def test_copies_are_the_same_experts(way: str, first: AOBaseConfig, kind: str) -> None:
    packed = experts_of(kind, first)[1]
    copied = COPIES[way](packed)
    inputs = routed()
    assert type(copied.down_proj) is ACLPackedExperts and copied.down_proj.transposed == packed.down_proj.transposed
    assert cases.same_bits(copied(*inputs), packed(*inputs))


@torch.no_grad()
def test_state_is_copied_into_experts() -> None:
    (_, first), (_, second) = experts_of("mixtral"), experts_of("mixtral")
    inputs = routed()
    expected = second(*inputs)
    first(*inputs)  # has seen its own experts
    first.load_state_dict(second.state_dict())
    assert cases.same_bits(first(*inputs), expected)
    with pytest.raises(RuntimeError, match="cannot be copied into"):
        first.load_state_dict(experts_of("mixtral", FIRST["grouped"])[1].state_dict())
    with pytest.raises(RuntimeError, match="quantize_ the model first, or use load_state_dict"):
        first.load_state_dict(experts_of("mixtral")[0].state_dict())


def test_damaged_experts_are_refused() -> None:
    function, (state,) = ao_arm.checkpoint.reduce_experts(experts_of("mixtral")[1].down_proj)
    assert function(state).shape == (EXPERTS, WIDTH, INNER)
    state["qdata"][1, 2, 3] += 1
    with pytest.raises(ValueError, match=r"is damaged: .*of shape \(4, 64, 96\)"):
        function(state)
    with pytest.raises(ValueError, match="saved in version 99"):
        function({**state, "version": 99})


def test_experts_are_explained() -> None:
    model = model_of("mixtral")
    before = ao_arm.explain(model).coverage
    quantize_(model, ao_arm.acl_int8_dynamic(), filter_fn=quantizable)
    explanation = ao_arm.explain(model)
    assert before.share == 0 and "MixtralExperts.gate_up_proj" in str(before)
    assert explanation.coverage.share > 0.9 and "MixtralExperts" not in str(explanation.coverage)
    rows = {layer.name: layer for layer in explanation}
    layer = rows["model.layers.0.mlp.experts.down_proj"]
    weight = model.model.layers[0].mlp.experts.down_proj
    assert (layer.experts, layer.shape, layer.size) == (EXPERTS, (WIDTH, INNER), f"{EXPERTS} x {WIDTH} x {INNER}")
    assert layer.kernel == weight[0].kernel and layer.scheme == weight.scheme
    assert f"{EXPERTS} x {WIDTH} x {INNER}" in str(explanation)
    # A byte for each value, and what is around: headers, sums, scales.
    assert weight.numel() < weight.nbytes < weight.numel() + EXPERTS * (256 + 8 * WIDTH + 64 * WIDTH)


def test_what_experts_cannot_do_is_refused() -> None:
    exact, packed = experts_of("mixtral")
    for index in (torch.tensor([0, 1]), slice(0, 2), (0, 1)):
        with pytest.raises(
            NotImplementedError, match=r"as an index of experts.*set_experts_implementation\('grouped_mm"
        ):
            packed.down_proj[index]
    with pytest.raises(NotImplementedError, match="last two dimensions can be swapped"):
        packed.down_proj.transpose(0, 1)
    with pytest.raises(NotImplementedError, match=r"multiply as F\.grouped_mm"):
        F.grouped_mm(torch.randn(4, 3, WIDTH), packed.down_proj.transpose(-2, -1))
    named = r"the parameter 'gate_up_proj' of MixtralExperts\(\) "
    for config, error, why in (
        (ao_arm.acl_int8_static("prepare"), NotImplementedError, "was not quantized: experts quantize activations"),
        (ao_arm.acl_int8_static(act_scale=0.1), NotImplementedError, "was not quantized: experts quantize activations"),
        (ao_arm.acl_int4_grouped(128), ValueError, "was not quantized: k = 64 is no multiple of the group size 128"),
    ):
        with pytest.raises(error, match=named + why):
            quantize_(exact, config, filter_fn=quantizable)
    exact.config._experts_implementation = "batched_mm"
    with pytest.raises(
        NotImplementedError, match=named + "was not quantized: its experts_implementation is 'batched_mm'"
    ):
        quantize_(exact, ao_arm.acl_int8_dynamic(), filter_fn=quantizable)
    assert type(exact.gate_up_proj) is nn.Parameter
    other = nn.ParameterDict({"weight": torch.randn(2, 3, 4)})
    with pytest.raises(ValueError, match=r"(?s)'a.weight' of ParameterDict.*must be a matrix \(n, k\)"):
        quantize_(nn.ModuleDict({"a": other}), FqnToConfig(OrderedDict({"a.weight": ao_arm.acl_int8_dynamic()})), None)


def test_experts_are_chosen_by_name() -> None:
    model = model_of("mixtral")
    name = "model.layers.0.mlp.experts.down_proj"
    quantize_(model, FqnToConfig(OrderedDict({name: ao_arm.acl_int4_grouped()})), filter_fn=None)
    experts = model.model.layers[0].mlp.experts
    assert type(experts.down_proj) is ACLPackedExperts and type(experts.gate_up_proj) is nn.Parameter


@pytest.mark.parametrize("implementation", ("eager", "grouped_mm"))
def test_gradients_flow_through_experts(implementation: str) -> None:
    exact, packed = experts_of("mixtral")
    with torch.no_grad():
        for name, parameter in exact.named_parameters():
            parameter.copy_(getattr(packed, name).dequantize())
    rows, *route = routed()
    gradients = []
    for module in (exact, packed):
        module.config._experts_implementation = implementation
        x = rows.clone().requires_grad_()
        module(x, *route).square().mean().backward()
        gradients.append(x.grad.flatten())
    assert F.cosine_similarity(*gradients, 0) > 0.999
