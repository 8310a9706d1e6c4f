"""torchao's GPTQ, which cannot end in weights of ours: its configuration says so when it is made."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from .config import CONFIGS
from .import_hooks import after_import


def _refuse_our_configurations(api: ModuleType) -> None:
    check = api.GPTQConfig.__post_init__

    @functools.wraps(check)
    def __post_init__(self: Any) -> None:
        if isinstance(self.base_config, CONFIGS):
            raise NotImplementedError(
                f"GPTQConfig cannot end in {type(self.base_config).__name__}: torchao converts on CUDA, and to weights "
                "with float activations. acl_int4_grouped(search=True) after ao_arm.observe_importance(model, inputs) "
                "weighs errors by inputs too, and ACLPackedTensor.from_plain takes the integers of GPTQ checkpoints"
            )
        check(self)

    api.GPTQConfig.__post_init__ = __post_init__


after_import("torchao.prototype.gptq.api", _refuse_our_configurations)
