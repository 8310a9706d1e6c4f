"""Linear layers in ONNX Runtime, quantized by its own tools."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from .runtime_layer import RuntimeLayer

#: MatMulNBits: activations are quantized to int8 as well, which is what its fastest kernels compute with.
_INT8_ACTIVATIONS = 4


class OnnxRuntimeLayer(RuntimeLayer):
    """`quantize_dynamic`'s per-tensor u8 activations x int8 channels, or `MatMulNBits` of 4-bit groups."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads would spin on while other candidates are timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def rows(self, input: Tensor) -> Tensor:
        """From (m, k) to (m, n), both float32."""
        return torch.from_numpy(self._session.run(None, {"input": input.numpy()})[0])

    @staticmethod
    def serialized(linear: torch.nn.Linear, group_size: int) -> bytes:
        """The ONNX model; it takes ``input`` (m, k)."""
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        model = _float_model(linear)
        if group_size:
            config = DefaultWeightOnlyQuantConfig(
                block_size=group_size, is_symmetric=True, accuracy_level=_INT8_ACTIVATIONS
            )
            quantizer = MatMulNBitsQuantizer(model, algo_config=config)
            quantizer.process()
            grouped: bytes = quantizer.model.model.SerializeToString()
            return grouped
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, source)
            quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
            return target.read_bytes()


def _float_model(linear: torch.nn.Linear) -> object:
    from onnx import TensorProto, helper, numpy_helper

    n, k = linear.weight.shape
    held = {"weight": linear.weight.detach().t().contiguous()}
    nodes = [helper.make_node("MatMul", ["input", "weight"], ["output" if linear.bias is None else "product"])]
    if linear.bias is not None:
        held["bias"] = linear.bias.detach()
        nodes.append(helper.make_node("Add", ["product", "bias"], ["output"]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["m", n])],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in held.items()],
    )
    # Of what onnx knows, versions that the runtimes of the last years know as well.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
