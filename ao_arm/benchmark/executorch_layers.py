"""Linear layers in ExecuTorch, lowered to XNNPACK (on Arm with KleidiAI's kernels)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .runtime_layer import RuntimeLayer

#: For which a program reserves memory.
_MOST_ROWS = 2048
#: A program is exported for any number of rows only if it was not traced with 1.
_TRACED_ROWS = 8


class ExecuTorchLayer(RuntimeLayer):
    """Per-token int8 activations x int8 channels by XNNPACK's quantizer, or x 4-bit groups by torchao."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model)
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
        self._program = Runtime.get().load_program(model)
        self._method = self._program.load_method("forward")

    def rows(self, input: Tensor) -> Tensor:
        """From (m, k) to (m, n), both float32."""
        output: Tensor = self._method.execute((input,))[0]
        return output

    @staticmethod
    def serialized(linear: torch.nn.Linear, group_size: int) -> bytes:
        """The lowered program.

        Raises:
            NotImplementedError: if XNNPACK does not take the layer.
        """
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        example = (torch.randn(_TRACED_ROWS, linear.in_features),)
        quantized = _in_groups(linear, group_size) if group_size else _by_channel(linear, example)
        program = torch.export.export(quantized, example, dynamic_shapes=_any_rows())
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        calls = [node for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
        if len(calls) != 2:  # one call of the delegate, and the first of its outputs
            raise NotImplementedError(
                f"XNNPACK does not take all of it: {', '.join(str(node.target) for node in calls)}"
            )
        file: bytes = lowered.to_executorch().buffer
        return file


def _any_rows() -> tuple[Any, ...]:
    return ({0: torch.export.Dim("m", min=1, max=_MOST_ROWS)},)


def _by_channel(linear: torch.nn.Linear, example: tuple[Tensor]) -> torch.nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    prepared = prepare_pt2e(torch.export.export(linear, example, dynamic_shapes=_any_rows()).module(), quantizer)
    prepared(*example)
    converted: torch.nn.Module = convert_pt2e(prepared)
    return converted


def _in_groups(linear: torch.nn.Linear, group_size: int) -> torch.nn.Module:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_

    int4: torch.dtype = getattr(torch, "int4")  # noqa: B009 - torch's types do not have it
    quantized = copy.deepcopy(linear)
    quantize_(quantized, Int8DynamicActivationIntxWeightConfig(int4, PerGroup(group_size)))
    return quantized
