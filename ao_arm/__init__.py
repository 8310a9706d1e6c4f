"""Fast and dependable int8 and 4-bit linear layers for PyTorch on Arm CPUs, as a torchao plugin.

``acl_int8_dynamic``, ``acl_int8_static`` and ``acl_int4_grouped`` make configurations for
``torchao.quantization.quantize_``, ``pack_`` takes over what torchao or torch.ao quantized already, and ``explain``
tells what became of a model's layers. ``suggest`` chooses a configuration for each layer within a budget of bytes.
``ACLPackedTensor`` is the weight that a quantized layer holds; its ``from_plain`` takes integers from elsewhere.
"""

from . import checkpoint, handlers, kernels, passes, reference
from .affine_quantized import packed_weight_of
from .config import (
    ACLInt8DynamicActivationInt4WeightConfig,
    ACLInt8DynamicActivationInt8WeightConfig,
    ACLInt8StaticActivationInt8WeightConfig,
    acl_int4_grouped,
    acl_int8_dynamic,
    acl_int8_static,
)
from .explanation import explain
from .importance import observe_importance
from .layout import ACLPackedLayout
from .pack_model import pack_
from .suggestion import Suggestion, suggest
from .tensor import ACLPackedTensor

__version__ = "0.1.0"
__all__ = [
    "ACLInt8DynamicActivationInt4WeightConfig",
    "ACLInt8DynamicActivationInt8WeightConfig",
    "ACLInt8StaticActivationInt8WeightConfig",
    "ACLPackedLayout",
    "ACLPackedTensor",
    "Suggestion",
    "acl_int4_grouped",
    "acl_int8_dynamic",
    "acl_int8_static",
    "checkpoint",
    "explain",
    "handlers",
    "kernels",
    "observe_importance",
    "pack_",
    "packed_weight_of",
    "passes",
    "reference",
    "suggest",
]
