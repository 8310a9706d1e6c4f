"""The backend of ``torch.compile``, known from the start; what it is made of is imported when it is used first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._dynamo import register_backend
from torch.fx import GraphModule


@register_backend(name="ao_arm")
def ao_arm_backend(
    module: GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Callable[..., Any]:
    """Inductor, with quantized linear layers as one op each: ``torch.compile(model, backend="ao_arm")``.

    Weights are packed once, when the graph is compiled, whether it is frozen or not. If one is replaced, or changed in
    place, the graph is compiled anew. Where gradients are enabled, parameters that require one are no constants.

    Args:
        module, example_inputs: what Dynamo captured.
        options: Inductor's, as for ``torch.compile(model, options=...)``, for instance ``{"max_autotune": True}``.
        kwargs: ``mode``, as Inductor's.
    """
    from .compiler import CompiledGraph

    mode = kwargs.pop("mode", None)
    if kwargs:
        raise ValueError(f"backend ao_arm takes options and mode, not {', '.join(kwargs)}")
    return CompiledGraph(
        module, example_inputs, {**(torch._inductor.list_mode_options(mode) if mode else {}), **(options or {})}
    )
