"""Fast and dependable int8 and 4-bit linear layers for PyTorch on Arm CPUs, as a torchao plugin.

``acl_int8_dynamic``, ``acl_int8_static`` and ``acl_int4_grouped`` make configurations for
``torchao.quantization.quantize_``, ``pack_`` takes over what torchao or torch.ao quantized already, and ``explain``
tells what became of a model's layers. ``ACLPackedTensor`` is the weight that a quantized layer holds; its
``from_plain`` takes integers from elsewhere.
"""

from . import (
    _torchao,  # noqa: F401 - before what imports torchao
    checkpoint,
    handlers,
    kernels,
    observers,
    passes,
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
from .explanation import explain
from .layout import ACLPackedLayout
from .pack_model import pack_
from .tensor import ACLPackedTensor

__all__ = [
    "ACLInt8DynamicActivationInt4WeightConfig",
    "ACLInt8DynamicActivationInt8WeightConfig",
    "ACLInt8StaticActivationInt8WeightConfig",
    "ACLPackedLayout",
    "ACLPackedTensor",
    "acl_int4_grouped",
    "acl_int8_dynamic",
    "acl_int8_static",
    "checkpoint",
    "explain",
    "handlers",
    "kernels",
    "observers",
    "pack_",
    "packed_weight_of",
    "passes",
    "reference",
    "system",
    "timing",
]


def __dir__() -> list[str]:
    """The public names, and what every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
