"""`observe_importance`: what layers remember, and what `search=True` makes of it."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import FqnToConfig, MappingType, quantize_

import ao_arm
from ao_arm.importance import importance_of

pytestmark = pytest.mark.x86

SEARCHED = ao_arm.acl_int4_grouped(32, search=True)


def uneven(rows: int) -> Tensor:
    """Inputs of which few columns are large, as those of language models are."""
    return (
        torch.randn(rows, 96)
        * torch.logspace(-2, 1, 96)[torch.randperm(96, generator=torch.Generator().manual_seed(3))]
    )


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 40)).eval()


def test_layers_remember_the_mean_squares_of_their_inputs(model: nn.Sequential) -> None:
    batches = [uneven(5), uneven(7).view(1, 7, 96)]
    before = set(model.state_dict())
    ao_arm.observe_importance(model, iter(batches))
    seen = torch.cat([batch.flatten(0, -2) for batch in batches])
    torch.testing.assert_close(importance_of(model[0]), seen.square().mean(dim=0))
    with torch.no_grad():
        hidden = model[:2](seen)
    torch.testing.assert_close(importance_of(model[2]), hidden.square().mean(dim=0))
    assert set(model.state_dict()) == before and not model[0]._forward_pre_hooks
    other = [(uneven(3),)]
    ao_arm.observe_importance(model, other)  # anew, not on top
    torch.testing.assert_close(importance_of(model[0]), other[0][0].square().mean(dim=0))


@pytest.mark.parametrize("mapping", [MappingType.SYMMETRIC, MappingType.ASYMMETRIC], ids=lambda mapping: mapping.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_searched_layers_err_less_for_inputs_like_those_seen(
    mapping: MappingType, dtype: torch.dtype, model: nn.Sequential
) -> None:
    model = model.to(dtype)
    seen, unseen = uneven(64).to(dtype), uneven(64).to(dtype)
    ao_arm.observe_importance(model, [seen])
    errors = []
    with torch.no_grad():
        exact = model[0](unseen).float()
        for search in (False, True):
            layer = nn.Sequential(copy.deepcopy(model[0]))
            quantize_(layer, ao_arm.acl_int4_grouped(32, mapping, search=search))
            exact_inputs = torch.nn.functional.linear(unseen.float(), layer[0].weight.dequantize().float())
            errors.append(float((exact_inputs + model[0].bias.float() - exact).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_a_layer_forgets_when_it_is_quantized(model: nn.Sequential) -> None:
    ao_arm.observe_importance(model, [uneven(8)])
    quantize_(model, FqnToConfig({"0": SEARCHED}), filter_fn=None)
    assert importance_of(model[0]) is None and importance_of(model[2]) is not None
    assert "_ao_arm_importance" not in vars(model[0])


def test_search_without_inputs_is_refused_and_leaves_the_layer(model: nn.Sequential) -> None:
    message = (
        r"was not quantized: search=True needs to know its inputs, and it got none: "
        r"ao_arm.observe_importance\(model, inputs\) first, with inputs that reach this layer, or leave search out$"
    )
    with pytest.raises(ValueError, match=message):
        quantize_(model, SEARCHED)
    model.unused = nn.Linear(32, 8)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    ao_arm.observe_importance(model, [uneven(8)])
    with pytest.raises(ValueError, match=rf"unused.*{message}"):
        quantize_(model, SEARCHED)
    assert type(model.unused.weight.data) is Tensor


def test_inputs_that_tell_nothing_are_refused(model: nn.Sequential) -> None:
    with pytest.raises(ValueError, match=r"^there are no inputs"):
        ao_arm.observe_importance(model, [])
    with pytest.raises(ValueError, match=r"^the inputs of 0 hold values that are not finite"):
        ao_arm.observe_importance(model, [torch.full((1, 96), math.nan)])
    assert not any(layer._forward_pre_hooks for layer in model)
