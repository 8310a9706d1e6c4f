"""Symmetric activations are quantized as by torchao."""

import cases
import pytest
import torch
from int8_layers import DTYPES, first_difference, odd_activations

from ao_arm import _ops


@pytest.mark.parametrize("k", (2, 17, 768), ids="k={}".format)
@DTYPES
def test_symmetric_activations_are_quantized_as_by_torchao(dtype: torch.dtype, k: int) -> None:
    """As by the dynamic path of torchao's Int8DynamicActivationInt8WeightConfig; bfloat16 and float16 from 0.18 on."""
    workflows = pytest.importorskip("torchao.quantization.quantize_.workflows")
    from torchao.quantization.granularity import PerRow
    from torchao.quantization.quantize_.common import _choose_quant_func_and_quantize_tensor

    if cases.HAS_AQT and dtype != torch.float32:
        pytest.skip("this torchao keeps activation scales in the activations' dtype")
    wanted = workflows.QuantizeTensorToInt8Kwargs(granularity=PerRow())
    rows = {name: row for name, row in odd_activations(k, dtype).items() if bool(row.isfinite().all())}
    x = torch.stack([*rows.values(), *torch.randn(20, k).to(dtype)])
    theirs = _choose_quant_func_and_quantize_tensor(x, wanted)
    qdata, scale, zero_point = _ops.quantize_activations(x, True)
    assert cases.same_bits(scale, theirs.scale.reshape(-1, 1).float()), "scale"
    assert torch.equal(qdata, theirs.qdata), first_difference(qdata, theirs.qdata)
    assert not zero_point.any()
