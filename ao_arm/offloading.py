"""What accelerate does with models: it measures packed weights by their bytes, and cannot offload them."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from .experts import bytes_too_many, is_packed
from .import_hooks import after_import


def _measure_packed_weights(module: ModuleType) -> None:
    """Replaces accelerate's ``compute_module_sizes`` where it is known by this name."""
    measure = module.compute_module_sizes
    if hasattr(measure, "measures_packed_weights"):
        return

    @functools.wraps(measure)
    def compute_module_sizes(model: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        sizes = measure(model, *arguments, **options)
        if arguments or options:
            return sizes  # asks what the model would take in another dtype, or for its buffers alone
        for name, parameter in model.named_parameters():
            too_many, parts = bytes_too_many(parameter), name.split(".")
            for length in range(len(parts) + 1) if too_many else ():
                sizes[".".join(parts[:length])] -= too_many
        return sizes

    compute_module_sizes.measures_packed_weights = True  # type: ignore[attr-defined]
    module.compute_module_sizes = compute_module_sizes  # type: ignore[attr-defined]


def _refuse_to_offload(hooks: ModuleType) -> None:
    """Names the reason where ``cpu_offload``, ``disk_offload`` and ``dispatch_model`` would fail by another error."""
    prepare = hooks.AlignDevicesHook.init_hook

    @functools.wraps(prepare)
    def init_hook(self: Any, module: torch.nn.Module) -> torch.nn.Module:
        if self.offload:
            for name, parameter in module.named_parameters(recurse=self.place_submodules):
                if is_packed(parameter):
                    raise NotImplementedError(
                        f"accelerate cannot offload {name} of {module}, which ao_arm quantized and whose packed bytes "
                        "are in the CPU's memory and work there: leave the model as it is, without cpu_offload, "
                        "disk_offload or a device_map with 'disk'"
                    )
        result: torch.nn.Module = prepare(self, module)
        return result

    hooks.AlignDevicesHook.init_hook = init_hook


for _name in ("accelerate.utils.modeling", "accelerate.utils"):
    after_import(_name, _measure_packed_weights)
after_import("accelerate.hooks", _refuse_to_offload)
