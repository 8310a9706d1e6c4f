"""Weights on a torchao with AffineQuantizedTensor, up to 0.17: of that class, with our layout."""

import copy

import cases
import pytest
import torch
from torch import nn
from torchao.quantization import MappingType, quantize_

from ao_arm import ACLPackedLayout, ACLPackedTensor, acl_int8_dynamic, reference

pytestmark = pytest.mark.skipif(not cases.HAS_AQT, reason="this torchao has no AffineQuantizedTensor")


@pytest.mark.parametrize("per_channel", [True, False], ids=["per_channel", "per_tensor"])
@pytest.mark.parametrize("dtype", cases.FLOATS, ids=cases.name_of)
def test_torchao_makes_affine_quantized_tensors_with_our_layout(per_channel: bool, dtype: torch.dtype) -> None:
    from torchao.dtypes import to_affine_quantized_intx
    from torchao.quantization.quant_primitives import ZeroPointDomain

    original, x = torch.randn(33, 64, dtype=dtype), torch.randn(5, 64, dtype=dtype)
    weight = to_affine_quantized_intx(
        original,
        mapping_type=MappingType.SYMMETRIC,
        block_size=(1 if per_channel else 33, 64),
        target_dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        eps=torch.finfo(torch.float32).eps,
        scale_dtype=torch.float32,
        zero_point_domain=ZeroPointDomain.NONE,
        _layout=ACLPackedLayout(),
    )
    assert type(weight.tensor_impl) is ACLPackedTensor
    qdata, scale, zero_point = weight.tensor_impl.get_plain()
    assert zero_point is None
    assert scale.shape == (33 if per_channel else 1,)
    expected = reference.linear_int8_dynamic(x, qdata, scale.expand(33), None, True, True)
    assert cases.same_bits(torch.nn.functional.linear(x, weight), expected)
    assert cases.same_bits(x @ weight.t(), expected)
    half_a_step = 0.51 * float(scale.max())
    torch.testing.assert_close(weight.dequantize(), original, atol=half_a_step, rtol=torch.finfo(dtype).eps)


def test_affine_quantized_weights_behave_as_the_packed_tensor() -> None:
    model, x, bias = nn.Sequential(nn.Linear(64, 96)), torch.randn(5, 64), torch.randn(96)
    quantize_(model, acl_int8_dynamic())
    weight, linear = model[0].weight, torch.nn.functional.linear
    expected = linear(x, weight.tensor_impl, bias)
    for name, actual in {
        "linear": linear(x, weight, bias),
        "weight=": linear(x, weight=weight, bias=bias),
        "addmm": torch.addmm(bias, x, weight.t()),
        "@": x @ weight.t() + bias,
        "clone": linear(x, weight.clone(), bias),
        "detach": linear(x, weight.detach(), bias),
        "deepcopy": linear(x, copy.deepcopy(weight), bias),
    }.items():
        assert cases.same_bits(actual, expected), name
    assert cases.same_bits(weight.dequantize(), weight.tensor_impl.dequantize())
    for product_of in (lambda: x @ weight, lambda: torch.randn(5, 96) @ weight, lambda: weight @ x.t()):
        with pytest.raises(NotImplementedError, match=r"x @ w.t\(\) or F.linear\(x, w\) only"):
            product_of()
