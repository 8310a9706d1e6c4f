"""Copies of quantized models: of another dtype, by state dicts, under autocast, in other processes."""

import copy
from collections.abc import Callable
from itertools import product
from multiprocessing.reduction import ForkingPickler

import cases
import pytest
import torch
from models import (
    EACH_FIRST,
    FIRST,
    GROUPED,
    HIDDEN,
    K,
    N,
    assert_same_results,
    float_model,
    quantized_layers,
    quantized_model,
)
from tensors import assert_same_weight
from torch import Tensor
from torchao.core.config import AOBaseConfig

import ao_arm
from ao_arm import packed_weight_of, packing

pytestmark = pytest.mark.x86


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, cases.saved_and_loaded], ids=["deepcopy", "torch.save and torch.load"]
)
@EACH_FIRST
def test_copies_show_their_own_weight(
    first: AOBaseConfig, copied: Callable[[torch.nn.Module], torch.nn.Module]
) -> None:
    model = quantized_model(first)
    made = copied(model)
    assert_same_results(made, model)
    assert repr(made) == repr(model)
    for part in (
        f"in_features={K}, out_features={HIDDEN}, bias=True",
        "weight=ACLPackedTensor",
        cases.packed_in(model[0]).scheme,
    ):
        assert part in made[0].extra_repr()
    made[0].weight = torch.nn.Parameter(torch.zeros(HIDDEN, K))
    assert "int8 static (asymmetric uint8" in made[2].extra_repr()
    assert "ACLPackedTensor" not in made[0].extra_repr()
    assert "ACLPackedTensor" in model[0].extra_repr()


@EACH_FIRST
def test_deepcopies_are_independent(first: AOBaseConfig) -> None:
    model = quantized_model(first)
    copied, untouched = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for inner in cases.packed_in(copied[0])._inner().values():
            inner.zero_()
        cases.packed_in(copied[2]).act_scale.mul_(2)
        copied[2].bias.zero_()
    assert_same_results(model, untouched)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
@EACH_FIRST
def test_models_change_their_dtype(first: AOBaseConfig, dtype: torch.dtype) -> None:
    model = quantized_model(first)
    converted = copy.deepcopy(model).to(dtype)
    assert {parameter.dtype for parameter in converted.parameters()} == {dtype}
    x = torch.randn(5, K, dtype=dtype)
    with torch.no_grad():
        assert converted(x).dtype == dtype
        assert cases.sqnr(model(x.float()), converted(x).float()) > 30
    for original, other in ((model[0], converted[0]), (model[2], converted[2])):
        assert torch.equal(cases.packed_in(original).qdata, cases.packed_in(other).qdata)


def test_assign_replaces_weights_of_either_kind() -> None:
    for source, target in (
        (float_model(), quantized_model()),
        (quantized_model(), float_model()),
        (quantized_model(GROUPED), quantized_model()),
    ):
        target.load_state_dict(source.state_dict(), assign=True)
        assert quantized_layers(target) == quantized_layers(source)
        assert_same_results(target, source)


@pytest.mark.parametrize("assign", [False, True], ids="assign={}".format)
def test_packed_weights_load_into_a_quantized_model(assign: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another kernel had packed them."""
    grouped = packing.problem_of(HIDDEN, K, GROUPED.layout(K))
    for first, kernels in product(FIRST.values(), cases.KERNEL_PAIRS):
        if first is GROUPED and not cases.fits(kernels.partition(",")[2], *grouped):
            continue
        monkeypatch.setenv("AO_ARM_KERNEL", kernels)
        source = quantized_model(first)
        monkeypatch.delenv("AO_ARM_KERNEL")
        target = quantized_model(first)
        target.load_state_dict(source.state_dict(), assign=assign)
        assert_same_results(target, source)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.name_of)
@EACH_FIRST
def test_autocast(first: AOBaseConfig, dtype: torch.dtype) -> None:
    model, x = quantized_model(first), torch.randn(5, K)
    outside = model(x)
    with torch.autocast("cpu", dtype):
        assert cases.same_bits(model(x), model(x.to(dtype)))
        assert model(x).dtype == dtype
        with torch.autocast("cpu", enabled=False):
            assert cases.same_bits(model(x), outside)
    assert cases.same_bits(model(x), outside)


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "first"),
    [(torch.bfloat16, FIRST["grouped"]), (torch.float16, FIRST["dynamic"])],
    ids=["bfloat16-grouped", "float16-dynamic"],
)
@pytest.mark.slow
def test_autocast_around_a_compiled_model(dtype: torch.dtype, first: AOBaseConfig) -> None:
    torch._dynamo.reset()
    model, x = quantized_model(first), torch.randn(5, K)
    compiled = torch.compile(model, fullgraph=True)
    assert cases.same_bits(compiled(x), model(x))
    with torch.autocast("cpu", dtype):
        assert compiled(x).dtype == dtype
        assert cases.same_bits(compiled(x), model(x))
    assert cases.same_bits(compiled(x), model(x))


def use_and_change(model: torch.nn.Module, x: Tensor, result: Tensor) -> None:
    """What another process does with a model that it was given."""
    with torch.no_grad():
        result.copy_(model(x))
        cases.packed_in(model[2]).scale.mul_(2)
        model[2].bias.mul_(2)
        cases.packed_in(model[2]).act_zero_point.zero_()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("ask", "first"), [(True, FIRST["dynamic"]), (False, FIRST["grouped"])], ids=["share_memory", "without asking"]
)
def test_processes_share_the_memory_of_a_model(ask: bool, first: AOBaseConfig) -> None:
    """Without share_memory(), torch.multiprocessing calls it; the other process packs no copy of its own."""
    model, x = quantized_model(first), torch.randn(5, K)
    expected = model(x)
    if ask:
        assert model.share_memory() is model
    result = torch.zeros(5, N).share_memory_()
    process = torch.multiprocessing.get_context("spawn").Process(target=use_and_change, args=(model, x, result))
    process.start()
    process.join()
    assert process.exitcode == 0
    for layer in (model[0], model[2]):
        packed = cases.packed_in(layer)
        assert all(inner.is_shared() for inner in packed._inner().values()) and layer.bias.is_shared()
    assert cases.same_bits(result, expected)
    assert int(cases.packed_in(model[2]).act_zero_point) == 0
    cases.packed_in(model[2]).act_zero_point.fill_(9)
    assert cases.same_bits(model(x), 2 * expected)


def test_tensors_for_other_processes_arrive_as_they_are() -> None:
    weight = quantized_model()[0].weight
    smoothed = weight.clone()
    smoothed.act_pre_scale = torch.rand(K)
    plain = ao_arm.ACLPackedTensor.from_hp(torch.randn(N, K))
    static = quantized_model()[2].weight
    grouped = quantized_model(GROUPED)[0].weight
    for sent in (weight, weight.detach(), smoothed, plain, plain.t(), static, grouped):
        received = ForkingPickler.loads(ForkingPickler.dumps(sent))
        assert type(received) is type(sent)
        assert isinstance(received, torch.nn.Parameter) == isinstance(sent, torch.nn.Parameter)
        assert (received.shape, received.dtype) == (sent.shape, sent.dtype)
        assert torch.equal(received.dequantize(), sent.dequantize())
        ours, theirs = packed_weight_of(sent), packed_weight_of(received)
        assert_same_weight(theirs, ours)
        assert list(theirs._inner()) == list(ours._inner())
        assert all(torch.equal(inner, theirs._inner()[name]) for name, inner in ours._inner().items())
