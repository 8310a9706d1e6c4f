"""What the passes say of layers that they leave is what a user can act on."""

import warnings

import pytest
import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

import ao_arm

pytestmark = pytest.mark.x86


def a_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 32)).eval().requires_grad_(False)


def test_what_is_no_graph_is_told_where_to_go() -> None:
    model = a_model()
    program = torch.export.export(model, (torch.randn(3, 64),))
    for given in (model, program.module()):
        with pytest.raises(ValueError, match=r"ExportedProgram, not \w+: fuse_ takes graph modules, and ao_arm.pack_"):
            ao_arm.passes.fuse(given)  # type: ignore[arg-type]
    for given in (model, program):
        with pytest.raises(ValueError, match=r"GraphModule, not \w+: fuse takes exported programs, and ao_arm.pack_"):
            ao_arm.passes.fuse_(given)  # type: ignore[arg-type]


def test_of_weights_that_alone_are_quantized() -> None:
    model, x = a_model(), torch.randn(3, 64)
    quantize_(model, Int8WeightOnlyConfig(version=2))
    program = torch.export.export(model, (x,))
    with pytest.warns(UserWarning, match="0: its weight's integers are multiplied as floats"):
        fused = ao_arm.passes.fuse(program)
    assert torch.equal(fused.module()(x), model(x))


@pytest.mark.slow
@torch._inductor.config.patch(joint_custom_pre_pass=None)
def test_of_inductor_without_freezing() -> None:
    """The advice is there where it helps, and following either half of it helps."""
    model, x = a_model(), torch.randn(3, 64)
    quantize_(model, Int8DynamicActivationInt8WeightConfig(version=2))
    expected = model(x)
    ao_arm.passes.register_with_inductor()
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match=r'no constant of the graph\. .*freezing = True.*backend="ao_arm"'):
        torch.testing.assert_close(torch.compile(model)(x), expected)
    for backend, freezing in (("ao_arm", False), ("inductor", True)):
        torch._dynamo.reset()
        patched = torch._inductor.config.patch(freezing=freezing)
        with patched, torch.no_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.testing.assert_close(torch.compile(model, backend=backend)(x), expected)
        assert [warning for warning in caught if "left as they were" in str(warning.message)] == []
        assert [layer.op for layer in ao_arm.passes.compiled_reports()[-1]] == ["ao_arm::linear_int8_dynamic"]
