"""ao_arm: fast and dependable int8 linear layers for PyTorch on Arm CPUs, as a torchao plugin."""

from . import checkpoint, kernels, reference
from .config import ACLInt8DynamicActivationInt8WeightConfig, acl_int8_dynamic
from .kernels import explain
from .tensor import ACLPackedLayout, ACLPackedTensor

__version__ = "0.1.0"
__all__ = [
    "ACLInt8DynamicActivationInt8WeightConfig",
    "ACLPackedLayout",
    "ACLPackedTensor",
    "acl_int8_dynamic",
    "checkpoint",
    "explain",
    "kernels",
    "reference",
]
