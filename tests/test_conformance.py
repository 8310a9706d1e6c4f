"""torchao's own test suites for tensor subclasses, applied to the weights that `quantize_` makes."""

import pytest

pytest.importorskip("expecttest")
pytest.importorskip("parameterized")

import cases
import torch
from torch import Tensor
from torchao.testing import utils as suites

from ao_arm import ACLPackedLayout
from ao_arm.affine_quantized import as_weight


def quantized(weight: Tensor, layout: ACLPackedLayout) -> Tensor:
    """What `quantize_` puts in place of a weight."""
    return as_weight(cases.packed(weight, layout))


class OurTensor:
    """What the suites ask about the tensor."""

    COMMON_DEVICES = ("cpu",)
    TENSOR_SUBCLASS = type(quantized(torch.ones(1, 1), ACLPackedLayout()))
    FACTORY_FN = staticmethod(quantized)
    #: Normal values reach some 2.7 standard deviations in a row of 128, so that weights as well as activations keep
    #: 44 dB in 255 steps, and the products of both 41 dB. The suites measure this on 128 results.
    LINEAR_MIN_SQNR = 38
    COMPILE_MIN_SQNR = 50

    def setUp(self) -> None:
        super().setUp()
        # The suites instantiate their tests for each device of this machine.
        if "device1_to_device2" in self._testMethodName or "device_cuda" in self._testMethodName:
            self.skipTest("moves the tensor to a GPU; ao_arm's weights live on the CPU")


class Symmetric(OurTensor):
    kwargs = {"layout": ACLPackedLayout("symmetric")}  # noqa: RUF012 (as the suites declare it)


class Asymmetric(OurTensor):
    kwargs = {"layout": ACLPackedLayout("asymmetric")}  # noqa: RUF012


class Static(OurTensor):
    kwargs = {"layout": cases.SCHEMES["static"]}  # noqa: RUF012
    #: One scale for all rows leaves the activations some 40 dB, so that 38 dB are to be expected of the products.
    LINEAR_MIN_SQNR = 36


class Grouped(OurTensor):
    kwargs = {"layout": cases.SCHEMES["grouped"]}  # noqa: RUF012
    #: 15 steps for the weights leave 20 dB where the activations leave 44.
    LINEAR_MIN_SQNR = 17


@pytest.mark.one_cpu
class TestBasicGrouped(Grouped, suites.TorchAOBasicTestCase):
    pass


@pytest.mark.x86
@pytest.mark.slow
class TestCompileGrouped(Grouped, suites.TorchAOCompileTestCase):
    pass


@pytest.mark.one_cpu
class TestBasicStatic(Static, suites.TorchAOBasicTestCase):
    pass


@pytest.mark.x86
@pytest.mark.slow
class TestCompileStatic(Static, suites.TorchAOCompileTestCase):
    pass


@pytest.mark.one_cpu
class TestBasicSymmetric(Symmetric, suites.TorchAOBasicTestCase):
    pass


@pytest.mark.one_cpu
class TestBasicAsymmetric(Asymmetric, suites.TorchAOBasicTestCase):
    pass


@pytest.mark.x86
class TestCompileSymmetric(Symmetric, suites.TorchAOCompileTestCase):
    pass


@pytest.mark.x86
@pytest.mark.slow
class TestCompileAsymmetric(Asymmetric, suites.TorchAOCompileTestCase):
    pass


#: Suites and single checks of torchao that are not applied, and why not.
NOT_APPLIED = {
    "TorchAOTensorParallelTestCase": "shards over GPUs",
    "_test_slice_and_copy_similar_to_vllm": "asks for an accelerator, and copies into slices, which are no views here",
    "_test_moe_weight_reshape_ops": "asks for a GPU and for 3-D weights of experts",
    "_test_narrow_similar_to_vllm": "asks for a GPU",
    "_test_quantize_3d_param_similar_to_vllm": "asks for a GPU and for 3-D weights of experts",
    "_test_chunk_similar_to_vllm_llama4": "concatenates packed weights, which would have to be packed again",
}


def not_subclassed_here() -> list[str]:
    ours = {base.__name__ for made in (TestBasicSymmetric, TestCompileSymmetric) for base in made.__mro__}
    found = {name for name in vars(suites) if name.startswith("TorchAO") and name.endswith("TestCase")} - ours
    integration = getattr(suites, "TorchAOIntegrationTestCase", None)
    if integration is not None:
        found.discard("TorchAOIntegrationTestCase")
        found |= {name for name in vars(integration) if "test" in name}
    return sorted(found)


@pytest.mark.one_cpu
@pytest.mark.parametrize("name", not_subclassed_here())
def test_suite_of_torchao(name: str) -> None:
    """One that a newer torchao adds fails here until it is applied, or listed with a reason."""
    assert name in NOT_APPLIED, f"torchao.testing.utils has the new test suite or check {name}"
    pytest.skip(NOT_APPLIED[name])
