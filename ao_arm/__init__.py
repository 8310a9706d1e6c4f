"""Fast and dependable int8 and 4-bit linear layers for PyTorch on Arm CPUs, as a torchao plugin.

``acl_int8_dynamic``, ``acl_int8_static`` and ``acl_int4_grouped`` make configurations for
``torchao.quantization.quantize_``, and for ``quantize_``, which checks the whole model first. ``dequantize_`` gives
floats back. ``pack_`` takes over what torchao or torch.ao quantized already, and ``explain`` tells what became of a
model's layers. ``suggest`` chooses a configuration for each layer within a budget of bytes. ``ACLPackedTensor`` is the
weight that a quantized layer holds; its ``from_plain`` takes integers from elsewhere.
"""

from . import (
    _torchao,  # noqa: F401 - before what imports torchao
    checkpoint,
    experts_ops,  # noqa: F401 - registers ops
    gptq,  # noqa: F401 - waits for torchao's GPTQ to be imported
    handlers,
    kernels,
    observers,
    offloading,  # noqa: F401 - waits for accelerate to be imported
    passes,
    qat,
    reference,
    system,
    timing,
)
from ._version import __version__ as __version__
from .affine_quantized import packed_weight_of
from .config import (
    ACLInt8DynamicActivationInt4WeightConfig,
    ACLInt8DynamicActivationInt8WeightConfig,
    ACLInt8StaticActivationInt8WeightConfig,
    acl_int4_grouped,
    acl_int8_dynamic,
    acl_int8_static,
)
from .dequantize_model import dequantize_
from .experts import ACLPackedExperts
from .explanation import explain
from .importance import observe_importance
from .layout import ACLPackedLayout
from .module_weights import quantizable
from .pack_model import pack_
from .pretrained import save_pretrained
from .quantize_model import quantize_
from .suggestion import Suggestion, suggest
from .tensor import ACLPackedTensor

__all__ = [
    "ACLInt8DynamicActivationInt4WeightConfig",
    "ACLInt8DynamicActivationInt8WeightConfig",
    "ACLInt8StaticActivationInt8WeightConfig",
    "ACLPackedExperts",
    "ACLPackedLayout",
    "ACLPackedTensor",
    "Suggestion",
    "acl_int4_grouped",
    "acl_int8_dynamic",
    "acl_int8_static",
    "checkpoint",
    "dequantize_",
    "explain",
    "handlers",
    "kernels",
    "observe_importance",
    "observers",
    "pack_",
    "packed_weight_of",
    "passes",
    "qat",
    "quantizable",
    "quantize_",
    "reference",
    "save_pretrained",
    "suggest",
    "system",
    "timing",
]


def __dir__() -> list[str]:
    """The public names, and what every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
