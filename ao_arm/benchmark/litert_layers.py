"""Linear layers in LiteRT, quantized by its own tools, with its XNNPACK delegate."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from .runtime_layer import RuntimeLayer

_TRACED_ROWS = 8


class LiteRTLayer(RuntimeLayer):
    """Per-token int8 activations x int8 channels, or x 4-bit groups of 32 or 64."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model)
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=model, num_threads=torch.get_num_threads())
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._rows = 0  # that memory is reserved for

    def rows(self, input: Tensor) -> Tensor:
        """From (m, k) to (m, n), both float32."""
        if len(input) != self._rows:
            self._interpreter.resize_tensor_input(self._input, input.shape)
            self._interpreter.allocate_tensors()
            self._rows = len(input)
        self._interpreter.set_tensor(self._input, input.numpy())
        self._interpreter.invoke()
        return torch.from_numpy(self._interpreter.get_tensor(self._output))

    @staticmethod
    def serialized(linear: torch.nn.Linear, group_size: int) -> bytes:
        """The flatbuffer.

        Raises:
            NotImplementedError: for another group size than 32 and 64.
        """
        import litert_torch
        from ai_edge_quantizer import quantizer, recipe

        recipes = {0: recipe.dynamic_wi8_afp32, 32: recipe.dynamic_wi4b32_afp32, 64: recipe.dynamic_wi4b64_afp32}
        if group_size not in recipes:
            raise NotImplementedError(f"LiteRT has 4-bit groups of 32 and of 64, not of {group_size}")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "linear.tflite"
            litert_torch.convert(linear, (torch.randn(_TRACED_ROWS, linear.in_features),)).export(str(file))
            return bytes(quantizer.Quantizer(str(file), recipes[group_size]()).quantize().quantized_model)
